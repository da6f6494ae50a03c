"""LPIPS against the released implementation, and gradients that stay finite where its norm is
zero."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from xgen_jax.errors import UserError
from xgen_jax.models.lpips import LPIPS, PRESETS, LPIPSConfig
from xgen_jax.weights.lpips import assemble_lpips

FOLDER = pathlib.Path(__file__).parents[1] / "goldens"
GOLDENS, FACTS = np.load(FOLDER / "lpips.npz"), json.loads((FOLDER / "lpips.json").read_text())
TINY = LPIPSConfig(widths=(4, 4, 6, 6, 8))


def stored(net):
    """The golden's state dict."""
    prefix = f"params/{net}/"
    return {
        name.removeprefix(prefix): GOLDENS[name]
        for name in GOLDENS.files
        if name.startswith(prefix)
    }


def hashed():
    """Full-size VGG16 from the golden's integer hash; see lpips.json."""
    tensors = {}
    for k, (name, shape) in enumerate(FACTS["vgg_full"]["order"]):
        start = (k * 0xD1B54A32D192ED03 + FACTS["vgg_full"]["hash_seed"]) % 2**64
        x = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        ) + np.uint64(start)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        u = ((x ^ (x >> np.uint64(31))) >> np.uint64(40)).astype(np.float64) / 2**24
        if name.startswith("lin"):
            value = 2 * u
        elif name.endswith("bias"):
            value = (u - 0.5) * 0.4
        else:
            value = (u - 0.5) * np.sqrt(24 / math.prod(shape[1:]))
        tensors[name] = value.astype(np.float32).reshape(shape)
    return tensors


def images(name):
    return tuple(rearrange(GOLDENS[f"in/{name}/{x}"], "b c h w -> b h w c") for x in ("x0", "x1"))


def check_against_golden(net, tensors, sets, features):
    model, params = assemble_lpips(tensors)
    by_slice = jax.jit(lambda x, y: model.apply(params, x, y, method="by_slice"))
    for name in sets:
        x, y = images(name)
        terms = by_slice(x, y)
        atol = {key: FACTS["atol"][f"{net}/{name}/{key}"] for key in ("lpips", "per_layer")}
        np.testing.assert_allclose(
            terms, GOLDENS[f"out/{net}/{name}/per_layer"], rtol=0, atol=atol["per_layer"]
        )
        total = GOLDENS[f"out/{net}/{name}/lpips"].reshape(-1)
        np.testing.assert_allclose(terms.sum(-1), total, rtol=0, atol=atol["lpips"])
    if not features:
        return
    taps = jax.jit(lambda x: model.apply(params, x, method="features"))(images("a")[0])
    for k, tap in enumerate(taps):
        flat = np.asarray(tap, np.float64).reshape(len(tap), -1)
        figures = np.stack([flat.mean(1), flat.std(1, ddof=1), np.abs(flat).sum(1) / 1000], axis=1)
        key = f"{net}/a/feature{k}_mean_std_sum"
        np.testing.assert_allclose(figures, GOLDENS[f"out/{key}"], rtol=0, atol=FACTS["atol"][key])
    if f"out/{net}/a/feature4" in GOLDENS.files:
        last = rearrange(np.asarray(taps[-1]), "b h w c -> b c h w")
        atol = FACTS["atol"][f"{net}/a/feature4"]
        np.testing.assert_allclose(last, GOLDENS[f"out/{net}/a/feature4"], rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["vgg_narrow", "alex"])
def test_distances_and_features_are_the_released_ones(net):
    check_against_golden(net, stored(net), ("a", "b"), features=True)


@pytest.mark.slow
def test_the_full_vgg_gives_the_released_distances():
    tensors = hashed()
    for k in (0, 1, 10, 25, 30):
        name = FACTS["vgg_full"]["order"][k][0]
        np.testing.assert_array_equal(
            tensors[name].reshape(-1)[:8], GOLDENS[f"out/vgg_full/weights_first8_{k}"]
        )
    sums = [tensor.astype(np.float64).sum() for tensor in tensors.values()]
    np.testing.assert_allclose(sums, GOLDENS["out/vgg_full/weights_sum"], rtol=1e-12)
    check_against_golden("vgg_full", tensors, ("a",), features=False)


def build(config=TINY, side=32):
    model = LPIPS(config)
    x, y = jax.random.uniform(jax.random.key(1), (2, 2, side, side, 3), minval=-1, maxval=1)
    return model, jax.jit(model.init)(jax.random.key(0), x, y), x, y


@pytest.mark.slow
def test_equal_images_are_at_distance_zero_and_each_pair_counts_alone():
    model, params, x, y = build()
    distance = jax.jit(model.apply)
    np.testing.assert_array_equal(distance(params, x, x), 0.0)
    both = distance(params, x, y)
    assert both.shape == (2,) and both.dtype == jnp.float32 and (both > 0.001).all()
    np.testing.assert_allclose(distance(params, y, x), both, rtol=1e-6)
    np.testing.assert_allclose(distance(params, x[1:], y[1:]), both[1:], rtol=1e-5)


@pytest.mark.slow
def test_half_precision_images_are_compared_in_float32():
    model, params, x, y = build()
    x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    taps, half = (
        jax.jit(lambda x: model.apply(params, x, method="features"))(x),
        jax.jit(model.apply)(params, x, y),
    )
    assert {tap.dtype for tap in taps} | {half.dtype} == {jnp.dtype("float32")}
    exact = jax.jit(model.apply)(params, x.astype(jnp.float32), y.astype(jnp.float32))
    np.testing.assert_array_equal(half, exact)


@pytest.mark.slow
def test_gradients_are_finite_everywhere_and_point_downhill():
    model, params, x, y = build()
    value_and_grad = jax.jit(
        jax.value_and_grad(lambda p, x, y: model.apply(p, x, y).sum(), argnums=(0, 1))
    )

    def gradients(params, x, y):
        value, (of_params, of_image) = value_and_grad(params, x, y)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((of_params, of_image)))
        return value, of_image

    assert np.abs(gradients(params, x, x)[1]).max() == 0.0
    assert np.abs(gradients(params, x, jnp.full_like(x, 0.2))[1]).max() > 0
    # Biases so low that no unit of a slice answers: the norm is zero at every place.
    dead = jax.tree.map(lambda leaf: leaf, params)
    dead["params"]["conv3_3"]["bias"] = jnp.full_like(dead["params"]["conv3_3"]["bias"], -1e3)
    assert not np.any(model.apply(dead, x, method="features")[2])
    gradients(dead, x, y)
    # And units that answer a little: squares that underflow to zero, or nearly.
    for scale in (1e-12, 1e-20, 1e-25):
        faint = jax.tree.map(lambda leaf, scale=scale: leaf * scale, params)
        gradients(faint, x, y)
    value, slope = gradients(params, x, y)
    assert gradients(params, x - 0.05 * slope / jnp.abs(slope).max(), y)[0] < value


@pytest.mark.parametrize("trunk,least", [("vgg16", 16), ("alexnet", 31)])
def test_the_smallest_image_it_takes(trunk, least):
    model = LPIPS(PRESETS[trunk])

    def taps(side):
        x = jax.ShapeDtypeStruct((1, side, 64, 3), jnp.float32)
        params = jax.eval_shape(
            model.init, jax.random.key(0), *[jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)] * 2
        )
        return jax.eval_shape(lambda p, x: model.apply(p, x, method="features"), params, x)

    assert model.config.least_side == least
    assert taps(least)[-1].shape[1] == 1
    with pytest.raises(UserError, match=f"at least {least}x{least}"):
        taps(least - 1)


def test_what_cannot_be_compared_or_built():
    model, params, x, y = build()
    with pytest.raises(UserError, match=r"\(2, 32, 32, 3\) and \(1, 32, 32, 3\)"):
        model.apply(params, x, y[:1])
    with pytest.raises(UserError, match="'vgg19' is not one of vgg16, alexnet"):
        LPIPSConfig(trunk="vgg19")
    with pytest.raises(UserError, match="one entry a slice, 5"):
        LPIPSConfig(widths=(8, 16))
