"""A trained text-to-video model as a callable."""

import dataclasses
import sys
from collections.abc import Callable

import jax
import numpy as np

from xgen_jax.config.runs import VDiTRun
from xgen_jax.errors import UserError
from xgen_jax.inference.request import UNTRAINED, ClipPlan, continues, plan_clip
from xgen_jax.inference.sampling import Drawer, default_batch_size
from xgen_jax.models.embedder import Embedder
from xgen_jax.models.text import TextConditioner
from xgen_jax.models.vdit import VDiT
from xgen_jax.nn.attention import IMPLEMENTATIONS
from xgen_jax.runs.adapters import with_adapter
from xgen_jax.runs.folder import RunFolder, check_fingerprints
from xgen_jax.runs.load import load_embedder
from xgen_jax.runs.text_encoders import default_cache, load_conditioner
from xgen_jax.typing import Params, Video


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToVideo:
    """Text in, video out. Made by `xgen_jax.load`.

    Attributes:
      config: of the run that trained it; its first bucket of videos is the default size.
      text: the text conditioner, see `models.text`.
      params: {"vdit", "embedder"}, and what the conditioner trained along.
      step: of the checkpoint.
      offload, memory_budget_gb: see `Drawer`.
    """

    config: VDiTRun
    model: VDiT
    text: TextConditioner
    embedder: Embedder
    params: Params
    step: int = 0
    offload: bool = False
    memory_budget_gb: float | None = None

    @property
    def fps(self) -> float:
        """Frames a second at which its videos are meant to be seen."""
        return self.config.sample_fps

    def __call__(
        self,
        prompt: str | list[str],
        seed: int = 0,
        *,
        steps: int | None = None,
        guidance_scale: float | None = None,
        sampler: str | None = None,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        fps: float | None = None,
        condition: Video | None = None,
        piece_frames: int | None = None,
        overlap: int | None = None,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Video:
        """Draws videos.

        A video depends on its prompt, the seed and its place in the list, not on the batch it is
        drawn in. One longer than the longest trained on is drawn in pieces, each given the last
        latent frames of the one before.

        Args:
          prompt: a prompt, or a list of them.
          seed: of the noise, 0 or more.
          steps: sampling steps; None takes the run's.
          guidance_scale: 1 is no guidance, more follows the prompt more closely; None takes the
          run's.
          sampler: a name in `diffusion.samplers.SOLVERS`.
          frames: length, one that the embedder can take.
          size: (height, width) in pixels, multiples of what the embedder needs.
          fps: frames a second, which some networks are told; None takes the run's.
          condition: uint8 (T, H, W, 3), an image or a video, whose last frames the new videos begin
            with, resized and cropped to their size.
          piece_frames, overlap: see `clip_plan.plan_clip`.
          batch_size: prompts drawn at once; None takes as many as keep the devices busy.
          progress: called with (videos done, videos in all).

        Returns:
          uint8 (T, H, W, 3); for a list (N, T, H, W, 3).

        Raises:
          UserError: an empty or too long prompt, a size or length that cannot be drawn.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise UserError("there is no prompt")
        self.text.check(prompts)
        if not 0 <= seed < 2**32:
            raise UserError(f"seed={seed} must be 0 or more, and below 2^32")
        plan = self.plan(
            frames=frames, size=size, fps=fps, piece_frames=piece_frames, overlap=overlap
        )
        batch_size = min(self.batch_size(plan) if batch_size is None else batch_size, len(prompts))
        drawer = self.drawer(
            plan,
            batch_size,
            steps=steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            condition=condition,
        )
        videos = []
        for first in range(0, len(prompts), batch_size):
            # A last batch that is not full repeats its last row: every batch runs the same compiled
            # program.
            rows = np.minimum(np.arange(first, first + batch_size), len(prompts) - 1)
            chunks = drawer([prompts[row] for row in rows], [seed] * batch_size, rows, condition)
            videos.append(np.concatenate(list(chunks), axis=1)[: len(prompts) - first])
            if progress:
                progress(min(first + batch_size, len(prompts)), len(prompts))
        videos = np.concatenate(videos)
        return videos[0] if isinstance(prompt, str) else videos

    def plan(self, **request) -> ClipPlan:
        """See `clip_plan.plan_clip`."""
        return plan_clip(self.config, self.embedder, **request)

    def batch_size(self, plan: ClipPlan) -> int:
        """How many clips at once keep this process's devices busy."""
        return default_batch_size(plan, self.config.model.patch)

    def drawer(
        self, plan: ClipPlan, batch_size: int, *, condition: Video | None = None, **options
    ) -> Drawer:
        """What draws batches of a plan; says on stderr what of it the network was not trained on.

        Args:
          plan: see `plan`.
          batch_size: clips at once.
          condition: the one that batches will be given, if any.
          options: `steps`, `guidance_scale` and `sampler`, see `Drawer`.
        """
        doubts = list(plan.doubts)
        if condition is not None and not continues(self.config):
            doubts.append(f"a condition is given, and {UNTRAINED}")
        for doubt in doubts:
            print(f"this may not come out well: {doubt}", file=sys.stderr)
        return Drawer(
            model=self.model,
            text=self.text,
            embedder=self.embedder,
            params=self.params,
            config=self.config,
            plan=plan,
            batch_size=batch_size,
            offload=self.offload,
            memory_budget_gb=self.memory_budget_gb,
            **options,
        )


def load_text_to_video(
    path,
    embedder: str | None = None,
    step: int | None = None,
    *,
    text_encoder: str | None = None,
    text_cache: str | None = None,
    lora: str | None = None,
    compute_dtype: str | None = None,
    attention: str | None = None,
    offload: bool = False,
    memory_budget_gb: float | None = None,
) -> TextToVideo:
    """Loads a VDiT run folder: its averaged parameters, and the embedder and text encoder that it
    was trained on.

    Args:
      path: the run folder.
      embedder: the embedder's folder, when it is no longer where the run found it.
      step: a checkpoint's step; the newest by default.
      text_encoder: the T5's folder, likewise, for a run that has one. Its weights are loaded when a
      prompt needs them.
      text_cache: where embeddings of prompts are kept; see `runs.text_encoders.default_cache`.
      lora: an adapter of this model, FILE or FILE:SCALE; see `runs.adapters.with_adapter`.
      compute_dtype: of transformer and decoder, `bfloat16` or `float32`; by default the one trained
      in.
      attention: the transformer's implementation, see `nn.attention`; by default the one trained
      with.
      offload, memory_budget_gb: see `Drawer`; with either, parameters are kept in the host's
      memory.

    Raises:
      UserError: not such a folder, no finished checkpoint, or the embedder or text encoder is
      missing or another one.
    """
    folder = RunFolder(path)
    config = folder.config()
    if config.objective != "vdit":
        raise UserError(
            f"{path} holds a {config.objective} run; a text-to-video model is a vdit run"
        )
    dtype = compute_dtype or config.loop.compute_dtype
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"compute_dtype={dtype!r} is not known; choose 'float32' or 'bfloat16'")
    network = dataclasses.replace(config.model, attention=attention or config.model.attention)
    if network.attention not in IMPLEMENTATIONS:
        raise UserError(
            f"attention={attention!r} is not known; choose one of {', '.join(IMPLEMENTATIONS)}"
        )
    # One after another: what is kept on the host is on a device only while it is read.
    kept = jax.device_get if offload or memory_budget_gb is not None else (lambda tree: tree)
    checkpoints = folder.checkpoints()
    params = folder.averaged(step)
    params = kept(with_adapter(params, config.model, lora) if lora else params)
    made_for, embedder_params = load_embedder(
        embedder or folder.beside(config.embedder), np.dtype(dtype)
    )
    embedder_params = kept(embedder_params)
    if config.text.path and not text_encoder:
        text_encoder = folder.beside(config.text.path)
    text = load_conditioner(config, path=text_encoder, cache=text_cache or default_cache())
    now = {"embedder": made_for.fingerprint(embedder_params), **text.fingerprints()}
    check_fingerprints(now, checkpoints.restore_data(step), f"the model in {path}")
    return TextToVideo(
        config=config,
        model=VDiT(network, np.dtype(dtype)),
        text=text,
        embedder=made_for,
        params={**params, "embedder": embedder_params},
        step=checkpoints.steps()[-1] if step is None else step,
        offload=offload,
        memory_budget_gb=memory_budget_gb,
    )
