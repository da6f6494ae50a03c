"""The smallest network whose latents have the shape of the paper's embedder."""

from xgen_jax.models.vidvae_config import VidVAEConfig

# 4x8x8, as the paper's.
TINY = VidVAEConfig(
    channels=(4,),
    space_reduction=(False,),
    time_reduction=(False,),
    latent_channels=4,
    blocks=1,
    stem=(4, 8, 8),
    mid_attention=False,
    kernels=((1, 1, 1), (1, 1, 1)),
    norm="rms",
)
