"""Foreign autoencoders: outputs equal those of their own code, at odd lengths and sizes too."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from einops import rearrange

from xgen_jax.errors import UserError
from xgen_jax.inference.divide_and_merge import divide_and_merge
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.weights.foreign_config import read_config
from xgen_jax.weights.vidvae import load_vidvae

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


def golden(name):
    with np.load(GOLDENS / f"{name}.npz") as file:
        arrays = dict(file)
    tensors = {
        key.removeprefix("params/"): array
        for key, array in arrays.items()
        if key.startswith("params/")
    }
    return arrays, tensors, json.loads((GOLDENS / f"{name}.json").read_text())["atol"]


OSP, OSP_TENSORS, OSP_ATOL = golden("osp_causalvae")
SD, SD_TENSORS, SD_ATOL = golden("sd_vae_inflation")
PLACES = {"p01": (True, True, False, False), "p12": (False, True, True, False)}


def osp(layout, norm, place="p01"):
    """The variant of the golden's CausalVAE with a layout, norm and place of the time levels."""
    names = {"bug": "AttnBlock3D", "fix": "AttnBlock3DFix"}
    config = {
        "encoder_attention": names[layout],
        "decoder_attention": names[layout],
        "encoder_temporal_downsample": [
            "TimeDownsample2x" if there else "" for there in PLACES[place]
        ],
    }
    config, params = load_vidvae("osp-vae", OSP_TENSORS, config)
    return VidVAE(
        dataclasses.replace(config, norm={"time": "group", "frame": "group_per_frame"}[norm])
    ), params


def last(x):
    return rearrange(x, "b c t h w -> b t h w c")


def moments(model, params, video):
    posterior, _ = jax.jit(lambda p, x: model.apply(p, x, method="encode"))(params, video)
    return np.concatenate(posterior, axis=-1)


def decode(model, params, z):
    return jax.jit(lambda p, z: model.apply(p, z, method="decode")[0])(params, z)


def assert_golden(got, arrays, name, atol):
    wanted = last(arrays[f"out/{name}"])
    # The bound, 1e-4 of the largest value, is looser than these everywhere.
    np.testing.assert_allclose(got, wanted, atol=atol[name], rtol=0, err_msg=name)
    assert atol[name] <= 1e-4 * np.abs(wanted).max()


OSP_CASES = [
    (clip, layout, norm, place)
    for layout, norm in (("bug", "time"), ("fix", "time"), ("fix", "frame"))
    for place in PLACES
    for clip in ("t1", "t5", "t9", "t17", "t4", "t8", "odd", "dim")
]
# The rest takes a minute of compilation and differs from these in shapes only.
QUICK = {("dim", "bug", "time", "p01"), ("t8", "bug", "time", "p01"), ("t9", "bug", "time", "p12")}
QUICK |= {
    ("odd", "fix", "time", "p12"),
    ("t17", "fix", "frame", "p01"),
    ("t1", "fix", "frame", "p12"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=() if c in QUICK else pytest.mark.slow, id="_".join(c))
        for c in OSP_CASES
    ],
)
def test_open_sora_plans_moments(case):
    clip, layout, norm, place = case
    got = moments(*osp(layout, norm, place), last(OSP[f"in/x_{clip}"]))
    assert_golden(got, OSP, f"moments_{clip}_{layout}_{norm}_{place}", OSP_ATOL)


@pytest.mark.slow
@pytest.mark.parametrize("layout,norm", [("bug", "time"), ("fix", "time"), ("fix", "frame")])
@pytest.mark.parametrize(
    "z", ["t3", *(pytest.param(z, marks=pytest.mark.slow) for z in ("t1", "t2", "t5"))]
)
def test_open_sora_plans_decoder(z, layout, norm):
    assert_golden(
        decode(*osp(layout, norm), last(OSP[f"in/z_{z}"])),
        OSP,
        f"decode_{z}_{layout}_{norm}",
        OSP_ATOL,
    )


@pytest.mark.slow
def test_open_sora_plans_round_trip():
    model, params = osp("bug", "time")
    mean = moments(model, params, last(OSP["in/x_t9"]))[..., :4]
    assert_golden(mean, OSP, "mode_t9_bug_time_p01", OSP_ATOL)
    assert_golden(decode(model, params, mean), OSP, "recon_t9_bug_time_p01", OSP_ATOL)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout,norm", [("bug", "time"), pytest.param("fix", "frame", marks=pytest.mark.slow)]
)
def test_divide_and_merge_has_open_sora_plans_windows(layout, norm):
    model, params = osp(layout, norm)
    got = divide_and_merge(lambda x: moments(model, params, x), last(OSP["in/x_win"]), 5, "drop")
    assert_golden(got, OSP, f"win_moments_{layout}_{norm}_p01", OSP_ATOL)
    got = divide_and_merge(lambda z: decode(model, params, z), last(OSP["in/z_win"]), 2, "drop")
    assert_golden(got, OSP, f"win_decode_{layout}_{norm}_p01", OSP_ATOL)


@pytest.mark.slow
@pytest.mark.parametrize("image", ["a", pytest.param("b", marks=pytest.mark.slow), "dim"])
def test_an_image_is_encoded_and_decoded_as_by_the_2d_model(image):
    config, params = load_vidvae("sd-vae", SD_TENSORS)
    model, frame = VidVAE(config), rearrange(SD[f"in/image_{image}"], "b c h w -> b 1 h w c")
    got = moments(model, params, frame)
    wanted = rearrange(SD[f"out/moments2d_{image}"], "b c h w -> b 1 h w c")
    np.testing.assert_allclose(got, wanted, atol=SD_ATOL[f"moments2d_{image}"], rtol=0)
    wanted = rearrange(SD[f"out/recon2d_{image}"], "b c h w -> b 1 h w c")
    np.testing.assert_allclose(
        decode(model, params, got[..., :4]), wanted, atol=SD_ATOL[f"recon2d_{image}"], rtol=0
    )


@pytest.mark.slow
def test_every_frame_of_a_static_video_is_encoded_and_decoded_as_by_the_2d_model():
    config, params = load_vidvae("sd-vae", SD_TENSORS)
    model, frame = VidVAE(config), rearrange(SD["in/image_dim"], "b c h w -> b 1 h w c")
    got = moments(model, params, np.repeat(frame, 9, axis=1))
    image = rearrange(SD["out/moments2d_dim"], "b c h w -> b 1 h w c")
    np.testing.assert_allclose(
        got, np.repeat(image, 3, axis=1), atol=SD_ATOL["moments2d_dim"], rtol=0
    )
    image = rearrange(SD["out/recon2d_dim"], "b c h w -> b 1 h w c")
    video = decode(model, params, got[..., :4])
    np.testing.assert_allclose(
        video, np.repeat(image, 9, axis=1), atol=SD_ATOL["recon2d_dim"], rtol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("clip", ["v5", pytest.param("v9", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "norm,layout",
    [
        ("group", "released"),
        pytest.param("group_per_frame", "per_frame", marks=pytest.mark.slow),
    ],
)
def test_an_inflated_model_on_a_moving_video(clip, norm, layout):
    # An image does not show the order of the taps in time; this does.
    config, params = load_vidvae("sd-vae", SD_TENSORS)
    model = VidVAE(
        dataclasses.replace(config, norm=norm, attention_layout=layout, time_up="trilinear")
    )
    name = f"{clip}_{'bug_time' if norm == 'group' else 'fix_frame'}"
    got = moments(model, params, last(SD[f"in/video_{clip}"]))
    assert_golden(got, SD, f"moments3d_{name}", SD_ATOL)
    assert_golden(decode(model, params, got[..., :4]), SD, f"recon3d_{name}", SD_ATOL)


def same(tensors, config=None, kind="sd-vae", expected=None):
    """Check that tensors under other names make the model of the golden's tensors."""
    _, wanted = expected or load_vidvae(kind, SD_TENSORS)
    _, got = load_vidvae(kind, tensors, config)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_the_names_that_the_public_file_still_has_are_read():
    # sd-vae-ft-mse was written before diffusers renamed its attention.
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in SD_TENSORS.items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        tensors[name] = tensor
    assert tensors.keys() != SD_TENSORS.keys()
    same(tensors)


def test_a_model_without_quant_layers_passes_moments_through():
    tensors = {name: x for name, x in SD_TENSORS.items() if "quant" not in name}
    _, params = load_vidvae("sd-vae", tensors)
    np.testing.assert_array_equal(params["params"]["encoder"]["quant"]["kernel"], np.eye(8))
    np.testing.assert_array_equal(params["params"]["decoder"]["post_quant"]["bias"], np.zeros(4))


def test_everything_that_does_not_fit_is_listed():
    tensors = dict(SD_TENSORS)
    del tensors["encoder.conv_in.bias"], tensors["decoder.up_blocks.2.resnets.1.conv2.weight"]
    tensors["encoder.conv_out.weight"] = tensors["encoder.conv_out.weight"][:6]
    tensors["decoder.extra.weight"] = np.zeros((2, 3), np.float32)
    with pytest.raises(UserError) as error:
        load_vidvae("sd-vae", tensors, origin="some.safetensors")
    for part in (
        "some.safetensors does not fit",
        "missing, 2:",
        "encoder.conv_in.bias, for params/encoder/conv_in/bias (32,)",
        "decoder.up_blocks.2.resnets.1.conv2.weight, for "
        "params/decoder/level1/block1/conv2/kernel (3, 3, 3, 64, 64)",
        "extra, 1:\n  decoder.extra.weight (2, 3)",
        "mis-shaped, 1:\n  encoder.conv_out.weight (6, 64, 3, 3): becomes (3, 3, 3, 64, 6), "
        "wanted (3, 3, 3, 64, 8)",
    ):
        assert part in str(error.value), part


@pytest.mark.parametrize(
    "kind,tensors,config,message",
    [
        ("sd", SD_TENSORS, None, "kind='sd' is not known; choose one of sd-vae, osp-vae"),
        (
            "sd-vae",
            {"a": np.zeros(1)},
            None,
            r"not an autoencoder of this kind: it has no encoder.down.*\(a\)",
        ),
        ("osp-vae", SD_TENSORS, None, "has diffusers' names.*try --kind=sd-vae"),
        (
            "osp-vae",
            OSP_TENSORS,
            {"encoder_attention": "LinAttnBlock"},
            "LinAttnBlock.*is not known",
        ),
    ],
)
def test_what_is_not_known_is_refused(kind, tensors, config, message):
    with pytest.raises(UserError, match=message):
        load_vidvae(kind, tensors, config)


def test_version_1_1_is_recognised_by_its_tensors():
    """Version 1.1 mixes pool and convolution, and its first levels mix no frames."""
    rng, tensors = np.random.default_rng(0), {}
    for name, tensor in OSP_TENSORS.items():
        if name.startswith(("encoder.down.0.block", "encoder.down.1.block", "encoder.conv_in")):
            name, tensor = (
                name.replace(".conv.", "."),
                tensor[:, :, -1] if tensor.ndim == 5 else tensor,
            )
        tensors[name] = tensor
    for at, infix in (
        ("encoder.down.1.time_downsample", ""),
        ("encoder.down.2.time_downsample", ""),
    ) + (
        ("decoder.up.2.time_upsample", "conv."),
        ("decoder.up.3.time_upsample", "conv."),
    ):
        width = 64 if at.startswith("decoder.up.3") else 32
        tensors[f"{at}.mix_factor"] = rng.standard_normal(1).astype(np.float32)
        tensors[f"{at}.conv.{infix}weight"] = rng.standard_normal((width, width, 3, 3, 3)).astype(
            np.float32
        )
        tensors[f"{at}.conv.{infix}bias"] = rng.standard_normal(width).astype(np.float32)
    config, params = load_vidvae("osp-vae", tensors)
    assert (config.time_down, config.time_up_convolution, config.flat_levels) == (
        "convolution",
        True,
        2,
    )
    assert config.time_reduction == config.time_expansion == (False, True, True, False)
    down = params["params"]["encoder"]["level1"]
    np.testing.assert_array_equal(
        down["time_conv"]["kernel"],
        rearrange(tensors["encoder.down.1.time_downsample.conv.weight"], "o i ... -> ... i o"),
    )
    assert down["time_mix"]["mix"] == tensors["encoder.down.1.time_downsample.mix_factor"][0]
    assert down["block0"]["conv1"]["kernel"].shape[0] == 1


def test_a_configuration_that_is_no_json_is_named(tmp_path):
    assert read_config(tmp_path) == {}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is not JSON"):
        read_config(tmp_path / "model.safetensors")
