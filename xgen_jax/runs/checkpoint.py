"""Checkpoints with Orbax v1; the only module that imports Orbax.

A checkpoint holds the train state and a small JSON for the data pipeline. It is committed by one
rename, so a run that is killed while saving leaves the one before it. An Orbax checkpointer may
call a failed save its latest, so the list of steps is always read from the folder.
"""

import logging
import pathlib
import shutil
import warnings
from typing import Any

import jax

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside Orbax's own imports
    from orbax.checkpoint import v1 as ocp

from xgen_jax.errors import UserError
from xgen_jax.parallel.agreement import from_first, is_first, together
from xgen_jax.typing import Params

# Orbax logs every step of every save, and a failure with its traceback besides its exception.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
    """The checkpoints of one run; all but the newest `keep` are removed.

    Raises:
      UserError: on `save`, if the disk is full or cannot be written; on `restore`, if a checkpoint
        is damaged or of another model.
    """

    def __init__(self, folder: pathlib.Path, keep: int = 2):
        self.folder = pathlib.Path(folder)
        self._keep = keep
        self._pending = None

    def steps(self) -> list[int]:
        """Return the steps of the committed checkpoints, ascending."""
        if not self.folder.is_dir():
            return []
        found = [
            p
            for p in self.folder.iterdir()
            if p.name.isdigit() and (p / "_CHECKPOINT_METADATA").is_file()
        ]
        return sorted(int(p.name) for p in found)

    def save(self, step: int, state: Params, data: dict[str, Any]) -> None:
        """Start to write (state, data) in the background, after the last save has ended.

        A step that is there already is left as it is: a run's state at a step is always the same.
        """
        self.wait()
        target = (self.folder / str(step)).absolute()
        if from_first(lambda: step in self.steps()):
            return
        try:
            # Made here, because Orbax waits minutes for a folder that cannot be made.
            from_first(lambda: self._make_free(target))
            self._pending = (
                ocp.save_checkpointables_async(str(target), {"state": state, "data": data}),
                target,
            )
        except (OSError, ValueError) as error:
            raise _cannot_write(target, error) from error

    def wait(self) -> None:
        """Wait until the last save is on disk, and remove the checkpoints past `keep`."""
        if self._pending is None:
            return
        (response, target), self._pending = self._pending, None
        with together():  # then every process sees it in the folder
            try:
                response.result()
            except (OSError, ValueError) as error:
                raise _cannot_write(target, error) from error
        if is_first():
            for step in self.steps()[: -self._keep]:
                shutil.rmtree(self.folder / str(step))

    def restore(
        self, abstract_state: Params, step: int | None = None
    ) -> tuple[Params, dict[str, Any]]:
        """Load (state, data) of a step, by default the newest.

        Args:
          abstract_state: shapes, dtypes and shardings wanted; a checkpoint made on other devices is
            resharded.
          step: one of `steps()`.
        """
        loaded = self._load({"state": abstract_state, "data": None}, step)
        return loaded["state"], loaded["data"]

    def restore_arrays(
        self, abstract_state: Params, step: int | None = None
    ) -> tuple[Params, dict[str, Any]]:
        """Load (state, data) as `restore`, but by the paths of arrays alone.

        The state may have been saved in other containers, such as the empty ones of an optimiser
        with another weight decay. An array has the number of rows that was saved.
        """
        step = self._choose(step)
        leaves, structure = jax.tree_util.tree_flatten_with_path(abstract_state)
        wanted = {_path_name(path): leaf for path, leaf in leaves}
        there = self._metadata(step)

        def as_saved(path, saved):
            leaf = wanted[_path_name(path)]
            if leaf.shape == saved.shape:
                return leaf
            # As many rows may not divide over the devices.
            whole = jax.sharding.NamedSharding(leaf.sharding.mesh, jax.sharding.PartitionSpec())
            return jax.ShapeDtypeStruct(saved.shape, leaf.dtype, sharding=whole)

        by_path = jax.tree_util.tree_map_with_path(as_saved, there)
        loaded = self._load({"state": by_path, "data": None}, step)
        arrays = {
            _path_name(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(loaded["state"])
        }
        state = structure.unflatten(arrays[_path_name(path)] for path, _ in leaves)
        return state, loaded["data"]

    def restore_data(self, step: int | None = None) -> dict[str, Any]:
        """Load the data that was saved with the state, without reading the state."""
        return self._load({"data": None}, step)["data"]

    def _load(self, wanted: dict[str, Any], step: int | None) -> dict[str, Any]:
        step = self._choose(step)
        target = (self.folder / str(step)).absolute()
        try:
            return ocp.load_checkpointables(str(target), wanted)
        # Orbax and TensorStore raise many kinds; each means the same to the user.
        except Exception as error:
            raise self._cannot_read(target, step, error) from error

    def shapes(self, step: int | None = None) -> dict[str, tuple[int, ...]]:
        """Return the shape of every array of a state by its path, "params/vdit/..."."""
        return array_shapes(self._metadata(self._choose(step)))

    def _metadata(self, step: int) -> Params:
        target = (self.folder / str(step)).absolute()
        try:
            return ocp.checkpointables_metadata(str(target)).metadata["state"]
        except Exception as error:
            raise self._cannot_read(target, step, error) from error

    def restore_part(self, names: tuple[str, ...], step: int | None = None) -> Params:
        """Load the part of the state under `names`, e.g. ("ema",), onto this process's first
        device."""
        step = self._choose(step)
        target = (self.folder / str(step)).absolute()
        try:
            tree = ocp.checkpointables_metadata(str(target)).metadata["state"]
            sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

            def wanted(path, leaf):
                keys = tuple(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
                if keys[: len(names)] != names:
                    return ocp.PLACEHOLDER
                return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

            abstract = jax.tree_util.tree_map_with_path(wanted, tree)
            part = ocp.load_checkpointables(str(target), {"state": abstract})["state"]
            for name in names:
                part = part[name]
        except Exception as error:
            raise self._cannot_read(target, step, error) from error
        return part

    def _cannot_read(self, target: pathlib.Path, step: int, error: Exception) -> UserError:
        older = [each for each in self.steps() if each < step]
        hint = f"; remove {target} to go on from step {older[-1]}" if older else ""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        return UserError(f"the checkpoint {target} cannot be read ({reason}){hint}")

    def _choose(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise UserError(f"there is no finished checkpoint in {self.folder}; train first")
        if step is not None and step not in steps:
            raise UserError(
                f"there is no checkpoint of step {step} in {self.folder}; there are {steps}"
            )
        return steps[-1] if step is None else step

    def _make_free(self, target: pathlib.Path) -> None:
        """Make the folder; remove what killed saves, or a part of a copy of `target`, left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in (*self.folder.glob("*.orbax-checkpoint-tmp*"), target):
            if path.exists():
                shutil.rmtree(path)


def array_shapes(tree: Params) -> dict[str, tuple[int, ...]]:
    """Return the shape of every array, or shape, of a tree by its path, as `Checkpoints.shapes`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_path_name(path): tuple(leaf.shape) for path, leaf in leaves}


def _path_name(path: Any) -> str:
    # What is an attribute in a state is a key on disk.
    names = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))) for key in path)
    return "/".join(map(str, names))


def _cannot_write(target: pathlib.Path, error: Exception) -> UserError:
    return UserError(
        f"the checkpoint {target} could not be written ({error}); is the disk full or read-only?"
    )
