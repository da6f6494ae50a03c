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
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from xgen_jax.parallel.collectives import Instruction, branches, parse, trip_count
from xgen_jax.parallel.program_products import (
    Product,
    arrays,
    op_name_of,
    product_of,
    product_of_call,
    target_of,
)

Table = dict[str, Instruction]  # a computation's operations, by name

_CALLED = re.compile(r"\b(?:calls|to_apply)=%?([^\s,{}]+)")
_BODY = re.compile(r"\bbody=%?([^\s,{}]+)")
# They move nothing, or what they move counts where it starts or inside of them.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "opt-barrier", "copy-done", "slice-done", "async-update"),
    *("async-done", "send-done", "recv-done", "all-gather-done", "all-reduce-done"),
    "collective-permute-done",
}
_NVIDIA = re.compile(r"__cu\w+\$")  # cuBLAS, cuDNN, cuSOLVER and CUB, as XLA calls them
_KERNELS = ("cublas", "cudnn", "tpu_custom_call", "triton", "mosaic_gpu")


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
            product = product_of_call(instruction, table, matrix_unit)
            if product is not None:
                work = work._replace(products=[product])
            elif any(name in target_of(instruction) for name in _KERNELS):
                work = work._replace(unknown=collections.Counter([target_of(instruction)]))
        elif (product := product_of(instruction, table, matrix_unit)) is not None:
            work = work._replace(products=[product])
        if operation not in _FREE:
            moved = _moved(instruction, table, inner, computations)
            name = op_name_of(instruction)
            work = work._replace(transfers=[Transfer(operation, float(moved), 1, name)])
        return work

    return of(entry)


def _size(text: str) -> int:
    """Bytes in main memory of the arrays of a shape."""
    return sum(array.bytes for array in arrays(text) if not array.on_chip)


def _moved(
    instruction: Instruction, table: Table, inner: Table, computations: dict[str, Table]
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
        case "custom-call" if target_of(instruction) == "AllocateBuffer":
            return 0
        case "custom-call" if _NVIDIA.match(target_of(instruction)):
            # What follows the result are statistics, and workspace in bytes.
            first, *others = arrays(instruction.shape)
            results = [first, *(array for array in others if array.dtype not in ("s8", "u8"))]
            written = sum(array.bytes for array in results if not array.on_chip)
        case "dynamic-slice" | "slice" | "gather":
            return 2 * written
        case "dynamic-update-slice" if len(names) > 1:
            return 2 * _size(table[names[1]].shape)
        case "fusion":
            read = 0
            parameters = _parameters(inner)
            for place, name in enumerate(instruction.names):
                whole = _size(table[name].shape) if name in table else 0
                sliced = _sliced(parameters.get(place, ""), inner, computations)
                read += whole if sliced is None else min(whole, sliced)
            updated = _updated(inner)
            return read + (written if updated is None else min(written, updated))
    return written + sum(_size(table[name].shape) for name in names)


def _parameters(table: Table) -> dict[int, str]:
    """The names of a computation's parameters, by place."""
    return {
        int(each.operands.strip("()")): name
        for name, each in table.items()
        if each.operation == "parameter"
    }


def _sliced(name: str, table: Table, computations: dict[str, Table]) -> int | None:
    """Bytes that a fusion, or one inside of it, reads of a parameter which it only slices or
    updates in place; None if it reads the whole."""
    total = 0
    for user, instruction in table.items():
        if name not in instruction.names:
            continue
        first = instruction.names[0] == name
        below: int | None = None
        if instruction.operation in ("dynamic-slice", "slice") and first:
            below = sum(array.bytes for array in arrays(instruction.shape))
        elif instruction.operation in ("bitcast", "reshape"):
            below = _sliced(user, table, computations)
        elif instruction.operation == "fusion" and (
            called := _CALLED.search(instruction.attributes)
        ):
            inner = computations.get(called[1], {})
            place = _parameters(inner).get(instruction.names.index(name), "")
            below = _sliced(place, inner, computations)
        elif instruction.operation == "dynamic-update-slice" and first:
            below = 0
        if below is None:
            return None
        total += below
    return total


def _updated(table: Table) -> int | None:
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


def _fused(table: Table, computations: dict[str, Table], unit: int) -> Iterator[Product]:
    """The products inside a fusion, and those fused in it."""
    for instruction in table.values():
        if (product := product_of(instruction, table, unit)) is not None:
            yield product
        elif instruction.operation == "fusion":
            called = _CALLED.search(instruction.attributes)
            yield from _fused(computations.get(called[1], {}) if called else {}, computations, unit)
