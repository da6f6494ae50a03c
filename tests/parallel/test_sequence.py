"""Attention over tokens that devices share: which meshes can, and what the devices exchange."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.data.sources.factory import make_source
from xgen_jax.errors import UserError
from xgen_jax.models.regen_config import PRESETS as REGEN_PRESETS
from xgen_jax.models.vdit_config import PRESETS as VDIT_PRESETS
from xgen_jax.nn.attention import SelfAttention
from xgen_jax.parallel.mesh import AXES, MeshConfig, make_mesh
from xgen_jax.parallel.sharding import on_mesh
from xgen_jax.testing import REGEN_MODEL, VIDVAE, tiny_run
from xgen_jax.training.tasks import build_task


def sizes(**axes):
    return dict.fromkeys(AXES, 1) | axes


@pytest.mark.parametrize(
    "preset,latents,axes",
    [
        ("VDiT-XL/2", (5, 60, 104), {"sequence": 8, "tensor": 2}),  # 16 heads
        ("VDiT-XL/2", (1, 60, 104), {"sequence": 8}),  # an image: by heads
        ("VDiT-3B/2", (5, 60, 104), {"sequence": 4}),  # 20 heads
        ("VDiT-S/2", (8, 60, 104), {"sequence": 4}),  # not 6 heads, but 8 frames
    ],
)
def test_layouts_that_can_be(preset, latents, axes):
    VDIT_PRESETS[preset].check_mesh(sizes(**axes), latents)


@pytest.mark.parametrize(
    "config,latents,axes,message",
    [
        (
            VDIT_PRESETS["VDiT-3B/2"],
            (5, 60, 104),
            {"sequence": 8},
            r"--config.mesh.sequence=8 cannot divide 20 attention heads \(--config.model.heads\); "
            "smaller sizes that do: 1, 2, 4, 5",
        ),
        (
            VDIT_PRESETS["VDiT-3B/2"],
            (5, 60, 104),
            {"sequence": 4, "tensor": 2},
            "20 attention heads .*, which --config.mesh.tensor=2 divides already; smaller sizes "
            "that do: 1, 2",
        ),
        (
            VDIT_PRESETS["VDiT-S/2"],
            (5, 60, 104),
            {"sequence": 4},
            "cannot divide 6 attention heads .*, nor 5 latent frames; .* that do: 1, 2, 3",
        ),
        (
            VDIT_PRESETS["VDiT-XL/2"],
            (5, 60, 100),
            {"sequence": 16},
            "--config.mesh.sequence=16 cannot divide the 30x50 = 1500 tokens of a frame; smaller "
            "sizes that do: 1, 2, 4, 5",
        ),
        (
            VDIT_PRESETS["VDiT-S/2"],
            (5, 60, 104),
            {"tensor": 4},
            r"--config.mesh.tensor=4 cannot divide 6 attention heads .*may be 1, 2, 3, 6",
        ),
        (
            REGEN_PRESETS["paper-32x"],
            (2, 24, 40),
            {"sequence": 32},
            "--config.mesh.sequence=32 cannot divide 16 attention heads",
        ),
    ],
)
def test_layouts_that_cannot_be_are_refused_with_those_that_can(config, latents, axes, message):
    with pytest.raises(UserError, match=message):
        config.check_mesh(sizes(**axes), latents)


def test_a_run_is_refused_before_anything_is_compiled():
    mesh = make_mesh(MeshConfig(fsdp=1, sequence=8))
    bucket = {"frames": 5, "height": 16, "width": 16, "batch_size": 8}
    model = {"model": dataclasses.asdict(REGEN_MODEL), "loss": {}}
    run = tiny_run({**VIDVAE, "objective": "regen", **model}, data={"buckets": [bucket]})
    with pytest.raises(UserError, match="bucket 5x16x16: --config.mesh.sequence=8 .* 2 attention"):
        build_task(run, mesh, make_source(run.data))
    mesh = make_mesh(MeshConfig(data=1, fsdp=3))
    with pytest.raises(UserError, match="mesh.fsdp=3.*; give a batch_size of 6 or 9"):
        build_task(run, mesh, make_source(run.data))


@pytest.mark.parametrize(
    "dims,attended,exchanges",
    [
        # Of queries, keys and values together, and of the result.
        (("batch", "time", "space"), 2, 2),
        (("batch", "time", "space"), 1, 2),
        # Frames are whole on a device already; so are the frames at a place.
        (("batch", "frames", None), 1, 0),
        (("batch", "space", None), 1, 0),
    ],
    ids=["full", "space by heads", "space by frames", "time"],
)
def test_an_attention_exchanges_what_it_must_and_gathers_nothing(dims, attended, exchanges):
    layer = SelfAttention(heads=4, qk_norm=True, dims=dims, attended=attended)
    x = np.random.default_rng(0).standard_normal((2, 4, 8, 16), np.float32)
    tokens = int(np.prod(x.shape[3 - attended : 3]))
    positions = np.arange(tokens, dtype=np.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x, positions)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: rng.standard_normal(p.shape, np.float32) / 4, shapes)

    def run(params, x):
        return layer.apply(params, x, jnp.asarray(positions))

    expected = jax.jit(run)(params, x)
    with on_mesh(make_mesh(MeshConfig(data=2, fsdp=1, sequence=4))):
        compiled = jax.jit(lambda *arguments: run(*arguments)).lower(params, x).compile()
        np.testing.assert_allclose(compiled(params, x), expected, rtol=0, atol=1e-5)
    program = compiled.as_text()
    assert program.count(" all-to-all(") == exchanges
    for other in ("all-gather", "all-reduce", "collective-permute"):
        assert f" {other}(" not in program
