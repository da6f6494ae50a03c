"""The common part of tasks that train an embedder, on video alone."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xgen_jax.config.runs import Run
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.pipeline import Batch, Pipeline
from xgen_jax.data.pixels import to_uint8, to_unit_range
from xgen_jax.data.sources.base import Source
from xgen_jax.errors import UserError
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.flops import lpips_loss_flops
from xgen_jax.models.latent_statistics import latent_statistics
from xgen_jax.models.lpips import LPIPS, PRESETS
from xgen_jax.parallel.agreement import from_first, is_first
from xgen_jax.parallel.arrays import fetch, put_batch
from xgen_jax.runs.folder import LATENT_STATISTICS, RunFolder
from xgen_jax.runs.warm_start import starting_network
from xgen_jax.training.tasks.base import Arrays, Metrics, Task, Work, resize_batch
from xgen_jax.typing import Array, Params, Shape, Video
from xgen_jax.weights.lpips import load_lpips

STATISTICS_BATCHES = 32
# LPIPS keeps a gigabyte of features for each million pixels, so longer clips go in parts.
PERCEPTUAL_PIXELS = 2**20
# Cb and Cr of R, G and B, ITU-R BT.601, each in [-1, 1] for colours in [-1, 1].
CHROMA = ((-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedderTask(Task):
    """Train {FAMILY: an embedder's network}; a subclass adds `init` and `loss`.

    Attributes:
      embedder: the embedder whose network is trained.
      loss_config: the run's `loss`; `lpips` in it is the weight of that term.
      lpips: LPIPS, where its weight is not 0; `frozen` are its parameters.
      config_class: the family's runs, see `TaskFamily`.
    """

    config_class: ClassVar[type[Run]]

    embedder: Embedder
    loss_config: Any
    lpips: LPIPS | None = None
    frozen: Params = None

    def __post_init__(self):
        if self.loss_config.lpips and self.lpips is None:
            raise UserError(
                f"loss.lpips={self.loss_config.lpips} needs loss.lpips_weights=FILE, the "
                "safetensors of LPIPS; loss.lpips=0 does without"
            )
        object.__setattr__(self, "_reconstruct", jax.jit(self.reconstruct))

    @classmethod
    def build(cls, config: Any, mesh: Mesh | None, source: Source) -> Task:
        """Load LPIPS, check the buckets and make the task; see `TaskFamily.build`."""
        del mesh
        if source.made_by:
            raise UserError(f"a {config.objective} run needs videos; {source.path} holds latents")
        for bucket in config.data.buckets:
            config.model.latent_shape(bucket.shape)
        lpips, lpips_params = load_perceptual(config.loss, config.data.buckets)
        embedder = config.make_embedder(np.dtype(config.loop.compute_dtype))
        return cls(embedder=embedder, loss_config=config.loss, lpips=lpips, frozen=lpips_params)

    @classmethod
    def abstract(cls, config: Any, embedder: Any, bucket: Bucket) -> tuple[Task, Batch]:
        """Make the task from shapes alone; LPIPS is VGG16. See `TaskFamily.abstract`."""
        del embedder
        config.model.latent_shape(bucket.shape)
        lpips = LPIPS(PRESETS["vgg16"]) if config.loss.lpips else None
        image = jax.ShapeDtypeStruct((1, bucket.height, bucket.width, 3), np.float32)
        # Within, because a device that is not there cannot make a key.
        frozen = lpips and jax.eval_shape(lambda x: lpips.init(jax.random.key(0), x, x), image)
        task = cls(
            embedder=config.make_embedder(np.dtype(config.loop.compute_dtype)),
            loss_config=config.loss,
            lpips=lpips,
            frozen=frozen,
        )
        return task, {"video": np.zeros((1, *bucket.shape, 3), np.uint8)}

    @property
    def model(self) -> Any:
        """Module of the network that is trained."""
        return self.embedder.model

    @property
    def network(self) -> str:
        """Name of the network's sub-tree of parameters."""
        return self.config_class.objective

    def batch_arrays(self, batch: Batch) -> Arrays:
        """Select {"video": uint8 (B, T, H, W, 3)}."""
        return {"video": batch["video"]}

    def abstract_batch(self, arrays: Arrays, bucket: Bucket) -> Arrays:
        """Return the shape of a bucket's video; see `Task.abstract_batch`."""
        video = resize_batch(arrays, bucket)["video"]
        shape = (bucket.batch_size, *bucket.shape, 3)
        return {"video": jax.ShapeDtypeStruct(shape, video.dtype)}

    def work(self, bucket: Bucket) -> Work:
        """Return the frames of a batch's clips; see `Task.work`."""
        video = (bucket.batch_size, *bucket.shape, 3)
        clips, frames, height, width, _ = video
        flops = self.train_flops(video)
        if self.lpips is not None:
            flops += lpips_loss_flops(self.lpips.config, (clips * frames, height, width, 3))
        return Work("frames", clips * frames, clips * frames * height * width, flops)

    @abc.abstractmethod
    def train_flops(self, video_shape: Shape) -> float:
        """Return the operations of a training step on clips (B, T, H, W, 3) without LPIPS."""

    def warm_start(self, config: Any) -> Params | None:
        """Load the network in `config.init_from`, if any; see `Task.warm_start`."""
        if config.init_from is None:
            return None
        bucket = config.data.buckets[0]
        video = jax.ShapeDtypeStruct((1, *bucket.shape, 3), np.uint8)
        wanted = jax.eval_shape(self.init, jax.random.key(0), {"video": video})[self.network]
        return {self.network: starting_network(config, wanted)}

    def reconstruct(self, params: Params, video_BTHWC: Array) -> Array:
        """Encode and decode uint8 video -> float32 about [-1, 1], with EMA parameters."""
        channels = self.embedder.latent_channels
        # Statistics cancel out between encoding and decoding.
        bundle = self.embedder.bundle(params[self.network], np.zeros(channels), np.ones(channels))
        latents = self.embedder.encode(bundle, to_unit_range(video_BTHWC))
        return self.embedder.decode(bundle, latents)

    def perceptual(self, frozen: Params, predicted_BTHWC: Array, video_BTHWC: Array) -> Array:
        """Compute LPIPS of video in [-1, 1], a mean over frames.

        Where a clip has more than `PERCEPTUAL_PIXELS`, some frames at a time, whose features are
        computed again in the backward pass.
        """
        assert self.lpips is not None
        lpips = self.lpips

        def total(pair_BTHWC) -> Array:
            # Clips first, so that devices keep theirs.
            distance: Any = lpips.apply(frozen, *(x.reshape(-1, *x.shape[2:]) for x in pair_BTHWC))
            return distance.astype(jnp.float32).sum()

        pair = predicted_BTHWC, video_BTHWC
        batch, frames, height, width, _ = video_BTHWC.shape
        at_once = max(1, PERCEPTUAL_PIXELS // (height * width))
        if frames <= at_once:
            return total(pair) / (batch * frames)
        again, parts = jax.checkpoint(total), frames // at_once
        whole = parts * at_once

        def in_parts(x):
            x = x[:, :whole].reshape(batch, parts, at_once, *x.shape[2:])
            return jnp.swapaxes(x, 0, 1)

        distance = jax.lax.map(again, jax.tree.map(in_parts, pair)).sum()
        if whole < frames:
            distance += again(jax.tree.map(lambda x: x[:, whole:], pair))
        return distance / (batch * frames)

    def evaluate(
        self, params: Params, arrays: Arrays, keys_B: Array, frozen: Params = None
    ) -> Metrics:
        """Compute the PSNR of reconstructions, and their mean absolute error in [-1, 1]."""
        del keys_B, frozen
        video = to_unit_range(arrays["video"])
        reconstruction = jnp.clip(self.reconstruct(params, arrays["video"]), -1.0, 1.0)
        return {
            "psnr_db": psnr_db(reconstruction, video),
            "l1": jnp.abs(reconstruction - video).mean(),
        }

    def preview(self, params: Params, arrays: Arrays, batch: Batch) -> Video | None:
        """Show originals above their reconstructions."""
        del batch  # this process's part
        reconstruction = self._reconstruct(params, arrays["video"])
        video, reconstruction = fetch((arrays["video"], reconstruction))
        return stack_rows(video, to_uint8(reconstruction))

    def finish(self, run: RunFolder, params: Params, pipeline: Pipeline, trained: bool) -> None:
        """Measure the latent statistics and write them next to the checkpoints."""
        if from_first(lambda: trained or not (run.path / LATENT_STATISTICS).exists()):
            batches = (pipeline.batch(step) for step in range(STATISTICS_BATCHES))
            model_params = params[self.network]
            videos = (put_batch(batch["video"], model_params) for batch in batches)
            statistics = latent_statistics(self.embedder, model_params, videos)
            if is_first():
                run.write_json(LATENT_STATISTICS, statistics)


def stack_rows(original_BTHWC: Video, other_BTHWC: Video, clips: int = 4) -> Video:
    """Stack the first clips, uint8 (B, T, H, W, 3), in two rows: originals above."""
    rows = [np.concatenate(list(video[:clips]), axis=2) for video in (original_BTHWC, other_BTHWC)]
    return np.concatenate(rows, axis=1)


def psnr_db(predicted_BTHWC: Array, video_BTHWC: Array) -> Array:
    """Compute the PSNR in dB of video in [-1, 1], a mean over clips."""
    error = (predicted_BTHWC - video_BTHWC) / 2
    return -10.0 * jnp.log10(jnp.square(error).mean((1, 2, 3, 4)) + 1e-10).mean()


def gradient_error(predicted_BTHWC: Array, video_BTHWC: Array) -> Array:
    """Compute the mean absolute error of the differences of neighbouring pixels, a scalar.

    The means over vertical and over horizontal neighbours are added; frames of one row or column
    have none of that kind.
    """
    error = predicted_BTHWC - video_BTHWC
    changes = [jnp.abs(jnp.diff(error, axis=axis)) for axis in (2, 3)]
    return sum((x.mean() for x in changes if x.size), jnp.zeros(()))


def chroma_error(predicted_BTHWC: Array, video_BTHWC: Array) -> Array:
    """Compute the mean squared error of Cb and Cr (ITU-R BT.601) of video in [-1, 1], a scalar."""
    error = (predicted_BTHWC - video_BTHWC).astype(jnp.float32)
    return jnp.square(jnp.einsum("bthwc,dc->bthwd", error, jnp.asarray(CHROMA))).mean()


def load_perceptual(loss_config: Any, buckets: tuple[Bucket, ...]) -> tuple[LPIPS | None, Params]:
    """Load LPIPS and its parameters for a loss that has the term and names its weights.

    Returns:
      (None, None) for any other loss.

    Raises:
      UserError: weights that cannot be read, or a bucket of frames too small for it.
    """
    if not (loss_config.lpips and loss_config.lpips_weights):
        return None, None
    lpips, params = load_lpips(loss_config.lpips_weights.split(","))
    least = lpips.config.least_side
    for bucket in buckets:
        if min(bucket.height, bucket.width) < least:
            raise UserError(
                f"LPIPS needs frames of at least {least}x{least} pixels; a bucket has "
                f"{bucket.height}x{bucket.width}. Leave it out, or choose loss.lpips=0"
            )
    return lpips, params
