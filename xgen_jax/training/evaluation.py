"""Evaluation inside the loop: loss and figures on held-out clips, and a video to look at."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from xgen_jax.config.loop import HELD_OUT, LoopConfig
from xgen_jax.data.pipeline import Batch, Pipeline
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import choose
from xgen_jax.parallel.agreement import is_first
from xgen_jax.parallel.arrays import fetch
from xgen_jax.training.run_log import RunLog
from xgen_jax.training.state import TrainState, sample_keys
from xgen_jax.training.tasks.base import Task
from xgen_jax.typing import Params, Video

PREVIEW_FPS = 8.0


class Judge(Protocol):
    """Figures of samples, computed by what is above training: `evaluation.captions` has one.

    Attributes:
      prompts: texts to sample, the same in every evaluation.
      names: of the figures.
    """

    @property
    def prompts(self) -> Sequence[str]: ...

    @property
    def names(self) -> Sequence[str]: ...

    def figures(self, videos: Iterable[Video]) -> Mapping[str, float]:
        """Return the figures of one video a prompt, uint8 (T, H, W, 3), in their order."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluates EMA parameters on the same held-out batches with the same noise each time.

    Attributes:
      task: of the run.
      batches: held-out batches on the host; none switch evaluation off.
      loop: of the run.
      sharding: of a batch.
      figures: compiled; (EMA parameters, arrays, sample ids, frozen) -> figures of a batch.
      judge: of samples of the task; None for none.
    """

    task: Task
    batches: list[Batch]
    loop: LoopConfig
    sharding: jax.sharding.NamedSharding
    figures: Callable
    judge: Judge | None = None

    @classmethod
    def make(
        cls,
        task: Task,
        held_out: Pipeline | None,
        loop: LoopConfig,
        sharding: Any,
        judge: Judge | None = None,
    ) -> "Evaluation":
        """Read the held-out batches: the first `loop.evaluate_batches` of each bucket."""
        batches: list[Batch] = []
        if held_out is not None and loop.evaluate_every:
            for bucket in held_out.buckets:
                own = (step for step in itertools.count() if held_out.bucket(step) == bucket)
                batches += [held_out.batch(s) for s in itertools.islice(own, loop.evaluate_batches)]

        def figures(params, arrays, sample_id_B, frozen):
            keys_B = sample_keys(loop.seed, np.int32(0), sample_id_B)
            return task.evaluate(params, arrays, keys_B, frozen)

        return cls(
            task=task,
            batches=batches,
            loop=loop,
            sharding=sharding,
            figures=jax.jit(figures),
            judge=judge,
        )

    def check(self, name: str, params: Params, arrays: Any, sample_id: Any, frozen: Params) -> None:
        """Raise UserError unless there is a figure of that name, with its prefix.

        Args:
          name: of `LoopConfig.keep_best`.
          params, arrays, sample_id, frozen: of `figures`, or their shapes.
        """
        figures = jax.eval_shape(self.figures, params, arrays, sample_id, frozen)
        judged = () if self.judge is None else self.judge.names
        choose("loop.keep_best", name, [HELD_OUT + figure for figure in (*figures, *judged)])

    def due(self, done: int) -> bool:
        """Return whether to evaluate after `done` steps."""
        every = self.loop.evaluate_every
        return bool(self.batches) and (done % every == 0 or done == self.loop.steps)

    def __call__(
        self, done: int, state: TrainState, frozen: Params, log: RunLog
    ) -> dict[str, float]:
        """Evaluate a state, and write a preview into the run's folder.

        Returns:
          The figures by name, each with the prefix `held_out_`: means over the batches.
        """
        rows = []
        with jax.transfer_guard("allow"):
            for batch in self.batches:
                arrays, sample_id = self.task.to_device(batch, self.sharding)
                rows.append(fetch(self.figures(state.ema, arrays, sample_id, frozen)))
            batch = self.batches[0]
            arrays, _ = self.task.to_device(batch, self.sharding)
            video = self.task.preview(state.ema, arrays, batch)
            judged = self._judged(state)
        if video is not None and is_first():
            path = log.run.path / "previews" / f"{done:08d}.gif"
            path.parent.mkdir(exist_ok=True)
            write_video(path, video, PREVIEW_FPS)
            log.preview(done, path)
        names = dict.fromkeys(name for row in rows for name in row)
        means = {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
        return {HELD_OUT + name: value for name, value in (means | judged).items()}

    def _judged(self, state: TrainState) -> dict[str, float]:
        """Return the judge's figures of samples as long as the longest held-out clips."""
        if self.judge is None:
            return {}
        longest = max(self.batches, key=_frames)
        arrays, _ = self.task.to_device(longest, self.sharding)
        videos = self.task.generate(state.ema, arrays, self.judge.prompts)
        return dict(self.judge.figures(videos))


def _frames(batch: Batch) -> int:
    """Frames of a batch's clips, or of their latents."""
    return next(batch[name] for name in ("video", "latents") if name in batch).shape[1]
