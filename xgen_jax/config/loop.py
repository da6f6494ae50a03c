"""Length, precision and rhythm of a run, and what to do about a loss that goes wrong."""

import dataclasses

from xgen_jax.errors import UserError, choose

WRITERS = ("console", "jsonl", "tensorboard", "wandb", "trackio")
HELD_OUT = "held_out_"  # begins the names of an evaluation's figures


def better(figure: str, one: float, other: float) -> bool:
    """Return whether `one` is better than `other`: higher for a PSNR or an accuracy, lower for any
    other figure. NaN is never better."""
    higher = any(word in figure for word in ("psnr", "accuracy"))
    return one > other if higher else one < other


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Length, precision and rhythm of a run.

    Attributes:
      steps: updates in all.
      seed: of initialisation, noise, diffusion times and dropped captions.
      ema_decay: of the exponential moving average of the parameters, which is what samples and
        reconstructions use.
      compute_dtype: `bfloat16` or `float32`; parameters, EMA and losses are float32.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      keep_checkpoints: number of checkpoints kept, the newest ones.
      keep_every: checkpoints of steps that are multiples of this are kept as well; 0 for none.
      keep_best: a held-out figure, such as `held_out_loss` or `held_out_psnr_db`: an evaluation
        with the best value so far is followed by a checkpoint, which is kept until a better one.
      log_every: steps between rows of metrics.
      evaluate_every: steps between evaluations on held-out clips; 0 for none.
      evaluate_batches: held-out batches of each bucket in an evaluation.
      evaluate_prompts: held-out prompts that an evaluation of a transformer on moving shapes
        samples with the run's defaults, for `held_out_accuracy_all` and that of each attribute;
        each costs 2 `sample_steps` evaluations of the network, with guidance, and almost twice as
        many with `heun`. 0 for none.
      profile_steps: (first, last) steps to trace into WORKDIR/profile, which xprof reads.
      accumulate: equal parts that a batch is cut into, computed one after another; the update is
        that of the whole batch.
      skip_non_finite: number of steps in a row whose loss or gradient is not finite that are left
        out, each with its batch; one more ends the run.
      rollback_sigma: a loss more than this number of standard deviations above the mean of the
        last 128 takes the run back to its last checkpoint, to go on without that batch; 6 is usual,
        0 is off.
      stall_timeout_s: seconds without a step, or 10 times a step's usual time where that is
        longer, after which the process ends with the stacks of its threads in WORKDIR/stalled.txt;
        0 is off.
      writers: where metrics and previews go, some of `WRITERS`: "wandb" and "trackio" need the
        extra of that name (docs/trackers.md). "jsonl" is what pages and figures are made of.
    """

    steps: int
    seed: int = 0
    ema_decay: float = 0.999
    compute_dtype: str = "bfloat16"
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    keep_every: int = 0
    keep_best: str | None = None
    log_every: int = 20
    evaluate_every: int = 0
    evaluate_batches: int = 4
    evaluate_prompts: int = 32
    profile_steps: tuple[int, int] | None = None
    accumulate: int = 1
    skip_non_finite: int = 0
    rollback_sigma: float = 0.0
    stall_timeout_s: float = 1800.0
    writers: tuple[str, ...] = ("console", "jsonl", "tensorboard")

    def __post_init__(self):
        counts = ("steps", "checkpoint_every", "keep_checkpoints", "log_every", "accumulate")
        for name in (*counts, "evaluate_batches"):
            if getattr(self, name) < 1:
                raise UserError(f"loop.{name} must be 1 or more, not {getattr(self, name)}")
        least_0 = (
            "evaluate_every",
            "evaluate_prompts",
            "keep_every",
            "skip_non_finite",
            "rollback_sigma",
        )
        for name in (*least_0, "stall_timeout_s"):
            if not getattr(self, name) >= 0:
                raise UserError(f"loop.{name} must be 0 or more, not {getattr(self, name)}")
        if self.keep_every % self.checkpoint_every:
            raise UserError(
                f"loop.keep_every={self.keep_every} must be a multiple of loop.checkpoint_every="
                f"{self.checkpoint_every}: no other steps are saved"
            )
        if self.keep_best is not None and not self.keep_best.startswith(HELD_OUT):
            raise UserError(
                f"loop.keep_best={self.keep_best} must be a figure of the evaluation, such as "
                f"{HELD_OUT}loss"
            )
        if self.keep_best is not None and not self.evaluate_every:
            raise UserError(
                f"loop.keep_best={self.keep_best} needs an evaluation: give loop.evaluate_every"
            )
        if self.profile_steps and not 0 <= self.profile_steps[0] <= self.profile_steps[1]:
            raise UserError(
                f"loop.profile_steps={self.profile_steps} must be a first and a last step, e.g. "
                f"10,12"
            )
        choose("loop.compute_dtype", self.compute_dtype, ("bfloat16", "float32"))
        for name in self.writers:
            choose("loop.writers", name, WRITERS)
        if len(set(self.writers)) < len(self.writers):
            raise UserError(f"loop.writers={','.join(self.writers)} names a writer twice")
