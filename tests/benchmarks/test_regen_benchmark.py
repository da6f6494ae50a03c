"""REGEN's benchmark: comparable cases, rows on disk, and separate footage for training and test."""

import argparse
import importlib.util
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.models.regen import REGEN
from xgen_jax.models.regen_config import PRESETS

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location("benchmark_regen", FOLDER / "regen.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tiny-4x", pytest.param("tiny-16x", marks=pytest.mark.slow)])
def test_the_plain_decoder_has_the_same_encoder_and_as_many_parameters(benchmark, preset):
    config = PRESETS[preset]
    regen, plain = REGEN(config), benchmark.plain_decoder(config)
    wanted, got = benchmark.decoder_parameters(regen), benchmark.decoder_parameters(plain)
    assert abs(got - wanted) < 0.03 * wanted
    chunk = jnp.zeros((1, config.chunk_frames, 16, 16, 3))
    of_regen = jax.eval_shape(regen.init, jax.random.key(0), chunk, jnp.zeros(1))["params"][
        "encoder"
    ]
    of_plain = jax.eval_shape(plain.init, jax.random.key(0), chunk)["params"]["encoder"]
    assert jax.tree.map(jnp.shape, of_regen) == jax.tree.map(jnp.shape, of_plain)


@pytest.mark.slow
def test_of_the_same_parameters_both_encoders_give_the_same_posterior(benchmark):
    config = PRESETS["tiny-4x"]
    regen, plain = REGEN(config), benchmark.plain_decoder(config)
    chunk = jax.random.uniform(jax.random.key(0), (1, 5, 16, 16, 3), minval=-1)
    params = jax.jit(regen.init)(jax.random.key(1), chunk, jnp.zeros(1))
    params = {"params": {"encoder": params["params"]["encoder"]}}
    ours = regen.apply(params, chunk, method="encode")
    theirs = plain.apply(params, chunk, method="encode")[0]
    for a, b in zip(ours, theirs):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def videos(tmp_path):
    """Two videos whose frames' levels count them, one that is too short, and a broken file."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, frames in (("a", 30), ("b", 45), ("short", 6)):
        levels = 5 * np.arange(frames, dtype=np.uint8)
        write_video(
            folder / f"{name}.mp4",
            np.broadcast_to(levels[:, None, None, None], (frames, 32, 48, 3)).copy(),
        )
    (folder / "notes.mp4").write_text("no video")
    return folder


def test_no_frame_of_footage_is_trained_on_and_tested_on(benchmark, videos):
    training = sys.modules["regen_training"]
    parts = {split: training.Footage(str(videos), split, 5, 8) for split in ("train", "test")}
    assert len(parts["train"].videos) == len(parts["test"].videos) == 2
    for name in range(2):
        seen, kept = (part.videos[name] for part in (parts["train"], parts["test"]))
        assert seen.shape[1:] == kept.shape[1:] == (16, 24, 3)  # the shorter side is twice a crop's
        assert len(seen) == 2 * len(kept)
        assert seen.mean((1, 2, 3)).max() < kept.mean((1, 2, 3)).min()
    assert parts["train"].fingerprint() != parts["test"].fingerprint()
    clip = parts["test"].read(0, np.random.default_rng(1), 5, 8, 8)["video"]
    assert clip.shape == (5, 8, 8, 3)
    np.testing.assert_array_equal(
        clip, parts["test"].read(2, np.random.default_rng(1), 5, 8, 8)["video"]
    )
    with pytest.raises(UserError, match="no video in .* has 300 frames"):
        training.Footage(str(videos), "test", 100, 8)
    with pytest.raises(UserError, match="--videos=FOLDER"):
        training.Footage(None, "test", 5, 8)


def options(tmp_path, **changes):
    values = {
        "root": str(tmp_path),
        "steps": 2,
        "batch": 2,
        "side": 16,
        "clips": 3,
        "seed": 0,
        "videos": None,
    }
    return argparse.Namespace(**values | changes)


def test_a_row_is_made_once(benchmark, tmp_path):
    made = []

    def make():
        made.append(1)
        return {"psnr_db": 20.0 + len(made)}

    first = benchmark.kept(options(tmp_path), "a row", make)
    assert benchmark.kept(options(tmp_path), "a row", make) == first and first["psnr_db"] == 21.0
    assert benchmark.kept(options(tmp_path), "another", make)["psnr_db"] == 22.0
    with pytest.raises(UserError, match="other settings; choose another --root"):
        benchmark.kept(options(tmp_path, batch=4), "a row", make)
    assert len(made) == 2


@pytest.mark.slow
def test_rows_of_both_decoders(benchmark, tmp_path, monkeypatch, capsys):
    flags = [
        "--ratios=4",
        "--steps=2",
        "--batch=2",
        "--side=16",
        "--clips=3",
        "--repeats=1",
        f"--root={tmp_path}",
    ]
    monkeypatch.setattr(sys, "argv", ["regen.py", "--rows=decoder,size", *flags])
    benchmark.main()
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [row["what"] for row in rows] == [
        *(
            f"decoder, shapes, 4x, {what}"
            for what in ("plain", "REGEN, 1 step", "REGEN, 4 steps", "REGEN, 16 steps")
        ),
        *(
            f"size, shapes, 4x, {what}, {s}x{s}"
            for what in ("content_aware", "in_context")
            for s in (16, 32)
        ),
    ]
    assert all(0 < row["psnr_db"] < 60 and row["frechet_random_features"] > 0 for row in rows)
    assert [row["shape"] for row in rows[4:]] == 2 * [[5, 16, 16, 3], [5, 32, 32, 3]]
    assert "| 4x, REGEN, 16 steps |" in captured.err
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    benchmark.main()
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
