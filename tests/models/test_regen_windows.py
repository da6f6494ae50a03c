"""Frames that REGEN samples together, and their conditioning across the borders of chunks."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.inference.resample_time import moments
from xgen_jax.models.regen import REGEN, frame_times
from xgen_jax.models.regen_config import PRESETS
from xgen_jax.models.regen_windows import (
    border_times,
    border_weights,
    border_window,
    condition_borders,
    condition_shifted,
    look_ahead,
    middle,
    plan_windows,
    shifted_starts,
)
from xgen_jax.testing import REGEN_MODEL, random_regen_params

LENGTH, HELD, BEYOND = REGEN_MODEL.chunk_frames, 2, 1


def test_across_a_border_frames_are_conditioned_on_both_chunks():
    times_2F, mix_F = border_times(REGEN_MODEL, [3, 4, 5, 6, 7])
    np.testing.assert_allclose(times_2F[0] * REGEN_MODEL.ratio, [3, 4, 5, 6, 7], atol=1e-6)
    # A chunk's first frame is at 0, but not exactly: its content latent would take no part there.
    np.testing.assert_allclose(times_2F[1] * REGEN_MODEL.ratio, [-2, -1, 0, 1, 2], atol=1e-3)
    assert (times_2F[1] != 0).all()
    np.testing.assert_allclose(mix_F, [0.125, 0.375, 0.625, 0.875, 1.0], atol=1e-6)
    assert look_ahead(REGEN_MODEL, "shifted") == HELD + BEYOND == LENGTH // 2 + 1


@pytest.mark.parametrize("ratio, wanted", [(4, [0.25, 0.75]), (16, [0.125, 0.375, 0.625, 0.875])])
def test_where_windows_meet_one_fades_into_the_other(ratio, wanted):
    config = dataclasses.replace(REGEN_MODEL, encoder=PRESETS[f"tiny-{ratio}x"].encoder)
    beyond = len(wanted) // 2
    start, length = middle(config), config.chunk_frames
    begins = np.arange(start - beyond - 1, start + beyond + 1)
    weights = border_weights(config, begins)
    np.testing.assert_allclose(weights, [0, *wanted, 1], atol=1e-12)
    # The window after it begins where it ends: of each frame the weights add up to 1.
    ends = border_weights(config, begins + length)
    np.testing.assert_allclose(border_weights(config, begins + length, first=1) + ends, 1)
    window = border_window(config, beyond)
    assert len(window.frames_F) == length + 2 * beyond and (window.weights_F > 0).all()
    assert look_ahead(config, "shifted") == config.chunk_frames // 2 + beyond


@pytest.mark.parametrize("between", ["interpolated", "continuous"])
@pytest.mark.parametrize("windows", ["shifted", "chunk"])
@pytest.mark.parametrize("frames", [1, 5, 6, 15, 16])
@pytest.mark.parametrize("speed", [1.0, 0.5, 0.4, 0.75, 0.1])
def test_windows_sample_each_position_once(frames, speed, windows, between):
    positions, total, seen = moments(frames, speed), collections.Counter(), collections.Counter()
    for window in plan_windows(REGEN_MODEL, frames, windows, positions, between):
        (chunks, after), times, mix = window.chunks_2F, window.times_2F, window.mix_F
        at = positions[window.frames_F]
        # A window looks as training saw it: no moments closer than a frame, and not more than a
        # chunk has, but for one at either end of those across a border, where windows meet.
        assert len(at) <= 5 + 2 * ((window.weights_F > 0) & (window.weights_F < 1)).any()
        assert (np.diff(at) > 1 - 1e-9).all()
        assert chunks.max() == chunks.min()
        first, second = chunks * 5 + times[0] * 4, after * 5 + times[1] * 4
        if (after == chunks + 1).all() and (
            np.abs(second - at) < 1e-3
        ).all():  # around a border: of both chunks
            assert windows == "shifted"
            np.testing.assert_allclose(first, at, atol=1e-5)
            np.testing.assert_allclose(
                mix, np.clip((at - 5 * after + 0.5) / 4 + 0.5, 0, 1), atol=1e-6
            )
        elif between == "interpolated":  # between two frames, and so at times that training saw
            assert np.isin(times, np.arange(5) / 4).all()
            assert (mix < 1).all() and np.isin(second - first, (0, 1)).all()
        else:
            assert not mix.any() and (times >= 0).all() and (times < 1.25).all()
        for index, weight in zip(window.frames_F, window.weights_F):
            total[index] += weight
            seen[index] += 1
    assert sorted(total) == list(range(len(positions)))
    np.testing.assert_allclose(list(total.values()), 1, atol=1e-12)
    crossed = windows == "shifted" and frames >= 10
    assert max(seen.values()) == (2 if crossed else 1)


@pytest.mark.parametrize("chunks", [1, 2, 5])
def test_training_windows_begin_within_half_a_chunk_of_their_chunk_and_in_the_clip(chunks):
    keys = jax.random.split(jax.random.key(0), (200, chunks))
    starts = np.asarray(jax.vmap(lambda keys_N: shifted_starts(keys_N, LENGTH))(keys))
    for chunk in range(chunks):
        around = np.arange(LENGTH * chunk - 2, LENGTH * chunk + 3)
        wanted = set(np.clip(around, 0, LENGTH * (chunks - 1)).tolist())
        assert set(starts[:, chunk].tolist()) == wanted


@pytest.mark.slow
def test_training_conditions_frames_across_borders_as_decoding_does():
    model, params = REGEN(REGEN_MODEL), random_regen_params()
    z = jax.random.normal(jax.random.key(1), (2, 3, 2, 3, 2, 4))
    own_times = jnp.broadcast_to(frame_times(REGEN_MODEL, LENGTH)[None], (6, LENGTH))
    own = model.apply(params, z.reshape(6, 2, 3, 2, 4), own_times, method="expand").added_BFHWD
    across = np.asarray(condition_shifted(model, params, z, own))
    decoded = np.asarray(condition_borders(model, params, z)).reshape(2, 10, 3, 2, -1)
    np.testing.assert_array_equal(across[:, 3:13], decoded)
    clip = np.asarray(own).reshape(2, 15, 3, 2, -1)
    np.testing.assert_array_equal(across[:, :3], clip[:, :3])
    np.testing.assert_array_equal(across[:, 13:], clip[:, 13:])

    def at(chunk, time):
        return model.apply(
            params, z[:, chunk], jnp.full((2, 1), time), method="expand"
        ).added_BFHWD[:, 0]

    # Frame 4 is the first chunk's last, frame 5 the second's first: just after its time 0.
    for frame, share in ((3, 0.125), (4, 0.375), (5, 0.625), (6, 0.875)):
        wanted = (1 - share) * at(0, frame / 4) + share * at(1, (frame - 5) / 4 or 1e-4)
        np.testing.assert_allclose(across[:, frame], wanted, rtol=0, atol=1e-5)
