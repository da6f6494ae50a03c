"""An update: the same on eight devices as on one, for a batch as for its halves; skipped if it is
not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from xgen_jax.config.losses import VDiTLossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.models.text import ByteConditioner, ByteTextEncoder
from xgen_jax.models.text_config import ByteTextConfig
from xgen_jax.models.vdit import VDiT
from xgen_jax.models.vdit_config import VDiTConfig
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_embedder import VidVAEEmbedder
from xgen_jax.parallel import sharding
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.testing import tiny_vidvae
from xgen_jax.training.optimizer import make_optimizer, make_schedule, muon_dimensions
from xgen_jax.training.state import (
    abstract_state,
    init_state,
    make_update,
    sample_keys,
    start_state,
)
from xgen_jax.training.tasks.vdit import VDiTTask

pytestmark = pytest.mark.slow

VIDVAE = tiny_vidvae()
SEED = 3


@pytest.fixture(scope="module")
def objective():
    model = VidVAE(VIDVAE)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 5, 8, 8, 3)))
    embedder = VidVAEEmbedder(model=model)
    return VDiTTask(
        model=VDiT(VDiTConfig(width=16, depth=2, heads=2, text_width=8, remat="none")),
        text=ByteConditioner(
            encoder=ByteTextEncoder(ByteTextConfig(width=8, depth=1, heads=2, max_bytes=8))
        ),
        embedder=embedder,
        embedder_params=embedder.bundle(params, np.zeros(4), np.ones(4)),
        loss_config=VDiTLossConfig(cond_drop_prob=0.5),
    )


@pytest.fixture(scope="module")
def arrays(objective):
    video = np.random.default_rng(0).integers(0, 256, (8, 5, 8, 16, 3), np.uint8)
    host = objective.batch_arrays({"video": video, "caption": [f"clip {i}" for i in range(8)]})
    assert host["text"]["ids"].shape == host["text"]["mask"].shape == (8, 9)
    prepared = objective.prepare(host)
    assert prepared["latents"].shape == (8, 2, 2, 4, 4)
    return prepared


@pytest.fixture(scope="module")
def sample_id():
    return np.arange(8, dtype=np.uint32) * 7 + 1


@pytest.fixture(scope="module")
def optimizer():
    return make_optimizer(OptimizerConfig(name="muon", learning_rate=0.02, warmup_steps=0), 10)


@pytest.fixture(scope="module")
def state(objective, optimizer, arrays):
    state = jax.jit(lambda key, arrays: init_state(objective, optimizer, key, arrays))(
        jax.random.key(SEED), arrays
    )
    # A zero-initialised output would hide most gradients.
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), state.params
    )
    return state.replace(params=params)


@pytest.fixture(scope="module")
def update(objective, optimizer):
    return jax.jit(make_update(objective, optimizer, SEED, ema_decay=0.999))


@pytest.fixture(scope="module")
def updated(update, state, arrays, sample_id):
    return update(state, arrays, sample_id)


def test_a_run_starts_from_the_state_that_is_initialised(objective, optimizer, arrays):
    mesh, key = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), jax.random.key(SEED)
    _, shardings = abstract_state(objective, optimizer, mesh, key, arrays)
    started = start_state(objective, optimizer, shardings, key, arrays)
    plain = jax.jit(lambda key: init_state(objective, optimizer, key, arrays))(key)
    jax.tree.map(np.testing.assert_array_equal, started, plain)


def assert_close(one, other, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, other)


def test_eight_devices_do_what_one_does(objective, state, arrays, sample_id):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    # Plain SGD: Muon's orthogonalisation blows rounding of near-zero gradients up, which says
    # nothing of the sharding.
    sgd = optax.sgd(1.0)
    plain = state.replace(opt_state=sgd.init(state.params))
    one, metrics_one = jax.jit(make_update(objective, sgd, SEED, 0.999))(plain, arrays, sample_id)
    # Everything here is small; without a threshold the sharded paths are really taken.
    shardings = sharding.tree_shardings(plain, mesh, smallest=1)
    assert sum(any(s.spec) for s in jax.tree.leaves(shardings.params)) > 20
    on_batch = sharding.batch_sharding(mesh)
    with jax.set_mesh(mesh), nn.logical_axis_rules(sharding.LOGICAL_AXES):
        sharded = jax.jit(
            make_update(objective, sgd, SEED, 0.999),
            out_shardings=(shardings, sharding.replicated(mesh)),
        )
        eight, metrics_eight = sharded(
            jax.device_put(plain, shardings),
            jax.device_put(arrays, on_batch),
            jax.device_put(sample_id, on_batch),
        )
    assert (
        len(eight.params["vdit"]["params"]["blocks"]["block"]["mlp"]["fc1"]["kernel"].devices())
        == 8
    )
    assert float(metrics_one["grad_norm"]) > 0.1
    assert_close(metrics_eight, metrics_one, 1e-5)
    assert_close(jax.device_get(eight), jax.device_get(one), 1e-5)


def test_the_loss_does_not_depend_on_how_a_batch_is_split_or_ordered(
    objective, state, arrays, sample_id
):
    @jax.jit
    def loss(arrays, ids):
        return objective.loss(
            state.params, arrays, sample_keys(SEED, jnp.int32(5), ids), jnp.int32(5)
        )[0]

    def part(index):
        return float(loss(jax.tree.map(lambda x: x[index], arrays), sample_id[index]))

    whole = part(np.arange(8))
    halves = [part(np.arange(4)), part(np.arange(4, 8))]
    assert abs(halves[0] - halves[1]) > 1e-3
    np.testing.assert_allclose(np.mean(halves), whole, rtol=1e-5)
    np.testing.assert_allclose(part(np.array([3, 1, 7, 5, 0, 2, 6, 4])), whole, rtol=1e-5)


def test_an_update_moves_parameters_and_the_average_by_its_formula(state, updated):
    new, metrics = updated
    assert int(new.step) == 1
    assert np.isfinite(float(metrics["loss"]))
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), new.params, state.params)
    still = [
        sharding.path_name(path) for path, m in jax.tree_util.tree_leaves_with_path(moved) if not m
    ]
    assert not still
    decay = min(0.999, 1 / 10)  # (1 + step) / (10 + step) at step 0
    expected = jax.tree.map(lambda ema, p: decay * ema + (1 - decay) * p, state.ema, new.params)
    assert_close(new.ema, expected, 1e-6)


def test_the_average_slows_to_its_decay(update, state, arrays, sample_id):
    late = state.replace(step=jnp.int32(100_000))
    new, _ = update(late, arrays, sample_id)
    expected = jax.tree.map(lambda ema, p: 0.999 * ema + 0.001 * p, state.ema, new.params)
    assert_close(new.ema, expected, 1e-6)


def test_an_update_that_is_not_finite_leaves_everything_as_it_was(update, state, arrays, sample_id):
    poisoned = {**arrays, "latents": arrays["latents"].at[3].set(np.nan)}
    new, metrics = update(state, poisoned, sample_id)
    assert not np.isfinite(float(metrics["loss"]))
    jax.tree.map(np.testing.assert_array_equal, new, state)


def test_keys_follow_from_seed_step_and_sample():
    def data(seed, step, ids):
        return np.asarray(
            jax.random.key_data(sample_keys(seed, jnp.int32(step), np.array(ids, np.uint32)))
        )

    base = data(0, 5, [1, 2, 3])
    assert np.array_equal(base, data(0, 5, [1, 2, 3]))
    assert np.array_equal(base[::-1], data(0, 5, [3, 2, 1]))
    assert np.array_equal(base[1:], data(0, 5, [2, 3]))
    every = np.concatenate([base, data(1, 5, [1, 2, 3]), data(0, 6, [1, 2, 3])])
    assert len(np.unique(every, axis=0)) == 9


def test_muon_takes_every_kernel_and_nothing_else(state):
    labels = muon_dimensions(state.params)
    leaves = jax.tree_util.tree_leaves_with_path(
        labels, is_leaf=lambda x: x is None or hasattr(x, "output_axis")
    )
    shapes = {
        sharding.path_name(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
    }
    seen = 0
    for path, label in leaves:
        name = sharding.path_name(path)
        if not name.endswith("/kernel"):
            assert label is None, name
            continue
        seen += 1
        stacked = "/blocks/" in name
        convolution = "/letters/" in name or "/parts/" in name
        assert len(shapes[name]) == 2 + stacked + convolution, name
        wanted = ((1,), 2) if stacked else ((0, 1), 2) if convolution else ((0,), 1)
        assert (label.reduction_axis, label.output_axis) == wanted, name
    assert seen == sum(name.endswith("/kernel") for name in shapes) > 15


def test_muon_takes_convolutions_as_matrices_into_their_output_channels():
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 4, 8), jnp.float32)
    label = muon_dimensions(
        {"conv": {"kernel": kernel, "bias": jax.ShapeDtypeStruct((8,), jnp.float32)}}
    )["conv"]
    assert label["bias"] is None
    assert (label["kernel"].reduction_axis, label["kernel"].output_axis) == ((0, 1, 2, 3), 4)


def test_muon_holds_no_second_moment_of_stacked_kernels(state, optimizer):
    """The optimiser uses the labels: Adam's moments exist for the other parameters only."""
    moments = [
        sharding.path_name(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(optimizer.init(state.params))
        if "/nu/" in sharding.path_name(path) and hasattr(leaf, "shape") and leaf.ndim
    ]
    assert moments
    assert not [name for name in moments if name.endswith("/kernel")]


@pytest.mark.parametrize("schedule,end", [("constant", 0.5), ("linear", 0.0), ("cosine", 0.0)])
def test_schedules_warm_up_and_end_where_they_should(schedule, end):
    rate = make_schedule(OptimizerConfig(schedule=schedule, warmup_steps=4), 0.5, 12)
    assert [float(rate(step)) for step in range(5)] == [0.0, 0.125, 0.25, 0.375, 0.5]
    assert abs(float(rate(12)) - end) < 1e-6


def test_weight_decay_leaves_stored_constants_alone():
    ones = {"vdit": {"params": {"x": jnp.ones(3)}, "constants": {"null_caption": jnp.ones((2, 3))}}}
    optimizer = make_optimizer(
        OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5), 10
    )
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, ones), optimizer.init(ones), ones)
    np.testing.assert_allclose(updates["vdit"]["params"]["x"], -0.05, rtol=1e-6)
    assert not np.any(updates["vdit"]["constants"]["null_caption"])
