"""Prompts to files: existing videos stay, an interrupted run continues, mistakes are named."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from xgen_jax.commands import sample as command
from xgen_jax.commands.sample import (
    SampleRequest,
    make_batches,
    parse_size,
    read_prompts,
    sample_files,
)
from xgen_jax.data.video import read_video
from xgen_jax.data.video_writer import VideoWriter, write_video
from xgen_jax.errors import UserError
from xgen_jax.files import locked
from xgen_jax.inference.text_to_video import TextToVideo, load_text_to_video


def sample(**request):
    return sample_files(SampleRequest(**request))


PROMPTS = ["a red circle moving left", "a blue square moving up", "a green triangle moving down"]


def test_a_file_of_prompts_continues_where_it_stopped(tiny_runs, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    arguments = {"model": str(tiny_runs / "vdit"), "prompts_file": str(prompts)}
    result = sample(**arguments, out=str(tmp_path / "whole"))
    assert (result["generated"], result["kept"]) == (3, 0)
    sample(**arguments, out=str(tmp_path / "cut"))
    (tmp_path / "cut" / "00002.mp4").unlink()
    result = sample(**arguments, out=str(tmp_path / "cut"))
    assert (result["generated"], result["kept"]) == (1, 2)
    for name in ("00001.mp4", "00002.mp4", "00003.mp4"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_a_line_gives_the_video_of_its_prompt_and_seed(tiny_runs, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    arguments = {"model": str(tiny_runs / "vdit"), "steps": 1}
    sample(
        **arguments,
        prompts_file=str(tmp_path / "prompts.txt"),
        out=str(tmp_path / "out"),
        seed=5,
    )
    sample(**arguments, prompt=PROMPTS[2], out=str(tmp_path / "alone.mp4"), seed=7)
    alone, line = (
        read_video(tmp_path / name)[0].astype(int) for name in ("alone.mp4", "out/00003.mp4")
    )
    assert np.abs(alone - line).max() <= 2  # a step of rounding, and the codec's


def test_files_are_large_enough_to_see(tiny_runs, tmp_path):
    arguments = {"model": str(tiny_runs / "vdit"), "prompt": PROMPTS[0], "steps": 1}
    sides = {}
    for name, scale in (("own.gif", 1), ("default.gif", None), ("three.gif", 3)):
        result = sample(**arguments, out=str(tmp_path / name), scale=scale)
        video = read_video(tmp_path / name)[0]
        assert result["shape"] == [5, 16, 16, 3]
        sides[name] = (*video.shape[1:3], result["scale"])
    assert sides == {
        "own.gif": (16, 16, 1),
        "default.gif": (256, 256, 16),
        "three.gif": (48, 48, 3),
    }
    with pytest.raises(UserError, match="scale=0 must be 1 or more"):
        sample(**arguments, out=str(tmp_path / "x.mp4"), scale=0)


def test_a_second_process_does_not_sample_into_the_folder(tiny_runs, tmp_path):
    (tmp_path / "prompts.txt").write_text(PROMPTS[0])
    with locked(tmp_path / "out", "samples into"):
        unfinished = tmp_path / "out" / ".00001.0123456789ab.tmp.mp4"
        unfinished.write_bytes(b"of the other process")
        with pytest.raises(UserError, match="another process samples into .*/out"):
            sample(
                model=str(tiny_runs / "vdit"),
                prompts_file=str(tmp_path / "prompts.txt"),
                out=str(tmp_path / "out"),
            )
        assert unfinished.exists()


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_bytes(tiny_runs, tmp_path, monkeypatch):
    lines = [f"{prompt} {number}" for number in range(3) for prompt in PROMPTS]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    arguments = {
        "model": str(tiny_runs / "vdit"),
        "prompts_file": str(tmp_path / "prompts.txt"),
    }
    arguments |= {"steps": 1, "batch_size": 4, "frames": 9}
    assert sample(**arguments, out=str(tmp_path / "whole"))["generated"] == 9
    written, write = [], VideoWriter.write

    def interrupted(self, video):
        written.append(1)
        if len(written) > 4 + 2:  # within the second batch
            raise KeyboardInterrupt
        write(self, video)

    with monkeypatch.context() as patch:
        patch.setattr(VideoWriter, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sample(**arguments, out=str(tmp_path / "cut"))
    assert sorted(path.name for path in (tmp_path / "cut").glob("*.mp4")) == [
        f"{n:05d}.mp4" for n in range(1, 5)
    ]
    (tmp_path / "cut" / "00002.mp4").unlink()  # of the row of lines 6 and 10
    (tmp_path / "cut" / ".00006.0123456789ab.tmp.mp4").write_bytes(b"left by a kill")
    assert sample(**arguments, out=str(tmp_path / "cut"))["generated"] == 6
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "cut" / path.name).read_bytes() == path.read_bytes(), path.name
    # Finished videos are kept, and not mixed with videos of other settings.
    assert sample(**arguments, out=str(tmp_path / "cut"))["generated"] == 0
    with pytest.raises(
        UserError,
        match="holds videos with other settings .*\n  guidance_scale: 3.0 -> 4.0\n  seed: 0 -> 1\n",
    ):
        sample(**arguments, out=str(tmp_path / "cut"), seed=1, guidance_scale=4.0)
    (tmp_path / "prompts.txt").write_text("\n".join(["another", *lines[1:], "one more"]))
    with pytest.raises(UserError, match=r"line 1: 'a red circle moving left 0' -> 'another'"):
        sample(**arguments, out=str(tmp_path / "cut"))
    (tmp_path / "prompts.txt").write_text("\n".join([*lines, "one more"]))
    assert sample(**arguments, out=str(tmp_path / "cut"))["generated"] == 1
    assert len(json.loads((tmp_path / "cut" / "samples.json").read_text())["prompts"]) == 10


def recorded(folder):
    return json.loads((folder / "samples.json").read_text())["prompts"]


@pytest.mark.slow
def test_only_videos_of_the_same_prompts_settings_and_model_are_kept(
    tiny_runs, tmp_path, monkeypatch
):
    file, out = tmp_path / "prompts.txt", tmp_path / "out"
    arguments = {"model": str(tiny_runs / "vdit"), "prompts_file": str(file), "out": str(out)}
    arguments |= {"steps": 1, "batch_size": 1}

    def run(*prompts, **changes):
        file.write_text("\n".join(prompts))
        return sample(**arguments, **changes)["generated"]

    assert run(*PROMPTS[:3]) == 3
    assert run(PROMPTS[0]) == 0
    # A file with fewer prompts does not forget those of the other videos.
    assert recorded(out) == list(PROMPTS[:3])
    with pytest.raises(UserError, match="line 2: '.*' -> 'another'"):
        run(PROMPTS[0], "another", PROMPTS[2])
    # What --overwrite has begun to replace is not mixed with what it had not replaced yet.
    with monkeypatch.context() as patch:
        patch.setattr(command, "write_videos", lambda *arguments: None)
        run(*PROMPTS[:2], seed=1, overwrite=True)
    assert [path.name for path in out.glob("*.mp4")] == ["00003.mp4"]
    with pytest.raises(UserError, match=r"line 3: '\(not recorded\)' -> "):
        run(*PROMPTS[:3], seed=1)
    assert run(*PROMPTS[:3], seed=1, overwrite=True) == 3
    assert run(*PROMPTS[:3], seed=1) == 0
    with monkeypatch.context() as patch:
        patch.setattr(TextToVideo, "fingerprint", "another")
        with pytest.raises(UserError, match="model: '[0-9a-f]{16}' -> 'another'"):
            run(*PROMPTS[:3], seed=1)
    (out / "samples.json").unlink()
    with pytest.raises(UserError, match="without samples.json, of no known settings"):
        run(*PROMPTS[:3], seed=1)


def test_the_fingerprint_of_a_model_holds_its_parameters(tiny_runs):
    model = load_text_to_video(tiny_runs / "vdit")
    assert model.fingerprint == load_text_to_video(tiny_runs / "vdit").fingerprint
    for name in model.networks.params:
        changed = jax.tree.map(lambda leaf: leaf + 1, model.networks.params[name])
        params = {**model.networks.params, name: changed}
        networks = dataclasses.replace(model.networks, params=params)
        assert dataclasses.replace(model, networks=networks).fingerprint != model.fingerprint


@pytest.mark.slow
def test_a_folder_of_an_earlier_version_continues(tiny_runs, tmp_path):
    """samples.json had other names of keys."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:2]))
    arguments = {
        "model": str(tiny_runs / "vdit"),
        "prompts_file": str(tmp_path / "prompts.txt"),
        "out": str(tmp_path / "out"),
        "steps": 1,
    }
    assert sample(**arguments)["generated"] == 2
    file = tmp_path / "out" / "samples.json"
    written = json.loads(file.read_text())
    old = {**written["settings"]}
    old["piece_frames"] = old.pop("segment_frames")
    file.write_text(json.dumps({"drawn": old, "prompts": written["prompts"]}))
    (tmp_path / "out" / "00002.mp4").unlink()
    result = sample(**arguments)
    assert (result["generated"], result["kept"]) == (1, 1)
    assert json.loads(file.read_text()) == written
    old["piece_frames"] = 9
    file.write_text(json.dumps({"drawn": old, "prompts": written["prompts"]}))
    with pytest.raises(UserError, match="segment_frames: 9 -> 5"):
        sample(**arguments)
    file.write_text("{}")
    with pytest.raises(UserError, match="has no settings and prompts; choose another --out"):
        sample(**arguments)


@pytest.mark.parametrize("lines", [range(10), [1, 2, 5, 9], [0, 4, 8], []])
def test_a_line_is_always_the_same_row(lines):
    batches = make_batches(list(lines), 4)
    assert sorted(line for batch in batches for line in batch if line is not None) == list(lines)
    for batch in batches:
        assert len(batch) == 4
        assert all(line is None or line % 4 == row for row, line in enumerate(batch))
    assert len(batches) == max(
        (sum(line % 4 == row for line in lines) for row in range(4)), default=0
    )


@pytest.mark.slow
def test_a_video_file_as_condition(tiny_runs, tmp_path, capsys):
    frames = np.random.default_rng(0).integers(0, 256, (9, 20, 20, 3), np.uint8)
    write_video(tmp_path / "start.mp4", frames, fps=8)
    arguments = {
        "model": str(tiny_runs / "vdit"),
        "prompt": PROMPTS[0],
        "steps": 1,
    }
    sample(**arguments, out=str(tmp_path / "with.mp4"), condition_video=str(tmp_path / "start.mp4"))
    assert "this may not come out well: a condition is given" in capsys.readouterr().err
    sample(**arguments, out=str(tmp_path / "without.mp4"))
    assert (tmp_path / "with.mp4").read_bytes() != (tmp_path / "without.mp4").read_bytes()


def test_an_existing_file_is_replaced_only_with_overwrite(tiny_runs, tmp_path):
    out = tmp_path / "circle.mp4"
    arguments = {
        "model": str(tiny_runs / "vdit"),
        "prompt": PROMPTS[0],
        "out": str(out),
    }
    assert sample(**arguments)["shape"] == [5, 16, 16, 3]
    with pytest.raises(UserError, match="exists; choose another --out"):
        sample(**arguments)
    before = out.read_bytes()
    sample(**arguments, overwrite=True, seed=7)
    assert out.read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": None, "prompt": "x", "out": "x.mp4"}, "give --model"),
        (
            {"model": "m", "prompt": "x", "out": "x.mp4", "seed": 2**32},
            "seed=4294967296",
        ),
        (
            {"model": "m", "out": "x.mp4"},
            "one of --prompt and --prompts_file",
        ),
        (
            {"model": "m", "prompt": "x", "prompts_file": "y", "out": "x.mp4"},
            "one of --prompt and --prompts_file",
        ),
        ({"model": "m", "prompt": "x", "out": "x.mov"}, "must end with"),
        (
            {"model": "m", "prompt": "x", "out": "x.mp4"},
            "there is no folder m",
        ),
    ],
)
def test_mistakes_are_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        sample(**arguments)


def test_prompts_file_mistakes(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path / "missing.txt")
    bad = tmp_path / "prompts.txt"
    bad.write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8"):
        read_prompts(bad)
    bad.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")  # as Notepad saves it
    assert read_prompts(bad) == ["one", "two"]
    bad.write_text("one\n\nthree\n")
    with pytest.raises(UserError, match="no prompt in line 2"):
        read_prompts(bad)


def test_sizes():
    assert parse_size("32x48") == (32, 48)
    for wrong in ("32", "x", "0x3", "ax3", "1x2x3"):
        with pytest.raises(UserError, match="HEIGHTxWIDTH"):
            parse_size(wrong)
