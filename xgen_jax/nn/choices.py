"""Names that configurations choose layers by; apart from the layers, which load jax."""

# See `nn.attention`.
IMPLEMENTATIONS = ("auto", "xla", "chunked", "cudnn", "splash")
# Norms of a video autoencoder, see `nn.norms.video_norm`.
VIDEO_NORMS = ("group_per_frame", "group", "rms")
# What a stack of blocks computes again in the backward pass, see `nn.stack.Stack`.
REMAT = ("none", "dots", "qkv", "attention", "full", "offload")
# The name under which a policy of `jax.checkpoint` can keep what the backward pass needs of
# attention, so that it is not computed again: the result, and what its softmax was normalised by.
# `chunked`, `splash` and the kernels of few frames have it; for `cudnn` see
# `nn.cudnn_attention.FORWARD`.
KEPT_OF_ATTENTION = "attention"
# The same of what is projected to queries, keys and values, and of the results of MLPs.
PROJECTED = "projected"
MLP_RESULT = "mlp_result"
# Blocks of queries in a window of space, a side: a token sees at least a block's side around it.
WINDOW_BLOCKS = 3
