"""How starting and reading grow with the size of a data set; one JSON line per row on stdout.

python benchmarks/folders.py [--rows=videos,captions,latents,batches] [--files=1000,10000,100000]

`videos`: starts on a folder of links to one video, with empty caches and again. `captions`: a
captions.jsonl of lines without a video, next to as many videos without a line. `latents`: starts on
a folder of latents, whose shards hold no bytes. `batches`: batches of a source of 10 million clips,
which costs nothing to read. `peak_bytes` is the most that the process has used so far.
"""

import argparse
import os
import pathlib
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from rows import device_name, print_rows  # isort: skip  (it sets the environment)

import numpy as np

from xgen_jax.data.buckets import Bucket
from xgen_jax.data.captions import read_captions
from xgen_jax.data.config import DataConfig, SyntheticConfig
from xgen_jax.data.latent_writer import LatentWriter
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.problems import Problems
from xgen_jax.data.sources.base import Sample, Source
from xgen_jax.data.sources.latents import LatentSource
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.data.video_writer import write_video

LATENTS = 1_000_000
LINKS = 30_000  # to one file; file systems have a limit
CLIPS = 10_000_000
BUCKET = Bucket(frames=1, height=8, width=8, batch_size=16)


def timed(what: str, count: int, function: Callable[[], Any]) -> dict[str, Any]:
    """Call a function once; return the row."""
    begun, cpu = time.perf_counter(), time.process_time()
    function()
    return {
        "what": what,
        "shape": [count],
        "device": device_name(),
        "time_s": time.perf_counter() - begun,
        "cpu_s": time.process_time() - cpu,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def videos(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for count in sizes(options):
        with tempfile.TemporaryDirectory() as root:
            os.environ["XDG_CACHE_HOME"] = f"{root}/cache"
            data = pathlib.Path(root) / "data"
            write_video(data / "0.mp4", np.zeros((24, 64, 64, 3), np.uint8), fps=24)
            for number in range(1, count):
                first = number // LINKS * LINKS
                if number == first:
                    shutil.copyfile(data / "0.mp4", data / f"{number}.mp4")
                else:
                    os.link(data / f"{first}.mp4", data / f"{number}.mp4")

            def start(data=data):
                VideoFolderSource(data, require_captions=False).fingerprint()

            for what in ("first start", "second start"):
                yield timed(f"folder of videos, {what}", count, start)


def captions(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for count in sizes(options):
        with tempfile.TemporaryDirectory() as root:
            lines = (f'{{"file": "gone{n}.mp4", "caption": "a"}}\n' for n in range(count))
            (pathlib.Path(root) / "captions.jsonl").write_text("".join(lines))
            files = [f"{number}.mp4" for number in range(count)]

            def read(root=root, files=files):
                read_captions(pathlib.Path(root), files, Problems(), required=True)

            yield timed("captions without a video", count, read)


def latents(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    del options
    with tempfile.TemporaryDirectory() as root:
        settings = {
            "embedder": "0" * 16,
            "buckets": [BUCKET.name],
            "clips": LATENTS,
            "shard_size": 4096,
            "source": "video_folder",
        }
        held_out = np.arange(0, LATENTS, 20)
        writer = LatentWriter(f"{root}/latents", settings, held_out=held_out)
        clip = {"latents": np.zeros((1, 1, 1, 1), np.float32), "caption": "a clip"}
        for shard in range(writer.shards(BUCKET.name)):
            numbers = writer.clips(BUCKET.name, shard)
            writer.write(BUCKET.name, shard, ((number, clip) for number in numbers))
        writer.finish()
        config = DataConfig(source=SyntheticConfig(), buckets=(BUCKET,), num_threads=0)

        def start():
            source = LatentSource(f"{root}/latents", "train")
            return Pipeline(source, config)

        yield timed("folder of latents, start", LATENTS, start)
        pipeline = start()
        pipeline.batch(0)
        row = timed("batches of latents", 100 * BUCKET.batch_size, lambda: read(pipeline, 100))
        yield row | {"clips_per_s": 100 * BUCKET.batch_size / row["time_s"]}


class Blank(Source):
    """Clips that cost nothing to read."""

    name = "blank"

    def __len__(self) -> int:
        return CLIPS

    def fingerprint(self) -> str:
        return "0"

    def read(self, index: int, rng, frames: int, height: int, width: int) -> Sample:
        del index, rng
        return {"video": np.zeros((frames, height, width, 3), np.uint8), "caption": "", "fps": 8.0}


def batches(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    del options
    config = DataConfig(source=SyntheticConfig(), buckets=(BUCKET,), num_threads=0)
    pipeline = None

    def start():
        nonlocal pipeline
        pipeline = Pipeline(Blank(), config)

    yield timed("ten million clips, start", CLIPS, start)
    assert pipeline is not None
    yield timed("ten million clips, 100 batches of 16", CLIPS, lambda: read(pipeline, 100))


def read(pipeline: Pipeline, count: int) -> None:
    """Prepare some batches, far from one another."""
    for step in range(count):
        pipeline.batch(step * 9973)


def sizes(options: argparse.Namespace) -> list[int]:
    return [int(size) for size in options.files.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", default="1000,10000,100000", help="sizes of folders")
    groups = {"videos": videos, "captions": captions, "latents": latents, "batches": batches}
    print_rows(parser, groups)


if __name__ == "__main__":
    main()
