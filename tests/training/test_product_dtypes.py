"""Matrix products and convolutions of a train step in bfloat16 have operands in bfloat16, but for
those named here. Read from the step's StableHLO, for a CPU and for a TPU: the program that XLA:CPU
makes of it would show its own float32."""

import dataclasses
import re
import types
from typing import NamedTuple

import jax
import numpy as np
import pytest

from xgen_jax.commands.plan_programs import find_embedder
from xgen_jax.nn import attention, short_attention
from xgen_jax.parallel.mesh import make_mesh
from xgen_jax.parallel.sharding import batch_sharding, on_mesh
from xgen_jax.testing import BUCKET, DATA, REGEN_MODEL, VDIT, VIDVAE, tiny_run
from xgen_jax.training.compiled import abstract_arguments, jit_update
from xgen_jax.training.state import abstract_state
from xgen_jax.training.tasks import TASKS

# What may have operands in float32, by its name in the step, and why.
LPIPS = r"LPIPS"  # a frozen network, whose published figures are float32
MOMENTS = r"encoder/quant/"  # mean and log-variance: latents and the loss are float32
LOGITS = r"Discriminator\W*/logits/"  # to one channel, for a loss in float32

LOOP = {"compute_dtype": "bfloat16"}
WITH_LPIPS = {"lpips": 1.0, "lpips_weights": "nowhere"}
PYRAMID = {
    "channels": [8, 8],
    "space_reduction": [True, False],
    "time_reduction": [True, False],
    "stem": [2, 4, 4],
    "mid_attention": True,
    "norm": "group_per_frame",
}
WINDOWS = {"data": {**DATA, "buckets": [{**BUCKET, "frames": 10}]}, "loss": WITH_LPIPS}
REGEN = {**VIDVAE, **WINDOWS, "objective": "regen", "model": dataclasses.asdict(REGEN_MODEL)}
PAPER = {
    "width": 32,
    "micro_cond": True,
    "learned_variance": True,
    "position_span": 32.0,
    "caption_positions": True,
    "text_norm": True,
    "time_sinusoid": True,
    "attention": "auto",
    "remat": "dots",
}
# A run, its clips' embedder, and what may be in float32.
RUNS = {
    "vidvae": (
        tiny_run(
            VIDVAE, loop=LOOP, model=PYRAMID, loss={**WITH_LPIPS, "adversarial": {"weight": 0.5}}
        ),
        None,
        {LPIPS, MOMENTS, LOGITS},
    ),
    "regen": (
        tiny_run(REGEN, loop=LOOP, loss={"windows": "shifted", "consistency": 0.5}),
        None,
        {LPIPS, MOMENTS},
    ),
    "vdit": (
        tiny_run(VDIT, loop=LOOP, embedder="nowhere", model=PAPER, loss={"process": "ddpm"}),
        "paper",
        set(),
    ),
    "vdit, all tokens at once": (
        tiny_run(
            VDIT,
            loop=LOOP,
            embedder="nowhere",
            model={"width": 32, "attention_layout": "full", "positions": "rope_3d"},
        ),
        "paper",
        set(),
    ),
}
pytestmark = pytest.mark.slow

TPU = types.SimpleNamespace(platform="tpu", device_kind="TPU v5")


class Found(NamedTuple):
    """A product in a program: where, the dtypes of its operands, and their number of dims."""

    name: str
    dtypes: tuple[str, str]
    dims: int


def step_text(config, preset, platform):
    """The StableHLO of the train step, with the names of its operations."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    bucket = config.data.buckets[0]
    embedder, _ = find_embedder(config, preset, np.dtype(config.loop.compute_dtype))
    with on_mesh(mesh):
        task, batch = TASKS[config.objective].abstract(config, embedder.model.config, bucket)
        arrays, ids = abstract_arguments(
            task, task.batch_arrays(batch), bucket, batch_sharding(mesh)
        )
        optimizer = task.optimizer(config.optimizer, config.loop.steps)
        key = jax.eval_shape(lambda: jax.random.key(0))
        state, shardings = abstract_state(task, optimizer, mesh, key, arrays)
        update = jit_update(task, optimizer, config.loop, mesh, shardings)
        traced = update.trace(state, arrays, ids, task.frozen, state.step)
        return traced.lower(lowering_platforms=(platform,)).as_text(debug_info=True)


def products(text):
    """All products in a program."""
    names = dict(re.findall(r'^(#loc\d+) = loc\("([^"]*)"', text, re.MULTILINE))
    tensor = r"tensor<((?:\d+x)*)(\w+)>"
    pattern = rf".*: \({tensor}, {tensor}\) -> .* loc\((#loc\d+)\)"
    found = []
    for line in text.splitlines():
        if "stablehlo.dot_general" in line or "stablehlo.convolution" in line:
            dims, one, other_dims, other, place = re.fullmatch(pattern, line).groups()
            most = max(dims.count("x"), other_dims.count("x"))
            found.append(Found(names[place], (one, other), most))
    return found


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("run", RUNS)
def test_products_of_a_step_in_bfloat16(run, platform, monkeypatch):
    if platform == "tpu":  # attention in time has another form there
        monkeypatch.setattr(attention, "target_device", lambda: TPU)
        monkeypatch.setattr(short_attention, "target_device", lambda: TPU)
    config, preset, allowed = RUNS[run]
    found = products(step_text(config, preset, platform))
    # One dim is a norm or a sum, which no matrix unit computes.
    wide = [p.name for p in found if "f32" in p.dtypes and p.dims > 1]
    assert not [name for name in wide if not any(re.search(each, name) for each in allowed)]
    assert not [each for each in allowed if not any(re.search(each, name) for name in wide)]
    assert sum(p.dtypes == ("bf16", "bf16") for p in found) > 50
