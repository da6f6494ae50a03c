"""An autoencoder's posterior: the formulae of diffusers' DiagonalGaussianDistribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.posterior import Posterior
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_embedder import VidVAEEmbedder
from xgen_jax.testing import POINTWISE, regen_embedder, tiny_vidvae

SHAPE = (2, 1, 2, 2, 3)


@pytest.fixture
def posterior():
    rng = np.random.default_rng(0)
    mean, logvar = rng.standard_normal((2, *SHAPE))
    return Posterior(jnp.asarray(mean), jnp.asarray(logvar))


def test_kl_and_nll_are_the_formulae(posterior):
    mean, logvar = (np.asarray(x, np.float64) for x in posterior)
    x = np.random.default_rng(1).standard_normal(SHAPE)
    clip = (1, 2, 3, 4)
    kl = 0.5 * np.sum(mean**2 + np.exp(logvar) - 1.0 - logvar, clip)
    np.testing.assert_allclose(posterior.kl(), kl, rtol=1e-5)
    nll = 0.5 * np.sum(np.log(2 * np.pi) + logvar + (x - mean) ** 2 / np.exp(logvar), clip)
    np.testing.assert_allclose(posterior.nll(jnp.asarray(x)), nll, rtol=1e-5)
    # The prior is no information, and the mode the most probable value.
    prior = Posterior(jnp.zeros(SHAPE), jnp.zeros(SHAPE))
    np.testing.assert_array_equal(prior.kl(), np.zeros(2))
    assert (posterior.nll(posterior.mode()) < posterior.nll(posterior.mode() + 0.1)).all()


def test_kl_is_the_mean_of_log_q_minus_log_p_over_samples(posterior):
    many = Posterior(*(jnp.repeat(x[:1], 20_000, axis=0) for x in posterior))
    z = many.sample(jax.random.key(0))
    prior = Posterior(jnp.zeros_like(z), jnp.zeros_like(z))
    difference = np.asarray(prior.nll(z) - many.nll(z), np.float64)
    error = difference.std() / len(difference) ** 0.5
    assert abs(difference.mean() - float(many.kl()[0])) < 5 * error


def test_samples_have_the_moments_and_a_key_a_clip_leaves_the_batch_out(posterior):
    keys = jax.random.split(jax.random.key(3), 2)
    both, one = posterior.sample(keys), Posterior(*(x[1:] for x in posterior)).sample(keys[1:])
    np.testing.assert_allclose(both[1:], one, rtol=1e-6)
    many = Posterior(*(jnp.repeat(x[:1], 20_000, axis=0) for x in posterior))
    z = np.asarray(many.sample(jax.random.key(4)))
    np.testing.assert_allclose(z.mean(0), posterior.mean[0], atol=0.1)
    np.testing.assert_allclose(z.std(0), posterior.std[0], rtol=0.05)


def vidvae():
    model = VidVAE(tiny_vidvae(**POINTWISE))
    video = jnp.zeros((1, 5, 8, 8, 3))
    params = jax.jit(model.init)(jax.random.key(1), video)
    embedder = VidVAEEmbedder(model=model)
    return embedder, embedder.bundle(params, np.full(2, 0.5), np.full(2, 2.0))


@pytest.mark.parametrize(
    ("make", "frames"), [(vidvae, 5), (regen_embedder, 11)], ids=["vidvae", "regen"]
)
def test_an_embedders_latents_are_the_mode_of_its_posterior(make, frames):
    embedder, params = make()
    video = jax.random.normal(jax.random.key(0), (2, frames, 8, 8, 3))
    posterior, latents = jax.jit(
        lambda p, v: (embedder.posterior(p, v), embedder.encode(p, v)),
    )(params, video)
    assert posterior.mean.shape == posterior.logvar.shape == embedder.latent_shape(video.shape)
    np.testing.assert_array_equal(embedder.normalise(params, posterior.mode()), latents)
    assert np.isfinite(posterior.kl()).all() and (posterior.kl() > 0).all()
    with pytest.raises(UserError, match="3 frames cannot be encoded"):
        embedder.posterior(params, video[:, :3])


def test_an_embedder_without_a_posterior_says_so():
    embedder, params = vidvae()
    with pytest.raises(UserError, match="VidVAEEmbedder encodes to latents, and has no posterior"):
        Embedder.posterior_chunk(embedder, params, jnp.zeros((1, 5, 8, 8, 3)))
