"""Whole evaluations, on real mp4 files too: odd sizes and lengths, a folder with bad files in it."""

import json

import numpy as np
import pytest

from xgen_jax.data.video import read_video, write_video
from xgen_jax.errors import UserError
from xgen_jax.evaluation.suites import captions_suite, reconstruct_file, reconstruction_suite


def moving_crops(frames, height, width):
    """A crop wandering over a smooth picture with edges, in the manner of footage."""
    y, x = np.mgrid[0 : height + frames, 0 : width + frames].astype(np.float32)
    waves = [127 + 90 * np.sin(x / a + y / b) * np.cos(y / a) for a, b in ((7, 11), (5, 13), (9, 6))]
    picture = np.stack(waves, axis=-1)
    picture[10:20, 8:22] = (220, 60, 40)
    return np.stack([picture[t : t + height, t : t + width] for t in range(frames)]).clip(0, 255).astype(np.uint8)


def test_reconstruct_file_takes_any_real_mp4(tiny_runs, tmp_path):
    write_video(tmp_path / "clip.mp4", moving_crops(11, 46, 58), fps=24)
    embedder, out = str(tiny_runs / "vidvae"), str(tmp_path / "both.mp4")
    arguments = {"embedder": embedder, "video": str(tmp_path / "clip.mp4"), "out": out}
    result = reconstruct_file(**arguments)
    assert result["shape"] == [11, 46, 58, 3]
    assert 3 < result["psnr_db"] < 60
    both, fps = read_video(out)
    assert both.shape == (11, 46, 118, 3)
    assert fps == pytest.approx(24)
    with pytest.raises(UserError, match="exists"):
        reconstruct_file(**arguments)
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(UserError, match="text.mp4"):
        reconstruct_file(embedder=embedder, video=str(tmp_path / "text.mp4"), out=str(tmp_path / "x.mp4"))
    with pytest.raises(UserError, match="give --video"):
        reconstruct_file(embedder=embedder, video=None, out=out)


def test_reconstruction_suite_on_synthetic_and_real_clips(tiny_runs, tmp_path):
    embedder = str(tiny_runs / "vidvae")
    result = reconstruction_suite(embedder=embedder, out=str(tmp_path), count=3)
    written = json.loads((tmp_path / "reconstruction" / "reconstruction.json").read_text())
    assert result["clips"] == written["clips"] == 3
    assert result["psnr_db"] == pytest.approx(written["mean"]["psnr_db"], abs=1e-4)
    assert all((tmp_path / "reconstruction" / row["file"]).is_file() for row in written["videos"])

    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", moving_crops(9, 40, 50), fps=8)
    (tmp_path / "videos" / "empty.mp4").touch()
    result = reconstruction_suite(embedder=embedder, out=str(tmp_path / "real"), data=str(tmp_path / "videos"), count=5)
    assert result["clips"] == 1


def test_captions_suite_reads_every_sample(tiny_runs, tmp_path):
    result = captions_suite(model=str(tiny_runs / "vdit"), out=str(tmp_path), count=4)
    written = json.loads((tmp_path / "captions" / "captions.json").read_text())
    assert result["prompts"] == 4
    assert written["settings"]["steps"] == 2
    # A model of two steps draws noise: the verifier must not find what was asked for.
    assert result["all"] < 0.5
    assert all((tmp_path / "captions" / sample["file"]).is_file() for sample in written["samples"])
