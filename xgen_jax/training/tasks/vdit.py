"""VDiT's task: a diffusion process on an embedder's latents, with captions dropped for guidance.

    loss = mean over the noisy frames of process.losses(network(x_t, t, text, micro_cond), x0, eps)

which is | v - (eps - x0) |^2 of rectified flow (arXiv 2403.03206, section 2), or the eps loss of
DDPM with its bound on the learned variance (arXiv 2102.09672). Frames that are a clip's condition
stay clean and do not count.

The embedder is frozen. The text conditioner turns a caption into the tokens that the transformer
attends to, and knows its null caption; one that has an encoder to train has it trained along. All
randomness of a sample comes from its own key, and a sample's loss is its own mean: neither depends
on the batch around it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from xgen_jax.config.losses import VDiTLossConfig
from xgen_jax.config.runs import DEFAULT_FPS, HoldsEmbedder, HoldsTransformer, Run, VDiTRun
from xgen_jax.data.batches import padded_rows
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.pipeline import Batch, micro_conditions
from xgen_jax.data.pixels import to_uint8, to_unit_range
from xgen_jax.data.sources.base import Source
from xgen_jax.diffusion.frame_masks import sample_frame_masks
from xgen_jax.diffusion.grids import make_grid
from xgen_jax.diffusion.guidance import guided
from xgen_jax.diffusion.process import Process, frame_mean
from xgen_jax.diffusion.samplers import key_noise, make_steps, sample
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.flops import vdit_flops
from xgen_jax.models.micro_conditions import MicroConditions
from xgen_jax.models.text import TextConditioner
from xgen_jax.models.vdit import VDiT, abstract_variables
from xgen_jax.parallel.arrays import fetch, put
from xgen_jax.parallel.sharding import replicated
from xgen_jax.runs.folder import RunFolder
from xgen_jax.runs.load import EMBEDDER, load_embedder
from xgen_jax.runs.text_encoders import load_conditioner, make_conditioner
from xgen_jax.runs.warm_start import extend_null_caption, starting_network
from xgen_jax.training.tasks.base import Arrays, Metrics, Task, Work, resize_batch
from xgen_jax.training.tasks.lora import LoRATask
from xgen_jax.training.tasks.vdit_checks import (
    check_base,
    check_buckets,
    check_captions,
    check_latents,
)
from xgen_jax.typing import Array, Params, Shape, Video

PREVIEW_CLIPS = 4
GENERATE_CLIPS = 16  # at once
QUARTILES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preview:
    """Networks and settings to sample videos to look at.

    Attributes:
      embedder, params: to decode; the parameters stay on the host between previews.
      config: of the run, for its defaults of sampling.
    """

    embedder: Embedder
    params: Params
    config: VDiTRun


@dataclasses.dataclass(frozen=True, kw_only=True)
class VDiTTask(Task):
    """Train {"vdit": ...} on a frozen embedder, together with the text encoder if it is trained.

    Attributes:
      text: a text conditioner, see `models.text`.
      embedder, embedder_params: None where batches hold latents: nothing is encoded then.
      embedder_fingerprint: of the embedder that makes, or made, the latents.
      latent_shape: of that embedder: (frames, height, width) of a clip -> (t, h, w).
      latent_channels: of that embedder.
      preview_with: None samples no videos during training.
    """

    config_class: ClassVar[type[Run]] = VDiTRun

    model: VDiT
    text: TextConditioner
    loss_config: VDiTLossConfig
    embedder: Embedder | None = None
    embedder_params: Params | None = None
    embedder_fingerprint: str = ""
    latent_shape: Callable[[Shape], Shape] | None = None
    latent_channels: int = 0
    preview_with: Preview | None = None

    def __post_init__(self):
        # The frozen weights are an argument: closed over, they would be constants of the program.
        def encode(params, video):
            assert self.embedder is not None
            return self.embedder.encode(params, to_unit_range(video))

        def decode(params, latents):
            assert self.preview_with is not None
            return self.preview_with.embedder.decode(params, latents)

        object.__setattr__(self, "_encode", jax.jit(encode))
        object.__setattr__(self, "_decode", jax.jit(decode))
        object.__setattr__(self, "_sample", jax.jit(self._sampled, static_argnames="ratio"))

    @classmethod
    def build(cls, config: Any, mesh: Mesh | None, source: Source) -> Task:
        """Load the frozen networks and make the task; see `TaskFamily.build`.

        A run with `lora` gets a `LoRATask` around it.
        """
        dtype = np.dtype(config.loop.compute_dtype)
        embedder, params = load_embedder(config.embedder, dtype)
        check_buckets(config, embedder.latent_shape)
        stored = bool(source.made_by)
        text = load_conditioner(config, dtype, stored=stored)
        task = cls.on_latents(config, embedder, text, embedder.fingerprint(params))
        if stored:
            check_latents(config, source, embedder.latent_shape, task.fingerprints()["embedder"])
        check_captions(config, source, text)
        preview = Preview(embedder=embedder, params=jax.device_get(params), config=config)
        task = dataclasses.replace(task, preview_with=preview)
        if not stored:
            if mesh is not None:
                params = put(params, replicated(mesh))
            task = dataclasses.replace(task, embedder=embedder, embedder_params=params)
        return LoRATask.around(task, config) if config.lora else task

    @classmethod
    def abstract(cls, config: Any, embedder: Any, bucket: Bucket) -> tuple[Task, Batch]:
        """Make the task on stored latents from shapes alone; see `TaskFamily.abstract`."""
        check_buckets(config, embedder.latent_shape)
        text = make_conditioner(config, np.dtype(config.loop.compute_dtype))
        task = cls.on_latents(config, embedder, text)
        latents, tokens = embedder.latent_shape(bucket.shape), config.model.null_caption_tokens or 1
        batch = {
            "latents": np.zeros((1, *latents, embedder.latent_channels), np.float32),
            "caption": [""],
            "micro_cond": micro_conditions(*bucket.shape, DEFAULT_FPS)[None],
            "text": [np.zeros((tokens, config.model.text_width), np.float32)],
        }
        if not config.adapter:
            return task, batch
        # Within, because a device that is not there cannot make a key.
        base = jax.eval_shape(lambda x: task.init(jax.random.key(0), x), task.batch_arrays(batch))
        return LoRATask(base=task, lora=config.adapter, frozen=base), batch

    @classmethod
    def on_latents(
        cls,
        config: VDiTRun,
        embedder: Any,
        text: TextConditioner,
        embedder_fingerprint: str = "",
    ) -> "VDiTTask":
        """Make the task for batches of an embedder's latents; nothing is loaded."""
        return cls(
            model=VDiT(config.model, np.dtype(config.loop.compute_dtype)),
            text=text,
            loss_config=config.loss,
            embedder_fingerprint=embedder_fingerprint,
            latent_shape=embedder.latent_shape,
            latent_channels=embedder.latent_channels,
        )

    @property
    def process(self) -> Process:
        """Diffusion process of the latents."""
        return self.loss_config.make_process(self.model.config.learned_variance)

    def fingerprints(self) -> dict[str, str]:
        """Return fingerprints of the embedder and of a frozen text encoder."""
        return {"embedder": self.embedder_fingerprint, **self.text.fingerprints()}

    def may_grow(self, name: str) -> bool:
        """Return whether it is the byte encoder's table of positions, which longer captions need;
        see `Task.may_grow`."""
        return name.endswith("text/params/positions")

    def check_mesh(self, mesh: Mapping[str, int], bucket: Bucket) -> None:
        """Check heads and tokens; see `Task.check_mesh`."""
        assert self.latent_shape is not None
        self.model.config.check_mesh(mesh, self.latent_shape(bucket.shape))

    def batch_arrays(self, batch: Batch) -> Arrays:
        """Select video uint8 (B, T, H, W, 3) or latents (B, t, h, w, c), the conditioner's arrays,
        and the micro-conditions of each clip, (B, 5), where they are known."""
        clips = "video" if self.embedder else "latents"
        arrays = {clips: batch[clips], "text": self.text.batch_arrays(batch)}
        return arrays | ({"micro_cond": batch["micro_cond"]} if "micro_cond" in batch else {})

    @property
    def batches_compute(self) -> bool:
        """Whether captions are embedded as they come; see `Task.batches_compute`."""
        return self.text.computes

    def prepare(self, arrays: Arrays) -> Arrays:
        """Replace a video by its latents (B, t, h, w, c)."""
        if not self.embedder:
            return arrays
        rest = {name: array for name, array in arrays.items() if name != "video"}
        return {**rest, "latents": self._encode(self.embedder_params, arrays["video"])}

    def abstract_batch(self, arrays: Arrays, bucket: Bucket) -> Arrays:
        """Return the shapes of a bucket's latents and of the rest; see `Task.abstract_batch`."""
        assert self.latent_shape is not None
        latents = arrays["latents"]
        shape = (bucket.batch_size, *self.latent_shape(bucket.shape), latents.shape[-1])
        shapes = resize_batch(arrays, bucket)
        return {**shapes, "latents": jax.ShapeDtypeStruct(shape, latents.dtype)}

    def work(self, bucket: Bucket) -> Work:
        """Return the tokens of a batch's clips; the operations of an embedder that encodes them
        count. See `Task.work`."""
        assert self.latent_shape is not None
        clips, shape = bucket.batch_size, self.latent_shape(bucket.shape)
        tokens = clips * self.model.config.tokens(shape)
        latents = (clips, *shape, self.latent_channels)
        trained = vdit_flops(self.model.config, latents, self.text.tokens, train=True)
        trained += self.text.train_flops(clips)
        encoding = self.embedder.encode_flops((clips, *bucket.shape, 3)) if self.embedder else 0.0
        flops = None if encoding is None else trained + encoding
        return Work("tokens", tokens, tokens, flops)

    def init(self, key: Array, arrays: Arrays) -> Params:
        """Initialise the transformer, and an encoder that is trained along."""
        key_text, key_vdit = jax.random.split(key)
        params = self.text.init(key_text, arrays["text"])
        latents, micro_cond = arrays["latents"], self._micro_cond(arrays)
        text, mask = self.text.embed(params, arrays["text"])
        time = jnp.zeros(latents.shape[0])
        return {**params, "vdit": self.model.init(key_vdit, latents, time, text, mask, micro_cond)}

    def warm_start(self, config: VDiTRun) -> Params | None:
        """Load the network in `config.init_from`, if any; see `Task.warm_start`.

        Raises:
          UserError: also for a transformer trained on another embedder or frozen text encoder: its
            parameters do not fit these latents.
        """
        if config.init_from is None:
            return None
        folder = RunFolder(config.init_from)
        other = folder.expect(HoldsTransformer, "a vdit run or converted weights to start from")
        check_base(folder, self.fingerprints(), config)
        ema = folder.ema_params()
        embedder = RunFolder(config.embedder).expect(HoldsEmbedder, EMBEDDER)
        channels = embedder.model.latent_channels
        found = extend_null_caption(ema[other.family], config.model.null_caption_tokens)
        wanted = abstract_variables(config.model, channels)
        start = {"vdit": starting_network(config, wanted, found)}
        if isinstance(other, VDiTRun) and "text" in ema and other.text == config.text:
            start["text"] = jax.tree.map(np.asarray, ema["text"])
        return start

    def loss(
        self,
        params: Params,
        arrays: Arrays,
        keys_B: Array,
        step: Array | np.int32,
        frozen: Params = None,
    ) -> tuple[Array, Metrics]:
        """Compute the loss and metrics of a batch, the same at any step; see `Task.loss`."""
        del step, frozen
        x0, c, process = arrays["latents"], self.loss_config, self.process
        key_time, key_eps, key_drop = _streams(keys_B)
        frames, ratio = x0.shape[1], c.time_shift
        if c.shift_by_size:
            height_B, width_B = arrays["micro_cond"][:, 0], arrays["micro_cond"][:, 1]
            ratio = c.time_ratio(height_B, width_B, frames)
        t_B = process.sample_times(key_time, c.time_distribution, ratio)
        dropped_B = jax.vmap(jax.random.uniform)(key_drop) < c.cond_drop_prob
        frame_mask_BT = None
        if c.frame_masks.none < 1:
            # A fourth stream, so that the other three are those of a run without masks.
            frame_mask_BT = sample_frame_masks(
                jax.vmap(lambda k: jax.random.fold_in(k, 3))(keys_B), frames, c.frame_masks
            )
        losses = self._losses(params, arrays, key_eps, t_B, dropped_B, frame_mask_BT)
        metrics = {
            name: frame_mean(loss_BT, frame_mask_BT).mean() for name, loss_BT in losses.items()
        }
        return metrics.pop("loss"), metrics if process.learned_variance else {}

    def evaluate(
        self, params: Params, arrays: Arrays, keys_B: Array, frozen: Params = None
    ) -> Metrics:
        """Compute the loss by quartile of diffusion time, `loss_quartile_1` nearest to data, and
        their mean; no caption is dropped and no frame is a condition."""
        del frozen
        key_time, key_eps, _ = _streams(keys_B)
        u_B = jax.vmap(jax.random.uniform)(key_time)
        metrics = {}
        for quartile in range(QUARTILES):
            # The same noise and place within each quartile: they differ in their times only.
            t_B = (quartile + u_B) / QUARTILES
            losses = self._losses(params, arrays, key_eps, t_B, jnp.zeros(u_B.shape, bool), None)
            metrics[f"loss_quartile_{quartile + 1}"] = losses["loss"].mean()
        loss: Any = sum(metrics.values()) / QUARTILES
        return {"loss": loss, **metrics}

    def preview(self, params: Params, arrays: Arrays, batch: Batch) -> Video | None:
        """Sample clips for the first captions of the batch, next to one another, with the defaults
        of the run's sampling."""
        del batch
        if self.preview_with is None:
            return None
        few = jax.tree.map(lambda x: x[:PREVIEW_CLIPS], fetch(arrays))
        return np.concatenate(list(self._videos(params, few)), axis=2)

    @property
    def samples_prompts(self) -> bool:
        """Whether the text encoder is trained along: a frozen one is not loaded for prompts where
        captions come embedded."""
        return self.preview_with is not None and not self.text.fingerprints()

    def generate(self, params: Params, arrays: Arrays, prompts: Sequence[str]) -> Iterator[Video]:
        """See `Task.generate`."""
        few = jax.tree.map(lambda x: x[: min(len(prompts), GENERATE_CLIPS)], fetch(arrays))
        size = len(few["latents"])
        for first in range(0, len(prompts), size):
            texts = padded_rows(prompts[first : first + size], size)
            index_B = np.arange(first, first + size, dtype=np.uint32)
            batch = {**few, "text": self.text.arrays(texts)}
            yield from self._videos(params, batch, index_B)[: len(prompts) - first]

    def _videos(self, params: Params, few: Arrays, index_B: np.ndarray | None = None) -> np.ndarray:
        """Sample and decode uint8 (B, T, H, W, 3) for the captions and shapes of a batch, from the
        noise of these numbers, or that of previews."""
        assert self.preview_with is not None
        config, frames = self.loss_config, few["latents"].shape[1]
        ratio = config.time_shift
        if config.shift_by_size:
            height, width = (float(each) for each in few["micro_cond"][0, :2])
            ratio = float(config.time_ratio(height, width, frames))
        latents = self._sample(params, few, index_B, ratio=ratio)
        return to_uint8(fetch(self._decode(self.preview_with.params, latents)))

    def _sampled(
        self, params: Params, arrays: Arrays, index_B: Array | None, ratio: float
    ) -> Array:
        """Sample latents of the captions and shapes of a batch, with times shifted by a ratio."""
        assert self.preview_with is not None
        config, process = self.preview_with.config, self.process
        shape = arrays["latents"].shape
        grid = make_grid(process, config.sample_steps, config.sample_spacing, ratio, config.grid)
        if index_B is None:
            keys_B = jax.random.split(jax.random.key(0), shape[0])
        else:
            keys_B = jax.vmap(lambda index: jax.random.fold_in(jax.random.key(0), index))(index_B)
        text, null = (
            self.text.embed(params, arrays["text"], jnp.full(shape[0], dropped))
            for dropped in (False, True)
        )

        def predict(x, time_B, tokens, frame_mask_BT) -> Any:
            # Guidance evaluates both conditions in one batch.
            micro_cond = jax.tree.map(
                lambda each: jnp.resize(each, (len(x),)), self._micro_cond(arrays)
            )
            return self.model.apply(params["vdit"], x, time_B, *tokens, micro_cond, frame_mask_BT)

        denoise = guided(predict, text, null, config.guidance_scale, process, config.guidance)
        noise = jax.vmap(lambda key: process.sample_prior(key, shape[1:]))(keys_B)
        steps = make_steps(config.sampler, grid)
        return sample(denoise, noise, steps, config.sampler, key_noise(keys_B, shape[1:]))

    def _losses(
        self,
        params: Params,
        arrays: Arrays,
        key_B: Array,
        t_B: Array,
        dropped_B: Array,
        frame_mask_BT,
    ) -> dict[str, Array]:
        """Compute the process's losses (B, T) of each latent frame at the times t_B."""
        x0, process = arrays["latents"], self.process
        eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(key_B)
        text, mask = self.text.embed(params, arrays["text"], dropped_B)
        x_t = process.corrupt(x0, eps, t_B, frame_mask_BT)
        time_B = process.timestep(t_B)
        output: Any = self.model.apply(
            params["vdit"], x_t, time_B, text, mask, self._micro_cond(arrays), frame_mask_BT
        )
        return process.losses(output, x0, eps, t_B)

    def _micro_cond(self, arrays: Arrays) -> MicroConditions | None:
        return MicroConditions(*arrays["micro_cond"].T) if self.model.config.micro_cond else None


def _streams(keys_B: Array) -> tuple[Array, Array, Array]:
    """Split keys (B,) into those of the time, the noise and the dropped caption."""
    keys_3 = jnp.split(jax.vmap(lambda k: jax.random.split(k, 3))(keys_B), 3, axis=1)
    time_B, eps_B, drop_B = (keys[:, 0] for keys in keys_3)
    return time_B, eps_B, drop_B
