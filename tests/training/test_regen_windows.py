"""Which frames REGEN is trained to denoise together: windows moved across the borders of chunks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.models.regen import REGEN, Conditioning
from xgen_jax.models.regen_config import PRESETS
from xgen_jax.training.objectives.regen import REGENLossConfig, REGENObjective, choose_windows

CHUNKS, FRAMES = 3, 5


def numbered(batch, chunks=CHUNKS):
    """Clips whose frames, and what is told of them, are their numbers in the batch."""
    numbers = jnp.arange(batch * chunks * FRAMES, dtype=jnp.float32)
    frames = jnp.broadcast_to(numbers.reshape(batch, chunks, FRAMES, 1, 1, 1), (batch, chunks, FRAMES, 2, 2, 3))
    told = jnp.broadcast_to(numbers.reshape(batch * chunks, FRAMES, 1, 1, 1), (batch * chunks, FRAMES, 1, 1, 6))
    return frames, Conditioning(told)


def keys(batch, chunks=CHUNKS, seed=0):
    return jax.random.split(jax.random.key(seed), (batch, chunks))


def moved(batch, seed=0):
    frames, told = choose_windows(REGENLossConfig(windows="moved"), keys(batch, seed=seed), *numbered(batch))
    return np.asarray(frames), np.asarray(told.added_BFHWD)


def test_a_moved_window_holds_a_chunks_length_of_neighbours_with_what_is_told_of_each():
    frames, told = moved(40)
    assert frames.shape == (40, CHUNKS, FRAMES, 2, 2, 3)
    numbers = frames[..., 0, 0, 0]
    np.testing.assert_array_equal(told[..., 0, 0, 0].reshape(numbers.shape), numbers)
    np.testing.assert_array_equal(np.diff(numbers, axis=2), 1)
    first = numbers[:, :, 0] - CHUNKS * FRAMES * np.arange(40)[:, None]
    # As far as half a chunk either way, but not out of the clip.
    assert sorted(set(first[:, 0])) == [0, 1, 2]
    assert sorted(set(first[:, 1])) == [3, 4, 5, 6, 7]
    assert sorted(set(first[:, 2])) == [8, 9, 10]


def test_where_a_window_is_moved_depends_on_its_key_alone():
    (frames, _), (again, _), (others, _) = moved(8), moved(8), moved(8, seed=1)
    np.testing.assert_array_equal(frames, again)
    assert (frames != others).any()
    one, _ = choose_windows(REGENLossConfig(windows="moved"), keys(8)[:1], *numbered(1))
    np.testing.assert_array_equal(one[0], frames[0])


@pytest.mark.parametrize("windows, chunks", [("chunk", CHUNKS), ("moved", 1)])
def test_windows_stay_where_they_are_told_to_and_where_there_is_no_neighbour(windows, chunks):
    given = numbered(2, chunks)
    frames, told = choose_windows(REGENLossConfig(windows=windows), keys(2, chunks), *given)
    np.testing.assert_array_equal(frames, given[0])
    np.testing.assert_array_equal(told.added_BFHWD, given[1].added_BFHWD)


def test_tokens_of_two_chunks_are_refused():
    model = REGEN(dataclasses.replace(PRESETS["tiny-4x"], conditioning="in_context"))
    with pytest.raises(UserError, match="loss.windows='moved' .* choose loss.windows='chunk'"):
        REGENObjective(model=model, loss_config=REGENLossConfig(windows="moved"))
