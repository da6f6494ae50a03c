"""What several processes tell each other: values, errors and differences.

Every function here must be called by all processes, in the same order. With one process all of them
return at once.
"""

import collections
import contextlib
import functools
import hashlib
import json
import pathlib
import platform
from collections.abc import Callable, Generator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xgen_jax.errors import UserError

T = TypeVar("T")

_SHOWN = 10  # differences in a message


def is_first() -> bool:
    """Return whether this process writes and prints for all."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, by process; each must be of the types of JSON.

    Raises:
      UserError: a process has failed in `together` meanwhile.
    """
    if jax.process_count() == 1:
        return [value]
    messages = _exchange({"value": value})
    if failed := _failures(messages):
        raise _OtherFailed("\n".join(failed))
    return [message["value"] for message in messages]


def gather_arrays(array: np.ndarray) -> np.ndarray:
    """Return the arrays of all processes, of one shape and dtype, along a new first dim.

    Raises:
      UserError: a process has failed in `together` meanwhile.
    """
    gather(None)
    return _all_rows(array) if jax.process_count() > 1 else array[None]


def from_first(make: Callable[[], T]) -> T:
    """Return what `make` gives in the first process, where alone it is called.

    The value must be of the types of JSON. An error is raised in every process.
    """
    value = None
    with together():
        if is_first():
            value = make()
    return gather(value)[0]


@contextlib.contextmanager
def together() -> Generator[None]:
    """Go on after the block when all processes have come to its end.

    Raises:
      UserError: the block has failed in a process; with its number and host if not in all alike.
    """
    if jax.process_count() == 1:
        yield
        return
    failure = None
    try:
        yield
    except _OtherFailed:  # all know of it
        raise
    except Exception as error:  # it is raised below, when the others know of it
        failure = error
    messages = _exchange(
        {} if failure is None else {"failed": str(failure) or type(failure).__name__}
    )
    failed = _failures(messages)
    alike = len({message.get("failed") for message in messages}) == 1
    if failure is not None and (alike or not isinstance(failure, UserError | OSError)):
        raise failure
    if failed:
        raise UserError("\n".join(failed)) from failure


class _OtherFailed(UserError):
    """Another process has failed, and says so in place of what was asked."""


def check_equal(facts: Mapping[str, Any]) -> None:
    """Check that all processes were started alike.

    Args:
      facts: values of the types of JSON by name; a group of them is compared value by value.

    Raises:
      UserError: in every process, with each process that differs from most others, its host, and
        what differs.
    """
    flat = {name: json.dumps(value) for name, value in _flat("", facts)}
    everyone = gather([platform.node(), flat])
    hosts = [host for host, _ in everyone]
    lines = []
    for name in sorted({name for _, theirs in everyone for name in theirs}):
        values = [theirs.get(name, "not there") for _, theirs in everyone]
        usual = collections.Counter(values).most_common(1)[0][0]
        with_usual = values.index(usual)
        lines += [
            f"process {process} ({hosts[process]}): {name} is {_short(value)}, and {_short(usual)} "
            f"in process {with_usual} ({hosts[with_usual]})"
            for process, value in enumerate(values)
            if value != usual
        ]
    if lines:
        more = f"\n  and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        listed = "\n  ".join(lines[:_SHOWN])
        raise UserError(
            f"the processes were not started alike:\n  {listed}{more}\nstart the same command with "
            "the same code, packages and data in every process"
        )


@functools.cache
def source_digest() -> str:
    """Return 16 hex digits of a SHA-256 over the source files of the package."""
    root, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _exchange(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of all processes, each with its "host"."""
    text = json.dumps({"host": platform.node(), **message}).encode()
    sizes = _all_rows(np.array([len(text)], np.int32))[:, 0]
    longest = 1 << int(sizes.max()).bit_length()  # few lengths, few programs
    rows = _all_rows(np.frombuffer(text.ljust(longest), np.uint8))
    return [json.loads(row.tobytes()) for row in rows]


def _failures(messages: list[dict[str, Any]]) -> list[str]:
    return [
        f"process {process} ({message['host']}): {message['failed']}"
        for process, message in enumerate(messages)
        if "failed" in message
    ]


def _all_rows(row: np.ndarray) -> np.ndarray:
    return jax.device_get(_rows_everywhere(row).addressable_data(0))


def _rows_everywhere(row: np.ndarray) -> jax.Array:
    mesh, spread = _one_device_a_process()
    on_own = NamedSharding(mesh, PartitionSpec("processes"))
    with jax.transfer_guard("allow"):
        return spread(jax.make_array_from_process_local_data(on_own, row[None]))


@functools.cache
def _one_device_a_process() -> tuple[Mesh, Callable[[jax.Array], jax.Array]]:
    """Return a mesh of the first device of each process, and what copies an array to all of them.

    Processes may have different numbers of devices, which is one of the things to compare.
    """
    own: dict[int, Any] = {}
    for device in jax.devices():
        own.setdefault(device.process_index, device)
    mesh = Mesh(np.array([own[process] for process in range(jax.process_count())]), ("processes",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    return mesh, jax.jit(lambda rows: rows, out_shardings=everywhere)


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not value:
        return [(prefix, value)]
    return [
        leaf
        for key, inner in value.items()
        for leaf in _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    ]


def _short(value: str) -> str:
    return value if len(value) <= 100 else f"{value[:97]}..."
