"""Metrics and previews for TensorBoard."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from xgen_jax.training.metric_writers.base import number


class TensorBoardWriter:
    """Scalars for TensorBoard, through tensorboardX.

    Args:
      directory: the folder of the event files.
      first_step: the first step that this run will write; TensorBoard then hides what an
        interrupted run wrote from there on. None hides nothing.
    """

    def __init__(self, directory: str | os.PathLike, first_step: int | None = None):
        # Here and not above: it pulls in protobuf, which a run that does not want TensorBoard
        # should not wait for.
        from tensorboardX import SummaryWriter
        from tensorboardX.proto.summary_pb2 import Summary

        self._writer = SummaryWriter(str(directory), purge_step=first_step)
        self._summary = Summary

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one scalar a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, number(value), int(step))

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """Do nothing: progress is not recorded."""

    def image(self, step: int, name: str, path: pathlib.Path) -> None:
        """Add an image file as it is, so that a GIF moves."""
        image = self._summary.Image(colorspace=3, encoded_image_string=path.read_bytes())
        summary = self._summary(value=[self._summary.Value(tag=name, image=image)])
        file_writer: Any = self._writer.file_writer
        file_writer.add_summary(summary, int(step))

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        self._writer.close()
