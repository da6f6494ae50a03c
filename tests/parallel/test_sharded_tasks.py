"""Loss and gradients of all objectives on a mesh equal those on one device."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xgen_jax.config.losses import (
    AdversarialConfig,
    REGENLossConfig,
    VDiTLossConfig,
    VidVAELossConfig,
)
from xgen_jax.models.lpips import LPIPS, LPIPSConfig
from xgen_jax.models.regen import REGEN
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.models.text import ByteConditioner, ByteTextEncoder, T5Conditioner
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


def random_parameters(shapes, seed=1):
    """Parameters at random: some of a new network are zero, and hide gradients."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        x = rng.standard_normal(leaf.shape, np.float32)
        if path[-1].key == "kernel":
            return x * np.float32(math.prod(leaf.shape[-2:-1]) ** -0.5)
        return np.float32(path[-1].key == "scale") + np.float32(0.05) * x

    return jax.tree_util.tree_map_with_path(draw, shapes)


def make_vidvae():
    # Without LPIPS, whose rectifiers and maxima are near ties at some clips; it has a test of its
    # own below.
    adversarial = AdversarialConfig(
        weight=0.5, r1=0.1, discriminator=DiscriminatorConfig(width=64, layers=1)
    )
    return vidvae_task(
        model=VidVAE(VIDVAE), loss_config=VidVAELossConfig(lpips=0.0, adversarial=adversarial)
    )


def make_regen(**changes):
    model = REGENConfig(
        encoder=dataclasses.replace(VIDVAE, latent_channels=3),
        width=64,
        depth=2,
        heads=4,
        siren_hidden=8,
        siren_depth=1,
        siren_features=4,
        remat="none",
        **changes,
    )
    return regen_task(model=REGEN(model), loss_config=REGENLossConfig(), lpips=None, frozen=None)


def make_vdit(text=None, **model):
    """A VDiT on stored embeddings of captions, or with a text encoder that is trained along."""
    sizes = {"width": 32, "depth": 2, "heads": 4, "patch": 1, "text_width": 24, "remat": "none"}
    config = VDiTConfig(**sizes | model, null_caption_tokens=0 if text else 6)
    return VDiTTask(
        model=VDiT(config),
        text=text or T5Conditioner(length=6, width=config.text_width),
        loss_config=VDiTLossConfig(cond_drop_prob=0.5),
    )


def make_vdit_with_text():
    config = ByteTextConfig(width=24, depth=1, heads=2, max_bytes=8)
    return make_vdit(ByteConditioner(encoder=ByteTextEncoder(config)), caption_positions=True)


# Each objective, and the shape of its clips or latents. Frames of factorised attention: 2 are
# shared out among two devices, of 3 each device has some heads.
OBJECTIVES = {
    "vidvae": (make_vidvae, (5, 16, 16, 3)),
    "regen": (make_regen, (5, 16, 16, 3)),
    "regen-windows": (lambda: make_regen(attention_window=(3, 3)), (5, 16, 16, 3)),
    "vdit": (make_vdit, (2, 8, 12, 4)),
    "vdit-text": (make_vdit_with_text, (2, 8, 12, 4)),
    "vdit-odd": (make_vdit, (3, 8, 12, 4)),
    "vdit-dots": (lambda: make_vdit(remat="dots", attention="chunked"), (2, 8, 12, 4)),
    "vdit-offload": (lambda: make_vdit(remat="offload"), (2, 8, 12, 4)),
    "vdit-full": (
        lambda: make_vdit(attention_layout="full", positions="rope_3d"),
        (3, 8, 12, 4),
    ),
}
# Every two axes are in one of them.
MESHES = {
    "data-fsdp-tensor": {"data": 2, "fsdp": 2, "tensor": 2},
    "data-fsdp-sequence": {"data": 2, "fsdp": 2, "sequence": 2},
    "fsdp-tensor-sequence": {"data": 1, "fsdp": 2, "tensor": 2, "sequence": 2},
}
# Variants of an objective, each on one mesh; the others on all.
VARIANTS = {
    "regen-windows": "fsdp-tensor-sequence",
    "vdit-text": "data-fsdp-tensor",
    "vdit-odd": "fsdp-tensor-sequence",
    "vdit-dots": "fsdp-tensor-sequence",
    "vdit-offload": "data-fsdp-tensor",
}
QUICK = {("vdit-full", "fsdp-tensor-sequence")}


@functools.cache
def make_case(name):
    """(loss and gradients as a function, its arguments, its values on one device)."""
    make, shape = OBJECTIVES[name]
    objective, rng = make(), np.random.default_rng(0)
    if name.startswith("vdit"):
        clips = {
            "latents": rng.standard_normal((8, *shape), np.float32),
            "text": rng.standard_normal((8, 6, 24), np.float32),
            "text_mask": np.arange(6)[None] < rng.integers(1, 7, (8, 1)),
        }
    else:
        clips = {"video": rng.integers(0, 256, (8, *shape), np.uint8)}
    arrays = objective.prepare(
        objective.batch_arrays({**clips, "caption": [f"clip {i}" for i in range(8)]})
    )
    params = random_parameters(jax.eval_shape(objective.init, jax.random.key(1), arrays))
    sample_id = np.arange(8, dtype=np.uint32)

    def loss(params, arrays, sample_id, frozen):
        step = jnp.int32(STEP)
        return objective.loss(params, arrays, sample_keys(0, step, sample_id), step, frozen)[0]

    arguments = (params, arrays, sample_id, objective.frozen)
    return loss, arguments, jax.jit(jax.value_and_grad(loss))(*arguments)


def on_mesh(case, config):
    """Loss and gradients on a mesh, parameters by the rules, and the compiled program's text."""
    loss, (params, arrays, sample_id, frozen), _ = case
    mesh = make_mesh(MeshConfig(**config))
    on_batch, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    # Everything here is small; without a threshold the sharded paths are really taken.
    shardings, frozen_shardings = (
        sharding.tree_shardings(tree, mesh, smallest=1) for tree in (params, frozen)
    )
    with sharding.on_mesh(mesh):
        arguments = (
            jax.device_put(params, shardings),
            *jax.device_put((arrays, sample_id), on_batch),
            jax.device_put(frozen, frozen_shardings),
        )
        sharded = jax.jit(
            jax.value_and_grad(lambda *arguments: loss(*arguments)),
            out_shardings=(whole, shardings),
        )
        compiled = sharded.lower(*arguments).compile()
        return jax.device_get(compiled(*arguments)), compiled.as_text()


def assert_close(ours, theirs, tolerance=1e-5):
    """The loss to 1e-5, each gradient to a part of the largest."""
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(theirs[1]))
    leaves = jax.tree_util.tree_leaves_with_path(theirs[1])
    for (path, right), got in zip(leaves, jax.tree.leaves(ours[1]), strict=True):
        np.testing.assert_allclose(
            got, right, atol=tolerance * largest, rtol=0, err_msg=sharding.path_name(path)
        )


@pytest.mark.parametrize(
    "name,mesh",
    [
        pytest.param(name, mesh, marks=() if (name, mesh) in QUICK else pytest.mark.slow)
        for name in OBJECTIVES
        for mesh in MESHES
        if VARIANTS.get(name, mesh) == mesh
    ],
)
def test_loss_and_gradients_are_one_devices(name, mesh):
    case, sizes = make_case(name), MESHES[mesh]
    ours, program = on_mesh(case, sizes)
    # One device sums the 384 equal terms of the discriminator's last bias one after another, and
    # loses 2e-5 of them.
    assert_close(ours, case[2], 3e-5 if name == "vidvae" else 1e-5)
    if name != "vidvae":  # tests/models/test_vidvae.py reads its program
        assert_tokens_stay_divided(program, name, sizes, case[1][0])


def assert_tokens_stay_divided(program, name, sizes, params):
    """Heads are exchanged for tokens, and no device has all tokens of its clips in all features."""
    _, shape = OBJECTIVES[name]
    tokens, width = (shape[0] * 16, 64) if name.startswith("regen") else (math.prod(shape[:3]), 32)
    clips = 8 // (sizes["data"] * sizes["fsdp"])
    whole = clips * tokens * width
    # Parameters are gathered, at once or in parts, one layer of a stack at a time.
    leaves = jax.tree.leaves(params)
    layers = [leaf[0] for leaf in leaves if leaf.ndim > 1]
    parts = {leaf.size // n for leaf in (*leaves, *layers) for n in (1, 2, 4, 8)}
    assert whole not in parts, "choose sizes that tell activations and parameters apart"
    if "sequence" in sizes:
        assert collectives(program, "all-to-all"), "the layout exchanges nothing"
    for shape in collectives(program, "all-gather"):
        size = math.prod(shape)
        assert size < whole or size in parts, f"{shape} is gathered"


def collectives(program, kind):
    """The shapes of what an operation results in, wherever it is in a program's text."""
    found = re.findall(rf"= (.*?) {kind}(?:-start)?\(", program)
    return [
        tuple(int(side) for side in shape.split(",") if side)
        for result in found
        for shape in re.findall(r"\w+\[([\d,]*)\]", result)
    ]


@pytest.mark.slow
def test_lpips_of_frames_over_devices_is_one_devices():
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
            jax.device_put(params, sharding.tree_shardings(params, mesh, smallest=1)),
            *jax.device_put((x, y), frames),
        )
        got = jax.jit(jax.value_and_grad(lambda *arguments: distance(*arguments), argnums=1))(
            *sharded
        )
    assert_close(jax.device_get(got), expected, 3e-5)


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
    assert_close(jax.device_get(got), expected, 3e-5)


def test_the_compiler_still_convolves_wrongly_where_input_channels_are_sharded():
    """The reason for `gather_kernel`. No project code: XLA's partitioner alone."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 4, 4, 64), np.float32)
    kernel = rng.standard_normal((3, 3, 64, 64), np.float32)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("batch", "columns"))
    placed = NamedSharding(mesh, PartitionSpec("batch", None, "columns"))

    def convolve_2d(x, kernel):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims)

    def on_columns(x, kernel):
        x = jax.lax.with_sharding_constraint(x, placed)
        return jax.lax.with_sharding_constraint(convolve_2d(x, kernel), placed)

    right = jax.jit(convolve_2d)(x, kernel)
    errors = {}
    for name, spec in {"whole": (), "sharded": (None, None, "batch")}.items():
        arguments = (
            jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch"))),
            jax.device_put(kernel, NamedSharding(mesh, PartitionSpec(*spec))),
        )
        errors[name] = float(np.abs(jax.jit(on_columns)(*arguments) - right).max())
    largest = float(np.abs(right).max())
    assert errors["whole"] < 1e-4 * largest
    assert errors["sharded"] > 0.1 * largest, "jax now does this right: remove gather_kernel"
