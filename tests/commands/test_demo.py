"""The demo without its page: what it offers, its gallery, what it computes, its mistakes."""

import json
import os
import shlex
import socket
import threading

import numpy as np
import pytest

from xgen_jax.commands.demo import serve
from xgen_jax.commands.demo.choices import length_label, make_choices
from xgen_jax.commands.demo.gallery import Gallery, thumbnail
from xgen_jax.commands.demo.latent_view import (
    PRINCIPAL,
    LatentView,
    principal_components,
    to_colours,
)
from xgen_jax.commands.demo.serve import DemoRequest, demo_server, make_studio
from xgen_jax.commands.demo.studio import Interrupted, Owner
from xgen_jax.commands.sample import SampleRequest, sample_files
from xgen_jax.data.video import read_video
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.inference.request import VideoRequest, plan_video
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_embedder import VidVAEEmbedder
from xgen_jax.testing import VDIT, regen_embedder, tiny_run, tiny_vidvae, write_regen_run

VIDEO = np.full((3, 16, 16, 3), 7, np.uint8)
ME = Owner("visitor", "sample")


def quiet(done, total, text):
    pass


def test_choices_are_what_the_run_can_do():
    embedder = VidVAEEmbedder(model=VidVAE(tiny_vidvae()))
    buckets = [
        {"frames": 1, "height": 32, "width": 32, "batch_size": 2},
        {"frames": 17, "height": 16, "width": 24, "batch_size": 2},
        {"frames": 9, "height": 24, "width": 16, "batch_size": 2},
    ]
    for masks, continued in (({}, ()), ({"none": 0.5, "image_head": 0.5}, (33, 49))):
        config = tiny_run(
            VDIT, embedder="x", data={"buckets": buckets}, loss={"frame_masks": masks}
        )
        choices = make_choices(config, embedder)
        assert choices.sizes == ((16, 24), (24, 16))
        assert choices.default.frames == 17
        assert set(choices.frames) >= {1, 5, 9, 13, 17}
        assert (max(choices.frames) > 17) == bool(continued)
        for frames in choices.frames:
            assert plan_video(config, embedder, VideoRequest(frames=frames)).frames == frames
    assert choices.most_steps >= choices.default.steps
    assert length_label(17, 8.0) == "17 frames, 2.1 s"


def test_lengths_of_a_regen_are_whole_chunks():
    embedder, _ = regen_embedder()
    chunk = embedder.frames(2)
    bucket = {"frames": 4 * chunk, "height": 16, "width": 16, "batch_size": 2}
    choices = make_choices(tiny_run(VDIT, embedder="x", data={"buckets": [bucket]}), embedder)
    assert choices.frames == (1, chunk, 2 * chunk, 3 * chunk, 4 * chunk)


def test_a_gallery_survives_a_restart_and_damaged_files(tmp_path, capsys):
    gallery = Gallery(tmp_path / "made")
    names = [gallery.add(VIDEO, 8, {"prompt": f"{n} <b>"}).name for n in range(3)]
    again = Gallery(tmp_path / "made")
    assert [each.name for each in again.results()] == names[::-1]
    assert again.results(1)[0].settings["prompt"] == "2 <b>"
    assert again.results(1)[0].command == ""
    picture = thumbnail(again.result(names[0]), tmp_path / "pictures")
    assert read_video(picture)[0].shape == (1, 16, 16, 3)
    (tmp_path / "made" / f"{names[0]}.json").write_text("{")
    (tmp_path / "made" / f"{names[1]}.mp4").unlink()
    (tmp_path / "made" / f"{names[2]}.mp4").write_bytes(b"")
    grey = thumbnail(again.result(names[2]), tmp_path / "pictures")
    assert np.ptp(read_video(grey)[0]) == 0
    assert [each.name for each in again.results()] == names[2:]
    assert names[0] in capsys.readouterr().err


def test_names_from_a_browser_stay_in_the_folder(tmp_path):
    (tmp_path / "secret.json").write_text('{"prompt": "x"}')
    (tmp_path / "secret.mp4").write_bytes(b"")
    for name in ("../secret", "secret", "", "/etc/passwd"):
        with pytest.raises(UserError, match="the gallery has no result"):
            Gallery(tmp_path / "made").result(name)


def test_what_a_killed_server_left_is_removed_after_an_hour(tmp_path):
    gallery = Gallery(tmp_path)
    kept = gallery.add(VIDEO, 8, {"prompt": "kept"})
    old, new = "20260101-000000-000000-00000000", "20260101-000000-000000-00000001"
    for name in (f"{old}.mp4", f"{new}.mp4", f".{old}.0a.tmp.mp4", "mine.mp4"):
        (tmp_path / name).write_bytes(b"x")
        if new not in name:
            os.utime(tmp_path / name, (1, 1))
    gallery.remove_unfinished()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"{new}.mp4", "mine.mp4", f"{kept.name}.mp4", f"{kept.name}.json"}


def test_a_gallery_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(UserError, match="--gallery="):
            Gallery(folder)


def test_principal_components_are_ordered_and_their_signs_fixed():
    rng = np.random.default_rng(0)
    wide, narrow = rng.standard_normal((2, 4, 5, 6))
    axes = np.array([[0.0, 3.0, 0.0, 4.0], [1.0, 0.0, 0.0, 0.0]]) / [[5.0], [1.0]]
    latents = 5 * wide[..., None] * axes[0] + narrow[..., None] * axes[1]
    found = principal_components(latents)
    assert np.corrcoef(found[..., 0].ravel(), wide.ravel())[0, 1] > 0.999
    assert np.corrcoef(found[..., 1].ravel(), narrow.ravel())[0, 1] > 0.99
    assert np.abs(found[..., 2]).max() < 1e-5
    assert not principal_components(latents[..., :1])[..., 1:].any()
    colours = to_colours(found)
    assert colours[..., 0].min() == 0 and colours[..., 0].max() == 255
    assert (to_colours(np.ones((2, 2, 2, 1))) == 128).all()


@pytest.mark.parametrize("kind", ["vidvae", "regen"])
def test_latent_frames_share_out_the_frames(kind):
    if kind == "vidvae":
        embedder, t = VidVAEEmbedder(model=VidVAE(tiny_vidvae())), 4
    else:
        (embedder, _), t = regen_embedder(), 5  # two chunks and an image
    total = embedder.frames(t)
    video = np.arange(total, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    latents = np.random.default_rng(0).standard_normal((t, 2, 3, embedder.latent_channels))
    view = LatentView(embedder=embedder, latents=latents, video=video, title="x")
    units = [view.frames(place) for place in range(0, t, embedder.unit)]
    assert [n for first, end in units for n in range(first, end)] == list(range(total))
    assert len({view.frames(0), view.frames(embedder.unit - 1)}) == 1
    assert {*np.unique(view.decoded(0))} - {128} == {*range(*view.frames(0))}
    for name in view.views:
        picture = view.picture(t - 1, name)
        assert picture.dtype == np.uint8 and picture.shape[0] * 3 == picture.shape[1] * 2
    assert view.strip().shape[2] == 3
    assert "Latent frame 1 of" in view.caption(1)
    assert ("(motion)" in view.caption(1)) == (kind == "regen")
    # A channel is grey, and higher is brighter.
    t, h, w = np.unravel_index(latents[..., 1].argmax(), latents.shape[:3])
    picture = view.picture(t, "channel 1")
    side = picture.shape[0] // 2
    assert (picture == picture[..., :1]).all() and (picture[h * side, w * side] == 255).all()
    with pytest.raises(UserError, match="view='channel 99'"):
        view.picture(0, "channel 99")
    assert view.picture(0, PRINCIPAL).shape == view.picture(0, "channel 0").shape


@pytest.fixture(scope="module")
def studio(tiny_runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    request = DemoRequest(
        model=str(tiny_runs / "vdit"),
        gallery=str(folder / "made"),
        max_seconds=0.5,
        max_side=24,
        queue_size=2,
    )
    return make_studio(request, folder)


def test_a_sample_has_the_bytes_of_the_command(studio, tiny_runs, tmp_path):
    reports = []
    request = VideoRequest(steps=3, sampler="dpm++2m", negative_prompt="blue")
    result = studio.sample("a red circle", 7, request, ME, lambda *args: reports.append(args))
    out = tmp_path / "command.mp4"
    sample_files(
        SampleRequest(
            model=str(tiny_runs / "vdit"),
            prompt="a red circle",
            seed=7,
            steps=3,
            sampler="dpm++2m",
            negative_prompt="blue",
            out=str(out),
        )
    )
    assert result.video.read_bytes() == out.read_bytes()
    assert [args for args in reports if args[2] == "Sampling"] == [
        (step, 3, "Sampling") for step in (1, 2, 3)
    ]
    assert any(text.startswith("Compiling for this size, about ") for *_, text in reports)
    settings = json.loads(result.video.with_suffix(".json").read_text())
    assert (settings["seed"], settings["steps"], settings["prompt"]) == (7, 3, "a red circle")
    assert settings["compile_s"] > 0
    assert "--prompt='a red circle' --seed=7 --steps=3" in result.command
    assert f"--model={tiny_runs / 'vdit'}" in result.command
    again = tmp_path / "again.mp4"  # what the page shows to be typed
    words = shlex.split(result.command.replace("video.mp4", str(again)))[2:]
    flags = dict(word.removeprefix("--").split("=", 1) for word in words)
    kinds = {"seed": int, "steps": int, "frames": int, "guidance_scale": float}
    sample_files(SampleRequest(**{k: kinds.get(k, str)(v) for k, v in flags.items()}))
    assert again.read_bytes() == out.read_bytes()
    view = studio.latents("visitor")
    assert len(view.latents) == 2 and len(view.video) == 5
    # A second one of the same program is not announced as compiling.
    reports.clear()
    studio.sample("a red circle", 8, request, ME, lambda *args: reports.append(args))
    assert not any("Compiling" in text for *_, text in reports)
    studio.leave("visitor", ("sample",))
    assert studio.latents("visitor") is None
    studio.admit(ME)


def test_a_sample_stops_at_the_next_step(studio):
    before = len(studio.gallery.results())

    def stop(done, total, text):
        if (done, text) == (2, "Sampling"):
            studio.stop(ME)

    with pytest.raises(Interrupted):
        studio.sample("a red circle", 7, VideoRequest(steps=50), ME, stop)
    assert len(studio.gallery.results()) == before
    with pytest.raises(Interrupted):  # what waits is stopped, too
        studio.sample("a red circle", 7, VideoRequest(), ME, quiet)
    studio.admit(ME)


def test_only_so_many_wait(studio):
    studio.leave(ME.visitor, [ME.tab])
    owners = [Owner(f"waiting {n}", "sample") for n in range(3)]
    for owner in (*owners[:2], owners[0]):  # who waits already may ask again
        studio.admit(owner)
    with pytest.raises(UserError, match="Too many requests are waiting"):
        studio.admit(owners[2])
    studio.leave("waiting 0", ("sample",))
    studio.admit(owners[2])
    for owner in owners[1:]:
        studio.sample("a red circle", 0, VideoRequest(), owner, quiet)  # waits no longer
    for owner in owners:
        studio.admit(owner)
        studio.leave(owner.visitor, ("sample",))


def test_visitors_take_turns(studio):
    inside, most, lock = [], [], threading.Lock()

    def report(done, total, text):
        with lock:
            inside.append(threading.get_ident())
            most.append(text)

    owners = [Owner(f"visitor {n}", "sample") for n in range(3)]
    threads = [
        threading.Thread(
            target=studio.sample, args=("a red circle", n, VideoRequest(), owner, report)
        )
        for n, owner in enumerate(owners)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The reports of one visitor are not mixed with those of another.
    changes = sum(a != b for a, b in zip(inside, inside[1:]))
    assert changes == 2 and len(set(inside)) == 3
    assert len({studio.latents(owner.visitor).latents.sum() for owner in owners}) == 3


def test_a_reconstruction_is_that_of_the_embedder(studio, tmp_path):
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (12, 20, 36, 3)).astype(np.uint8)
    write_video(tmp_path / "clip.mp4", video, 8)
    owner = Owner("visitor", "reconstruct")
    made = studio.reconstruct(str(tmp_path / "clip.mp4"), owner, quiet, start_s=0.25)
    # At most half a second of it, and 24 pixels.
    assert made.facts["frames"] == "4 at 8 per second, 0.5 s of 1.5 s"
    assert made.facts["size"] == "13x24 (height x width), made smaller from 20x36"
    read, _ = read_video(str(tmp_path / "clip.mp4"), start_s=0.25, frames=4, cover=(13, 24))
    view = studio.latents("visitor")
    np.testing.assert_array_equal(view.video, studio.reconstructor(read))
    assert made.facts["latents"].startswith("2 x 4 x 6, 4 channels; ")
    shown, _ = read_video(made.video)
    assert shown.shape == (4, 13 * 19 + 1, 50 * 19, 3)  # the codec needs an even height
    assert 0 < made.figures["psnr_db"] < 60
    again = studio.reconstruct(str(tmp_path / "clip.mp4"), owner, quiet)
    assert again.video.exists() and not made.video.exists()


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"this is no video", {}, r"^cannot read notes\.mp4: "),
        (b"", {}, r"^cannot read notes\.mp4: the file is empty"),
        (None, {"start_s": 9.0}, r"^the start, 9 s, must be .* end of notes\.mp4, which lasts"),
        (None, {"seconds": 0.0}, "^0 seconds of video are none"),
        (None, {"speed": 0.5}, "^speed=0.5 is for a REGEN"),
        (None, {"steps": 4}, "^steps=4 is for a REGEN"),
    ],
)
def test_what_cannot_be_reconstructed_is_said(studio, tmp_path, content, options, message):
    path = tmp_path / "notes.mp4"
    write_video(path, VIDEO, 8) if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        studio.reconstruct(str(path), Owner("v", "reconstruct"), quiet, **options)


@pytest.mark.slow
def test_a_regen_alone_reconstructs_in_slow_motion(tmp_path):
    model = write_regen_run(tmp_path / "regen")
    request = DemoRequest(model=str(model), gallery=str(tmp_path / "made"))
    studio = make_studio(request, tmp_path)
    assert studio.model is None and studio.decode_steps == 1
    assert not (tmp_path / "made").exists()
    rng = np.random.default_rng(0)
    write_video(tmp_path / "a.mp4", rng.integers(0, 256, (10, 16, 16, 3)).astype(np.uint8), 8)
    owner = Owner("v", "reconstruct")
    slow = studio.reconstruct(str(tmp_path / "a.mp4"), owner, quiet, speed=0.5, steps=2)
    assert read_video(slow.video)[0].shape[0] == 19
    view = studio.latents("v")
    assert (len(view.latents), len(view.video)) == (4, 10)


def test_mistakes_are_said_before_anything_is_served(tiny_runs, tmp_path, monkeypatch):
    embedder, gallery = str(tiny_runs / "vidvae"), str(tmp_path / "made")
    for request, message in (
        ({"model": str(tmp_path / "nowhere")}, "there is no folder"),
        ({"model": str(tmp_path)}, str(tmp_path)),
        ({"model": embedder, "lora": "x"}, "--lora is for a text-to-video model"),
        ({"model": str(tiny_runs / "vdit"), "embedder": "nowhere"}, "nowhere"),
    ):
        with (
            pytest.raises(UserError, match=message),
            demo_server(DemoRequest(port=0, gallery=gallery, **request), tmp_path),
        ):
            pass
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(UserError, match=f"--port={port} cannot be served .*; give another"),
            demo_server(DemoRequest(model=embedder, port=port), tmp_path),
        ):
            pass
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    with (
        pytest.raises(UserError, match=r'pip install -e "\.\[demo\]"'),
        demo_server(DemoRequest(model=embedder), tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "give --model"),
        ({"model": "x", "port": 70000}, "--port=70000"),
        ({"model": "x", "max_seconds": 0.0}, "--max_seconds=0.0 must be above 0"),
        ({"model": "x", "max_seconds": float("nan")}, "--max_seconds=nan must be above 0"),
    ],
)
def test_flags_out_of_range_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        DemoRequest(**flags)
