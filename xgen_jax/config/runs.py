"""A run's configuration: one frozen dataclass for each family of networks, made from plain dicts.

A folder holds either a run, which was trained here, or weights, which were converted from another
project's. Both name the family of their network: "vidvae", "regen" or "vdit".
"""

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from xgen_jax.config.build import RENAMED_OBJECTIVES, build, rename, with_flag
from xgen_jax.config.loop import LoopConfig
from xgen_jax.config.losses import REGENLossConfig, VDiTLossConfig, VidVAELossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.data.config import DataConfig, as_written, nest_source
from xgen_jax.diffusion.config import GridConfig, GuidanceConfig
from xgen_jax.errors import UserError, choose
from xgen_jax.models.lora_config import LoRAConfig
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.models.text_config import ByteTextConfig, T5TextConfig
from xgen_jax.models.vdit_config import VDiTConfig
from xgen_jax.models.vidvae_config import VidVAEConfig
from xgen_jax.parallel.mesh import MeshConfig

# Names of types alone, and imports in functions: a mistake in a key is reported before jax loads.
if TYPE_CHECKING:
    from xgen_jax.models.embedder import Embedder

DEFAULT_FPS = 8.0  # frames a second of samples, where the clips' rate is not known


class HoldsEmbedder(abc.ABC):
    """A folder's configuration from which an embedder can be made."""

    family: str
    model: Any

    @abc.abstractmethod
    def make_embedder(self, dtype: Any = np.float32) -> "Embedder":
        """Make the embedder of the folder's network, computing in `dtype`."""


class HoldsTransformer:
    """A folder's configuration from which a text-to-video transformer can be made."""

    family: str
    model: VDiTConfig


class HoldsVidVAE(HoldsEmbedder):
    """A folder of a VidVAE."""

    model: VidVAEConfig

    def make_embedder(self, dtype: Any = np.float32) -> "Embedder":
        """See `HoldsEmbedder`."""
        from xgen_jax.models.vidvae import VidVAE
        from xgen_jax.models.vidvae_embedder import VidVAEEmbedder

        return VidVAEEmbedder(model=VidVAE(self.model, dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The keys that every run has. A subclass is known by the default of its `objective`.

    Attributes:
      objective: the family of networks that is trained.
      init_from: a folder, of a run or of converted weights, whose EMA parameters the first step
        starts from; random parameters by default.
      data, optimizer, loop, mesh: see their classes.
    """

    known: ClassVar[dict[str, type["Run"]]] = {}

    objective: str = ""
    init_from: str | None = None
    data: DataConfig
    optimizer: OptimizerConfig
    loop: LoopConfig
    mesh: MeshConfig = MeshConfig()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        Run.known[cls.objective] = cls

    @property
    def family(self) -> str:
        """Family of networks, and name of the network's sub-tree of parameters."""
        return self.objective

    @property
    def adapter(self) -> LoRAConfig | None:
        """Adapter that is trained in place of the parameters, if any."""
        return None

    @property
    def embeds_captions(self) -> bool:
        """Whether the network is conditioned on embeddings of a frozen text encoder."""
        return False

    def check(self) -> None:
        """Raise UserError for values that only a diffusion process can judge, and so only jax.

        `run_config` and `training.tasks.build_task` ask; values that are wrong by themselves are
        refused when the dataclass is made.
        """

    def for_clips(self, rates: Mapping[float, int], say: Callable[[str], None]) -> Self:
        """Return the configuration with what follows from the clips that are trained on.

        Args:
          rates: number of clips by their frames a second, see `Source.rates`.
          say: called with a line that the user should read.
        """
        del rates, say
        return self

    def derived(self, origin: str, kind: str) -> Self:
        """Return the configuration of parameters that were made from those of this run in
        `origin`."""
        del kind
        return dataclasses.replace(self, init_from=origin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VidVAERun(HoldsVidVAE, Run):
    """A run that trains a video autoencoder."""

    objective: str = "vidvae"
    model: VidVAEConfig
    loss: VidVAELossConfig = VidVAELossConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class REGENRun(HoldsEmbedder, Run):
    """A run that trains a REGEN: encoder and re-generative decoder together.

    Attributes:
      decode_steps: network evaluations a window, the default of decoding.
    """

    objective: str = "regen"
    model: REGENConfig
    loss: REGENLossConfig = REGENLossConfig()
    decode_steps: int = 1

    def __post_init__(self):
        longest = max(bucket.frames for bucket in self.data.buckets)
        least = 2 * self.model.chunk_frames
        if self.loss.windows == "shifted" and longest < least:
            raise UserError(
                f"loss.windows='shifted' is for clips of two chunks, {least} frames or more, and "
                f"the longest bucket has {longest}: decoding would cross borders that training "
                "has not; add a longer bucket, or choose loss.windows='chunk'"
            )

    def check(self) -> None:
        """See `Run.check`: steps of decoding that cannot be taken."""
        from xgen_jax.diffusion.grids import make_grid

        make_grid(self.loss.make_process(), self.decode_steps)

    def make_embedder(self, dtype: Any = np.float32) -> "Embedder":
        """See `HoldsEmbedder`."""
        from xgen_jax.models.regen import REGEN
        from xgen_jax.models.regen_embedder import REGENEmbedder

        return REGENEmbedder(
            model=REGEN(self.model, dtype),
            process=self.loss.make_process(),
            steps=self.decode_steps,
            windows=self.loss.windows,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VDiTRun(HoldsTransformer, Run):
    """A run that trains a text-to-video transformer on an embedder's latents.

    Attributes:
      embedder: the embedder's folder; empty for that of the run in `init_from`.
      lora: trains an adapter of the transformer in `init_from`, which stays frozen; None trains
        the transformer itself.
      text: the text encoder.
      sampler, sample_steps, sample_spacing, grid, guidance_scale, guidance, sample_fps: the
        defaults of sampling. A spacing of None is the process's own (see `diffusion.grids`), a
        frame rate of None that of the clips trained on.
    """

    objective: str = "vdit"
    embedder: str = ""
    lora: LoRAConfig | None = None
    model: VDiTConfig
    text: ByteTextConfig | T5TextConfig
    loss: VDiTLossConfig = VDiTLossConfig()
    sampler: str = "euler"
    sample_steps: int = 16
    sample_spacing: str | None = None
    grid: GridConfig = GridConfig()
    guidance_scale: float = 3.0
    guidance: GuidanceConfig = GuidanceConfig()
    sample_fps: float | None = None

    def __post_init__(self):
        if not self.embedder and self.init_from is None:
            raise UserError("a vdit run needs an embedder: give --config.embedder=FOLDER")
        if self.lora and self.init_from is None:
            raise UserError(
                "lora needs a base: give init_from=FOLDER, a vdit run or converted weights"
            )
        if self.lora and self.optimizer.name == "muon":
            raise UserError("optimizer.name='muon' is for whole kernels; an adapter takes 'adamw'")

    def check(self) -> None:
        """See `Run.check`: settings that cannot sample."""
        from xgen_jax.diffusion.grids import make_grid
        from xgen_jax.diffusion.samplers import make_steps

        process = self.loss.make_process(self.model.learned_variance)
        shift = self.loss.time_shift
        grid = make_grid(process, self.sample_steps, self.sample_spacing, shift, self.grid)
        make_steps(self.sampler, grid)
        self.guidance.check(process.prediction)

    @property
    def adapter(self) -> LoRAConfig | None:
        """Adapter that is trained in place of the parameters, if any."""
        return self.lora

    @property
    def embeds_captions(self) -> bool:
        """See `Run.embeds_captions`."""
        return not self.text.trained

    @property
    def fps(self) -> float:
        """Frames a second of samples."""
        return self.sample_fps or DEFAULT_FPS

    def for_clips(self, rates: Mapping[float, int], say: Callable[[str], None]) -> Self:
        """See `Run.for_clips`: the rate of samples is that of most clips."""
        if self.sample_fps is not None or not rates:
            return self
        rate = max(rates, key=lambda fps: rates[fps])
        if len(rates) > 1:
            most = sorted(rates, key=lambda fps: -rates[fps])[:5]
            listed = ", ".join(f"{rates[fps]} of {fps:g}" for fps in most)
            listed += ", ..." if len(rates) > len(most) else ""
            say(
                f"clips by frames a second: {listed}; samples will have {rate:g}. "
                "--config.data.source.fps gives all clips one rate (--fps, when encoding)"
            )
        return dataclasses.replace(self, sample_fps=rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights converted from another project's, with `launch/convert.py`; they are not a run.

    Attributes:
      network: the family of the network.
      kind: the foreign format, see `commands.convert`.
      source: the file or folder they came from.
    """

    known: ClassVar[dict[str, type["Weights"]]] = {}

    network: str = ""
    kind: str
    source: str

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        Weights.known[cls.network] = cls

    @property
    def family(self) -> str:
        """Family of networks, and name of the network's sub-tree of parameters."""
        return self.network

    @property
    def adapter(self) -> LoRAConfig | None:
        """None: converted weights have no adapter."""
        return None

    def derived(self, origin: str, kind: str) -> Self:
        """Return the configuration of weights that were made from these in `origin`."""
        return dataclasses.replace(self, kind=kind, source=origin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VidVAEWeights(HoldsVidVAE, Weights):
    """Weights of a video autoencoder."""

    network: str = "vidvae"
    model: VidVAEConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class VDiTWeights(HoldsTransformer, Weights):
    """Weights of a text-to-video transformer, to start a run from (`init_from`).

    Attributes:
      latent_channels: of the latents that it works on.
    """

    network: str = "vdit"
    model: VDiTConfig
    latent_channels: int


def run_config(values: dict[str, Any], say: Callable[[str], None] | None = None) -> Run:
    """Build a run's configuration from nested dicts, as `configs/` and config.json hold them.

    Args:
      values: nested dicts; keys may have the names of the last release (see `config.build.rename`).
      say: called with a line for each renamed key or value.

    Raises:
      UserError: an unknown or missing key, a value of another type, or one that a part refuses.
    """
    values = rename(values, say)
    if isinstance(values.get("data"), dict):
        values["data"] = nest_source(values["data"], say)
    objective = choose("objective", values.get("objective"), Run.known)
    run = build(Run.known[objective], values, "--config")
    try:
        run.check()
    except UserError as error:
        raise UserError(with_flag(str(error), "--config", list(values))) from error
    return run


def folder_config(values: dict[str, Any]) -> Run | Weights:
    """Build the configuration in a folder's config.json: a run's, or that of converted weights."""
    objective = values.get("objective")
    if objective in RENAMED_OBJECTIVES:  # converted weights, as release 0.1 wrote them
        values = {k: v for k, v in values.items() if k != "objective"}
        values["network"] = RENAMED_OBJECTIVES[objective]
    if "network" not in values:
        values = rename(values)
        if isinstance(values.get("data"), dict):
            values["data"] = as_written(nest_source(values["data"]))
        return run_config(values)
    network = choose("network", values["network"], Weights.known)
    return build(Weights.known[network], rename(values), "config")


def to_dict(config: Run | Weights) -> dict[str, Any]:
    """Nested dicts and lists, ready for JSON; `folder_config` takes them back."""
    return dataclasses.asdict(config)
