"""Plans of requests: filled in, cut into segments, refused if impossible, with warnings about what
was not trained on."""

import dataclasses
import pathlib
import re

import pytest

from xgen_jax.commands.sample import parse_size
from xgen_jax.config.runs import run_config
from xgen_jax.data.buckets import STAGES, make_buckets
from xgen_jax.data.config import LatentsConfig
from xgen_jax.diffusion.config import OPEN_SORA, GridConfig
from xgen_jax.errors import UserError
from xgen_jax.inference.request import VideoPlan, VideoRequest, plan_video
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_config import PRESETS
from xgen_jax.models.vidvae_embedder import VidVAEEmbedder
from xgen_jax.testing import VDIT

EMBEDDER = VidVAEEmbedder(model=VidVAE(PRESETS["paper"]))


def run(buckets, masks=OPEN_SORA, fit=True):
    config = run_config({**VDIT, "embedder": "nowhere"})
    data = dataclasses.replace(config.data, buckets=tuple(buckets), fit=fit, source=LatentsConfig())
    return dataclasses.replace(
        config, data=data, loss=dataclasses.replace(config.loss, frame_masks=masks)
    )


STAGE3 = run(make_buckets(STAGES["720p"], ("9:16", "1:1"), 1))


def plan(config=STAGE3, **request):
    return plan_video(config, EMBEDDER, VideoRequest(**request))


def test_14_s_of_720p_is_one_segment_of_104400_tokens():
    lines = (
        (pathlib.Path(__file__).parents[2] / "configs/sampling/720p_14s.flags")
        .read_text()
        .splitlines()
    )
    shipped = dict(
        line.removeprefix("--").split("=")
        for line in lines
        if line.startswith("--") and "=" in line
    )
    assert shipped.keys() == {"size", "frames", "fps", "batch_size", "compute_dtype", "attention"}
    whole = plan(
        frames=int(shipped["frames"]), size=parse_size(shipped["size"]), fps=float(shipped["fps"])
    )
    assert (whole.segments, whole.segment_shape, whole.tokens(2)) == (1, (29, 90, 160, 4), 104_400)
    assert whole.warnings == ()
    # Stage 2 trains 17 frames of 720p, and 113 of smaller ones.
    (warning,) = plan(
        run(make_buckets(STAGES["480p"], ("9:16", "1:1"), 1)), frames=113, size=(720, 1280)
    ).warnings
    assert re.fullmatch(
        "113x720x1280 at once is more than the largest clip trained on, .* x width\\)", warning
    )


def test_the_default_is_the_first_bucket_of_videos():
    default = plan()
    assert (default.frames, default.height, default.width, default.fps) == (17, 144, 256, 8.0)
    assert default.warnings == ()


@pytest.mark.parametrize(
    ("frames", "options", "segments", "segment", "overlap"),
    [
        (113, {}, 1, 29, 7),
        (117, {}, 2, 29, 7),
        (201, {}, 2, 29, 7),  # 29 + 22 latent frames
        (205, {}, 3, 29, 7),
        (205, {"overlap": 1}, 2, 29, 1),
        (17, {"segment_frames": 9, "overlap": 2}, 3, 3, 2),
        (17, {"segment_frames": 33}, 1, 5, 1),
    ],
)
def test_long_videos_are_cut_into_segments(frames, options, segments, segment, overlap):
    got = plan(frames=frames, size=(144, 256), **options)
    assert (got.segments, got.segment_shape[0], got.overlap) == (segments, segment, overlap)
    assert got.segments == 1 or segment + (segments - 2) * (segment - overlap) < got.latent_frames
    assert segment + (segments - 1) * (segment - overlap) >= got.latent_frames


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            {"frames": 16},
            "16 frames cannot be encoded: lengths are 1 .* 4n; the nearest are 13, 17",
        ),
        ({"size": (100, 256)}, "height 100 is not a multiple of 8; the nearest are 96 and 104"),
        ({"fps": 0.0}, "fps=0.0 must be above 0"),
        ({"frames": 0}, "frames=0 must be 1 or more"),
        ({"steps": 0}, "steps=0 must be 1 or more"),
        ({"fps": float("nan")}, "fps=nan must be above 0"),
        ({"frames": 121, "segment_frames": 112}, "112 frames cannot be encoded"),
        (
            {"frames": 121, "overlap": 29},
            "overlap=29 must be 1 or more latent frames and fewer than a segment's 29",
        ),
        ({"frames": 17, "overlap": 0}, "overlap=0 must be 1 or more"),
        ({"frames": 9, "segment_frames": 1}, "fewer than a segment's 1"),
    ],
)
def test_impossible_requests_are_refused(request_, message):
    with pytest.raises(UserError, match=message):
        plan(**request_)


@pytest.mark.parametrize(
    ("request_", "warnings"),
    [
        ({"size": (88, 88)}, ["88x88 .* is outside the sizes trained on, 144x256 to 1024x1024"]),
        ({"size": (1440, 2560)}, ["1440x2560 .* is outside the sizes trained on"]),
        ({"size": (184, 200)}, []),  # not a multiple of 16: padded in the network
        (
            {"size": (144, 512)},
            [r"144x512 has an aspect .* of 0.281, outside those trained on, 0.56\d to 1"],
        ),
        (
            {"size": (144, 256), "frames": 129, "segment_frames": 129},
            ["129 frames at once are more than the 113"],
        ),
        ({"size": (144, 256), "frames": 225}, []),
    ],
)
def test_requests_unlike_training_give_warnings(request_, warnings):
    got = plan(**request_).warnings
    assert len(got) == len(warnings)
    for warning, expected in zip(got, warnings):
        assert re.search(expected, warning)


def test_segments_without_frame_masks_in_training_give_a_warning():
    without = run(STAGE3.data.buckets, masks=type(OPEN_SORA)())
    (warning,) = plan(without, size=(144, 256), frames=225).warnings
    assert warning.startswith(
        "3 segments continue one another, and the run was not trained with given frames"
    )
    images = run([bucket for bucket in STAGE3.data.buckets if bucket.frames == 1])
    got = plan(images, size=(512, 512), frames=9)
    assert (got.segments, got.segment_frames) == (1, 9)
    assert got.warnings == ("9 frames at once are more than the 1 trained on",)


def test_buckets_without_clips_are_not_trained_on():
    stage1 = run(make_buckets(STAGES["240p"], ("1:1",), 1))
    assert isinstance(plan(stage1), VideoPlan)
    assert plan(stage1, size=(320, 320), frames=33).warnings == ()
    (warning,) = plan(stage1, size=(320, 320), frames=65).warnings  # 65x320x320 has keep_prob=0
    assert "65x320x320 at once is more than the largest clip trained on" in warning


def test_a_grid_of_a_name_comes_with_its_options_and_leaves_those_of_the_runs_own():
    own = GridConfig(steps_offset=1, set_alpha_to_one=False)
    config = dataclasses.replace(STAGE3, sample_spacing="ddim_leading", grid=own)
    assert (plan(config).spacing, plan(config).grid) == ("ddim_leading", own)
    assert plan(config, steps_offset=0).grid == GridConfig(set_alpha_to_one=False)
    assert plan(config, spacing="trailing").grid == GridConfig()
    asked = plan(STAGE3, spacing="dpm_leading", steps_offset=1)
    assert (asked.spacing, asked.grid) == ("dpm_leading", GridConfig(steps_offset=1))
