"""The transformer's loss: masks, micro-conditions and processes; samples of a batch are
independent."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xgen_jax.config.losses import VDiTLossConfig
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.pipeline import micro_conditions
from xgen_jax.diffusion.config import FrameMaskConfig
from xgen_jax.diffusion.frame_masks import sample_frame_masks
from xgen_jax.diffusion.time import shift_ratio
from xgen_jax.errors import UserError
from xgen_jax.models.micro_conditions import MicroConditions
from xgen_jax.models.text import ByteConditioner, ByteTextEncoder
from xgen_jax.models.text_config import ByteTextConfig
from xgen_jax.models.vdit import VDiT
from xgen_jax.models.vdit_config import VDiTConfig
from xgen_jax.training.state import TrainState, make_update, sample_keys
from xgen_jax.training.tasks.vdit import VDiTTask

SEED, FRAMES = 3, 5
# Every kind, and often: batches then hold samples with different masks.
MASKS = FrameMaskConfig(none=0.4, quarter_random=0.2, quarter_head_tail=0.2, image_head=0.2)


def make_objective(**loss):
    ddpm = loss.get("process") == "ddpm"
    model = VDiTConfig(
        width=16,
        depth=1,
        heads=2,
        text_width=8,
        remat="none",
        micro_cond=True,
        learned_variance=ddpm,
    )
    return VDiTTask(
        model=VDiT(model),
        text=ByteConditioner(
            encoder=ByteTextEncoder(ByteTextConfig(width=8, depth=1, heads=2, max_bytes=8))
        ),
        embedder=None,
        embedder_params=None,
        loss_config=VDiTLossConfig(**{"cond_drop_prob": 0.5, "frame_masks": MASKS} | loss),
        latent_shape=lambda shape: (1 + (shape[0] - 1) // 4, shape[1] // 8, shape[2] // 8),
    )


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((8, FRAMES, 4, 6, 4), np.float32)
    clip = np.stack([micro_conditions(17, 32, 48, fps) for fps in range(4, 12)])
    return make_objective().batch_arrays(
        {"latents": latents, "caption": [f"clip {i}" for i in range(8)], "micro_cond": clip}
    )


SAMPLE_ID = np.arange(8, dtype=np.uint32) * 7 + 1


def perturbed(objective, arrays):
    """Parameters off the zeros of the initialisation, which would hide most of the network."""
    params = jax.jit(objective.init)(jax.random.key(SEED), arrays)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), params)


@pytest.fixture(scope="module", params=["flow", "ddpm"])
def trained(request, arrays):
    """(objective, parameters) of each process."""
    objective = make_objective(
        process=request.param,
        time_distribution="uniform" if request.param == "ddpm" else "logit_normal",
    )
    return objective, perturbed(objective, arrays)


@pytest.mark.slow
def test_a_sample_has_its_loss_whatever_the_batch(trained, arrays):
    objective, params = trained

    @jax.jit
    def loss(arrays, ids):
        return objective.loss(params, arrays, sample_keys(SEED, jnp.int32(5), ids), jnp.int32(5))[0]

    def part(index):
        return float(loss(jax.tree.map(lambda x: x[index], arrays), SAMPLE_ID[index]))

    whole = part(np.arange(8))
    alone = [part(np.array([i])) for i in range(8)]
    assert np.std(alone) > 1e-3
    np.testing.assert_allclose(np.mean(alone), whole, rtol=1e-5)
    frame_mask = sample_frame_masks(
        jax.vmap(lambda k: jax.random.fold_in(k, 3))(sample_keys(SEED, jnp.int32(5), SAMPLE_ID)),
        FRAMES,
        MASKS,
    )
    assert len(np.unique(np.asarray(frame_mask), axis=0)) > 2, (
        "the samples must differ in their masks for this test"
    )


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["flow", "ddpm"], indirect=True)
def test_accumulated_parts_make_the_whole_batchs_update(trained, arrays):
    objective, params = trained
    sgd = optax.sgd(1.0)
    state = TrainState(step=jnp.int32(0), params=params, ema=params, opt_state=sgd.init(params))
    whole, metrics = jax.jit(make_update(objective, sgd, SEED, 0.999))(state, arrays, SAMPLE_ID)
    parts, other = jax.jit(make_update(objective, sgd, SEED, 0.999, accumulate=4))(
        state, arrays, SAMPLE_ID
    )
    assert float(metrics["grad_norm"]) > 0.1
    assert metrics.keys() == other.keys()
    for name in metrics:
        np.testing.assert_allclose(metrics[name], other[name], rtol=1e-4, atol=1e-6, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), whole.params, parts.params
    )


@pytest.mark.slow
def test_the_loss_is_that_of_the_noisy_frames_and_sees_the_clean_ones(arrays):
    head = FrameMaskConfig(none=0.0, image_head=1.0)
    objective = make_objective(frame_masks=head, cond_drop_prob=0.0)
    params, ids = perturbed(objective, arrays), SAMPLE_ID

    @jax.jit
    def loss(latents):
        keys = sample_keys(SEED, jnp.int32(0), ids)
        return objective.loss(params, {**arrays, "latents": latents}, keys, jnp.int32(0))[0]

    # The first frame is a condition: what it should have been predicted as does not count, but it
    # is looked at.
    process, keys = objective.process, sample_keys(SEED, jnp.int32(0), ids)
    key_time, key_noise, _ = jnp.moveaxis(jax.vmap(lambda k: jax.random.split(k, 3))(keys), 1, 0)
    x0 = jnp.asarray(arrays["latents"])
    t_B = process.sample_times(key_time, "logit_normal")
    eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(key_noise)
    x_t = jnp.concatenate([x0[:, :1], process.corrupt(x0, eps, t_B)[:, 1:]], axis=1)
    frame_mask = jnp.broadcast_to(jnp.arange(FRAMES) > 0, (8, FRAMES))
    text, mask = objective.text.embed(params, arrays["text"], jnp.zeros(8, bool))
    clip = MicroConditions(*arrays["micro_cond"].T)
    output = objective.model.apply(params["vdit"], x_t, 1000 * t_B, text, mask, clip, frame_mask)
    wanted = jnp.square(output - (eps - x0))[:, 1:].mean()
    np.testing.assert_allclose(loss(x0), wanted, rtol=1e-5)
    assert abs(float(loss(x0.at[:, 0].multiply(2.0)) - loss(x0))) > 1e-5


@pytest.mark.slow
def test_micro_conditions_reach_the_network(arrays):
    objective = make_objective()
    params = perturbed(objective, arrays)

    @jax.jit
    def loss(clip):
        keys = sample_keys(SEED, jnp.int32(0), SAMPLE_ID)
        return objective.loss(params, {**arrays, "micro_cond": clip}, keys, jnp.int32(0))[0]

    base = float(loss(arrays["micro_cond"]))
    changed = [
        float(loss(arrays["micro_cond"] * (1 + (np.arange(5) == i)).astype(np.float32)))
        for i in range(5)
    ]
    assert all(abs(value - base) > 1e-6 for value in changed), changed
    assert len({round(value, 6) for value in changed}) == 5


def test_the_shift_follows_the_size_of_the_clip_in_training_as_in_sampling(arrays):
    by_size = VDiTLossConfig(time_shift=2.0, shift_by_size=True)
    assert by_size.time_ratio(512, 512, 1) == 2.0
    assert by_size.time_ratio(720, 1280, 29) == 2.0 * shift_ratio(720, 1280, 29)
    assert VDiTLossConfig(time_shift=3.0).time_ratio(720, 1280, 29) == 3.0
    # Larger clips are trained at more noise: a network that predicts 0 then has the same loss, so
    # look at the times.
    keys = sample_keys(SEED, jnp.int32(0), SAMPLE_ID)
    flow = make_objective().process
    ratio = by_size.time_ratio(arrays["micro_cond"][:, 0], arrays["micro_cond"][:, 1], FRAMES)
    small = flow.sample_times(keys, "uniform", ratio)
    large = flow.sample_times(keys, "uniform", by_size.time_ratio(720.0, 1280.0, 29))
    assert np.all(np.asarray(large) > np.asarray(small))


def test_shapes_of_another_bucket(arrays):
    objective = make_objective()
    shapes = objective.abstract_batch(arrays, Bucket(frames=9, height=64, width=40, batch_size=2))
    assert shapes["latents"].shape == (2, 3, 8, 5, 4)
    assert shapes["micro_cond"].shape == (2, 5)
    assert {leaf.shape for leaf in jax.tree.leaves(shapes["text"])} == {(2, 9)}


def test_processes_that_do_not_go_with_the_network_are_refused():
    with pytest.raises(UserError, match="process='vdm' is not known"):
        VDiTLossConfig(process="vdm")
    objective = make_objective(process="ddpm")
    with pytest.raises(UserError, match="no variance to learn"):
        dataclasses.replace(objective, loss_config=VDiTLossConfig()).process  # noqa: B018
