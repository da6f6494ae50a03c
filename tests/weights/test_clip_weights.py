"""A CLIP's folder and an aesthetic predictor's file: every layout is read, others are refused."""

import json

import jax
import numpy as np
import pytest
import tiny_clip

from xgen_jax.errors import UserError
from xgen_jax.weights.clip import load_aesthetic_head, load_clip_vision
from xgen_jax.weights.safetensors import write_safetensors

CONFIG = tiny_clip.ABOUT["config"]
CLASS = "vision_model.embeddings.class_embedding"
FC1 = "vision_model.encoder.layers.1.mlp.fc1.weight"
QUERY = "vision_model.encoder.layers.0.self_attn.q_proj.weight"


def test_every_tensor_goes_to_its_place(tmp_path, capsys):
    model, params = load_clip_vision(tiny_clip.write(tmp_path / "clip"))
    held, tree = tiny_clip.tensors(), params["params"]
    assert sum(x.size for x in jax.tree.leaves(tree)) == sum(x.size for x in held.values())
    width = model.config.width
    np.testing.assert_array_equal(tree["blocks"]["mlp"]["fc1"]["kernel"][1], held[FC1].T)
    qkv = tree["blocks"]["attention"]["qkv"]["kernel"]
    for part, name in enumerate("qkv"):
        np.testing.assert_array_equal(
            qkv[0][:, part * width : (part + 1) * width],
            held[QUERY.replace("q_proj", f"{name}_proj")].T,
        )
    assert capsys.readouterr().err == ""


def test_a_whole_clip_gives_its_vision_tower(tmp_path, capsys):
    model, params = load_clip_vision(tiny_clip.write(tmp_path / "tower"))
    vision = {name: value for name, value in CONFIG.items() if name != "projection_dim"}
    config = {
        "model_type": "clip",
        "projection_dim": CONFIG["projection_dim"],
        "logit_scale_init_value": 2.6592,
        "text_config": {"hidden_size": 8},
        # The inner length is that of the transformers library's default, and not used.
        "vision_config": {**vision, "projection_dim": 512, "torchscript": False, "top_k": 50},
    }
    others = {
        "text_model.encoder.layers.0.mlp.fc1.weight": np.ones((3, 2), np.float32),
        "text_projection.weight": np.ones((2, 2), np.float32),
        "logit_scale": np.array(4.6, np.float32),
        "vision_model.embeddings.position_ids": np.arange(17)[None],
    }
    whole, same = load_clip_vision(tiny_clip.write(tmp_path / "whole", config, **others))
    assert whole.config == model.config
    jax.tree.map(np.testing.assert_array_equal, params, same)
    assert capsys.readouterr().err == ""


def test_half_precision_is_read_as_float32(tmp_path):
    _, params = load_clip_vision(tiny_clip.write(tmp_path / "a"))
    half = {name: x.astype(np.float16) for name, x in tiny_clip.tensors().items()}
    _, same = load_clip_vision(tiny_clip.write(tmp_path / "b", **half))
    assert {x.dtype for x in jax.tree.leaves(same)} == {np.dtype(np.float32)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), params, same)


def test_every_wrong_tensor_is_listed(tmp_path):
    changes = {
        CLASS: None,
        FC1: tiny_clip.tensors()[FC1][:-1],
        QUERY: np.full_like(tiny_clip.tensors()[QUERY], np.nan),
        "vision_model.extra": np.ones(2, np.float32),
    }
    with pytest.raises(UserError) as raised:
        load_clip_vision(tiny_clip.write(tmp_path / "clip", **changes))
    lines = str(raised.value).splitlines()
    assert f"  {CLASS}, for params/class_token (32,)" in lines
    assert "  vision_model.extra (2,)" in lines and f"  {QUERY}" in lines
    (line,) = (line for line in lines if FC1 in line)
    assert line.endswith("for params/blocks/mlp/fc1/kernel")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, r"hidden_act='gelu': must be 'quick_gelu'"),
        ({"model_type": "siglip"}, r"a 'siglip' model; wanted 'clip' or 'clip_vision_model'"),
        ({"num_channels": 4}, r"num_channels=4: must be 3"),
        ({"hidden_size": "32"}, r"hidden_size='32'; it must be an integer of 1 or more"),
        ({"layer_norm_eps": None}, r"layer_norm_eps must be a number, not None"),
        ({"num_hidden_layers": 1}, r"extra, 16:\n  vision_model.encoder.layers.1"),
        ({"model_type": "clip", "vision_config": 3}, r"vision_config must be an object"),
    ],
)
def test_another_network_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load_clip_vision(tiny_clip.write(tmp_path / "clip", {**CONFIG, **change}))


def test_an_incomplete_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no folder .*nowhere"):
        load_clip_vision(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no config.json"):
        load_clip_vision(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle(?s:.*)torch.load"):
        load_clip_vision(tmp_path)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_head_is_its_layers_one_after_the_other(tmp_path, prefix):
    layers = tiny_clip.head()
    path = write_safetensors(tmp_path / "head.safetensors", tiny_clip.head_tensors(layers, prefix))
    weights, bias = load_aesthetic_head(path, tiny_clip.FEATURES)
    features = np.random.default_rng(1).standard_normal((4, tiny_clip.FEATURES))
    h = features
    for weight, shift in layers:
        h = h @ weight.T + shift
    assert weights.shape == (tiny_clip.FEATURES,) and weights.dtype == np.float32
    np.testing.assert_allclose(features @ weights + bias, h[:, 0], rtol=1e-5, atol=1e-5)


def test_one_file_may_hold_both_networks(tmp_path):
    layers = tiny_clip.head_tensors(tiny_clip.head())
    alone = write_safetensors(tmp_path / "head.safetensors", layers)
    folder = tiny_clip.write(tmp_path / "both", **layers)
    both, wanted = (load_aesthetic_head(path, tiny_clip.FEATURES) for path in (folder, alone))
    np.testing.assert_array_equal(both[0], wanted[0])
    assert both[1] == wanted[1]
    _, params = load_clip_vision(folder)
    _, same = load_clip_vision(tiny_clip.write(tmp_path / "clip"))
    jax.tree.map(np.testing.assert_array_equal, params, same)


def test_layers_are_ordered_by_number_not_by_name(tmp_path):
    layers = tiny_clip.head(widths=(tiny_clip.FEATURES, 4, 4, 4, 4, 4, 1))
    tensors = tiny_clip.head_tensors(layers, numbers=range(5, 11))
    path = write_safetensors(tmp_path / "head.safetensors", tensors)
    weights, bias = load_aesthetic_head(path, tiny_clip.FEATURES)
    h = np.ones(tiny_clip.FEATURES)
    for weight, shift in layers:
        h = weight @ h + shift
    np.testing.assert_allclose(weights.sum() + bias, h[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            tiny_clip.head_tensors(tiny_clip.head(widths=(7, 3, 1))),
            r"layers.0 has weight \(3, 7\) and bias \(3,\); wanted \(N, 16\) and \(N,\)",
        ),
        (
            tiny_clip.head_tensors(tiny_clip.head(widths=(16, 3)) + tiny_clip.head(widths=(4, 1))),
            r"layers.2 has weight \(1, 4\) .* wanted \(N, 3\)",
        ),
        (tiny_clip.head_tensors(tiny_clip.head(widths=(16, 2))), "one output, not 2"),
        # LAION's predictor with ReLUs.
        (
            tiny_clip.head_tensors(tiny_clip.head(), numbers=(0, 3, 6, 9, 11)),
            "layers 0, 3, 6, 9, 11, with room for activations",
        ),
        ({"layers.0.weight": np.ones((1, 16), np.float32)}, r"bias \(\); wanted"),
        ({"linear.weight": np.ones((1, 16), np.float32)}, r"not an aesthetic.* has linear.weight"),
        (
            {"layers.0.weight": np.full((1, 16), np.inf), "layers.0.bias": np.ones(1)},
            "not finite",
        ),
    ],
)
def test_another_head_is_refused(tmp_path, tensors, message):
    path = write_safetensors(tmp_path / "head.safetensors", tensors)
    with pytest.raises(UserError, match=message):
        load_aesthetic_head(path, 16)


def test_a_pickled_head_is_refused_with_what_converts_it(tmp_path):
    path = tmp_path / "sac+logos+ava1-l14-linearMSE.pth"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="is a pickle") as raised:
        load_aesthetic_head(path, 16)
    assert f'torch.load("{path.name}"' in str(raised.value)
    assert f'"{path.stem}.safetensors")' in str(raised.value)
