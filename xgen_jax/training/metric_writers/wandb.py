"""Metrics and previews for Weights & Biases (extra `wandb`)."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from xgen_jax.training.metric_writers.base import number

FINISH_TIMEOUT_S = 120.0
VIDEO_SUFFIXES = (".gif", ".mp4", ".webm", ".ogg")


class WandbWriter:
    """A run of Weights & Biases; its variables, such as WANDB_MODE=offline, work as ever.

    Args:
      workdir: the run's folder: its name is the run's, and wandb's files go to wandb/ in it.
      project: unless WANDB_PROJECT names another.
      run_id: of the run there.
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
        import wandb  # takes seconds

        offline = os.environ.get("WANDB_MODE") == "offline"  # its runs join when they are synced
        self._wandb = wandb
        self._run = wandb.init(
            dir=workdir,
            project=os.environ.get("WANDB_PROJECT", project),
            name=os.environ.get("WANDB_NAME", workdir.resolve().name),
            id=run_id,
            resume="allow" if known and not offline else None,
            config=dict(config),
            allow_val_change=True,
            reinit="create_new",  # a run that the user's own program has begun stays as it is
            # Standard output is kept for results, and its end must not wait for a network for ever.
            settings=wandb.Settings(console="off", finish_timeout=FINISH_TIMEOUT_S),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log the metrics of a step."""
        self._run.log({name: number(value) for name, value in metrics.items()}, step=int(step))

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing: progress is not tracked."""

    def image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Log an image file, or one that moves as a video."""
        if path.suffix in VIDEO_SUFFIXES:
            media = self._wandb.Video(str(path), format=path.suffix[1:])
        else:
            media = self._wandb.Image(str(path))
        self._run.log({name: media}, step=int(step))

    def close(self) -> None:
        """Send what is left, and finish; a second call does nothing."""
        self._run.finish()
