"""Metric writers behind one `write`: console, JSON lines, TensorBoard, Weights & Biases, Trackio.

A metric is a float with a name that carries its unit (`steps_per_s`, `time_s`, `psnr_db`). `write`
records a step's metrics; `progress` only shows the step and is cheap enough to be called on every
step. Nothing here imports JAX or TensorFlow, so that a writer never waits for a device: the caller
passes numbers it has already fetched.
"""

from xgen_jax.training.metric_writers.base import MetricWriter, MetricWriters
from xgen_jax.training.metric_writers.console import ConsoleWriter, duration
from xgen_jax.training.metric_writers.jsonl import RESERVED, JsonlWriter, read_jsonl
from xgen_jax.training.metric_writers.tensorboard import TensorBoardWriter

__all__ = [
    "RESERVED",
    "ConsoleWriter",
    "JsonlWriter",
    "MetricWriter",
    "MetricWriters",
    "TensorBoardWriter",
    "duration",
    "read_jsonl",
]
