"""A small curation: its videos and configuration, and what is written of it."""

import hashlib

import cv2
import pyarrow.parquet
from footage import Film, Join, Scene

from xgen_jax.commands.curate import CurateRequest, curate
from xgen_jax.curation.config import (
    CurationConfig,
    PackConfig,
    ShotsConfig,
)
from xgen_jax.data.video_writer import write_video

SIZE = (96, 160)
CONFIG = CurationConfig(
    shots=ShotsConfig(min_side=64),
    pack=PackConfig(tiers=(64, 96), buckets="9x64x64", held_out_fraction=0.5),
    videos_per_shard=2,
)


def film(seed, **changes):
    scene = {"seed": seed, "length_s": 2.0, "pan": 0.15, "discs": 1, "noise": 2.0}
    return Film([Scene(**(scene | changes))], size=SIZE)


def write_videos(folder):
    """Videos with one thing each; the reason why a clip is dropped is in its name."""
    folder.mkdir(parents=True)
    cuts = Film(
        [Scene(seed=10 + k, length_s=2.6, noise=2.0) for k in range(3)],
        [Join(), Join("dissolve", 0.6)],
        size=SIZE,
    )
    cuts.write(folder / "three shots ü.mp4")
    film(20).write(folder / "kept.mp4")
    film(20).write(folder / "duplicate.mp4", crf=34)  # of kept.mp4, at less quality
    film(21, pan=0.0, discs=0, noise=1.0).write(folder / "static.mp4")
    film(22, light=0.02, noise=0.0).write(folder / "odd.mp4")
    with_text(folder / "text.mp4", film(23))
    return folder


def with_text(path, clip):
    video = clip.video()
    for image in video:
        for row in (40, 80):
            cv2.putText(image, "BREAKING", (4, row), 0, 1.0, (255, 255, 255), 2, cv2.LINE_AA)
    write_video(path, video, clip.fps)


def run(videos, out, config=CONFIG, **flags):
    return curate(CurateRequest(config=config, videos=str(videos), out=str(out), **flags))


def index(out):
    return pyarrow.parquet.read_table(out / "shards" / "index.parquet").to_pylist()


def hashes(out):
    """The bytes of what training reads."""
    files = sorted((out / "shards").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
