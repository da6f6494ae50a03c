"""Text conditioning: padding counts for nothing, and a dropped caption is the null caption,
whatever it was."""

import jax
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.models.text import (
    BEGIN,
    PAD,
    VOCABULARY,
    ByteConditioner,
    ByteTextEncoder,
    T5Conditioner,
    tokenize_bytes,
)
from xgen_jax.models.text_config import ByteTextConfig


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
    assert (
        kept.tolist() == kept_too.tolist() == [[True, False]]
    )  # four places a token: the begin and "abc", then none
    np.testing.assert_allclose(others[kept], tokens[kept], atol=1e-6)
    assert np.abs(tokens - apply(params, ids[:, [0, 2, 1, 3, 4, 5, 6]], mask)[0])[:, 0].max() > 1e-3


def test_half_a_character_is_refused():
    with pytest.raises(UserError, match=r"holds half a character \(place 2\)"):
        tokenize_bytes(["a \ud800"], 8)


def test_a_dropped_caption_of_bytes_is_the_empty_one():
    conditioner = ByteConditioner(
        encoder=ByteTextEncoder(ByteTextConfig(width=8, depth=1, heads=2, max_bytes=6))
    )
    arrays = conditioner.arrays(["abc", "de", ""])
    params = jax.jit(conditioner.init)(jax.random.key(0), arrays)
    embed = jax.jit(conditioner.embed)
    text, mask = embed(params, arrays, np.array([True, False, False]))
    whole, whole_mask = embed(params, arrays, np.array([False, False, False]))
    np.testing.assert_allclose(text[0, 0], text[2, 0], atol=1e-6)
    assert mask.tolist() == [[True, False], whole_mask[1].tolist(), [True, False]]
    np.testing.assert_array_equal(text[1], whole[1])
    assert np.abs(text[0] - whole[0])[0].max() > 1e-3
    assert conditioner.fingerprints() == {}


NULL = np.arange(12, dtype=np.float32).reshape(4, 3)
VARIABLES = {"vdit": {"constants": {"null_caption": NULL}}}


def stored(lengths):
    """As a batch has them: rows of ones, two, ..., each of its own length."""
    rows = [np.full((n, 3), 1 + row, np.float32) for row, n in enumerate(lengths)]
    return {"text": rows, "caption": ["x"] * len(lengths)}


@pytest.mark.parametrize("opensora_compat", [False, True])
def test_a_dropped_caption_of_a_t5_is_the_networks_null_caption(opensora_compat):
    conditioner = T5Conditioner(
        length=4, width=3, opensora_compat=opensora_compat, fingerprint="f" * 16
    )
    assert conditioner.fingerprints() == {"text_encoder": "f" * 16}
    arrays = conditioner.batch_arrays(stored([2, 3, 0]))
    text, mask = jax.jit(conditioner.embed)(VARIABLES, arrays, np.array([True, False, False]))
    np.testing.assert_array_equal(text[0], NULL)
    np.testing.assert_array_equal(text[1], arrays["text"][1])
    np.testing.assert_array_equal(text[2], NULL)  # an empty caption is the null caption
    whole, two, three = [True] * 4, [True, True, False, False], [True, True, True, False]
    assert mask.tolist() == [two if opensora_compat else whole, three, whole]
    # For the network's own initialisation there is no null caption yet.
    text, mask = conditioner.embed({}, arrays)
    np.testing.assert_array_equal(text, arrays["text"])
    assert mask.tolist() == [two, three, whole]
    assert conditioner.init(jax.random.key(0), arrays) == {}


def test_no_gradient_reaches_the_null_caption():
    conditioner = T5Conditioner(length=4, width=3)
    arrays = conditioner.batch_arrays(stored([2, 3]))
    grad = jax.grad(lambda v: conditioner.embed(v, arrays, np.array([True, False]))[0].sum())(
        VARIABLES
    )
    assert not jax.tree.leaves(grad)[0].any()


def test_stored_rows_are_padded_to_the_length_and_never_cut():
    arrays = T5Conditioner(length=6, width=3).batch_arrays(stored([2, 4]))
    assert arrays["text"].shape == (2, 6, 3) and arrays["text_mask"].sum(1).tolist() == [2, 4]
    assert not arrays["text"][:, 4:].any()
    with pytest.raises(
        UserError, match=r"stored embeddings are \(4, 3\); the run takes up to \(3, 3\)"
    ):
        T5Conditioner(length=3, width=3).batch_arrays(stored([2, 4]))
    with pytest.raises(UserError, match="the run has no text encoder to make them"):
        T5Conditioner(length=6, width=3).batch_arrays({"caption": ["a"]})


def test_an_encoder_is_no_part_of_what_is_compiled():
    one, other = (
        T5Conditioner(length=4, width=3),
        T5Conditioner(length=4, width=3, encoder=lambda captions: []),
    )
    assert one == other and hash(one) == hash(other)
