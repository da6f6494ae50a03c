"""Static, moving and wild clips; clips that are cut again at a jump."""

import av
import numpy as np
import pytest
from footage import Film, Join, Scene, feed
from verdict import dropped

from xgen_jax.curation.config import MotionConfig, ShotsConfig
from xgen_jax.curation.meter import between
from xgen_jax.curation.motion import MotionMeter, motion_scores, recut

CONFIG = MotionConfig()


def measured(frames):
    return feed(MotionMeter(CONFIG), frames)


def scores(frames):
    return {name: np.array([value]) for name, value in motion_scores(measured(frames)).items()}


def written(film, path, **options):
    film.write(path, **options)
    with av.open(str(path)) as file:
        for frame in file.decode(video=0):
            yield float(frame.pts * frame.time_base), frame.to_ndarray(format="rgb24")


STATIC = {
    "still": {},
    "grain": {"noise": 5.0},
    "coarse grain": {"noise": 10.0},
    "dark": {"light": 0.2, "noise": 3.0},
}
MOVING = {
    "slow pan": {"pan": 0.006},
    "slow pan in the dark": {"pan": 0.02, "light": 0.2, "noise": 2.0},
    "slow pan with grain": {"pan": 0.02, "noise": 8.0},
    "pan": {"pan": 0.3},
    "small disc": {"discs": 1, "disc_size": 0.05, "disc_speed": 0.1},
    "small disc with grain": {"discs": 1, "disc_size": 0.06, "disc_speed": 0.1, "noise": 8.0},
    "shaken": {"shake": 1.0},
}


def is_static(found):
    return bool(dropped(found, "static", motion=CONFIG).item())


def is_wild(found):
    return bool(dropped(found, "wild", motion=CONFIG).item())


@pytest.mark.parametrize("codec, seeds", [(None, range(3)), ("libx264", [3]), ("mpeg4", [4])])
def test_static_clips_are_told_from_slow_and_small_movement(tmp_path, codec, seeds):
    for seed in seeds:
        for name, scene in (STATIC | MOVING).items():
            film = Film([Scene(**{"seed": seed, "length_s": 2.0, "pan": 0.0} | scene)])
            frames = film if codec is None else written(film, tmp_path / "a.mp4", codec=codec)
            found = scores(frames)
            assert is_static(found) == (name in STATIC), (name, seed, found)
            assert not is_wild(found), (name, seed, found)


def test_a_static_clip_after_another_shot_knows_nothing_of_it():
    rows = measured(Film([Scene(seed=1, pan=0.5, length_s=1.3), Scene(seed=2, pan=0.0)]))
    found = motion_scores(between(rows, 1.3, 3.3))
    assert rows["changed"][np.searchsorted(rows["time_s"], 1.3 - 1e-6) :].max() > 0.5
    assert {name: found[name] for name in ("changed", "moved", "drift")} == {
        "changed": 0,
        "moved": 0,
        "drift": 0,
    }


def test_fast_pans_and_flicker_are_wild():
    noise = np.random.default_rng(0).integers(0, 256, (50, 144, 256, 3), np.uint8)
    cuts = Film([Scene(seed=seed, length_s=0.04) for seed in range(40)])
    for frames in (
        Film([Scene(seed=0, pan=2.0)]),
        Film([Scene(seed=0, pan=6.0)]),
        cuts,
        [(k / 25, image) for k, image in enumerate(noise)],
    ):
        found = scores(frames)
        assert is_wild(found) and not is_static(found), found


def test_flow_is_in_diagonals_a_second_at_every_rate():
    for fps in (12.0, 25.0, 60.0):
        found = scores(Film([Scene(seed=3, pan=0.2)], fps=fps))
        assert found["flow"] == pytest.approx(0.2 * 256 / np.hypot(256, 144), rel=0.05)


def test_scores_that_could_not_be_measured_reject_nothing():
    for frames in ([], Film([Scene(seed=0, length_s=0.2, pan=0.0)])):
        found = scores(frames)
        assert np.isnan(found["flow"]) and np.isnan(found["moved"])
        assert not is_static(found) and not is_wild(found)


@pytest.mark.parametrize("size", [(16, 256), (256, 20), (36, 64)])
def test_strips_and_small_pictures_are_measured(size):
    assert scores(Film([Scene(seed=0, pan=0.2, length_s=1.2)], size=size))["flow"] > 0.05


def test_a_change_of_size_is_no_change_of_the_picture():
    wide, high = (Film([Scene(seed=0, pan=0.0)], size=size) for size in ((144, 256), (256, 144)))
    frames = [*wide, *((2 + time_s, image) for time_s, image in high)]
    assert measured(frames)["changed"].max() == 0


SHOTS = ShotsConfig(min_s=1.0, max_s=16.0, trim_s=0.2)


def test_a_clip_is_cut_again_at_a_jump_and_its_longer_part_kept():
    film = Film([Scene(seed=1, length_s=1.6), Scene(seed=2, length_s=2.4)])
    rows = measured(film)
    assert recut(rows, 0.0, 4.0, SHOTS, CONFIG) == (1.8, 4.0)
    assert recut(rows, 0.0, 2.8, SHOTS, CONFIG) == (0.0, 1.4)
    assert recut(rows, 1.8, 4.0, SHOTS, CONFIG) == (1.8, 4.0)
    assert recut(rows, 0.6, 2.4, SHOTS, CONFIG) is None, "neither part is long enough"


def test_a_longer_part_with_another_jump_is_dropped():
    lengths = (1.2, 1.2, 1.6)
    film = Film([Scene(seed=seed, length_s=length) for seed, length in enumerate(lengths)])
    assert recut(measured(film), 0.0, 4.0, SHOTS, CONFIG) is None


@pytest.mark.parametrize(
    "scene",
    [{"flashes_s": (1.0, 2.0), "flash_s": 0.04}, {"pan": 1.5}, {"noise": 8.0}],
    ids=["flashes", "fast pan", "grain"],
)
def test_flashes_and_fast_movement_are_no_jumps(scene):
    rows = measured(Film([Scene(seed=1, length_s=4.0, **scene)]))
    assert recut(rows, 0.0, 4.0, SHOTS, CONFIG) == (0.0, 4.0)


def test_a_dissolve_is_no_jump():
    film = Film([Scene(seed=1), Scene(seed=2)], [Join("dissolve", 1.0)])
    assert recut(measured(film), 0.0, 4.0, SHOTS, CONFIG) == (0.0, 4.0)
