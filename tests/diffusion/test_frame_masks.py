"""Frame masks: drawn in their shares, of the right shapes, and each from its own key."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.diffusion.frame_masks import KINDS, OPEN_SORA, FrameMaskConfig, draw_noised
from xgen_jax.errors import UserError


def only(kind):
    return FrameMaskConfig(**{"none": 0.0, kind: 1.0})


def draw(config, frames, count=512):
    keys = jax.random.split(jax.random.key(3), count)
    return np.asarray(jax.jit(lambda keys: draw_noised(keys, frames, config))(keys))


def runs(condition):
    """Lengths of the runs of condition frames, and whether they touch the head and the tail."""
    text = "".join("x" if c else "." for c in condition)
    return [len(run) for run in text.split(".") if run], text.startswith("x"), text.endswith("x")


@pytest.mark.parametrize("frames", [9, 29])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_each_kind_is_what_its_name_says(kind, frames):
    sizes, starts = collections.Counter(), collections.Counter()
    for noised in draw(only(kind), frames):
        lengths, head, tail = runs(~noised)
        assert len(lengths) == (2 if kind.endswith("head_tail") else 1)
        assert len(set(lengths)) == 1
        sizes[lengths[0]] += 1
        starts[int(np.argmin(noised))] += 1
        if "random" not in kind:
            assert (head, tail) == ("head" in kind, "tail" in kind)
    assert set(sizes) == ({1} if kind.startswith("image") else set(range(1, frames // 4 + 1)))
    if kind == "image_random":
        assert set(starts) == set(range(frames))


def test_kinds_come_in_their_shares():
    # The kinds that can be told apart in 29 frames with single frames left out of the quarters are
    # few: share by group.
    noised = draw(OPEN_SORA, 29, 20_000)
    condition = ~noised
    whole = np.mean(noised.all(1))
    head, tail = condition[:, 0], condition[:, -1]
    assert abs(whole - 0.75) < 0.01
    assert abs(np.mean(head & tail) - 0.1) < 0.01
    # A random place touches an end now and then: 2 x 0.025 / about 27.
    assert abs(np.mean(head & ~tail) - 0.052) < 0.006
    assert abs(np.mean(tail & ~head) - 0.052) < 0.006
    assert abs(sum(OPEN_SORA.shares) - 1) < 1e-9


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_something_is_always_left_to_draw(frames):
    for kind in KINDS:
        noised = draw(only(kind), frames, 64)
        assert noised.any(1).all(), kind
        assert noised.all() == (
            kind == "none" or frames == 1 or (frames == 2 and kind.endswith("head_tail"))
        )


def test_a_mask_follows_from_its_key_alone():
    keys = jax.random.split(jax.random.key(0), 16)
    whole = draw_noised(keys, 8, OPEN_SORA)
    parts = jnp.concatenate(
        [draw_noised(keys[:3], 8, OPEN_SORA), draw_noised(keys[3:], 8, OPEN_SORA)]
    )
    np.testing.assert_array_equal(whole, parts)


def test_shares_that_do_not_add_up_are_refused():
    with pytest.raises(UserError, match="add up to 1: none 1.0, quarter_random 0.5"):
        FrameMaskConfig(quarter_random=0.5)
    with pytest.raises(UserError, match="must be 0 or more"):
        dataclasses.replace(OPEN_SORA, none=1.0, image_head=-0.225)
