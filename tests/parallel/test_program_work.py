"""Products and bytes of a program, read from its HLO: tiles, loops, slices, kernels of libraries,
and real programs."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from xgen_jax.parallel.program_products import arrays
from xgen_jax.parallel.program_work import program_work

PROGRAMS = pathlib.Path(__file__).parent / "programs"
# A loop of 7 around a fused convolution whose kernel is a slice of a stack, as for a TPU.
TPU = (PROGRAMS / "tpu.hlo").read_text()
GPU = (PROGRAMS / "gpu.hlo").read_text()


@pytest.mark.parametrize(
    "text,size",
    [
        ("f32[3,4]{1,0}", 48),
        ("f32[3,4]{1,0:T(8,128)}", 8 * 128 * 4),
        ("f32[3,4]{0,1:T(8,128)}", 8 * 128 * 4),
        ("bf16[2,20,300]{2,1,0:T(8,128)(2,1)}", 2 * 24 * 384 * 2),
        ("bf16[20,2,300]{2,0,1:T(8,128)(2,1)}", 2 * 24 * 384 * 2),
        ("bf16[512]{0:T(512)(128)(2,1)S(1)}", 1024),
        ("pred[]", 1),
        ("f8e4m3fn[10]{0}", 10),
    ],
)
def test_tiles_are_padded(text, size):
    (array,) = arrays(text)
    assert array.bytes == size and array.on_chip == ("S(1)" in text)


def test_a_loop_counts_as_often_as_it_runs_and_a_slice_as_one():
    work = program_work(TPU, matrix_unit=128)
    (product,) = work.products
    flops = 7 * 2 * (2 * 16 * 16 * 72) * 9 * 64
    assert (product.kind, product.operands, product.result, product.runs) == (
        *("convolution", ("bf16", "bf16"), "bf16"),
        7,
    )
    assert product.flops == flops
    assert product.padded_flops == pytest.approx(flops * (128 / 64) * (128 / 72))
    moved = {transfer.operation: transfer.bytes for transfer in work.transfers}
    tile = 8 * 128 * 4
    # Input and one slice of the stack; the result stays on the chip.
    assert moved["fusion"] == 7 * (2 * 18 * 24 * 128 * 2 + 9 * 64 * 128 * 2)
    assert moved["copy-start"] == tile  # from memory to the chip
    assert moved["add"] == 2 * tile  # one operand is on the chip
    assert work.endless == 0 and not work.unknown


def test_calls_of_libraries_count_their_products():
    work = program_work(GPU)
    convolution = 2 * (3 * 8 * 10 * 4) * 27 * 6
    assert [product.flops for product in work.products] == [
        2 * 8 * 32 * 16 * 64,
        *[convolution] * 3,
        2 * 2 * (2 * 4 * 128 * 96) * 72,
    ]
    assert [product.kind for product in work.products] == [
        *("dot", "convolution", "convolution", "convolution", "attention")
    ]
    assert work.unknown == {"__cudnn$other": 1}
    first = work.transfers[0]
    assert first.bytes == 8 * 32 * 64 * 2 + 8 * 64 * 16 * 2 + 8 * 32 * 16 * 4  # no workspace


def test_only_taps_that_meet_values_count():
    """A convolution with padding and strides, and its gradients, on this host."""

    def function(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (2, 2), ((1, 1), (0, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x, kernel = np.ones((2, 9, 8, 3), np.float32), np.ones((3, 3, 3, 5), np.float32)
    y = jax.jit(function)(x, kernel)
    flops = 2 * float(y.sum())  # all values are one: y counts its products
    assert flops < 2 * y.size * 27
    forward = program_work(jax.jit(function).lower(x, kernel).compile().as_text())
    assert [product.flops for product in forward.products] == [flops]
    gradient = jax.jit(jax.grad(lambda x, k: function(x, k).sum(), argnums=(0, 1)))
    backward = program_work(gradient.lower(x, kernel).compile().as_text())
    assert [product.flops for product in backward.products] == [flops] * 2


GRADIENT = """
ENTRY %main (x: bf16[1,5,32,32,64], dy: bf16[1,5,32,32,72]) -> bf16[3,3,3,64,72] {
  %x = bf16[1,5,32,32,64]{4,3,2,1,0:T(8,128)(2,1)} parameter(0)
  %dy = bf16[1,5,32,32,72]{4,3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %y = bf16[3,3,3,64,72]{4,3,2,1,0:T(8,128)(2,1)} convolution(%x, %dy), \
window={size=5x32x32 pad=1_1x1_1x1_1}, dim_labels=f012b_i012o->012bf
}
"""


def test_the_gradient_of_a_kernel_sums_over_places():
    """Not over channels, of which its one clip would be padded to a whole matrix unit."""
    (product,) = program_work(GRADIENT, matrix_unit=128).products
    met = (5 * 3 - 2) * (32 * 3 - 2) ** 2
    assert product.flops == 2 * 64 * 72 * met
    assert product.padded_flops == pytest.approx(product.flops * 128 / 72)


SPLASH = """
ENTRY %main (q: bf16[4,2,256,72], k: bf16[4,2,128,72]) -> bf16[4,2,256,72] {
  %q = bf16[4,2,256,72]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[4,2,128,72]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %info = s8[1,1,1]{2,1,0:T(8,128)(4,1)} constant({...})
  ROOT %call = bf16[4,2,256,72]{3,2,1,0:T(8,128)(2,1)} custom-call(%info, %q, %k, %k), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128, \\"use_fused_bwd_kernel\\": FUSED, \\"q_layout\\": 1}"
}}, metadata={op_name="jit(step)/attention_space/splash_mha_KERNEL_segmented/pallas_call"}
}
"""


@pytest.mark.parametrize(
    "kernel,fused,products",
    [
        ("fwd", "true", 2),
        ("dq", "false", 3),
        ("dkv", "false", 4),
        ("dkv", "true", 5),
    ],
)
def test_splash_kernels_count_their_products(kernel, fused, products):
    text = SPLASH.replace("KERNEL", kernel).replace("FUSED", fused)
    work = program_work(text, matrix_unit=128)
    (product,) = work.products
    flops = products * 2 * (4 * 2) * 256 * 128 * 72
    assert (product.kind, product.flops) == ("attention", flops)
    assert product.padded_flops == pytest.approx(flops * 128 / 72)
    assert "attention_space" in product.op_name and not work.unknown
    # The same with tokens as the last dim.
    swapped = {"256,72": "72,256", "128,72": "72,128", '"q_layout\\": 1': '"q_layout\\": 2'}
    for old, new in swapped.items():
        assert old in text
        text = text.replace(old, new)
    assert program_work(text, matrix_unit=128).products == [product]


CALLS = """
ENTRY %main (x: bf16[16,128]) -> bf16[16,128] {
  %x = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(0)
  %one = (bf16[16,128]{1,0:T(8,128)(2,1)S(1)}, s8[64,128]{1,0:T(8,128)(4,1)}) custom-call(%x), \
custom_call_target="TARGET"
  ROOT %out = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%one), index=0
}
"""


@pytest.mark.parametrize(
    "target,written",
    [
        ("tpu_custom_call", 64 * 128),
        ("cumsum", 64 * 128),
        ("__cudnn$other", 0),
        ("__cublas$gemm", 0),
        ("__cub$DeviceRadixSort", 0),
    ],
)
def test_bytes_are_workspace_in_calls_of_nvidias_libraries_alone(target, written):
    """A kernel's bytes are a result; what stays on the chip counts nowhere."""
    (transfer,) = program_work(CALLS.replace("TARGET", target)).transfers
    assert transfer.bytes == 16 * 128 * 2 + written


NESTED = """
%inner (a: f32[28,8,128], b: s32[]) -> f32[1,8,128] {
  %a = f32[28,8,128]{2,1,0:T(8,128)} parameter(0)
  %b = s32[] parameter(1)
  ROOT %slice = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%a, %b), dynamic_slice_sizes={1,8,128}
}

%outer (a: f32[28,8,128], b: s32[]) -> f32[1,8,128] {
  %a = f32[28,8,128]{2,1,0:T(8,128)} parameter(0)
  %b = s32[] parameter(1)
  %one = f32[1,8,128]{2,1,0:T(8,128)} fusion(%a, %b), kind=kLoop, calls=%inner
  ROOT %twice = f32[1,8,128]{2,1,0:T(8,128)} add(%one, %one)
}

ENTRY %main (a: f32[28,8,128], b: s32[]) -> f32[1,8,128] {
  %a = f32[28,8,128]{2,1,0:T(8,128)} parameter(0)
  %b = s32[] parameter(1)
  ROOT %result = f32[1,8,128]{2,1,0:T(8,128)} fusion(%a, %b), kind=kOutput, calls=%outer
}
"""


def test_a_slice_inside_a_nested_fusion_counts_as_one():
    (transfer,) = program_work(NESTED).transfers
    assert transfer.bytes == 2 * 8 * 128 * 4 + 4  # one slice in, one out, and the index


def test_a_scanned_program_of_this_host():
    def function(x, stack):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    x, stack = np.ones((64, 32), np.float32), np.ones((5, 32, 32), np.float32)
    work = program_work(jax.jit(function).lower(x, stack).compile().as_text(), matrix_unit=128)
    assert work.flops() == {"float32": 5 * 2 * 64 * 32 * 32}
    assert work.flops(padded=True) == {"float32": 5 * 2 * 64 * 128 * 128}
    least = x.nbytes * 2 + stack.nbytes
    assert least <= work.bytes <= 20 * least
