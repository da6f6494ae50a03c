"""What a run is about to do, in six lines before its first step, and the same in run.json."""

import dataclasses
import pathlib
import shlex
import sys
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh

from xgen_jax.config.runs import Run
from xgen_jax.data.config import DataConfig
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.sources.base import Source
from xgen_jax.parallel.memory import format_gb
from xgen_jax.typing import Params

_PERIOD = 1000  # steps of which the buckets are counted
_SHOWN = 8  # buckets in a line
_WIDTH = 200  # characters of a report in a line


@dataclasses.dataclass(frozen=True)
class Summary:
    """Facts of a run, for run.json and for people.

    Attributes:
      facts: by name, ready for JSON.
    """

    facts: dict[str, Any]

    @classmethod
    def of_data(cls, source: Source, config: DataConfig, pipeline: Pipeline, steps: int) -> Self:
        """Summarise the clips of a run.

        Args:
          source, config, pipeline: of the data.
          steps: of the whole run.
        """
        clips, distinct = count_clips(source, config, pipeline)
        counted = [pipeline.bucket(step) for step in range(min(steps, _PERIOD))]
        samples = sum(bucket.batch_size for bucket in counted) / len(counted) * steps
        captions, longest = 0, 0
        for _, caption in filter(lambda each: each[1], source.captions()):
            captions, longest = captions + 1, max(longest, len(caption.encode(errors="replace")))
        by_command = pathlib.Path(sys.argv[0]).stem == "train"  # and not by a notebook or a test
        return cls(
            {
                "command": shlex.join(["python", *sys.orig_argv[1:]]) if by_command else None,
                "source": source.name,
                "path": "" if source.path is None else str(source.path),
                "clips": len(source),
                "clips_by_bucket": clips,
                "left_out": pipeline.report().splitlines(),
                "captions": captions,
                "longest_caption_bytes": longest,
                "samples": round(samples),
                "epochs": round(samples / distinct, 4),
            }
        )

    def of_run(
        self,
        config: Run,
        first_step: int,
        parameters: int,
        frozen: Params,
        mesh: Mesh,
        step_bytes: int,
    ) -> "Summary":
        """Return this summary with what is known once the steps are compiled.

        Args:
          config: of the run.
          first_step: from which training begins or goes on.
          parameters: that are trained.
          frozen: the parameters that are not.
          mesh: of the devices.
          step_bytes: memory on a device that the largest step needs.
        """
        device = mesh.devices.flat[0]
        return Summary(
            {
                **self.facts,
                "first_step": first_step,
                "steps": config.loop.steps,
                "parameters": parameters,
                "frozen_parameters": sum(leaf.size for leaf in jax.tree.leaves(frozen)),
                "devices": f"{mesh.size} x {device.device_kind}",
                "idle_devices": jax.device_count() - mesh.size,
                "compute_dtype": config.loop.compute_dtype,
                "step_bytes": step_bytes,
            }
        )

    def lines(self) -> list[str]:
        """Return the six lines."""
        f = self.facts
        by_bucket = [f"{name}: {clips:,}" for name, clips in f["clips_by_bucket"].items()]
        more = f", and {len(by_bucket) - _SHOWN} more" if len(by_bucket) > _SHOWN else ""
        path = f" {f['path']}" if f["path"] else ""
        captions = "none, or not listed by the source"
        if f["captions"]:
            captions = f"{f['captions']:,}, the longest of {f['longest_caption_bytes']} bytes"
        frozen = f", {f['frozen_parameters']:,} frozen" if f["frozen_parameters"] else ""
        begin = f"from step {f['first_step']:,} " if f["first_step"] else ""
        memory = f", {format_gb(f['step_bytes'])} a device" if f["step_bytes"] else ""
        idle = f["idle_devices"]
        more_devices = f"; {idle} more are idle: --config.mesh.fsdp=-1 uses all" if idle else ""
        return [
            f"clips       {f['clips']:,} of {f['source']}{path}; by bucket "
            f"{', '.join(by_bucket[:_SHOWN])}{more}",
            f"left out    {_short('; '.join(f['left_out'])) or 'nothing'}",
            f"captions    {captions}",
            f"steps       {begin}to {f['steps']:,}: {f['samples']:,} samples in all, "
            f"{f['epochs']:.3g} epochs",
            f"parameters  {f['parameters']:,} trained{frozen}",
            f"devices     {f['devices']}, {f['compute_dtype']}{memory}{more_devices}",
        ]


def count_clips(
    source: Source, config: DataConfig, pipeline: Pipeline
) -> tuple[dict[str, int], int]:
    """Return (the number of clips of each bucket in use, by its name; different clips in all)."""
    members: list[np.ndarray | None]
    if config.fit:
        members = list(source.fit(config.buckets, config.seed))
    else:
        members = [source.clips_for(bucket) for bucket in config.buckets]
    used = {
        bucket.name: clips
        for bucket, clips in zip(config.buckets, members, strict=True)
        if bucket in pipeline.buckets
    }
    some = [clips for clips in used.values() if clips is not None]
    # None stands for all clips.
    distinct = len(np.unique(np.concatenate(some))) if len(some) == len(used) else len(source)
    return {
        name: len(source) if clips is None else len(clips) for name, clips in used.items()
    }, distinct


def _short(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."
