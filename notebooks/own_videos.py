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
# # Train on your own videos
#
# From a folder of videos to reconstructions and samples. In Colab, choose a GPU runtime.

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
import pathlib

import xgen_jax

VIDEOS = pathlib.Path(os.environ.get("XGEN_JAX_VIDEOS", "my_videos"))
OUT = pathlib.Path(os.environ.get("XGEN_JAX_OUT", "runs/mine"))
# Steps of the two models: a few minutes each on two CPU cores. For a result that is worth showing,
# take the numbers of the configurations: 8000 and 4800.
STEPS = int(os.environ.get("XGEN_JAX_STEPS", "300"))

# %% [markdown]
# The videos: mp4, mov, webm, mkv, avi or gif. In Colab, this cell asks for them if the folder is
# not there. A caption is a text file next to its video (`dog.mp4`, `dog.txt`), or a line of
# `captions.jsonl`; videos without captions train the autoencoder only.

# %%
if not VIDEOS.is_dir():
    from google.colab import files

    VIDEOS.mkdir()
    for name, data in files.upload().items():
        (VIDEOS / name).write_bytes(data)
print(*sorted(path.name for path in VIDEOS.iterdir()), sep="\n")

# %% [markdown]
# ## The autoencoder
#
# About every twentieth video, and the end of every long one, is held out for the scores below.

# %%
DATA = {"data.source.path": str(VIDEOS), "data.buckets": "9x64x64x4"}
xgen_jax.train("quickstart/vidvae:videos", OUT / "vidvae", keys={**DATA, "loop.steps": STEPS})

# %%
autoencoder = xgen_jax.load(OUT / "vidvae")
first = next(path for path in sorted(VIDEOS.rglob("*")) if path.suffix in (".mp4", ".mov"))
video, fps = xgen_jax.read_video(first, frames=33, cover=(64, 64))
video = video[: 1 + (len(video) - 1) // 4 * 4, :64, :64]  # the lengths that it takes: 1 + 4n

# %% [markdown]
# The original, and what is left of it after 4x4 pixels of 4 frames became 16 numbers:

# %%
xgen_jax.show(video, fps)

# %%
xgen_jax.show(autoencoder(video), fps)

# %% [markdown]
# ## Text to video
#
# A transformer on the latents of the autoencoder. It learns what the captions say.

# %%
xgen_jax.train(
    "quickstart/vdit:videos",
    OUT / "vdit",
    keys={
        **DATA,
        "embedder": str(OUT / "vidvae"),
        "loop.steps": STEPS,
    },
)

# %%
model = xgen_jax.load(OUT / "vdit")
print(model)

# %%
PROMPT = os.environ.get("XGEN_JAX_PROMPT", "a dog runs over a meadow")
xgen_jax.show(model(PROMPT, seed=0), model.fps)

# %% [markdown]
# The scores on held-out clips (where the folder is so small that there is none, on those trained
# on; the page says which), and a page to pass on:

# %%
xgen_jax.evaluate("reconstruction", embedder=str(OUT / "vidvae"), out=str(OUT / "evaluation"))
xgen_jax.evaluate("report", out=str(OUT))["report"]
