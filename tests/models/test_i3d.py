"""I3D against PyTorch, on a narrow network with random weights; torch_i3d.py made the golden."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.models.i3d import I3D, I3DConfig, abstract_params
from xgen_jax.weights.i3d import assemble_i3d
from xgen_jax.weights.torch_file import check_clip

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
GOLDEN = dict(np.load(GOLDENS / "i3d.npz"))
ABOUT = json.loads((GOLDENS / "i3d.json").read_text())["config"]


@pytest.fixture(scope="module")
def narrow():
    tensors = {n.removeprefix("params/"): x for n, x in GOLDEN.items() if n.startswith("params/")}
    weights, ordered = assemble_i3d(tensors, {})
    assert not ordered
    return weights


# 16 frames are even at every stage; 11 need other zeros before and behind in each padding.
@pytest.mark.parametrize(
    "padding, frames",
    [pytest.param("same", 16, marks=pytest.mark.slow), ("same", 11), ("fixed", 11)],
)
def test_features_are_the_references(narrow, padding, frames):
    config = dataclasses.replace(narrow.model.config, padding=padding)
    with jax.default_matmul_precision("highest"):
        got = jax.jit(I3D(config).apply)(narrow.params, check_clip(frames)[None])
    wanted = GOLDEN[f"out/{padding}/{frames}"]
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_sizes_are_read_from_the_tensors(narrow):
    config = narrow.model.config
    assert config.stem == tuple(ABOUT["stem"]) and config.classes == ABOUT["classes"]
    assert [list(block) for block in config.blocks] == ABOUT["blocks"]


def test_the_full_network_has_the_published_sizes():
    params = abstract_params(I3DConfig())["params"]
    # With the 400 classes; a folded norm leaves one bias a channel.
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 12_689_984
    assert params["logits"]["kernel"].shape == (1, 1, 1, 1024, 400)


def test_the_shapes_are_those_of_the_network(narrow):
    config = narrow.model.config
    video = jax.ShapeDtypeStruct((1, 10, 224, 224, 3), np.float32)
    traced = jax.eval_shape(I3D(config).init, jax.random.key(0), video)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), traced) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract_params(config)
    )


@pytest.mark.parametrize("shape", [(1, 9, 224, 224, 3), (1, 16, 112, 112, 3), (16, 224, 224, 3)])
def test_a_clip_that_does_not_fit_is_refused(shape):
    with pytest.raises(UserError, match=r"I3D takes clips \(B, T, 224, 224, 3\) of 10 frames"):
        jax.eval_shape(I3D().init, jax.random.key(0), jax.ShapeDtypeStruct(shape, np.float32))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"stem": (1, 2)}, "3 convolutions"),
        ({"classes": 0}, "1 or more"),
        ({"padding": "x"}, "fixed"),
    ],
)
def test_wrong_sizes_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        I3DConfig(**change)
