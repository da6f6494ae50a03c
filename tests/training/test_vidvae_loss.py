"""The autoencoder's loss: its formula, its gradient in one pass, two separate groups that both
learn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from xgen_jax.config.losses import AdversarialConfig, REGENLossConfig, VidVAELossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.data.pixels import to_unit_range
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.errors import UserError
from xgen_jax.models.discriminator import Discriminator
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_config import DiscriminatorConfig
from xgen_jax.testing import tiny_vidvae, vidvae_task
from xgen_jax.training.optimizer import optimize_apart
from xgen_jax.training.state import TrainState, init_state, make_update, sample_keys
from xgen_jax.training.tasks import embedder
from xgen_jax.training.tasks.adversarial import (
    adaptive_ratio,
    adversarial_terms,
    hinge_discriminator,
    hinge_generator,
    r1_penalty,
)
from xgen_jax.training.tasks.embedder import CHROMA, chroma_error, gradient_error

MODEL = tiny_vidvae(
    # At four the RMS of a pixel's few channels comes so near zero that rounding shows in the
    # fourth place.
    latent_channels=2,
    kernels=((1, 1, 1), (1, 1, 1)),
)
ADVERSARIAL = AdversarialConfig(
    weight=0.5,
    start_step=3,
    discriminator=DiscriminatorConfig(width=4, layers=2),
    optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=0, b1=0.5, b2=0.9),
)
SEED = 0


class Distance(nn.Module):
    """A stand-in for LPIPS: any module (frames, frames) -> (B,) with fixed parameters."""

    @nn.compact
    def __call__(self, x_BHWC, y_BHWC):
        layer = nn.Conv(4, (3, 3))
        return jnp.square(jnp.tanh(layer(x_BHWC)) - jnp.tanh(layer(y_BHWC))).mean((1, 2, 3))


def make(adversarial=ADVERSARIAL, dtype=jnp.float32, lpips=0.3, frames=5, batch=4, head_channels=0):
    """An objective, its parameters, and a batch of noise."""
    module = Distance() if lpips else None
    frozen = module.init(jax.random.key(7), *[jnp.zeros((1, 8, 8, 3))] * 2) if lpips else None
    config = VidVAELossConfig(
        l1=0.5, l2=2.0, gradient=0.7, chroma=0.6, lpips=lpips, kl=0.1, adversarial=adversarial
    )
    objective = vidvae_task(
        model=VidVAE(dataclasses.replace(MODEL, head_channels=head_channels), dtype),
        loss_config=config,
        lpips=module,
        frozen=frozen,
    )
    # The clips of seed 0 lose two digits to rounding in the encoder's gradients; these do not.
    video = np.random.default_rng(2).integers(0, 256, (batch, frames, 16, 16, 3), np.uint8)
    arrays = objective.prepare(objective.batch_arrays({"video": video}))
    params = jax.jit(objective.init)(jax.random.key(1), arrays)
    rng = np.random.default_rng(1)  # biases too, so that a lost one shows
    return (
        objective,
        jax.tree.map(lambda x: x + 0.05 * rng.standard_normal(x.shape, np.float32), params),
        arrays,
    )


@pytest.fixture(scope="module")
def adversarial():
    objective, params, arrays = make()
    keys = sample_keys(SEED, jnp.int32(3), np.arange(4, dtype=np.uint32))
    return objective, params, arrays, keys


def as_written(objective, params, arrays, keys):
    """Compute (reconstruction + KL, generator's, discriminator's loss) as the formulas are
    written."""
    c, video = objective.loss_config, to_unit_range(arrays["video"])
    noise = jax.vmap(
        lambda key: jax.random.normal(key, objective.model.config.latent_shape(video.shape)[1:])
    )(keys)
    y, mean, logvar = objective.model.apply(params["vidvae"], video, noise)
    frames = [x.reshape(-1, *x.shape[2:]) for x in (y, video)]
    lpips = objective.lpips.apply(objective.frozen, *frames).mean()
    rec = c.l1 * jnp.abs(y - video).mean() + c.l2 * jnp.square(y - video).mean() + c.lpips * lpips
    rec += c.gradient * gradient_error(y, video) + c.chroma * chroma_error(y, video)
    kl = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar).mean()
    fixed = jax.lax.stop_gradient(params["discriminator"])
    gan = hinge_generator(objective.discriminator.apply(fixed, y))

    def discriminate(x):
        return objective.discriminator.apply(params["discriminator"], x)

    disc = hinge_discriminator(discriminate(video), discriminate(jax.lax.stop_gradient(y)))
    return rec, c.kl * kl, gan, disc


def kernel_of(tree, name="conv_out"):
    return tree["vidvae"]["params"]["head"][name]["kernel"]


def assert_close(one, other, tolerance):
    """Check that all leaves agree within `tolerance` of the tree's largest value."""
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(other))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * largest, rtol=0), one, other
    )


@pytest.mark.slow
@pytest.mark.parametrize("head_channels,last", [(0, "conv_out"), (4, "pixels")])
def test_the_gradient_of_one_pass_is_that_of_the_loss_as_written(head_channels, last):
    objective, params, arrays = make(head_channels=head_channels)
    keys = sample_keys(SEED, jnp.int32(3), np.arange(4, dtype=np.uint32))

    @jax.jit
    def by_hand(params):
        """Compute the gradient of each term separately."""
        terms = jnp.stack(as_written(objective, params, arrays, keys))
        gradients = jax.jacrev(lambda p: jnp.stack(as_written(objective, p, arrays, keys)))(params)
        rec, gan = (jnp.linalg.norm(kernel_of(gradients, last)[i].ravel()) for i in (0, 2))
        weights = jnp.array([1.0, 1.0, 0.5 * rec / (gan + 1e-4), 1.0])
        return (
            weights @ terms,
            jax.tree.map(lambda x: jnp.tensordot(weights, x, 1), gradients),
            weights[2],
        )

    value, expected, weight = by_hand(params)
    loss = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    (got, metrics), grads = loss(params, arrays, keys, jnp.int32(3), objective.frozen)
    np.testing.assert_allclose(metrics["gan_weight"], weight, rtol=1e-5)
    assert 0 < weight < 0.5e4
    np.testing.assert_allclose(got, value, rtol=1e-6)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(expected["vidvae"]))
    for group in ("vidvae", "discriminator"):
        assert_close(grads[group], expected[group], 1e-5)


@pytest.mark.slow
def test_no_groups_loss_moves_the_other():
    """The discriminator's loss has no gradient for the clips, the generator's none for the
    discriminator."""
    config = dataclasses.replace(ADVERSARIAL, start_step=0, r1=0.2)
    model = Discriminator(config.discriminator)
    video, y, cotangent = jax.random.normal(jax.random.key(0), (3, 2, 1, 16, 16, 3))
    params = jax.jit(model.init)(jax.random.key(1), video)

    @jax.jit
    def gradients(params, video, y, cotangent):
        def pull(loss_, gan, metrics):
            """Compute the gradient of a weighted sum of these outputs by every input."""

            def total(params, video, y, cotangent):
                loss, gan_cotangent, values = adversarial_terms(
                    config, model, params, video, y, cotangent, lambda c: 2 * c, jnp.int32(5)
                )
                return (
                    loss_ * loss
                    + gan * jnp.sin(gan_cotangent).sum()
                    + metrics * sum(values.values())
                )

            return jax.grad(total, argnums=(0, 1, 2, 3))(params, video, y, cotangent)

        return pull(1.0, 0.0, 0.0), pull(0.0, 1.0, 1.0)

    (by_params, *by_clips), of_generator = gradients(params, video, y, cotangent)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(by_params))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((by_clips, of_generator)))


@pytest.mark.slow
def test_before_its_step_the_discriminator_does_nothing(adversarial):
    objective, params, arrays, keys = adversarial
    plain, *_ = make(adversarial=AdversarialConfig())
    both = jax.jit(
        lambda params: jax.value_and_grad(objective.loss, has_aux=True)(
            params, arrays, keys, jnp.int32(2), objective.frozen
        )
    )
    alone = jax.jit(
        lambda params: jax.value_and_grad(plain.loss, has_aux=True)(
            params, arrays, keys, jnp.int32(2), plain.frozen
        )
    )
    (value, metrics), grads = both(params)
    (expected, _), expected_grads = alone({"vidvae": params["vidvae"]})
    assert {metrics[name].item() for name in ("gan", "gan_weight", "disc_loss")} == {0.0}
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert_close(grads["vidvae"], expected_grads["vidvae"], 1e-5)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads["discriminator"]))


@pytest.mark.parametrize(
    "make_config,message",
    [
        (lambda: VidVAELossConfig(l1=-1.0), r"loss\.l1 must be 0 or more, not -1\.0"),
        (lambda: VidVAELossConfig(gradient=-1.0), r"loss\.gradient must be 0 or more, not -1\.0"),
        (lambda: VidVAELossConfig(chroma=-1.0), r"loss\.chroma must be 0 or more, not -1\.0"),
        (lambda: REGENLossConfig(gradient=-1.0), r"loss\.gradient must be 0 or more, not -1\.0"),
        (
            lambda: AdversarialConfig(start_step=-1),
            r"loss\.adversarial\.start_step must be 0 or more, not -1",
        ),
        (
            lambda: vidvae_task(model=VidVAE(MODEL), loss_config=VidVAELossConfig()),
            r"loss\.lpips=1\.0 needs loss\.lpips_weights=FILE.*; loss\.lpips=0 does without",
        ),
    ],
)
def test_a_weight_that_cannot_be_is_refused(make_config, message):
    with pytest.raises(UserError, match=message):
        make_config()


def test_the_ratio_is_clamped_and_may_be_left_out():
    one = jnp.ones((2, 2))
    assert adaptive_ratio(6 * one, 2 * one, 1e4) == pytest.approx(3, rel=1e-4)
    assert adaptive_ratio(one, 0 * one, 1e4) == 1e4
    assert adaptive_ratio(one, 0 * one, 1e9) == pytest.approx(2 / 1e-4)
    assert adaptive_ratio(0 * one, one, 1e4) == 0


@pytest.mark.parametrize(
    "real,fake,loss", [(0.0, 0.0, 2.0), (1.0, -1.0, 0.0), (5.0, -0.5, 0.5), (-1.0, 3.0, 6.0)]
)
def test_the_hinge(real, fake, loss):
    assert hinge_discriminator(jnp.full((2, 3), real), jnp.full((4,), fake)) == loss
    assert hinge_generator(jnp.full((4,), fake)) == -fake


def test_r1_is_the_gradient_of_a_known_function():
    # D(x) = sum a x^2: the gradient is 2 a x for each clip by itself.
    x = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 3))
    r1 = r1_penalty(lambda x: 3.0 * jnp.square(x).sum((2, 3, 4)), x)
    np.testing.assert_allclose(r1, 36 * jnp.square(x).mean(), rtol=1e-6)


def test_the_gradient_error_counts_ripples_and_no_offset():
    x = np.arange(2.0 * 3 * 4 * 4 * 3).reshape(2, 3, 4, 4, 3).astype(np.float32)
    assert gradient_error(x + 7, x) == 0
    rows = np.where(np.arange(4) % 2, 0.5, -0.5)[:, None, None]
    assert gradient_error(x + rows, x) == pytest.approx(1.0)  # all vertical neighbours, by 1
    assert gradient_error(x + rows + 2 * rows.swapaxes(0, 1), x) == pytest.approx(3.0)
    assert gradient_error(x[:, :, :1, :1] + 1, x[:, :, :1, :1]) == 0  # a pixel has no neighbour


def test_the_chroma_error_is_blind_to_grey_and_sees_a_colour_in_full():
    x = jax.random.uniform(jax.random.key(0), (2, 3, 4, 5, 3), minval=-1)
    assert chroma_error(x + 0.3, x) == pytest.approx(0, abs=1e-10)
    blue = jnp.asarray(np.broadcast_to(np.float32([-1, -1, 1]), (1, 1, 2, 2, 3)))
    # Cb of pure blue is 1, of black 0; Cr is -0.081312 * 2.
    error = chroma_error(blue, -jnp.ones_like(blue))
    assert error == pytest.approx((1 + 0.162624**2) / 2, rel=1e-5)


@pytest.mark.slow
def test_the_loss_is_its_formula_and_half_precision_leaves_its_terms_in_full():
    objective, params, arrays = make(adversarial=AdversarialConfig(), dtype=jnp.bfloat16)
    keys = sample_keys(SEED, jnp.int32(0), np.arange(4, dtype=np.uint32))

    @jax.jit
    def both(params):
        noise = jax.vmap(lambda key: jax.random.normal(key, (2, 4, 4, 2)))(keys)
        video = to_unit_range(arrays["video"])
        return objective.loss(
            params, arrays, keys, jnp.int32(0), objective.frozen
        ), objective.model.apply(params["vidvae"], video, noise)

    (loss, metrics), (y, mean, logvar) = both(params)
    assert {x.dtype for x in (loss, *metrics.values(), y, mean, logvar)} == {jnp.dtype("float32")}
    # From what the network gave in half precision on, everything is that of float64.
    error = np.asarray(y, np.float64) - (arrays["video"] / 127.5 - 1.0)
    mean, logvar = (np.asarray(x, np.float64) for x in (mean, logvar))
    expected = {
        "l1": np.abs(error).mean(),
        "l2": np.square(error).mean(),
        "gradient": sum(np.abs(np.diff(error, axis=axis)).mean() for axis in (2, 3)),
        "chroma": np.square(error @ np.array(CHROMA).T).mean(),
        "kl": 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).mean(),
        "psnr_db": (-10 * np.log10(np.square(error / 2).mean((1, 2, 3, 4)))).mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    weights = {"l1": 0.5, "l2": 2.0, "gradient": 0.7, "chroma": 0.6, "lpips": 0.3, "kl": 0.1}
    total = sum(weight * metrics[name] for name, weight in weights.items())
    np.testing.assert_allclose(loss, total, rtol=1e-6)


@pytest.mark.slow
def test_the_terms_of_a_half_precision_adversarial_loss_are_in_full(adversarial):
    _, params, arrays, keys = adversarial
    objective, *_ = make(dtype=jnp.bfloat16)
    loss = jax.value_and_grad(objective.loss, has_aux=True)
    (value, metrics), grads = jax.eval_shape(
        loss, params, arrays, keys, jnp.int32(3), objective.frozen
    )
    assert metrics.keys() >= {
        "gan",
        "gan_weight",
        "disc_loss",
        "logits_real",
        "logits_fake",
        "lpips",
    }
    assert {x.dtype for x in jax.tree.leaves((value, metrics, grads))} == {jnp.dtype("float32")}


def sgd_update(objective, params, arrays, accumulate):
    sgd = optimize_apart({name: optax.sgd(1.0) for name in params})
    state = TrainState(
        step=jnp.int32(9),
        params=params,
        ema=objective.ema_params(params),
        opt_state=sgd.init(params),
    )
    update = jax.jit(make_update(objective, sgd, SEED, 0.9, accumulate))
    return update(state, arrays, np.arange(4, dtype=np.uint32), objective.frozen)


@pytest.mark.slow
def test_a_batch_in_parts_gives_the_update_of_the_whole():
    """With a fixed weight, all terms are means over samples; each sample has its own noise."""
    objective, params, arrays = make(
        adversarial=dataclasses.replace(ADVERSARIAL, start_step=0, adaptive=False)
    )
    whole, whole_metrics = sgd_update(objective, params, arrays, 1)
    parts, parts_metrics = sgd_update(objective, params, arrays, 2)
    for group in ("vidvae", "discriminator"):
        change = jax.tree.map(jnp.subtract, whole.params[group], params[group])
        same = jax.tree.map(jnp.subtract, parts.params[group], params[group])
        assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(change)) > 1e-2
        assert_close(same, change, 1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), parts_metrics, whole_metrics
    )
    np.testing.assert_allclose(parts_metrics["loss"], whole_metrics["loss"], rtol=1e-6)


def test_only_the_autoencoder_has_an_ema_and_each_group_has_its_optimizer():
    objective, params, arrays = make()
    optimizer = objective.optimizer(OptimizerConfig(name="muon", warmup_steps=0), 10)
    state = jax.eval_shape(
        lambda key: init_state(objective, optimizer, key, arrays), jax.random.key(0)
    )
    assert state.params.keys() == state.opt_state.keys() == {"vidvae", "discriminator"}
    assert state.ema.keys() == {"vidvae"}


@pytest.mark.slow
def test_a_groups_gradient_does_not_scale_the_others_and_the_late_one_waits():
    objective, params, _ = make()
    optimizer = objective.optimizer(
        OptimizerConfig(learning_rate=0.1, warmup_steps=0, clip_norm=1.0), 10
    )
    state = optimizer.init(params)
    ones = jax.tree.map(jnp.ones_like, params)
    huge = {**ones, "discriminator": jax.tree.map(lambda x: 1e6 * x, ones["discriminator"])}
    update, after = jax.jit(optimizer.update), {}
    for name, grads in (("ones", ones), ("huge", huge)):
        updates, after[name] = update(grads, state, params)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates["discriminator"]))
        after[name + "_updates"] = updates["vidvae"]
    jax.tree.map(np.testing.assert_array_equal, after["ones_updates"], after["huge_updates"])
    state = after["ones"]
    for _ in range(3):  # start_step is 3: the fourth update is its first
        updates, state = update(ones, state, params)
    # Adam's first step is the learning rate itself, its bias being corrected from here on.
    first = jax.tree.leaves(updates["discriminator"])
    np.testing.assert_allclose(np.concatenate([leaf.ravel() for leaf in first]), -2e-3, rtol=1e-3)


@pytest.fixture(scope="module")
def clips():
    """Real clips (of the moving-shapes dataset) and their blurred reconstructions, by an
    autoencoder at its start."""
    source = SyntheticSource(num_clips=8)
    video = np.stack(
        [source.read(i, np.random.default_rng(i), 5, 16, 16)["video"] for i in range(8)]
    )
    return {"video": video}


@pytest.mark.slow
@pytest.mark.parametrize(
    "moving", ["discriminator", pytest.param("vidvae", marks=pytest.mark.slow)]
)
def test_each_side_of_the_game_answers_the_other(clips, moving):
    """The loss of one side falls while the other is frozen."""
    config = dataclasses.replace(ADVERSARIAL, start_step=0, adaptive=False, weight=1.0)
    objective, params, _ = make(adversarial=config, lpips=0.0)
    rates = {
        name: optax.adam(5e-3, b1=0.5) if name == moving else optax.set_to_zero() for name in params
    }
    optimizer = optimize_apart(rates)
    state = TrainState(
        step=jnp.int32(0),
        params=params,
        ema=objective.ema_params(params),
        opt_state=optimizer.init(params),
    )
    update, rows = jax.jit(make_update(objective, optimizer, SEED, 0.9)), []
    for _ in range(60):
        state, metrics = update(state, clips, np.arange(8, dtype=np.uint32))
        rows.append({name: float(value) for name, value in metrics.items()})
    first, last = rows[0], rows[-1]
    assert first["disc_loss"] == pytest.approx(2.0, abs=0.2)
    if moving == "discriminator":
        assert last["disc_loss"] < 1.0
        assert (
            last["logits_real"] - last["logits_fake"]
            > 1.0
            > first["logits_real"] - first["logits_fake"]
        )
    else:
        assert last["gan"] < first["gan"] - 0.1
        assert last["disc_loss"] > first["disc_loss"] + 0.1


def test_perceptual_distance_in_parts_is_that_of_the_whole_clip(monkeypatch):
    objective, _, arrays = make(batch=2)
    video = to_unit_range(arrays["video"])
    predicted = jnp.tanh(video + 0.3 * jax.random.normal(jax.random.key(3), video.shape))

    def run(pixels):
        monkeypatch.setattr(embedder, "PERCEPTUAL_PIXELS", pixels)
        function = jax.value_and_grad(lambda y: objective.perceptual(objective.frozen, y, video))
        text = str(jax.make_jaxpr(function)(predicted))
        return jax.jit(function)(predicted), "scan" in text

    (whole, gradient), scanned = run(5 * 16 * 16)
    assert not scanned
    for frames in (2, 1, 0):  # 2 + 2 + 1; one at a time, also where a frame alone is too large
        (value, in_parts), scanned = run(frames * 16 * 16)
        assert scanned
        np.testing.assert_allclose(value, whole, rtol=1e-6)
        np.testing.assert_allclose(in_parts, gradient, atol=1e-8, rtol=1e-4)
