"""Quality: PIQE agrees with the reference, degraded videos are worse, black ones are seen."""

import io

import av
import cv2
import numpy as np
import pytest
from dead_leaves import dead_leaves, pan
from verdict import dropped

from xgen_jax.curation.config import QualityConfig
from xgen_jax.curation.meter import between
from xgen_jax.curation.quality import QualityMeter, piqe, quality_scores

CONFIG = QualityConfig()


def reference_picture(name):
    """Pictures of arithmetic alone, uint8 (96, 128), the brightest pixel 255."""
    y, x = np.mgrid[0:96, 0:128].astype(np.float64)
    rng = np.random.default_rng(7)
    values = 110 + 60 * np.sin(x / 3.1) * np.cos(y / 4.3) + 40 * np.sin((x + 2 * y) / 17)
    if name == "noise":
        values += rng.integers(-60, 61, values.shape)
    elif name == "blocks":
        means = values.reshape(12, 8, 16, 8).mean((1, 3))
        values = np.kron(means, np.ones((8, 8))) + 6 * np.sin(x * y)
    elif name == "soft":
        values = 110 + 70 * np.sin(x / 9) * np.cos(y / 11)
    elif name == "grain":
        values = 110 + 70 * np.sin(x / 13) * np.cos(y / 15) + rng.integers(-12, 13, values.shape)
    elif name == "half":
        values[:, 64:] = 90 + x[:, 64:] / 8
        values[:48] += rng.integers(-9, 10, (48, 128))
    picture = np.clip(values, 0, 255).astype(np.uint8)
    picture[0, 0] = 255
    return picture


# Of pypiqe 1.2 (a port of the authors' MATLAB code) with NumPy 2 and OpenCV 5, as
# `pypiqe.piqe(reference_picture(name))[0]`. It stretches pictures to 255, hence that pixel.
REFERENCE = {
    "waves": 92.7375,
    "noise": 70.5282,
    "blocks": 46.1957,
    "soft": 100.0,
    "grain": 46.3687,
    "half": 38.7180,
}


@pytest.mark.parametrize("name", REFERENCE)
def test_piqe_is_that_of_the_reference(name):
    assert piqe(reference_picture(name)) == pytest.approx(REFERENCE[name], abs=0.05)


def each(video, change):
    return np.stack([change(np.ascontiguousarray(picture)) for picture in video])


def blurred(video):
    return each(video, lambda picture: cv2.GaussianBlur(picture, (0, 0), 1.5))


def jpeg(video):
    def again(picture):
        data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 8])[1]
        return cv2.imdecode(data, cv2.IMREAD_COLOR)

    return each(video, again)


def noisy(video):
    noise = np.random.default_rng(0).normal(0, 20, video.shape)
    return np.clip(video + noise, 0, 255).astype(np.uint8)


def h264(video, crf=40):
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        options = {"crf": str(crf), "preset": "veryfast"}
        stream = out.add_stream("libx264", rate=24, options=options)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for i, picture in enumerate(video):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = i
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    file.seek(0)
    with av.open(file) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def upscaled(video):
    size = video.shape[2], video.shape[1]
    return each(video[:, ::3, ::3], lambda picture: cv2.resize(picture, size))


def measure(video):
    meter = QualityMeter(CONFIG)
    for i, picture in enumerate(video):
        meter.add(float(i), np.ascontiguousarray(picture))
    return meter.columns()


def scores(video):
    return quality_scores(measure(video))


@pytest.fixture(scope="module")
def clean():
    """Videos of which each looks like film of some scene."""
    pictures = [dead_leaves(np.random.default_rng(seed), 310, 420) for seed in range(4)]
    return [pan(picture, 6, 288, 400) for picture in pictures]


@pytest.mark.parametrize(
    "change,least,most,sharper",
    # Ranges around what photographs give: blur 77 to 89, JPEG 65 to 75, noise 59 to 64 at more.
    [
        (blurred, 77, 95, False),
        (jpeg, 62, 78, False),
        (noisy, 45, 64, True),
        (h264, 65, 85, False),
        (upscaled, 55, 85, False),
    ],
)
def test_degraded_copies_are_worse_in_every_case(clean, change, least, most, sharper):
    for video in clean:
        before, after = scores(video), scores(change(video))
        assert 20 < before["piqe"] < 35
        assert after["piqe"] > before["piqe"] + 15
        assert least < after["piqe"] < most
        assert (after["sharpness"] > before["sharpness"]) == sharper


def test_light_compression_stays_far_below_the_limit(clean):
    for video in clean:
        assert scores(h264(video, crf=18))["piqe"] < CONFIG.max_piqe - 15


def test_only_degraded_clips_are_rejected(clean):
    good = [scores(video) for video in clean]
    bad = [scores(change(video)) for video in clean for change in (blurred, jpeg, h264)]
    table = {"piqe": np.array([each["piqe"] for each in good + bad])}
    assert dropped(table, "quality", quality=CONFIG).tolist() == [False] * 4 + [True] * 12
    assert not dropped({"piqe": [np.nan]}, "quality", quality=CONFIG).any()
    assert dropped(table, "quality", quality=QualityConfig(max_piqe=10)).all()


def test_black_and_flat_pictures_have_the_worst_score():
    for level in (0, 1, 128, 255):
        flat = scores(np.full((2, 64, 64, 3), level, np.uint8))
        expected = {"piqe": 100, "sharpness": 0, "brightness": level / 255, "contrast": 0}
        assert flat == pytest.approx(expected, abs=1e-6)


def test_dark_clips_are_seen(clean):
    dark = scores(clean[0] // 20)
    assert dark["brightness"] < 0.03 and dark["contrast"] < 0.02
    assert scores(clean[0])["brightness"] > 0.3 and scores(clean[0])["contrast"] > 0.15


def test_the_middle_is_measured_along_the_blocks_of_the_codec():
    """Borders of 16-pixel blocks are where they are in the whole picture: the crop starts at a
    multiple of 16, and what lies outside of it does not matter."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (700, 900, 3)).astype(np.uint8)
    top, left = 112, 224  # the multiples of 16 at or before (700 - 448) / 2 and (900 - 448) / 2
    other = np.zeros_like(picture)
    window = slice(top, top + 448), slice(left, left + 448)
    other[window] = picture[window]
    whole, middle = measure(picture[None]), measure(other[None])
    assert whole["piqe"] == middle["piqe"] and whole["sharpness"] == middle["sharpness"]
    assert whole["brightness"] > 1.5 * middle["brightness"]
    gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    assert whole["piqe"][0] == pytest.approx(piqe(gray[window]), rel=1e-6)


def test_scores_are_means_of_the_clips_rows():
    video = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (0, 51, 102, 255)])
    rows = measure(video)
    assert all(rows[name].dtype == np.float32 for name in rows if name != "time_s")
    part = quality_scores(between(rows, 1, 3))
    assert part["brightness"] == pytest.approx(0.3)
    assert np.isnan(list(quality_scores(between(rows, 8, 9)).values())).all()


def test_a_picture_smaller_than_a_block_and_an_empty_video_have_no_score():
    tiny = scores(np.full((1, 12, 400, 3), 51, np.uint8))
    assert np.isnan(tiny["piqe"]) and np.isnan(tiny["sharpness"])
    assert tiny["brightness"] == pytest.approx(0.2)
    assert np.isnan(piqe(np.zeros((400, 15), np.uint8)))
    assert np.isnan(list(quality_scores(QualityMeter(CONFIG).columns()).values())).all()
