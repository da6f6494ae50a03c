"""One checkpoint on disk, through Orbax v1; the only module that imports Orbax.

It holds two items: the state, a tree of arrays, and one string of JSON: the run's data, dtype and
shape of every array, and their digests (`runs.digest`). What is read is compared with them.
"""

import gc
import hashlib
import json
import logging
import pathlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside Orbax's own imports
    from orbax.checkpoint import v1 as ocp

from xgen_jax.errors import UserError
from xgen_jax.parallel.sharding import path_name
from xgen_jax.runs.digest import on_host, tree_digests
from xgen_jax.typing import Array, Params

# Orbax logs every step of every save, and a failure with its traceback besides its exception.
logging.getLogger("absl").setLevel(logging.CRITICAL)
logging.getLogger("asyncio").setLevel(logging.CRITICAL)

NOT_LOADED = ocp.PLACEHOLDER  # in place of the shape of an array that is not wanted
T = TypeVar("T")
# Parts of errors that say nothing about the files: to step over those checkpoints would be wrong.
_NOT_DAMAGE = (
    "RESOURCE_EXHAUSTED",
    "PERMISSION_DENIED",
    "Permission denied",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "Too many open files",
)


class DamagedCheckpoint(UserError):
    """A checkpoint whose files are not what was written."""


def write(path: pathlib.Path, state: Params, data: dict[str, Any]) -> Any:
    """Start to write a checkpoint in the background; return what has a `result()`.

    Args:
      path: of its folder, which is there when all is written.
      state: a tree of arrays; with several processes each writes its part.
      data: ready for JSON.
    """
    state = jax.tree.map(_as_restored, state)
    kinds = {name: kind(leaf) for name, leaf in named(state).items()}
    record = {"data": data, "arrays": kinds, "digests": tree_digests(state)}
    # One string: Orbax writes every value of a tree as an array of its own.
    text = {"json": json.dumps(record), "sha256": _sha256(record)}
    return ocp.save_checkpointables_async(str(path), {"state": state, "data": text})


def copied(state: Params) -> Params | None:
    """Copy a state that is in this process's memory, in the time of the copy; None of any other.

    The copy has the same shardings, so that the files of both are alike.
    """
    leaves, structure = jax.tree.flatten(state)
    if jax.process_count() > 1 or not all(map(on_host, leaves)):
        return None
    arrays = iter(_copies([leaf for leaf in leaves if isinstance(leaf, jax.Array)]))
    return structure.unflatten(
        next(arrays) if isinstance(leaf, jax.Array) else np.array(leaf) for leaf in leaves
    )


@jax.jit
def _copies(arrays: list[Array]) -> list[Array]:
    return [jnp.copy(array) for array in arrays]


class StoredCheckpoint:
    """A checkpoint in a folder.

    Raises:
      DamagedCheckpoint: on reading, if its files are not what was written.
      UserError: on reading, if they cannot be read for another reason, such as memory.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path.absolute()

    def record(self) -> dict[str, Any]:
        """Read {"data", "arrays", "digests"} of a checkpoint; of an older release {"data"}."""
        saved = self._read(lambda: ocp.load_checkpointables(str(self.path), {"data": None})["data"])
        if "sha256" not in saved:
            return {"data": saved}
        try:
            record = json.loads(saved["json"])
        except ValueError:
            record = None
        if record is None or _sha256(record) != saved["sha256"]:
            raise DamagedCheckpoint(
                f"the checkpoint {self.path} cannot be read: its data is not what was written"
            )
        return record

    def contents(self) -> tuple[dict[str, Any], Params]:
        """Read (record, shapes of the state), which must agree."""
        record = self.record()
        tree = self._read(lambda: ocp.checkpointables_metadata(str(self.path)).metadata["state"])
        if "arrays" in record:
            there = {name: kind(leaf) for name, leaf in named(tree).items()}
            for name in sorted(there.keys() | record["arrays"].keys()):
                written, found = record["arrays"].get(name), there.get(name)
                if written != found:
                    raise DamagedCheckpoint(
                        f"the checkpoint {self.path} cannot be read: {name} is "
                        f"{found or 'missing'}, and {written or 'nothing'} was written"
                    )
        return record, tree

    def compare(self, wanted: dict[str, Any], tree: Params, grown: bool) -> None:
        """Raise UserError if the state is not the one wanted.

        Args:
          wanted: shapes by name.
          tree: from `contents`.
          grown: allow other shapes.
        """
        there = named(tree)
        for name in sorted(there.keys() | wanted.keys()):
            saved, here = kind(there.get(name)), kind(wanted.get(name))
            may_differ = grown and saved and here and saved.split()[0] == here.split()[0]
            if saved == here or may_differ:
                continue
            raise UserError(
                f"the checkpoint {self.path} cannot be read as the state of this run: "
                f"{name} is {saved or 'missing'} there and {here or 'missing'} here"
            )

    def load(self, abstract: Params) -> Params:
        return self._read(
            lambda: ocp.load_checkpointables(str(self.path), {"state": abstract})["state"]
        )

    def verify(self, record: dict[str, Any], loaded: Params) -> None:
        """Compare the digests of what was loaded with those of what was saved.

        With several processes all call it.

        Raises:
          DamagedCheckpoint: they differ; the message names the array.
        """
        if "digests" not in record:
            print(
                f"{self.path} is of a release without digests: it is used unchecked",
                file=sys.stderr,
            )
            return
        loaded = {name: leaf for name, leaf in named(loaded).items() if leaf is not ocp.PLACEHOLDER}
        digests = tree_digests(loaded)
        wrong = [name for name in loaded if digests[name] != record["digests"][name]]
        if wrong:
            more = f" and {len(wrong) - 1} others" if len(wrong) > 1 else ""
            raise DamagedCheckpoint(
                f"the checkpoint {self.path} cannot be used: the values of {wrong[0]}"
                f"{more} are not those that were written"
            )

    def _read(self, read: Callable[[], T]) -> T:
        """Call Orbax; of its many kinds of errors, each with pages of text, make one sentence."""
        try:
            return read()
        except Exception as error:
            text = "\n".join(f"{type(each).__name__}: {each}" for each in _chain(error))
        collect_quietly()
        for sign in _NOT_DAMAGE:
            if sign in text:
                line = next(line for line in text.splitlines() if sign in line)
                raise UserError(f"the checkpoint {self.path} cannot be read now ({line[:300]})")
        # The array that TensorStore was reading, or a file.
        found = re.search(r"'path': '([\w.]+)/'", text) or re.search(
            rf'"{re.escape(str(self.path))}/([^"]+)"', text
        )
        missing = "NOT_FOUND" in text or "FileNotFoundError" in text
        what = found[1].rstrip("/") if found else "a file"
        state = "missing" if missing else "damaged"
        raise DamagedCheckpoint(f"the checkpoint {self.path} cannot be read: {what} is {state}")


def array_shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array, or shape, of a tree by its path, as `Checkpoints.shapes`."""
    return {name: tuple(leaf.shape) for name, leaf in named(tree).items()}


def named(tree: Params) -> dict[str, Any]:
    """Return the arrays, or shapes, of a tree by their paths."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_named(function: Callable[[str, Any], Any], tree: Params) -> Params:
    """Map (path, leaf) over a tree."""
    return jax.tree_util.tree_map_with_path(lambda path, x: function(path_name(path), x), tree)


def kind(leaf: Any) -> str | None:
    """Return dtype and shape as "float32 8x4", or None for no array."""
    if leaf is None:
        return None
    return f"{np.dtype(leaf.dtype).name} {'x'.join(map(str, leaf.shape))}".rstrip()


def _as_restored(leaf: Any) -> Any:
    """Give an array of the host a type that jax has: others would be read as another one."""
    if isinstance(leaf, np.ndarray):
        return leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False)
    return leaf


def _sha256(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def collect_quietly() -> None:
    """Collect the coroutines that a failure leaves behind, which complain about it."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
    finally:
        sys.unraisablehook = hook
