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
# # REGEN: a generative decoder, and time between frames
#
# REGEN turns a chunk of frames into two latent frames, *content* and *motion*, and decodes them
# with a diffusion transformer, in one step or several, at any times. This notebook trains a tiny
# one on moving shapes, or takes a run that you have, and looks at what each part does. In Colab,
# choose a GPU runtime.

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
import dataclasses
import os
import pathlib

import numpy as np
from PIL import Image

import xgen_jax
from xgen_jax.data.sources.synthetic import SyntheticSource

RUN = pathlib.Path(os.environ.get("XGEN_JAX_REGEN", "runs/notebook/regen"))
CONFIG = os.environ.get("XGEN_JAX_CONFIG", "quickstart/regen")
# A minute or two on two CPU cores. The configuration's own number is 1,500, which is worth its six
# minutes: shapes are then sharp.
STEPS = int(os.environ.get("XGEN_JAX_STEPS", "300"))

# %%
if not (RUN / "run.json").is_file():
    xgen_jax.train(CONFIG, RUN, keys={"loop.steps": STEPS})
one_step = xgen_jax.load(RUN)
print(one_step)

# %% [markdown]
# ## One step against several
#
# Two clips that training never showed. The decoder starts from noise: more steps are more
# evaluations of the same network.

# %%
embedder, params = one_step.embedder, one_step.params
SIDE = 32
clips = SyntheticSource(split="held_out")
first, second = (
    clips.read(number, None, embedder.frames(2), SIDE, SIDE)["video"] for number in (0, 1)
)
four_steps = dataclasses.replace(one_step, embedder=embedder.with_steps(4))


def psnr_db(video, truth):
    """Peak signal to noise ratio of uint8 videos, in dB."""
    error = np.square(video.astype(float) - truth).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))


in_one, in_four = one_step(first), four_steps(first)
for name, video in (("one step", in_one), ("four steps", in_four)):
    print(f"{name}: {psnr_db(video, first):.1f} dB")


# %%
def side_by_side(*videos):
    """Join videos of one size, with a white line between them."""
    line = np.full((*videos[0].shape[:2], 1, 3), 255, np.uint8)
    parts = [part for video in videos for part in (line, video)]
    return np.concatenate(parts[1:], axis=2)


# %% [markdown]
# The original, one step, four steps:

# %%
xgen_jax.show(side_by_side(first, in_one, in_four))

# %% [markdown]
# ## The two latents
#
# Content on the left, motion on the right: three channels of each as colours, a square for a latent
# cell. Both mark the cells in which the shape is; content those of the first frame.

# %%
latents = xgen_jax.encode(embedder, params, first[None])
others = xgen_jax.encode(embedder, params, second[None])
print("pixels", first.shape, "-> latents", latents.shape[1:])


def picture(latent):
    """Three channels of a latent frame (h, w, c) as an image."""
    pixels = np.clip(127.5 + 50 * np.asarray(latent[..., :3]), 0, 255).astype(np.uint8)
    return np.pad(pixels.repeat(24, 0).repeat(24, 1), ((0, 0), (0, 8), (0, 0)))


Image.fromarray(np.concatenate([picture(latents[0, 0]), picture(latents[0, 1])], axis=1))

# %% [markdown]
# The content of the first clip with the motion of the second: first, second, mixed. The network has
# never seen such a pair. A tiny one, well trained, takes background and path from the motion
# latent, and a part of the colour from the content: "motion" is all that a later frame needs.

# %%
mixed = np.concatenate([latents[:, :1], others[:, 1:]], axis=1)
decoded = np.asarray(xgen_jax.decode(embedder, params, mixed)[0])
decoded = np.clip(127.5 * decoded + 127.5, 0, 255).astype(np.uint8)
xgen_jax.show(side_by_side(first, second, decoded))

# %% [markdown]
# ## Slow motion
#
# The decoder takes any times: at half the speed every second frame lies between two of the clip, at
# a quarter three of four do. Nothing is trained again.

# %%
half, quarter = one_step(first, speed=0.5), one_step(first, speed=0.25)
print("frames:", len(first), "->", len(half), "and", len(quarter))

# %% [markdown]
# Side by side, all at the pace of a quarter: the original, which stands still between its frames;
# half the speed; a quarter:

# %%
still = first.repeat(4, axis=0)[: len(quarter)]
paused = half.repeat(2, axis=0)[: len(quarter)]
xgen_jax.show(side_by_side(still, paused, quarter))
