"""Embedders: their parameters lie flat in the network's own scope; patches come back in place."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from xgen_jax.nn.embeddings import (
    NORMAL,
    ZEROS,
    CaptionProjection,
    TimestepEmbedder,
    join_scope,
    patchify,
    unpatchify,
)


class Network(nn.Module):
    @nn.compact
    def __call__(self, time_B, size_B, text_BLD):
        t = join_scope(self, TimestepEmbedder(8, name="t_embedder"))(time_B)
        size = join_scope(self, TimestepEmbedder(8, NORMAL, ZEROS, name="size_embedder"))(size_B)
        text = join_scope(self, CaptionProjection(8, name="y_embedder"))(text_BLD)
        return t, size, text


def test_embedders_keep_their_layers_in_the_scope_of_the_network():
    inputs = jnp.ones(2), jnp.ones(2), jnp.ones((2, 3, 5))
    (t, size, text), variables = Network().init_with_output(jax.random.key(0), *inputs)
    names = {f"{prefix}_embedder{i}" for prefix in ("t", "size", "y") for i in (1, 2)}
    assert set(variables["params"]) == names
    assert (t.shape, text.shape) == ((2, 8), (2, 3, 8))
    assert not np.any(size) and np.any(t)  # the last kernel of a size starts at zero


def test_two_modules_of_one_name_are_refused():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = join_scope(self, TimestepEmbedder(4, name="t_embedder"))(x[..., 0])
            return x

    with pytest.raises(flax.errors.NameInUseError):
        Twice().init(jax.random.key(0), jnp.ones((2, 1)))


def test_patches_come_back_in_their_places():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 6, 5))
    patches = patchify(x, 2)
    assert patches.shape == (2, 3, 2, 3, 20)
    np.testing.assert_array_equal(patches[0, 0, 1, 2], x[0, 0, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(unpatchify(patches, 2), x)
