"""An embedder's two verbs: latents of zero mean and unit variance by its statistics, and the way back."""

import jax
import numpy as np

from xgen_jax.models.embedder import VidVAEEmbedder
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_config import VidVAEConfig

CONFIG = VidVAEConfig(
    channels=(4,),
    space_reduction=(False,),
    time_reduction=(False,),
    latent_channels=3,
    blocks=1,
    stem=(4, 4, 4),
    mid_attention=False,
    norm="rms",
)


def setup():
    model = VidVAE(CONFIG)
    video = jax.random.normal(jax.random.key(0), (4, 5, 8, 8, 3))
    params = jax.jit(model.init)(jax.random.key(1), video)
    mean = np.asarray(jax.jit(lambda x: model.apply(params, x, method="encode"))(video)[0])
    statistics = mean.mean((0, 1, 2, 3)), mean.std((0, 1, 2, 3))
    embedder = VidVAEEmbedder(model=model)
    return embedder, embedder.bundle(params, *statistics), video, mean


def test_encoded_latents_have_zero_mean_and_unit_variance_by_their_statistics():
    embedder, params, video, mean = setup()
    latents = jax.jit(embedder.encode)(params, video)
    assert latents.shape == embedder.latent_shape(video.shape)
    assert latents.shape[-1] == embedder.latent_channels == 3
    np.testing.assert_allclose(latents.mean((0, 1, 2, 3)), np.zeros(3), atol=1e-5)
    np.testing.assert_allclose(latents.std((0, 1, 2, 3)), np.ones(3), atol=1e-4)
    # The statistics belong to channels that differ, else a wrong axis would go unseen.
    assert np.ptp(mean.std((0, 1, 2, 3))) > 0.01


def test_decode_undoes_the_normalisation():
    embedder, params, video, mean = setup()
    latents = jax.jit(embedder.encode)(params, video)
    decoded = jax.jit(lambda z: embedder.decode(params, z, jax.random.key(0)))(latents)
    plain, _ = jax.jit(lambda z: embedder.model.apply(params["model"], z, method="decode"))(mean)
    assert decoded.shape == video.shape
    np.testing.assert_allclose(decoded, plain, atol=1e-5)
