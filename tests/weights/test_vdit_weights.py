"""Conversion of the public STDiT2 and PixArt-alpha: outputs equal the reference's, and STDiT2
converts back bit for bit."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import linen as nn

from xgen_jax.diffusion.config import GuidanceConfig
from xgen_jax.diffusion.guidance import combine
from xgen_jax.errors import UserError
from xgen_jax.models.vdit import (
    MicroConditions,
    VDiT,
    abstract_variables,
    null_caption,
    unstack_layers,
)
from xgen_jax.models.vdit_config import PRESETS
from xgen_jax.nn.norms import RMSNorm, layer_norm
from xgen_jax.nn.positions import rotary, sinusoid, sinusoid_2d
from xgen_jax.weights.safetensors import read_safetensors
from xgen_jax.weights.vdit import NAMES, load_vdit, stdit2_tensors, write_stdit2

FOLDER = pathlib.Path(__file__).parents[1] / "goldens"
GOLDEN = json.loads((FOLDER / "stdit2.json").read_text())
with np.load(FOLDER / "stdit2.npz") as file:
    ARRAYS = dict(file)
TENSORS = {
    name.removeprefix("params/"): x for name, x in ARRAYS.items() if name.startswith("params/")
}
PIXART = {name: TENSORS[name] for name in GOLDEN["pixart"]["shared"]}
PIXART["x_embedder.proj.weight"] = PIXART["x_embedder.proj.weight"][:, :, 0]


@functools.cache
def stdit2(norm):
    """The STDiT2 of the golden: (kind of norm) -> network."""
    tensors = (
        TENSORS if norm == "qknorm" else {n: x for n, x in TENSORS.items() if "_norm." not in n}
    )
    config, _, params, _ = load_vdit("stdit2", tensors)
    assert config.qk_norm == (norm == "qknorm")
    return dataclasses.replace(config, remat="none"), params


def inputs(case):
    """A golden's inputs as our network takes them."""
    x, text, mask, time, frames, height, width, aspect, fps, frame_mask = (
        ARRAYS.get(f"in/{case}/{name}")
        for name in (
            "x",
            "y",
            "mask",
            "timestep",
            "num_frames",
            "height",
            "width",
            "ar",
            "fps",
            "x_mask",
        )
    )
    clip = MicroConditions(height, width, aspect, frames, fps)
    return (
        rearrange(x, "b c t h w -> b t h w c"),
        time,
        text[:, 0],
        None if mask is None else mask > 0,
        clip,
        frame_mask,
    )


def assert_golden(got, name, wanted=None):
    wanted = ARRAYS[f"out/{name}"] if wanted is None else wanted
    # The golden's own tolerance, or the 1e-4 of the largest value where that is tighter.
    atol = min(GOLDEN["atol"][name], 1e-4 * np.abs(wanted).max())
    np.testing.assert_allclose(got, wanted, atol=atol, rtol=0, err_msg=name)


CASES = [
    (case, norm)
    for case in ("a", "odd", "img", "long", "xmask", "notextmask")
    for norm in ("qknorm", "noqknorm")
]
# The rest differs from these in shapes only, and takes a compilation each.
QUICK = {("odd", "qknorm"), ("xmask", "qknorm"), ("xmask", "noqknorm"), ("notextmask", "noqknorm")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case,norm",
    [pytest.param(*c, marks=() if c in QUICK else pytest.mark.slow, id="-".join(c)) for c in CASES],
)
def test_outputs_are_those_of_stdit2(case, norm):
    config, params = stdit2(norm)
    got = jax.jit(VDiT(config).apply)(params, *inputs(case))
    assert_golden(rearrange(got, "b t h w c -> b c t h w"), f"{case}/{norm}")


@pytest.mark.parametrize(
    "case,norm", [("a", "qknorm"), pytest.param("a", "noqknorm", marks=pytest.mark.slow)]
)
def test_every_layer_gives_what_that_of_stdit2_gives(case, norm):
    config, params = stdit2(norm)
    model = VDiT(dataclasses.replace(config, scan_layers=False))

    @jax.jit
    def layers(params, *inputs):
        """Output, and {path: (arguments, output)} of every submodule."""
        record = {}

        def note(call, args, kwargs, context):
            out = call(*args, **kwargs)
            if context.method_name == "__call__":
                record["/".join(context.module.path)] = jax.tree.leaves(args), out
            return out

        with nn.intercept_methods(note):
            out = model.apply(params, *inputs)
        return out, record

    out, record = layers(unstack_layers(params, config.depth), *inputs(case))
    assert_golden(rearrange(out, "b t h w c -> b c t h w"), f"{case}/{norm}")
    tokens, t6, t3 = record["blocks_0"][0][:3]
    block = record["blocks_0/block"]
    space, time, text = (
        record[f"blocks_0/block/attention_{name}"] for name in ("space", "time", "text")
    )
    got = {
        "tokens_in": rearrange(tokens, "b t s d -> b (t s) d"),
        "t_spc_mlp": rearrange(t6, "b 1 n d -> b (n d)"),
        "t_tmp_mlp": rearrange(t3, "b 1 n d -> b (n d)"),
        "block0_spatial_attn_in": rearrange(space[0][0], "b t s d -> (b t) s d"),
        "block0_spatial_attn_out": rearrange(space[1], "b t s d -> (b t) s d"),
        "block0_temporal_attn_in": rearrange(time[0][0], "b s t d -> (b s) t d"),
        "block0_temporal_attn_out": rearrange(time[1], "b s t d -> (b s) t d"),
        "block0_cross_attn_out": rearrange(text[1], "b t s d -> b (t s) d"),
        "block0": rearrange(block[1], "b t s d -> b (t s) d"),
        "block1": rearrange(record["blocks_1/block"][1], "b t s d -> b (t s) d"),
    }
    for name, value in got.items():
        if f"out/{case}/{norm}/{name}" in ARRAYS:
            assert_golden(value, f"{case}/{norm}/{name}")
    if norm == "qknorm":
        assert_golden(record["y_embedder2"][1][:, None], "y_embedder_a")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,norm",
    [("channel_3_xmask", "noqknorm")]
    + [pytest.param("channel_3", norm, marks=pytest.mark.slow) for norm in ("qknorm", "noqknorm")]
    + [pytest.param("channel_3_xmask", "qknorm", marks=pytest.mark.slow)],
)
def test_the_null_caption_is_the_stored_one_under_the_prompts_mask(name, norm):
    config, params = stdit2(norm)
    x, time, text, mask, clip, frame_mask = inputs("cfg")
    null = np.broadcast_to(null_caption(params), text.shape)
    frame_mask = frame_mask if "xmask" in name else None
    args = jax.tree.map(lambda a: np.concatenate([a, a]), (x, time, text, mask, clip, frame_mask))
    got = jax.jit(VDiT(config).apply)(params, *args[:2], np.concatenate([text, null]), *args[3:])
    # Channels that guidance leaves alone are each half's own.
    wanted = ARRAYS[f"out/cfg/{norm}/{name}"][:, 3:]
    assert_golden(rearrange(got, "b t h w c -> b c t h w")[:, 3:], f"cfg/{norm}/{name}", wanted)
    # Both halves have the guided output; ours is the half of the condition.
    conditional, unconditional = np.split(got[..., :4], 2)
    for channels in (3, None) if frame_mask is None else (3,):
        case = f"cfg/{norm}/{name.replace('3', str(channels), 1)}"
        guided = combine(conditional, unconditional, 7.0, GuidanceConfig(channels=channels))
        assert_golden(
            rearrange(guided, "b t h w c -> b c t h w"), case, ARRAYS[f"out/{case}"][: len(x), :4]
        )


def test_embeddings_and_norms_are_those_of_stdit2():
    _, params = stdit2("qknorm")
    scalars, p = ARRAYS["in/scalars"], params["params"]
    assert_golden(sinusoid(scalars, 256), "sinusoid_256")
    names = {"t": "t", "csize": "size", "ar": "aspect", "fl": "frames", "fps": "fps"}
    for theirs, ours in names.items():
        h = sinusoid(scalars, 256)
        first, second = p[f"{ours}_embedder1"], p[f"{ours}_embedder2"]
        h = (
            nn.silu(h @ first["kernel"] + first["bias"][None]) @ second["kernel"]
            + second["bias"][None]
        )
        assert_golden(h, f"{theirs}_embedder")
    assert_golden(layer_norm(jnp.asarray(ARRAYS["in/small_d"])), "layernorm_small")
    scale = p["blocks"]["block"]["attention_space"]["q_norm"]["scale"][0]
    got = RMSNorm().apply({"params": {"scale": scale}}, ARRAYS["in/small_head"])
    assert_golden(got, "rmsnorm_small")


@pytest.mark.parametrize("frames", [3, 17])
def test_rotary_positions_are_those_of_stdit2(frames):
    q = ARRAYS[f"in/rope_q_{frames}"]
    got = rotary(jnp.asarray(rearrange(q, "b k n c -> b n k c")), jnp.arange(frames))
    assert_golden(rearrange(got, "b n k c -> b k n c"), f"rope_rotated_{frames}")


@pytest.mark.parametrize(
    "height,width,scale,base,name",
    [
        (3, 5, 1.0, None, "pos_3x5_scale1_baseNone"),
        (4, 7, 1.21875, 5, "pos_4x7_scale1.219_base5"),
        (6, 4, 0.5, 5, "pos_6x4_scale0.5_base5"),
    ],
)
@pytest.mark.parametrize("traced", [False, True])
def test_places_are_those_of_stdit2(height, width, scale, base, name, traced):
    scales = (
        (1 / scale, 1 / scale) if base is None else (base / scale / height, base / scale / width)
    )
    table = (
        jax.jit(lambda s: sinusoid_2d(height, width, 144, scales=s))(scales)
        if traced
        else sinusoid_2d(height, width, 144, scales=scales)
    )
    assert_golden(table[None], name)


@pytest.mark.parametrize("norm", ["qknorm", "noqknorm"])
def test_there_and_back_is_bit_for_bit(norm, tmp_path):
    config, params = stdit2(norm)
    tensors = read_safetensors(write_stdit2(tmp_path / "stdit2.safetensors", config, params))
    wanted = {n: x for n, x in TENSORS.items() if norm == "qknorm" or "_norm." not in n}
    assert tensors.keys() == wanted.keys()
    for name, tensor in tensors.items():
        if name == "rope.freqs":  # fixed, and computed by ours
            np.testing.assert_allclose(tensor, wanted[name], rtol=1e-6)
        else:
            np.testing.assert_array_equal(tensor, wanted[name], err_msg=name)
    again = load_vdit("stdit2", tensors)
    assert dataclasses.replace(again.config, remat="none") == config and again.new == ()
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


def test_only_the_released_form_goes_back():
    config, params = stdit2("qknorm")
    with pytest.raises(UserError, match="opensora_compat=True"):
        stdit2_tensors(dataclasses.replace(config, opensora_compat=False), params)


def diffusers_names(tensors):
    """PixArt-alpha's tensors under the names that diffusers gives them."""
    out = {}
    for name, tensor in tensors.items():
        block = ""
        if name.startswith("blocks."):
            _, block, name = name.split(".", 2)
            block = f"transformer_blocks.{block}."
        layer, _, suffix = name.rpartition(".")
        if suffix == "scale_shift_table":
            out[f"{block}scale_shift_table"] = tensor
            continue
        found = next(
            (d for ours, o, d in NAMES if o == layer and ours.startswith("blocks") == bool(block)),
            "",
        )
        parts = (found,) * bool(found) if isinstance(found, str) else found
        for part, value in zip(parts, np.split(tensor, len(parts)) if parts else ()):
            out[f"{block}{part}.{suffix}"] = value
    return out


def test_diffusers_names_are_those_of_its_pixart_transformer():
    # Written out, as its checkpoints have them: `diffusers_names` above knows only what the
    # converter does.
    top = ("pos_embed.proj", "adaln_single.linear", "proj_out", "caption_projection.linear_1")
    top += ("caption_projection.linear_2", "adaln_single.emb.timestep_embedder.linear_1")
    top += (
        "adaln_single.emb.timestep_embedder.linear_2",
        "adaln_single.emb.resolution_embedder.linear_1",
    )
    top += (
        "adaln_single.emb.resolution_embedder.linear_2",
        "adaln_single.emb.aspect_ratio_embedder.linear_1",
    )
    top += ("adaln_single.emb.aspect_ratio_embedder.linear_2",)
    block = [f"attn{n}.{part}" for n in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")]
    block += ["ff.net.0.proj", "ff.net.2"]
    layers = [*top, *(f"transformer_blocks.{n}.{layer}" for n in (0, 1) for layer in block)]
    wanted = {f"{layer}.{suffix}" for layer in layers for suffix in ("weight", "bias")}
    wanted |= {"scale_shift_table", *(f"transformer_blocks.{n}.scale_shift_table" for n in (0, 1))}
    assert diffusers_names(PIXART).keys() == wanted


FRESH = {
    "t_block_temporal",
    *(f"{name}_embedder{n}" for name in ("frames", "fps") for n in (1, 2)),
    "blocks/block/scale_shift_table_temporal",
    *(f"blocks/block/attention_time/{name}" for name in ("qkv", "proj", "q_norm", "k_norm")),
    *(f"blocks/block/attention_space/{name}" for name in ("q_norm", "k_norm")),
}
SIZES = {f"{name}_embedder{n}" for name in ("size", "aspect") for n in (1, 2)}


def leaves(tree):
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").partition("/")[2]: leaf
        for path, leaf in found
    }


@pytest.mark.parametrize("style", ["original", "diffusers", "without sizes"])
def test_an_image_network_gives_the_spatial_layers_and_the_rest_is_initialised(style):
    tensors, new = PIXART, set(FRESH)
    if style == "diffusers":
        tensors = diffusers_names(PIXART)
        new |= {"null_caption"}
    if style == "without sizes":
        tensors = {name: x for name, x in PIXART.items() if not name.startswith(("csize", "ar_"))}
        new |= SIZES
    made = load_vdit(
        "pixart", {**tensors, "pos_embed": np.zeros((1, 4, 144), np.float32)}, text_tokens=20
    )
    assert set(made.new) == new
    assert not made.config.opensora_compat and made.config.qk_norm and made.config.heads == 2
    whole = leaves(stdit2("qknorm")[1])
    for path, leaf in leaves(made.params).items():
        layer = path.rpartition("/")[0] if path.endswith(("kernel", "bias", "scale")) else path
        if layer in new:
            assert np.isfinite(leaf).all()
        elif layer == "null_caption":
            assert leaf.shape == (20, 32)
            np.testing.assert_array_equal(leaf[:12], whole[path])
            np.testing.assert_array_equal(leaf[12:], np.repeat(whole[path][-1:], 8, 0))
        else:
            np.testing.assert_array_equal(leaf, whole[path], err_msg=path)
    block = made.params["params"]["blocks"]["block"]
    # A video starts as images that know nothing of another.
    assert not block["attention_time"]["proj"]["kernel"].any()
    assert np.all(block["attention_space"]["q_norm"]["scale"] == 1)
    assert np.std(block["attention_time"]["qkv"]["kernel"]) > 0.01
    again = load_vdit("pixart", tensors, text_tokens=20, seed=1).params["params"]["blocks"][
        "block"
    ]["attention_time"]
    assert np.abs(again["qkv"]["kernel"] - block["attention_time"]["qkv"]["kernel"]).max() > 0.01


def test_a_shorter_null_caption_is_cut_and_qk_norm_can_be_left_out():
    made = load_vdit("pixart", PIXART, text_tokens=5, qk_norm=False)
    np.testing.assert_array_equal(null_caption(made.params), TENSORS["y_embedder.y_embedding"][:5])
    assert "q_norm" not in made.params["params"]["blocks"]["block"]["attention_space"]


def test_every_tensor_of_the_published_size_has_its_place():
    config = dataclasses.replace(PRESETS["VDiT-XL/2"], opensora_compat=True)
    # 707 tensors, less the frequencies; ours are stacked over 28 blocks.
    per_block = 24 * (config.depth - 1)
    assert len(jax.tree.leaves(abstract_variables(config))) == 706 - per_block


def test_everything_that_does_not_fit_is_listed():
    tensors = dict(TENSORS)
    del tensors["t_block.1.bias"], tensors["blocks.1.attn_temp.proj.weight"]
    tensors["blocks.0.mlp.fc2.weight"] = tensors["blocks.0.mlp.fc2.weight"][:, :6]
    tensors["blocks.0.extra.weight"] = np.zeros((2, 3), np.float32)
    with pytest.raises(UserError) as error:
        load_vdit("stdit2", tensors, origin="some.safetensors")
    for part in (
        "some.safetensors does not fit",
        "missing, 2:",
        "t_block.1.bias, for params/t_block/bias (864,)",
        "blocks.1.attn_temp.proj.weight, for params/blocks/block/attention_time/proj/kernel (2, "
        "144, 144)",
        "extra, 1:\n  blocks.0.extra.weight (2, 3)",
        "mis-shaped, 1:\n  blocks.0.mlp.fc2.weight (144, 6) and blocks.1.mlp.fc2.weight (144, 576)",
    ):
        assert part in str(error.value), part


def without(*parts):
    return {name: x for name, x in TENSORS.items() if not any(part in name for part in parts)}


@pytest.mark.parametrize(
    "kind,tensors,config,message",
    [
        (
            "stdit3",
            TENSORS,
            None,
            r"kind='stdit3' is not known \(did you mean 'stdit2'\?\); choose one of stdit2, pixart",
        ),
        ("stdit2", PIXART, None, "not an STDiT2.*--kind=pixart"),
        ("pixart", TENSORS, None, "a network of videos.*--kind=stdit2"),
        (
            "pixart",
            {"a": np.zeros(1)},
            None,
            "kind=pixart: it has no x_embedder.proj.weight [(]a[)]",
        ),
        ("stdit2", TENSORS, {"num_heads": 5}, "width 144, which cannot be that of 5 heads"),
        (
            "stdit2",
            {**TENSORS, "rope.freqs": TENSORS["rope.freqs"] * 2},
            None,
            "turns positions by other frequencies",
        ),
        ("stdit2", without("t_embedder"), None, "missing, 4:"),
    ],
)
def test_what_is_not_known_is_refused(kind, tensors, config, message):
    with pytest.raises(UserError, match=message):
        load_vdit(kind, tensors, config)
