"""Shots of films whose cuts, dissolves and fades are known; clips of shots."""

import av
import cv2
import numpy as np
import pytest
import scenedetect
from footage import Film, Join, Scene, feed

from xgen_jax.curation.config import ShotsConfig
from xgen_jax.curation.shots import SIZE as METER_SIZE
from xgen_jax.curation.shots import ShotsMeter, clips_of, find_shots
from xgen_jax.errors import UserError

CONFIG = ShotsConfig()
SIZE = (72, 128)


def measured(frames):
    return feed(ShotsMeter(CONFIG), frames)


def decoded(path):
    with av.open(str(path)) as file:
        for frame in file.decode(video=0):
            yield float(frame.pts * frame.time_base), frame.to_ndarray(format="rgb24")


def borders(film, rows=None):
    """Return what was found in a film: times of hard cuts, and (start_s, end_s) of the rest."""
    rows = measured(film) if rows is None else rows
    shots = find_shots(rows, CONFIG, film.duration_s)
    assert shots[0][0] == 0 and shots[-1][1] == film.duration_s
    assert all(start < end for start, end in shots)
    pairs = [(before[1], after[0]) for before, after in zip(shots, shots[1:])]
    return [a for a, b in pairs if a == b], [(a, b) for a, b in pairs if a < b]


# Every kind of scene: what is fixed, and the ranges of what varies.
KINDS = {
    "calm": ({"discs": 2}, {"pan": (0, 0.3)}),
    "fast": ({"discs": 4, "disc_speed": 1.0}, {"pan": (0.5, 1.2)}),
    "shaken": ({"shake": 2.0}, {"pan": (0, 0.2)}),
    "dark": ({"noise": 2.0}, {"light": (0.1, 0.25), "pan": (0, 0.3)}),
    "grainy": ({"noise": 8.0}, {"pan": (0, 0.3)}),
    "alike": ({"colours": 3}, {"pan": (0, 0.3)}),
    "flashing": ({"flashes_s": (0.6, 1.0)}, {"pan": (0, 0.3)}),
}


def scenes(kind, count, seed, length_s):
    random = np.random.default_rng(seed)
    fixed, ranges = KINDS[kind]
    return [
        Scene(
            seed=int(random.integers(1 << 30)),
            length_s=round(25 * random.uniform(*length_s)) / 25,
            **fixed,
            **{name: float(random.uniform(*values)) for name, values in ranges.items()},
        )
        for _ in range(count)
    ]


def test_cuts_are_found_to_the_frame():
    true = found = right = 0
    for seed, kind in enumerate(KINDS):
        film = Film(scenes(kind, 25, seed, (1.2, 2.5)), size=SIZE)
        cuts, gradual = borders(film)
        cuts, expected = np.array(cuts), np.array(film.cuts_s)
        true, found = true + len(expected), found + len(cuts) + len(gradual)
        right += int(np.isclose(cuts[:, None], expected, rtol=0, atol=1e-6).sum())
    assert true == 24 * len(KINDS)
    assert right / true >= 0.99, f"recall {right} of {true}"
    assert right / found >= 0.99, f"precision {right} of {found}"


@pytest.mark.parametrize("kind", ["dissolve", "fade"])
def test_gradual_changes_are_found_and_left_out(kind):
    true = found = right = mixed = inside = 0
    random = np.random.default_rng(5)
    for seed, scene in enumerate(KINDS):
        joins = [Join(kind, float(length)) for length in random.uniform(0.4, 1.5, 6)]
        film = Film(scenes(scene, 7, seed, (3.0, 4.0)), joins, size=SIZE)
        rows = measured(film)
        cuts, regions = borders(film, rows)
        true, found = true + len(joins), found + len(cuts) + len(regions)
        clips = np.array(clips_of(find_shots(rows, CONFIG, film.duration_s), CONFIG))
        for start_s, end_s in film.gradual_s:
            hit = any(a < end_s and start_s < b for a, b in regions)
            right += hit
            if scene == "fast":  # where the mixed pictures change as the others do
                continue
            # Frames with at least a tenth of either picture, that clips contain all the same.
            times = film.times
            margin_s = (end_s - start_s) / 10
            times = times[(times > start_s + margin_s) & (times < end_s - margin_s)]
            mixed += len(times) * hit
            inside += hit * sum(((clips[:, 0] <= t) & (t < clips[:, 1])).any() for t in times)
    assert right / true >= 0.9, f"recall {right} of {true}"
    assert right == found, f"{found - right} of {found} borders are none"
    assert inside <= 0.02 * mixed, f"{inside} of {mixed} mixed frames are in clips"


@pytest.mark.parametrize("kind", KINDS)
def test_continuous_movement_has_no_borders(kind):
    for seed in range(3):
        film = Film(scenes(kind, 1, 100 + seed, (12.0, 12.0)), size=SIZE)
        assert borders(film) == ([], [])


@pytest.mark.parametrize("fps", [12.0, 60.0])
def test_cuts_are_found_at_other_rates(fps):
    film = Film(scenes("calm", 10, 7, (1.2, 2.0)), size=SIZE, fps=fps)
    cuts, gradual = borders(film)
    assert cuts == pytest.approx(film.cuts_s, abs=1e-9) and not gradual


def test_cuts_and_dissolves_of_a_file_of_variable_rate(tmp_path):
    random = np.random.default_rng(3)
    joins = [Join(), Join("dissolve", 1.0)] * 4
    times = np.cumsum([0, *random.choice([0.02, 0.04, 0.06, 0.1], 600)]).round(2)
    shots = scenes("calm", 9, 11, (2.5, 3.5))
    film = Film(shots, joins, times_s=times[times < sum(scene.length_s for scene in shots)])
    assert len(film.times) < len(times), "the film is longer than its times"
    film.write(tmp_path / "a.mp4", crf=28)
    rows = measured(decoded(tmp_path / "a.mp4"))
    np.testing.assert_allclose(rows["time_s"], film.times, atol=1e-6)
    cuts, regions = borders(film, rows)
    assert cuts == pytest.approx(film.cuts_s, abs=1e-6)
    assert len(regions) == len(film.gradual_s)
    assert all(a < end and start < b for (a, b), (start, end) in zip(regions, film.gradual_s))


def test_content_is_the_value_of_pyscenedetect():
    film = Film(scenes("calm", 4, 2, (0.5, 1.0)), size=METER_SIZE[::-1])
    detector = scenedetect.ContentDetector()
    detector.stats_manager = scenedetect.StatsManager()
    for k, (_, image) in enumerate(film):
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        detector.process_frame(scenedetect.FrameTimecode(k, fps=25.0), bgr)
    theirs = [
        detector.stats_manager.get_metrics(scenedetect.FrameTimecode(k, fps=25.0), ["content_val"])
        for k in range(1, len(film.times))
    ]
    meter = ShotsMeter(CONFIG)
    for time_s, image in film:
        # The meter halves twice: of these copies of each pixel it makes the picture again.
        meter.add(time_s, image.repeat(4, axis=0).repeat(4, axis=1))
    ours = meter.columns()["content"]
    assert ours[0] == 0
    np.testing.assert_allclose(ours[1:], np.ravel(theirs), rtol=1e-6)


def test_columns_of_two_hours_are_small():
    rows = measured(Film(scenes("calm", 1, 1, (2.0, 2.0)), size=SIZE))
    frames = len(rows["time_s"])
    assert sum(values.nbytes for values in rows.values()) / frames * 2 * 3600 * 30 < 10e6


def test_shots_of_no_frames_and_of_one():
    assert find_shots(measured([]), CONFIG, 0.0) == []
    one = measured([(0.0, np.zeros((9, 16, 3), np.uint8))])
    assert find_shots(one, CONFIG, 0.04) == [(0.0, 0.04)]


def test_clips_are_trimmed_at_borders_and_divided_equally():
    config = ShotsConfig(trim_s=0.25, min_s=2.0, max_s=5.0)
    # The second and the third shot have a dissolve of half a second between them.
    shots = [(0.0, 4.0), (4.0, 15.5), (16.0, 18.0), (18.0, 20.25)]
    assert clips_of(shots, config) == [
        (0.0, 3.75),
        *((4.25, 7.916666), (7.916666, 11.583333), (11.583333, 15.25)),
        (18.25, 20.25),
    ]
    assert clips_of([(0.0, 1.9)], config) == []
    assert clips_of([(0.0, 5.0)], config) == [(0.0, 5.0)]
    assert clips_of([], config) == []


def test_clips_are_whole_microseconds_inside_their_shot():
    third = 1 / 3
    config = ShotsConfig(trim_s=0.0, min_s=0.1, max_s=16.0)
    clips = clips_of([(0.0, third), (third, 2 * third)], config)
    assert clips == [(0.0, 0.333333), (0.333334, 0.666666)]


def test_a_longest_clip_below_twice_the_shortest_is_refused():
    with pytest.raises(UserError, match="at least twice min_s"):
        ShotsConfig(min_s=2.0, max_s=3.0)
