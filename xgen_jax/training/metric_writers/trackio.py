"""Metrics and previews for Trackio (extra `trackio`), which keeps them on this machine."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from xgen_jax.training.metric_writers.base import number

VIDEO_SUFFIXES = (".gif", ".mp4", ".webm")


class TrackioWriter:
    """A run of Trackio; its variables, such as TRACKIO_DIR and TRACKIO_SPACE_ID, work as ever.

    Args:
      workdir: the run's folder, whose name is the beginning of the run's.
      project: unless TRACKIO_PROJECT names another.
      run_id: end of the run's name: Trackio knows runs by their names.
      known: whether an earlier call has begun it.
      config: of the run.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        project: str,
        run_id: str,
        known: bool,
        config: Mapping[str, Any],
    ):
        # It speaks on standard output, which is kept for results.
        with contextlib.redirect_stdout(sys.stderr):
            import trackio  # takes seconds

            self._trackio = trackio
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", project),
                name=f"{workdir.resolve().name}-{run_id}",
                config=dict(config),
                resume="allow" if known else "never",
                embed=False,
            )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step."""
        self._run.log({name: number(value) for name, value in metrics.items()}, step=int(step))

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing: progress is not tracked."""

    def image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Log an image file, or one that moves as a video."""
        kind = self._trackio.Video if path.suffix in VIDEO_SUFFIXES else self._trackio.Image
        self._run.log({name: kind(str(path))}, step=int(step))

    def close(self) -> None:
        """Write what is left, and finish; a second call does nothing."""
        # `finish` also lets go of it, which the run's own does not: it would speak once more as the
        # program ends. A run that the user's program has begun since has ended this one.
        if self._trackio.context_vars.current_run.get() is self._run:
            with contextlib.redirect_stdout(sys.stderr):
                self._trackio.finish()
