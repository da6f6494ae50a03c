"""VDiT: scanned or not, recomputed or not, it is one function; samples and padding do not leak into one another."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.models import vdit_config
from xgen_jax.models.vdit import VDiT, count_parameters, unstack_layers
from xgen_jax.models.vdit_config import PRESETS, VDiTConfig

CONFIG = VDiTConfig(width=16, depth=2, heads=2, patch=2, text_width=8, remat="none")


def setup(config=CONFIG):
    """A model whose parameters are all random (at initialisation its output is zero), and two samples."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 3, 4, 6, 3))
    text = jax.random.normal(keys[1], (2, 5, 8))
    mask = jnp.arange(5)[None] < jnp.array([[3], [5]])
    inputs = (x, jnp.array([200.0, 700.0]), text, mask)
    shapes = jax.eval_shape(VDiT(config).init, keys[2], *inputs)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32), shapes)
    return params, inputs


def value_and_gradient(config, params, inputs):
    def loss(params):
        y = VDiT(config).apply(params, *inputs)
        return jnp.square(y).mean(), y

    (_, y), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return y, gradient


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5), one, other)


def test_scan_and_recomputation_change_neither_values_nor_gradients():
    params, inputs = setup()
    y, gradient = value_and_gradient(CONFIG, params, inputs)
    assert y.shape == inputs[0].shape
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient)), "a parameter that nothing depends on"

    recomputed = value_and_gradient(dataclasses.replace(CONFIG, remat="full"), params, inputs)
    assert_close(recomputed, (y, gradient))

    looped = dataclasses.replace(CONFIG, scan_layers=False)
    unstacked = unstack_layers(params, CONFIG.depth)
    shapes = jax.eval_shape(VDiT(looped).init, jax.random.key(0), *inputs)
    assert jax.tree.structure(shapes) == jax.tree.structure(unstacked)
    y_loop, gradient_loop = value_and_gradient(looped, unstacked, inputs)
    assert_close((y_loop, gradient_loop), (y, unstack_layers(gradient, CONFIG.depth)))


def test_samples_and_padding_do_not_leak():
    params, (x, time, text, mask) = setup()
    apply = jax.jit(VDiT(CONFIG).apply)
    y = apply(params, x, time, text, mask)

    padded = text.at[0, 3:].set(100.0)
    np.testing.assert_allclose(apply(params, x, time, padded, mask), y, atol=1e-5)
    assert np.abs(apply(params, x, time, text.at[0, 2].add(1.0), mask) - y)[0].max() > 1e-3

    other = apply(params, x.at[1].set(7.0), time.at[1].set(0.0), text.at[1].set(-3.0), mask)
    np.testing.assert_allclose(other[0], y[0], atol=1e-5)
    assert np.abs(other - y)[1].max() > 1e-2
    swapped = apply(params, x[::-1], time[::-1], text[::-1], mask[::-1])
    np.testing.assert_allclose(swapped[::-1], y, atol=1e-5)


def test_the_output_is_zero_at_initialisation():
    _, inputs = setup()
    y, params = jax.jit(VDiT(CONFIG).init_with_output)(jax.random.key(0), *inputs)
    assert not np.any(y)
    # Each scanned layer starts from values of its own.
    kernel = params["params"]["blocks"]["block"]["mlp"]["fc1"]["kernel"]
    assert kernel.shape == (2, 16, 64)
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01


def test_the_papers_network_has_its_size():
    # As counted over the tensors of the public STDiT2-XL/2, less its 36 fixed frequencies.
    assert count_parameters(PRESETS["VDiT-XL/2"]) == 767_452_064
    assert count_parameters(dataclasses.replace(PRESETS["VDiT-XL/2"], qk_norm=False)) == 767_444_000


def test_presets_have_the_parameters_that_their_table_says():
    rows = [line.split() for line in vdit_config.__doc__.splitlines() if line.startswith("    ")][1:]
    table = {name: [int(number.replace(",", "")) for number in numbers] for name, *numbers in rows}
    assert table == {name: [c.width, c.depth, c.heads, count_parameters(c)] for name, c in PRESETS.items()}


@pytest.mark.parametrize("changes", [{"width": 18}, {"width": 15}, {"remat": "some"}])
def test_a_network_that_cannot_be_built_is_refused(changes):
    with pytest.raises(UserError, match="even head dimension|remat='some'"):
        dataclasses.replace(CONFIG, **changes)
