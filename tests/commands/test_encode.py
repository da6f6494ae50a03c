"""Encoding a dataset: latents equal those of training, and only runs of that embedder read them."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from run_states import contents

import xgen_jax
from xgen_jax.commands.encode import EncodeRequest, encode_dataset
from xgen_jax.commands.train import train
from xgen_jax.config.runs import run_config
from xgen_jax.data.latent_writer import LatentWriter
from xgen_jax.data.pixels import to_unit_range
from xgen_jax.data.sources.latents import LatentSource
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.data.video import VideoReader
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.files import locked
from xgen_jax.models.text import tokenize_bytes
from xgen_jax.runs.checkpoint import Checkpoints
from xgen_jax.runs.load import load_embedder, load_text_encoder
from xgen_jax.testing import DATA, VDIT, VIDVAE, task_of
from xgen_jax.training.metric_writers import read_jsonl

SHAPE = (5, 16, 16)


def vdit(root, **data):
    return run_config({**VDIT, "embedder": str(root / "vidvae"), "data": {**DATA, **data}})


def stored(path):
    return {"kind": "latents", "path": str(path)}


def encode(**arguments):
    return encode_dataset(EncodeRequest(**arguments))


def synthetic(root, out, **changes):
    arguments = {
        "embedder": str(root / "vidvae"),
        "data": "synthetic",
        "count": 7,
        "batch_size": 2,
        "shard_size": 3,
    }
    return encode(**{**arguments, "out": str(out), **changes})


@pytest.fixture(scope="module")
def latents(tiny_runs, tmp_path_factory):
    """Latents of the clips that tiny_runs trained on, and of as many images, captions embedded."""
    out = tmp_path_factory.mktemp("latents") / "out"
    more = {"buckets": "5x16x16, 1x16x16", "text_encoder": str(tiny_runs / "vdit")}
    result = synthetic(tiny_runs, out, count=100, shard_size=45, **more)
    assert result["buckets"] == {"5x16x16": 100, "1x16x16": 100}
    assert (result["shards"], result["kept_shards"], result["left_out"]) == (6, 0, 0)
    return out


def test_what_is_stored_is_what_the_networks_give(tiny_runs, latents):
    source, shapes = LatentSource(latents), SyntheticSource(seed=0, num_clips=100)
    embedder, params = load_embedder(tiny_runs / "vidvae")
    assert source.made_by["embedder"] == embedder.fingerprint(params)
    text, text_params = load_text_encoder(tiny_runs / "vdit")
    encode_one = jax.jit(lambda video: embedder.encode(params, to_unit_range(video)))
    embed = jax.jit(lambda ids, mask: text.apply(text_params, ids, mask))
    for shape in (SHAPE, (1, 16, 16)):
        for index in (0, 1, 44, 45, 99):
            clip, stored = shapes.read(index, None, *shape), source.read(index, None, *shape)
            assert stored["caption"] == clip["caption"]
            np.testing.assert_allclose(
                stored["latents"], encode_one(clip["video"][None])[0], rtol=0, atol=1e-5
            )
            tokens, mask = embed(*tokenize_bytes([clip["caption"]], 64))
            # Padding is not stored.
            np.testing.assert_allclose(stored["text"], tokens[0][mask[0]], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_training_on_stored_latents_is_training_on_the_fly(tiny_runs, latents, tmp_path):
    objective = task_of(vdit(tiny_runs, source=stored(latents)))
    assert objective.embedder is None and objective.embedder_params is None
    train(vdit(tiny_runs, source=stored(latents)), tmp_path / "stored")
    rows = [
        list(read_jsonl(run / "metrics.jsonl")) for run in (tiny_runs / "vdit", tmp_path / "stored")
    ]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == [1, 2]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(
            [r[name] for r in rows[1]], [r[name] for r in rows[0]], rtol=1e-6
        )
    assert rows[0][0]["loss"] != rows[0][1]["loss"]
    xgen_jax.load(tmp_path / "stored")  # such a run is loaded like any other


@pytest.mark.slow
def test_an_interrupted_encoding_ends_with_the_same_bytes(tiny_runs, tmp_path, monkeypatch):
    assert synthetic(tiny_runs, tmp_path / "straight")["kept_shards"] == 0
    read, calls = SyntheticSource.read, []

    def stopped(self, index, *arguments):
        calls.append(index)
        if index == 5:
            raise KeyboardInterrupt
        return read(self, index, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SyntheticSource, "read", stopped)
        with pytest.raises(KeyboardInterrupt):
            synthetic(tiny_runs, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "manifest.json").exists()
    result = synthetic(tiny_runs, tmp_path / "stopped")
    assert (result["shards"], result["kept_shards"]) == (3, 1)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")
    assert synthetic(tiny_runs, tmp_path / "stopped")["kept_shards"] == 3
    with pytest.raises(
        UserError, match=r"encoded otherwise.*\n  dtype: 'float32' -> 'float16'\n  seed: 0 -> 4\n"
    ):
        synthetic(tiny_runs, tmp_path / "stopped", dtype="float16", seed=4)


def test_a_folder_of_videos_is_encoded_and_what_cannot_be_read_left_out(
    tiny_runs, tmp_path, capsys, monkeypatch
):
    rng = np.random.default_rng(0)
    for name in "abcd":
        write_video(
            tmp_path / "videos" / f"{name}.mp4", rng.integers(0, 256, (12, 24, 32, 3), np.uint8)
        )
    (tmp_path / "videos" / "e.mp4").write_bytes(b"no video")
    arguments = {
        "embedder": str(tiny_runs / "vidvae"),
        "data": str(tmp_path / "videos"),
        "clips_per_video": 3,
    }
    with pytest.raises(UserError, match="no captions.jsonl"):
        encode(**arguments, out=str(tmp_path / "out"))
    arguments["require_captions"] = False
    # Breaks after its header was read.
    read = VideoReader.read

    def broken(reader, *args, **options):
        if reader.path.name == "c.mp4":
            raise UserError(f"cannot read {reader.path}: damaged")
        return read(reader, *args, **options)

    monkeypatch.setattr(VideoReader, "read", broken)
    result = encode(**arguments, out=str(tmp_path / "out"), batch_size=4, dtype="bfloat16")
    assert (result["buckets"], result["left_out"]) == ({"5x16x16": 9}, 3)
    printed = capsys.readouterr().err
    assert (
        "e.mp4" in printed
        and "left out: clip 6 of 5x16x16: cannot read" in printed
        and "c.mp4: damaged" in printed
    )
    source = LatentSource(tmp_path / "out")
    clips = [source.read(index, None, *SHAPE)["latents"] for index in range(12)]
    assert len({clip.tobytes() for clip in clips}) == 9, (
        "three clips of each of three videos, and no two alike"
    )
    # A clip depends on neither its neighbours nor the batch.
    fewer = encode(
        **{**arguments, "clips_per_video": 1},
        out=str(tmp_path / "one"),
        batch_size=1,
        dtype="bfloat16",
    )
    assert fewer["buckets"] == {"5x16x16": 3}
    np.testing.assert_allclose(
        LatentSource(tmp_path / "one").read(1, None, *SHAPE)["latents"], clips[3], atol=0.05
    )


def test_what_was_added_or_corrected_is_encoded_and_the_rest_kept(tiny_runs, tmp_path, capsys):
    rng, videos = np.random.default_rng(0), tmp_path / "videos"

    def add(name, caption):
        write_video(videos / name, rng.integers(0, 256, (6, 16, 16, 3), np.uint8))
        (videos / name).with_suffix(".txt").write_text(caption)

    for name in ("b.mp4", "d.mp4", "e.mp4"):
        add(name, f"of {name}")
    arguments = {
        "embedder": str(tiny_runs / "vidvae"),
        "data": str(videos),
        "text_encoder": str(tiny_runs / "vdit"),
        "shard_size": 2,
        "held_out_fraction": 0.0,
    }
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    assert encode(**arguments, out=str(out))["reused_clips"] == 0
    add("a.mp4", "of a.mp4")  # all others have another number now
    (videos / "d.txt").write_text("corrected")
    (videos / "e.mp4").unlink()
    again = encode(**arguments, out=str(out))
    assert (again["buckets"], again["reused_clips"]) == ({"5x16x16": 3}, 2)
    encode(**arguments, out=str(fresh))
    assert contents(out) == contents(fresh)
    captions = [LatentSource(out).read(i, None, *SHAPE)["caption"] for i in range(3)]
    assert captions == ["of a.mp4", "of b.mp4", "corrected"]
    assert encode(**arguments, out=str(out))["kept_shards"] == 2
    # Another data set into the same folder is a mistake, and takes nothing away.
    for name in ("x.mp4", "y.mp4"):
        add(f"../other/{name}", "of another")
    before = contents(out)
    with pytest.raises(UserError, match="clips that are the same: 0 of 3\n"):
        encode(**{**arguments, "data": str(tmp_path / "other")}, out=str(out))
    assert contents(out) == before


@pytest.mark.slow
def test_an_interrupted_update_goes_on(tiny_runs, tmp_path, monkeypatch):
    rng, videos = np.random.default_rng(0), tmp_path / "videos"
    names = [f"{number}.mp4" for number in range(6)]
    for name in names[:4]:
        write_video(videos / name, rng.integers(0, 256, (6, 16, 16, 3), np.uint8))
    arguments = {
        "embedder": str(tiny_runs / "vidvae"),
        "data": str(videos),
        "shard_size": 2,
        "require_captions": False,
        "held_out_fraction": 0.0,
    }
    encode(**arguments, out=str(tmp_path / "out"))
    for name in names[4:]:
        write_video(videos / name, rng.integers(0, 256, (6, 16, 16, 3), np.uint8))
    write, calls = LatentWriter.write, []

    def stopped(self, bucket, shard, samples):
        calls.append(shard)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(self, bucket, shard, samples)

    with monkeypatch.context() as patch:
        patch.setattr(LatentWriter, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            encode(**arguments, out=str(tmp_path / "out"))
    with pytest.raises(UserError, match="encoding has not ended"):
        LatentSource(tmp_path / "out")
    result = encode(**arguments, out=str(tmp_path / "out"))
    assert (result["kept_shards"], result["reused_clips"]) == (1, 2)
    encode(**arguments, out=str(tmp_path / "fresh"))
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_two_processes_do_not_write_one_folder(tiny_runs, tmp_path):
    refused = pytest.raises(UserError, match=f"encodes into .*process {os.getpid()} on")
    with locked(tmp_path / "out", "encodes into"), refused:
        synthetic(tiny_runs, tmp_path / "out")
    assert synthetic(tiny_runs, tmp_path / "out")["shards"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedder": None}, "give --embedder"),
        ({"count": None}, "give --count"),
        ({"data": "videos"}, "--count is for --data=synthetic"),
        ({"clips_per_video": 2}, "give a larger --count"),
        ({"fps": 8.0}, "--fps is for folders of videos"),
        ({"require_captions": False}, "--require_captions is for folders of videos"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"dtype": "int8"}, "dtype='int8' is not known; choose one of float32"),
        ({"compute_dtype": "float16"}, "compute_dtype='float16' is not known"),
        ({"buckets": "9x32"}, "'9x32' is not a clip shape; give FRAMESxHEIGHTxWIDTH"),
        ({"buckets": "6x16x16"}, "6 frames cannot be encoded"),
        ({"text_encoder": "VIDVAE"}, "give a text encoder: the folder of a T5 or a vdit run"),
    ],
)
def test_mistakes_are_named_before_anything_is_made(tiny_runs, tmp_path, changes, message):
    changes = {
        name: str(tiny_runs / "vidvae") if value == "VIDVAE" else value
        for name, value in changes.items()
    }
    with pytest.raises(UserError, match=message):
        synthetic(tiny_runs, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def copied(tiny_runs, tmp_path):
    """Copies of the two runs, which may be changed."""
    for name in ("vidvae", "vdit"):
        shutil.copytree(tiny_runs / name, tmp_path / name)
    config = (tmp_path / "vdit" / "config.json").read_text().replace(str(tiny_runs), str(tmp_path))
    (tmp_path / "vdit" / "config.json").write_text(config)
    return tmp_path


def train_further(root):
    """The embedder's checkpoint a step later, in place: one weight has moved."""
    checkpoints = Checkpoints(root / "vidvae" / "checkpoints")
    state = checkpoints.restore_part(())
    leaves, tree = jax.tree.flatten(state["ema"])
    state["ema"] = jax.tree.unflatten(tree, [leaves[0] * 1.001, *leaves[1:]])
    checkpoints.save(3, state, checkpoints.restore_data())
    checkpoints.wait()


@pytest.mark.slow
def test_an_embedder_trained_further_is_another_one(copied, latents, tmp_path):
    before = load_embedder(copied / "vidvae")
    xgen_jax.load(copied / "vdit")  # the same embedder in another place
    train_further(copied)
    after = load_embedder(copied / "vidvae")
    assert before[0].fingerprint(before[1]) != after[0].fingerprint(after[1])
    # Sampling, going on with the training, and training on the latents of the one before are all
    # refused.
    with pytest.raises(
        UserError, match=r"was trained on the embedder [0-9a-f]{16}, and what is loaded now is"
    ):
        xgen_jax.load(copied / "vdit")
    config = json.loads((copied / "vdit" / "config.json").read_text())
    config["loop"]["steps"] = 4
    untouched = contents(copied / "vdit")
    with pytest.raises(UserError, match="was trained on the embedder .*start a new run"):
        train(run_config(config), copied / "vdit")
    assert contents(copied / "vdit") == untouched
    with pytest.raises(
        UserError, match=r"latents of the embedder [0-9a-f]{16}, and .* encode again with launch"
    ):
        train(vdit(copied, source=stored(latents)), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match=r"encoded otherwise[^$]*\n  embedder: "):
        encode(
            embedder=str(copied / "vidvae"),
            data="synthetic",
            count=100,
            shard_size=45,
            out=str(latents),
        )


def test_a_refused_resume_leaves_the_folder_untouched(copied):
    """A key that may change between two calls (here the number of steps) is not written either."""
    checkpoints = Checkpoints(copied / "vidvae" / "checkpoints")
    state, data = checkpoints.restore_part(()), checkpoints.restore_data()
    checkpoints.save(
        3, state, {**data, "fingerprint": "another." + data["fingerprint"].split(".", 1)[1]}
    )
    checkpoints.wait()
    untouched = contents(copied / "vidvae")
    with pytest.raises(UserError, match="saved with other data: the source .* differ"):
        train(
            run_config({**VIDVAE, "loop": {**VIDVAE["loop"], "steps": 9}}),
            copied / "vidvae",
        )
    assert contents(copied / "vidvae") == untouched


def test_a_bucket_that_was_not_encoded_is_refused_before_anything_is_made(
    tiny_runs, latents, tmp_path
):
    buckets = [*DATA["buckets"], {"frames": 9, "height": 16, "width": 16, "batch_size": 2}]
    with pytest.raises(UserError, match="no latents of 9x16x16 .*; it has 5x16x16, 1x16x16"):
        train(vdit(tiny_runs, source=stored(latents), buckets=buckets), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_latents_are_not_for_training_an_autoencoder(latents, tmp_path):
    config = {**VIDVAE, "data": {**DATA, "source": stored(latents)}}
    with pytest.raises(UserError, match="a vidvae run needs videos"):
        train(run_config(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_statistics_are_measured_where_there_are_none(copied, tmp_path, capsys):
    """Converted weights have none: they reconstruct without; encoding measures them, training asks
    for them."""
    statistics = copied / "vidvae" / "latent_statistics.json"
    trained = json.loads(statistics.read_text())
    statistics.unlink()
    video = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    assert xgen_jax.load(copied / "vidvae")(video).shape == video.shape
    with pytest.raises(
        UserError, match=r"holds no latent_statistics.json.*launch/encode.py --embedder="
    ):
        train(vdit(copied), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    synthetic(copied, tmp_path / "out", count=20)
    assert (
        "had no latent_statistics.json; measured over 20 clips of 5x16x16"
        in capsys.readouterr().err
    )
    measured = json.loads(statistics.read_text())
    assert measured["values"] == 20 * 2 * 4 * 4
    np.testing.assert_allclose(measured["mean"], trained["mean"], atol=np.min(trained["std"]))
    source = LatentSource(tmp_path / "out")
    latents = np.stack([source.read(index, None, *SHAPE)["latents"] for index in range(20)])
    np.testing.assert_allclose(latents.mean((0, 1, 2, 3)), np.zeros(4), atol=1e-4)
    np.testing.assert_allclose(latents.std((0, 1, 2, 3)), np.ones(4), atol=1e-4)
    # Existing statistics are used, not measured again.
    before = statistics.read_bytes()
    synthetic(copied, tmp_path / "more", count=3)
    assert statistics.read_bytes() == before
    objective = task_of(vdit(copied, source=stored(tmp_path / "out")))
    assert objective.fingerprints() == source.made_by


def test_checkpoints_keep_the_fingerprint_of_what_was_frozen(tiny_runs):
    embedder, params = load_embedder(tiny_runs / "vidvae")
    data = Checkpoints(tiny_runs / "vdit" / "checkpoints").restore_data()
    assert data["fingerprints"] == {"embedder": embedder.fingerprint(params)}
    assert Checkpoints(tiny_runs / "vidvae" / "checkpoints").restore_data()["fingerprints"] == {}
    changed = {**params, "std": params["std"] * np.float32(1.0000002)}
    assert embedder.fingerprint(changed) != embedder.fingerprint(params)
