"""Whole evaluations, also of mp4 files: odd sizes and lengths, a folder with bad files in it."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny_i3d

from xgen_jax import evaluate, load
from xgen_jax.commands.evaluate_request import EvaluateRequest
from xgen_jax.commands.reconstruct import ReconstructRequest, reconstruct_file
from xgen_jax.commands.suites import reconstruction as suite
from xgen_jax.data.latent_shards import VERSION as LATENTS_VERSION
from xgen_jax.data.pixels import to_unit_range
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.data.video import read_video
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.evaluation.fvd import FrechetVideoDistance
from xgen_jax.evaluation.perceptual import load_lpips_distance
from xgen_jax.models.lpips import LPIPS, LPIPSConfig
from xgen_jax.weights.safetensors import write_safetensors


def moving_crops(frames, height, width):
    """A crop that moves over a smooth picture with edges, like footage."""
    y, x = np.mgrid[0 : height + frames, 0 : width + frames].astype(np.float32)
    waves = [
        127 + 90 * np.sin(x / a + y / b) * np.cos(y / a) for a, b in ((7, 11), (5, 13), (9, 6))
    ]
    picture = np.stack(waves, axis=-1)
    picture[10:20, 8:22] = (220, 60, 40)
    return (
        np.stack([picture[t : t + height, t : t + width] for t in range(frames)])
        .clip(0, 255)
        .astype(np.uint8)
    )


def test_reconstruct_file_takes_any_real_mp4(tiny_runs, tmp_path):
    write_video(tmp_path / "clip.mp4", moving_crops(11, 46, 58), fps=24)
    embedder, out = str(tiny_runs / "vidvae"), str(tmp_path / "both.mp4")
    arguments = {"embedder": embedder, "video": str(tmp_path / "clip.mp4"), "out": out}
    result = reconstruct_file(ReconstructRequest(**arguments))
    assert result["shape"] == [11, 46, 58, 3]
    assert 3 < result["psnr_db"] < 60
    names = {
        "psnr_db",
        "psnr_of_mean_mse_db",
        "ssim",
        "mse",
        "sharpness",
        "blockiness",
        "seam_ratio",
    }
    assert result.keys() == names | {"video", "shape", "fps", "wall_s"}
    both, fps = read_video(out)
    assert both.shape == (11, 46, 118, 3)
    assert fps == pytest.approx(24)
    with pytest.raises(UserError, match="exists"):
        reconstruct_file(ReconstructRequest(**arguments))
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(UserError, match="text.mp4"):
        reconstruct_file(
            ReconstructRequest(
                embedder=embedder, video=str(tmp_path / "text.mp4"), out=str(tmp_path / "x.mp4")
            )
        )
    with pytest.raises(UserError, match="give --video"):
        ReconstructRequest(embedder=embedder, video=None, out=out)


def test_reconstruction_suite_on_synthetic_and_real_clips(tiny_runs, tmp_path):
    embedder = str(tiny_runs / "vidvae")
    result = evaluate("reconstruction", embedder=embedder, out=str(tmp_path), count=3)
    written = json.loads((tmp_path / "reconstruction" / "reconstruction.json").read_text())
    (entry,) = written["shapes"]
    # The shape that it was trained on.
    assert entry["shape"] == "5x16x16" and list(result["shapes"]) == ["5x16x16"]
    assert result["shapes"]["5x16x16"]["clips"] == entry["clips"] == 3
    assert result["shapes"]["5x16x16"]["psnr_db"] == pytest.approx(
        entry["mean"]["psnr_db"], abs=1e-5
    )
    assert (
        len(entry["videos"]) == len(entry["worst"]) == 3
        and len(entry["videos"][0]["psnr_db_frames"]) == 5
    )
    assert all((tmp_path / "reconstruction" / row["file"]).is_file() for row in entry["videos"])
    assert set(entry["mean"]) <= set(written["conventions"]) and "lpips_vgg" not in entry["mean"]

    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", moving_crops(9, 40, 50), fps=8)
    (tmp_path / "videos" / "empty.mp4").touch()
    result = evaluate(
        "reconstruction",
        embedder=embedder,
        out=str(tmp_path / "real"),
        data=str(tmp_path / "videos"),
        count=5,
    )
    assert result["shapes"]["5x16x16"]["clips"] == 1
    assert (
        "- 5x16x16: a.mp4 ("
        in (tmp_path / "real" / "reconstruction" / "reconstruction.md").read_text()
    )


def test_worst_clips_are_kept_as_videos_whatever_their_number(tiny_runs, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "SHOWN", 1)
    monkeypatch.setattr(suite, "WORST", 2)
    embedder = str(tiny_runs / "vidvae")
    evaluate("reconstruction", embedder=embedder, out=str(tmp_path), count=5)
    folder = tmp_path / "reconstruction"
    (entry,) = json.loads((folder / "reconstruction.json").read_text())["shapes"]
    order = sorted(range(5), key=lambda number: entry["videos"][number]["psnr_db"])
    assert [one["clip"] for one in entry["worst_clips"]] == order[:2]
    files = {row["file"] for row in entry["videos"] if "file" in row}
    assert {one["file"] for one in entry["worst_clips"]} <= files
    assert files == {f"5x16x16/{number:03d}.mp4" for number in {0, *order[:2]}}
    assert all((folder / file).is_file() for file in files)
    assert len(list((folder / "5x16x16").iterdir())) == len(files)
    # The frames of a VidVAE's latents: the first alone, then four each.
    assert entry["by_frame"]["chunk_starts"] == [1]
    assert entry["seams"]["borders"] == 5 and len(entry["by_frame"]["psnr_db"]) == 5


def test_clips_shorter_than_asked_are_left_out_or_refused(tiny_runs, tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    for name, frames in (("short", 6), ("long", 9)):
        video = moving_crops(frames, 20, 24)
        write_video(tmp_path / "videos" / f"{name}.mp4", video, fps=8)
    asked = {"embedder": str(tiny_runs / "vidvae"), "data": str(tmp_path / "videos"), "count": 9}
    evaluate("reconstruction", out=str(tmp_path), shapes=["9x32x32"], **asked)
    written = json.loads((tmp_path / "reconstruction" / "reconstruction.json").read_text())
    (entry,) = written["shapes"]
    assert (entry["clips"], entry["shorter"], entry["enlarged"]) == (1, 1, 1)
    assert [row["name"] for row in entry["videos"]] == ["long.mp4"]
    assert any("enlarged to 9x32x32" in note for note in entry["notes"])
    assert "1 of 2 clips are left out: they have fewer than 9 frames" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"has 13 frames; the longest has 9: give --shapes"):
        evaluate("reconstruction", out=str(tmp_path), shapes=["13x16x16"], **asked)
    with pytest.raises(UserError, match="1x8x8 cannot be scored"):
        evaluate("reconstruction", out=str(tmp_path), shapes=["1x8x8"], **asked)


@pytest.mark.slow
def test_reconstruction_suite_at_several_shapes_with_lpips(tiny_runs, tmp_path, capsys):
    model = LPIPS(LPIPSConfig(widths=(2, 3, 4, 4, 5)))
    image = np.zeros((1, 16, 16, 3), np.float32)
    params = jax.jit(model.init)(jax.random.key(0), image, image)["params"]
    files = [
        str(write_safetensors(tmp_path / f"{part}.safetensors", x))
        for part, x in public_names(params).items()
    ]
    shapes = ["1x32x16", "9x16x32"]
    embedder = str(tiny_runs / "vidvae")
    result = evaluate(
        "reconstruction", embedder=embedder, out=str(tmp_path), count=2, shapes=shapes, lpips=files
    )
    folder = tmp_path / "reconstruction"
    written = json.loads((folder / "reconstruction.json").read_text())
    assert [entry["shape"] for entry in written["shapes"]] == list(result["shapes"]) == shapes
    for entry, (frames, height, width) in zip(written["shapes"], ((1, 32, 16), (9, 16, 32))):
        for row in entry["videos"]:
            assert (row["frames"], row["height"], row["width"]) == (frames, height, width)
            assert row["file"].startswith(f"{entry['shape']}/")
            both, _ = read_video(folder / row["file"])
            assert both.shape == (frames, height, 2 * width + 2, 3)
            assert len(row["lpips_vgg_frames"]) == len(row["sharpness_frames"]) == frames
            assert row["lpips_vgg"] > 0
            assert 0 < row["blockiness"] <= 4
    assert "VGG16" in written["conventions"]["lpips_vgg"]
    text = (folder / "reconstruction.md").read_text()
    assert text in capsys.readouterr().err
    assert "LPIPS, VGG16" in text and "paper" not in text

    distance = load_lpips_distance(files)
    video = moving_crops(3, 16, 32)
    np.testing.assert_array_equal(distance(video, video), 0)
    direct = jax.jit(model.apply)(
        {"params": params}, to_unit_range(video), to_unit_range(video[::-1])
    )
    np.testing.assert_allclose(distance(video, video[::-1]), direct, rtol=1e-5, atol=1e-9)


def public_names(params):
    """Our parameters by the names of torchvision's trunk and of the public heads."""
    places = (("1_1", 0), ("1_2", 2), ("2_1", 5), ("2_2", 7), ("3_1", 10), ("3_2", 12), ("3_3", 14))
    places += (("4_1", 17), ("4_2", 19), ("4_3", 21), ("5_1", 24), ("5_2", 26), ("5_3", 28))
    trunk = {
        f"features.{i}.weight": params[f"conv{place}"]["kernel"].transpose(3, 2, 0, 1)
        for place, i in places
    }
    trunk |= {f"features.{i}.bias": params[f"conv{place}"]["bias"] for place, i in places}
    heads = {
        f"lin{k}.model.1.weight": params[f"head{k + 1}"].reshape(1, -1, 1, 1) for k in range(5)
    }
    return {"trunk": trunk, "heads": heads}


@pytest.mark.parametrize(
    ("shapes", "count", "message"),
    [
        (["5x16x16"], 9, "at any of the shapes: I3D takes clips of 10 frames or more"),
        (["1x16x16", "13x16x16"], 1, "2 clips or more.* of 13x16x16 there is 1: give --count=N"),
    ],
)
def test_rfvd_of_too_few_clips_or_frames_is_refused(tiny_runs, tmp_path, shapes, count, message):
    asked = {"embedder": str(tiny_runs / "vidvae"), "out": str(tmp_path), "i3d": "not read"}
    with pytest.raises(UserError, match=message):
        evaluate("reconstruction", shapes=shapes, count=count, **asked)


@pytest.mark.slow
def test_rfvd_is_that_of_all_clips_of_a_shape(tiny_runs, tmp_path):
    weights = tiny_i3d.converted(tmp_path / "i3d")
    result = evaluate(
        "reconstruction",
        embedder=str(tiny_runs / "vidvae"),
        out=str(tmp_path),
        shapes=["1x16x16", "13x16x16"],
        count=3,
        i3d=str(weights),
    )
    written = json.loads((tmp_path / "reconstruction" / "reconstruction.json").read_text())
    image, video = written["shapes"]
    assert image["sets"] == {} and "10 frames" in image["not_computed"]["rfvd"]
    rfvd = video["sets"]["rfvd"]
    assert (rfvd["clips"], rfvd["frames"]) == (3, 13)
    assert any("biased" in note for note in video["notes"])
    assert result["shapes"]["13x16x16"]["rfvd"] == round(rfvd["value"], 5)
    distance, folder = FrechetVideoDistance(weights), tmp_path / "reconstruction"
    source = SyntheticSource(seed=10_000, split="held_out", num_clips=3)
    model = load(tiny_runs / "vidvae")
    for index in range(3):
        clip = source.read(index, None, 13, 16, 16)["video"]
        distance.update(real=clip, generated=model(clip))
    assert rfvd["value"] == pytest.approx(distance.result()["fvd"], rel=1e-6)
    assert "rFVD" in (folder / "reconstruction.md").read_text()


def test_captions_suite_finds_the_latents_of_a_run_or_says_that_they_are_not_there(
    tiny_runs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model, request = tmp_path / "run" / "vdit", {"suite": "captions", "out": str(tmp_path / "out")}
    model.mkdir(parents=True)
    config = json.loads((tiny_runs / "vdit" / "config.json").read_text())
    config["data"]["source"] = {"kind": "latents", "path": "started/here/latents"}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match="latents in started/here/latents, .* neither here nor next"
    ):
        evaluate(**request, model=str(model))
    # Next to the run, where launch/quickstart.sh writes them.
    manifest = {"version": LATENTS_VERSION, "source": "videos"}
    (model.parent / "latents").mkdir()
    (model.parent / "latents" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"was trained on \S*run/latents: give --suite=samples"):
        evaluate(**request, model=str(model))


def test_an_embedder_of_outlines_is_scored_on_outlines(tiny_runs, tmp_path):
    results = {}
    for style in ("filled", "outline"):
        embedder = tmp_path / style / "vidvae"
        shutil.copytree(tiny_runs / "vidvae", embedder)
        config = json.loads((embedder / "config.json").read_text())
        config["data"]["source"]["style"] = style
        (embedder / "config.json").write_text(json.dumps(config))
        out = tmp_path / style / "scores"
        evaluate("reconstruction", embedder=str(embedder), out=str(out), count=1)
        (results[style],) = (out / "reconstruction").rglob("*0.mp4")
    originals = [read_video(path)[0][:, :, :16] for path in results.values()]
    assert not np.array_equal(*originals)


@pytest.mark.slow
def test_captions_suite_reads_every_sample(tiny_runs, tmp_path):
    result = evaluate("captions", model=str(tiny_runs / "vdit"), out=str(tmp_path), count=4)
    written = json.loads((tmp_path / "captions" / "captions.json").read_text())
    assert result["prompts"] == 4
    assert written["settings"]["steps"] == 2
    # A model of two steps generates noise: the verifier must not find the attributes asked for.
    assert result["all"] < 0.5
    assert all((tmp_path / "captions" / sample["file"]).is_file() for sample in written["samples"])
    assert result["distinct_prompts"] == written["distinct_prompts"] == 4
    low, high = result["interval"]["all"]
    assert low <= result["all"] <= high and written["interval"].keys() == written["accuracy"].keys()


@pytest.mark.parametrize(
    "changes,message",
    [
        ({}, "give --suite, one of reconstruction, captions, samples, fvd"),
        ({"suite": "psnr"}, "suite='psnr' is not known"),
        ({"suite": "captions"}, "give --model, --out"),
        ({"suite": "captions", "model": "a", "out": "b", "data": "c"}, "--data is for --suite=rec"),
        ({"suite": "report", "out": "b", "count": 3}, "--count is for --suite=reconstruction and "),
        (
            {"suite": "reconstruction", "embedder": "a", "out": "b", "guidance_scale": 2.0},
            "--guidance_scale is for --suite=captions",
        ),
    ],
)
def test_flags_of_another_suite_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        EvaluateRequest(**changes)


def test_a_way_between_frames_needs_another_speed():
    with pytest.raises(UserError, match="--between=continuous is for another --speed"):
        ReconstructRequest(embedder="a", video="b.mp4", out="c.mp4", between="continuous")
