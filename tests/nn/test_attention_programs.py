"""The paper's attention, compiled for accelerators that are not there: the program holds the
device's kernel, and no array of queries by keys. Each compiler is in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import dataclasses, json, re, sys

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.commands.arguments import find_config
from xgen_jax.commands.config_file import load_config
from xgen_jax.models.regen import Conditioning, Decoder
from xgen_jax.models.micro_conditions import MicroConditions
from xgen_jax.models.vdit import VDiT
from xgen_jax.parallel.devices import COMPILER_OPTIONS, named_devices
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.sharding import on_mesh

KERNELS = r"tpu_custom_call|__cudnn\\$fmha\\w*|__gpu\\$xla\\.gpu\\.triton"


def of(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


def vdit(attention, remat):  # a block of two of the heads, 17x480x848: 5 frames of 1,590 patches
    model = load_config(find_config("vdit/480p"), []).model
    assert model.attention == "auto" and model.width // model.heads == 72
    model = dataclasses.replace(
        model, depth=1, width=144, heads=2, text_width=64, remat=remat, attention=attention
    )
    inputs = (of(1, 5, 60, 106, 4), of(1), of(1, 250, 64), of(1, 250, dtype=jnp.bool_))
    return VDiT(model, jnp.bfloat16), (*inputs, MicroConditions(*[of(1)] * 5))


def regen(attention, remat, window=None):  # a chunk of 33 frames of 192x320: 31,680 patches
    model = load_config(find_config("regen/paper"), []).model
    assert model.attention == "auto" and model.width // model.heads == 128
    model = dataclasses.replace(
        model, depth=1, width=128, heads=1, remat=remat, attention=attention,
        attention_window=window,
    )
    frames = of(1, 33, 192, 320, 3)
    return Decoder(model, jnp.bfloat16), (frames, of(1), Conditioning(of(1, 33, 24, 40, 128)))


def regen_windows(attention, remat):  # 30 blocks of 33x4x8 queries, each with 33x12x24 keys
    return regen(attention, remat, (12, 24))


def large(text):  # shapes of queries by keys
    shapes = re.findall(r"tensor<((?:\\d+x)+)|\\b\\w+\\[([\\d,]+)\\]", text)
    shapes = {tuple(int(n) for n in re.findall(r"\\d+", a or b)) for a, b in shapes}
    return sorted(s for s in shapes if sum(n >= 1024 for n in s) > 1 or is_text_logits(s))


def is_text_logits(shape):
    return max(shape) >= 7950 and (250 in shape or 256 in shape) and 24 not in shape


def program(make, attention, mesh, remat="none"):
    network, inputs = make(attention, remat)

    def loss(params, *inputs):
        return jnp.square(network.apply(params, *inputs)).mean()

    with on_mesh(mesh):
        key = jax.eval_shape(lambda: jax.random.key(0))
        params = jax.eval_shape(network.init, key, *inputs)
        whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        arguments = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), (params, *inputs)
        )
        return jax.jit(jax.grad(loss)).lower(*arguments)


name, topology = sys.argv[1:]
make = {"vdit": vdit, "regen": regen, "regen-windows": regen_windows}[name]
devices = named_devices(topology)[:1]
mesh = make_mesh(MeshConfig(), devices)
text = program(make, "auto", mesh).as_text()
# JAX leaves what is computed again and not used, such as a kernel whose result is kept, to XLA.
compiled = program(make, "auto", mesh, "dots").compile(COMPILER_OPTIONS.get(devices[0].platform))
try:
    optimized = compiled.as_text()
except jax.errors.JaxRuntimeError:
    optimized = None  # of tpu7x, as in commands/plan.py
report = {
    "kernels": len(re.findall(KERNELS, text)),
    "kernels_if_all_again": len(re.findall(KERNELS, program(make, "auto", mesh, "full").as_text())),
    "compiled_kernels": optimized and len(re.findall("custom_call_target=." + KERNELS, optimized)),
    "large": large(text) + large(optimized or ""),
    "large_if_plain": large(program(make, "xla", mesh).as_text()),
    "temporaries": compiled.memory_analysis().temp_size_in_bytes,
}
print(json.dumps(report))
"""
NEEDS = {"gpu": "jax_cuda13_plugin"}


# A block attends in space, with a forward and a backward kernel, in time and to the text with as
# many. The regenerating decoder has one attention, whose many blocks of keys take two kernels
# backward on a TPU.
@pytest.mark.slow
@pytest.mark.parametrize(
    "network,topology,kernels",
    [
        ("vdit", "v5e:1x1", 6),
        ("vdit", "v5p:1x1x1", 6),
        ("vdit", "v6e:1x1", 6),
        ("vdit", "tpu7x:1x1x1", 6),
        ("vdit", "gpu:h100", 6),
        ("regen", "v5p:1x1x1", 3),
        ("regen", "gpu:h100", 2),
        ("regen-windows", "v5p:1x1x1", 3),
        ("regen-windows", "gpu:h100", 2),
    ],
)
def test_the_papers_attention_is_the_devices_kernel(network, topology, kernels):
    compiler = NEEDS.get(topology.split(":")[0], "libtpu")
    if importlib.util.find_spec(compiler) is None:
        pytest.skip(f"the compiler for {topology}, {compiler}, is not installed")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, network, topology],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kernels"] == kernels
    assert report["kernels_if_all_again"] > kernels
    # With `dots` what is kept of attention is not computed again.
    assert report["compiled_kernels"] in (kernels, None)
    assert report["compiled_kernels"] or topology.startswith("tpu7x")
    assert report["large_if_plain"], "the search finds nothing where it should"
    assert report["large"] == []
