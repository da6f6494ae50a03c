"""A trained text-to-video model as a callable."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from xgen_jax.config.runs import VDiTRun
from xgen_jax.data.batches import batches, padded_rows
from xgen_jax.data.pixels import to_uint8
from xgen_jax.diffusion.frames import KnownFrames
from xgen_jax.errors import UserError, choose
from xgen_jax.inference.chunks import plan_chunks
from xgen_jax.inference.conditioning import fit_condition
from xgen_jax.inference.request import (
    NO_CONDITION_TRAINING,
    VideoPlan,
    VideoRequest,
    plan_video,
    trained_with_conditions,
)
from xgen_jax.inference.residency import Residency, fits_devices, plan_memory, sampling_mesh
from xgen_jax.inference.sampling import BatchRow, VideoSampler, decode_keys
from xgen_jax.inference.streaming import decode_segments, encode
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.text import TextConditioner
from xgen_jax.models.vdit import VDiT
from xgen_jax.nn.choices import IMPLEMENTATIONS
from xgen_jax.parallel.memory import GB
from xgen_jax.parallel.sharding import on_mesh
from xgen_jax.runs.adapters import with_adapter
from xgen_jax.runs.checkpoint import Step
from xgen_jax.runs.folder import RunFolder, check_fingerprints
from xgen_jax.runs.load import (
    TEXT_TO_VIDEO,
    count_parameters,
    describe_embedder,
    load_embedder,
)
from xgen_jax.runs.text_encoders import default_cache, load_conditioner
from xgen_jax.typing import AnyArray, Array, Params, Video

_BUSY_TOKENS = 8192  # about enough at once to occupy a device
_MAX_BATCH = 16  # videos on a device at once, unless the user asks for more


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """Networks and parameters of a text-to-video model.

    Attributes:
      model: the transformer.
      text: the text conditioner, see `models.text`.
      embedder: of the latents that the transformer works on.
      params: {"vdit", "embedder", and what the text conditioner trained}, on the host or a device.
    """

    model: VDiT
    text: TextConditioner
    embedder: Embedder
    params: Params

    def __repr__(self) -> str:
        vdit, config = count_parameters(self.params["vdit"]), self.model.config
        others = {n: t for n, t in self.params.items() if n not in ("vdit", "embedder")}
        trained = f", {count_parameters(others):,} parameters" if others else ""
        return (
            f"  transformer  width {config.width}, depth {config.depth}, {vdit:,} parameters\n"
            f"  text         {type(self.text).__name__}, width {self.text.width}{trained}\n"
            f"  embedder     {describe_embedder(self.embedder, self.params['embedder'])}"
        )


class VideoGenerator:
    """Generates batches of videos of one plan: text and noise to latents, latents to pixels.

    Args:
      networks: see `Networks`.
      config: of the run that trained them.
      plan: of the videos.
      batch_size: videos at once; a batch is split over as many devices of this process as divide
        it, which share the parameters; see `sampling_mesh`.
      offload: hold parameters on the host, and on the devices either the transformer's or the
        decoder's.
      memory_budget_gb: memory of a device, in GB (1e9 bytes), parameters included. It sets the
        chunks that are decoded, and turns `offload` on if both networks do not fit.

    Attributes:
      sampler: the part that samples latents.
      residency: where the parameters are.

    Raises:
      UserError: an unknown sampler, steps that its grid does not have, a budget in which nothing
        fits.
    """

    def __init__(
        self,
        networks: Networks,
        config: VDiTRun,
        plan: VideoPlan,
        batch_size: int,
        offload: bool = False,
        memory_budget_gb: float | None = None,
    ):
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size} must be 1 or more")
        self.plan, self.batch_size, self._embedder = plan, batch_size, networks.embedder
        sampled_with = _without_embedder(networks.params)

        def sampler_on(mesh: Mesh) -> VideoSampler:
            return VideoSampler(
                model=networks.model,
                text=networks.text,
                config=config,
                plan=plan,
                batch_size=batch_size,
                mesh=mesh,
            )

        @functools.cache
        def step_bytes(mesh: Mesh) -> int:
            return sampler_on(mesh).step_bytes(sampled_with)

        def fits(mesh: Mesh) -> bool:
            if memory_budget_gb is None:
                return fits_devices(networks.params, mesh, offload)
            return step_bytes(mesh) <= memory_budget_gb * GB

        heads = networks.model.config.heads
        self.mesh = sampling_mesh(batch_size, heads, jax.local_devices(), fits)
        self.sampler = sampler_on(self.mesh)
        self._memory = plan_memory(
            networks.params,
            self.mesh,
            memory_budget_gb,
            lambda: step_bytes(self.mesh),
            lambda budget_gb: plan_chunks(
                networks.embedder,
                networks.params["embedder"],
                "decode",
                (batch_size // self.mesh.shape["fsdp"], *self._latent_shape[1:]),
                np.float32,
                budget_gb,
            ),
            offload,
        )
        self.residency = Residency(networks.params, self.mesh, self._memory.offload)

    def __repr__(self) -> str:
        plan = self.plan
        return (
            f"VideoGenerator of {self.batch_size} videos at once on {self.mesh.size} devices\n"
            f"  video        {plan.frames}x{plan.height}x{plan.width} at {plan.fps:g} fps\n"
            f"  sampling     {plan.sampler}, {plan.steps} steps, guidance {plan.guidance_scale:g}\n"
            f"  offload      {self.residency.offload}"
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that videos depend on, besides prompts, noise, conditions and parameters."""
        return {**self.sampler.settings, **self._embedder.settings}

    def __call__(
        self,
        batch: Sequence[BatchRow | None],
        condition: Video | None = None,
        progress: Callable[[], None] | None = None,
    ) -> Iterator[Video]:
        """Generate a batch.

        Args:
          batch: up to `batch_size` rows; None is an empty row, whose video is to be ignored.
          condition: start of each video, uint8 (T, H, W, 3), see `fit_condition`.
          progress: called after every sampling step, when it is done.

        Yields:
          The videos from their beginning, chunk after chunk, uint8 (B, T, H, W, 3).
        """
        rows = padded_rows(batch, self.batch_size)
        latents: Iterator[AnyArray] = self.latents(rows, condition, progress)
        if self.residency.offload:  # the transformer must be freed before the decoder is loaded
            latents = iter(list(map(np.asarray, latents)))
        with on_mesh(self.mesh):
            key_B = decode_keys(*self.sampler.seeds(rows))
        with self.residency.on_devices("embedder") as params:
            chunks = decode_segments(
                self._embedder,
                params["embedder"],
                latents,
                self._latent_shape,
                self._memory.decoder,
                self.mesh,
                key_B,
            )
            yield from map(to_uint8, chunks)

    def latents(
        self,
        batch: Sequence[BatchRow],
        condition: Video | None = None,
        progress: Callable[[], None] | None = None,
    ) -> Iterator[Array]:
        """Sample the latents of a full batch, see `VideoSampler`; arguments are those of a call."""
        known = None if condition is None else self._known(condition)
        with self.residency.on_devices(*_without_embedder(self.residency.params)) as params:
            yield from self.sampler(params, batch, known, progress)

    def _known(self, condition: Video) -> KnownFrames:
        video = fit_condition(condition, self.plan, self._embedder)
        with self.residency.on_devices("embedder") as params, on_mesh(self.mesh):
            latents = encode(
                self._embedder, params["embedder"], video[None], self._memory.embedder_budget_gb
            )
        return self.sampler.known_condition(latents)

    @property
    def _latent_shape(self) -> tuple[int, ...]:
        """Return (B, t, h, w, c) of whole videos."""
        return (self.batch_size, self.plan.latent_frames, *self.plan.segment_shape[1:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToVideo:
    """A text-to-video model; see `xgen_jax.load`.

    Attributes:
      config: of the run that trained it; its first bucket of videos is the default size.
      networks: see `Networks`.
      step: of the checkpoint.
      offload, memory_budget_gb: see `VideoGenerator`.
    """

    config: VDiTRun
    networks: Networks
    step: int = 0
    offload: bool = False
    memory_budget_gb: float | None = None

    def __repr__(self) -> str:
        c, plan = self.config, self.plan()
        return (
            f"TextToVideo: {plan.frames}x{plan.height}x{plan.width} at {plan.fps:g} fps, "
            f"step {self.step:,} of its run\n"
            f"{self.networks}\n"
            f"  sampling     {c.sampler}, {c.sample_steps} steps, guidance {c.guidance_scale:g}\n"
            '  call         model("a prompt", seed=0): uint8 (T, H, W, 3)'
        )

    @property
    def fps(self) -> float:
        """Frames per second at which its videos play by default."""
        return self.config.fps

    def __call__(
        self,
        prompt: str | list[str],
        seed: int = 0,
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        negative_prompt: str | None = None,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        fps: float | None = None,
        condition: Video | None = None,
        segment_frames: int | None = None,
        overlap: int | None = None,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Video:
        """Generate videos.

        A video depends on its prompt, the seed and its place in the list, not on the batch it is
        generated in.

        Args:
          prompt: a prompt, or a list of them.
          seed: of the noise, 0 .. 2^32 - 1.
          steps, guidance_scale, sampler, negative_prompt, frames, size, fps, segment_frames,
            overlap: see `VideoRequest`; None takes the run's.
          condition: an image or a video, uint8 (T, H, W, 3); the new videos begin with its last
            frames, resized and cropped to their size.
          batch_size: prompts at once; None takes enough to occupy the devices.
          progress: called with (videos done, videos in total).

        Returns:
          uint8 (T, H, W, 3); for a list (N, T, H, W, 3).

        Raises:
          UserError: an empty or too long prompt, a seed out of range, a size or length that cannot
            be generated.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise UserError("there is no prompt")
        given = [] if negative_prompt is None else [negative_prompt]
        self.networks.text.check(prompts + given)
        if not 0 <= seed < 2**32:
            raise UserError(f"seed={seed} must be 0 or more, and below 2^32")
        request = VideoRequest(
            frames=frames,
            size=size,
            fps=fps,
            segment_frames=segment_frames,
            overlap=overlap,
            steps=steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            negative_prompt=negative_prompt,
        )
        plan = self.plan(request)
        batch_size = min(self.batch_size(plan) if batch_size is None else batch_size, len(prompts))
        generator = self.generator(plan, batch_size, conditioned=condition is not None)
        rows = [BatchRow(text, seed, index) for index, text in enumerate(prompts)]
        videos = []
        for batch in batches(rows, batch_size):
            chunks = list(generator(batch, condition))
            videos.extend(np.concatenate(chunks, axis=1)[: len(batch)])
            if progress:
                progress(len(videos), len(prompts))
        return videos[0] if isinstance(prompt, str) else np.stack(videos)

    def plan(self, request: VideoRequest | None = None) -> VideoPlan:
        """Check a request and fill it in, see `plan_video`; by default as the run samples."""
        return plan_video(self.config, self.networks.embedder, request or VideoRequest())

    def batch_size(self, plan: VideoPlan) -> int:
        """Return the number of videos at once that occupies this process's devices."""
        per_device = max(1, _BUSY_TOKENS // plan.tokens(self.config.model.patch))
        return min(_MAX_BATCH, per_device) * len(jax.local_devices())

    def generator(
        self, plan: VideoPlan, batch_size: int, *, conditioned: bool = False
    ) -> VideoGenerator:
        """Make a generator of batches; print on stderr what the network was not trained on.

        Args:
          plan: see `plan`.
          batch_size: videos at once.
          conditioned: whether batches will have a condition.
        """
        warnings = list(plan.warnings)
        if conditioned and not trained_with_conditions(self.config):
            warnings.append(f"a condition is given, and {NO_CONDITION_TRAINING}")
        for warning in warnings:
            print(f"this may not come out well: {warning}", file=sys.stderr)
        return VideoGenerator(
            self.networks, self.config, plan, batch_size, self.offload, self.memory_budget_gb
        )


def load_text_to_video(
    path,
    embedder: str | None = None,
    step: Step = None,
    *,
    text_encoder: str | None = None,
    text_cache: str | None = None,
    lora: str | None = None,
    compute_dtype: str | None = None,
    attention: str | None = None,
    offload: bool = False,
    memory_budget_gb: float | None = None,
) -> TextToVideo:
    """Load the EMA parameters of a VDiT run, and the embedder and text encoder it was trained on.

    Args:
      path: the run folder.
      embedder: the embedder's folder, if it is no longer where the run found it.
      step: of a checkpoint, or one of `runs.checkpoint.CHOICES`; the newest by default.
      text_encoder: the T5's folder, likewise, for a run that has one. Its weights are loaded when a
        prompt needs them.
      text_cache: folder of cached embeddings; see `runs.text_encoders.default_cache`.
      lora: an adapter of this model, FILE or FILE:SCALE; see `runs.adapters.with_adapter`.
      compute_dtype: of transformer and decoder, `bfloat16` or `float32`; by default the one trained
        in.
      attention: the transformer's implementation, see `nn.attention`; by default the one trained
        with.
      offload, memory_budget_gb: see `VideoGenerator`; with either, parameters are held in the
        host's memory.

    Raises:
      UserError: not such a folder, no finished checkpoint, or the embedder or text encoder is
        missing or another one.
    """
    folder = RunFolder(path)
    config = folder.expect(VDiTRun, TEXT_TO_VIDEO)
    if text_encoder and config.text.trained:
        raise UserError(
            f"text_encoder={text_encoder} is for a run with a T5; {path} has trained its own text "
            "encoder: leave it out"
        )
    dtype = compute_dtype or config.loop.compute_dtype
    choose("compute_dtype", dtype, ("float32", "bfloat16"))
    network = dataclasses.replace(config.model, attention=attention or config.model.attention)
    choose("attention", network.attention, IMPLEMENTATIONS)
    # One network after another: with offloading they are on a device only while they are read.
    kept = jax.device_get if offload or memory_budget_gb is not None else (lambda tree: tree)
    checkpoints = folder.checkpoints()
    params = folder.ema_params(step)
    step = checkpoints.resolve(step)
    params = kept(with_adapter(params, config.model, lora) if lora else params)
    trained_on, embedder_params = load_embedder(
        embedder or folder.resolve_sibling(config.embedder), np.dtype(dtype)
    )
    embedder_params = kept(embedder_params)
    if config.text.path and not text_encoder:
        text_encoder = folder.resolve_sibling(config.text.path)
    text = load_conditioner(config, path=text_encoder, cache=text_cache or default_cache())
    now = {"embedder": trained_on.fingerprint(embedder_params), **text.fingerprints()}
    check_fingerprints(now, checkpoints.restore_data(step), f"the model in {path}")
    return TextToVideo(
        config=config,
        networks=Networks(
            model=VDiT(network, np.dtype(dtype)),
            text=text,
            embedder=trained_on,
            params={**params, "embedder": embedder_params},
        ),
        step=step,
        offload=offload,
        memory_budget_gb=memory_budget_gb,
    )


def _without_embedder(params: Params) -> Params:
    return {name: tree for name, tree in params.items() if name != "embedder"}
