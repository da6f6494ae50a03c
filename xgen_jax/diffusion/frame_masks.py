"""Frame masks: some latent frames of a training clip stay clean, as the condition of the others.

One model learns in this way to sample a clip from text, from its first or last frames, from both,
or from frames within it (Open-Sora 1.1's report, section on masks; that project is the template of
arXiv 2408.12590, section 3.2). In a frame mask, True means that the frame is noised; a clean frame
is modulated as at time 0.
"""

import jax
import jax.numpy as jnp

from xgen_jax.diffusion.config import KINDS, FrameMaskConfig
from xgen_jax.typing import Array


def sample_frame_masks(keys_B: Array, frames: int, config: FrameMaskConfig) -> Array:
    """Sample frame masks, bool (B, frames), True where a latent frame is noised.

    A mask depends on its sample's key only. One that would leave no frame to sample (both ends of
    two frames, any of one) is replaced by none.
    """
    cuts = jnp.cumsum(jnp.asarray(config.fractions, jnp.float32))[:-1]
    place_T = jnp.arange(frames)

    def one(key):
        key_kind, key_size, key_start = jax.random.split(key, 3)
        kind = jnp.sum(jax.random.uniform(key_kind) >= cuts)
        size = jax.random.randint(key_size, (), 1, max(1, frames // 4) + 1)
        size = jnp.where(kind >= KINDS.index("image_random"), 1, size)
        start = jax.random.randint(key_start, (), 0, frames - size + 1)
        random = (place_T >= start) & (place_T < start + size)
        head, tail = place_T < size, place_T >= frames - size
        condition = jnp.stack([random, head, tail, head | tail])[(kind - 1) % 4] & (kind > 0)
        return ~condition | condition.all()

    return jax.vmap(one)(keys_B)
