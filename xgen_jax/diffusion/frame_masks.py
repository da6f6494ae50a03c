"""Frame masks: some latent frames of a training clip stay clean, as the condition of the others.

One model learns in this way to sample a clip from text, from its first or last frames, from both,
or from frames within it (Open-Sora 1.1's report, section on masks; that project is the template of
arXiv 2408.12590, section 3.2). In a frame mask, True means that the frame is noised; a clean frame
is modulated as at time 0.
"""

import dataclasses

import jax
import jax.numpy as jnp

from xgen_jax.errors import UserError
from xgen_jax.typing import Array

KINDS = ("none", "quarter_random", "quarter_head", "quarter_tail", "quarter_head_tail")
KINDS += ("image_random", "image_head", "image_tail", "image_head_tail")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameMaskConfig:
    """Fractions of clips, which add up to 1, by the frames that are their condition.

    Attributes:
      none: no frame.
      quarter_random, quarter_head, quarter_tail, quarter_head_tail: 1 to a quarter of the frames:
        at a random place, at the head, at the tail, or as many at each end.
      image_random, image_head, image_tail, image_head_tail: a single frame there.
    """

    none: float = 1.0
    quarter_random: float = 0.0
    quarter_head: float = 0.0
    quarter_tail: float = 0.0
    quarter_head_tail: float = 0.0
    image_random: float = 0.0
    image_head: float = 0.0
    image_tail: float = 0.0
    image_head_tail: float = 0.0

    def __post_init__(self):
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1.0) > 1e-6:
            listed = ", ".join(
                f"{kind} {fraction}" for kind, fraction in zip(KINDS, self.fractions)
            )
            raise UserError(
                f"the fractions of frame masks must be 0 or more and add up to 1: {listed}"
            )

    @property
    def fractions(self) -> tuple[float, ...]:
        """Return the fractions in the order of `KINDS`."""
        return tuple(getattr(self, kind) for kind in KINDS)


OPEN_SORA = FrameMaskConfig(
    none=0.75,
    quarter_random=0.025,
    quarter_head=0.025,
    quarter_tail=0.025,
    quarter_head_tail=0.05,
    image_random=0.025,
    image_head=0.025,
    image_tail=0.025,
    image_head_tail=0.05,
)


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
