"""Windows of frames that REGEN is trained on, shifted across the borders of chunks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.config.losses import REGENLossConfig
from xgen_jax.errors import UserError
from xgen_jax.models.regen import REGEN, Conditioning
from xgen_jax.models.regen_config import PRESETS
from xgen_jax.testing import REGEN_MODEL, random_regen_params, regen_task
from xgen_jax.training.tasks.regen import choose_windows

CHUNKS, FRAMES, ACROSS = 3, 5, 1000


def numbered(batch, chunks=CHUNKS):
    """Clips whose frames, and whose conditioning, are their numbers in the batch."""
    numbers = jnp.arange(batch * chunks * FRAMES, dtype=jnp.float32)
    frames = jnp.broadcast_to(
        numbers.reshape(batch, chunks, FRAMES, 1, 1, 1), (batch, chunks, FRAMES, 2, 2, 3)
    )
    cond = jnp.broadcast_to(
        numbers.reshape(batch * chunks, FRAMES, 1, 1, 1), (batch * chunks, FRAMES, 1, 1, 6)
    )
    return frames, Conditioning(cond), cond.reshape(batch, chunks * FRAMES, 1, 1, 6) + ACROSS


def keys(batch, chunks=CHUNKS, seed=0):
    return jax.random.split(jax.random.key(seed), (batch, chunks))


def shifted(batch, seed=0):
    frames, cond = choose_windows(
        REGENLossConfig(windows="shifted"), keys(batch, seed=seed), *numbered(batch)
    )
    return np.asarray(frames), np.asarray(cond.added_BFHWD)


@pytest.mark.slow
def test_a_shifted_window_has_a_chunks_length_of_neighbours_with_their_conditioning():
    frames, cond = shifted(40)
    assert frames.shape == (40, CHUNKS, FRAMES, 2, 2, 3)
    numbers = frames[..., 0, 0, 0]
    across = numbers[:, :, :1] % FRAMES != 0
    np.testing.assert_array_equal(
        cond[..., 0, 0, 0].reshape(numbers.shape), numbers + ACROSS * across
    )
    assert across.any() and not across.all()
    np.testing.assert_array_equal(np.diff(numbers, axis=2), 1)
    first = numbers[:, :, 0] - CHUNKS * FRAMES * np.arange(40)[:, None]
    # As far as half a chunk either way, but not out of the clip.
    assert sorted(set(first[:, 0])) == [0, 1, 2]
    assert sorted(set(first[:, 1])) == [3, 4, 5, 6, 7]
    assert sorted(set(first[:, 2])) == [8, 9, 10]


@pytest.mark.slow
def test_the_shift_of_a_window_depends_on_its_key_only():
    (frames, _), (again, _), (others, _) = shifted(8), shifted(8), shifted(8, seed=1)
    np.testing.assert_array_equal(frames, again)
    assert (frames != others).any()
    one, _ = choose_windows(REGENLossConfig(windows="shifted"), keys(8)[:1], *numbered(1))
    np.testing.assert_array_equal(one[0], frames[0])


@pytest.mark.parametrize("windows, chunks", [("chunk", CHUNKS), ("shifted", 1)])
def test_windows_are_not_shifted_by_choice_or_without_a_neighbour(windows, chunks):
    given = numbered(2, chunks)
    frames, cond = choose_windows(REGENLossConfig(windows=windows), keys(2, chunks), *given)
    np.testing.assert_array_equal(frames, given[0])
    np.testing.assert_array_equal(cond.added_BFHWD, given[1].added_BFHWD)


def test_tokens_of_two_chunks_are_refused():
    model = REGEN(dataclasses.replace(PRESETS["tiny-4x"], conditioning="in_context"))
    with pytest.raises(UserError, match="loss.windows='shifted' .* choose loss.windows='chunk'"):
        regen_task(model=model, loss_config=REGENLossConfig(windows="shifted"))


@pytest.mark.slow
def test_windows_are_shifted_in_the_loss():
    """Two chunks and an image: the loss is finite, and differs from that of the chunks alone."""
    objective = regen_task(
        model=REGEN(REGEN_MODEL), loss_config=REGENLossConfig(windows="shifted", motion=1.0)
    )
    video = np.random.default_rng(0).integers(0, 256, (2, 2 * FRAMES + 1, 8, 8, 3), np.uint8)
    step_keys = jax.random.split(jax.random.key(3), 2)

    def loss(params):
        return objective.loss({"regen": params}, {"video": video}, step_keys, jnp.int32(0))

    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        random_regen_params()
    )
    assert np.isfinite(value) and np.isfinite(metrics["motion"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    plain = regen_task(
        model=REGEN(REGEN_MODEL), loss_config=REGENLossConfig(windows="chunk", motion=1.0)
    )
    alone, _ = jax.jit(plain.loss)(
        {"regen": random_regen_params()}, {"video": video}, step_keys, jnp.int32(0)
    )
    assert value != alone
