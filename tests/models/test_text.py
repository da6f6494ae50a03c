"""Byte-level text: every string keeps its bytes, padding counts for nothing, nothing is cut off."""

import jax
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.models.text import BEGIN, PAD, VOCABULARY, ByteTextConfig, ByteTextEncoder, tokenize_bytes


@pytest.mark.parametrize("prompt", ["a red circle", "ein grüner Würfel", "赤い円", "\x00\xff🎬"])
def test_a_prompt_keeps_its_bytes(prompt):
    ids, mask = tokenize_bytes([prompt], 32)
    assert ids.shape == mask.shape == (1, 33)
    assert ids.dtype == np.int32
    assert ids[0, 0] == BEGIN
    assert bytes((ids[0, mask[0]][1:] - 1).astype(np.uint8)).decode() == prompt
    assert np.all(ids[~mask] == PAD)
    assert ids.max() < VOCABULARY


def test_the_empty_prompt_is_the_begin_token_alone():
    ids, mask = tokenize_bytes(["", "x"], 4)
    assert ids[0].tolist() == [BEGIN, PAD, PAD, PAD, PAD]
    assert mask[0].tolist() == [True, False, False, False, False]


def test_a_prompt_that_is_too_long_in_bytes_is_refused():
    assert tokenize_bytes(["ä" * 4], 8)[1].sum() == 9
    with pytest.raises(UserError, match="has 10 bytes; this model takes at most 8"):
        tokenize_bytes(["ok", "ä" * 5], 8)


def test_padding_does_not_change_the_tokens_of_a_prompt():
    config = ByteTextConfig(width=8, depth=2, heads=2, max_bytes=6)
    encoder = ByteTextEncoder(config)
    ids, mask = tokenize_bytes(["abc"], 6)
    params = jax.jit(encoder.init)(jax.random.key(0), ids, mask)
    apply = jax.jit(encoder.apply)
    other = np.where(mask, ids, 77)
    (tokens, kept), (others, kept_too) = apply(params, ids, mask), apply(params, other, mask)
    assert kept.tolist() == kept_too.tolist() == [[True, False]]  # four places a token: the begin and "abc", then none
    np.testing.assert_allclose(others[kept], tokens[kept], atol=1e-6)
    assert np.abs(tokens - apply(params, ids[:, [0, 2, 1, 3, 4, 5, 6]], mask)[0])[:, 0].max() > 1e-3
