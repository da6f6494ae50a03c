"""The configuration of a run: nested frozen dataclasses, made from plain dicts and turned back into
JSON.

A key that no part knows is an error which names the nearest one that it does.
"""

import dataclasses
from typing import Any

from xgen_jax.config.build import _build, flat, rename
from xgen_jax.config.losses import REGENLossConfig, VDiTLossConfig, VidVAELossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.data.config import DataConfig
from xgen_jax.diffusion.grids import make_grid
from xgen_jax.diffusion.guidance import GuidanceConfig
from xgen_jax.diffusion.samplers import make_steps
from xgen_jax.errors import UserError
from xgen_jax.models.lora import LoRAConfig
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.models.text import ByteTextConfig, T5TextConfig
from xgen_jax.models.vdit_config import VDiTConfig
from xgen_jax.models.vidvae_config import VidVAEConfig
from xgen_jax.parallel.mesh import MeshConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how a run goes.

    Attributes:
      steps: updates in all.
      seed: of initialisation, noise, times and caption drop.
      ema_decay: of the parameter average, which is what samples are drawn from.
      compute_dtype: `bfloat16` or `float32`; parameters, averages and losses are always float32.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      keep_checkpoints: how many of the newest are kept.
      log_every: steps between lines of metrics.
      accumulate: equal parts that a batch is cut in, one after another; the update is the whole
      batch's.
    """

    steps: int
    seed: int = 0
    ema_decay: float = 0.999
    compute_dtype: str = "bfloat16"
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    log_every: int = 20
    accumulate: int = 1

    def __post_init__(self):
        for name in ("steps", "checkpoint_every", "keep_checkpoints", "log_every", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.compute_dtype not in ("bfloat16", "float32"):
            raise UserError(
                f"compute_dtype={self.compute_dtype!r} is not known; choose 'bfloat16' or 'float32'"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VidVAERun:
    """A run that trains a video autoencoder.

    `init_from` is the folder of an embedder whose parameters the first step starts from, instead of
    random ones.
    """

    objective: str = "vidvae"
    init_from: str | None = None
    model: VidVAEConfig
    loss: VidVAELossConfig = VidVAELossConfig()
    data: DataConfig
    optimizer: OptimizerConfig
    loop: LoopConfig
    mesh: MeshConfig = MeshConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class REGENRun:
    """A run that trains a REGEN: encoder and re-generative decoder together.

    `init_from` is the folder of a regen run whose averaged parameters the first step starts from,
    instead of random ones. `decode_steps`, network evaluations a window, is the default of
    decoding.
    """

    objective: str = "regen"
    init_from: str | None = None
    model: REGENConfig
    loss: REGENLossConfig = REGENLossConfig()
    data: DataConfig
    optimizer: OptimizerConfig
    loop: LoopConfig
    mesh: MeshConfig = MeshConfig()
    decode_steps: int = 1

    def __post_init__(self):
        make_grid(
            self.loss.make_process(), self.decode_steps
        )  # what would not decode is better known before
        longest, least = (
            max(bucket.frames for bucket in self.data.buckets),
            2 * self.model.chunk_frames,
        )
        if self.loss.windows == "shifted" and longest < least:
            raise UserError(
                f"loss.windows='shifted' is for clips of two chunks, {least} frames or more, and the longest bucket has "
                f"{longest}: decoding would cross borders that training has not; add one, or choose "
                "loss.windows='chunk'"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VDiTRun:
    """A run that trains a text-to-video transformer on the latents of the embedder in the run
    folder `embedder`.

    `init_from` is the folder of a vdit run, or of converted weights, whose averaged parameters the
    first step starts
    from: the stage before, as a rule. With `lora` they are the base instead: frozen, and an adapter
    is trained beside them, of them all that its rules choose.

    `sampler`, `sample_steps`, `sample_spacing` (of the steps visited: None is the process's own,
    see `diffusion.grids.SPACINGS`), `guidance_scale`, `guidance` and `sample_fps` are the defaults
    of drawing samples.
    """

    objective: str = "vdit"
    embedder: str
    init_from: str | None = None
    lora: LoRAConfig | None = None
    model: VDiTConfig
    text: ByteTextConfig | T5TextConfig
    loss: VDiTLossConfig = VDiTLossConfig()
    data: DataConfig
    optimizer: OptimizerConfig
    loop: LoopConfig
    mesh: MeshConfig = MeshConfig()
    sampler: str = "euler"
    sample_steps: int = 16
    sample_spacing: str | None = None
    guidance_scale: float = 3.0
    guidance: GuidanceConfig = GuidanceConfig()
    sample_fps: float = 8.0

    def __post_init__(self):
        # What would not sample is better known before it has trained.
        process = self.loss.make_process(self.model.learned_variance)
        make_steps(
            self.sampler,
            make_grid(process, self.sample_steps, self.sample_spacing, self.loss.time_shift),
        )
        self.guidance.check(process)
        if self.lora and self.init_from is None:
            raise UserError(
                "lora needs a base: give init_from=FOLDER, a vdit run or converted weights"
            )
        if self.lora and self.optimizer.name == "muon":
            raise UserError("optimizer.name='muon' is for whole kernels; an adapter takes 'adamw'")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VidVAEWeights:
    """Weights of another project: an embedder that no run has trained here. See
    `commands.convert`."""

    objective: str = "vidvae_weights"
    model: VidVAEConfig
    kind: str
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class VDiTWeights:
    """Weights of another project: a transformer to start a run from (`init_from`). See
    `commands.convert`.

    Attributes:
      latent_channels: of the latents that it works on.
    """

    objective: str = "vdit_weights"
    model: VDiTConfig
    kind: str
    source: str
    latent_channels: int


RUNS = {
    "vidvae": VidVAERun,
    "regen": REGENRun,
    "vdit": VDiTRun,
    "vidvae_weights": VidVAEWeights,
    "vdit_weights": VDiTWeights,
}
EMBEDDERS = ("vidvae", "regen", "vidvae_weights")  # the objectives whose folders hold an embedder
TRANSFORMERS = (
    "vdit",
    "vdit_weights",
)  # the objectives whose folders a transformer can be taken from
RunConfig = VidVAERun | REGENRun | VDiTRun | VidVAEWeights | VDiTWeights

# What may change between two calls of the same run without making it another run.
FREE_KEYS = {
    "loop.steps",
    "loop.checkpoint_every",
    "loop.keep_checkpoints",
    "loop.log_every",
    "data.num_threads",
    "data.prefetch",
    "data.path",  # the source's fingerprint guards what is in it
    "text.path",  # the text encoder's fingerprint, likewise
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "mesh.sequence",
    "decode_steps",
    "sampler",
    "sample_steps",
    "sample_spacing",
    "guidance_scale",
    "guidance.channels",
    "guidance.interval",
    "guidance.zero_star",
    "guidance.zero_steps",
    "sample_fps",
}


def run_config(values: dict[str, Any]) -> RunConfig:
    """Builds a run's configuration from nested dicts, as `configs/` and config.json hold them.

    Raises:
      UserError: an unknown or missing key, a value of another type, or one that a part refuses.
    """
    values = rename(values)
    objective = values.get("objective")
    if objective not in RUNS:
        raise UserError(f"objective={objective!r} is not known; choose one of {', '.join(RUNS)}")
    return _build(RUNS[objective], values, "config")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Nested dicts and lists, ready for JSON; `run_config` takes them back."""
    return dataclasses.asdict(config)


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Keys, but the free ones, whose values differ between two configurations, as "key: old ->
    new"."""
    a, b = flat(old), flat(new)
    keys = sorted((a.keys() | b.keys()) - FREE_KEYS)
    return [f"{key}: {a.get(key)!r} -> {b.get(key)!r}" for key in keys if a.get(key) != b.get(key)]
