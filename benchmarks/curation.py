"""What curation costs: processor time for 10 s of 480p, memory, and the gain by Ray.

python benchmarks/curation.py [--rows=stages,encode,long,engines,projection] [--videos=FOLDER]

`stages`: each stage's processor seconds for 10 s of video, in one process. `encode`: cutting and
encoding a clip of 10 s. `long`: the peak memory of a worker that measures two hours. `engines`:
measuring and packing many videos in-line and with Ray on this machine's cores, Ray's start apart.
`projection`: the 13 million clips of arXiv 2408.12590 of 6.9 s, computed from the first two. Videos
are 10 s of 854x480 at 30 frames a second, a textured plane that moves under grain, in H.264, or
those of a folder. `peak_bytes` is of the process or worker that did the work.
"""

import argparse
import contextlib
import os
import pathlib
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from rows import device_name, print_rows  # isort: skip  (it sets the environment)

import av
import cv2
import numpy as np

from xgen_jax.curation.clip_table import read_clips
from xgen_jax.curation.clips import METERS, clip_shard, measure_shard, measure_video
from xgen_jax.curation.config import CurationConfig, PackConfig, ShotsConfig
from xgen_jax.curation.encode import encode_clip
from xgen_jax.curation.engines import Engine, Inline, Ray
from xgen_jax.curation.isolation import Worker
from xgen_jax.curation.kept import pack_shard, write_kept
from xgen_jax.curation.store import divide

SIZE, FPS, SECONDS = (480, 854), 30, 10
STAGES = tuple(stage for stage in METERS if stage != "features")  # which needs weights
CLIPS, CLIP_S = 13_000_000, 6.9  # arXiv 2408.12590, section 3
SURVIVORS = 0.3484  # of the clips that were cut
ENGINE_VIDEOS = 48


def write(path: pathlib.Path, seed: int, seconds: float = SECONDS, size=SIZE) -> None:
    """Write a video of a textured plane that moves under grain."""
    rng = np.random.default_rng(seed)
    height, width = size
    plane = rng.integers(0, 256, (height // 8, width // 4, 3), np.uint8)
    plane = cv2.resize(plane, (2 * width, height), interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, 2, (height, width, 3)).astype(np.float32)
    with av.open(os.fspath(path), "w") as out:
        options = {"preset": "veryfast", "crf": "23"}
        stream = out.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(round(seconds * FPS)):
            left = number * 2 % width
            image = plane[:, left : left + width] + np.roll(grain, 7 * number, axis=1)
            frame = av.VideoFrame.from_ndarray(
                np.clip(image, 0, 255).astype(np.uint8), format="rgb24"
            )
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def repeat(path: pathlib.Path, out: pathlib.Path, times: int) -> None:
    """Write a video `times` times after itself, without encoding it again."""
    with av.open(os.fspath(path)) as source, av.open(os.fspath(out), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        length = round(SECONDS / stream.time_base)
        for number in range(times):
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.pts, again.dts = (t + number * length for t in (packet.pts, packet.dts))
                again.time_base, again.is_keyframe = packet.time_base, packet.is_keyframe
                again.stream = copy
                target.mux(again)


@contextlib.contextmanager
def given(options: argparse.Namespace) -> Iterator[list[pathlib.Path]]:
    """Give the videos of --videos, or some that are made."""
    with tempfile.TemporaryDirectory() as root:
        if options.videos:
            yield sorted(path for path in pathlib.Path(options.videos).iterdir() if path.is_file())
            return
        paths = [pathlib.Path(root) / f"{seed}.mp4" for seed in range(3)]
        for seed, path in enumerate(paths):
            write(path, seed)
        yield paths


def row(what: str, shape: list[int], cpu_s: float, **more: Any) -> dict[str, Any]:
    return {"what": what, "shape": shape, "device": device_name(), "cpu_s": cpu_s, **more}


def stages(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    config = CurationConfig()
    with given(options) as paths:
        measure_video(str(paths[0]), STAGES, config)  # loads what is loaded once
        costs: dict[str, list[float]] = {}
        for path in paths:
            measured = measure_video(str(path), STAGES, config)
            seconds = float(measured.facts["seconds"])
            for stage, cpu_s in measured.cpu_s.items():
                costs.setdefault(stage, []).append(cpu_s / seconds * SECONDS)
    means = {stage: float(np.mean(values)) for stage, values in costs.items()}
    scoring = sum(value for stage, value in means.items() if stage != "text")
    for stage, value in {**means, "all but text": scoring}.items():
        yield row(f"measure: {stage}", [SECONDS * FPS, *SIZE], value, peak_bytes=peak())


def encode(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    config = PackConfig()
    with given(options) as paths:
        for tiers in ((480,), (256, 480)):
            cpu_s, seconds, size = 0.0, 0.0, 0
            for path in paths:
                start = time.process_time()
                clip = encode_clip(str(path), 0.0, SECONDS - 0.1, tiers, config)
                cpu_s += time.process_time() - start
                seconds += clip.frames / clip.fps
                size += sum(map(len, clip.media.values()))
            name = f"encode: {' and '.join(map(str, tiers))} lines, decoding included"
            shape = [SECONDS * FPS, *SIZE]
            per_clip = SECONDS / seconds
            yield row(name, shape, cpu_s * per_clip, media_bytes=round(size * per_clip))


def long(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    del options
    with tempfile.TemporaryDirectory() as root, Worker(CurationConfig().limits.memory_gb) as worker:
        short, film = pathlib.Path(root) / "short.mp4", pathlib.Path(root) / "film.mp4"
        write(short, 0, size=(144, 256))
        repeat(short, film, 2 * 3600 // SECONDS)
        start = time.perf_counter()
        measured = worker.run(measure_video, str(film), STAGES, CurationConfig(), silent_s=3600.0)
        taken = time.perf_counter() - start
        used = worker.run(resource.getrusage, resource.RUSAGE_SELF, silent_s=60.0)
        shape = [measured.facts["frames"], 144, 256]
        yield {
            "what": "measure: two hours",
            "shape": shape,
            "device": device_name(),
            "time_s": taken,
            "peak_bytes": used.ru_maxrss * 1024,
        }


def peak() -> int:
    """Return the most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def engines(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    config = CurationConfig(
        videos_per_shard=2,
        shots=ShotsConfig(min_side=64),
        pack=PackConfig(tiers=(256, 480)),
    )
    with given(options) as paths, tempfile.TemporaryDirectory() as root:
        videos = pathlib.Path(root) / "videos"
        videos.mkdir()
        for number in range(ENGINE_VIDEOS):
            source = paths[number % len(paths)]
            # Other bytes at the end, which no player looks at: not the same file twice.
            data = source.read_bytes() + f"{number:08d}".encode()
            (videos / f"{number}{source.suffix}").write_bytes(data)
        times = {}
        for name in ("inline", "ray"):
            started = time.perf_counter()
            engine: Engine = Inline() if name == "inline" else Ray(None)
            started = time.perf_counter() - started
            out = pathlib.Path(root) / name
            shards = divide(videos, out, config.videos_per_shard)
            begin = time.perf_counter()
            list(engine.map(measure_shard, shards, out, config))
            for shard in shards:
                clip_shard(shard, out, config)
            clips = read_clips(shards, out, config, ())
            for shard in shards:
                write_kept(shard, out, clips, np.ones(len(clips["clip_id"]), bool))
            list(engine.map(pack_shard, shards, out, config))
            times[name] = time.perf_counter() - begin
            engine.close()
            yield {
                "what": f"measure and pack, {name}",
                "shape": [len(clips["clip_id"]), SECONDS * FPS, *SIZE],
                "device": device_name(),
                "time_s": times[name],
                "start_s": started,
                "ratio": times["inline"] / times[name],
            }
            shutil.rmtree(out)


def projection(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    found = {each["what"]: each for make in (stages, encode) for each in make(options)}
    measured = found["measure: all but text"]["cpu_s"] + found["measure: text"]["cpu_s"]
    tiers = found["encode: 256 and 480 lines, decoding included"]
    cut_s = CLIPS / SURVIVORS * CLIP_S
    kept_s = CLIPS * CLIP_S
    yield {
        "what": "projection to 13 million clips kept",
        "device": device_name(),
        "measure_core_hours": measured / SECONDS * cut_s / 3600,
        "encode_core_hours": tiers["cpu_s"] / SECONDS * kept_s / 3600,
        "media_bytes": tiers["media_bytes"] / SECONDS * kept_s,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", default="", help="folder of videos to take")
    groups = {each.__name__: each for each in (stages, encode, long, engines, projection)}
    print_rows(parser, groups)
