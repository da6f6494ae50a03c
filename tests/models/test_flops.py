"""The formula counts what the network's program multiplies, and what the paper's clips were counted
to take."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from xgen_jax.models.flops import vdit_flops
from xgen_jax.models.vdit import MicroConditions, VDiT, abstract_variables
from xgen_jax.models.vdit_config import PRESETS

SMALL = dataclasses.replace(
    PRESETS["VDiT-S/2"], width=48, depth=2, heads=4, text_width=32, scan_layers=False
)


def program_flops(config, latent_shape, text_tokens):
    """Two for each multiplication in the matrix products of the network's program, before any of it
    is optimised."""
    batch, *_, channels = latent_shape
    shapes = [latent_shape, (batch,), (batch, text_tokens, config.text_width)]
    inputs = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    clip = (
        MicroConditions(*[jax.ShapeDtypeStruct((batch,), np.float32)] * 5)
        if config.micro_cond
        else None
    )
    program = jax.jit(lambda v, x, t, text, clip: VDiT(config).apply(v, x, t, text, None, clip))
    total = 0
    for line in (
        program.lower(abstract_variables(config, channels), *inputs, clip).as_text().splitlines()
    ):
        if "stablehlo.dot_general" in line:
            contracted = re.search(r"contracting_dims = \[([\d, ]*)\]", line)[1].split(",")
            left, _, out = (
                [int(n) for n in dims.split("x")[:-1]]
                for dims in re.findall(r"tensor<([\dx]+xf32)>", line)
            )
            total += 2 * np.prod(out) * np.prod([left[int(dim)] for dim in contracted])
    return total


@pytest.mark.parametrize("layout", ["factorised", "full"])
@pytest.mark.parametrize("patch", [1, 2])
def test_the_formula_counts_the_products_of_the_program(layout, patch):
    config = dataclasses.replace(
        SMALL,
        attention_layout=layout,
        patch=patch,
        micro_cond=False,
        remat="none",
        null_caption_tokens=0,
    )
    shape = (2, 3, 5, 6, 4)
    assert vdit_flops(config, shape, 7) == program_flops(config, shape, 7)


def test_conditions_are_small_beside_the_rest():
    config = dataclasses.replace(SMALL, remat="none")
    shape = (1, 5, 16, 16, 4)
    assert 1 < program_flops(config, shape, 7) / vdit_flops(config, shape, 7) < 1.002


@pytest.mark.parametrize(
    "latent_shape,tera",
    [((1, 29, 90, 160, 4), 191.9), ((1, 17, 60, 106, 4), 42.6), ((1, 5, 30, 53, 4), 2.9)],
    ids=["113x720x1280", "65x480x854", "17x240x426"],
)
def test_the_papers_clips(latent_shape, tera):
    # Counted by hand for the public network with 200 text tokens; to the digits given there.
    assert vdit_flops(PRESETS["VDiT-XL/2"], latent_shape, 200) / 1e12 == pytest.approx(
        tera, rel=0.02
    )


def test_a_training_step_takes_three_forward_passes():
    assert vdit_flops(SMALL, (2, 3, 4, 4, 4), 7, train=True) == 3 * vdit_flops(
        SMALL, (2, 3, 4, 4, 4), 7
    )
