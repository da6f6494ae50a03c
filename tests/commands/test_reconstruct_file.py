"""`launch/reconstruct.py`: any part of a file, in a stream, with its progress."""

import numpy as np
import pytest

from xgen_jax.commands.reconstruct import ReconstructRequest, reconstruct_file
from xgen_jax.data.video import read_video
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.evaluation.reconstruction import compare
from xgen_jax.inference.reconstruct import load_reconstructor


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A file of 40 frames at 8 fps, each of them another grey."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    video = np.broadcast_to(np.arange(10, 210, 5, np.uint8)[:, None, None, None], (40, 18, 20, 3))
    write_video(path, np.array(video), fps=8)
    return path


def request(tiny_runs, clip, tmp_path, **changes):
    fields = {"embedder": str(tiny_runs / "vidvae"), "video": str(clip)}
    return ReconstructRequest(**fields, out=str(tmp_path / "both.mp4"), **changes)


@pytest.mark.slow
def test_a_part_of_a_file_is_reconstructed_as_if_it_were_whole(tiny_runs, clip, tmp_path, capsys):
    result = reconstruct_file(request(tiny_runs, clip, tmp_path, start=1.5, frames=23))
    assert result["shape"] == [23, 18, 20, 3] and result["fps"] == 8
    original, _ = read_video(clip, start_s=1.5, frames=23)
    both, fps = read_video(tmp_path / "both.mp4")
    assert both.shape == (23, 18, 42, 3) and fps == 8
    assert np.abs(both[:, :, :20].astype(int) - original).mean() < 3
    scores = compare(original, load_reconstructor(tiny_runs / "vidvae")(original))
    for name in ("psnr_db", "ssim", "mse", "sharpness"):
        assert result[name] == pytest.approx(scores[name], abs=2e-3)
    written = capsys.readouterr()
    assert written.out == ""
    assert "reconstruct 23/23" in written.err and "psnr_db" in written.err


def test_a_file_that_ends_before_the_number_of_frames(tiny_runs, clip, tmp_path, capsys):
    result = reconstruct_file(request(tiny_runs, clip, tmp_path, start=4.5, frames=100))
    assert result["shape"] == [4, 18, 20, 3]
    assert "reconstruct 4/4" in capsys.readouterr().err


def test_wrong_parts_are_refused(tiny_runs, clip, tmp_path):
    for wrong, message in [
        ({"start": -1.0}, "--start=-1.0 must be seconds, 0 or more"),
        ({"start": float("nan")}, "--start=nan must be seconds"),
        ({"frames": 0}, "--frames=0 must be 1 or more"),
    ]:
        with pytest.raises(UserError, match=message):
            request(tiny_runs, clip, tmp_path, **wrong)
    with pytest.raises(UserError, match="--start=5 is not before the end of .*, which lasts 5 s"):
        reconstruct_file(request(tiny_runs, clip, tmp_path, start=5.0))
    assert not list(tmp_path.iterdir())


def test_damage_leaves_no_file(tiny_runs, clip, tmp_path):
    data = bytearray(clip.read_bytes())
    at = data.index(b"mdat") + 4
    data[at + 200 :] = b"\0" * (len(data) - at - 200)
    (tmp_path / "damaged.mp4").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        reconstruct_file(request(tiny_runs, tmp_path / "damaged.mp4", tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.mp4"]
