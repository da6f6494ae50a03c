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
import os

import xgen_jax

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
