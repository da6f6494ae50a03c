"""Text in pictures: burned-in lines of known area are found, and none in pictures without."""

import socket

import cv2
import numpy as np
import pytest
import rapidocr
from dead_leaves import dead_leaves
from PIL import Image, ImageDraw, ImageFont
from verdict import dropped

from xgen_jax.curation.config import TextConfig
from xgen_jax.curation.meter import between
from xgen_jax.curation.text import TextMeter, text_scores
from xgen_jax.errors import UserError

CONFIG = TextConfig()
MAX = CONFIG.max_area
WORDS = (
    *("brown", "jumps", "over", "lazy", "then", "nobody", "where", "went", "because", "rain"),
    *("night", "long", "HELLO", "World", "News", "LIVE", "Chapter", "Subscribe", "1987", "Paris,"),
)
SIZES = ((360, 640), (720, 1280), (640, 360), (480, 480), (480, 640), (272, 640))
COLORS = (((255, 255, 255), (0, 0, 0)), ((255, 230, 40), (0, 0, 0)), ((20, 20, 20), (255,) * 3))
# What is drawn: words a line, height of a letter as part of the frame's shorter side, lines, y.
TEXTS = {
    "subtitle": (5, (0.055, 0.08), (1, 2), 0.78),
    "title": (2, (0.1, 0.18), (1, 1), 0.4),
    "giant": (1, (0.2, 0.28), (1, 1), 0.3),
    "credits": (3, (0.055, 0.065), (7, 8), 0.08),
    "logo": (1, (0.03, 0.05), (1, 1), 0.04),
}


def texture(rng, height, width):
    """Soft clouds with details of all sizes."""
    octaves = [rng.standard_normal((2**i, 2**i, 3)) / 1.6**i for i in range(1, 8)]
    whole = sum(cv2.resize(o, (width, height), interpolation=cv2.INTER_CUBIC) for o in octaves)
    return (255 * (whole - whole.min()) / np.ptp(whole)).astype(np.uint8)


def noise(rng, height, width):
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def grainy(rng, height, width):
    """A dark scene of a sensitive film."""
    picture = dead_leaves(rng, height, width) / 2
    return np.clip(picture + rng.normal(0, 20, picture.shape), 0, 255).astype(np.uint8)


def upscaled(rng, height, width):
    tiny = cv2.resize(dead_leaves(rng, 72, 88), (44, 36), interpolation=cv2.INTER_AREA)
    return cv2.resize(tiny, (width, height), interpolation=cv2.INTER_LINEAR)


def fence(rng, height, width):
    """Bars in front of clouds."""
    picture, step = texture(rng, height, width), int(rng.integers(12, 30))
    for x in range(0, width, step):
        end = x + int(rng.integers(-4, 5)), height
        cv2.line(picture, (x, 0), end, (30, 30, 30), step // 5, cv2.LINE_AA)
    return picture


BACKGROUNDS = (dead_leaves, texture, grainy, upscaled, fence)
WITHOUT = (*BACKGROUNDS, noise)


def draw(rng, picture, text, center, top, size):
    """Draw a line of text, with an outline or on a band; return the picture and the (top, left,
    bottom, right) of the letters."""
    fill, outline = COLORS[rng.integers(len(COLORS))]
    stroke = max(1, size // 14)
    if rng.integers(2):
        image = Image.fromarray(picture)
        pen, font = ImageDraw.Draw(image), ImageFont.load_default(size)
        x0, y0, x1, y1 = map(int, pen.textbbox((0, 0), text, font=font, stroke_width=stroke))
        left = max(0, int(center - (x1 - x0) / 2))
        at = left - x0, top - y0
        pen.text(at, text, fill, font, stroke_width=stroke, stroke_fill=outline)
        return np.array(image), (top, left, top + y1 - y0, left + x1 - x0)
    face = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX)[rng.integers(2)]
    (width, height), below = cv2.getTextSize(text, face, size / 30, stroke)
    left = max(0, int(center - width / 2))
    bottom, right, margin = top + height + below // 2, left + width, size // 4
    picture[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = (
        outline
    )
    cv2.putText(picture, text, (left, top + height), face, size / 30, fill, stroke, cv2.LINE_AA)
    return picture, (top, left, bottom, right)


def make_clip(rng, background, kind, frames=2, step=37):
    """A picture that moves behind text that stands: frames uint8 (T, H, W, 3), and the part of the
    frame that the bounding boxes of the lines' letters cover."""
    height, width = SIZES[rng.integers(len(SIZES))]
    side = min(height, width)
    whole = background(rng, height + frames * step, width + frames * step)
    lines = []
    if kind:
        words, sizes, count, y = TEXTS[kind]
        size = int(side * rng.uniform(*sizes))
        x = width * (rng.choice([0.15, 0.85]) if kind == "logo" else 0.5)
        for i in range(rng.integers(count[0], count[1] + 1)):
            text = " ".join(rng.choice(WORDS, words))
            lines.append((text, x, int(y * height + 1.35 * size * i), size))
    style, video, covered = int(rng.integers(2**31)), [], np.zeros((height, width), bool)
    for i in range(frames):
        picture, same = whole[i * step :, i * step :][:height, :width], np.random.default_rng(style)
        for line in lines:
            picture, (top, left, bottom, right) = draw(same, picture.copy(), *line)
            covered[top:bottom, left:right] = True
        video.append(picture)
    return np.stack(video), covered.mean()


def measure(video, config=CONFIG):
    """The meter's columns as a stage reads them from its table, one frame a second."""
    meter = TextMeter(config)
    for i, picture in enumerate(video):
        scale = min(1, meter.side / max(picture.shape[:2]))
        small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        meter.add(float(i), small)
    return {
        name: column if name == "time_s" else column.to_numpy(zero_copy_only=False)
        for name, column in meter.columns().items()
    }


def area(video):
    return text_scores(measure(video))["text_area"]


def labelled(of_each):
    """The truth and the measured area of clips with every text on every background, and of clips
    without text."""
    rng = np.random.default_rng(3)
    kinds = [(background, kind) for background in BACKGROUNDS for kind in TEXTS]
    kinds += [(background, None) for background in WITHOUT] * 3
    clips = [make_clip(rng, *kind) for kind in kinds for _ in range(of_each)]
    return np.array([truth for _, truth in clips]), np.array([area(video) for video, _ in clips])


@pytest.mark.parametrize("of_each", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_text_is_found_and_nothing_else(of_each):
    truth, found = labelled(of_each)
    has, has_not = truth >= MAX, truth <= MAX / 2  # those between have boxes of about the threshold
    assert has.sum() >= len(truth) / 3 and has_not.sum() >= len(truth) / 3
    hits = dropped({"text_area": found}, "text", text=CONFIG)
    recall = (hits & has).sum() / has.sum()
    precision = (hits & has).sum() / (hits & (has | has_not)).sum()
    ratio = found[has & hits] / truth[has & hits]
    print(f"{len(truth)} clips: precision {precision:.3f}, recall {recall:.3f}")
    print("box / letters:", np.round(np.percentile(ratio, [0, 5, 50, 95, 100]), 2))
    assert recall >= 0.95 and precision >= 0.95
    # Boxes leave a margin around the letters, wider for smaller ones.
    assert 1.2 < np.median(ratio) < 1.7
    assert ((ratio > 0.8) & (ratio < 2.5)).mean() >= 0.95


def test_finding_text_needs_no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something asks for the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    video, truth = make_clip(np.random.default_rng(0), texture, "title", frames=1)
    config = TextConfig(side=288)  # a side that no other test has loaded the detector for
    assert text_scores(measure(video, config))["text_area"] > truth


def test_the_detector_is_loaded_once(monkeypatch):
    loaded, load = [], rapidocr.RapidOCR
    monkeypatch.setattr(
        rapidocr, "RapidOCR", lambda params: loaded.append(params) or load(params=params)
    )
    config = TextConfig(side=224, every_s=1.5)
    meters = TextMeter(config), TextMeter(config)
    assert len(loaded) == 1
    assert [(meter.side, meter.every_s) for meter in meters] == [(224, 1.5)] * 2


def test_a_rapidocr_without_the_detector_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(rapidocr, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(
        UserError, match=r"PP-OCRv6_det_small.onnx.* pip install 'xgen_jax\[curation]'"
    ):
        TextMeter(TextConfig(side=160))


def test_boxes_are_parts_of_the_frame_whatever_its_size_and_place():
    small = np.full((360, 640, 3), 90, np.uint8)
    picture, (top, left, bottom, right) = draw(
        np.random.default_rng(1), small, "Nobody saw", center=450, top=250, size=40
    )
    boxes = []
    for scale in (1, 2):
        columns = measure(cv2.resize(picture, None, fx=scale, fy=scale)[None])
        (corners,) = columns["boxes"][0].reshape(-1, 4, 2)
        boxes.append(np.array([*corners.min(0), *corners.max(0)]) * np.tile((640, 360), 2))
    np.testing.assert_allclose(boxes[0], boxes[1], atol=4)
    # Around the letters, with a margin of at most their height.
    margins = (np.array([left, top, right, bottom]) - boxes[0]) * (1, 1, -1, -1)
    assert ((margins > -2) & (margins < bottom - top)).all()


def rectangle(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def test_the_area_is_that_of_the_union_in_the_fullest_frame():
    frames = [
        rectangle(0, 0, 0.2, 0.1) + rectangle(0.1, 0, 0.3, 0.1),  # overlap: 0.03 and not 0.04
        [],
        [0.5, 0.4, 0.6, 0.5, 0.5, 0.6, 0.4, 0.5],  # turned by 45 degrees: 0.02
    ]
    rows = {
        "time_s": np.array([0.0, 2.5, 5.0]),
        "boxes": np.array([np.array(boxes, np.float32) for boxes in frames], object),
    }

    def scores(start_s, end_s):
        return text_scores(between(rows, start_s, end_s))

    assert scores(0, 9) == pytest.approx({"text_area": 0.03, "text_boxes": 2})
    assert scores(1, 9) == pytest.approx({"text_area": 0.02, "text_boxes": 1}, rel=1e-5)
    assert scores(1, 3) == {"text_area": 0, "text_boxes": 0}
    assert np.isnan(list(scores(6, 9).values())).all()


def test_a_video_without_a_frame_has_typed_columns_and_no_score():
    columns = TextMeter(CONFIG).columns()
    assert str(columns["boxes"].type) == "list<item: float>"
    rows = {"time_s": columns["time_s"], "boxes": columns["boxes"].to_numpy(zero_copy_only=False)}
    assert np.isnan(text_scores(rows)["text_area"])


def test_more_than_the_limit_is_rejected_and_no_score_is_not():
    scores = {"text_area": np.array([0, 0.02, 0.021, np.nan])}
    assert dropped(scores, "text", text=CONFIG).tolist() == [False, False, True, False]
    assert not dropped(scores, "text", text=TextConfig(max_area=0.05)).any()
