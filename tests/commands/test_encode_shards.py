"""Commands on curated shards: their clips, held-out ones included, by --data alone."""

import json

import numpy as np
import pytest

from xgen_jax.commands.config_file import load_config
from xgen_jax.commands.encode import EncodeRequest, encode_dataset
from xgen_jax.commands.evaluate import evaluate
from xgen_jax.commands.evaluate_request import EvaluateRequest
from xgen_jax.curation.config import PackConfig
from xgen_jax.curation.pack import Clip, is_held_out, write_shard
from xgen_jax.curation.shard_index import finish
from xgen_jax.data.config import ShardsConfig, TFDSConfig
from xgen_jax.data.sources.latents import LatentSource
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError


@pytest.fixture
def curated(tmp_path):
    """A folder with the shards of six videos of a clip each."""
    config, rng = PackConfig(tiers=(16, 32), held_out_fraction=0.4), np.random.default_rng(0)
    clips = []
    for number in range(6):
        path = tmp_path / f"{number}.mp4"
        write_video(path, rng.integers(0, 255, (12, 32, 32, 3)).astype(np.uint8), 12)
        clips.append(
            Clip(
                id=f"{number}",
                path=str(path),
                source=path.name,
                digest=f"{number}",
                start_s=0.0,
                end_s=1.0,
                height=32,
                width=32,
                captions=(f"caption {number}",),
            )
        )
    for shard in (0, 1):
        write_shard(tmp_path / "out" / "shards", shard, clips[shard::2], config)
    finish(tmp_path / "out" / "shards", 2, config)
    return tmp_path / "out"


def test_shards_become_latents(tiny_runs, curated, tmp_path):
    request = {
        "embedder": str(tiny_runs / "vidvae"),
        "data": str(curated),
        "out": str(tmp_path / "latents"),
        "buckets": "5x16x16",
        "batch_size": 2,
    }
    assert encode_dataset(EncodeRequest(**request))["buckets"] == {"5x16x16": 6}
    source = LatentSource(tmp_path / "latents")
    captions = [source.read(index, None, 5, 16, 16)["caption"] for index in range(6)]
    assert sorted(captions) == [f"caption {number}" for number in range(6)]
    held_out = {captions[index] for index in source.held_out_clips()}
    assert held_out == {f"caption {n}" for n in range(6) if is_held_out(f"{n}", 0.4)}
    assert 0 < len(held_out) < 6 and source.rates() == {12.0: 6}
    for wrong in ({"held_out_fraction": 0.2}, {"seconds_per_clip": 2.0}):
        with pytest.raises(UserError, match="is for folders of videos: it was decided when pack"):
            encode_dataset(EncodeRequest(**request, **wrong))


def test_held_out_clips_of_shards_are_scored(tiny_runs, curated, tmp_path):
    request = {"suite": "reconstruction", "embedder": str(tiny_runs / "vidvae"), "count": 6}
    held_out = {f"{number}.mp4" for number in range(6) if is_held_out(f"{number}", 0.4)}
    for split, expected in (("held_out", held_out), (None, {f"{n}.mp4" for n in range(6)})):
        request |= {"data": str(curated), "split": split, "out": str(tmp_path / str(split))}
        evaluate(EvaluateRequest(**request))
        file = tmp_path / str(split) / "reconstruction" / "reconstruction.json"
        rows = json.loads(file.read_text())["shapes"][0]["videos"]
        assert {row["name"].split(" ")[0] for row in rows} == expected


@pytest.mark.parametrize("config", ["quickstart/vidvae", "quickstart/vidvae:videos"])
def test_a_path_given_by_flag_decides(curated, config):
    run = load_config(config, [f"data.source.path={curated}", "data.source.flip=True"])
    assert run.data.source == ShardsConfig(
        path=str(curated), flip=True, require_captions=config == "quickstart/vidvae"
    )
    keys = ["data.source.path=tfds:some_videos:train[:5%]", "data.source.frame_rate=12"]
    run = load_config(config, keys)
    assert run.data.source == TFDSConfig(path="tfds:some_videos:train[:5%]", frame_rate=12.0)
