"""Training on real mp4 files: odd sizes, lengths and rates, a broken file among them, with and
without captions."""

import json

import numpy as np
import pytest

from xgen_jax.commands.train import train
from xgen_jax.config.runs import run_config
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.testing import VDIT, VIDVAE


@pytest.fixture
def footage(tmp_path):
    """A folder of three clips, one broken file, and captions for all but one clip."""
    folder = tmp_path / "videos"
    y, x = np.mgrid[0:90, 0:120].astype(np.float32)
    picture = np.stack(
        [127 + 100 * np.sin(x / a + y / b) for a, b in ((9, 13), (6, 17), (12, 7))], axis=-1
    )
    captions = []
    for name, frames, height, width, fps in (
        ("a", 23, 45, 61, 24),
        ("b", 7, 38, 50, 30),
        ("c", 5, 64, 35, 8),
    ):
        clip = np.stack([picture[t : t + height, t : t + width] for t in range(frames)]).astype(
            np.uint8
        )
        write_video(folder / f"{name}.mp4", clip, fps)
        captions.append(json.dumps({"file": f"{name}.mp4", "caption": f"waves {name}"}))
    (folder / "broken.mp4").write_bytes((folder / "a.mp4").read_bytes()[:200])
    (folder / "captions.jsonl").write_text("\n".join(captions[:2]) + "\n")
    return folder


def with_folder(config, folder, **data):
    return {
        **config,
        "data": {**config["data"], "source": {"kind": "video_folder", "path": str(folder), **data}},
    }


@pytest.mark.slow
def test_both_models_train_on_a_folder_of_videos(footage, tmp_path, capsys):
    config = with_folder(VIDVAE, footage, require_captions=False)
    assert train(run_config(config), tmp_path / "vidvae")["step"] == 2
    config = with_folder({**VDIT, "embedder": str(tmp_path / "vidvae")}, footage)
    result = train(run_config(config), tmp_path / "vdit")
    assert result["step"] == 2
    assert np.isfinite(result["loss"])
    err = capsys.readouterr().err
    assert "broken.mp4" in err
    assert "c.mp4" in err  # has no caption


def test_a_folder_without_a_usable_video_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "videos").mkdir()
    with pytest.raises(UserError, match="videos"):
        train(run_config(with_folder(VIDVAE, tmp_path / "videos")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
