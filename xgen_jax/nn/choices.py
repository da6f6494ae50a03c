"""Names that configurations choose layers by; apart from the layers, which load jax."""

# See `nn.attention`.
IMPLEMENTATIONS = ("auto", "xla", "chunked", "cudnn")
# Norms of a video autoencoder, see `nn.norms.video_norm`.
VIDEO_NORMS = ("group_per_frame", "group", "rms")
