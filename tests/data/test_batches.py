"""Batches of a fixed size."""

from xgen_jax.data.batches import batches, padded_rows


def test_batches_keep_the_order_and_the_last_may_be_shorter():
    assert list(batches([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
    assert list(batches([], 2)) == []


def test_empty_rows_repeat_the_last_one():
    assert padded_rows([1, 2], 2) == [1, 2]
    assert padded_rows([1, 2], 4) == [1, 2, 2, 2]
    assert padded_rows([None, 3, None, 0, None], 6) == [0, 3, 0, 0, 0, 0]
