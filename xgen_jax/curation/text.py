"""Text in the picture: what part of it subtitles, captions, signs and logos cover.

The paper (arXiv 2408.12590, section 3) drops clips in which PaddleOCR's text detector finds text of
20,000 pixels or more. Here a later version of that detector, which is part of rapidocr's wheel,
looks at small frames. Nothing is recognised, and nothing is downloaded.

One frame is enough. To ask that two frames of a clip show the same text was tried on 238 labelled
clips: it kept out 2 of 5 false finds, but lost 3 of 113 true ones, and would lose each subtitle
that only one of the frames shows. Not found are letters of less than about 7 pixels at `side`, and
plain letters without outline or band on a restless background; rows of equal dark windows are taken
for text.
"""

import functools
import pathlib

import numpy as np
import pyarrow as pa
import rapidocr
import shapely

from xgen_jax.curation.config import TextConfig
from xgen_jax.curation.meter import Columns, Meter
from xgen_jax.errors import UserError

_MODEL = "PP-OCRv6_det_small.onnx"
# What the detector takes for text in pictures without any is most often a large part of the
# picture, or all of it. A line of text is low, or else long.
_MAX_HEIGHT = 1 / 3  # of the frame's shorter side
_MIN_LENGTH = 2.0  # times its height, of a line that is higher
_MAX_BOX = 0.8  # of the frame


class TextMeter(Meter):
    """Finds text in a few frames.

    Args:
      config: whose `every_s` and `side` are used.

    Raises:
      UserError: the installed rapidocr does not have the detector.
    """

    def __init__(self, config: TextConfig):
        self.every_s, self.side = config.every_s, config.side
        self._detector = _detector(config.side)
        self._times_s: list[float] = []
        self._boxes: list[np.ndarray] = []

    def add(self, time_s: float, image: np.ndarray) -> None:
        """See `Meter.add`."""
        height, width = image.shape[:2]
        # The network was trained on BGR.
        found = self._detector(np.ascontiguousarray(image[..., ::-1]))
        # Their scores are of no use: rapidocr 3.10 sorts the boxes and leaves the scores unsorted.
        boxes = getattr(found, "boxes", None)
        corners = np.zeros((0, 4, 2)) if boxes is None else np.asarray(boxes)
        corners = corners[_are_lines(corners, height, width)]
        self._times_s.append(time_s)
        self._boxes.append((corners / (width, height)).astype(np.float32).ravel())

    def columns(self) -> Columns:
        """Return "time_s" and "boxes", for each frame a list of float32: eight numbers a box, x and
        y of its four corners clockwise, as parts of the frame's width and height."""
        boxes = pa.array(self._boxes, pa.list_(pa.float32()))
        return {"time_s": np.array(self._times_s, np.float64), "boxes": boxes}


def text_scores(rows: Columns) -> dict[str, float]:
    """Return how much text a clip shows, NaN where no frame was searched.

    "text_area" is the largest part of a frame, 0 to 1, that boxes of text cover; a box has about
    1.5 times the area of its letters' bounding box. "text_boxes" is the largest number of them.

    Args:
      rows: of one clip, see `TextMeter.columns`; "boxes" is a NumPy array of arrays.
    """
    frames = [np.asarray(boxes, np.float32).reshape(-1, 4, 2) for boxes in rows["boxes"]]
    if not frames:
        return {"text_area": np.nan, "text_boxes": np.nan}
    # Rounded to pixels, corners may no longer be in order: the hull is always a valid polygon.
    hulls = [shapely.convex_hull(shapely.polygons(corners)) for corners in frames]
    return {
        "text_area": max(float(shapely.area(shapely.union_all(hull))) for hull in hulls),
        "text_boxes": float(max(map(len, frames))),
    }


@functools.cache
def _detector(side: int) -> rapidocr.RapidOCR:
    """Return the detector of this process."""
    model = pathlib.Path(rapidocr.__file__).parent / "models" / _MODEL
    if not model.is_file():
        raise UserError(
            f"text is found by {_MODEL}, which is part of rapidocr 3.10 but not in {model.parent}; "
            "run pip install 'xgen_jax[curation]'"
        )
    return rapidocr.RapidOCR(
        params={
            "Global.use_cls": False,
            "Global.use_rec": False,
            "Global.log_level": "critical",  # it warns of each frame without text
            "Det.model_path": str(model),  # given a path, it never downloads
            "Det.limit_type": "max",
            "Det.limit_side_len": side,
            # Videos are what is done in parallel.
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def _are_lines(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return which boxes (N, 4, 2), in pixels, have the shape of a line of text, bool (N,)."""
    sides = np.linalg.norm(corners[:, :2] - corners[:, 1:3], axis=-1)
    high, long = sides.min(1), sides.max(1)
    low = high <= _MAX_HEIGHT * min(height, width)
    return (low | (long >= _MIN_LENGTH * high)) & (high * long <= _MAX_BOX * height * width)
