"""REGEN's loss: its formula and gradient, independent chunks, a batch in parts, its terms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from xgen_jax.config.losses import REGENLossConfig
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.diffusion.process import convert
from xgen_jax.errors import UserError
from xgen_jax.models.regen import REGEN, frame_times
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.testing import regen_task, tiny_vidvae
from xgen_jax.training.state import TrainState, make_update, sample_keys
from xgen_jax.training.tasks import regen

MODEL = REGENConfig(
    encoder=tiny_vidvae(latent_channels=3, kernels=((1, 1, 1), (1, 1, 1))),
    width=16,
    depth=1,
    heads=2,
    siren_hidden=8,
    siren_depth=1,
    siren_features=4,
    remat="none",
)
ALL = REGENLossConfig(
    kl=0.3,
    motion=0.6,
    gradient=0.4,
    lpips=0.5,
    consistency=0.7,
    weighting="velocity",
    weight_limit=9.0,
    time_shift=2.0,
)
PLAIN = REGENLossConfig()


class Distance(nn.Module):
    """A stand-in for LPIPS: any module (frames, frames) -> (B,) with fixed parameters."""

    @nn.compact
    def __call__(self, x_BHWC, y_BHWC):
        layer = nn.Conv(4, (3, 3))
        return jnp.square(jnp.tanh(layer(x_BHWC)) - jnp.tanh(layer(y_BHWC))).mean((1, 2, 3))


def make(config, frames=5, batch=4, dtype=jnp.float32):
    """An objective, its parameters, and a batch of noise."""
    lpips, frozen = None, None
    if config.lpips:
        lpips = Distance()
        frozen = lpips.init(jax.random.key(7), *[jnp.zeros((1, 8, 8, 3))] * 2)
    objective = regen_task(
        model=REGEN(MODEL, dtype), loss_config=config, lpips=lpips, frozen=frozen
    )
    video = np.random.default_rng(0).integers(0, 256, (batch, frames, 8, 8, 3), np.uint8)
    arrays = objective.prepare(objective.batch_arrays({"video": video}))
    params = jax.jit(lambda key: objective.init(key, None))(jax.random.key(1))
    rng = np.random.default_rng(1)  # what begins at zero too
    return (
        objective,
        jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), params),
        arrays,
    )


def keys_of(batch, step=3):
    return sample_keys(0, jnp.int32(step), np.arange(batch, dtype=np.uint32))


def one_chunk_as_written(objective, regen_params, x0_FHWC, key):
    """Compute the loss of a chunk as the formulas are written."""
    c, apply = objective.loss_config, objective.model.apply
    x0 = x0_FHWC[None]
    stream = {
        name: jax.random.fold_in(key, i)
        for i, name in enumerate(("posterior", "time", "one_step", "noise"))
    }
    mean, logvar = apply(regen_params, x0, method="encode")
    z = mean + jnp.exp(logvar / 2) * jax.random.normal(stream["posterior"], mean.shape[1:])[None]
    cond = apply(regen_params, z, frame_times(MODEL, x0.shape[1])[None], method="expand")
    u = jax.random.uniform(stream["time"])
    t = 2 * u / (1 + u)
    eps = jax.random.normal(stream["noise"], x0.shape[1:])[None]

    def predicted(t):
        return apply(regen_params, (1 - t) * x0 + t * eps, 1000 * t[None], cond, method="denoise")

    at_t, at_1 = predicted(t), predicted(jnp.float32(1))
    loss = jnp.minimum(1 / t**2, c.weight_limit) * jnp.square(at_t - x0).mean()
    loss += c.kl * 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean()
    if len(x0_FHWC) > 1:
        loss += c.motion * jnp.square((at_t - x0)[:, 1:] - (at_t - x0)[:, :-1]).mean()
    error = at_t - x0
    down, right = error[:, :, 1:] - error[:, :, :-1], error[:, :, :, 1:] - error[:, :, :, :-1]
    loss += c.gradient * (jnp.abs(down).mean() + jnp.abs(right).mean())
    loss += (
        c.lpips * objective.lpips.apply(objective.frozen, jnp.clip(at_t[0], -1, 1), x0[0]).mean()
    )
    return loss + c.consistency * jnp.square(at_1 - jax.lax.stop_gradient(at_t)).mean()


def assert_close(one, other, tolerance):
    """Check that all leaves agree within `tolerance` of the tree's largest value."""
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(other))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * largest, rtol=0), one, other
    )


@pytest.mark.slow
def test_the_loss_and_its_gradient_are_the_formulas():
    """Two chunks and an image: chunks are independent, and all frames have equal weight."""
    objective, params, arrays = make(ALL, frames=11, batch=2)
    keys, video = keys_of(2), np.float32(arrays["video"] / 127.5 - 1.0)

    @jax.jit
    def by_hand(params, frames, key):
        return jax.value_and_grad(
            lambda p: one_chunk_as_written(objective, p["regen"], frames, key)
        )(params)

    parts = [
        (
            len(video[clip, at]) / 22,
            by_hand(params, video[clip, at], jax.random.fold_in(keys[clip], number)),
        )
        for clip in range(2)
        for number, at in enumerate((slice(0, 5), slice(5, 10), slice(10, 11)))
    ]
    expected, expected_grads = (
        jax.tree.map(
            lambda *leaves: sum(w * x for (w, _), x in zip(parts, leaves)),
            *[part[i] for _, part in parts],
        )
        for i in (0, 1)
    )
    loss = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    (value, metrics), grads = loss(params, arrays, keys, jnp.int32(0), objective.frozen)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    assert_close(grads, expected_grads, 2e-5)
    assert metrics.keys() == {
        "mse",
        "psnr_db",
        "kl",
        "motion",
        "gradient",
        "lpips",
        "consistency",
        "psnr_one_step_db",
    }
    # A SIREN's code, the encoder and the decoder are all trained by it.
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))


@pytest.mark.slow
def test_a_batch_in_parts_gives_the_update_of_the_whole():
    objective, params, arrays = make(REGENLossConfig(kl=0.3, motion=0.6, one_step_fraction=0.5))

    def update(accumulate):
        sgd = optax.sgd(1.0)
        state = TrainState(step=jnp.int32(9), params=params, ema=params, opt_state=sgd.init(params))
        new, metrics = jax.jit(make_update(objective, sgd, 0, 0.9, accumulate))(
            state, arrays, np.arange(4, dtype=np.uint32), objective.frozen
        )
        return jax.tree.map(jnp.subtract, new.params, params), metrics

    (whole, whole_metrics), (parts, parts_metrics) = update(1), update(2)
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(whole)) > 1e-2
    assert_close(parts, whole, 1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), parts_metrics, whole_metrics
    )


@pytest.mark.slow
def test_terms_are_off_by_default_and_at_t_1_a_step_is_the_prediction():
    objective, params, arrays = make(PLAIN)
    loss, metrics = jax.eval_shape(objective.loss, params, arrays, keys_of(4), jnp.int32(0))
    assert metrics.keys() == {"mse", "psnr_db"}
    last = dataclasses.replace(PLAIN, one_step_fraction=1.0, consistency=1.0)
    objective = dataclasses.replace(objective, loss_config=last)
    loss, metrics = jax.jit(objective.loss)(params, arrays, keys_of(4), jnp.int32(0))
    np.testing.assert_allclose(metrics["consistency"], 0, atol=1e-12)
    np.testing.assert_allclose(metrics["psnr_db"], metrics["psnr_one_step_db"], rtol=1e-6)
    np.testing.assert_allclose(loss, metrics["mse"], rtol=1e-6)


@pytest.mark.parametrize("process", ["flow", "ddpm"])
def test_weighted_by_velocity_an_error_of_x0_is_that_of_the_velocity(process):
    config = REGENLossConfig(
        process=process, prediction="x0", weighting="velocity", weight_limit=1e6
    )
    objective = regen_task(model=REGEN(MODEL), loss_config=config)
    x0, eps, wrong = jax.random.normal(jax.random.key(0), (3, 4, 1, 8, 8, 3))
    t_B = jnp.array([0.05, 0.4, 0.9, 1.0])
    x_t = objective.process.corrupt(x0, eps, t_B)
    alpha, sigma = (a[:, None, None, None, None] for a in objective.process.schedule(t_B))
    velocity = convert(wrong, x_t, alpha, sigma, "x0", "velocity")
    expected = jnp.square(velocity - (eps - x0)).mean((1, 2, 3, 4))
    weighted = objective.time_weight(t_B) * jnp.square(wrong - x0).mean((1, 2, 3, 4))
    np.testing.assert_allclose(weighted, expected, rtol=1e-3)
    limited = dataclasses.replace(
        objective, loss_config=dataclasses.replace(config, weight_limit=2.0)
    ).time_weight(t_B)
    np.testing.assert_allclose(limited, jnp.minimum(objective.time_weight(t_B), 2.0), rtol=1e-6)


@pytest.mark.slow
def test_the_papers_loss_is_the_squared_error_of_the_noise():
    """The loss of a network that starts with zeros is the squared noise, for any error of x0."""
    objective, _, arrays = make(REGENLossConfig(process="ddpm", prediction="eps"), batch=8)
    params = jax.jit(lambda key: objective.init(key, None))(jax.random.key(1))
    keys = keys_of(8)
    loss, metrics = jax.jit(objective.loss)(params, arrays, keys, jnp.int32(0))
    keys_BN = jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys)[:, None]
    noise = regen.standard_normal(keys_BN, regen.NOISE, (5, 8, 8, 3))
    np.testing.assert_allclose(loss, jnp.square(noise).mean(), rtol=1e-5)
    assert np.isfinite(metrics["psnr_db"])


@pytest.mark.slow
def test_half_precision_leaves_the_terms_in_full():
    objective, params, arrays = make(ALL, frames=6, dtype=jnp.bfloat16)
    loss = jax.value_and_grad(objective.loss, has_aux=True)
    (value, metrics), grads = jax.eval_shape(
        loss, params, arrays, keys_of(4), jnp.int32(3), objective.frozen
    )
    assert {x.dtype for x in jax.tree.leaves((value, metrics, grads))} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_the_loss_falls():
    objective, params, _ = make(dataclasses.replace(PLAIN, one_step_fraction=0.5, kl=1e-4))
    source = SyntheticSource(num_clips=4)
    video = np.stack(
        [source.read(i, np.random.default_rng(i), 5, 16, 16)["video"] for i in range(4)]
    )
    adam = optax.adam(1e-2)
    state = TrainState(step=jnp.int32(0), params=params, ema=params, opt_state=adam.init(params))
    update, losses = jax.jit(make_update(objective, adam, 0, 0.9)), []
    for _ in range(40):
        state, metrics = update(state, {"video": video}, np.arange(4, dtype=np.uint32))
        losses.append(float(metrics["mse"]))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"prediction": "eps"},
            r"'eps' with loss\.process='flow' cannot be decoded: at t = 1 .*Choose 'x0'",
        ),
        ({"process": "edm"}, "process='edm' is not known; choose one of flow, ddpm"),
        ({"prediction": "score"}, "prediction='score' is not known"),
        (
            {"weighting": "snr"},
            r"loss\.weighting='snr' is not known; choose one of uniform, velocity",
        ),
        ({"windows": "clip"}, r"loss\.windows='clip' is not known; choose one of chunk"),
        ({"kl": -1.0}, r"loss\.kl must be 0 or more, not -1\.0"),
        ({"one_step_fraction": 1.5}, r"loss\.one_step_fraction must be in \[0, 1\], not 1\.5"),
        (
            {"weighting": "velocity", "prediction": "velocity"},
            r"is for prediction='x0', not 'velocity'",
        ),
        ({"weight_limit": 0.5}, r"loss\.weight_limit must be 1 or more, not 0\.5"),
    ],
)
def test_a_loss_that_cannot_be_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        REGENLossConfig(**change)


def test_lpips_needs_its_weights():
    with pytest.raises(
        UserError, match=r"loss\.lpips=1\.0 needs loss\.lpips_weights=FILE.*; loss\.lpips=0 does"
    ):
        regen_task(model=REGEN(MODEL), loss_config=REGENLossConfig(lpips=1.0))
