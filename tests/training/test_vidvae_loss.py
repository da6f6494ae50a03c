"""The autoencoder's loss: its formula, its gradient in one pass, two groups apart, and a discriminator that is alive."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from xgen_jax.errors import UserError
from xgen_jax.models.discriminator import Discriminator, DiscriminatorConfig
from xgen_jax.models.vidvae import VidVAE, VidVAEConfig
from xgen_jax.training.objectives.adversarial import (
    AdversarialConfig,
    adaptive_ratio,
    adversarial_terms,
    hinge_discriminator,
    hinge_generator,
    r1_penalty,
)
from xgen_jax.training.objectives.vidvae import VidVAELossConfig, VidVAEObjective, to_unit_range
from xgen_jax.training.optimizer import OptimizerConfig
from xgen_jax.training.state import init_state, make_update, sample_keys

MODEL = VidVAEConfig(
    channels=(8,),  # at four the RMS of a pixel's few channels comes so near zero that rounding shows in the fourth place
    space_reduction=(False,),
    time_reduction=(False,),
    latent_channels=2,
    blocks=1,
    stem=(4, 4, 4),
    mid_attention=False,
    kernels=((1, 1, 1), (1, 1, 1)),
    norm="rms",
)
ADVERSARIAL = AdversarialConfig(
    weight=0.5,
    start_step=3,
    discriminator=DiscriminatorConfig(width=4, layers=2),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=0, b1=0.5, b2=0.9),
)
SEED = 0


class Distance(nn.Module):
    """Stands for LPIPS: any module (frames, frames) -> (B,) with parameters that are held fixed."""

    @nn.compact
    def __call__(self, x_BHWC, y_BHWC):
        layer = nn.Conv(4, (3, 3))
        return jnp.square(jnp.tanh(layer(x_BHWC)) - jnp.tanh(layer(y_BHWC))).mean((1, 2, 3))


def make(adversarial=ADVERSARIAL, dtype=jnp.float32, lpips=0.3, frames=5, batch=4):
    """An objective, its parameters, and a batch of noise."""
    module = Distance() if lpips else None
    frozen = module.init(jax.random.key(7), *[jnp.zeros((1, 8, 8, 3))] * 2) if lpips else None
    config = VidVAELossConfig(l1=0.5, l2=2.0, lpips=lpips, kl=0.1, adversarial=adversarial)
    objective = VidVAEObjective(model=VidVAE(MODEL, dtype), loss_config=config, lpips=module, frozen=frozen)
    video = np.random.default_rng(0).integers(0, 256, (batch, frames, 16, 16, 3), np.uint8)
    arrays = objective.prepare(objective.arrays({"video": video}))
    params = jax.jit(objective.init)(jax.random.key(1), arrays)
    rng = np.random.default_rng(1)  # biases too, so that a lost one shows
    return objective, jax.tree.map(lambda x: x + 0.05 * rng.standard_normal(x.shape, np.float32), params), arrays


@pytest.fixture(scope="module")
def adversarial():
    objective, params, arrays = make()
    keys = sample_keys(SEED, jnp.int32(3), np.arange(4, dtype=np.uint32))
    return objective, params, arrays, keys


def as_written(objective, params, arrays, keys):
    """(reconstruction + KL, generator's adversarial loss, discriminator's), the way the formulas read."""
    c, video = objective.loss_config, to_unit_range(arrays["video"])
    noise = jax.vmap(lambda key: jax.random.normal(key, objective.model.config.latent_shape(video.shape)[1:]))(keys)
    y, mean, logvar = objective.model.apply(params["vidvae"], video, noise)
    frames = [x.reshape(-1, *x.shape[2:]) for x in (y, video)]
    lpips = objective.lpips.apply(objective.frozen, *frames).mean()
    rec = c.l1 * jnp.abs(y - video).mean() + c.l2 * jnp.square(y - video).mean() + c.lpips * lpips
    kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar).mean()
    fixed = jax.lax.stop_gradient(params["discriminator"])
    gan = hinge_generator(objective.discriminator.apply(fixed, y))

    def discriminate(x):
        return objective.discriminator.apply(params["discriminator"], x)

    disc = hinge_discriminator(discriminate(video), discriminate(jax.lax.stop_gradient(y)))
    return rec, c.kl * kl, gan, disc


def kernel_of(tree):
    return tree["vidvae"]["params"]["head"]["conv_out"]["kernel"]


def assert_close(one, other, tolerance):
    """All within `tolerance` of the tree's largest value."""
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * largest, rtol=0), one, other)


def test_the_gradient_of_one_pass_is_that_of_the_loss_as_written(adversarial):
    objective, params, arrays, keys = adversarial

    @jax.jit
    def by_hand(params):
        """Every term's gradient by itself."""
        terms = jnp.stack(as_written(objective, params, arrays, keys))
        gradients = jax.jacrev(lambda p: jnp.stack(as_written(objective, p, arrays, keys)))(params)
        rec, gan = (jnp.linalg.norm(kernel_of(gradients)[i].ravel()) for i in (0, 2))
        weights = jnp.array([1.0, 1.0, 0.5 * rec / (gan + 1e-4), 1.0])
        return weights @ terms, jax.tree.map(lambda x: jnp.tensordot(weights, x, 1), gradients), weights[2]

    value, expected, weight = by_hand(params)
    loss = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    (got, metrics), grads = loss(params, arrays, keys, jnp.int32(3), objective.frozen)
    np.testing.assert_allclose(metrics["gan_weight"], weight, rtol=1e-5)
    assert 0 < weight < 0.5e4
    np.testing.assert_allclose(got, value, rtol=1e-6)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(expected["vidvae"]))
    for group in ("vidvae", "discriminator"):
        assert_close(grads[group], expected[group], 1e-5)


def test_no_groups_loss_moves_the_other():
    """Exactly: the discriminator's loss has no gradient into the clips, the generator's none into the discriminator."""
    config = dataclasses.replace(ADVERSARIAL, start_step=0, r1=0.2)
    model = Discriminator(config.discriminator)
    video, y, cotangent = jax.random.normal(jax.random.key(0), (3, 2, 1, 16, 16, 3))
    params = jax.jit(model.init)(jax.random.key(1), video)

    @jax.jit
    def gradients(params, video, y, cotangent):
        def pull(loss_, gan, metrics):
            """The gradient of a weighted sum of these outputs by every input."""

            def total(params, video, y, cotangent):
                loss, gan_cotangent, values = adversarial_terms(
                    config, model, params, video, y, cotangent, lambda c: 2 * c, jnp.int32(5)
                )
                return loss_ * loss + gan * jnp.sin(gan_cotangent).sum() + metrics * sum(values.values())

            return jax.grad(total, argnums=(0, 1, 2, 3))(params, video, y, cotangent)

        return pull(1.0, 0.0, 0.0), pull(0.0, 1.0, 1.0)

    (by_params, *by_clips), of_generator = gradients(params, video, y, cotangent)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(by_params))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((by_clips, of_generator)))


def test_before_its_step_the_discriminator_does_nothing(adversarial):
    objective, params, arrays, keys = adversarial
    plain, *_ = make(adversarial=AdversarialConfig())
    both = jax.jit(
        lambda params: jax.value_and_grad(objective.loss, has_aux=True)(
            params, arrays, keys, jnp.int32(2), objective.frozen
        )
    )
    alone = jax.jit(
        lambda params: jax.value_and_grad(plain.loss, has_aux=True)(params, arrays, keys, jnp.int32(2), plain.frozen)
    )
    (value, metrics), grads = both(params)
    (expected, _), expected_grads = alone({"vidvae": params["vidvae"]})
    assert {metrics[name].item() for name in ("gan", "gan_weight", "disc_loss")} == {0.0}
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert_close(grads["vidvae"], expected_grads["vidvae"], 1e-5)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["discriminator"]))


def test_the_ratio_is_clamped_and_may_be_left_out():
    one = jnp.ones((2, 2))
    assert adaptive_ratio(6 * one, 2 * one, 1e4) == pytest.approx(3, rel=1e-4)
    assert adaptive_ratio(one, 0 * one, 1e4) == 1e4
    assert adaptive_ratio(one, 0 * one, 1e9) == pytest.approx(2 / 1e-4)
    assert adaptive_ratio(0 * one, one, 1e4) == 0


@pytest.mark.parametrize("real,fake,loss", [(0.0, 0.0, 2.0), (1.0, -1.0, 0.0), (5.0, -0.5, 0.5), (-1.0, 3.0, 6.0)])
def test_the_hinge(real, fake, loss):
    assert hinge_discriminator(jnp.full((2, 3), real), jnp.full((4,), fake)) == loss
    assert hinge_generator(jnp.full((4,), fake)) == -fake


def test_r1_is_the_gradient_of_a_known_function():
    # D(x) = sum a x^2: the gradient is 2 a x for each clip by itself.
    x = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 3))
    r1 = r1_penalty(lambda x: 3.0 * jnp.square(x).sum((2, 3, 4)), x)
    np.testing.assert_allclose(r1, 36 * jnp.square(x).mean(), rtol=1e-6)
