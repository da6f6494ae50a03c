"""Mean and standard deviation of each latent channel: what brings an embedder's latents to zero mean and unit variance.

Measured once, at the end of training or by `inference.encode` for converted weights, and kept with the embedder.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from xgen_jax.errors import UserError
from xgen_jax.training.objectives.vidvae import to_unit_range
from xgen_jax.typing import Array, Params

_SMALLEST_STD = 1e-6  # a channel that does not vary is divided by this instead of by zero


def latent_statistics(
    encode: Callable[[Params, Array], Array], params: Params, videos: Iterable[np.ndarray]
) -> dict[str, Any]:
    """{"mean": (c,), "std": (c,), "values": how many a channel} over the posterior means of some videos.

    Args:
      encode: (params, clips in [-1, 1]) -> latents (B, t, h, w, c) as they come, not normalised.
      params: of the embedder.
      videos: batches, uint8 (B, T, H, W, 3).

    Raises:
      UserError: a latent that is not finite, or no video at all.
    """
    latents_of = jax.jit(lambda params, video: encode(params, to_unit_range(video)))
    count, total, squares = 0, 0.0, 0.0
    for video in videos:
        latents = np.asarray(latents_of(params, video), np.float64)
        latents = latents.reshape(-1, latents.shape[-1])
        count += len(latents)
        total, squares = total + latents.sum(0), squares + np.square(latents).sum(0)
    if not count:
        raise UserError("there is no video to measure the latents of")
    mean = total / count
    if not np.all(np.isfinite(squares)):
        raise UserError("the embedder gives latents that are not finite; its weights are damaged")
    std = np.sqrt(np.maximum(squares / count - mean**2, _SMALLEST_STD**2))
    return {"mean": mean.tolist(), "std": std.tolist(), "values": count}
