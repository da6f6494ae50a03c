"""A trained text-to-video model as a callable."""

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable

import jax
import numpy as np

from xgen_jax.config.runs import VDiTRun
from xgen_jax.data.batches import batches
from xgen_jax.errors import UserError, choose
from xgen_jax.inference.request import (
    NO_CONDITION_TRAINING,
    VideoPlan,
    VideoRequest,
    plan_video,
    trained_with_conditions,
)
from xgen_jax.inference.sampling import BatchRow
from xgen_jax.inference.video_generator import Networks, VideoGenerator
from xgen_jax.models.fingerprint import fingerprint
from xgen_jax.models.vdit import VDiT
from xgen_jax.nn.choices import IMPLEMENTATIONS
from xgen_jax.runs.adapters import with_adapter
from xgen_jax.runs.checkpoint import Step
from xgen_jax.runs.folder import RunFolder, check_fingerprints
from xgen_jax.runs.load import (
    TEXT_TO_VIDEO,
    load_embedder,
)
from xgen_jax.runs.text_encoders import default_cache, load_conditioner
from xgen_jax.typing import Video

_BUSY_TOKENS = 8192  # about enough at once to occupy a device
_MAX_BATCH = 16  # videos on a device at once, unless the user asks for more


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

    @functools.cached_property
    def fingerprint(self) -> str:
        """The identity of all networks, an adapter included, in 16 hex digits; see
        `models.fingerprint`. 1 GB of parameters takes about a second."""
        networks = self.networks
        trained = {name: tree for name, tree in networks.params.items() if name != "embedder"}
        parts = {
            "transformer": fingerprint(networks.model.config, trained),
            "embedder": networks.embedder.fingerprint(networks.params["embedder"]),
            **networks.text.fingerprints(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

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
        spacing: str | None = None,
        steps_offset: int | None = None,
        set_alpha_to_one: bool | None = None,
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
          steps, guidance_scale, sampler, spacing, steps_offset, set_alpha_to_one,
            negative_prompt, frames, size, fps, segment_frames, overlap: see `VideoRequest`; None
            takes the run's.
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
            spacing=spacing,
            steps_offset=steps_offset,
            set_alpha_to_one=set_alpha_to_one,
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
            params={**params, "embedder": trained_on.in_compute_dtype(embedder_params)},
        ),
        step=step,
        offload=offload,
        memory_budget_gb=memory_budget_gb,
    )
