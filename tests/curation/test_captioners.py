"""Captions by a function, by the videos' files, and none."""

import numpy as np
import pytest
from chat_server import clip

from xgen_jax.curation.captions import (
    CaptionRequest,
    FunctionCaptioner,
    make_captioner,
)
from xgen_jax.curation.config import (
    FileCaptions,
    FunctionCaptions,
    NoCaptions,
)
from xgen_jax.errors import UserError

KEY = "sk-a-secret-2718281828"


MODULE = """
def describe(frames, times_s):
    if frames[0, 0, 0, 1] == 12:
        raise RuntimeError("no memory for KEY")
    if frames[0, 0, 0, 1] == 20:
        return None
    return f"Caption: {len(frames)} frames of brightness {frames.max()} at {times_s[0]} s."

def narrow(frames):
    return ""
"""


def test_captions_by_a_function(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_CAPTION_KEY", KEY)
    (tmp_path / "my_captions.py").write_text(MODULE.replace("KEY", KEY))
    monkeypatch.syspath_prepend(tmp_path)
    options = {"key_variable": "TEST_CAPTION_KEY"}
    captioner = make_captioner(FunctionCaptions(function="my_captions:describe", **options))
    assert isinstance(captioner, FunctionCaptioner) and captioner.needs_frames
    results = list(captioner.caption(map(clip, range(3))))
    assert [result.clip_id for result in results] == ["clip-0", "clip-1", "clip-2"]
    first, raising, nothing = results
    assert first.caption == "2 frames of brightness 4 at 0.5 s." and first.stripped == "preamble"
    assert first.model == "my_captions:describe"
    assert raising.reason == "RuntimeError: no memory for [key]"
    assert nothing.reason == "my_captions:describe returned NoneType, not str"
    for name, message in {
        "my_captions:absent": "cannot be imported",
        "no_such_module:f": "cannot be imported",
        "my_captions:narrow": r"must take \(frames, times_s\)",
    }.items():
        with pytest.raises(UserError, match=message):
            make_captioner(FunctionCaptions(function=name, **options))


def test_captions_of_the_videos_files():
    captions = {"a/b.mp4": ("A cat sits.", "A cat, sitting."), "c.mp4": ("A\u202e dog.",)}
    captioner = make_captioner(FileCaptions(), captions=captions)
    assert not captioner.needs_frames

    def results(names):
        none = np.zeros((0, 0, 0, 3), np.uint8)
        requests = [CaptionRequest(f"{name}-{n}", none, (), name) for n, name in enumerate(names)]
        return list(captioner.caption(requests))

    of_both = {result.caption for result in results(["a/b.mp4"] * 32)}
    assert of_both == set(captions["a/b.mp4"])
    assert results(["a/b.mp4"] * 4) == results(["a/b.mp4"] * 4)
    dog, missing = results(["c.mp4", "absent.mp4"])
    assert (dog.caption, dog.stripped) == ("A dog.", "characters")
    assert (missing.caption, missing.reason) == (None, "video without a caption")


def test_no_captions():
    assert make_captioner(NoCaptions()) is None
