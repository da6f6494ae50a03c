"""Shots: hard cuts to the frame, dissolves and fades as regions that no clip contains.

arXiv 2408.12590, section 3, makes clips of one scene with PySceneDetect; it names no detector. Here
each frame has the value of PySceneDetect's default, ContentDetector. Whether a peak of it is a cut
is decided from how the histogram changes, which movement of the camera hardly affects, so that fast
movement, flashes and dark scenes are told apart. ContentDetector cannot see gradual changes. They
show in two ways: the histogram differs more than usual from that of `dissolve_lag_s` before, and
the contrast falls while two pictures, or a picture and black, are mixed.
"""

import array
import collections
import math
from collections.abc import Iterable

import cv2
import numpy as np

from xgen_jax.curation.config import ShotsConfig
from xgen_jax.curation.meter import Columns, Meter

SIZE = (64, 36)  # width and height at which frames are compared
_TWICE = (2 * SIZE[0], 2 * SIZE[1])
_BINS = 32

# Frames on each side with which a peak is compared; those right next to it may share a blended cut.
_NEIGHBOURS = (2, 3)
# A cut's change of histogram is this many times that of the neighbours.
_OUTLIER = 2.5
_MOST_GAP = 3.0  # a longer gap between two frames explains no greater change, in usual gaps
# Of the value of ContentDetector over its neighbours, for cuts below its threshold (dark scenes).
_ADAPTIVE = 2.0
_ADAPTIVE_LEAST = 1 / 3  # of the threshold
# Parts of all pixels that change their bin: least for a cut, and for a gradual change.
_LEAST_STEP, _LEAST_LAGGED = 0.08, 0.1
# After a cut the lagged difference stays at this part of the cut's own or more; after a flash not.
_LASTING = 0.5
_LOCAL_S = 2.5  # of what is usual, on each side
_LONGEST_S = 4.0  # of a gradual change; what is longer is movement
_FOOT = 0.2  # of a hill of change, as part of its height
_DIP_S = 0.6  # from the middle of a gradual change to the contrasts that its own is compared with


class ShotsMeter(Meter):
    """Changes of each frame from the one before, and from that of `dissolve_lag_s` before.

    Columns, float32:
      content: mean absolute difference of hue, saturation and value from the frame before, 0 to
        255: the value of PySceneDetect's ContentDetector for frames of `SIZE`.
      step: part of the histograms of red, green and blue that differs from the frame before, 0 to
        1.
      lagged: the same from the frame `dissolve_lag_s` before, or the first.
      contrast: standard deviation of red, green and blue, their mean, in levels of 255.
    """

    side = 256

    def __init__(self, config: ShotsConfig):
        self._lag_s = config.dissolve_lag_s
        self._hsv: np.ndarray | None = None
        self._histograms: collections.deque[tuple[float, np.ndarray]] = collections.deque()
        self._time_s = array.array("d")
        self._content, self._step, self._lagged, self._contrast = (
            array.array("f") for _ in range(4)
        )

    def add(self, time_s: float, image: np.ndarray) -> None:
        for size in (_TWICE, SIZE):  # three times as fast as at once
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        # PySceneDetect's own code takes 0.06 s for 300 frames, three times this whole meter.
        content = 0.0 if self._hsv is None else cv2.norm(hsv, self._hsv, cv2.NORM_L1) / hsv.size
        self._hsv = hsv
        channels = [cv2.calcHist([image], [c], None, [_BINS], [0, 256]).ravel() for c in range(3)]
        histogram = np.concatenate(channels)
        before = self._histograms
        last = before[-1][1] if before else histogram
        before.append((time_s, histogram))
        while len(before) > 1 and before[1][0] <= time_s - self._lag_s + 1e-6:
            before.popleft()
        self._time_s.append(time_s)
        self._content.append(content)
        self._step.append(_difference(last, histogram))
        self._lagged.append(_difference(before[0][1], histogram))
        _, deviation = cv2.meanStdDev(image)
        self._contrast.append(sum(deviation.ravel().tolist()) / 3)

    def columns(self) -> Columns:
        return {
            "time_s": np.array(self._time_s, np.float64),
            "content": np.array(self._content, np.float32),
            "step": np.array(self._step, np.float32),
            "lagged": np.array(self._lagged, np.float32),
            "contrast": np.array(self._contrast, np.float32),
        }


def _difference(before: np.ndarray, histogram: np.ndarray) -> float:
    return cv2.norm(before, histogram, cv2.NORM_L1) / (2 * 3 * SIZE[0] * SIZE[1])


def find_shots(rows: Columns, config: ShotsConfig, duration_s: float) -> list[tuple[float, float]]:
    """Return the shots of a video, as (start_s, end_s) in increasing time.

    At a hard cut one shot ends where the next starts, at the time of the first frame after the cut.
    A dissolve or fade lies between the end of one shot and the start of the next.

    Args:
      rows: the columns of `ShotsMeter`, of the whole video.
      config: thresholds.
      duration_s: end of the last frame.
    """
    times = rows["time_s"]
    if not len(times):
        return []
    cuts, abrupt = _cuts(rows, config)
    borders = [(float(times[i]), float(times[i])) for i in cuts]
    borders += _gradual(rows, times[abrupt], config)
    shots, start_s = [], 0.0
    for border_start_s, border_end_s in sorted(borders):
        if border_start_s > start_s:
            shots.append((start_s, border_start_s))
        start_s = max(start_s, border_end_s)
    if duration_s > start_s:
        shots.append((start_s, float(duration_s)))
    return shots


def _cuts(rows: Columns, config: ShotsConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of frames that begin a shot, and those where anything changes at once,
    such as the edges of flashes."""
    times = rows["time_s"]
    # In files of variable rate, movement changes more where frames are further apart.
    gaps = np.diff(times, prepend=times[0])
    gaps = np.clip(gaps / max(np.median(gaps), 1e-6), 1, _MOST_GAP)
    content, step = (np.asarray(rows[name], np.float64) for name in ("content", "step"))
    pace_content, pace = content / gaps, step / gaps
    usual_content = np.mean(_neighbours(pace_content, _NEIGHBOURS), axis=0)
    usual_pace = np.max(_neighbours(pace, _NEIGHBOURS), axis=0)
    peak = (content >= config.cut_threshold) | (
        (pace_content >= _ADAPTIVE * usual_content)
        & (content >= _ADAPTIVE_LEAST * config.cut_threshold)
    )
    peak &= step >= _LEAST_STEP
    next_to = np.maximum(_shifted(step, -1), _shifted(step, 1))
    found = np.flatnonzero(peak & (pace >= _OUTLIER * usual_pace) & (step >= next_to))
    # Edges of flashes are peaks in pairs, which are no outliers for each other; nor are they for
    # most of the frames around, as those of a fade are.
    usual_pace = np.median(_neighbours(pace, range(1, 5)), axis=0)
    abrupt = np.flatnonzero(peak & (pace >= _OUTLIER * usual_pace))
    ends = np.searchsorted(times, times[found] + config.dissolve_lag_s - 1e-6)
    lasting = [
        np.median(rows["lagged"][i:end]) >= _LASTING * step[i] for i, end in zip(found, ends)
    ]
    return found[np.array(lasting, bool)], abrupt


def _shifted(values: np.ndarray, by: int) -> np.ndarray:
    """Return values[i + by] for each i; 0 outside."""
    result = np.zeros_like(values)
    if by > 0:
        result[:-by] = values[by:]
    else:
        result[-by:] = values[:by]
    return result


def _neighbours(values: np.ndarray, distances: Iterable[int]) -> np.ndarray:
    return np.stack([_shifted(values, sign * by) for by in distances for sign in (-1, 1)])


def _gradual(rows: Columns, abrupt_s: np.ndarray, config: ShotsConfig) -> list[tuple[float, float]]:
    """Return (start_s, end_s) of dissolves and fades."""
    times, lag_s = rows["time_s"], config.dissolve_lag_s
    # The lagged difference, at the middle between the two frames.
    change = np.interp(times + lag_s / 2, times, rows["lagged"])
    # What changes at once raises it for frames up to half a lag away.
    margin_s = lag_s / 2 + 0.05
    before = np.searchsorted(abrupt_s, times - margin_s)
    free = before == np.searchsorted(abrupt_s, times + margin_s)
    if not free.any():
        return []
    change = np.interp(times, times[free], change[free])
    usual = _local_level(times, change)
    contrast = np.asarray(rows["contrast"], np.float64)
    # Frames to compare with, none of them beyond what changes at once.
    known = np.concatenate([[times[0]], abrupt_s, [np.inf]])
    after = np.searchsorted(known, times, side="right")
    earlier_s = np.maximum(times - _DIP_S, known[after - 1])
    later_s = np.minimum(times + _DIP_S, known[np.minimum(after, len(known) - 1)] - 1e-6)
    earlier = contrast[np.searchsorted(times, earlier_s)]
    later = contrast[np.searchsorted(times, later_s, side="right") - 1]
    between = (earlier + later) / 2
    dip = (between - contrast) / (between + 1)  # one level more, so that black has no dip
    above = free & (change >= config.dissolve_ratio * usual) & (change >= _LEAST_LAGGED)
    found = []
    # A fade has two hills: its middle is as dark before as after.
    for first, end in _runs(times, above, lag_s):
        if dip[first:end].max() < config.dissolve_dip:
            continue
        # The whole hill, of which `above` is the top. It is up to half a lag wider than the change
        # at each end, and its foot is below the motion around it: no mixed frame is left outside.
        peak = first + int(np.argmax(change[first:end]))
        foot = usual[peak] + _FOOT * (change[peak] - usual[peak])
        first, end = next(
            run for run in _runs(times, free & (change >= foot), lag_s) if peak < run[1]
        )
        found.append((float(times[first]), float(times[end - 1])))
    return [(start_s, end_s) for start_s, end_s in found if 0 < end_s - start_s <= _LONGEST_S]


def _local_level(times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the value that a third of those within `_LOCAL_S` of each time are below, interpolated
    from a grid. Not their median: dissolves between short shots fill half of the time."""
    grid = np.arange(times[0], times[-1] + 0.2, 0.2)
    firsts = np.searchsorted(times, grid - _LOCAL_S)
    ends = np.searchsorted(times, grid + _LOCAL_S, side="right")
    known = ends > firsts  # a frame may be on display for longer than the window
    windows = (values[a:b] for a, b in zip(firsts[known], ends[known]))
    usual = [np.partition(window, len(window) // 3)[len(window) // 3] for window in windows]
    return np.interp(times, grid[known], usual)


def _runs(times: np.ndarray, mask: np.ndarray, gap_s: float) -> list[tuple[int, int]]:
    """Return [first, end) of each run of True, across gaps of `gap_s` at most."""
    true = np.flatnonzero(mask)
    apart = np.flatnonzero(np.diff(times[true]) > gap_s)
    firsts, lasts = np.append(0, apart + 1), np.append(apart, len(true) - 1)
    return [(int(true[a]), int(true[b]) + 1) for a, b in zip(firsts, lasts)] if len(true) else []


def clips_of(shots: list[tuple[float, float]], config: ShotsConfig) -> list[tuple[float, float]]:
    """Return the clips of a video's shots, as (start_s, end_s): whole microseconds, no clip in two
    shots.

    Shots are trimmed where they border on another; one longer than `max_s` is divided equally, one
    shorter than `min_s` left out.
    """
    clips = []
    for index, (start_s, end_s) in enumerate(shots):
        start_s += config.trim_s * (index > 0)
        end_s -= config.trim_s * (index < len(shots) - 1)
        # Inwards, so that no frame of another shot is included.
        first, last = math.ceil(round(start_s * 1e6, 3)), math.floor(round(end_s * 1e6, 3))
        if last - first < config.min_s * 1e6:
            continue
        count = math.ceil((last - first) / (config.max_s * 1e6))
        edges = [first + (last - first) * k // count for k in range(count + 1)]
        clips += [(a / 1e6, b / 1e6) for a, b in zip(edges, edges[1:])]
    return clips
