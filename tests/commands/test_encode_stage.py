"""Encoding for a stage: each video goes to the bucket that it fits, and training finds it there."""

import json
import shutil

import jax
import numpy as np
import pytest
from image_files import png

from xgen_jax.commands.encode import EncodeRequest, encode_dataset
from xgen_jax.config.runs import VidVAEWeights
from xgen_jax.data import buckets
from xgen_jax.data.buckets import make_buckets
from xgen_jax.data.config import DataConfig, LatentsConfig
from xgen_jax.data.latent_writer import LatentWriter
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.sources.latents import LatentSource
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.runs.folder import RunFolder
from xgen_jax.testing import VIDVAE_4X8X8

TABLE = {"small": ((5, 1.0, 2), (9, 1.0, 1)), "large": ((5, 1.0, 1),)}


def encode(**arguments):
    return encode_dataset(EncodeRequest(**arguments))


@pytest.fixture
def stage(monkeypatch):
    """Set up a stage of 16 and 32 pixels a side."""
    monkeypatch.setitem(buckets.SIDES, "small", 16)
    monkeypatch.setitem(buckets.SIDES, "large", 32)
    monkeypatch.setitem(buckets.STAGES, "tiny", TABLE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(an embedder with random weights, a folder of videos)."""
    root = tmp_path_factory.mktemp("stage")
    folder = RunFolder(root / "embedder")
    folder.create_or_resume(VidVAEWeights(model=VIDVAE_4X8X8, kind="test", source="random"))
    params = jax.jit(VidVAE(VIDVAE_4X8X8).init)(
        jax.random.key(0), np.zeros((1, 5, 16, 16, 3), np.float32)
    )
    checkpoints = folder.checkpoints()
    checkpoints.save(0, {"ema": {"vidvae": params}}, {"fingerprints": {}})
    checkpoints.wait()
    (root / "videos").mkdir()
    rng = np.random.default_rng(0)
    for name, size in {
        "a": (5, 16, 16),
        "b": (9, 18, 16),
        "c": (6, 32, 34),
        "d": (6, 16, 16),
        "e": (3, 64, 64),
    }.items():
        write_video(
            root / "videos" / f"{name}.mp4", rng.integers(0, 256, (*size, 3), np.uint8), fps=8
        )
    return root / "embedder", root / "videos"


def test_each_video_is_encoded_in_the_bucket_that_it_fits(stage, folders, tmp_path):
    embedder, videos = folders
    arguments = {
        "embedder": str(embedder),
        "data": str(videos),
        "out": str(tmp_path / "out"),
        "stage": "tiny",
    }
    arguments |= {"aspects": "1:1", "require_captions": False, "batch_size": 2}
    summary = encode(**arguments)
    assert summary["buckets"] == {"5x16x16": 2, "9x16x16": 1, "5x32x32": 1}
    assert summary["left_out"] == 0
    source = LatentSource(tmp_path / "out")
    table = make_buckets(TABLE, ("1:1",), devices=1)
    assert [members.tolist() for members in source.fit(table, 0)] == [[0, 3], [1], [2]]
    pipeline = Pipeline(source, DataConfig(source=LatentsConfig(), fit=True, buckets=table))
    seen = set()
    for step in range(12):
        bucket, batch = pipeline.bucket(step), pipeline.batch(step)
        assert batch["latents"].shape == (
            bucket.batch_size,
            *VIDVAE_4X8X8.latent_shape(bucket.shape),
            4,
        )
        np.testing.assert_array_equal(batch["micro_cond"][:, 4], 8.0)
        seen |= {(bucket.name, index) for index in batch["index"].tolist()}
    assert seen == {("5x16x16", 0), ("5x16x16", 3), ("9x16x16", 1), ("5x32x32", 2)}
    assert encode(**arguments)["kept_shards"] == 3


@pytest.mark.slow
def test_a_folder_of_videos_and_images_breaks_off_and_ends_with_the_same_bytes(
    stage, folders, tmp_path, monkeypatch
):
    embedder, videos = folders
    monkeypatch.setitem(
        buckets.STAGES, "tiny", {"small": ((1, 1.0, 1), (5, 1.0, 1)), "large": ((1, 1.0, 1),)}
    )
    shutil.copytree(videos, tmp_path / "data")
    for name, side in {"0": 16, "a2": 40, "c2": 18, "f": 16, "g": 8}.items():
        (tmp_path / "data" / f"{name}.png").write_bytes(png(np.full((side, side, 3), 99, np.uint8)))
    # Its header is fine, but it cannot be decoded: the one problem to report.
    broken = bytearray((tmp_path / "data" / "f.png").read_bytes())
    broken[-30:-20] = bytes(10)
    (tmp_path / "data" / "f.png").write_bytes(broken)
    arguments = {
        "embedder": str(embedder),
        "data": str(tmp_path / "data"),
        "stage": "tiny",
        "aspects": "1:1",
    }
    arguments |= {"require_captions": False, "batch_size": 2, "shard_size": 2, "clips_per_video": 2}
    summary = encode(**arguments, out=str(tmp_path / "straight"))
    # The files are 0 a a2 b c c2 d e f g: g is too small for all buckets, and e too short.
    assert (
        summary["buckets"] == {"1x16x16": 4, "5x16x16": 8, "1x32x32": 2}
        and summary["left_out"] == 2
    )
    manifest = json.loads((tmp_path / "straight" / "manifest.json").read_text())
    left_out = {
        bucket: [row["left_out"] for row in rows] for bucket, rows in manifest["shards"].items()
    }
    assert left_out == {"1x16x16": [[], [], [16, 17]], "5x16x16": [[]] * 4, "1x32x32": [[]]}

    write, written = LatentWriter.write, []

    def breaks(self, bucket, shard, samples):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append((bucket, shard))
        write(self, bucket, shard, samples)

    monkeypatch.setattr(LatentWriter, "write", breaks)
    with pytest.raises(KeyboardInterrupt):
        encode(**arguments, out=str(tmp_path / "broken"))
    monkeypatch.setattr(LatentWriter, "write", write)
    assert encode(**arguments, out=str(tmp_path / "broken"))["kept_shards"] == 3
    one, other = (
        {p.relative_to(d): p.read_bytes() for p in d.rglob("*.*") if p.is_file()}
        for d in (tmp_path / "straight", tmp_path / "broken")
    )
    assert one == other and len(one) == 2 + 3 + 2 * 8

    source = LatentSource(tmp_path / "broken")
    table = make_buckets(buckets.STAGES["tiny"], ("1:1",), devices=1)
    members = [[0, 1, 10, 11], [2, 3, 6, 7, 8, 9, 12, 13], [4, 5]]
    assert [each.tolist() for each in source.fit(table, 0)] == members
    assert [source.clips_for(bucket).tolist() for bucket in table] == members
    for fit in (True, False):
        pipeline = Pipeline(source, DataConfig(source=LatentsConfig(), fit=fit, buckets=table))
        seen = {bucket.frames: set() for bucket in table}
        for step in range(30):
            batch, frames = pipeline.batch(step), pipeline.bucket(step).frames
            seen[frames] |= set(batch["index"].tolist())
            assert batch["micro_cond"][0, 4] == (120.0 if frames == 1 else 8.0)
        assert seen == {1: {*members[0], *members[2]}, 5: set(members[1])}


def test_without_a_stage_images_go_to_buckets_of_one_frame(folders, tmp_path):
    embedder, videos = folders
    shutil.copytree(videos, tmp_path / "data")
    (tmp_path / "data" / "0.png").write_bytes(png(np.full((20, 20, 3), 99, np.uint8)))
    arguments = {
        "embedder": str(embedder),
        "data": str(tmp_path / "data"),
        "require_captions": False,
    }
    summary = encode(**arguments, out=str(tmp_path / "both"), buckets="5x16x16,1x16x16")
    assert summary["buckets"] == {"5x16x16": 5, "1x16x16": 6} and summary["left_out"] == 0
    assert encode(**arguments, out=str(tmp_path / "videos"), buckets="5x16x16")["buckets"] == {
        "5x16x16": 5
    }
    arguments["data"] = str(tmp_path / "images")
    (tmp_path / "images").mkdir()
    shutil.copy(tmp_path / "data" / "0.png", tmp_path / "images")
    with pytest.raises(UserError, match="holds no video"):
        encode(**arguments, out=str(tmp_path / "none"), buckets="5x16x16")


def test_wrong_stages_are_refused(stage, folders, tmp_path):
    embedder, videos = folders
    arguments = {
        "embedder": str(embedder),
        "data": str(videos),
        "out": str(tmp_path / "out"),
        "require_captions": False,
    }
    with pytest.raises(
        UserError, match="stage='500p' is not known; choose one of 240p, 480p, 720p"
    ):
        encode(**arguments, stage="500p")
    with pytest.raises(UserError, match="--stage or --buckets, not both"):
        encode(**arguments, stage="tiny", buckets="5x16x16")
    with pytest.raises(UserError, match="--aspects is for --stage"):
        encode(**arguments, aspects="1:1")
    with pytest.raises(UserError, match="not one of 5 videos fits a bucket"):
        encode(**arguments, stage="720p")
    with pytest.raises(UserError, match="have no sizes of their own"):
        arguments = {"embedder": str(embedder), "out": str(tmp_path / "out")}
        encode(**arguments, data="synthetic", count=4, stage="tiny")
    assert not (tmp_path / "out").exists()
