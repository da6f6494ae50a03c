"""The source of a configuration: by its kind, by the contents of its folder, by old keys."""

import json

import pytest

from xgen_jax.data.config import KINDS, OLD_KEYS, as_written, nest_source
from xgen_jax.errors import UserError

# The whole of `data` but its buckets, as config.json had it.
FLAT = {
    "source": "synthetic",
    "path": None,
    "split": "train",
    "num_clips": 100,
    "style": "filled",
    "seed": 0,
    "fps": None,
    "stride": 1,
    "require_captions": True,
    "flip": False,
    "fit": False,
}


@pytest.fixture
def folders(tmp_path):
    """Folders videos/, latents/ and started/, whose encoding has not ended; and a missing one."""
    for name in ("videos", "latents", "started", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "latents" / "manifest.json").write_text(json.dumps({"shard_size": 4}))
    (tmp_path / "started" / "settings.json").write_text(json.dumps({"shard_size": 4}))
    # Files of those names that this library did not write.
    (tmp_path / "videos" / "manifest.json").write_text(json.dumps({"videos": 3}))
    (tmp_path / "other" / "settings.json").write_text("not JSON")
    return tmp_path


def source(data):
    return nest_source(data)["source"]


def test_what_older_releases_wrote_is_nested():
    nested = nest_source(FLAT)
    assert nested == {
        "source": {"kind": "synthetic", "split": "train", "num_clips": 100, "style": "filled"},
        "seed": 0,
        "fit": False,
    }
    assert FLAT["num_clips"] == 100 and nest_source(nested) == nested
    folder = {**FLAT, "source": "video_folder", "path": "v", "fps": 8.0, "flip": True}
    assert source(folder) == {
        "kind": "video_folder",
        "path": "v",
        "split": "train",
        "fps": 8.0,
        "stride": 1,
        "require_captions": True,
        "flip": True,
    }
    latents = {**FLAT, "source": "latents", "path": "l", "require_captions": False}
    assert source(latents) == {"kind": "latents", "path": "l", "split": "train"}
    assert {"source", "seed", "fit"} | set(OLD_KEYS) == FLAT.keys()


def test_a_folder_that_was_written_before_holds_nothing_out():
    old = nest_source({**FLAT, "source": "video_folder", "path": "v"})
    assert as_written(old)["source"]["held_out_fraction"] == 0.0
    assert as_written(old)["source"]["seconds_per_clip"] is None
    new = {"source": {**old["source"], "held_out_fraction": 0.2, "seconds_per_clip": 3.0}}
    assert as_written(new) == new
    shapes = nest_source(FLAT)
    assert as_written(shapes) == shapes


@pytest.mark.parametrize(
    "name,kind",
    [
        ("videos", "video_folder"),
        ("latents", "latents"),
        ("started", "latents"),
        ("other", "video_folder"),
        ("nowhere", "video_folder"),
    ],
)
def test_a_path_decides_the_kind(folders, name, kind):
    """A path is enough; older releases trained on moving shapes without a warning."""
    path = str(folders / name)
    assert source({**FLAT, "path": path})["kind"] == kind
    assert source({"path": path}) == {"kind": kind, "path": path}
    assert source({"source": {"kind": "synthetic", "path": path}})["kind"] == kind
    both = {"source": {"kind": "synthetic", "style": "outline", "path": None}, "path": path}
    assert source(both) == {"kind": kind, "path": path}


def test_a_kind_that_is_named_is_not_looked_up(folders):
    """A run can be read without its data, or with other data in their place."""
    for kind in ("video_folder", "latents"):
        for name in ("videos", "latents", "nowhere"):
            assert source({"source": {"kind": kind, "path": str(folders / name)}})["kind"] == kind


def test_keys_of_other_kinds_may_be_listed():
    """Configuration files list them, so that flags can set them."""
    every = {"path": None, "fps": None, "require_captions": False, "stride": 1, "flip": False}
    shapes = {"split": "train", "num_clips": 3, "style": "outline"}
    assert source({"source": {"kind": "synthetic", **shapes, **every}}) == {
        "kind": "synthetic",
        **shapes,
    }
    assert source({"source": {"kind": "latents", **shapes, **every}}) == {
        "kind": "latents",
        "path": None,
        "split": "train",
    }


@pytest.mark.parametrize("wrong", [{"flip": True}, {"stride": 2}, {"fps": 8.0}])
def test_what_cannot_be_done_is_refused(folders, wrong):
    path = str(folders / "latents")
    for data in (
        {**FLAT, "source": "latents", "path": path, **wrong},
        {"source": {"kind": "synthetic", "path": path, **wrong}},
    ):
        with pytest.raises(UserError, match="cannot be changed once clips are latents; give --"):
            nest_source(data)
    with pytest.raises(UserError, match="is for videos; give --config.data.source.path=FOLDER"):
        nest_source({"source": {"kind": "synthetic", **wrong}})
    nest_source({**FLAT, **wrong})  # was looked over in older releases, whose runs are read


def test_an_old_name_is_said_and_not_given_twice():
    said = []
    nested = nest_source({"source": {"kind": "latents", "path": None}, "path": "x"}, said.append)
    assert nested["source"] == {"kind": "latents", "path": "x"}
    assert said == ["data.path is called data.source.path now"]
    nest_source({"source": {"kind": "latents", "path": "x"}, "path": "x"})
    with pytest.raises(UserError, match="data.path is called data.source.path now, and both"):
        nest_source({"source": {"kind": "latents", "path": "x"}, "path": "y"})


@pytest.mark.parametrize("values", ["video_foldr", {"kind": "video_foldr"}])
def test_an_unknown_kind_is_named_with_the_nearest(values):
    with pytest.raises(
        UserError,
        match=r"data.source.kind='video_foldr' is not known \(did you mean 'video_folder'\?\)",
    ):
        nest_source({"source": values})


@pytest.mark.parametrize("data", [{}, {"source": 3}, {"seed": 1}])
def test_mistakes_of_another_kind_are_left_to_the_builder(data):
    assert nest_source(data) == data


def test_kinds_are_named_by_their_classes():
    assert all(kind().kind == name for name, kind in KINDS.items())
