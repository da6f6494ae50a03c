"""What a compiled program sends between its devices: bytes by kind of collective, from its HLO.

An operation in the body of a loop counts as often as the loop runs: a scanned stack of 28 blocks
gathers its parameters 28 times. Of a conditional, the branch that sends most counts. What a device
sends in one operation with operands of b bytes, over the links of its domain (slice or host) to
the m devices of it that take part, and over the network to k domains:

                      links                network
    all-gather        b k (m - 1)          b (k - 1)
    all-reduce        2 b (m - 1) / m      2 b / m (k - 1) / k
    reduce-scatter    b (m - 1) / m        b / m (k - 1) / k
    all-to-all        b (m - 1) / (m k)    b (k - 1) / k
    permute           b, one or the other

These are rings in each domain and between them, with each byte sent to another domain once. The
runtime may choose other ways, and overlap all of it with computation.

Between slices of TPUs there are no collectives in the program of a device, which hands its data to
the host (`send`); the host's runtime, named Megascale, does the rest. m is 1 there.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

# (m devices of a domain, k domains) -> parts of the operands' bytes sent (in a domain, to others).
SENT: dict[str, Callable[[int, int], tuple[float, float]]] = {
    "all-gather": lambda m, k: (k * (m - 1), k - 1),
    "all-reduce": lambda m, k: (2 * (m - 1) / m, 2 * (k - 1) / (k * m)),
    "reduce-scatter": lambda m, k: ((m - 1) / m, (k - 1) / (k * m)),
    "all-to-all": lambda m, k: ((m - 1) / (m * k), (k - 1) / k),
    "ragged-all-to-all": lambda m, k: ((m - 1) / (m * k), (k - 1) / k),
    "collective-permute": lambda m, k: (float(k == 1), float(k > 1)),
    "collective-broadcast": lambda m, k: (float(k == 1), float(k > 1)),
}
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,:]+)\}')
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[^\s(]+) \(.*\) -> .*\{\s*")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(?P<name>[^\s=]+) = (?P<rest>.*)")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body)=%?([^\s,{}]+)")
# The TPU compiler writes a reduce-scatter as an all-reduce inside a computation of this name.
_SCATTERED = "all-reduce-scatter"


class Instruction(NamedTuple):
    """One line of HLO: its result's shape as text, its operation, operands and attributes."""

    shape: str
    operation: str
    operands: str
    attributes: str

    @property
    def names(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r"%([^\s,()]+)", self.operands)


@dataclasses.dataclass(frozen=True)
class Collectives:
    """What one device sends in one run of a program.

    Attributes:
      count: operations by kind.
      link_bytes, network_bytes: by kind; among the devices of one slice or host, and of several.
      endless: loops whose number of iterations is not in the program; each counts once.
    """

    count: collections.Counter
    link_bytes: collections.Counter
    network_bytes: collections.Counter
    endless: int = 0

    def __add__(self, other: "Collectives") -> "Collectives":
        return Collectives(
            self.count + other.count,
            self.link_bytes + other.link_bytes,
            self.network_bytes + other.network_bytes,
            self.endless + other.endless,
        )

    def times(self, number: int) -> "Collectives":
        """Return those of a loop that runs `number` times."""

        def scaled(counter):
            return collections.Counter({kind: number * value for kind, value in counter.items()})

        return Collectives(
            scaled(self.count), scaled(self.link_bytes), scaled(self.network_bytes), self.endless
        )

    @property
    def sent(self) -> float:
        """Bytes in all."""
        return self.link_bytes.total() + self.network_bytes.total()

    @classmethod
    def none(cls) -> "Collectives":
        """Return those of a program that sends nothing."""
        return cls(collections.Counter(), collections.Counter(), collections.Counter())

    def table(self) -> dict[str, dict[str, int]]:
        """Return {kind: {"count", "link_bytes", "network_bytes"}}, for JSON."""
        return {
            kind: {
                "count": count,
                "link_bytes": round(self.link_bytes[kind]),
                "network_bytes": round(self.network_bytes[kind]),
            }
            for kind, count in sorted(self.count.items())
        }


def collectives(hlo: str, domains: Sequence[int]) -> Collectives:
    """Count what a device of a program sends in one run.

    Args:
      hlo: text of the optimised program of one device.
      domains: of the devices in the order of the program's mesh, see `devices.domains`.
    """
    computations, entry = parse(hlo)

    @functools.cache
    def of(name: str) -> Collectives:
        table, total = computations.get(name, {}), Collectives.none()
        for instruction in table.values():
            total += _own(instruction, table, name, domains)
            if instruction.operation == "while":
                total += _of_loop(instruction)
            elif instruction.operation == "conditional":
                total += max(map(of, branches(instruction)), key=lambda branch: branch.sent)
            else:
                total = sum(map(of, _CALLED.findall(instruction.attributes)), total)
        return total

    def _of_loop(instruction: Instruction) -> Collectives:
        body = _CALLED.search(instruction.attributes)
        assert body is not None
        once, trips = of(body[1]), trip_count(instruction, computations)
        return once.times(trips) if trips else dataclasses.replace(once, endless=once.endless + 1)

    return of(entry)


def parse(hlo: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Return the instructions of each computation by name, and the name of the entry."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, table = "", {}
    for line in _logical_lines(hlo):
        if match := _COMPUTATION.fullmatch(line):
            table = computations.setdefault(match["name"], {})
            entry = match["name"] if match["entry"] else entry
        elif (match := _INSTRUCTION.match(line)) and (found := _instruction(match["rest"])):
            table[match["name"]] = found
    return computations, entry


def _logical_lines(hlo: str) -> Iterator[str]:
    """Yield the lines of a program, those of one instruction together: a kernel's metadata has line
    breaks, and what the kernel is stands behind them."""
    held: list[str] = []
    for line in hlo.splitlines():
        begins = _INSTRUCTION.match(line) or _COMPUTATION.fullmatch(line) or line in ("", "}")
        if held and not begins:
            held.append(line)
            continue
        if held:
            yield "".join(held)
        held = [line]
    if held:
        yield "".join(held)


def _instruction(rest: str) -> Instruction | None:
    shape, rest = _bracketed(rest) if rest.startswith("(") else rest.split(" ", 1)
    match = re.match(r"\s*([\w-]+)(?=\()", rest)
    if match is None:
        return None
    operands, attributes = _bracketed(rest[match.end() :])
    return Instruction(shape, match[1], operands, attributes)


def _bracketed(text: str) -> tuple[str, str]:
    """Split text that begins with a bracket behind the one that closes it."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[: place + 1], text[place + 1 :]
    return text, ""


def trip_count(loop: Instruction, computations: dict[str, dict[str, Instruction]]) -> int | None:
    """Return how often a `while` runs its body; None if the program does not show it.

    The compilers for CPU and GPU write the number; that for TPU leaves a comparison with a constant
    in the condition, of a counter that begins at 0.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition = re.search(r"\bcondition=%?([^\s,]+)", loop.attributes)
    table = computations.get(condition[1], {}) if condition else {}
    for instruction in table.values():
        if instruction.operation == "compare" and "direction=LT" in instruction.attributes:
            last = table.get(instruction.names[-1])
            if last is not None and last.operation == "constant":
                return int(last.operands.strip("()"))
    return None


def branches(instruction: Instruction) -> list[str]:
    """Return the computations of a conditional."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
    text = listed[1] if listed else instruction.attributes
    pattern = r"%?([^\s,]+)" if listed else r"\b(?:true|false)_computation=%?([^\s,]+)"
    return re.findall(pattern, text)


def _own(
    instruction: Instruction, table: dict[str, Instruction], name: str, domains: Sequence[int]
) -> Collectives:
    """What one instruction sends by itself."""
    kind = instruction.operation.removesuffix("-start")
    if kind == "send":
        return _between_slices(instruction, table)
    if kind not in SENT:
        return Collectives.none()
    if kind == "all-reduce" and _SCATTERED in name:
        kind = "reduce-scatter"
    groups = replica_groups(instruction.attributes, len(domains))
    if kind == "collective-permute":
        groups = [pair for pair in groups if len(set(pair)) > 1]
    size = max(map(len, groups), default=1)
    if size == 1:
        return Collectives.none()
    crossed = max(len({domains[device] for device in group}) for group in groups)
    return _sent(kind, max(1, size // crossed), crossed, _operand_bytes(instruction, table))


def _sent(kind: str, members: int, crossed: int, size: int) -> Collectives:
    """One operation with operands of `size` bytes on `members` devices of each domain."""
    link, network = SENT[kind](members, crossed)
    return Collectives(
        collections.Counter({kind: 1}),
        collections.Counter({kind: link * size}),
        collections.Counter({kind: network * size}),
    )


def _between_slices(instruction: Instruction, table: dict[str, Instruction]) -> Collectives:
    """What a device hands to its host for other slices."""
    kinds = _BETWEEN_SLICES.search(instruction.attributes)
    listed = _SLICES.search(instruction.attributes)
    if kinds is None or listed is None:
        return Collectives.none()
    parts = [list(map(int, part.split(":"))) for part in listed[1].split(",")]
    slices = sum(part[-1] - part[0] + 1 for part in parts)
    kind = kinds[1].lower().replace("_", "-")
    kind = kind if kind in SENT else "collective-permute"  # such as ONE_TO_ONE
    return _sent(kind, 1, slices, _operand_bytes(instruction, table))


def _operand_bytes(instruction: Instruction, table: dict[str, Instruction]) -> int:
    return sum(shape_bytes(table[name].shape) for name in instruction.names if name in table)


def shape_bytes(text: str) -> int:
    """Return the bytes of the arrays in the text of a shape, such as "(f32[2,3]{1,0}, pred[])"."""
    total = 0
    for kind, dims in _ARRAY.findall(text):
        if kind != "token":
            bits = 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])
            values = math.prod(int(dim.strip("<=")) for dim in dims.split(",") if dim)
            total += values * bits // 8
    return total


def replica_groups(attributes: str, devices: int) -> list[tuple[int, ...]]:
    """Return the groups of devices, by their places in the mesh, that exchange data.

    There are four ways to write them: all groups, {{0,1},{2,3}}; a shape with permuted dims,
    [2,2]<=[2,2]T(1,0); axes of a mesh, mesh['a'=2,'b'=2] {'b'}; and pairs of source and target.
    Nothing, or {}, means all devices.
    """
    written = re.search(r"(?:replica_groups|source_target_pairs)=(.*)", attributes)
    text = written[1] if written else ""
    if listed := re.match(r"\{(\{[\d,{}]*\})\}", text):
        groups = re.findall(r"\{([\d,]+)\}", listed[1])
        return [tuple(_ints(group)) for group in groups]
    if shaped := re.match(r"\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _rows(_permuted(shaped[2]).reshape(_ints(shaped[1])))
    if meshed := re.match(r"mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))? ?\{([^}]*)\}", text):
        return _of_mesh(meshed[1], meshed[2], meshed[3])
    return [tuple(range(devices))]


def _of_mesh(axes: str, ids: str | None, named: str) -> list[tuple[int, ...]]:
    """The groups along some axes, or parts of axes 'a':(2)4, 4 devices after a split in 2."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    order = _permuted(ids) if ids else np.arange(math.prod(sizes.values()))
    shape, grouped = [], []
    parts = {
        name: (int(before or 1), int(size or 0))
        for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", named)
    }
    for name, size in sizes.items():
        before, part = parts.get(name, (size, 1))
        part = part or size // before
        grouped += [len(shape) + 1] if name in parts else []
        shape += [before, part, size // (before * part)]
    grid = np.moveaxis(order.reshape(shape), grouped, range(-len(grouped), 0))
    return _rows(grid.reshape(-1, math.prod(shape[axis] for axis in grouped)))


def _permuted(text: str) -> np.ndarray:
    """The devices of "[2,4]T(1,0)": counted up in a shape, whose dims are then permuted."""
    dims, _, axes = text.strip("[").partition("]")
    shape = _ints(dims)
    grid = np.arange(math.prod(shape)).reshape(shape)
    return grid.transpose(_ints(axes.strip("T()"))) if axes else grid


def _ints(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _rows(grid: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(map(int, row)) for row in grid]
