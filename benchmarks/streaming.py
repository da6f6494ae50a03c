"""Memory of streaming at growing lengths, and the error of divide-and-merge against the whole clip;
one JSON line per row.

python benchmarks/streaming.py [--rows=memory,merge,decode] [--embedder=DIR]

`memory`: a clip is made, encoded and decoded four latent frames at a time. `chunk_bytes` is what
XLA reports for the decoder's program, `whole_bytes` the same for the whole clip at once,
`peak_bytes` the peak memory of the process beyond what it had before. `merge`: relative error of
latents and of decoded frames against those of the whole clip, for streaming and for the paper's
divide-and-merge. `decode`: latents to an mp4 file as the commands write it, and with the device and
the encoder waiting for each other; `ratio` is the second time divided by the first. Without
--embedder, the networks have the paper's form at a quarter of its widths, with random weights: as
initialised, and tail-initialised, where only the last tap in time of each kernel is not zero.
"""

import argparse
import dataclasses
import functools
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from rows import (  # isort: skip  (it sets the environment)
    ON_GPU,
    at_least_one,
    device_name,
    print_rows,
    time_alternating,
)

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.data.pixels import to_uint8
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.data.video_writer import VideoWriter
from xgen_jax.inference.chunks import chunk_bytes
from xgen_jax.inference.divide_and_merge import MERGES, divide_and_merge
from xgen_jax.inference.streaming import decode, decode_stream, encode, encode_stream
from xgen_jax.models.embedder import CHUNK
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_config import PRESETS
from xgen_jax.models.vidvae_embedder import VidVAEEmbedder
from xgen_jax.runs.load import load_embedder

SIDE = 64
LENGTHS = (17, 65, 257, 1025)
SEGMENTS = (5, 9, 17)  # frames; the paper's first


def networks(options) -> Iterator[tuple[VidVAEEmbedder, Any, str]]:
    """Yield the embedders to measure, their parameters and names."""
    if options.embedder:
        yield *load_embedder(options.embedder, require_statistics=False), options.embedder
        return
    config = dataclasses.replace(PRESETS["paper"], channels=(32, 64, 128, 128))
    params = jax.jit(VidVAE(config).init)(jax.random.key(0), jnp.zeros((1, 1, 32, 32, 3)))

    def tail(kernel):
        return kernel.at[:-1].set(0) * np.sqrt(kernel.shape[0]) if kernel.ndim == 5 else kernel

    c, embedder = config.latent_channels, VidVAEEmbedder(model=VidVAE(config))
    yield embedder, embedder.bundle(params, np.zeros(c), np.ones(c)), "random"
    yield (
        embedder,
        embedder.bundle(jax.tree.map(tail, params), np.zeros(c), np.ones(c)),
        "tail-initialised",
    )


def frames_of(start: int, count: int) -> np.ndarray:
    """Make a part of an endless clip, uint8 (1, count, SIDE, SIDE, 3)."""
    t, y, x = (
        np.arange(start, start + count)[:, None, None, None],
        np.arange(SIDE)[:, None, None],
        np.arange(SIDE)[:, None],
    )
    phase = np.arange(3)
    return np.uint8(127.5 + 127 * np.sin(0.11 * t + 0.2 * x + 0.13 * y + phase))[None]


class Peak:
    """Peak memory of the process, in bytes, since this object was made."""

    def __init__(self):
        if ON_GPU:
            raise SystemExit("on a GPU run one length per process: its peak cannot be reset")
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the high-water mark
        self._before = self._read("VmRSS")

    def _read(self, name: str) -> int:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

    def bytes(self) -> int:
        return self._read("VmHWM") - self._before


def memory(options) -> Iterator[dict[str, Any]]:
    """Stream clips of growing length."""
    embedder, params, name = next(networks(options))
    f = embedder.model.config.time_factor

    def chunks(frames):
        cuts = [0, *range(1 + f * (CHUNK - 1), frames, f * CHUNK), frames]
        return (frames_of(a, b - a) for a, b in zip(cuts, cuts[1:]))

    def run(frames):
        count, total = 0, 0.0
        for video in decode_stream(
            embedder, params, encode_stream(embedder, params, chunks(frames))
        ):
            count, total = count + video.shape[1], total + float(np.abs(video).sum())
        return count, total

    run(LENGTHS[0]), run(1 + 2 * f * CHUNK)  # compile the programs of all lengths
    for frames in LENGTHS:
        peak, start = Peak(), time.perf_counter()
        count, _ = run(frames)
        wall_s = time.perf_counter() - start
        shape = (1, *embedder.latent_shape((frames, SIDE, SIDE)), embedder.latent_channels)
        yield {
            "what": f"stream, encode and decode, {name}",
            "shape": [1, frames, SIDE, SIDE, 3],
            "device": device_name(),
            "time_s": wall_s,
            "frames_per_s": count / wall_s,
            "peak_bytes": peak.bytes(),
            "chunk_bytes": chunk_bytes(embedder, params, "decode", shape, np.float32, CHUNK),
            "whole_bytes": chunk_bytes(
                embedder, params, "decode", shape, np.float32, shape[1], whole=True
            ),
        }


DECODED = (49, 128)  # frames, side


def decode_rows(options) -> Iterator[dict[str, Any]]:
    """Decode latents to a file in both ways, alternating."""
    embedder, params, name = next(networks(options))
    frames, side = DECODED
    t, h, w = embedder.latent_shape((frames, side, side))
    shape = (1, t, h, w, embedder.latent_channels)
    latents = np.asarray(jax.random.normal(jax.random.key(0), shape))
    chunks = [latents[:, start : start + CHUNK] for start in range(0, t, CHUNK)]

    def ahead(path):
        with VideoWriter(path) as writer:
            for video in decode_stream(embedder, params, chunks, uint8=True):
                writer.write(video[0])

    def waiting(path):
        with VideoWriter(path) as writer:
            for video in decode_stream(embedder, params, chunks):
                writer.write(to_uint8(video[0]))
                writer.flush()

    with tempfile.TemporaryDirectory() as folder:
        paths = [pathlib.Path(folder) / f"{number}.mp4" for number in range(2)]
        ours, theirs = time_alternating(
            [lambda: ahead(paths[0]), lambda: waiting(paths[1])], options.repeats
        )
        same = paths[0].read_bytes() == paths[1].read_bytes()
    yield {
        "what": f"decode to a file, {name}",
        "shape": [1, frames, side, side, 3],
        "device": device_name(),
        **ours,
        "frames_per_s": frames / ours["time_s"],
        **{f"waiting_{key}": value for key, value in theirs.items()},
        "ratio": theirs["median_s"] / ours["median_s"],
        "same_bytes": same,
    }


def relative(x: np.ndarray, whole: np.ndarray) -> float:
    """Root-mean-square difference divided by the standard deviation of the whole clip."""
    return float(np.sqrt(np.square(x - whole).mean()) / whole.std())


def merge(options) -> Iterator[dict[str, Any]]:
    """Compare streaming and divide-and-merge with the whole clip."""
    source = SyntheticSource(seed=1, split="held_out", num_clips=1)
    video = source.read(0, np.random.default_rng(0), 33, SIDE, SIDE)["video"][None]
    as_float = video.astype(np.float32) / 127.5 - 1
    for embedder, params, name in networks(options):
        f = embedder.model.config.time_factor
        to_latents = functools.partial(jax.jit(embedder.encode), params)
        to_video = functools.partial(jax.jit(embedder.decode), params)
        latents = np.asarray(to_latents(as_float))
        whole = np.asarray(to_video(latents))

        def row(way, segment, encoded, decoded, latents=latents, whole=whole, name=name):
            return {
                "what": f"{way}, {name}",
                "shape": list(video.shape),
                "device": device_name(),
                "segment_frames": segment,
                "latent_error": relative(np.asarray(encoded), latents),
                "video_error": relative(np.asarray(decoded), whole),
            }

        yield row(
            "streaming",
            f * CHUNK,
            encode(embedder, params, video),
            decode(embedder, params, latents),
        )
        for segment in (frames for frames in SEGMENTS if (frames - 1) % f == 0):
            for way in MERGES:
                encoded = divide_and_merge(to_latents, as_float, segment, way)
                decoded = divide_and_merge(to_video, latents, 1 + (segment - 1) // f, way)
                yield row(f"divide-and-merge, {way}", segment, encoded, decoded)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--embedder", help="folder of a VidVAE to measure instead of random weights"
    )
    parser.add_argument("--repeats", default=5, type=at_least_one, help="timed runs of `decode`")
    print_rows(parser, {"memory": memory, "merge": merge, "decode": decode_rows})
