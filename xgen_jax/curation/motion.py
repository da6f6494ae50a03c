"""How much moves: clips of a static picture, clips too wild to learn from, and jumps in a clip.

The score is that of arXiv 2408.12590, section 3: the difference of neighbouring gray frames becomes
a binary mask, which is blurred and cleaned by morphology; its mean is the frame's score. From one
frame to the next, slow movement is less than the noise of a codec. So a clip is static only if it
also hardly differs from frames long before, in two measures that the paper lacks: the same mask,
which sees small things that move, and optical flow, which sees a camera that moves slowly.
"""

import array
import math

import cv2
import numpy as np

from xgen_jax.curation.config import MotionConfig, ShotsConfig
from xgen_jax.curation.meter import Columns, Meter, between

# What a still camera's grain and codec reach at most, in the units of `MotionMeter`. A disc of a
# twentieth of the width that moves at a thirtieth of the width a second has a `moved` of 0.0012, a
# pan of a width in 200 s a `drift` of 0.0043.
STILL = {"changed": 0.002, "moved": 0.001, "drift": 0.003}
# The blur is a median: a pixel stays in the mask where most of its square of this side has changed
# too. Grain and the noise of a codec change single pixels.
_MEDIAN = 3
_FLAT = 64.0  # square of what Sobel's filter makes of one level a pixel
_LEAST_SIDE = 32
_OPENING = np.ones((3, 3), np.uint8)


class MotionMeter(Meter):
    """Changes from frame to frame, and now and then against a frame long before.

    Frames are halved first: grain and the noise of a codec halve with them.

    Columns, float32; NaN where a frame was not measured:
      changed: part of the picture that differs from the frame before, 0 to 1; 0 in the first frame.
      moved: part of the picture that differs from the frame `flow_every_s` before, 0 to 1.
      drift: mean length of the optical flow from that frame, weighted by texture, in diagonals a
        second; too small where things moved far.
      flow: the same from the frame before (DIS, arXiv 1603.03590, preset ULTRAFAST).
    """

    def __init__(self, config: MotionConfig):
        self.side = config.side
        self._config = config
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._dis.setFinestScale(1)  # of halved frames; the preset's 2 is for whole ones
        nothing = -math.inf, np.zeros((0, 0), np.uint8)
        self._before: tuple[float, np.ndarray] = nothing
        self._long_before: tuple[float, np.ndarray] = nothing
        self._time_s = array.array("d")
        self._changed, self._moved, self._drift, self._flow = (array.array("f") for _ in range(4))

    def add(self, time_s: float, image: np.ndarray) -> None:
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        # At least what optical flow needs, for pictures that are strips.
        size = tuple(max(_LEAST_SIDE, side // 2) for side in gray.shape[::-1])
        gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
        changed, moved, drift, flow = 0.0, np.nan, np.nan, np.nan
        if self._before[1].shape != gray.shape:  # the first, or another size
            self._long_before = time_s, gray
        else:
            changed = self._part_changed(self._before[1], gray)
            if time_s - self._long_before[0] >= self._config.flow_every_s - 1e-6:
                moved = self._part_changed(self._long_before[1], gray)
                drift = self._flow_per_second(self._long_before, (time_s, gray))
                flow = self._flow_per_second(self._before, (time_s, gray))
                self._long_before = time_s, gray
        self._before = time_s, gray
        self._time_s.append(time_s)
        self._changed.append(changed)
        self._moved.append(moved)
        self._drift.append(drift)
        self._flow.append(flow)

    def columns(self) -> Columns:
        return {
            "time_s": np.array(self._time_s, np.float64),
            "changed": np.array(self._changed, np.float32),
            "moved": np.array(self._moved, np.float32),
            "drift": np.array(self._drift, np.float32),
            "flow": np.array(self._flow, np.float32),
        }

    def _part_changed(self, before: np.ndarray, gray: np.ndarray) -> float:
        difference = cv2.absdiff(before, gray)
        _, mask = cv2.threshold(difference, self._config.difference, 1, cv2.THRESH_BINARY)
        mask = cv2.medianBlur(mask, _MEDIAN)
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, _OPENING)
        return cv2.countNonZero(mask) / mask.size

    def _flow_per_second(
        self, before: tuple[float, np.ndarray], now: tuple[float, np.ndarray]
    ) -> float:
        shape = (*now[1].shape, 2)
        flow = self._dis.calc(before[1], now[1], np.zeros(shape, np.float32))
        length = cv2.magnitude(flow[..., 0], flow[..., 1])
        # By the square of the gradient: in flat parts the flow is that of the codec's noise. Where
        # all of the picture is flat, as at night, nothing is known to move.
        slope = cv2.Sobel(now[1], cv2.CV_32F, 1, 0), cv2.Sobel(now[1], cv2.CV_32F, 0, 1)
        weight = slope[0] ** 2 + slope[1] ** 2
        length = float(np.vdot(length, weight) / (weight.sum() + _FLAT * weight.size))
        return length / float(np.hypot(*now[1].shape)) / (now[0] - before[0])


def motion_scores(rows: Columns) -> dict[str, float]:
    """Return the means of the four measures over a clip's rows, and `motion`; NaN for a clip too
    short for them.

    `motion` is the largest of `changed`, `moved` and `drift`, each divided by `STILL`: below 1 the
    clip shows nothing but the noise of a still camera.

    Each compares with the past, so the first of each is left out: it may know the shot before.
    """
    compared = np.flatnonzero(~np.isnan(rows["moved"]))[1:]
    scores = {"changed": _mean(rows["changed"][1:])}
    scores |= {name: _mean(rows[name][compared]) for name in ("moved", "drift", "flow")}
    return scores | {"motion": float(np.max([scores[name] / STILL[name] for name in STILL]))}


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else math.nan


def recut(
    rows: Columns,
    start_s: float,
    end_s: float,
    shots_config: ShotsConfig,
    motion_config: MotionConfig,
) -> tuple[float, float] | None:
    """Cut a clip again at a jump that no shot border explains (arXiv 2408.12590, section 3).

    A jump is a frame whose changed part, and its excess over both neighbouring frames, are
    `motion_config.jump` or more. A flash is none: the frame after it changes as much.

    Args:
      rows: the columns of `MotionMeter`, of the whole video.
      start_s, end_s: of the clip.

    Returns:
      (start_s, end_s) of the clip where it has no jump; of the longer part, trimmed at the jump,
      where that part is long enough and has no jump; else None.
    """
    times, jumps = _jumps(rows, start_s, end_s, motion_config)
    if not len(jumps):
        return start_s, end_s
    at = float(times[jumps[np.argmax(between(rows, start_s, end_s)["changed"][jumps])]])
    if at - start_s >= end_s - at:
        start_s, end_s = start_s, round(at - shots_config.trim_s, 6)
    else:
        start_s, end_s = round(at + shots_config.trim_s, 6), end_s
    if end_s - start_s < shots_config.min_s or len(_jumps(rows, start_s, end_s, motion_config)[1]):
        return None
    return start_s, end_s


def _jumps(
    rows: Columns, start_s: float, end_s: float, config: MotionConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return the times of a clip's frames, and the indices of its jumps among them."""
    rows = between(rows, start_s, end_s)
    changed = rows["changed"]
    inner = changed[1:-1]
    excess = inner - np.maximum(changed[:-2], changed[2:])
    return rows["time_s"], 1 + np.flatnonzero((inner >= config.jump) & (excess >= config.jump))
