"""The moving-shapes dataset: pure, inside its frame, at any size, in few enough bytes, with a fair
held-out set."""

import itertools
import subprocess
import sys
import time

import numpy as np
import pytest

from xgen_jax.data.sources.synthetic import (
    ATTRIBUTES,
    BACKGROUNDS,
    EXTENTS,
    PALETTE,
    PHRASINGS,
    Scene,
    SyntheticSource,
    caption,
    held_out_combinations,
    held_out_prompts,
    is_held_out,
    parse_caption,
    render,
    sample_scene,
)
from xgen_jax.errors import UserError

EVERY = [dict(zip(ATTRIBUTES, values)) for values in itertools.product(*ATTRIBUTES.values())]


def test_a_clip_is_a_function_of_seed_and_index():
    first, second = SyntheticSource(seed=5), SyntheticSource(seed=5)
    second.read(3, np.random.default_rng(0), 9, 32, 32)
    for index in (0, 1, 999_999):
        clip = first.read(index, np.random.default_rng(1), 9, 32, 32)
        again = second.read(index, np.random.default_rng(2), 9, 32, 32)
        np.testing.assert_array_equal(clip["video"], again["video"])
        assert clip["caption"] == again["caption"]
    assert first.scene(0) != SyntheticSource(seed=6).scene(0)
    assert first.scene(0) != first.scene(1)


def test_a_clip_is_that_of_this_version():
    # Fails when what a seed shows has changed: then raise VERSION and write the new first clip
    # here.
    scene, text = SyntheticSource(seed=0).scene(0)
    assert text == "the small circle is cyan and moves right on gray"
    np.testing.assert_allclose(
        (scene.x, scene.y, scene.travel),
        (0.3369623291587553, 0.31111308723558995, 0.3305041993045124),
        atol=1e-12,
    )


@pytest.mark.parametrize(
    "frames, height, width",
    [(1, 32, 32), (9, 32, 32), (17, 64, 64), (5, 24, 40), (2, 70, 33), (3, 1, 2)],
)
def test_any_length_and_size(frames, height, width):
    video = SyntheticSource().read(0, None, frames, height, width)["video"]
    assert video.shape == (frames, height, width, 3)
    assert video.dtype == np.uint8


@pytest.mark.parametrize("height, width", [(32, 32), (24, 48), (48, 24)])
def test_the_shape_stays_inside_and_moves_where_it_should(height, width):
    rng = np.random.default_rng(0)
    for attributes in EVERY[::5]:
        scene = sample_scene(rng, attributes)
        video = render(scene, 5, height, width)
        ground = np.array(BACKGROUNDS[scene.background])
        shown = np.abs(video.astype(int) - ground).sum(-1)
        # The margin leaves at most half of an outermost pixel to the shape; cut off, it would fill
        # them.
        edges = np.concatenate([shown[:, 0], shown[:, -1], shown[:, :, 0], shown[:, :, -1]], axis=1)
        assert edges.max() <= 0.55 * np.abs(np.array(PALETTE[scene.color]) - ground).sum()
        rows, columns = (
            shown.sum(axis=axis) @ np.arange(n) / shown.sum(axis=(1, 2))
            for axis, n in ((2, height), (1, width))
        )
        way = {"x": (columns[-1] - columns[0]) / width, "y": (rows[-1] - rows[0]) / height}
        axis, sign = {"left": "x-", "right": "x+", "up": "y-", "down": "y+"}[scene.direction]
        along = way.pop(axis) * (1 if sign == "+" else -1)
        space = 1 - EXTENTS[scene.size] - 0.04
        assert 0.54 < along / space < 0.81
        assert abs(way.popitem()[1]) < 0.01


def test_motion_does_not_depend_on_the_number_of_frames():
    scene = sample_scene(np.random.default_rng(0))
    long, short = render(scene, 9, 32, 32), render(scene, 3, 32, 32)
    np.testing.assert_array_equal(long[::4], short)
    np.testing.assert_array_equal(long[:1], render(scene, 1, 32, 32))


def test_anti_aliasing_keeps_the_area():
    for shape, fill in {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5}.items():
        scene = sample_scene(
            np.random.default_rng(1),
            {"shape": shape, "color": "red", "background": "black", "size": "large"},
        )
        red = render(scene, 4, 32, 32)[..., 0].astype(float)
        area = ((red - 16) / (225 - 16)).sum(axis=(1, 2))
        np.testing.assert_allclose(area, fill * (EXTENTS["large"] * 32) ** 2, rtol=0.02)


def test_a_clip_is_rendered_fast():
    source = SyntheticSource()
    source.read(0, None, 9, 32, 32)
    start = time.perf_counter()
    for index in range(50):
        source.read(index, None, 9, 32, 32)
    assert (time.perf_counter() - start) / 50 < 5e-3  # about 0.25 ms on a quiet laptop core


def test_fixed_attributes_do_not_change_the_rest():
    free = sample_scene(np.random.default_rng(3))
    fixed = sample_scene(np.random.default_rng(3), {"color": "cyan", "shape": "square"})
    assert fixed.color == "cyan"
    assert fixed.shape == "square"
    assert (fixed.size, fixed.x, fixed.y, fixed.travel) == (free.size, free.x, free.y, free.travel)


@pytest.mark.parametrize("phrasing", range(len(PHRASINGS)))
def test_captions_are_short_and_say_what_they_mean(phrasing):
    texts = set()
    for attributes in EVERY:
        for left_out in ((), ("size",), ("background",), ("size", "background")):
            named = {name: value for name, value in attributes.items() if name not in left_out}
            text = caption(named, phrasing)
            assert len(text.encode()) <= 64
            assert parse_caption(text) == named
            assert "[" not in text and "  " not in text
            texts.add(text)
    assert len(texts) == 3 * 6 * 4 * (1 + 2) * (1 + 3)


def test_captions_in_full():
    attributes = {"shape": "circle", "color": "red", "direction": "left"}
    assert caption(attributes, 0) == "a red circle moving left"
    full = {**attributes, "size": "small", "background": "black"}
    assert [caption(full, phrasing) for phrasing in range(len(PHRASINGS) + 1)] == [
        "a small red circle moving left on a black background",
        "on black, a small red circle moves left",
        "small red circle going left, black background",
        "a black scene with a small red circle moving left",
        "the small circle is red and moves left on black",
        "a small red circle moving left on a black background",
    ]
    with pytest.raises(UserError, match="lacks color"):
        caption({"shape": "circle", "direction": "left"}, 0)


def test_parse_caption_reads_whole_words():
    assert parse_caption("A Big RED circle, moving upwards. Grey background") == {
        "shape": "circle", "color": "red", "direction": "up", "size": "large", "background": "gray",
    }  # fmt: skip
    assert parse_caption("a bored leftover upset downtown") == {}


def test_held_out_combinations_leave_every_pair_in_training():
    held_out = held_out_combinations()
    training = [attributes for attributes in EVERY if not is_held_out(attributes)]
    assert len(held_out) == 54
    assert len(held_out) + len(training) == len(EVERY) == 432
    for (first, firsts), (second, seconds) in itertools.combinations(ATTRIBUTES.items(), 2):
        pairs = {(attributes[first], attributes[second]) for attributes in training}
        assert pairs == set(itertools.product(firsts, seconds))
    for name, values in ATTRIBUTES.items():
        counts = [sum(attributes[name] == value for attributes in held_out) for value in values]
        assert max(counts) - min(counts) <= 1


def test_held_out_prompts_are_distinct_and_repeatable():
    prompts = held_out_prompts(64, seed=1)
    assert prompts == held_out_prompts(64, seed=1) != held_out_prompts(64, seed=2)
    assert len({text for text, _ in prompts}) == 64
    assert len({tuple(attributes.items()) for _, attributes in prompts[:54]}) == 54
    assert all(
        is_held_out(attributes) and parse_caption(text) == attributes
        for text, attributes in prompts
    )
    assert len({text for text, _ in held_out_prompts(54 * len(PHRASINGS), 0)}) == 54 * len(
        PHRASINGS
    )
    with pytest.raises(UserError, match="0 held-out prompts are not possible; ask for 1 or more"):
        held_out_prompts(0, seed=0)


def test_held_out_prompts_of_any_number_repeat_all_of_them_equally_often():
    prompts = held_out_prompts(540 + 7, seed=3)
    assert prompts[270:540] == prompts[:270] and prompts[540:] == prompts[:7]
    assert prompts[:100] == held_out_prompts(100, seed=3)


def test_splits_show_what_they_promise():
    train, held_out = SyntheticSource(seed=1), SyntheticSource(seed=1, split="held_out")
    partial = 0
    for index in range(1500):
        scene, text = train.scene(index)
        named = parse_caption(text)
        assert not is_held_out(scene.attributes)
        assert named.items() <= scene.attributes.items()
        assert named.keys() >= {"color", "shape", "direction"}
        partial += len(named) < 5
        scene, text = held_out.scene(index)
        assert is_held_out(scene.attributes)
        assert parse_caption(text) == scene.attributes
    assert 0.15 < partial / 1500 < 0.25


def test_bounds_and_mistakes():
    source = SyntheticSource(num_clips=10)
    assert len(source) == 10
    for index in (-1, 10):
        with pytest.raises(IndexError):
            source.read(index, None, 1, 8, 8)
    with pytest.raises(UserError, match="split='test' is not known; choose one of train, held"):
        SyntheticSource(split="test")
    with pytest.raises(
        UserError, match="style='sketch' is not known; choose one of filled, outline"
    ):
        SyntheticSource(style="sketch")
    with pytest.raises(UserError, match="num_clips must be 1 or more"):
        SyntheticSource(num_clips=0)
    with pytest.raises(UserError, match="color='mauve' is not known; choose one of red"):
        sample_scene(np.random.default_rng(0), {"color": "mauve"})
    with pytest.raises(UserError, match="attribute='mood' is not known"):
        sample_scene(np.random.default_rng(0), {"mood": "red"})
    with pytest.raises(UserError, match="at least 1"):
        render(sample_scene(np.random.default_rng(0)), 0, 8, 8)
    with pytest.raises(UserError, match="size='.*' is not known"):
        Scene(
            shape="circle",
            color="red",
            direction="up",
            size="vast",
            background="gray",
            x=0.5,
            y=0.5,
            travel=0.3,
        )


@pytest.mark.parametrize("shape", ATTRIBUTES["shape"])
def test_an_outline_has_a_hole_and_the_rest_as_it_was(shape):
    scene = Scene(
        shape=shape,
        color="red",
        direction="left",
        size="large",
        background="black",
        x=0.7,
        y=0.5,
        travel=0.3,
    )
    filled, outline = (render(scene, 3, 64, 64, style) for style in ("filled", "outline"))
    ground, color = np.array(BACKGROUNDS["black"]), np.array(PALETTE["red"])
    for frame, center_x in enumerate((0.7, 0.55, 0.4)):
        center = 32, int(center_x * 64)
        np.testing.assert_array_equal(filled[frame][center], color)
        np.testing.assert_array_equal(outline[frame][center], ground)
        assert (outline[frame] == color).all(-1).sum() > 100
    kept = (outline == filled).all(-1)
    assert 0.02 < 1 - kept.mean() < 0.2 and kept[(filled == ground).all(-1)].all()


def test_the_fingerprint_depends_on_every_setting():
    same = {
        SyntheticSource(seed=1).fingerprint(),
        SyntheticSource(seed=1, split="train").fingerprint(),
    }
    changes = ({"seed": 2}, {"split": "held_out"}, {"num_clips": 5}, {"style": "outline"})
    others = {SyntheticSource(**kw).fingerprint() for kw in changes}
    assert len(same) == 1
    assert len(same | others) == 5
    int(same.pop(), 16)


@pytest.mark.parametrize(
    "settings,digest",
    [
        ({}, "945ba57c4795dc3be8a7a6ac273f7eb11cfaf4168768cae6925fc68ca8ec9387"),
        (
            {"seed": 3, "split": "held_out", "num_clips": 7},
            "ed68686e8de7a2dc248336155c5772cff84182a23c30fb19af01a767783a4de0",
        ),
        (
            {"style": "outline"},
            "acf7c67646e91e9ee501183ad6fc7ae08011b689cdc6371dd4ea87e16afa71f6",
        ),
    ],
)
def test_fingerprints_are_what_earlier_releases_gave(settings, digest):
    assert SyntheticSource(**settings).fingerprint() == digest


def test_importing_the_dataset_does_not_import_jax():
    names = "sys, xgen_jax.data.sources.synthetic, xgen_jax.evaluation.captions"
    code = f"import {names}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
