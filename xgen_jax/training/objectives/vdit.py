"""VDiT's objective: a diffusion process on an embedder's latents, with captions dropped now and then for guidance.

What the network predicts, at which times, and its losses are the process's; rectified flow's is

    loss = | v(x_t, t, text) - (eps - x0) |^2        x_t = (1 - t) x0 + t eps      (arXiv 2403.03206, section 2)

The embedder is frozen. The text conditioner makes what the transformer attends to of a caption, and knows its null
caption; some train an encoder along.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from xgen_jax.diffusion.process import Process, frame_mean
from xgen_jax.diffusion.processes import make_process
from xgen_jax.models.embedder import VidVAEEmbedder
from xgen_jax.models.text import ByteConditioner
from xgen_jax.models.vdit import VDiT
from xgen_jax.training.objectives.vidvae import to_unit_range
from xgen_jax.training.optimizer import OptimizerConfig, make_optimizer
from xgen_jax.typing import Array, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class VDiTLossConfig:
    """The process, how its times are drawn, and how captions are dropped.

    Attributes:
      process: a name in `diffusion.processes.PROCESSES`.
      caption_drop: share of samples that see the empty caption.
      time_distribution: `uniform` or `logit_normal`.
      time_shift: see `diffusion.time.shift`; sampling uses the same.
    """

    process: str = "flow"
    caption_drop: float = 0.1
    time_distribution: str = "logit_normal"
    time_shift: float = 1.0

    def __post_init__(self):
        self.make_process()

    def make_process(self) -> Process:
        """Raises UserError where its name is not known."""
        return make_process(self.process)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VDiTObjective:
    """Trains {"vdit": ...}, and what the text conditioner trains along, against a frozen embedder.

    Attributes:
      text: a text conditioner, see `models.text`.
      embedder, embedder_params: None where batches hold latents already: nothing is encoded then.
      embedder_fingerprint: of the embedder that makes, or made, the latents.
    """

    model: VDiT
    text: ByteConditioner
    embedder: VidVAEEmbedder | None
    embedder_params: Params | None
    loss_config: VDiTLossConfig
    embedder_fingerprint: str = ""
    frozen: Params = None  # the embedder has done its part before the step

    @property
    def process(self) -> Process:
        """What corrupts the latents."""
        return self.loss_config.make_process()

    def __post_init__(self):
        # The frozen weights are an argument: closed over they would be constants of every compiled step.
        encode = jax.jit(lambda params, video: self.embedder.encode(params, to_unit_range(video)))
        object.__setattr__(self, "_encode", encode)

    def fingerprints(self) -> dict[str, str]:
        """The embedder."""
        return {"embedder": self.embedder_fingerprint}

    def arrays(self, batch):
        """Host batch -> video uint8 (B, T, H, W, 3) or latents (B, t, h, w, c), and the conditioner's arrays."""
        clips = "video" if self.embedder else "latents"
        return {clips: batch[clips], "text": self.text.batch_arrays(batch)}

    def prepare(self, arrays):
        """Replaces a video by its latents (B, t, h, w, c)."""
        if not self.embedder:
            return arrays
        latents = self._encode(self.embedder_params, arrays["video"])
        return {"latents": latents, "text": arrays["text"]}

    def init(self, key: Array, arrays) -> Params:
        """Parameters of the transformer and of what is trained along."""
        key_text, key_vdit = jax.random.split(key)
        params = self.text.init(key_text, arrays["text"])
        text, mask = self.text.embed(params, arrays["text"])
        time = jnp.zeros(arrays["latents"].shape[0])
        return {**params, "vdit": self.model.init(key_vdit, arrays["latents"], time, text, mask)}

    def averaged(self, params: Params) -> Params:
        """All of them."""
        return params

    def optimizer(self, config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
        """One for all."""
        return make_optimizer(config, steps)

    def loss(self, params: Params, arrays, keys_B: Array, step: Array, frozen: Params = None):
        """Scalar loss and metrics of a batch, the same at any step."""
        del step, frozen
        x0, c, process = arrays["latents"], self.loss_config, self.process
        key_time, key_noise, key_drop = (
            keys[:, 0] for keys in jnp.split(jax.vmap(lambda k: jax.random.split(k, 3))(keys_B), 3, axis=1)
        )
        t_B = process.draw_times(key_time, c.time_distribution, c.time_shift)
        eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(key_noise)
        dropped_B = jax.vmap(jax.random.uniform)(key_drop) < c.caption_drop
        text, mask = self.text.embed(params, arrays["text"], dropped_B)
        x_t = process.corrupt(x0, eps, t_B)
        output = self.model.apply(params["vdit"], x_t, process.network_time(t_B), text, mask)
        losses = {name: frame_mean(each).mean() for name, each in process.losses(output, x0, eps, t_B).items()}
        return losses.pop("loss"), losses if len(losses) > 1 else {}
