"""The caption verifier: right on the dataset's own clips, also through blur and noise, and not
easily fooled."""

import functools
import json
import weakref

import numpy as np
import pytest

from xgen_jax.data.sources.synthetic import (
    ATTRIBUTES,
    SyntheticSource,
    held_out_prompts,
    render,
    sample_scene,
)
from xgen_jax.errors import UserError
from xgen_jax.evaluation.attributes import read_attributes
from xgen_jax.evaluation.captions import (
    HeldOutCaptions,
    confusions,
    evaluate_captions,
    score,
    verdict,
)
from xgen_jax.evaluation.intervals import wilson_interval


def clips(count, frames, height, width, *, spoil=lambda video: video, seed=11):
    source = SyntheticSource(seed=seed)
    scenes = [source.scene(index)[0] for index in range(count)]
    return [spoil(render(scene, frames, height, width)) for scene in scenes], [
        scene.attributes for scene in scenes
    ]


def blur_and_noise(video, sigma, noise, rng):
    """Gaussian blur of `sigma` pixels and normal noise of `noise` levels, as uint8."""
    blurred = video.astype(np.float32)
    taps = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    for axis in (1, 2):
        padded = np.pad(blurred, [(4, 4) if a == axis else (0, 0) for a in range(4)], mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 9, axis=axis)
        blurred = windows @ (taps / taps.sum()).astype(np.float32)
    return np.clip(np.rint(blurred + rng.normal(0, noise, video.shape)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("count, frames, size", [(1000, 9, 32), (150, 17, 64)])
def test_right_on_ground_truth(count, frames, size):
    accuracy = score(*clips(count, frames, size, size))
    assert accuracy.keys() == {*ATTRIBUTES, "all"}
    assert min(accuracy.values()) >= 0.995, accuracy


@pytest.mark.parametrize(
    "count, frames, size, sigma, noise",
    [(400, 9, 32, 0.7, 8), (200, 9, 32, 1.0, 12), (60, 17, 64, 1.2, 12)],
)
def test_right_through_blur_and_noise(count, frames, size, sigma, noise):
    spoil = functools.partial(
        blur_and_noise, sigma=sigma, noise=noise, rng=np.random.default_rng(0)
    )
    accuracy = score(*clips(count, frames, size, size, spoil=spoil))
    assert min(accuracy.values()) >= 0.98, accuracy


@pytest.mark.parametrize("frames, height, width", [(5, 24, 40), (3, 40, 24), (2, 32, 32)])
def test_right_on_other_sizes(frames, height, width):
    assert score(*clips(150, frames, height, width))["all"] >= 0.99


def test_right_with_a_stray_speck():
    videos, wanted = clips(100, 9, 32, 32)
    for video in videos:
        video[:, 2:4, 2:4] = 255 - video[:, 2:4, 2:4]
    assert score(videos, wanted)["all"] >= 0.9


def test_a_still_has_no_direction():
    scene = sample_scene(np.random.default_rng(0))
    rest = {name: value for name, value in scene.attributes.items() if name != "direction"}
    for video in (render(scene, 1, 32, 32), np.repeat(render(scene, 1, 32, 32), 9, axis=0)):
        assert read_attributes(video) == rest
        assert verdict(video, scene.attributes) == {
            **dict.fromkeys(rest, True),
            "direction": False,
            "all": False,
        }


def test_backwards_is_the_other_direction():
    video = render(sample_scene(np.random.default_rng(0), {"direction": "left"}), 9, 32, 32)
    assert read_attributes(video[::-1])["direction"] == "right"


def test_what_is_no_shape_is_not_read_as_one():
    rng = np.random.default_rng(0)
    flat = np.full((9, 32, 32, 3), 110, np.uint8)
    ramp = np.broadcast_to(np.linspace(0, 255, 32)[:, None], flat.shape).astype(np.uint8)
    assert read_attributes(flat) == {"background": "gray"}
    for video in (ramp, rng.integers(0, 256, flat.shape, dtype=np.uint8)):
        assert "shape" not in read_attributes(video)
    vanishing = render(sample_scene(rng, {"background": "gray"}), 9, 32, 32)
    vanishing[3:] = flat[3:]
    assert "shape" not in read_attributes(vanishing)
    red_ground = np.broadcast_to(np.array([225, 35, 40], np.uint8), flat.shape)
    assert read_attributes(red_ground) == {}


def test_verdict_judges_only_what_was_wanted():
    scene = sample_scene(np.random.default_rng(0), {"color": "red"})
    video = render(scene, 9, 32, 32)
    assert verdict(video, {"color": "red"}) == {"color": True, "all": True}
    assert verdict(video, {"color": "blue", "shape": scene.shape}) == {
        "shape": True,
        "color": False,
        "all": False,
    }
    assert score([video, video], [{"color": "red"}, {"color": "blue"}]) == {
        "color": 0.5,
        "all": 0.5,
    }


def test_evaluate_captions_reports_every_sample():
    prompts = held_out_prompts(6, seed=0)
    spoken = []

    def generate(texts, seed):
        spoken.append((texts, seed))
        rng = np.random.default_rng(seed)
        videos = [render(sample_scene(rng, attributes), 9, 32, 32) for _, attributes in prompts]
        return [*videos[:-1], np.zeros((9, 32, 32, 3), np.uint8)]

    report = evaluate_captions(generate, prompts=prompts, seed=4)
    assert spoken == [([text for text, _ in prompts], 4)]
    assert list(report.videos) == list(range(6)) and report.scores["prompts"] == 6
    assert report.scores["accuracy"]["all"] == pytest.approx(5 / 6)
    assert report.scores["samples"][-1]["read"] == {"background": "black"}
    assert report.scores["samples"][0]["prompt"] == prompts[0][0]
    assert json.loads(json.dumps(report.scores)) == report.scores


def as_wanted(prompts, change):
    """Videos of what was wanted, one after another, with `change` of the attributes of some."""
    rng = np.random.default_rng(0)
    for number, (_, attributes) in enumerate(prompts):
        yield render(sample_scene(rng, attributes | change.get(number, {})), 9, 32, 32)


def test_intervals_counts_and_confusions_of_more_prompts_than_captions():
    prompts = held_out_prompts(600, seed=0)
    circles = [n for n, (_, wanted) in enumerate(prompts) if wanted["shape"] == "circle"]
    change = dict.fromkeys(circles[:30], {"shape": "square"})
    scores = evaluate_captions(
        lambda texts, seed: as_wanted(prompts, change), prompts=prompts, seed=0
    ).scores
    assert (scores["prompts"], scores["distinct_prompts"]) == (600, 270)
    assert scores["distinct_attributes"] == 54
    right, judged = scores["counts"]["shape"]
    assert judged == 600 and 0 <= 570 - right <= 3  # the verifier itself errs in 0.5%
    assert scores["accuracy"]["shape"] == right / 600
    assert scores["interval"]["shape"] == list(wilson_interval(right / 600, 600))
    shape = scores["confusions"]["shape"]
    assert shape["circle"]["square"] == 30
    assert sum(sum(row.values()) for row in shape.values()) == 600
    assert list(scores["confusions"]) == list(ATTRIBUTES)
    assert json.loads(json.dumps(scores)) == scores


def test_what_could_not_be_read_is_a_confusion_with_nothing():
    blank = {"background": "black"}
    found = confusions([{"wanted": {"shape": "circle", "background": "gray"}, "read": blank}])
    assert found == {"shape": {"circle": {"nothing": 1}}, "background": {"gray": {"black": 1}}}


def test_only_the_videos_to_show_are_kept_and_each_is_read_before_the_next():
    prompts, batches = held_out_prompts(40, seed=0), []

    def generate(texts, seed):
        for video in as_wanted(prompts, {20: {"shape": "circle"}, 30: {"direction": "left"}}):
            batch = np.stack([video] * 4)
            batches.append(weakref.ref(batch))
            yield batch[0]
            del batch
            # The one before last has gone, also where a video of it was kept.
            assert len(batches) < 2 or batches[-2]() is None

    report = evaluate_captions(generate, prompts=prompts, seed=0, keep=4, keep_wrong=1)
    wrong = [n for n, one in enumerate(report.scores["samples"]) if not one["correct"]["all"]]
    assert wrong and min(wrong) >= 4
    assert list(report.videos) == [0, 1, 2, 3, wrong[0]]


def test_the_held_out_captions_of_an_evaluation():
    judge = HeldOutCaptions(12)
    prompts = held_out_prompts(12, seed=0)
    assert judge.prompts == [text for text, _ in prompts]
    other = {n: "red" if prompts[n][1]["color"] == "blue" else "blue" for n in range(3)}
    change = {n: {"color": color} for n, color in other.items()}
    figures = judge.figures(as_wanted(prompts, change))
    assert tuple(figures) == judge.names
    assert figures["accuracy_color"] == figures["accuracy_all"] == 0.75
    assert figures["accuracy_shape"] == 1
    with pytest.raises(ValueError, match="longer"):
        judge.figures(as_wanted(prompts[:3], {}))


def test_mistakes():
    video = render(sample_scene(np.random.default_rng(0)), 2, 8, 8)
    with pytest.raises(UserError, match="uint8"):
        read_attributes(video.astype(np.float32))
    with pytest.raises(UserError, match="color='mauve' is not known"):
        verdict(video, {"color": "mauve"})
    with pytest.raises(UserError, match="no attribute is wanted"):
        verdict(video, {})
    with pytest.raises(UserError, match="one of each"):
        score([video], [])
    with pytest.raises(UserError, match="at least one prompt"):
        evaluate_captions(lambda texts, seed: [], prompts=[], seed=0)
    with pytest.raises(UserError, match="0 videos came back for 1"):
        evaluate_captions(lambda texts, seed: [], prompts=[("a", {"color": "red"})], seed=0)
    with pytest.raises(UserError, match="2 or more videos came back for 1"):
        evaluate_captions(lambda *_: [video] * 5, prompts=[("a", {"color": "red"})], seed=0)
