"""What the loader costs at scale; one JSON line per row on stdout.

python benchmarks/loader.py [--rows=open,shards,millions,text,passes] [--root=FOLDER]

`open`: an ArrayRecord file opened, and a record read. `shards`: batches of 64 of `--clips` latents
(a million) in shards of 1024, with 128 and with 1024 files open, in the global order and in windows
of files; and the start. `millions`: the same by arithmetic alone for 13 million clips, and the
start on a folder of that many, whose shards are links to one. `text`: memory of the batches that
wait, with text as it is stored and padded. `passes`: frames that are decoded for each that is kept,
when clips of a video are read at random, alone and together. `--root` keeps the clips for another
run: 300 MB a million, and 0.6 GB of text.
"""

import argparse
import collections
import json
import multiprocessing
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from rows import device_name, print_rows  # isort: skip  (it sets the environment)

import av
import grain
import ml_dtypes
import numpy as np

from xgen_jax.data import array_records, video
from xgen_jax.data.array_records import OPEN_FILES, OpenRecords
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, LatentsConfig
from xgen_jax.data.latent_shards import LatentReader
from xgen_jax.data.latent_writer import LatentWriter
from xgen_jax.data.pipeline import Pipeline, window_files
from xgen_jax.data.sources.latents import LatentSource
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.data.window_shuffle import WindowShuffle

BUCKET = Bucket(frames=1, height=16, width=16, batch_size=64)
SHARD = 1024
MILLIONS = 13_000_000
BEFORE = 128  # files that releases before kept open
BATCHES = 100
Order = Callable[[int], tuple[int, int]]

# Text of a T5-XXL, 250 tokens at most.
TEXT_CLIPS, TOKENS, WIDTH, PREFETCH = 1024, 250, 4096, 16


def row(what: str, clips: int, **values: Any) -> dict[str, Any]:
    return {"what": what, "shape": [clips], "device": device_name(), **values}


def measured(function: Callable[[], Any]) -> dict[str, float]:
    """Call a function once; return its wall and CPU time."""
    begun, cpu = time.perf_counter(), time.process_time()
    function()
    return {"time_s": time.perf_counter() - begun, "cpu_s": time.process_time() - cpu}


def peak(function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    """Call a function in a process of its own; return times and bytes beyond those before."""
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    process = context.Process(target=_peak, args=(result, function, args))
    process.start()
    out = result.get()
    process.join()
    return out


def _peak(result, function: Callable[..., Any], args: tuple) -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the imports
    before = _most_bytes()
    kept = []
    times = measured(lambda: kept.append(function(*args)))
    result.put({**times, "peak_bytes": _most_bytes() - before})


def _most_bytes() -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def folder(options: argparse.Namespace, name: str) -> pathlib.Path:
    return pathlib.Path(options.root) / name


def million(options: argparse.Namespace) -> pathlib.Path:
    """Return the folder of `--clips` small latents, which is written where it is not there."""
    path = folder(options, f"latents-{options.clips}")
    settings = {
        "embedder": "0" * 16,
        "buckets": [BUCKET.name],
        "clips": options.clips,
        "shard_size": SHARD,
    }
    writer = LatentWriter(path, settings)
    latents = np.random.default_rng(0).standard_normal((1, 2, 2, 4), np.float32)
    for shard in range(writer.shards(BUCKET.name)):
        if not writer.finished(BUCKET.name, shard):
            clips = writer.clips(BUCKET.name, shard)
            sample = {"latents": latents, "caption": "a clip", "fps": 8.0}
            writer.write(BUCKET.name, shard, ((clip, sample) for clip in clips))
    if not (path / "manifest.json").is_file():
        writer.finish()
    return path


def global_order(clips: int) -> Order:
    """The order of clips of files that stay open."""
    dataset = grain.MapDataset.range(clips).seed(0).shuffle().repeat()

    def order(place: int) -> tuple[int, int]:
        clip = dataset[place]
        assert clip is not None
        return place, clip

    return order


def window_order(clips: int, files: int) -> Order:
    return WindowShuffle(np.arange(0, clips, SHARD), clips, files, (0, 1, 0))


def window(clips: int) -> int:
    return window_files(-(-clips // SHARD), clips / BUCKET.batch_size)


def orders(clips: int) -> Iterator[tuple[str, int, Order]]:
    """Yield name, files that may be open, and order."""
    yield "global order", BEFORE, global_order(clips)
    yield "global order", OPEN_FILES, global_order(clips)
    yield f"windows of {BEFORE // 2} files", BEFORE, window_order(clips, BEFORE // 2)
    yield f"windows of {window(clips)} files", OPEN_FILES, window_order(clips, window(clips))


def opening(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    files = sorted(million(options).glob(f"{BUCKET.name}/*.arrayrecord"))[:500]
    records = OpenRecords(len(files))
    for what, place in (("a file opened and a record read", 3), ("a record of an open file", 5)):
        times = measured(lambda place=place: [records.read(file, place) for file in files])
        yield row(what, SHARD, **{name: value / len(files) for name, value in times.items()})


def shards(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    path = million(options)
    yield row("start", options.clips, **peak(start, path))
    opened = 0

    class Counted(array_records.ArrayRecordReader):
        def __init__(self, *args):
            nonlocal opened
            opened += 1
            super().__init__(*args)

    array_records.ArrayRecordReader, plain = Counted, array_records.ArrayRecordReader
    size, warm = BUCKET.batch_size, 3000 if options.clips > 10**5 else 0
    for what, limit, order in orders(options.clips):
        reader = LatentReader(path, open_shards=limit)

        def read(first: int, count: int, reader=reader, order=order) -> None:
            for place in range(first * size, (first + count) * size):
                reader.read(BUCKET.name, order(place)[1])

        read(0, warm // size + 1)
        opened = 0
        times = measured(lambda read=read: read(1000, BATCHES))
        yield row(
            f"batch of {size}, {what}, {limit} open",
            options.clips,
            opened=opened / BATCHES,
            **{name: value / BATCHES for name, value in times.items()},
        )
    array_records.ArrayRecordReader = plain
    pipeline = start(path)
    for step in range(100):
        pipeline.batch(step)
    times = measured(lambda: [pipeline.batch(step) for step in range(1000, 1000 + BATCHES)])
    per_batch = {name: value / BATCHES for name, value in times.items()}
    yield row(f"batch of {size} of the pipeline", options.clips, **per_batch)


def start(path: pathlib.Path) -> Pipeline:
    config = DataConfig(source=LatentsConfig(path=str(path)), buckets=(BUCKET,), num_threads=0)
    return Pipeline(LatentSource(path), config)


def millions(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    size = BUCKET.batch_size
    for what, limit, order in orders(MILLIONS):
        kept: collections.OrderedDict[int, None] = collections.OrderedDict()
        opened, batches = 0, []
        first, count = 3000, window(MILLIONS) * SHARD // size  # batches of a window
        for step in range(first + count):
            clips = [order(place)[1] for place in range(step * size, (step + 1) * size)]
            for file in (clip // SHARD for clip in clips):
                opened += step >= first and file not in kept
                kept[file] = kept.pop(file, None)
                if len(kept) > limit:
                    kept.popitem(last=False)
            if step >= first:
                batches.append(len({clip // SHARD for clip in clips}))
        epochs = [order(place) for place in (0, MILLIONS)]  # prepared, if an epoch has to be
        places = np.random.default_rng(0).integers(0, 2 * MILLIONS, 10_000).tolist()
        times = measured(lambda order=order, places=places: [order(place) for place in places])
        assert epochs
        yield row(
            f"batch of {size}, {what}, {limit} open, by arithmetic",
            MILLIONS,
            opened=opened / count,
            files_in_a_batch=float(np.mean(batches)),
            order_us=times["cpu_s"] / len(places) * 1e6,
        )
    begun = measured(lambda: window_order(MILLIONS, window(MILLIONS))(MILLIONS))
    yield row("order of an epoch, prepared", MILLIONS, **begun)
    yield row("start", MILLIONS, **peak(start, linked(options)))


def linked(options: argparse.Namespace) -> pathlib.Path:
    """Return a folder of 13 million clips, as far as starting can tell."""
    one, path = million(options), folder(options, "latents-linked")
    shutil.rmtree(path, ignore_errors=True)
    (path / BUCKET.name).mkdir(parents=True)
    manifest = json.loads((one / "manifest.json").read_text())
    first = manifest["shards"][BUCKET.name][0]
    rows = []
    for number in range(-(-MILLIONS // SHARD)):
        file = f"{BUCKET.name}/shard-{number:05d}.arrayrecord"
        os.link(one / first["file"], path / file)
        rows.append({**first, "file": file})
    manifest |= {"clips": MILLIONS, "shards": {BUCKET.name: rows}}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


class Padded(LatentSource):
    """Text as releases before gave it: padded to the length."""

    def read(self, *args):
        sample = super().read(*args)
        sample["text"] = np.pad(sample["text"], ((0, TOKENS - len(sample["text"])), (0, 0)))
        return sample


def text(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    path, rng = folder(options, "latents-text"), np.random.default_rng(0)
    settings = {"embedder": "0" * 16, "buckets": [BUCKET.name], "clips": TEXT_CLIPS}
    writer = LatentWriter(path, {**settings, "shard_size": SHARD, "text_length": TOKENS})
    tokens = rng.integers(20, 101, TEXT_CLIPS).tolist()

    def clips() -> Iterator[tuple[int, dict[str, Any]]]:
        for index, count in enumerate(tokens):
            rows = rng.standard_normal((count, WIDTH), np.float32).astype(ml_dtypes.bfloat16)
            latents = rng.standard_normal((1, 32, 32, 4), np.float32)
            yield index, {"latents": latents, "caption": "", "text": rows}

    if not writer.finished(BUCKET.name, 0):
        writer.write(BUCKET.name, 0, clips())
    rows = writer.finish()["shards"][BUCKET.name]
    share = rows[0]["text"]["bytes"] / (rows[0]["text"]["bytes"] + rows[0]["bytes"])
    yield row("text, of all bytes", TEXT_CLIPS, fraction=share, tokens=float(np.mean(tokens)))
    for what, kind, prefetch_gb in (
        ("padded", Padded, 1e3),
        ("as stored", LatentSource, 1e3),
        ("as stored, 0.2 GB", LatentSource, 0.2),
    ):
        yield row(
            f"{PREFETCH} batches of {BUCKET.batch_size} that wait, text {what}",
            TEXT_CLIPS,
            **peak(wait, kind, path, prefetch_gb),
        )
    for what, with_text in (("with", True), ("without", False)):
        pipeline = Pipeline(
            LatentSource(path, text=with_text),
            DataConfig(source=LatentsConfig(), buckets=(BUCKET,), num_threads=0),
        )
        times = measured(lambda pipeline=pipeline: [pipeline.batch(step) for step in range(16)])
        per_batch = {name: value / 16 for name, value in times.items()}
        yield row(f"batch of {BUCKET.batch_size} {what} text", TEXT_CLIPS, **per_batch)


def wait(kind: type[LatentSource], path: pathlib.Path, prefetch_gb: float) -> None:
    """Prepare all batches that may wait, and let them wait."""
    config = DataConfig(
        source=LatentsConfig(path=str(path)),
        buckets=(BUCKET,),
        num_threads=2,
        prefetch=PREFETCH,
        prefetch_gb=prefetch_gb,
    )
    with Pipeline(kind(path), config).iterate() as batches:
        next(batches)
        before = -1.0
        while before < (before := time.process_time()) - 0.05 or before < 1:
            time.sleep(1)


def passes(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    del options
    frames, decode = 0, video.decode_frames

    def counted(*args, **kwargs):
        nonlocal frames
        for frame in decode(*args, **kwargs):
            frames += 1
            yield frame

    video.decode_frames = counted
    shape, rng = (17, 64, 64), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as root:
        for group in (250, 48):
            data = pathlib.Path(root) / str(group)
            data.mkdir()
            write_minute(data / "a.mp4", group)
            for fps, seconds in ((None, 4.0), (8.0, 4.0), (None, 1.0)):
                source = VideoFolderSource(
                    data,
                    require_captions=False,
                    seconds_per_clip=seconds,
                    fps=fps,
                    substitute=False,
                )
                clips = list(range(len(source)))

                def apart(source=source, clips=clips, fps=fps) -> None:
                    for index in rng.permutation(clips).tolist():
                        source.read(index, np.random.default_rng(index), *shape)

                def together(source=source, clips=clips) -> None:
                    for first in range(0, len(clips), 8):
                        some = clips[first : first + 8]
                        rngs = [np.random.default_rng(index) for index in some]
                        source.read_together(some, rngs, *shape)

                for what, function in (("alone", apart), ("8 in a pass", together)):
                    frames = 0
                    times = measured(function)
                    yield row(
                        f"clips {what}, key frame every {group}, {fps or 24:g} fps, a clip every "
                        f"{seconds:g} s",
                        len(clips),
                        decoded_for_each_kept=frames / (len(clips) * shape[0]),
                        cpu_s=times["cpu_s"] / len(clips),
                    )
    video.decode_frames = decode


def write_minute(path: pathlib.Path, group: int) -> None:
    """Write a minute at 24 frames a second, 320x180, with a key frame every `group` frames."""
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (200, 400, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        options = {"g": str(group), "sc_threshold": "0", "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=24, options=options)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for number in range(24 * 60):
            left = number % 80
            image = np.ascontiguousarray(scene[number % 20 :][:180, left : left + 320])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", help="folder for the clips; by default a temporary one")
    parser.add_argument("--clips", type=int, default=1_000_000, help="latents of `shards`")
    groups = {
        "open": opening,
        "shards": shards,
        "millions": millions,
        "text": text,
        "passes": passes,
    }
    with tempfile.TemporaryDirectory() as temporary:
        parser.set_defaults(root=temporary)
        print_rows(parser, groups)


if __name__ == "__main__":
    main()
