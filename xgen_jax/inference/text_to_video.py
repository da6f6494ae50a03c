"""A trained text-to-video model as a callable."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.data.pipeline import clip_conditions
from xgen_jax.diffusion.grids import make_grid
from xgen_jax.diffusion.guidance import guided
from xgen_jax.diffusion.samplers import key_noise, make_steps, sample
from xgen_jax.errors import UserError
from xgen_jax.inference.streaming import decode
from xgen_jax.inference.video_range import to_uint8
from xgen_jax.models.embedder import VidVAEEmbedder
from xgen_jax.models.text import ByteConditioner, T5Conditioner
from xgen_jax.models.vdit import VDiT
from xgen_jax.models.vdit_config import ClipConditions
from xgen_jax.training.adapters import with_adapter
from xgen_jax.training.config import VDiTRun
from xgen_jax.training.run_folder import RunFolder, check_fingerprints, load_embedder
from xgen_jax.training.text_encoder import default_cache, load_conditioner
from xgen_jax.typing import Params, Video


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextToVideo:
    """Text in, video out. Made by `xgen_jax.load`.

    Attributes:
      config: of the run that trained it; its first bucket is the default size.
      text: the text conditioner, see `models.text`.
      params: {"vdit", "embedder"}, and what the conditioner trained along.
    """

    config: VDiTRun
    model: VDiT
    text: ByteConditioner | T5Conditioner
    embedder: VidVAEEmbedder
    params: Params

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
        batch_size: int = 16,
        progress: Callable[[int, int], None] | None = None,
    ) -> Video:
        """Draws videos.

        A video depends on its prompt, the seed and its place in the list, not on the batch it is drawn in.

        Args:
          prompt: a prompt, or a list of them.
          seed: of the noise, 0 or more.
          steps: sampling steps; None takes the run's.
          guidance_scale: 1 is no guidance, more follows the prompt more closely; None takes the run's.
          sampler: a name in `diffusion.samplers.RULES`.
          frames: length, one that the embedder can take.
          size: (height, width) in pixels, multiples of what the embedder and the patches need.
          batch_size: prompts drawn at once.
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
        if seed < 0:
            raise UserError(f"seed={seed} must be 0 or more")
        bucket = self.config.data.buckets[0]
        height, width = size or (bucket.height, bucket.width)
        frames = frames or bucket.frames
        latent_shape = self.embedder.latent_shape((frames, height, width))
        self.model.config.check_latents(latent_shape)
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        latent_shape = (*latent_shape, self.embedder.latent_channels)
        process = self.config.loss.make_process(self.config.model.learned_variance)
        sampler = sampler or self.config.sampler
        ratio = self.config.loss.time_ratio(height, width, latent_shape[0])
        grid = make_grid(process, steps or self.config.sample_steps, self.config.sample_spacing, ratio)
        static = (self.model, self.text, process, sampler, self.config.guidance, latent_shape)
        draw = functools.partial(_draw, static, make_steps(sampler, grid))
        clip = clip_conditions(frames, height, width, self.fps)
        batch_size = min(batch_size, len(prompts))
        networks = {name: tree for name, tree in self.params.items() if name != "embedder"}
        videos = []
        for first in range(0, len(prompts), batch_size):
            # A last batch that is not full repeats its last row: every batch runs the same compiled program.
            rows = np.minimum(np.arange(first, first + batch_size), len(prompts) - 1)
            arrays = self.text.arrays([prompts[row] for row in rows])
            latents = draw(networks, arrays, clip, np.uint32(seed), rows.astype(np.uint32), np.float32(scale))
            batch = decode(self.embedder, self.params["embedder"], latents)
            videos.append(batch[: len(prompts) - first])
            if progress:
                progress(min(first + batch_size, len(prompts)), len(prompts))
        videos = to_uint8(np.concatenate(videos))
        return videos[0] if isinstance(prompt, str) else videos


@functools.partial(jax.jit, static_argnums=0)
def _draw(static, steps, params, arrays, clip, seed, rows, scale):
    """Latents of a batch. The grid, the seed and the scale are arguments: changing them compiles nothing anew."""
    model, conditioner, process, sampler, guidance, latent_shape = static
    key_B = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(rows)
    x = jax.vmap(lambda key: process.terminal(key, latent_shape))(key_B)

    def tokens(null):
        return conditioner.embed(params, arrays, jnp.full(rows.shape, null))

    def predict(x, time, text, noised):
        told = ClipConditions(*(jnp.full(x.shape[:1], each) for each in clip)) if model.config.clip_conditions else None
        return model.apply(params["vdit"], x, time, *text, told, noised)

    denoise = guided(predict, tokens(False), tokens(True), scale, process, guidance)
    return sample(denoise, x, steps, sampler, key_noise(key_B, latent_shape))


def load_text_to_video(
    path,
    embedder: str | None = None,
    step: int | None = None,
    *,
    text_encoder: str | None = None,
    text_cache: str | None = None,
    lora: str | None = None,
) -> TextToVideo:
    """Loads a VDiT run folder: its averaged parameters, and the embedder and text encoder that it was trained on.

    Args:
      path: the run folder.
      embedder: the embedder's folder, when it is no longer where the run found it.
      step: a checkpoint's step; the newest by default.
      text_encoder: the T5's folder, likewise, for a run that has one. Its weights are loaded when a prompt needs them.
      text_cache: where embeddings of prompts are kept; see `training.text_encoder.default_cache`.
      lora: an adapter of this model, FILE or FILE:SCALE; see `training.adapters.with_adapter`.

    Raises:
      UserError: not such a folder, no finished checkpoint, or the embedder or text encoder is missing or another one.
    """
    folder = RunFolder(path)
    config = folder.config()
    if config.objective != "vdit":
        raise UserError(f"{path} holds a {config.objective} run; a text-to-video model is a vdit run")
    checkpoints = folder.checkpoints()
    params = folder.averaged(step)
    if lora:
        params = with_adapter(params, config.model, lora)
    network, embedder_params = load_embedder(embedder or folder.beside(config.embedder))
    if config.text.kind == "t5" and not text_encoder:
        text_encoder = folder.beside(config.text.path)
    text = load_conditioner(config, path=text_encoder, cache=text_cache or default_cache())
    now = {"embedder": network.fingerprint(embedder_params), **text.fingerprints()}
    check_fingerprints(now, checkpoints.restore_data(step), f"the model in {path}")
    return TextToVideo(
        config=config,
        model=VDiT(config.model),
        text=text,
        embedder=network,
        params={**params, "embedder": embedder_params},
    )
