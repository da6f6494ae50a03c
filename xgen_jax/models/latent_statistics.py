"""Mean and standard deviation of each latent channel, by which an embedder normalises its latents.

They are measured once, at the end of training or by `commands.encode` for converted weights, and
stored with the embedder.
"""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from xgen_jax.data.pixels import to_unit_range
from xgen_jax.errors import UserError
from xgen_jax.models.embedder import Embedder
from xgen_jax.parallel.arrays import fetch
from xgen_jax.typing import AnyArray, Params

_SMALLEST_STD = 1e-6  # of latents that do not vary at all, instead of zero
# A KL term switches off channels that it has no use for: their posterior is the prior, and the mean
# varies a hundred times less than that of the others. Brought to unit variance, what is left there
# is as much to learn for a transformer as a channel that the decoder uses.
_SWITCHED_OFF = 0.1  # of the largest standard deviation


def latent_statistics(
    embedder: Embedder, model_params: Params, videos: Iterable[AnyArray]
) -> dict[str, Any]:
    """Measure the statistics of the posterior means of videos.

    A channel that varies less than a tenth as much as the one that varies most has the standard
    deviation of the latter: it stays small when it is normalised.

    Args:
      embedder: makes the latents; those of a REGEN's content and motion count alike.
      model_params: of its model.
      videos: batches, uint8 (B, T, H, W, 3), on the host or over the devices of all processes.

    Returns:
      {"mean": (c,), "std": (c,), "values": their number per channel}.

    Raises:
      UserError: a latent that is not finite, or no video at all.
    """
    channels = embedder.latent_channels
    params = embedder.bundle(
        model_params, np.zeros(channels), np.ones(channels)
    )  # latents as they come
    encode = jax.jit(lambda params, video: embedder.encode(params, to_unit_range(video)))
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    for video in videos:
        latents = np.asarray(fetch(encode(params, video)), np.float64)
        latents = latents.reshape(-1, latents.shape[-1])
        count += len(latents)
        total, squares = total + latents.sum(0), squares + np.square(latents).sum(0)
    if not count:
        raise UserError("there is no video to measure the latents of")
    mean = total / count
    if not np.all(np.isfinite(squares)):
        raise UserError("the embedder gives latents that are not finite; its weights are damaged")
    std = np.sqrt(np.maximum(squares / count - mean**2, _SMALLEST_STD**2))
    std = np.where(std < _SWITCHED_OFF * std.max(), std.max(), std)
    return {"mean": mean.tolist(), "std": std.tolist(), "values": count}
