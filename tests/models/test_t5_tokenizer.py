"""T5's convention of ids: </s> last, never past the length, and what is cut off is counted."""

import numpy as np
import pytest
import tiny_t5

from xgen_jax.errors import UserError
from xgen_jax.models.t5_tokenizer import END, PAD, T5Tokenizer, pad_ids


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "spiece.model"
    path.write_bytes(tiny_t5.spiece())
    return T5Tokenizer(path)


def test_training_the_tests_tokenizer_gives_the_same_bytes_each_time():
    assert tiny_t5.spiece() == tiny_t5.spiece()


def test_ids_are_the_pieces_and_the_end(tokenizer):
    (short, long), cut = tokenizer(["a red circle", "a red circle moving left"], 100)
    assert short.dtype == np.int32
    assert short[-1] == long[-1] == END and END not in short[:-1]
    assert long[: len(short) - 1].tolist() == short[:-1].tolist()
    assert cut == [0, 0]
    assert tokenizer([""], 100)[0][0].tolist() == [END]
    # Runs of spaces are one, as T5's normalisation has it.
    assert tokenizer(["  a  red circle "], 100)[0][0].tolist() == short.tolist()


def test_what_is_too_long_is_cut_before_the_end_and_counted(tokenizer):
    (whole,), _ = tokenizer(["a red circle moving left"], 100)
    for length in (1, 2, len(whole) - 1, len(whole)):
        (row,), (cut,) = tokenizer(["a red circle moving left"], length)
        assert row.tolist() == [*whole[: length - 1], END]
        assert cut == len(whole) - length


def test_rows_are_padded_behind(tokenizer):
    rows, _ = tokenizer(["a", "a red circle"], 9)
    ids, mask = pad_ids(rows, 12)
    assert ids.shape == mask.shape == (2, 12)
    for row, i, m in zip(rows, ids, mask):
        assert m.tolist() == [True] * len(row) + [False] * (12 - len(row))
        assert i[m].tolist() == row.tolist() and (i[~m] == PAD).all()


def test_no_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        T5Tokenizer(tmp_path / "spiece.model")
