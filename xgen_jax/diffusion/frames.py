"""Frames that are given, not drawn: an image's or a video's latents as the condition of the rest.

Both are the `frames` of `samplers.sample`. The network is told which frames are noised and
modulates the others as at time 0.
"""

import dataclasses

import jax
import jax.numpy as jnp

from xgen_jax.diffusion.process import FRAME_NOISE, per_sample
from xgen_jax.typing import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownFrames:
    """Known frames stay exactly as given, without noise, at every step and in the result.

    Attributes:
      latents: (B, T, ...), the known frames in their places; the others are not looked at.
      known_BT: bool.
    """

    latents: Array
    known_BT: Array

    def before(self, x, now, noise):
        """Known frames, then what is being drawn."""
        del now, noise
        return jnp.where(per_sample(self.known_BT, x), self.latents, x)

    def frame_mask(self, now):
        """All but the known."""
        del now
        return ~self.known_BT

    def after(self, x_before, x, now):
        """Known frames as before the step, which were as given."""
        del now
        return jnp.where(per_sample(self.known_BT, x), x_before, x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenSoraFrames:
    """Open-Sora 1.1's rule, for the ancestral sampling of its own respaced chain.

    A frame of strength s in [0, 1] waits as it is given until step floor(s K) of K (they count down
    to 0), gets that step's noise, and is then drawn like any other: 1 is drawn from noise, and what
    lies between is edited. So a frame of strength 0 gets the noise of step 0 and the last
    denoising, and comes out nearly but not exactly as it went in.

    Attributes:
      strength_BT: float in [0, 1].
      steps: K.
    """

    strength_BT: Array
    steps: int = dataclasses.field(metadata={"static": True})

    def _start(self):
        return jnp.floor(self.strength_BT * self.steps).astype(jnp.int32)

    def before(self, x, now, noise):
        """Noises the frames whose step this is."""
        begins = per_sample(self._start() == self._left(now), x)
        return jnp.where(begins, now.alpha * x + now.sigma * noise(now.step, FRAME_NOISE), x)

    def frame_mask(self, now):
        """Those past their first step: at their first the network still takes them as clean."""
        return self._start() > self._left(now)

    def after(self, x_before, x, now):
        """Frames whose time has not come stay."""
        return jnp.where(per_sample(self._start() < self._left(now), x), x_before, x)

    def _left(self, now):
        return self.steps - 1 - now.step
