"""A foreign config.json: keys that change the network are used or refused, unknown ones named."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_t5
from flax import linen as nn

from xgen_jax.errors import UserError
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.nn.norms import GroupNorm, video_norm
from xgen_jax.weights.t5 import T5Folder
from xgen_jax.weights.vdit import load_vdit
from xgen_jax.weights.vidvae import load_vidvae

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
ABOUT_THE_FILE = {
    "_diffusers_version": "0.30.0",
    "_name_or_path": "somewhere",
    "transformers_version": "4.40.0",
}


def params(name):
    with np.load(GOLDENS / f"{name}.npz") as file:
        return {
            key.removeprefix("params/"): file[key]
            for key in file.files
            if key.startswith("params/")
        }


SD, OSP, STDIT2 = params("sd_vae_inflation"), params("osp_causalvae"), params("stdit2")
LATER = (
    "attn_temp",
    "t_block_temp",
    "fl_embedder",
    "fps_embedder",
    "scale_shift_table_temporal",
    "rope",
    "_norm.",
)
PIXART = {
    name: x[:, :, 0] if x.ndim == 5 else x
    for name, x in STDIT2.items()
    if not any(n in name for n in LATER)
}

# Keys of the public files, with the sizes of the goldens.
SD_CONFIG = {
    **ABOUT_THE_FILE,
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [32, 64, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 256,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
OSP_CONFIG = {
    "_class_name": "CausalVAEModel",
    "attn_resolutions": [],
    "double_z": True,
    "dropout": 0.0,
    "embed_dim": 4,
    "hidden_size": 32,
    "hidden_size_mult": [1, 1, 1, 2],
    "z_channels": 4,
    "in_channels": 3,
    "out_channels": 3,
    "num_res_blocks": 1,
    "resolution": 256,
    "q_conv": "CausalConv3d",
    "encoder_conv_in": "CausalConv3d",
    "encoder_attention": "AttnBlock3D",
    "decoder_attention": "AttnBlock3D",
    "encoder_mid_resnet": "ResnetBlock3D",
    "encoder_resnet_blocks": ["ResnetBlock3D"] * 4,
    "decoder_resnet_blocks": ["ResnetBlock3D"] * 4,
    "encoder_spatial_downsample": ["SpatialDownsample2x"] * 3 + [""],
    "decoder_spatial_upsample": [""] + ["SpatialUpsample2x"] * 3,
    "encoder_temporal_downsample": ["TimeDownsample2x", "TimeDownsample2x", "", ""],
    "decoder_temporal_upsample": ["", "", "TimeUpsample2x", "TimeUpsample2x"],
    "lr": 1e-5,
    "loss_type": "a.b",
    "loss_params": {"disc_start": 2001},
}
STDIT2_CONFIG = {
    **ABOUT_THE_FILE,
    "model_type": "STDiT2",
    "architectures": ["STDiT2"],
    "auto_map": {"AutoModel": "a.STDiT2"},
    "input_size": [None, None, None],
    "input_sq_size": 512,
    "in_channels": 4,
    "patch_size": [1, 2, 2],
    "hidden_size": 144,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 4.0,
    "class_dropout_prob": 0.1,
    "pred_sigma": True,
    "drop_path": 0.0,
    "no_temporal_pos_emb": False,
    "caption_channels": 32,
    "model_max_length": 12,
    "freeze": None,
    "qk_norm": True,
    "enable_flash_attn": True,
    "enable_layernorm_kernel": True,
    "torch_dtype": "float32",
}
PIXART_CONFIG = {
    **ABOUT_THE_FILE,
    "_class_name": "Transformer2DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "attention_type": "default",
    "caption_channels": 32,
    "cross_attention_dim": 144,
    "double_self_attention": False,
    "dropout": 0.0,
    "in_channels": 4,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_single",
    "num_attention_heads": 2,
    "num_embeds_ada_norm": 1000,
    "num_layers": 2,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 128,
    "upcast_attention": False,
    "use_linear_projection": False,
}
T5_CONFIG = {
    **tiny_t5.CONFIG,
    **ABOUT_THE_FILE,
    "architectures": ["T5ForConditionalGeneration"],
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "num_decoder_layers": 2,
    "output_past": True,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": True,
}


def t5(config, tmp_path):
    """The configuration that a folder with that config.json has."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    return T5Folder(tmp_path).config


# Each: (a configuration that all converters of its kind take, what converts with it).
KINDS = {
    "sd-vae": (SD_CONFIG, lambda config, _: load_vidvae("sd-vae", SD, config)[0]),
    "osp-vae": (OSP_CONFIG, lambda config, _: load_vidvae("osp-vae", OSP, config)[0]),
    "stdit2": (STDIT2_CONFIG, lambda config, _: load_vdit("stdit2", STDIT2, config).config),
    "pixart": (PIXART_CONFIG, lambda config, _: load_vdit("pixart", PIXART, config).config),
    "t5": (T5_CONFIG, t5),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_of_the_public_files_is_known(kind, tmp_path, capsys):
    config, convert = KINDS[kind]
    convert(config, tmp_path)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_that_is_not_known_is_named(kind, tmp_path, capsys):
    config, convert = KINDS[kind]
    convert({**config, "zigzag": 1, "novel_norm": True}, tmp_path)
    assert (
        "config.json are not known and are ignored: novel_norm, zigzag" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "kind,key,value",
    [
        ("sd-vae", "_class_name", "VQModel"),
        ("sd-vae", "act_fn", "relu"),
        ("sd-vae", "in_channels", 4),
        ("sd-vae", "down_block_types", ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"]),
        ("sd-vae", "up_block_types", ["AttnUpDecoderBlock2D"] * 4),
        ("sd-vae", "block_out_channels", [32, 64, 64, 128]),
        ("sd-vae", "layers_per_block", 1),
        ("sd-vae", "latent_channels", 16),
        ("sd-vae", "use_quant_conv", False),
        ("sd-vae", "use_post_quant_conv", False),
        ("sd-vae", "norm_num_groups", 0),
        ("osp-vae", "_class_name", "WFVAEModel"),
        ("osp-vae", "attn_resolutions", [16]),
        ("osp-vae", "double_z", False),
        ("osp-vae", "hidden_size", 128),
        ("osp-vae", "encoder_resnet_blocks", ["ResnetBlock3D"] * 2 + ["ResnetBlock2D"] * 2),
        ("osp-vae", "decoder_resnet_blocks", ["ResnetBlock2D"] * 4),
        ("osp-vae", "encoder_mid_resnet", "ResnetBlock2D"),
        ("osp-vae", "encoder_spatial_downsample", ["SpatialDownsample2x"] * 2 + ["", ""]),
        ("osp-vae", "decoder_spatial_upsample", [""] + ["Spatial2xTime2x3DUpsample"] * 3),
        (
            "osp-vae",
            "encoder_temporal_downsample",
            ["TimeDownsampleRes2x", "TimeDownsampleRes2x", "", ""],
        ),
        (
            "osp-vae",
            "decoder_temporal_upsample",
            ["", "", "TimeUpsampleResAdv2x", "TimeUpsampleResAdv2x"],
        ),
        ("osp-vae", "decoder_nonlinearity", "ReLU"),
        ("stdit2", "model_type", "STDiT3"),
        ("stdit2", "patch_size", [2, 2, 2]),
        ("stdit2", "depth", 3),
        ("stdit2", "mlp_ratio", 2.0),
        ("stdit2", "pred_sigma", False),
        ("stdit2", "model_max_length", 200),
        ("stdit2", "qk_norm", False),
        ("stdit2", "qk_norm_legacy", False),
        ("stdit2", "input_sq_size", "512"),
        ("pixart", "_class_name", "SD3Transformer2DModel"),
        ("pixart", "activation_fn", "geglu"),
        ("pixart", "attention_head_dim", 36),
        ("pixart", "attention_type", "gated"),
        ("pixart", "norm_type", "ada_norm_zero"),
        ("pixart", "norm_eps", 1e-5),
        ("pixart", "norm_elementwise_affine", True),
        ("pixart", "only_cross_attention", True),
        ("pixart", "double_self_attention", True),
        ("pixart", "out_channels", 4),
        ("pixart", "use_additional_conditions", False),
        ("pixart", "interpolation_scale", -1),
        ("t5", "dense_act_fn", "relu"),
        ("t5", "is_gated_act", False),
        ("t5", "is_decoder", True),
        ("t5", "quantization_config", {"bits": 8}),
    ],
)
def test_what_changes_the_network_is_refused_by_name(kind, key, value, tmp_path):
    config, convert = KINDS[kind]
    with pytest.raises(UserError) as error:
        convert({**config, key: value}, tmp_path)
    assert f"{key}={value!r}" in str(error.value)


def test_all_that_is_refused_is_listed_with_what_would_do():
    with pytest.raises(UserError) as error:
        load_vidvae(
            "sd-vae",
            SD,
            {**SD_CONFIG, "act_fn": "relu", "latent_channels": 16},
            origin="vae.safetensors",
        )
    assert str(error.value) == (
        "the config.json of vae.safetensors describes a network that is not known here, or is "
        "not of its tensors\n"
        "  act_fn='relu': must be 'silu' or 'swish'\n"
        "  latent_channels=16: must be 4"
    )


def test_groups_of_norms_are_the_checkpoints():
    config, params = load_vidvae("sd-vae", SD, {**SD_CONFIG, "norm_num_groups": 16})
    assert config.norm_groups == 16
    groups = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, GroupNorm):
            groups.append(context.module.groups)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(VidVAE(config).apply, params, jnp.zeros((1, 1, 16, 16, 3)))
    assert len(groups) > 40 and set(groups) == {16}


@pytest.mark.parametrize("groups", [16, 32])
def test_a_norm_of_n_groups_is_its_formula(groups):
    x = jax.random.normal(jax.random.key(0), (1, 1, 4, 4, 64))
    norm = video_norm("group_per_frame", 64, jnp.float32, None, groups)
    grouped = np.asarray(x).reshape(16, groups, 64 // groups)
    wanted = (grouped - grouped.mean((0, 2), keepdims=True)) / grouped.std((0, 2), keepdims=True)
    np.testing.assert_allclose(
        norm.apply(norm.init(jax.random.key(1), x), x), wanted.reshape(x.shape), atol=1e-5
    )


def test_a_middle_without_attention_is_converted():
    tensors = {name: x for name, x in SD.items() if ".attentions." not in name}
    config, params = load_vidvae("sd-vae", tensors, {**SD_CONFIG, "mid_block_add_attention": False})
    assert not config.mid_attention
    assert params["params"]["encoder"]["mid"].keys() == {"block1", "block2"}


@pytest.mark.parametrize(
    "changes,span",
    [
        ({"sample_size": 128}, 32.0),
        ({"sample_size": 64}, 32.0),
        ({"sample_size": 32}, 16.0),  # PixArt-alpha at 256
        ({"sample_size": 32, "interpolation_scale": 0.5}, 32.0),
        ({"sample_size": 256, "interpolation_scale": 4}, 32.0),
    ],
)
def test_the_places_of_an_image_network_are_those_of_its_size(changes, span):
    assert load_vdit("pixart", PIXART, {**PIXART_CONFIG, **changes}).config.position_span == span


@pytest.mark.parametrize(
    "kind,key", [("stdit2", "interpolation_scale"), ("pixart", "input_sq_size")]
)
def test_a_key_of_the_other_kind_is_named_where_it_is_not_read(kind, key, tmp_path, capsys):
    config, convert = KINDS[kind]
    convert({**config, key: 2}, tmp_path)
    assert f"are not known and are ignored: {key}" in capsys.readouterr().err
