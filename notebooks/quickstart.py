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
# # Text to video with a quickstart model
#
# `bash launch/quickstart.sh` trains the model used here; the run folder of any VDiT works.

# %%
import importlib.util
import subprocess
import sys

# In Colab, where the library is not installed: from a copy of the repository's folder. Its address,
# "git+https://...", works too.
SOURCE = "/content/xgen_jax"
if importlib.util.find_spec("xgen_jax") is None:
    wanted = "xgen_jax[gpu] @ " + (SOURCE if "+" in SOURCE else f"file://{SOURCE}")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", wanted], check=True)

# %%
import os

import numpy as np
from IPython.display import HTML

import xgen_jax
from xgen_jax.data.sources.synthetic import SyntheticSource, parse_caption
from xgen_jax.evaluation.captions import verdict

MODEL = os.environ.get("XGEN_JAX_MODEL", "runs/quickstart/vdit")

# %%
model = xgen_jax.load(MODEL)
video = model("a red circle moving left", seed=0)
print(video.shape, video.dtype)

# %%
xgen_jax.show(video)

# %% [markdown]
# The same prompt with other noise, and another prompt with the same noise:

# %%
xgen_jax.show(model("a red circle moving left", seed=1))

# %%
xgen_jax.show(model("a large blue square moving up on a white background", seed=0))

# %% [markdown]
# ## Next to the truth
#
# A clip of the dataset whose combination of attributes training never showed, on the left, and what
# the model makes of its caption, on the right. Where the shape begins is up to the noise.

# %%
plan = model.plan()
clip = SyntheticSource(split="held_out").read(7, None, plan.frames, plan.height, plan.width)
truth, prompt = clip["video"], clip["caption"]
sample = model(prompt, seed=0)
line = np.full((plan.frames, plan.height, 1, 3), 255, np.uint8)
print(prompt)
xgen_jax.show(np.concatenate([truth, line, sample], axis=2))

# %% [markdown]
# The caption verifier measures each attribute in the pixels; it uses no model. Its verdict on both:

# %%
wanted = parse_caption(prompt)
rows = [("attribute", "wanted", "the truth shows it", "the sample shows it")]
shown = [verdict(video, wanted) for video in (truth, sample)]
rows += [(name, value, *(each[name] for each in shown)) for name, value in wanted.items()]
rows += [("all", "", *(each["all"] for each in shown))]
words = {True: "yes", False: "no"}
cells = ["".join(f"<td>{words.get(cell, cell)}</td>" for cell in row) for row in rows]
HTML(f"<table>{''.join(f'<tr>{each}</tr>' for each in cells)}</table>")
