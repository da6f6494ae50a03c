"""Products in a compiled program, from its HLO: those of matrices, convolutions, and on GPUs the
calls of cuBLAS and cuDNN, with channels padded to the matrix unit."""

import functools
import json
import math
import re
from typing import NamedTuple

import numpy as np

from xgen_jax.parallel.collectives import Instruction

_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_ATTENTION_PRODUCTS = {"fmha": 2, "fmhaBackward": 5}  # matrix products in one call
# The same of JAX's splash kernels; "dkv" makes the gradients of the queries too where it is fused.
_SPLASH = re.compile(r"splash_mha_(fwd|dq|dkv)")
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4, "fused": 5}


class ArrayShape(NamedTuple):
    """An array in memory.

    Attributes:
      dtype: as HLO writes it, "bf16".
      dims: its shape.
      bytes: with the padding of its tiles.
      on_chip: it is not in the device's main memory.
    """

    dtype: str
    dims: tuple[int, ...]
    bytes: int
    on_chip: bool


class Product(NamedTuple):
    """A matrix product or a convolution.

    Attributes:
      kind: "dot", "convolution" or "attention".
      operands: dtypes of the two operands.
      result: dtype of the result.
      flops: of all runs; a multiplication and an addition are two.
      padded_flops: the same with contracted and output channels padded to the matrix unit.
      runs: in one run of the program.
      op_name: where it comes from in the model.
    """

    kind: str
    operands: tuple[str, str]
    result: str
    flops: float
    padded_flops: float
    runs: int
    op_name: str

    @property
    def dtype(self) -> str:
        """The dtype that it is computed in: "float32" where either operand is, else "bfloat16"."""
        return "float32" if "f32" in self.operands else "bfloat16"


def product_of(
    instruction: Instruction, table: dict[str, Instruction], unit: int
) -> Product | None:
    """Return the product that an operation of a computation is; None for none.

    Args:
      instruction: the operation.
      table: of its computation, in which its operands are.
      unit: side of the matrix unit, to which channels are padded.
    """
    if instruction.operation not in ("dot", "convolution"):
        return None
    x, y = _operands(instruction, table)[:2]
    (result,) = arrays(instruction.shape)[:1]
    if instruction.operation == "dot":
        return _dot(instruction, x, y, result, unit, _dims_of_dot(instruction.attributes))
    return _convolution(instruction, x, y, result, result, unit)


def product_of_call(
    instruction: Instruction, table: dict[str, Instruction], unit: int
) -> Product | None:
    """Return the product of a call of cuBLAS or cuDNN, or of a kernel that states its own; see
    `product_of`."""
    target, operands = target_of(instruction), _operands(instruction, table)
    results = arrays(instruction.shape)
    if "cublas" in target and len(operands) > 1:
        text = re.search(r'"dot_dimension_numbers":\s*(\{[^}]*\})', instruction.attributes)
        if text is None:
            return None
        numbers = json.loads(text[1])
        dims = [
            [int(dim) for dim in numbers.get(name, ())]
            for name in (
                "lhs_contracting_dimensions",
                "rhs_contracting_dimensions",
                "rhs_batch_dimensions",
            )
        ]
        return _dot(instruction, operands[0], operands[1], results[0], unit, dims)
    if "cudnn" in target and "conv" in target and len(operands) > 1:
        a, b, result = *operands[:2], results[0]
        if "BackwardInput" in target:  # of (dy, kernel)
            return _convolution(instruction, result, b, a, result, unit)
        if "BackwardFilter" in target:  # of (x, dy)
            return _convolution(instruction, a, result, b, result, unit)
        return _convolution(instruction, a, b, result, result, unit)
    if "fmha" in target and operands:
        logits = re.search(
            r'"intermediate_tensor_shape":\s*\{[^}]*?"dimensions":\s*\[([^\]]*)\]',
            instruction.attributes,
        )
        if logits is None:
            return None
        size = math.prod(int(dim.strip('" ')) for dim in logits[1].split(","))
        products = _ATTENTION_PRODUCTS["fmhaBackward" if "Backward" in target else "fmha"]
        flops = 2.0 * products * size * operands[0].dims[-1]
        dtype, name = operands[0].dtype, op_name_of(instruction)
        return Product("attention", (dtype, dtype), results[0].dtype, flops, flops, 1, name)
    name = op_name_of(instruction)
    if target == "tpu_custom_call" and (kernel := _SPLASH.search(name)):
        return _splash(instruction, kernel[1], operands, results[-1].dtype, unit)
    stated = re.search(r'"cost_estimate":\s*\{[^}]*?"flops":\s*"?(\d+)', instruction.attributes)
    if target == "tpu_custom_call" and stated and operands:
        flops, dtype = float(stated[1]), operands[0].dtype
        return Product("attention", (dtype, dtype), results[0].dtype, flops, flops, 1, name)
    return None


def _splash(
    instruction: Instruction, kernel: str, operands: list[ArrayShape], result: str, unit: int
) -> Product:
    """The products of a splash kernel. Each has the channels of a head in it, either contracted or
    as its output; queries and keys are in whole blocks already. Their last dim is of channels,
    or of tokens in the second of the library's layouts. What stands before them in the operands are
    integers, about blocks that the mask leaves out."""
    q, k = [array for array in operands if array.dtype in ("bf16", "f32")][:2]
    fused = re.search(r"use_fused_bwd_kernel\W+true", instruction.attributes)
    products = _SPLASH_PRODUCTS["fused" if kernel == "dkv" and fused else kernel]
    tokens = -1 if re.search(r"q_layout\W+2", instruction.attributes) else -2
    heads, queries, keys = math.prod(q.dims[:-2]), q.dims[tokens], k.dims[tokens]
    channels = q.dims[-3 - tokens]
    flops = 2.0 * products * heads * queries * keys * channels
    padded = _padded(flops, channels, unit, unit)
    return Product(
        "attention", (q.dtype, k.dtype), result, flops, padded, 1, op_name_of(instruction)
    )


def arrays(text: str) -> list[ArrayShape]:
    """Return the arrays in the text of a shape: "(bf16[2,3]{1,0:T(8,128)(2,1)}, pred[])"."""
    return [_array(*match.groups()) for match in _ARRAY.finditer(text) if match[1] != "token"]


def _array(dtype: str, dims_text: str, layout: str | None) -> ArrayShape:
    layout = layout or ""
    dims = tuple(int(dim.strip("<=")) for dim in dims_text.split(",") if dim)
    order, tile = re.match(r"([\d,]*)(?::.*?T\(([\d,]+)\))?", layout), None
    padded = list(dims)
    if order is not None and order[2] and order[1]:
        tile = [int(side) for side in order[2].split(",")]
        minor_first = [int(dim) for dim in order[1].split(",")]
        for dim, side in zip(minor_first, reversed(tile)):
            padded[dim] = -(-dims[dim] // side) * side
    bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
    size = math.prod(padded) * bits // 8
    return ArrayShape(dtype, dims, size, re.search(r"S\([1-9]\)", layout) is not None)


def target_of(instruction: Instruction) -> str:
    """Return the library's name of a call; empty for none."""
    found = _TARGET.search(instruction.attributes)
    return found[1] if found else ""


def op_name_of(instruction: Instruction) -> str:
    """Return where an operation comes from in the model; empty where it is not said."""
    found = _OP_NAME.search(instruction.attributes)
    return found[1] if found else ""


def _operands(instruction: Instruction, table: dict[str, Instruction]) -> list[ArrayShape]:
    """The first array of each operand."""
    found = (arrays(table[name].shape)[:1] for name in instruction.names if name in table)
    return [array for first in found for array in first]


def _dims_of_dot(attributes: str) -> tuple[list[int], list[int], list[int]]:
    """(contracted of the left, contracted of the right, batch of the right)."""

    def named(name):
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", attributes)
        return [int(dim) for dim in found[1].split(",") if dim] if found else []

    return named("lhs_contracting_dims"), named("rhs_contracting_dims"), named("rhs_batch_dims")


def _dot(instruction, x, y, result, unit, dims) -> Product:
    left, right, batch = dims
    contracted = math.prod(x.dims[dim] for dim in left)
    features = math.prod(
        size for dim, size in enumerate(y.dims) if dim not in right and dim not in batch
    )
    flops = 2.0 * math.prod(result.dims) * contracted
    padded = _padded(flops, contracted, features, unit)
    name = op_name_of(instruction)
    return Product("dot", (x.dtype, y.dtype), result.dtype, flops, padded, 1, name)


def _convolution(instruction, x, kernel, y, result, unit) -> Product | None:
    """The product of y = kernel * x, or of one of its gradients, which has as many operations."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        return None
    of_x, of_kernel, of_y = labels.groups()
    sides = [label for label in of_y if label.isdigit()]
    window = _window(instruction.attributes, len(sides))
    met = 1.0
    for side, (size, stride, pad, x_dilate, kernel_dilate) in zip(sorted(sides), window):
        met *= _met(
            y.dims[of_y.index(side)],
            x.dims[of_x.index(side)],
            size,
            stride,
            pad,
            x_dilate,
            kernel_dilate,
        )
    channels, features = (kernel.dims[of_kernel.index(role)] for role in "io")
    flops = 2.0 * y.dims[of_y.index("b")] * y.dims[of_y.index("f")] * channels * met
    # The gradient of a kernel is a convolution whose window is all places, and whose output are the
    # few taps: what it sums over is places and, as channels, clips.
    taps = math.prod(y.dims[of_y.index(side)] for side in sides)
    places = math.prod(size for size, *_ in window)
    contracted = channels * places if places > taps else channels
    return Product(
        "convolution",
        (x.dtype, kernel.dtype),
        result.dtype,
        flops,
        _padded(flops, contracted, features, unit),
        1,
        op_name_of(instruction),
    )


def _padded(flops: float, contracted: int, features: int, unit: int) -> float:
    for side in (contracted, features):
        flops *= -(-side // unit) * unit / max(side, 1)
    return flops


def _window(attributes: str, sides: int) -> list[tuple[int, int, int, int, int]]:
    """Size, stride, padding before, and dilations of input and kernel, of each side in order."""
    written = re.search(r"window=\{([^}]*)\}", attributes)
    text = written[1] if written else ""

    def named(name, default):
        found = re.search(rf"\b{name}=([\d_x-]+)", text)
        if found is None:
            return [default] * sides
        return [int(part.split("_")[0]) for part in found[1].split("x")]

    columns = (("size", 1), ("stride", 1), ("pad", 0), ("lhs_dilate", 1), ("rhs_dilate", 1))
    return list(zip(*(named(*column) for column in columns)))


@functools.lru_cache(maxsize=4096)
def _met(
    outputs: int, inputs: int, size: int, stride: int, pad: int, x_dilate: int, kernel_dilate: int
) -> int:
    """How many pairs of an output and a tap meet a value of the input along one side."""
    place = np.arange(outputs)[:, None] * stride + np.arange(size) * kernel_dilate - pad
    inside = (place >= 0) & (place <= (inputs - 1) * x_dilate)
    return int((inside & (place % x_dilate == 0)).sum())
