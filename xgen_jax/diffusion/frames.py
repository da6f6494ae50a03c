"""Sampling with given frames: an image's or a video's latents as the condition of the rest.

Both classes are the `frames` of `samplers.sample`. The network gets a frame mask, True where a
frame is noised, and modulates the others as at time 0.
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
        """Put the known frames into the state."""
        del now, noise
        return jnp.where(per_sample(self.known_BT, x), self.latents, x)

    def frame_mask(self, now):
        """Return True for all frames but the known."""
        del now
        return ~self.known_BT

    def after(self, x_before, x, now):
        """Keep known frames as they were before the step, that is, as given."""
        del now
        return jnp.where(per_sample(self.known_BT, x), x_before, x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenSoraFrames:
    """Open-Sora 1.1's given frames, for the ancestral sampling of its own respaced chain.

    A frame of strength s in [0, 1] stays as given until step floor(s K) of K (they count down to
    0), gets that step's noise, and is then sampled like any other. Strength 1 samples from noise,
    strengths between edit the frame. A frame of strength 0 gets the noise of step 0 and the last
    denoising: it comes out nearly, but not exactly, as given.

    Attributes:
      strength_BT: float in [0, 1].
      steps: K.
    """

    strength_BT: Array
    steps: int = dataclasses.field(metadata={"static": True})

    def _start(self):
        return jnp.floor(self.strength_BT * self.steps).astype(jnp.int32)

    def before(self, x, now, noise):
        """Add noise to the frames that begin at this step."""
        begins = per_sample(self._start() == self._left(now), x)
        return jnp.where(begins, now.alpha * x + now.sigma * noise(now.step, FRAME_NOISE), x)

    def frame_mask(self, now):
        """Return True past a frame's first step: at the first the network takes it as clean."""
        return self._start() > self._left(now)

    def after(self, x_before, x, now):
        """Keep the frames that have not begun yet."""
        return jnp.where(per_sample(self._start() < self._left(now), x), x_before, x)

    def _left(self, now):
        return self.steps - 1 - now.step
