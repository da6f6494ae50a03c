"""What a compiled program does in one run on one device, from its HLO: matrix products with their
padding, and bytes that pass between memory and the chip.

Products are `dot` and `convolution`, wherever they are fused, and on GPUs the calls of cuBLAS and
cuDNN. An operation in the body of a loop counts as often as the loop runs; of a conditional, the
branch that moves most bytes counts. Taps of a convolution that meet only padding, or the zeros
between the values of a strided one's gradient, are not counted.

Bytes are the operands and results of each operation of the schedule, with the padding of their
tiles. Of an operand that a fusion only slices, the slices count; of a result that it updates in
place, the update. Buffers in the chip's own memory, S(1) and the like, do not count. What a kernel
reads several times counts once, and caches are not known, so this is near the traffic but neither a
lower nor an upper bound of it.
"""

import collections
import functools
import json
import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from xgen_jax.parallel.collectives import Instruction, branches, parse, trip_count

_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([^\s,{}]+)")
_BODY = re.compile(r"\bbody=%?([^\s,{}]+)")
# They move nothing, or what they move counts where it starts or inside of them.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "opt-barrier", "copy-done", "slice-done", "async-update"),
    *("async-done", "send-done", "recv-done", "all-gather-done", "all-reduce-done"),
    "collective-permute-done",
}
_KERNELS = ("cublas", "cudnn", "tpu_custom_call", "triton", "mosaic_gpu")
_ATTENTION_PRODUCTS = {"fmha": 2, "fmhaBackward": 5}  # matrix products in one call


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


class Transfer(NamedTuple):
    """Bytes that an operation of the schedule reads and writes, in all runs."""

    operation: str
    bytes: float
    runs: int
    op_name: str


class Work(NamedTuple):
    """All of one run of a program.

    Attributes:
      products, transfers: see there.
      unknown: calls of kernels whose arithmetic is not in the program, by target.
      endless: loops whose number of iterations is not in the program; each counts once.
    """

    products: list[Product]
    transfers: list[Transfer]
    unknown: collections.Counter
    endless: int

    @property
    def bytes(self) -> float:
        """Bytes moved in all."""
        return sum(transfer.bytes for transfer in self.transfers)

    def flops(self, padded: bool = False) -> dict[str, float]:
        """Return operations by dtype of computation."""
        total: dict[str, float] = {}
        for product in self.products:
            flops = product.padded_flops if padded else product.flops
            total[product.dtype] = total.get(product.dtype, 0.0) + flops
        return total

    def times(self, number: int) -> "Work":
        """Return that of a loop that runs `number` times."""
        return Work(
            [
                p._replace(
                    flops=p.flops * number,
                    padded_flops=p.padded_flops * number,
                    runs=p.runs * number,
                )
                for p in self.products
            ],
            [t._replace(bytes=t.bytes * number, runs=t.runs * number) for t in self.transfers],
            collections.Counter({name: n * number for name, n in self.unknown.items()}),
            self.endless,
        )

    @classmethod
    def total(cls, works: Iterable["Work"]) -> "Work":
        """Return that of several, one after another."""
        total = cls([], [], collections.Counter(), 0)
        for work in works:
            total.products.extend(work.products)
            total.transfers.extend(work.transfers)
            total.unknown.update(work.unknown)
            total = total._replace(endless=total.endless + work.endless)
        return total


def program_work(hlo: str, matrix_unit: int = 1) -> Work:
    """Read what a program does in one run.

    Args:
      hlo: text of the optimised program of one device, for a CPU, GPU or TPU.
      matrix_unit: side of the device's matrix unit, to which channels are padded; 1 for none.
    """
    computations, entry = parse(hlo)

    @functools.cache
    def of(name: str) -> Work:
        table = computations.get(name, {})
        return Work.total(of_one(instruction, table) for instruction in table.values())

    def of_one(instruction: Instruction, table: dict[str, Instruction]) -> Work:
        operation, attributes = instruction.operation, instruction.attributes
        if operation == "while":
            body = _BODY.search(attributes)
            assert body is not None
            trips = trip_count(instruction, computations)
            once = of(body[1])
            return once.times(trips) if trips else once._replace(endless=once.endless + 1)
        if operation == "conditional":
            return max(map(of, branches(instruction)), key=lambda branch: branch.bytes)
        called = _CALLED.search(attributes)
        inner = computations.get(called[1], {}) if called else {}
        if operation in ("call", "async-start") and called:
            return of(called[1])
        work = Work.total(())
        if operation == "fusion":
            work = work._replace(products=list(_fused(inner, computations, matrix_unit)))
        elif operation == "custom-call":
            product = _of_call(instruction, table, matrix_unit)
            if product is not None:
                work = work._replace(products=[product])
            elif any(name in _target(instruction) for name in _KERNELS):
                work = work._replace(unknown=collections.Counter([_target(instruction)]))
        elif (product := _product(instruction, table, matrix_unit)) is not None:
            work = work._replace(products=[product])
        if operation not in _FREE:
            moved = _moved(instruction, table, inner)
            name = _op_name(instruction)
            work = work._replace(transfers=[Transfer(operation, float(moved), 1, name)])
        return work

    return of(entry)


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


def _target(instruction: Instruction) -> str:
    """The library's name of a call."""
    found = _TARGET.search(instruction.attributes)
    return found[1] if found else ""


def _op_name(instruction: Instruction) -> str:
    found = _OP_NAME.search(instruction.attributes)
    return found[1] if found else ""


def _size(text: str) -> int:
    """Bytes in main memory of the arrays of a shape."""
    return sum(array.bytes for array in arrays(text) if not array.on_chip)


def _operands(instruction: Instruction, table: dict[str, Instruction]) -> list[ArrayShape]:
    """The first array of each operand."""
    found = (arrays(table[name].shape)[:1] for name in instruction.names if name in table)
    return [array for first in found for array in first]


# Bytes


def _moved(
    instruction: Instruction, table: dict[str, Instruction], inner: dict[str, Instruction]
) -> int:
    """Bytes that one run of an operation reads and writes."""
    names = [name for name in dict.fromkeys(instruction.names) if name in table]
    written = _size(instruction.shape)
    match instruction.operation:
        case "copy-start" | "slice-start":
            # (result, operand, context) or ((operands), result, context): one read, one written.
            ends = arrays(instruction.shape)[:2]
            least = min((array.bytes for array in ends), default=0)
            return sum(least for array in ends if not array.on_chip)
        case "all-gather-start" | "all-reduce-start" | "collective-permute-start":
            return written  # its shape holds operands and results
        case "custom-call" if _target(instruction) == "AllocateBuffer":
            return 0
        case "custom-call" if "cu" in _target(instruction):
            # What follows the result are statistics, and workspace in bytes.
            results = arrays(instruction.shape)
            written = sum(
                a.bytes for a in results if a.dtype not in ("s8", "u8") or a is results[0]
            )
        case "dynamic-slice" | "slice" | "gather":
            return 2 * written
        case "dynamic-update-slice" if len(names) > 1:
            return 2 * _size(table[names[1]].shape)
        case "fusion":
            read = 0
            parameters = {
                int(each.operands.strip("()")): name
                for name, each in inner.items()
                if each.operation == "parameter"
            }
            for place, name in enumerate(instruction.names):
                whole = _size(table[name].shape) if name in table else 0
                sliced = _sliced(parameters.get(place, ""), inner)
                read += whole if sliced is None else min(whole, sliced)
            updated = _updated(inner)
            return read + (written if updated is None else min(written, updated))
    return written + sum(_size(table[name].shape) for name in names)


def _sliced(name: str, table: dict[str, Instruction]) -> int | None:
    """Bytes that a fusion reads of a parameter which it only slices or updates in place; None if it
    reads the whole."""
    total = 0
    for user, instruction in table.items():
        if name not in instruction.names:
            continue
        first = instruction.names[0] == name
        if instruction.operation in ("dynamic-slice", "slice") and first:
            total += sum(array.bytes for array in arrays(instruction.shape))
        elif instruction.operation in ("bitcast", "reshape"):
            below = _sliced(user, table)
            if below is None:
                return None
            total += below
        elif not (instruction.operation == "dynamic-update-slice" and first):
            return None
    return total


def _updated(table: dict[str, Instruction]) -> int | None:
    """Bytes that a fusion writes whose results are updates in place; None if none is one."""
    if not table:
        return None

    def of(name: str) -> int | None:
        instruction = table.get(name)
        if instruction is None:
            return None
        if instruction.operation == "dynamic-update-slice":
            update = table.get(instruction.names[1])
            return None if update is None else sum(a.bytes for a in arrays(update.shape))
        if instruction.operation in ("bitcast", "copy") and instruction.names:
            return of(instruction.names[0])
        return None

    root = list(table)[-1]
    if table[root].operation != "tuple":
        return of(root)
    parts = [(of(name), name) for name in table[root].names if name in table]
    if all(size is None for size, _ in parts):
        return None
    return sum(_size(table[name].shape) if size is None else size for size, name in parts)


# Products


def _fused(
    table: dict[str, Instruction], computations: dict[str, dict[str, Instruction]], unit: int
) -> Iterator[Product]:
    """The products inside a fusion, and those fused in it."""
    for instruction in table.values():
        if (product := _product(instruction, table, unit)) is not None:
            yield product
        elif instruction.operation == "fusion":
            called = _CALLED.search(instruction.attributes)
            yield from _fused(computations.get(called[1], {}) if called else {}, computations, unit)


def _padded(flops: float, contracted: int, features: int, unit: int) -> float:
    for side in (contracted, features):
        flops *= -(-side // unit) * unit / max(side, 1)
    return flops


def _product(instruction: Instruction, table: dict[str, Instruction], unit: int) -> Product | None:
    if instruction.operation not in ("dot", "convolution"):
        return None
    x, y = _operands(instruction, table)[:2]
    (result,) = arrays(instruction.shape)[:1]
    if instruction.operation == "dot":
        return _dot(instruction, x, y, result, unit, _dims_of_dot(instruction.attributes))
    return _convolution(instruction, x, y, result, result, unit)


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
    name = _op_name(instruction)
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
    return Product(
        "convolution",
        (x.dtype, kernel.dtype),
        result.dtype,
        flops,
        _padded(flops, channels, features, unit),
        1,
        _op_name(instruction),
    )


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


def _of_call(instruction: Instruction, table: dict[str, Instruction], unit: int) -> Product | None:
    """The product of a call of cuBLAS or cuDNN, or of a kernel that states its own."""
    target, operands = _target(instruction), _operands(instruction, table)
    results = arrays(instruction.shape)
    if "cublas" in target and len(operands) > 1:
        text = re.search(r'"dot_dimension_numbers":(\{[^}]*\})', instruction.attributes)
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
            r'"intermediate_tensor_shape":\{[^}]*?"dimensions":\[([^\]]*)\]',
            instruction.attributes,
        )
        if logits is None:
            return None
        size = math.prod(int(dim.strip('" ')) for dim in logits[1].split(","))
        products = _ATTENTION_PRODUCTS["fmhaBackward" if "Backward" in target else "fmha"]
        flops = 2.0 * products * size * operands[0].dims[-1]
        dtype, name = operands[0].dtype, _op_name(instruction)
        return Product("attention", (dtype, dtype), results[0].dtype, flops, flops, 1, name)
    stated = re.search(r'"cost_estimate":\{[^}]*?"flops":"?(\d+)', instruction.attributes)
    if target == "tpu_custom_call" and stated and operands:
        flops, dtype = float(stated[1]), operands[0].dtype
        name = _op_name(instruction)
        return Product("attention", (dtype, dtype), results[0].dtype, flops, flops, 1, name)
    return None
