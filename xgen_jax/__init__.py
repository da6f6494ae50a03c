"""Raw videos to a trained text-to-video model, in JAX.

    raw videos --curate--> shards --train--> VidVAE | REGEN --encode_dataset--> latents
        --train--> VDiT --> videos

Prepare and train          curate, plan, train, encode_dataset, presets
Use a trained model        load, load_text_to_video, load_embedder
Encode and decode          encode, decode, and encode_stream, decode_stream for videos of any length
What commands do           sample, reconstruct, evaluate, convert
Video files                read_video, write_video, show
A mistake of the user      UserError

A video is uint8 (T, H, W, 3). Each command also runs as `python -m xgen_jax COMMAND`. How to add a
sampler, a source of clips, an embedder or a task is in docs/extending.md.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from xgen_jax.errors import UserError

__version__ = "0.2.0"
__all__ = [
    "UserError",
    "convert",
    "curate",
    "decode",
    "decode_stream",
    "encode",
    "encode_dataset",
    "encode_stream",
    "evaluate",
    "load",
    "load_embedder",
    "load_text_to_video",
    "plan",
    "presets",
    "read_video",
    "reconstruct",
    "sample",
    "show",
    "train",
    "write_video",
]

# Each function imports what it needs when it is called, so that `import xgen_jax` costs nothing and
# a program can set JAX up first.


def load(path: str | os.PathLike) -> Any:
    """Load the model in a run folder as a callable.

    Args:
      path: the folder of a run, of an exported model or of converted weights, or an address on the
        Hugging Face hub, "hf://OWNER/NAME".

    Returns:
      A `TextToVideo` (prompt -> video) for a VDiT, a `Reconstructor` (video -> video) for a VidVAE
      or REGEN.

    Raises:
      UserError: no such folder, or no finished run in it.

    Example:
      model = xgen_jax.load("runs/vdit")
      video = model("a red circle moving left", seed=0)
    """
    from xgen_jax.config.runs import HoldsEmbedder
    from xgen_jax.inference.reconstruct import load_reconstructor
    from xgen_jax.inference.text_to_video import load_text_to_video
    from xgen_jax.runs.folder import RunFolder

    embedder = isinstance(RunFolder(path).config(), HoldsEmbedder)
    return (load_reconstructor if embedder else load_text_to_video)(path)


def load_text_to_video(path: str | os.PathLike, **options: Any) -> Any:
    """Load a text-to-video model, with options; see `inference.text_to_video.load_text_to_video`.

    Args:
      path: the folder of a vdit run; see `load`.
      options: `embedder`, `step`, `text_encoder`, `lora`, `compute_dtype`, `offload`,
        `memory_budget_gb` and others.

    Raises:
      UserError: no such run, or a network it was trained on is missing or another one.

    Example:
      model = xgen_jax.load_text_to_video("runs/vdit", memory_budget_gb=4)
      videos = model(["a red circle moving left", "a blue square moving up"], steps=2)
    """
    from xgen_jax.inference.text_to_video import load_text_to_video

    return load_text_to_video(path, **options)


def load_embedder(path: str | os.PathLike, **options: Any) -> tuple[Any, Any]:
    """Load a video autoencoder and its parameters, for `encode` and `decode`.

    Args:
      path: the folder of a vidvae or regen run, or of converted weights; see `load`.
      options: `dtype`, `require_statistics`; see `runs.load.load_embedder`.

    Returns:
      (embedder, parameters with the latent statistics).

    Raises:
      UserError: no such folder, one of another network, or no checkpoint.

    Example:
      embedder, params = xgen_jax.load_embedder("runs/vidvae")
    """
    from xgen_jax.runs.load import load_embedder

    return load_embedder(path, **options)


def encode(embedder: Any, params: Any, video: Any, memory_budget_gb: float | None = None) -> Any:
    """Encode videos to normalised latents, in chunks whose memory does not grow with the length.

    Args:
      embedder, params: see `load_embedder`.
      video: uint8, or float in [-1, 1], (B, T, H, W, 3); T is a length that the embedder takes.
      memory_budget_gb: what the device may use, in GB (1e9 bytes).

    Returns:
      float32 (B, t, h, w, c), of mean 0 and variance 1 a channel over the training data.

    Raises:
      UserError: a length or size that the embedder cannot take; a budget in which nothing fits.

    Example:
      embedder, params = xgen_jax.load_embedder("runs/vidvae")
      video, fps = xgen_jax.read_video("clip.mp4", frames=5)
      latents = xgen_jax.encode(embedder, params, video[None])
    """
    from xgen_jax.inference.streaming import encode

    return encode(embedder, params, video, memory_budget_gb)


def decode(embedder: Any, params: Any, latents: Any, memory_budget_gb: float | None = None) -> Any:
    """Decode normalised latents (B, t, h, w, c) to video, float32 (B, T, H, W, 3), about [-1, 1].

    Args:
      embedder, params: see `load_embedder`.
      latents: of `encode`, or of a transformer.
      memory_budget_gb: see `encode`.

    Raises:
      UserError: latents of another shape or not finite; a budget in which nothing fits.

    Example:
      embedder, params = xgen_jax.load_embedder("runs/vidvae")
      video, fps = xgen_jax.read_video("clip.mp4", frames=5)
      latents = xgen_jax.encode(embedder, params, video[None])
      reconstruction = xgen_jax.decode(embedder, params, latents)
    """
    from xgen_jax.inference.streaming import decode

    return decode(embedder, params, latents, memory_budget_gb)


def encode_stream(embedder: Any, params: Any, chunks: Iterable[Any]) -> Iterator[Any]:
    """Encode a video that comes in chunks of any lengths; the result equals that of `encode`.

    Args:
      embedder, params: see `load_embedder`.
      chunks: as the video of `encode`; their lengths add up to one that the embedder takes.

    Yields:
      Normalised latents (B, t, h, w, c), as soon as they are known.

    Example:
      embedder, params = xgen_jax.load_embedder("runs/vidvae")
      video, fps = xgen_jax.read_video("clip.mp4", frames=5)
      for latents in xgen_jax.encode_stream(embedder, params, [video[None, :3], video[None, 3:]]):
          print(latents.shape)
    """
    from xgen_jax.inference.streaming import encode_stream

    return encode_stream(embedder, params, chunks)


def decode_stream(embedder: Any, params: Any, chunks: Iterable[Any]) -> Iterator[Any]:
    """Decode latents that come in chunks of any lengths; the result equals that of `decode`.

    Args:
      embedder, params: see `load_embedder`.
      chunks: normalised latents (B, t, h, w, c).

    Yields:
      Video, float32 (B, T, H, W, 3), about [-1, 1].

    Example:
      embedder, params = xgen_jax.load_embedder("runs/vidvae")
      video, fps = xgen_jax.read_video("clip.mp4", frames=5)
      latents = xgen_jax.encode_stream(embedder, params, [video[None]])
      frames = sum(chunk.shape[1] for chunk in xgen_jax.decode_stream(embedder, params, latents))
    """
    from xgen_jax.inference.streaming import decode_stream

    return decode_stream(embedder, params, chunks)


def curate(
    videos: str | os.PathLike,
    out: str | os.PathLike,
    config: str | os.PathLike = "curation/default",
    keys: Mapping[str, Any] | None = None,
    **flags: Any,
) -> dict[str, Any]:
    """Curate a folder of raw videos: shots, duplicates, quality, text, motion, captions, shards.

    Args:
      videos: folder of the raw videos.
      out: folder of the curation; a run that was interrupted goes on there.
      config: a name in configs/ or a file.
      keys: of the configuration, those to change: {"text.max_area": 0.05}.
      flags: the other ones of `python -m xgen_jax curate --help`; see
        `commands.curate.CurateRequest`.

    Returns:
      A summary: counts of videos and clips, the folder of shards, the page.

    Raises:
      UserError: no videos, a folder that holds something else, wrong keys or flags.

    Example:
      summary = xgen_jax.curate("videos", "curated", keys={"shots.min_side": 64}, dry_run=True)
    """
    from xgen_jax.commands.config_file import load_curation
    from xgen_jax.curation import check_installed

    check_installed()
    from xgen_jax.commands.curate import CurateRequest, curate

    pairs = [f"{key}={value}" for key, value in (keys or {}).items()]
    loaded = load_curation(os.fspath(config), pairs)
    return curate(
        CurateRequest(config=loaded, videos=os.fspath(videos), out=os.fspath(out), **flags)
    )


def train(
    config: Any,
    workdir: str | os.PathLike,
    overwrite: bool = False,
    accept_changes: bool = False,
    keys: Mapping[str, Any] | None = None,
    writers: Sequence[Any] = (),
) -> dict[str, Any]:
    """Train a run, or go on training the one in the folder, bit for bit as if never interrupted.

    Args:
      config: a name in configs/ or a file, "quickstart/vidvae"; nested dicts as such files give
        them; or a dataclass of `config.runs`.
      workdir: the run folder.
      overwrite: remove the run that is in the folder.
      accept_changes: go on although the data, the learning rate or the like have changed; see
        `commands.train.train`.
      keys: of a named configuration, those to change: {"data.source.path": "my_videos"}.
      writers: your own metric writers, besides `loop.writers`; see
        `training.metric_writers.MetricWriter`.

    Returns:
      A summary: step, last metrics, seconds, parameters.

    Raises:
      UserError: every mistake in the configuration or the data, before anything is written.

    Example:
      from xgen_jax import testing
      summary = xgen_jax.train(testing.VIDVAE, "runs/another")
    """
    from xgen_jax.commands.train import train

    run = _run_config(config, keys)
    return train(run, workdir, overwrite, accept_changes, writers=writers)


def plan(
    config: Any, topology: str, keys: Mapping[str, Any] | None = None, **flags: Any
) -> dict[str, Any]:
    """Plan a run for devices that need not be there: memory, operations, least time, cost.

    The program that the run would execute is compiled for them, on any CPU host, with the compilers
    of `pip install xgen_jax[plan]` (TPU) and `xgen_jax[gpu]`.

    Args:
      config: see `train`.
      topology: "v5p:4x4x4", "gpu:h100:8", "cpu".
      keys: see `train`.
      flags: the other ones of `python -m xgen_jax plan --help`; see `commands.plan.PlanRequest`.

    Returns:
      The plan, whose parts docs/plans.md names; "fits" is one of them.

    Raises:
      UserError: devices, a mesh, a batch or flags that do not go together, before compiling.

    Example:
      from xgen_jax import testing
      fits = xgen_jax.plan(testing.VIDVAE, "cpu")["fits"]
    """
    from xgen_jax.commands.plan import PlanRequest, plan

    return plan(PlanRequest(config=_run_config(config, keys), topology=topology, **flags))


def _run_config(config: Any, keys: Mapping[str, Any] | None) -> Any:
    """Return the configuration of a run from what `train` takes."""
    from xgen_jax.config.runs import run_config

    if isinstance(config, str | os.PathLike):
        from xgen_jax.commands.config_file import load_config

        pairs = [f"{key}={value}" for key, value in (keys or {}).items()]
        return load_config(os.fspath(config), pairs, lambda line: print(line, file=sys.stderr))
    if keys:
        raise UserError("keys are for a configuration that is given by its name")
    return run_config(config) if isinstance(config, dict) else config


def encode_dataset(**flags: Any) -> dict[str, Any]:
    """Encode a folder of videos once, so that a transformer trains on latents.

    Args:
      flags: those of `python -m xgen_jax encode --help`; see `commands.encode.EncodeRequest`.

    Returns:
      A summary: the folder, clips by bucket, shards, what was left out.

    Raises:
      UserError: missing or contradicting flags, a folder that holds other latents.

    Example:
      xgen_jax.encode_dataset(embedder="runs/vidvae", data="synthetic", count=4, out="latents")
    """
    from xgen_jax.commands.encode import EncodeRequest, encode_dataset

    return encode_dataset(EncodeRequest(**flags))


def sample(**flags: Any) -> dict[str, Any]:
    """Sample videos from text into files.

    Args:
      flags: those of `python -m xgen_jax sample --help`; see `commands.sample.SampleRequest`.

    Returns:
      A summary: the file or folder, prompts, seconds.

    Raises:
      UserError: missing or contradicting flags; a folder of videos sampled with other settings.

    Example:
      xgen_jax.sample(model="runs/vdit", prompt="a red circle moving left", out="circle.mp4")
    """
    from xgen_jax.commands.sample import SampleRequest, sample_files

    return sample_files(SampleRequest(**flags))


def reconstruct(**flags: Any) -> dict[str, Any]:
    """Reconstruct a video file and write it next to the original.

    Args:
      flags: those of `python -m xgen_jax reconstruct --help`; see
        `commands.reconstruct.ReconstructRequest`.

    Returns:
      A summary: the file, PSNR, SSIM, MSE, sharpness, seconds.

    Raises:
      UserError: missing flags, an unreadable video, an output that exists.

    Example:
      xgen_jax.reconstruct(embedder="runs/vidvae", video="clip.mp4", out="both.mp4", frames=5)
    """
    from xgen_jax.commands.reconstruct import ReconstructRequest, reconstruct_file

    return reconstruct_file(ReconstructRequest(**flags))


def evaluate(suite: str, **flags: Any) -> dict[str, Any]:
    """Score a trained model and keep the videos it was scored on.

    Args:
      suite: `reconstruction`, of an embedder; `captions`, `samples` or `vbench_export`, of a
        text-to-video model; `fvd` or `clip_score`, of one or of a folder of videos;
        `vbench_import`, of VBench's results; or `report`, the page of a folder of runs.
      flags: those of `python -m xgen_jax evaluate --help` for that suite.

    Returns:
      The scores, and the path of the JSON file with all of them.

    Raises:
      UserError: an unknown suite, missing flags, data that cannot be read.

    Example:
      scores = xgen_jax.evaluate("reconstruction", embedder="runs/vidvae", out="scores", count=2)
    """
    from xgen_jax.commands.evaluate import evaluate
    from xgen_jax.commands.evaluate_request import EvaluateRequest

    return evaluate(EvaluateRequest(suite=suite, **flags))


def convert(**flags: Any) -> dict[str, Any]:
    """Export a model as a folder to share; convert another project's weights; merge an adapter.

    Args:
      flags: those of `python -m xgen_jax convert --help`; see `commands.convert.ConvertRequest`.

    Returns:
      A summary: the folder or file, the network's sizes, its fingerprint.

    Raises:
      UserError: a file that cannot be read, tensors that do not fit, a folder that is taken.

    Example:
      xgen_jax.convert(kind="export", source="runs/vdit", out="shapes", licence="apache-2.0")
      model = xgen_jax.load("shapes")
    """
    from xgen_jax.commands.convert import ConvertRequest, convert

    return convert(ConvertRequest(**flags))


def presets(family: str) -> dict[str, Any]:
    """List the sizes of a family of networks: configurations by name.

    Args:
      family: `vidvae`, `regen` or `vdit`.

    Raises:
      UserError: another family.

    Example:
      config = xgen_jax.presets("vdit")["VDiT-XL/2"]
    """
    from xgen_jax.errors import choose
    from xgen_jax.models import regen_config, vdit_config, vidvae_config

    families = {
        "vidvae": vidvae_config.PRESETS,
        "regen": regen_config.PRESETS,
        "vdit": vdit_config.PRESETS,
    }
    return dict(families[choose("family", family, families)])


def read_video(path: str | os.PathLike, **options: Any) -> tuple[Any, float]:
    """Read a video file: uint8 (T, H, W, 3) and its frames per second.

    Args:
      path: of an MP4, MOV, WebM, MKV, AVI or GIF file.
      options: `fps`, `start_s`, `frames`, `cover`; see `data.video.read_video`.

    Raises:
      UserError: a file that cannot be read, with the reason.

    Example:
      video, fps = xgen_jax.read_video("clip.mp4", frames=5)
    """
    from xgen_jax.data.video import read_video

    return read_video(path, **options)


def write_video(path: str | os.PathLike, video: Any, fps: float = 8.0) -> None:
    """Write uint8 (T, H, W, 3) as a video file, whole or not at all.

    Args:
      path: ends with .mp4, .webm or .gif.
      video: the frames.
      fps: frames per second.

    Raises:
      UserError: another suffix, an array that is no such video, a disk that is full.

    Example:
      video, fps = xgen_jax.read_video("clip.mp4")
      xgen_jax.write_video("copy.mp4", video, fps)
    """
    from xgen_jax.data.video_writer import write_video

    write_video(path, video, fps)


def show(video: Any, fps: float = 8.0, path: str = "video.mp4") -> Any:
    """Show a video inline in a notebook; elsewhere write it to a file and print the path.

    Args:
      video: uint8 (T, H, W, 3).
      fps: frames per second.
      path: of the file to write; a number is added to a name that is taken.

    Returns:
      The display object in a notebook, else the path written.

    Example:
      video, fps = xgen_jax.read_video("clip.mp4")
      xgen_jax.show(video, fps, "shown.mp4")
    """
    from xgen_jax.inference.show import show

    return show(video, fps, path)
