"""The formulas count what the networks' programs multiply, and what the paper's clips were counted
to take."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.diffusion.flow import RectifiedFlow
from xgen_jax.models import flops
from xgen_jax.models.discriminator import Discriminator
from xgen_jax.models.lpips import LPIPS, LPIPSConfig
from xgen_jax.models.micro_conditions import MicroConditions
from xgen_jax.models.regen import REGEN
from xgen_jax.models.regen_embedder import REGENEmbedder
from xgen_jax.models.vdit import VDiT, abstract_variables
from xgen_jax.models.vdit_config import PRESETS
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_config import DiscriminatorConfig
from xgen_jax.models.vidvae_embedder import VidVAEEmbedder
from xgen_jax.testing import PYRAMID, REGEN_MODEL

SMALL = dataclasses.replace(
    PRESETS["VDiT-S/2"], width=48, depth=2, heads=4, text_width=32, scan_layers=False
)


def program_flops(function, *arguments):
    """Two for each multiplication in the matrix products and convolutions of a program without
    loops, before any of it is optimised."""
    total = 0
    for line in jax.jit(function).lower(*arguments).as_text().splitlines():
        dot, convolution = "stablehlo.dot_general" in line, "stablehlo.convolution" in line
        if not dot and not convolution:
            continue
        left, right, out = (
            [int(n) for n in dims.split("x")[:-1]]
            for dims in re.findall(r"tensor<([\dx]+xf32)>", line)
        )
        if dot:
            contracted = re.search(r"contracting_dims = \[([\d, ]*)\]", line)[1].split(",")
            total += 2 * np.prod(out) * np.prod([left[int(dim)] for dim in contracted])
        else:  # the kernel is (rows, columns, in, out)
            assert re.search(r"x\[0, 1, i, o\]->", line), line
            total += 2 * np.prod(out) * np.prod(right[:3])
    return total


def shapes(*sizes):
    return [jax.ShapeDtypeStruct(size, np.float32) for size in sizes]


def vdit_program_flops(config, latent_shape, text_tokens):
    batch, *_, channels = latent_shape
    inputs = shapes(latent_shape, (batch,), (batch, text_tokens, config.text_width))
    clip = MicroConditions(*shapes(*[(batch,)] * 5)) if config.micro_cond else None
    return program_flops(
        lambda v, x, t, text, clip: VDiT(config).apply(v, x, t, text, None, clip),
        abstract_variables(config, channels),
        *inputs,
        clip,
    )


@pytest.mark.parametrize("caption_positions", [False, True])
@pytest.mark.parametrize("layout", ["factorised", "full"])
@pytest.mark.parametrize("patch", [1, 2])
def test_the_formula_counts_the_products_of_the_program(layout, patch, caption_positions):
    config = dataclasses.replace(
        SMALL,
        caption_positions=caption_positions,
        attention_layout=layout,
        patch=patch,
        micro_cond=False,
        remat="none",
        null_caption_tokens=0,
    )
    shape = (2, 3, 5, 6, 4)
    assert flops.vdit_flops(config, shape, 7) == vdit_program_flops(config, shape, 7)


def test_conditions_are_small_beside_the_rest():
    config = dataclasses.replace(SMALL, remat="none")
    shape = (1, 5, 16, 16, 4)
    assert 1 < vdit_program_flops(config, shape, 7) / flops.vdit_flops(config, shape, 7) < 1.002


@pytest.mark.parametrize(
    "latent_shape,tera",
    [((1, 29, 90, 160, 4), 191.9), ((1, 17, 60, 106, 4), 42.6), ((1, 5, 30, 53, 4), 2.9)],
    ids=["113x720x1280", "65x480x854", "17x240x426"],
)
def test_the_papers_clips(latent_shape, tera):
    # Counted by hand for the public network with 200 text tokens; to the digits given there.
    assert flops.vdit_flops(PRESETS["VDiT-XL/2"], latent_shape, 200) / 1e12 == pytest.approx(
        tera, rel=0.02
    )


def test_a_training_step_takes_three_forward_passes():
    shape = (2, 3, 4, 4, 4)
    once = flops.vdit_flops(SMALL, shape, 7)
    assert flops.vdit_flops(SMALL, shape, 7, train=True) == 3 * once


VIDVAES = {
    "pyramid": dataclasses.replace(PYRAMID, mid_attention=True),
    "patches": dataclasses.replace(
        PYRAMID, stem=(2, 2, 2), stem_hidden=6, head_channels=5, mid_attention=False, norm="rms"
    ),
    "convolutions in time": dataclasses.replace(
        PYRAMID,
        time_expansion=(False, True),
        time_reduction=(False, True),
        time_down="convolution",
        time_up_convolution=True,
        flat_levels=1,
    ),
}


def embedder(network):
    if network in VIDVAES:
        return VidVAEEmbedder(model=VidVAE(VIDVAES[network]))
    windows = "chunk" if network == "in_context" else "shifted"
    changes = {"head_channels": 3} if windows == "chunk" else {}
    config = dataclasses.replace(REGEN_MODEL, scan_layers=False, conditioning=network, **changes)
    return REGENEmbedder(
        model=REGEN(config), process=RectifiedFlow(prediction="x0"), steps=1, windows=windows
    )


def abstract_params(embedder):
    config, key = embedder.model.config, jax.random.key(0)
    video = jax.ShapeDtypeStruct((1, config.frames(2), 16, 16, 3), np.float32)
    arguments = (video, *shapes((1,))) if isinstance(embedder, REGENEmbedder) else (video,)
    params = jax.eval_shape(embedder.model.init, key, *arguments)
    return jax.eval_shape(
        lambda p: embedder.bundle(p, *[np.ones(embedder.latent_channels)] * 2), params
    )


@pytest.mark.parametrize("frames", [9, 1])
@pytest.mark.parametrize("network", VIDVAES)
def test_a_vidvaes_formulas_count_its_programs(network, frames):
    vae = embedder(network)
    params, config, video = abstract_params(vae), vae.model.config, (2, frames, 8, 16, 3)
    latents = config.latent_shape(video)
    encode = flops.vidvae_encode_flops(config, video)
    decode = flops.vidvae_decode_flops(config, latents)
    assert encode == program_flops(vae.encode, params, *shapes(video))
    assert decode == program_flops(vae.decode, params, *shapes(latents))
    assert flops.vidvae_train_flops(config, video) == 3 * (encode + decode)


@pytest.mark.parametrize("network", ["patches", pytest.param("pyramid", marks=pytest.mark.slow)])
def test_a_chunk_in_the_middle_of_a_clip_is_counted_without_its_first_frame(network):
    vae = embedder(network)
    params, config = abstract_params(vae), vae.model.config
    video, latents = (1, 8, 8, 8, 3), (1, 2, *config.latent_shape((1, 8, 8))[1:], 3)
    first = jax.ShapeDtypeStruct((1, 9, *video[2:]), np.float32)
    _, cache = jax.eval_shape(vae.encode_chunk, params, first)
    counted = program_flops(vae.encode_chunk, params, *shapes(video), cache)
    assert flops.vidvae_encode_flops(config, (1, 8, 8, 8, 3), started=True) == counted
    first = jax.ShapeDtypeStruct(latents, np.float32)
    _, cache = jax.eval_shape(lambda p, z: vae.decode_chunk(p, z, None, False), params, first)
    counted = program_flops(
        lambda p, z, cache: vae.decode_chunk(p, z, cache, False), params, *shapes(latents), cache
    )
    assert flops.vidvae_decode_flops(config, latents, started=True) == counted


@pytest.mark.parametrize("frames", [16, 5])
@pytest.mark.parametrize(
    "network, changes, sides",
    [
        ("content_aware", {}, (8, 8)),
        ("in_context", {}, (8, 8)),
        # Tokens of 2x2 of the 9x10 and 8x5 cells, in blocks of 1x1 and 2x1.
        ("content_aware", {"latent_patch": 2, "attention_window": (3, 3)}, (36, 40)),
        ("in_context", {"latent_patch": 2, "attention_window": (6, 3)}, (32, 20)),
    ],
)
def test_a_regens_formulas_count_its_programs(network, changes, sides, frames):
    regen = embedder(network)
    config = dataclasses.replace(regen.model.config, **changes)
    regen = dataclasses.replace(regen, model=REGEN(config))
    params, video = abstract_params(regen), (2, frames, *sides, 3)
    latents = config.latent_shape(video)
    assert flops.regen_encode_flops(config, video) == program_flops(
        regen.encode, params, *shapes(video)
    )
    assert flops.regen_decode_flops(config, latents, 1, regen.windows) == program_flops(
        regen.decode, params, *shapes(latents)
    )
    more = flops.regen_decode_flops(config, latents, 2, regen.windows)
    assert 1.5 < more / flops.regen_decode_flops(config, latents, 1, regen.windows) < 2


def test_the_losses_networks_are_counted():
    lpips, video = LPIPS(LPIPSConfig(widths=(2, 3, 4, 5, 6))), (2, 5, 32, 48, 3)
    images = (10, *video[2:])
    params = jax.eval_shape(lpips.init, jax.random.key(0), *shapes(images, images))
    # Both images go through the classifier, and the heads are five small products.
    heads = 2 * 10 * sum(lpips.config.widths)
    assert program_flops(lpips.apply, params, *shapes(images, images)) == (
        2 * flops.lpips_flops(lpips.config, images) + heads
    )
    network = Discriminator(DiscriminatorConfig(width=4, layers=2))
    params = jax.eval_shape(network.init, jax.random.key(0), *shapes(video))
    assert program_flops(network.apply, params, *shapes(video)) == flops.discriminator_flops(
        network.config, video
    )


def compiled_flops(function, *arguments):
    """All operations that XLA counts in a program without loops."""
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def test_xla_counts_the_same_in_an_autoencoder_of_wide_layers():
    """XLA leaves out taps that meet the zeros around a frame, and counts all that is not a product:
    in wide layers without taps in space both are small."""
    config = dataclasses.replace(
        VIDVAES["pyramid"],
        channels=(256,),
        space_reduction=(False,),
        time_reduction=(False,),
        stem=(1, 4, 4),
        stem_hidden=256,
        kernels=((3, 1, 1), (3, 1, 1)),
    )
    vae = VidVAEEmbedder(model=VidVAE(config))
    video, params = (1, 5, 64, 64, 3), abstract_params(vae)
    encode = flops.vidvae_encode_flops(config, video)
    assert compiled_flops(vae.encode, params, *shapes(video)) == pytest.approx(encode, rel=0.02)

    def loss(params, video):
        return jnp.square(vae.decode(params, vae.encode(params, video))).mean()

    counted = compiled_flops(jax.grad(loss), params, *shapes(video))
    assert counted == pytest.approx(flops.vidvae_train_flops(config, video), rel=0.03)


def test_xla_counts_the_same_in_a_training_step_of_a_regen():
    config = dataclasses.replace(
        REGEN_MODEL, width=512, depth=4, heads=2, scan_layers=False, mlp_ratio=8
    )
    regen = REGEN(config)
    params = abstract_params(REGENEmbedder(model=regen, process=RectifiedFlow(prediction="x0")))
    video = (1, 5, 64, 64, 3)

    def loss(params, video):
        return jnp.square(regen.apply(params, video, jnp.zeros(1))).mean()

    counted = compiled_flops(jax.grad(loss), params["model"], *shapes(video))
    formula = flops.regen_train_flops(config, video, "chunk")
    assert counted == pytest.approx(formula, rel=0.02)
    twice = flops.regen_train_flops(config, video, "chunk", consistency=True)
    assert 1.9 < twice / formula < 2
