"""Trackers: writers that send a run somewhere, which may fail while the run goes on."""

import importlib.util
import pathlib
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xgen_jax.errors import UserError
from xgen_jax.files import read_json, write_json
from xgen_jax.training.metric_writers.base import MetricWriter, MetricWriters
from xgen_jax.training.metric_writers.trackio import TrackioWriter
from xgen_jax.training.metric_writers.wandb import WandbWriter

# Name of a tracker, its package and its extra.
TRACKERS: dict[str, Callable[..., MetricWriter]] = {
    "wandb": WandbWriter,
    "trackio": TrackioWriter,
}
METHODS = ("write", "progress", "image", "close")
PROJECT = "xgen_jax"

Note = Callable[[str, int, str], None]  # event, step, message


def check_writers(names: Sequence[str], own: Sequence[MetricWriter] = ()) -> None:
    """Check writers before anything is trained.

    Args:
      names: of `LoopConfig.writers`.
      own: the user's.

    Raises:
      UserError: the package of a tracker is not installed, or an object is no writer.
    """
    for name in names:
        if name in TRACKERS and not _installed(name):
            raise UserError(
                f"loop.writers names {name}, which is not installed: "
                f'pip install "xgen_jax[{name}]", or leave it out of --config.loop.writers'
            )
    for writer in own:
        missing = [name for name in METHODS if not callable(getattr(writer, name, None))]
        if missing:
            raise UserError(
                f"{writer!r} is no metric writer: it has no method {' and no '.join(missing)}"
            )


def open_trackers(
    names: Sequence[str],
    own: Sequence[MetricWriter],
    record: pathlib.Path,
    config: Mapping[str, Any],
) -> "Trackers":
    """Open the trackers of a run, guarded; they follow those of an earlier call.

    Args:
      names: of `LoopConfig.writers`.
      own: the user's writers, which are guarded too.
      record: file that notes which run of each tracker this is, and what it has got; its folder is
        the run's and gives its name.
      config: of the run, to be tracked.

    Raises:
      UserError: a tracker cannot be started in a new run: nobody is logged in, for instance. A
        run that goes on does so without it.
    """
    writers: list[GuardedWriter] = []
    for name in [name for name in names if name in TRACKERS]:
        run = TrackedRun(record, name)
        try:
            opened = TRACKERS[name](record.parent, PROJECT, run.id, run.known, config)
        except Exception as error:  # of any kind: the package's own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if run.known:  # it worked when the run began, and the run is what matters
                print(
                    f"{name} could not be started ({reason}); the run goes on without it until it "
                    "is started again",
                    file=sys.stderr,
                )
                continue
            Trackers(*writers).close()
            raise UserError(
                f"{name} could not be started ({reason}); see docs/trackers.md, or leave it out of "
                "--config.loop.writers"
            ) from error
        run.note({})
        writers.append(GuardedWriter(name, OnceWriter(opened, run)))
    writers += [GuardedWriter(type(writer).__name__, writer) for writer in own]
    return Trackers(*writers)


def _installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    # A folder of that name, such as the one that wandb makes, is a package without a file.
    return spec is not None and spec.origin is not None


class Trackers(MetricWriters):
    """The trackers of a run, guarded."""

    def __init__(self, *writers: "GuardedWriter"):
        super().__init__(*writers)
        self._guarded = writers

    def report_to(self, note: Note) -> None:
        """Report the failure of a tracker by `note` from now on."""
        for writer in self._guarded:
            writer.note = note


class TrackedRun:
    """What a run's folder remembers of a tracker: its run there, and the last steps sent.

    Attributes:
      id: of the run there, 8 hex digits.
      known: whether an earlier call has begun it.
      sent: the last step by what was sent: the metrics, or an image's name.
    """

    def __init__(self, path: pathlib.Path, name: str):
        self.path, self.name = path, name
        held = self._read().get(name, {})
        self.known = "id" in held
        self.id = str(held.get("id") or secrets.token_hex(4))
        self.sent: dict[str, int] = dict(held.get("sent", {}))

    def note(self, sent: Mapping[str, int]) -> None:
        """Note the last step that was sent of something."""
        self.sent.update(sent)
        write_json(self.path, {**self._read(), self.name: {"id": self.id, "sent": self.sent}})

    def _read(self) -> dict[str, Any]:
        return read_json(self.path) if self.path.is_file() else {}


class OnceWriter:
    """Sends no step twice: trackers only append, and a resumed run repeats the steps after its last
    checkpoint, which are the same again."""

    def __init__(self, writer: MetricWriter, run: TrackedRun):
        self.writer, self.run = writer, run

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of a step that has not been sent."""
        if self._new(step, "metrics"):
            self.writer.write(step, metrics)
            self.run.note({"metrics": step})

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing: progress is not tracked."""

    def image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Send an image of a step that has not been sent."""
        if self._new(step, name) and self._new(step, "metrics"):
            self.writer.image(step, name, path)
            self.run.note({name: step})

    def close(self) -> None:
        """Close the tracker."""
        self.writer.close()

    def _new(self, step: int, what: str) -> bool:
        return step > self.run.sent.get(what, -1)


class GuardedWriter:
    """A writer that ends no run: its first error is reported, and it is not called again.

    Attributes:
      note: called with the event, the step and the message; prints the message by default.
    """

    def __init__(self, name: str, writer: MetricWriter):
        self.name, self.writer, self.failed, self._step = name, writer, False, 0
        self.note: Note = lambda event, step, message: print(f"\n{message}", file=sys.stderr)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `MetricWriters.write`."""
        self._call(step, lambda: self.writer.write(step, metrics))

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """See `MetricWriters.progress`."""
        self._call(step, lambda: self.writer.progress(step, metrics))

    def image(self, step: int, name: str, path: pathlib.Path) -> None:
        """See `MetricWriters.image`."""
        self._call(step, lambda: self.writer.image(step, name, path))

    def close(self) -> None:
        """Close the writer, also after an error, which is not reported again."""
        try:
            self.writer.close()
        except Exception as error:
            self._report(error)

    def _call(self, step: int, call: Callable[[], None]) -> None:
        if self.failed:
            return
        self._step = step
        try:
            call()
        except Exception as error:  # of any kind: it is not the run's
            self._report(error)

    def _report(self, error: Exception) -> None:
        if self.failed:
            return
        self.failed = True
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        self.note(
            "failed_writer",
            self._step,
            f"the writer {self.name} failed at step {self._step} ({reason}); the run goes on "
            "without it until it is started again",
        )
