# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Scaling: plan a run before renting a pod
#
# How large the networks are, what a device holds when a run is spread over many, how parameters are
# split, and what a step takes. Nothing here needs an accelerator: programs are compiled for devices
# that are not there.

# %%
import importlib.util
import subprocess
import sys

# In Colab, where the library is not installed: from a copy of the repository's folder. Its address,
# "git+https://...", works too.
SOURCE = "/content/xgen_jax"
if importlib.util.find_spec("xgen_jax") is None:
    wanted = "xgen_jax[plan] @ " + (SOURCE if "+" in SOURCE else f"file://{SOURCE}")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", wanted], check=True)

# %%
import os

# Eight devices of this CPU, to try a mesh. It must be set before JAX starts.
FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{FLAGS} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import html
import math

import jax
from IPython.display import HTML

import xgen_jax
from xgen_jax.evaluation import page
from xgen_jax.evaluation.chart import line_chart
from xgen_jax.models import flops, vdit
from xgen_jax.parallel import sharding
from xgen_jax.parallel.mesh import MeshConfig, make_mesh

PRESET = os.environ.get("XGEN_JAX_PRESET", "VDiT-XL/2")
CONFIG = os.environ.get("XGEN_JAX_CONFIG", "quickstart/vdit")


def table(head, *rows):
    """Show rows as a table."""
    lines = [
        f"<tr>{''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in row)}</tr>"
        for tag, row in (("th", head), *(("td", row) for row in rows))
    ]
    return HTML(f"<table>{''.join(lines)}</table>")


# %% [markdown]
# ## The presets of the transformer
#
# A training step of one clip: 17 latent frames of 64x64 cells (a 4x8x8 embedder makes them of 65
# frames of 512x512), 250 tokens of text. Products and convolutions count, two operations for each
# multiply-add; a backward pass is twice the forward.

# %%
LATENTS = (1, 17, 64, 64, 4)
presets = {name: config for name, config in xgen_jax.presets("vdit").items() if name != "tiny"}
sizes = {name: vdit.count_parameters(config) for name, config in presets.items()}
table(
    ("preset", "width", "depth", "parameters, M", "TFLOP a step and clip"),
    *(
        (
            name,
            config.width,
            config.depth,
            f"{sizes[name] / 1e6:,.0f}",
            f"{flops.vdit_flops(config, LATENTS, 250, train=True) / 1e12:,.1f}",
        )
        for name, config in presets.items()
    ),
)

# %% [markdown]
# ## How parameters are split
#
# The rules are a table (`parallel/sharding.py`): a pattern of the path, and the mesh axis of each
# dimension; what no pattern matches is split along its longest dimension. Here: the largest
# parameters of a preset on 4 x 2 devices.

# %%
mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
shapes = vdit.abstract_variables(presets[PRESET])["params"]
leaves = jax.tree_util.tree_leaves_with_path(shapes)
leaves = sorted(leaves, key=lambda leaf: -leaf[1].size)
table(
    ("parameter", "shape", "split by", "MB of all", "MB a device"),
    *(
        (
            sharding.path_name(path),
            "x".join(map(str, leaf.shape)),
            tuple(sharding.parameter_spec(sharding.path_name(path), leaf.shape, mesh)),
            f"{4 * leaf.size / 1e6:,.1f}",
            f"{sharding.device_bytes({sharding.path_name(path): leaf}, mesh) / 1e6:,.1f}",
        )
        for path, leaf in leaves[:12]
    ),
)

# %% [markdown]
# ## A plan
#
# `plan` compiles the very step that `train` would run and reads the program: what a device holds,
# what it sends, and on accelerators the least time. The devices of `cpu:8` have no peak, so there
# is no time; the memory and what is sent are real. On a terminal the same is
# `python -m xgen_jax plan --config=quickstart/vdit --topology=cpu:8`.

# %%
CPUS = "cpu:8"
plans = {CPUS: xgen_jax.plan(CONFIG, CPUS, keys={"mesh.fsdp": 8})}

# %% [markdown]
# With libtpu (`pip install "xgen_jax[plan]"`), the same for a slice of four TPU chips: its compiler
# decides whether the program fits.

# %%
TPUS = os.environ.get("XGEN_JAX_TOPOLOGY", "v5e:2x2")
if TPUS and importlib.util.find_spec("libtpu"):
    plans[TPUS] = xgen_jax.plan(CONFIG, TPUS, keys={"mesh.fsdp": 4})


def milliseconds(plan):
    """The least time of a step, where the devices have figures."""
    floor = plan.get("floor") or {}
    return f"{1e3 * floor['step_s']:.2f}" if floor else "-"


table(
    ("devices", "fits", "MB a device at the peak", "GFLOP a step", "least time, ms"),
    *(
        (
            name,
            plan["fits"],
            f"{plan['peak_bytes'] / 1e6:,.1f}" if plan["peak_bytes"] else "-",
            f"{plan['flops'] / 1e9:,.1f}",
            milliseconds(plan),
        )
        for name, plan in plans.items()
    ),
)

# %% [markdown]
# ## What a device holds, by the number of devices
#
# Of training with Adam: float32 parameters, their average (EMA), and two moments, 16 bytes a value,
# all split alike over `fsdp`. Activations come on top; `plan` counts them. A v5e has 16 GB, an H100
# has 80.
#
# Parameters are split where a dimension is a multiple of `fsdp`, and are whole on each device
# otherwise: a width of 1152 is 9 x 128, so that 256 devices take `mesh.data=2 mesh.fsdp=128`.

# %%
AXES = ("data", "fsdp", "tensor", "sequence")


def state_gb(shapes, fsdp):
    """GB (1e9 bytes) of a device's state, on a mesh of sizes alone."""
    mesh = jax.sharding.AbstractMesh((1, fsdp, 1, 1), AXES)
    values = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        spec = sharding.parameter_spec(sharding.path_name(path), leaf.shape, mesh)
        values += leaf.size // math.prod(mesh.shape[axis] for axis in spec if axis)
    return 16 * values / 1e9


counts = [2**power for power in range(9)]
split = [math.gcd(devices, presets[PRESET].width) for devices in counts]
held = [state_gb(shapes, fsdp) for fsdp in split]
table(
    ("devices", *counts),
    ("mesh.fsdp", *split),
    (f"GB a device, {PRESET}", *(f"{gb:.2f}" for gb in held)),
)

# %%
STYLE = """<style>
.plot { max-width: 640px; margin: 0; } .chart { font-size: 12px; fill: #667; }
.chart .label { fill: #112; font-weight: 600; } .chart .grid { stroke: #dde; }
.chart .frame { fill: none; stroke: #ccd; }
.plot polyline { fill: none; stroke: #2563eb; stroke-width: 2; }
</style>"""
powers = [math.log2(devices) for devices in counts]
chart = line_chart(
    {PRESET: (powers, held)},
    f"{PRESET}: state of a device, GB",
    x_label="log2 of the devices",
    smooth=False,
)
HTML(STYLE + page.macro("chart", chart))
