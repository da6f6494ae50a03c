"""Frame masks: drawn in their fractions, of the right shapes, and each from its own key."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.diffusion.config import KINDS, OPEN_SORA, FrameMaskConfig
from xgen_jax.diffusion.frame_masks import sample_frame_masks
from xgen_jax.errors import UserError


def only(kind):
    return FrameMaskConfig(**{"none": 0.0, kind: 1.0})


def draw(config, frames, count=512):
    keys = jax.random.split(jax.random.key(3), count)
    return np.asarray(jax.jit(lambda keys: sample_frame_masks(keys, frames, config))(keys))


def runs(condition):
    """Lengths of the runs of condition frames, and whether they touch the head and the tail."""
    text = "".join("x" if c else "." for c in condition)
    return [len(run) for run in text.split(".") if run], text.startswith("x"), text.endswith("x")


@pytest.mark.parametrize("frames", [9, 29])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_each_kind_is_what_its_name_says(kind, frames):
    sizes, starts = collections.Counter(), collections.Counter()
    for frame_mask in draw(only(kind), frames):
        lengths, head, tail = runs(~frame_mask)
        assert len(lengths) == (2 if kind.endswith("head_tail") else 1)
        assert len(set(lengths)) == 1
        sizes[lengths[0]] += 1
        starts[int(np.argmin(frame_mask))] += 1
        if "random" not in kind:
            assert (head, tail) == ("head" in kind, "tail" in kind)
    assert set(sizes) == ({1} if kind.startswith("image") else set(range(1, frames // 4 + 1)))
    if kind == "image_random":
        assert set(starts) == set(range(frames))


def test_kinds_come_in_their_fractions():
    # The kinds that can be told apart in 29 frames with single frames left out of the quarters are
    # few: share by group.
    frame_mask = draw(OPEN_SORA, 29, 20_000)
    condition = ~frame_mask
    whole = np.mean(frame_mask.all(1))
    head, tail = condition[:, 0], condition[:, -1]
    assert abs(whole - 0.75) < 0.01
    assert abs(np.mean(head & tail) - 0.1) < 0.01
    # A random place touches an end now and then: 2 x 0.025 / about 27.
    assert abs(np.mean(head & ~tail) - 0.052) < 0.006
    assert abs(np.mean(tail & ~head) - 0.052) < 0.006
    assert abs(sum(OPEN_SORA.fractions) - 1) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 2, 3])
def test_something_is_always_left_to_draw(frames):
    for kind in KINDS:
        frame_mask = draw(only(kind), frames, 64)
        assert frame_mask.any(1).all(), kind
        assert frame_mask.all() == (
            kind == "none" or frames == 1 or (frames == 2 and kind.endswith("head_tail"))
        )


@pytest.mark.slow
def test_a_mask_follows_from_its_key_alone():
    keys = jax.random.split(jax.random.key(0), 16)
    whole = sample_frame_masks(keys, 8, OPEN_SORA)
    parts = jnp.concatenate(
        [sample_frame_masks(keys[:3], 8, OPEN_SORA), sample_frame_masks(keys[3:], 8, OPEN_SORA)]
    )
    np.testing.assert_array_equal(whole, parts)


def test_fractions_that_do_not_add_up_are_refused():
    with pytest.raises(UserError, match="add up to 1: none 1.0, quarter_random 0.5"):
        FrameMaskConfig(quarter_random=0.5)
    with pytest.raises(UserError, match="must be 0 or more"):
        dataclasses.replace(OPEN_SORA, none=1.0, image_head=-0.225)
