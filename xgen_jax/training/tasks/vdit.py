"""VDiT's objective: a diffusion process on an embedder's latents, with captions dropped now and
then for guidance.

    loss = mean over the noised frames of process.losses(network(x_t, t, text, clip), x0, eps)

which is | v - (eps - x0) |^2 of rectified flow (arXiv 2403.03206, section 2), or the eps loss of
DDPM with its bound on the learned variance (arXiv 2102.09672). Frames that are a clip's condition
stay clean, and do not count.

The embedder is frozen. The text conditioner makes what the transformer attends to of a caption, and
knows its null caption; some train an encoder along. All that is random of a sample comes from its
own key, and a sample's loss is its
own mean: neither depends on the batch around it.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from xgen_jax.config.losses import VDiTLossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.pixels import to_unit_range
from xgen_jax.diffusion.frame_masks import sample_frame_masks
from xgen_jax.diffusion.process import Process, frame_mean
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.text import TextConditioner
from xgen_jax.models.vdit import VDiT
from xgen_jax.models.vdit_config import MicroConditions
from xgen_jax.training.optimizer import make_optimizer
from xgen_jax.typing import Array, Params, Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class VDiTObjective:
    """Trains {"vdit": ...}, and what the text conditioner trains along, against a frozen embedder.

    Attributes:
      text: a text conditioner, see `models.text`.
      embedder, embedder_params: None where batches hold latents already: nothing is encoded then.
      embedder_fingerprint: of the embedder that makes, or made, the latents.
      latent_shape: of that embedder: (frames, height, width) of a clip -> (t, h, w).
    """

    model: VDiT
    text: TextConditioner
    embedder: Embedder | None
    embedder_params: Params | None
    loss_config: VDiTLossConfig
    embedder_fingerprint: str = ""
    latent_shape: Callable[[Shape], Shape] | None = None
    frozen: Params = None  # the embedder has done its part before the step

    def __post_init__(self):
        # The frozen weights are an argument: closed over they would be constants of every compiled
        # step.
        encode = jax.jit(lambda params, video: self.embedder.encode(params, to_unit_range(video)))
        object.__setattr__(self, "_encode", encode)

    @property
    def process(self) -> Process:
        """What corrupts the latents."""
        return self.loss_config.make_process(self.model.config.learned_variance)

    def fingerprints(self) -> dict[str, str]:
        """The embedder, and a frozen text encoder."""
        return {"embedder": self.embedder_fingerprint, **self.text.fingerprints()}

    def arrays(self, batch):
        """Host batch -> video uint8 (B, T, H, W, 3) or latents (B, t, h, w, c), the conditioner's
        arrays, and what the clips are, (B, 5), where it is known.
        """
        clips = "video" if self.embedder else "latents"
        arrays = {clips: batch[clips], "text": self.text.batch_arrays(batch)}
        return arrays | ({"clip": batch["clip"]} if "clip" in batch else {})

    def prepare(self, arrays):
        """Replaces a video by its latents (B, t, h, w, c)."""
        if not self.embedder:
            return arrays
        rest = {name: array for name, array in arrays.items() if name != "video"}
        return {**rest, "latents": self._encode(self.embedder_params, arrays["video"])}

    def resized(self, arrays, bucket: Bucket):
        """Shapes of the prepared arrays of a bucket, out of those of any other."""
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((bucket.batch_size, *x.shape[1:]), x.dtype), arrays
        )
        size, latents = self.latent_shape(bucket.shape), arrays["latents"]
        shape = (bucket.batch_size, *size, latents.shape[-1])
        return {**shapes, "latents": jax.ShapeDtypeStruct(shape, latents.dtype)}

    def init(self, key: Array, arrays) -> Params:
        """Parameters of the transformer and of what is trained along."""
        key_text, key_vdit = jax.random.split(key)
        params = self.text.init(key_text, arrays["text"])
        latents, clip = arrays["latents"], self._clip(arrays)
        text, mask = self.text.embed(params, arrays["text"])
        time = jnp.zeros(latents.shape[0])
        return {**params, "vdit": self.model.init(key_vdit, latents, time, text, mask, clip)}

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
            keys[:, 0]
            for keys in jnp.split(jax.vmap(lambda k: jax.random.split(k, 3))(keys_B), 3, axis=1)
        )
        clip, frames = arrays.get("clip"), x0.shape[1]
        ratio = c.time_ratio(clip[:, 0], clip[:, 1], frames) if c.shift_by_size else c.time_shift
        t_B = process.sample_times(key_time, c.time_distribution, ratio)
        eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(key_noise)
        dropped_B = jax.vmap(jax.random.uniform)(key_drop) < c.cond_drop_prob
        frame_mask_BT = None
        if c.frame_masks.none < 1:
            # The fourth of the keys above, so that those of a run without masks stay what they
            # were.
            frame_mask_BT = sample_frame_masks(
                jax.vmap(lambda k: jax.random.fold_in(k, 3))(keys_B), frames, c.frame_masks
            )
        text, mask = self.text.embed(params, arrays["text"], dropped_B)
        x_t = process.corrupt(x0, eps, t_B, frame_mask_BT)
        time_B = process.timestep(t_B)
        output = self.model.apply(
            params["vdit"], x_t, time_B, text, mask, self._clip(arrays), frame_mask_BT
        )
        losses = process.losses(output, x0, eps, t_B)
        metrics = {
            name: frame_mean(loss_BT, frame_mask_BT).mean() for name, loss_BT in losses.items()
        }
        return metrics.pop("loss"), metrics if process.learned_variance else {}

    def _clip(self, arrays) -> MicroConditions | None:
        return MicroConditions(*arrays["clip"].T) if self.model.config.micro_cond else None
