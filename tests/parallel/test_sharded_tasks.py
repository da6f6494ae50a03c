"""Loss and gradients of all objectives on a mesh equal those on one device."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from xgen_jax.config.losses import (
    AdversarialConfig,
    REGENLossConfig,
    VDiTLossConfig,
    VidVAELossConfig,
)
from xgen_jax.models.embedder import VidVAEEmbedder
from xgen_jax.models.lpips import LPIPS, LPIPSConfig
from xgen_jax.models.regen import REGEN
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.models.text import ByteConditioner, ByteTextEncoder
from xgen_jax.models.text_config import ByteTextConfig
from xgen_jax.models.vdit import VDiT
from xgen_jax.models.vdit_config import VDiTConfig
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_config import DiscriminatorConfig
from xgen_jax.nn.conv3d import convolve
from xgen_jax.parallel import sharding
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.testing import regen_task, tiny_vidvae, vidvae_task
from xgen_jax.training.state import sample_keys
from xgen_jax.training.tasks.vdit import VDiTTask

VIDVAE = tiny_vidvae(channels=(64,), kernels=((1, 3, 3), (3, 3, 3)))
STEP = 2


def random_like(tree, seed=1):
    """Parameters at random: those that start at zero hide gradients."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: x + np.float32(0.05) * rng.standard_normal(x.shape, np.float32), tree
    )


def make_vidvae():
    # Without LPIPS, whose rectifiers and maxima are near ties at some clips; it has a test of its
    # own below.
    adversarial = AdversarialConfig(
        weight=0.5, r1=0.1, discriminator=DiscriminatorConfig(width=64, layers=1)
    )
    return vidvae_task(
        model=VidVAE(VIDVAE), loss_config=VidVAELossConfig(lpips=0.0, adversarial=adversarial)
    )


def make_regen():
    model = REGENConfig(
        encoder=dataclasses.replace(VIDVAE, latent_channels=3),
        width=16,
        depth=2,
        heads=2,
        siren_hidden=8,
        siren_depth=1,
        siren_features=4,
        remat="none",
    )
    return regen_task(model=REGEN(model), loss_config=REGENLossConfig(), lpips=None, frozen=None)


def make_vdit():
    embedder = VidVAEEmbedder(model=VidVAE(VIDVAE))
    params = jax.jit(embedder.model.init)(jax.random.key(0), jnp.zeros((1, 5, 8, 8, 3)))
    return VDiTTask(
        model=VDiT(VDiTConfig(width=16, depth=2, heads=2, text_width=64, remat="none")),
        text=ByteConditioner(
            encoder=ByteTextEncoder(ByteTextConfig(width=64, depth=1, heads=2, max_bytes=8))
        ),
        embedder=embedder,
        embedder_params=embedder.bundle(params, np.zeros(4), np.ones(4)),
        loss_config=VDiTLossConfig(cond_drop_prob=0.5),
    )


OBJECTIVES = {"vidvae": make_vidvae, "regen": make_regen, "vdit": make_vdit}


@pytest.fixture(scope="module", params=OBJECTIVES)
def case(request):
    """(loss and gradients as a function, its arguments, its values on one device)."""
    objective = OBJECTIVES[request.param]()
    video = np.random.default_rng(0).integers(0, 256, (8, 5, 16, 16, 3), np.uint8)
    arrays = objective.prepare(
        objective.batch_arrays({"video": video, "caption": [f"clip {i}" for i in range(8)]})
    )
    params = random_like(jax.jit(objective.init)(jax.random.key(1), arrays))
    sample_id = np.arange(8, dtype=np.uint32)

    def loss(params, arrays, sample_id, frozen):
        step = jnp.int32(STEP)
        return objective.loss(params, arrays, sample_keys(0, step, sample_id), step, frozen)[0]

    arguments = (params, arrays, sample_id, objective.frozen)
    return loss, arguments, jax.jit(jax.value_and_grad(loss))(*arguments)


def on_mesh(case, config):
    """Loss and gradients on a mesh, parameters by the rules."""
    loss, (params, arrays, sample_id, frozen), _ = case
    mesh = make_mesh(MeshConfig(**config))
    on_batch, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    shardings, frozen_shardings = (sharding.tree_shardings(tree, mesh) for tree in (params, frozen))
    with sharding.on_mesh(mesh):
        sharded = jax.jit(
            jax.value_and_grad(lambda *arguments: loss(*arguments)),
            out_shardings=(whole, shardings),
        )
        return jax.device_get(
            sharded(
                jax.device_put(params, shardings),
                *jax.device_put((arrays, sample_id), on_batch),
                jax.device_put(frozen, frozen_shardings),
            )
        )


def assert_close(ours, theirs):
    """The loss to 1e-5, each gradient to 3e-5 of the largest.

    One device sums the 384 equal terms of the discriminator's last bias one after another, and
    loses 2e-5 of them.
    """
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(theirs[1]))
    leaves = jax.tree_util.tree_leaves_with_path(theirs[1])
    for (path, right), got in zip(leaves, jax.tree.leaves(ours[1]), strict=True):
        np.testing.assert_allclose(
            got, right, atol=3e-5 * largest, rtol=0, err_msg=sharding.path_name(path)
        )


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["tensor", pytest.param("sequence", marks=pytest.mark.slow)])
def test_loss_and_gradients_are_one_devices(case, axis, monkeypatch):
    # Everything here is small; without a threshold the sharded paths are really taken.
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 1)
    assert_close(on_mesh(case, {"data": 2, "fsdp": 2, axis: 2}), case[2])


@pytest.mark.slow
def test_lpips_of_frames_over_devices_is_one_devices(monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 1)
    model, rng = LPIPS(LPIPSConfig(widths=(64,) * 5)), np.random.default_rng(0)
    x, y = rng.uniform(-1, 1, (2, 40, 16, 16, 3)).astype(np.float32)
    params = jax.jit(model.init)(jax.random.key(7), x[:1], y[:1])

    def distance(params, x, y):
        return model.apply(params, x, y).mean()

    expected = jax.jit(jax.value_and_grad(distance, argnums=1))(params, x, y)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    frames = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
    with sharding.on_mesh(mesh):
        sharded = (
            jax.device_put(params, sharding.tree_shardings(params, mesh)),
            *jax.device_put((x, y), frames),
        )
        got = jax.jit(jax.value_and_grad(lambda *arguments: distance(*arguments), argnums=1))(
            *sharded
        )
    assert_close(jax.device_get(got), expected)


@pytest.mark.parametrize("dim", [3, 4], ids=["input channels", "output channels"])
@pytest.mark.parametrize("formulation", ["of CPUs", "of GPUs and TPUs"])
def test_a_convolution_does_not_depend_on_which_channels_of_its_kernel_are_sharded(
    dim, formulation, monkeypatch
):
    if formulation != "of CPUs":
        monkeypatch.setattr(
            jax.lax, "platform_dependent", lambda *arrays, cpu, default: default(*arrays)
        )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 3, 4, 4, 64), np.float32)
    kernel = np.float32(0.05) * rng.standard_normal((1, 3, 3, 64, 64), np.float32)

    def loss(x, kernel):
        for _ in range(2):
            x = nn.with_logical_constraint(x, ("batch", "time", "height", "columns", "width"))
            x = jnp.tanh(convolve(x, kernel, (1, 1, 1), ((1, 1), (1, 1))))
        return jnp.square(x).mean()

    expected = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, kernel)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    spec = [None] * 5
    spec[dim] = "fsdp"
    channels = NamedSharding(mesh, PartitionSpec(*spec))
    with sharding.on_mesh(mesh):
        sharded = jax.device_put(x, sharding.batch_sharding(mesh)), jax.device_put(kernel, channels)
        function = jax.value_and_grad(lambda *arguments: loss(*arguments), argnums=(0, 1))
        got = jax.jit(function, out_shardings=(None, (sharding.batch_sharding(mesh), channels)))(
            *sharded
        )
    assert_close(jax.device_get(got), expected)
