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
# # Curate raw videos
#
# From a folder of raw videos to training shards: cut into shots, without clips that are duplicates,
# damaged, static or full of text.

# %%
import importlib.util
import subprocess
import sys

# In Colab, where the library is not installed: from a copy of the repository's folder. Its address,
# "git+https://...", works too.
SOURCE = "/content/xgen_jax"
if importlib.util.find_spec("xgen_jax") is None:
    wanted = "xgen_jax[curation] @ " + (SOURCE if "+" in SOURCE else f"file://{SOURCE}")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", wanted], check=True)

# %%
import os
import pathlib

import xgen_jax

VIDEOS = pathlib.Path(os.environ.get("XGEN_JAX_VIDEOS", "my_videos"))
OUT = pathlib.Path(os.environ.get("XGEN_JAX_OUT", "curated"))

# %% [markdown]
# A dry run measures every video once and prints the funnel: how many clips each rule leaves. It
# writes no clips.

# %%
KEYS = {"shots.min_side": 64}  # small videos too
xgen_jax.curate(VIDEOS, OUT, keys=KEYS, dry_run=True)

# %% [markdown]
# What was measured is kept, so that other thresholds take seconds:

# %%
xgen_jax.curate(VIDEOS, OUT, keys={**KEYS, "text.max_area": 0.05}, dry_run=True)

# %% [markdown]
# Now the same for real. Captions are those of the videos' folder where `captions` is `file`;
# an endpoint with OpenAI's interface writes them where it is `endpoint`.

# %%
CAPTIONS = os.environ.get("XGEN_JAX_CAPTIONS", "none")
curated = xgen_jax.curate(
    VIDEOS,
    OUT,
    keys={**KEYS, "captions": CAPTIONS, "pack.tiers": "64,256", "pack.held_out_fraction": 0.1},
)
print(curated)

# %% [markdown]
# The page shows what was kept and why, with the clips on both sides of each threshold. Download
# `report.html`, or look at it here:

# %%
from IPython.display import IFrame

IFrame(curated["report"], width="100%", height=600)

# %% [markdown]
# A model trains on the shards as on a folder of videos; an autoencoder needs no captions.

# %%
STEPS = int(os.environ.get("XGEN_JAX_STEPS", "300"))
xgen_jax.train(
    "quickstart/vidvae:videos",
    OUT / "vidvae",
    keys={
        "data.source.path": curated["shards"],
        "data.buckets": "9x64x64x4",
        "loop.steps": STEPS,
    },
)
