"""LPIPS from files: both forms, both trunks, and errors that name every wrong tensor."""

import jax
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.models.lpips import PRESETS
from xgen_jax.weights.lpips import load_lpips
from xgen_jax.weights.safetensors import write_safetensors

WIDTHS = (2, 3, 4, 4, 5)
# Layers with a kernel, in the public numbering: (slice, index, kernel side).
LAYERS = {
    "vgg16": [
        (number, index, 3)
        for number, indices in enumerate(
            ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), 1
        )
        for index in indices
    ],
    "alexnet": [(1, 0, 11), (2, 3, 5), (3, 6, 3), (4, 8, 3), (5, 10, 3)],
}


def trunk_and_heads(trunk, form):
    rng, channels, layers = np.random.default_rng(0), 3, {}
    for number, index, side in LAYERS[trunk]:
        width = WIDTHS[number - 1]
        name = f"features.{index}" if form == "torchvision" else f"net.slice{number}.{index}"
        layers[f"{name}.weight"] = rng.standard_normal((width, channels, side, side), np.float32)
        layers[f"{name}.bias"] = rng.standard_normal(width, np.float32)
        channels = width
    heads = {
        f"lin{k}.model.1.weight": rng.random((1, width, 1, 1), np.float32)
        for k, width in enumerate(WIDTHS)
    }
    return layers, heads


@pytest.mark.parametrize("trunk", LAYERS)
def test_both_forms_give_the_same_network(trunk, tmp_path):
    layers, heads = trunk_and_heads(trunk, "lpips")
    rest = {f"lins.{k}.model.1.weight": heads[f"lin{k}.model.1.weight"] for k in range(5)}
    rest |= {"scaling_layer.shift": np.zeros((1, 3, 1, 1), np.float32)}
    whole = write_safetensors(tmp_path / "lpips.safetensors", {**layers, **heads, **rest})
    model, params = load_lpips(whole)
    assert (model.config.trunk, model.config.widths) == (trunk, WIDTHS)

    layers, heads = trunk_and_heads(trunk, "torchvision")
    first = write_safetensors(
        tmp_path / "vgg.safetensors", {**layers, "classifier.0.weight": np.zeros((2, 2))}
    )
    second = write_safetensors(tmp_path / "heads.safetensors", heads)
    other, same = load_lpips([first, str(second)])
    assert other.config == model.config
    jax.tree.map(np.testing.assert_array_equal, params, same)
    with pytest.raises(
        UserError, match=r"(?s)does not fit this network\nmissing, 5:\n  lin0.model.1.weight"
    ):
        load_lpips(first)
    with pytest.raises(UserError, match=r"twice: lin0.model.1.weight, lin1"):
        load_lpips([first, second, second])

    x = np.zeros((1, 32, 32, 3), np.float32)
    assert params["params"]["head5"].shape == (5,)
    wanted = jax.eval_shape(model.init, jax.random.key(0), x, x)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, wanted)
    kernel, weight = params["params"]["conv1_1"]["kernel"], layers["features.0.weight"]
    np.testing.assert_array_equal(kernel[1, 2, 0], weight[:, 0, 1, 2])


def test_every_wrong_tensor_is_listed(tmp_path):
    layers, heads = trunk_and_heads("vgg16", "lpips")
    tensors = {**layers, **heads}
    del tensors["net.slice2.5.bias"], tensors["lin3.model.1.weight"]
    tensors["net.slice3.12.weight"] = tensors["net.slice3.12.weight"][:, :2]
    tensors["lin0.model.1.weight"] = np.ones((2, 1), np.float32)
    tensors["net.slice6.30.weight"] = np.ones((5, 5, 3, 3), np.float32)
    tensors["net.slice1.0.bias"] = np.array([np.nan, 0], np.float32)
    path = write_safetensors(tmp_path / "bad.safetensors", tensors)
    with pytest.raises(UserError) as caught:
        load_lpips(path)
    assert str(caught.value) == (
        f"{path} does not fit this network\n"
        "missing, 2:\n"
        "  net.slice2.5.bias, for params/conv2_1/bias (3,)\n"
        "  lin3.model.1.weight, for params/head4 (4,)\n"
        "extra, 1:\n"
        "  net.slice6.30.weight (5, 5, 3, 3)\n"
        "mis-shaped, 2:\n"
        "  net.slice3.12.weight (4, 2, 3, 3): becomes (3, 3, 2, 4), wanted (3, 3, 4, 4) for "
        "params/conv3_2/kernel\n"
        "  lin0.model.1.weight (2, 1): becomes (2, 1), wanted (2,) for params/head1\n"
        "not finite, 1:\n"
        "  net.slice1.0.bias"
    )


def test_another_network_is_refused_first(tmp_path):
    path = write_safetensors(
        tmp_path / "vae.safetensors", {"encoder.conv_in.weight": np.zeros((2, 3, 3, 3))}
    )
    with pytest.raises(
        UserError, match=r"vae.safetensors holds no VGG16 or AlexNet: none of its 1 tensors"
    ):
        load_lpips(path)


def test_presets_are_the_released_sizes():
    assert PRESETS["vgg16"].widths == (64, 128, 256, 512, 512)
    assert PRESETS["alexnet"].widths == (64, 192, 384, 256, 256)
