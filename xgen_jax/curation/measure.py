"""One decoding of a video, which feeds every meter.

Meters of every frame, and meters of frames at equal distances in time. The latter are also given a
frame early in each shot, so that even short clips are measured. Where a shot begins is only guessed
here, from a sudden change of the picture, so that what is measured does not depend on the
thresholds of any stage.
"""

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import pyarrow as pa

from xgen_jax.curation.config import LimitsConfig
from xgen_jax.curation.isolation import alive
from xgen_jax.curation.meter import Columns, Meter
from xgen_jax.data.video import VideoReader
from xgen_jax.errors import UserError
from xgen_jax.files import file_sha256

DENSE_SIDE = 256  # pixels of the longer side of every frame's picture
_FIRST_S = 1.0  # of a shot, at which it is measured
_CHANGE = 24.0  # of brightness, 0 to 255, that may be a cut: mean over the picture
_ALIVE_EVERY = 50  # frames


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of a video.

    Attributes:
      facts: "sha256" and "bytes" of the file, "width", "height", "fps", "frames" that were decoded,
        and "seconds" to the end of the last.
      tables: columns of each meter, by its name.
      cpu_s: seconds of processor time of each meter, and of "decode".
    """

    facts: dict[str, str | int | float]
    tables: dict[str, Columns]
    cpu_s: dict[str, float]


class ThumbnailMeter(Meter):
    """Small pictures for the page, as JPEG.

    Args:
      every_s: seconds between them.
    """

    side = 160

    def __init__(self, every_s: float):
        self.every_s = every_s
        self._times: list[float] = []
        self._jpegs: list[bytes] = []

    def add(self, time_s: float, image: np.ndarray) -> None:
        """See `Meter.add`."""
        self._times.append(time_s)
        self._jpegs.append(to_jpeg(image, quality=70))

    def columns(self) -> Columns:
        """Return "time_s" and "jpeg"."""
        return {
            "time_s": np.array(self._times, np.float64),
            "jpeg": pa.array(self._jpegs, pa.binary()),
        }


def to_jpeg(image: np.ndarray, quality: int) -> bytes:
    """Encode uint8 (H, W, 3) RGB; the same picture gives the same bytes."""
    settings = [int(cv2.IMWRITE_JPEG_QUALITY), quality]
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    if not encoded:
        raise ValueError(f"no JPEG can be made of a picture {image.shape}")
    return data.tobytes()


def measure(path: str, meters: Mapping[str, Meter], limits: LimitsConfig) -> Measured:
    """Decode a video once, in memory that does not grow with its frames.

    Args:
      path: of the file.
      meters: by name, new ones.
      limits: of the file; see `LimitsConfig`.

    Raises:
      UserError: it cannot be read to its end, or exceeds a limit.
    """
    cv2.setNumThreads(1)  # how many videos are measured at once is the engine's business
    began = time.process_time()
    digest = file_sha256(path)
    grid = {name: min(_FIRST_S, meter.every_s) for name, meter in meters.items() if meter.every_s}
    cpu_s = dict.fromkeys(meters, 0.0)
    frames, end_s, before = 0, 0.0, None
    with VideoReader(path, max_pixels=limits.pixels) as reader:
        for time_s, length_s, picture in reader.pictures():
            if time_s > limits.hours * 3600:
                raise UserError(f"it is longer than {limits.hours:g} hours (--config.limits.hours)")
            if frames % _ALIVE_EVERY == 0:
                _check_time(began, time_s, limits)
            small = picture.image(DENSE_SIDE, fast=True)
            coarse = small[::16, ::16].astype(np.int16)
            if before is not None and np.abs(coarse - before).mean() > _CHANGE:
                grid = {name: min(due, time_s + _FIRST_S) for name, due in grid.items()}
            before = coarse
            for name, meter in meters.items():
                if meter.every_s and time_s < grid[name]:
                    continue
                start = time.process_time()
                meter.add(time_s, picture.image(meter.side, fast=not meter.every_s))
                cpu_s[name] += time.process_time() - start
                if meter.every_s:
                    grid[name] = time_s + meter.every_s
            frames, end_s = frames + 1, time_s + length_s
        facts = {
            "sha256": digest,
            "bytes": os.path.getsize(path),
            "width": reader.width,
            "height": reader.height,
            "fps": reader.fps,
            "frames": frames,
            "seconds": end_s,
        }
    tables = {}
    for name, meter in meters.items():
        start = time.process_time()
        tables[name] = meter.columns()
        cpu_s[name] += time.process_time() - start
    cpu_s["decode"] = time.process_time() - began - sum(cpu_s.values())
    return Measured(facts, tables, cpu_s)


def frames_at(path: str, times_s: Sequence[float], side: int) -> list[np.ndarray]:
    """Return the frames on display at increasing times, their longer side at most `side`.

    Raises:
      UserError: the file cannot be read, or ends before.
    """
    images = []
    with VideoReader(path, start_s=times_s[0]) as reader:
        rest = list(times_s)
        shown = None
        for time_s, _, picture in reader.pictures():
            while rest and shown is not None and rest[0] < time_s:
                images.append(shown.image(side))
                rest.pop(0)
            if not rest:
                break
            shown = picture
        images += [shown.image(side) for _ in rest] if shown is not None else []
    if not images:
        raise UserError(f"cannot read {path} at {times_s[0]:g} s: the video ends before that")
    return images


def _check_time(began: float, time_s: float, limits: LimitsConfig) -> None:
    """Raise UserError for a video that takes too long, and let the process live on otherwise."""
    allowed = limits.seconds + limits.seconds_per_second * time_s
    if time.process_time() - began > allowed:
        raise UserError(
            f"it took more than {allowed:.0f} s of processor time for {time_s:.0f} s of video "
            "(--config.limits.seconds_per_second)"
        )
    alive(limits.seconds)
