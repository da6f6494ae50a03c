"""The checkpoints of a run: which there are, which are kept, and which one is taken.

A checkpoint is committed by one rename, so a run that is killed while saving leaves the one before
it. An Orbax checkpointer may call a failed save its latest, so the list of steps is always read
from the folder. See `runs.stored` for what is in one.
"""

import concurrent.futures
import functools
import math
import pathlib
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from xgen_jax.config.loop import LoopConfig, better
from xgen_jax.errors import UserError
from xgen_jax.parallel.agreement import from_first, gather, is_first, together
from xgen_jax.runs.stored import (
    NOT_LOADED,
    DamagedCheckpoint,
    StoredCheckpoint,
    array_shapes,
    collect_quietly,
    copied,
    map_named,
    named,
    write,
)
from xgen_jax.typing import Params

# Which checkpoint to take, besides the number of a step.
LATEST, LATEST_GOOD, BEST = CHOICES = ("latest", "latest_good", "best")
Step = int | str | None  # None is LATEST

T = TypeVar("T")


class FailedSave(UserError):
    """A checkpoint that could not be written; those before it are intact.

    Attributes:
      step: of the checkpoint.
    """

    def __init__(self, step: int, target: pathlib.Path, error: BaseException):
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        super().__init__(
            f"the checkpoint {target} could not be written ({reason}); is the disk full or "
            "read-only?"
        )
        self.step = step


class Checkpoints:
    """The checkpoints of one run.

    A save keeps the newest `keep`, those of steps that are multiples of `every`, and the one with
    the best figure; the others are removed.

    Attributes:
      keep, every, best: see `LoopConfig.keep_checkpoints`, `keep_every` and `keep_best`.

    Raises:
      FailedSave: on `save`, `poll` and `wait`, if the disk is full or cannot be written.
      DamagedCheckpoint: on reading; with LATEST_GOOD only if no checkpoint is whole.
      UserError: on reading, if there is no checkpoint, or one of another model.
    """

    def __init__(
        self, folder: pathlib.Path, keep: int = 2, every: int = 0, best: str | None = None
    ):
        self.folder = pathlib.Path(folder)
        self.keep, self.every, self.best = keep, every, best
        self._pending: tuple[concurrent.futures.Future, threading.Thread, int] | None = None
        self._damaged: dict[int, DamagedCheckpoint] = {}
        self._figures: dict[int, dict[str, float]] = {}

    def keep_as(self, loop: LoopConfig) -> None:
        """Keep what a run's configuration says."""
        self.keep, self.every, self.best = loop.keep_checkpoints, loop.keep_every, loop.keep_best

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

        A state in this process's memory is copied, and all else is done in a thread. Of another,
        Orbax copies the arrays from their devices before this returns; with several processes all
        must call it in the same order. A step that is there already is left as it is: a run's state
        at a step is always the same.

        Args:
          step: updates made.
          state: a tree of arrays; with several processes each writes its part.
          data: ready for JSON. "held_out", figures by name, decides which checkpoint is the best.
        """
        self.wait()
        if from_first(lambda: step in self.steps()):
            return
        target = self._target(step)
        data = {**data, "keep_best": self.best} if self.best else data
        if (copy := copied(state)) is not None:
            begin = functools.partial(self._begin, target, copy, data)
        else:
            try:
                response = self._begin(target, state, data)
            except (OSError, ValueError, UserError) as error:
                raise FailedSave(step, target, error) from error
            begin = functools.partial(lambda begun: begun, response)
        self._figures[step] = data.get("held_out", {})
        done: concurrent.futures.Future = concurrent.futures.Future()
        thread = threading.Thread(target=self._finish, args=(begin, done), daemon=True)
        thread.start()
        self._pending = done, thread, step

    def poll(self) -> None:
        """Raise FailedSave if the last save has failed meanwhile; return at once."""
        if self._pending is not None and self._pending[0].done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last save is on disk, and what is not to be kept is removed."""
        if self._pending is None:
            return
        future, thread, step = self._pending
        error = future.exception()
        # It still frees the copied arrays, and an interpreter that ends meanwhile crashes.
        thread.join()
        failed = error and FailedSave(step, self._target(step), error)
        self._pending, future, error = None, None, None
        if failed is not None:
            collect_quietly()
            if is_first():
                self._remove_unfinished()  # it may be what fills the disk
            raise failed

    def restore(
        self, abstract_state: Params, step: Step = None, grown: bool = False
    ) -> tuple[Params, dict[str, Any]]:
        """Load (state, data), the arrays by their paths.

        All processes of a run call it. The state may have been saved in other containers, such as
        the empty ones of an optimiser with another weight decay.

        Args:
          abstract_state: shapes, dtypes and shardings wanted; a checkpoint made on other devices is
            resharded.
          step: one of `steps()` or CHOICES, by default the newest.
          grown: allow arrays with other shapes, which have those that were saved.
        """
        wanted, structure = named(abstract_state), jax.tree.structure(abstract_state)

        def abstract(name: str, saved: Any) -> Any:
            leaf = wanted[name]
            if leaf.shape == saved.shape:
                return leaf
            # As many rows may not divide over the devices.
            whole = jax.sharding.NamedSharding(leaf.sharding.mesh, jax.sharding.PartitionSpec())
            return jax.ShapeDtypeStruct(saved.shape, leaf.dtype, sharding=whole)

        def load(step: int) -> tuple[Params, dict[str, Any]]:
            stored = self._stored(step)
            record, loaded, error = {}, None, None
            try:
                record, tree = stored.contents()
                stored.compare(wanted, tree, grown)
                loaded = stored.load(map_named(abstract, tree))
            except UserError as failed:  # raised below, so that no process waits for this one
                error = failed
            if any(gather(error is not None)):
                raise error or DamagedCheckpoint(f"another process cannot read {stored.path}")
            stored.verify(record, loaded)
            arrays = named(loaded)
            return structure.unflatten(arrays[name] for name in wanted), record["data"]

        return self._first_whole(step, load, from_first(self.steps))

    def restore_data(self, step: Step = None) -> dict[str, Any]:
        """Load the data that was saved with the state, without reading the state."""
        return self._first_whole(step, lambda step: self._stored(step).record())["data"]

    def restore_part(self, names: tuple[str, ...], step: Step = None) -> Params:
        """Load the part of the state under `names`, e.g. ("ema",), onto this process's first
        device."""
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        prefix = "".join(f"{name}/" for name in names)

        def abstract(name: str, saved: Any) -> Any:
            if not f"{name}/".startswith(prefix):
                return NOT_LOADED
            return jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=sharding)

        def load(step: int) -> Params:
            stored = self._stored(step)
            record, tree = stored.contents()
            if not any(f"{name}/".startswith(prefix) for name in named(tree)):
                raise UserError(f"the checkpoint {stored.path} holds no {'/'.join(names)}")
            part = stored.load(map_named(abstract, tree))
            stored.verify(record, part)
            for name in names:
                part = part[name]
            return part

        return self._first_whole(step, load)

    def shapes(self, step: Step = None) -> dict[str, tuple[int, ...]]:
        """Return the shape of every array of a state by its path, "params/vdit/..."."""
        return self._first_whole(step, lambda step: array_shapes(self._stored(step).contents()[1]))

    def figures(self, step: int) -> dict[str, float]:
        """Return the held-out figures that were saved with a checkpoint; {} if it has none."""
        if step not in self._figures:
            self._figures[step] = self.restore_data(step).get("held_out", {})
        return self._figures[step]

    def best_step(self, name: str) -> int | None:
        """Return the step of the checkpoint with the best figure of a name, the first of equal
        ones; None if no checkpoint that can be read has it."""
        best = None
        for step in self.steps():
            try:
                value = self.figures(step).get(name)
            except UserError:
                continue  # to read that checkpoint says what is wrong with it
            if value is None or math.isnan(value):
                continue
            if best is None or better(name, value, best[0]):
                best = value, step
        return best and best[1]

    def resolve(self, step: Step) -> int:
        """Return the number of the step that a choice means; with LATEST_GOOD one that has not been
        found damaged so far.

        Raises:
          UserError: there is none.
        """
        return next(self._candidates(step, self.steps()))

    def set_aside(self, after: int) -> None:
        """Rename the checkpoints of later steps to STEP.damaged: a run goes on before them."""
        for step in self.steps():
            if step > after:
                old = self.folder / str(step)
                names = (f"{step}.damaged", *(f"{step}.damaged.{n}" for n in range(2, 1000)))
                new = next(
                    old.with_name(name) for name in names if not (self.folder / name).exists()
                )
                old.rename(new)
                print(f"renamed {old} to {new.name}", file=sys.stderr)

    def _begin(self, target: pathlib.Path, state: Params, data: dict[str, Any]) -> Any:
        """Start to write; return what has a `result()`."""
        # Made here, because Orbax waits minutes for a folder that cannot be made.
        from_first(lambda: self._make_free(target))
        with together():
            # Orbax waits minutes here too, and for a process that cannot write.
            name = f"{target.name}.orbax-checkpoint-tmp-{jax.process_index()}"
            probe = self.folder / name
            probe.mkdir()
            probe.rmdir()
        return write(target, state, data)

    def _finish(self, begin: Callable[[], Any], done: concurrent.futures.Future) -> None:
        try:
            begin().result()
            if is_first():
                for old in self._not_kept():
                    self._remove(old)
        except Exception as error:  # of any kind: the checkpoint is not there
            done.set_exception(error)
        else:
            done.set_result(None)

    def _target(self, step: int) -> pathlib.Path:
        return (self.folder / str(step)).absolute()

    def _stored(self, step: int) -> StoredCheckpoint:
        return StoredCheckpoint(self._target(step))

    def _candidates(self, step: Step, steps: list[int]) -> Iterator[int]:
        if not steps:
            raise UserError(f"there is no finished checkpoint in {self.folder}; train first")
        if step is None or step == LATEST:
            yield steps[-1]
        elif step == LATEST_GOOD:
            yield from reversed([each for each in steps if each not in self._damaged])
            raise list(self._damaged.values())[-1]
        elif step == BEST:
            name = self.restore_data(steps[-1]).get("keep_best")
            best = name and self.best_step(name)
            if best is None:
                raise UserError(
                    f"no checkpoint in {self.folder} has a held-out figure to compare: train with "
                    "--config.loop.keep_best=held_out_psnr_db (an embedder) or held_out_loss (a "
                    "transformer), or choose a step of "
                    f"{', '.join(map(str, steps))}"
                )
            yield best
        elif str(step).isdigit() and int(step) in steps:
            yield int(step)
        else:
            raise UserError(
                f"there is no checkpoint of step {step} in {self.folder}; there are {steps}, "
                f"{', '.join(CHOICES)}"
            )

    def _make_free(self, target: pathlib.Path) -> None:
        """Make the folder, without what stands in the way of a save."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished(target)

    def _first_whole(
        self, step: Step, load: Callable[[int], T], steps: list[int] | None = None
    ) -> T:
        """Load what a choice means; with LATEST_GOOD step over damaged checkpoints, with a note."""
        there = self.steps()
        for each in self._candidates(step, there if steps is None else steps):
            try:
                return load(each)
            except DamagedCheckpoint as error:
                older = [other for other in there if other < each]
                if step == LATEST_GOOD:
                    self._damaged[each] = error
                    print(f"{error}; it is stepped over", file=sys.stderr)
                elif older and step in (None, LATEST):
                    raise DamagedCheckpoint(
                        f"{error}; --restore=latest_good takes the newest that is whole (there is "
                        f"step {older[-1]}), as does renaming the folder to {each}.damaged"
                    ) from None
                else:
                    raise
        raise AssertionError("candidates end with an error")

    def _not_kept(self) -> list[int]:
        steps = self.steps()
        best = self.best_step(self.best) if self.best else None
        return [
            step
            for step in steps[: -self.keep]
            if step != best and not (self.every and step % self.every == 0)
        ]

    def _remove(self, step: int) -> None:
        """Remove a checkpoint; one that is half removed does not count as one."""
        going = self.folder / f"{step}.orbax-checkpoint-tmp-removed"
        try:
            (self.folder / str(step)).rename(going)
            shutil.rmtree(going)
        except OSError as error:
            print(f"the old checkpoint {going} could not be removed ({error})", file=sys.stderr)

    def _remove_unfinished(self, target: pathlib.Path | None = None) -> None:
        """Remove what killed saves, or an incomplete copy of `target`, left behind."""
        for path in (*self.folder.glob("*.orbax-checkpoint-tmp*"), target):
            if path is not None and path.exists():
                shutil.rmtree(path)
