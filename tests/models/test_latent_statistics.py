"""Latent statistics: of the posterior's means, and what they make of a channel that is off."""

import jax
import numpy as np
import pytest

from xgen_jax.data.pixels import to_unit_range
from xgen_jax.models.latent_statistics import latent_statistics
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_embedder import VidVAEEmbedder
from xgen_jax.testing import tiny_vidvae


def statistics_with(scales: list[float]):
    """Measure two batches with each latent channel scaled; also return the means."""
    model = VidVAE(tiny_vidvae(latent_channels=len(scales)))
    video = np.random.default_rng(0).integers(0, 256, (4, 5, 16, 16, 3), np.uint8)
    params = model.init(jax.random.key(1), to_unit_range(video))
    quant = params["params"]["encoder"]["quant"]
    raw, _ = model.apply(params, to_unit_range(video), method="encode")
    # Unit variance first, so that `scales` are the standard deviations.
    each = np.concatenate(
        [np.array(scales) / np.asarray(raw.mean).std((0, 1, 2, 3)), np.ones(len(scales))]
    )
    quant["kernel"], quant["bias"] = quant["kernel"] * each[None], quant["bias"] * each
    posterior, _ = model.apply(params, to_unit_range(video), method="encode")
    embedder = VidVAEEmbedder(model=model)
    return latent_statistics(embedder, params, [video[:2], video[2:]]), np.asarray(posterior.mean)


def test_statistics_are_those_of_each_channel():
    statistics, mean = statistics_with([1.0, 0.21, 2.0])
    assert statistics["values"] == mean[..., 0].size
    np.testing.assert_allclose(statistics["mean"], mean.mean((0, 1, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(statistics["std"], [1.0, 0.21, 2.0], rtol=1e-3)


def test_a_channel_that_the_kl_term_has_switched_off_stays_small():
    statistics, mean = statistics_with([1.0, 0.01, 1.5])
    np.testing.assert_allclose(statistics["std"], [1.0, 1.5, 1.5], rtol=1e-3)
    normalised = (mean - statistics["mean"]) / statistics["std"]
    assert normalised[..., 1].std() == pytest.approx(0.01 / 1.5, rel=0.01)
