"""A frozen T5: rows of captions alone, loaded when needed, cached on disk; what does not fit
is refused."""

import jax
import numpy as np
import pytest
import tiny_t5

from xgen_jax.config.runs import run_config
from xgen_jax.errors import UserError
from xgen_jax.models.t5 import T5Encoder
from xgen_jax.runs.text_encoders import T5Captions, load_captions, make_conditioner
from xgen_jax.weights.t5 import T5Folder

LONG = "a red circle moving left " * 3  # 63 tokens and the end


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_t5.write(tmp_path_factory.mktemp("t5") / "t5")


@pytest.fixture(scope="module")
def captions(folder):
    return T5Captions(folder, 80)


@pytest.fixture
def loads(monkeypatch):
    """A list that gets the path of every load of weights."""
    calls, load = [], T5Folder.load
    monkeypatch.setattr(
        T5Folder, "load", lambda self, *a, **k: calls.append(self.path) or load(self, *a, **k)
    )
    return calls


@pytest.mark.slow
def test_rows_are_what_the_encoder_gives_alone(folder, captions):
    texts = ["a red circle", LONG, "", "A  Red\tCircle", "a blue square moving up"]
    rows = captions(texts)
    read = T5Folder(folder)
    # Weights are held as bfloat16.
    apply, params = (jax.jit(T5Encoder(read.config).apply), read.load())
    for text, row in zip((texts[0], LONG.strip(), None, texts[0], texts[4]), rows):
        if text is None:
            assert row.shape == (0, 16)
            continue
        ids = read.tokenizer([text], 80)[0][0]
        assert row.shape == (len(ids), 16) and row.dtype == np.float32
        np.testing.assert_allclose(row, apply(params, ids[None])[0], atol=2e-5)
    np.testing.assert_array_equal(rows[0], rows[3])
    assert len(rows[1]) == 64 and captions.cut == 0


def test_the_last_of_the_hidden_states_is_what_a_call_gives(captions):
    texts = ["a red circle", LONG, "", "a blue square moving up"]
    states, rows = captions.hidden_states(texts), captions(texts)
    for state, row in zip(states, rows, strict=True):
        assert state.shape == (3, *row.shape)
        np.testing.assert_allclose(state[-1], row, atol=2e-5)
    assert np.abs(states[0][0] - states[0][1]).max() > 1e-2


def test_a_prompt_is_cut_aloud(folder, capsys):
    captions = T5Captions(folder, 20)
    captions.check([LONG, "a red circle"])
    err = capsys.readouterr().err
    assert (
        "has 64 tokens; the last 44 are cut off: the model takes 20" in err and err.count("\n") == 1
    )
    captions.check([LONG])
    assert not capsys.readouterr().err
    assert len(captions([LONG])[0]) == 20 and captions.cut == 1


@pytest.mark.parametrize("prompt", ["", " \x00\n", "https://example.com", "\u200b"])
def test_a_prompt_with_nothing_in_it_is_refused_and_a_caption_has_no_tokens(captions, prompt):
    with pytest.raises(
        UserError, match=r"(is empty|nothing is left of the prompt .*); say what should be seen"
    ):
        captions.check(["a red circle", prompt])
    assert captions([prompt])[0].shape == (0, 16)


@pytest.mark.slow
def test_what_is_cached_needs_no_weights(folder, tmp_path, loads):
    first = T5Captions(folder, 40, cache=tmp_path / "cache")
    first.prepare(["a red circle", "a blue square"])
    assert len(loads) == 1
    wanted = first(["a red circle", "a blue square"])
    again = T5Captions(folder, 40, cache=tmp_path / "cache")
    for one, other in zip(again(["A red  circle", "a blue square"]), wanted):
        np.testing.assert_array_equal(one, other)
    assert len(loads) == 1
    # Another length, precision or network has files of its own; a damaged file is made again.
    T5Captions(folder, 41, cache=tmp_path / "cache")(["a red circle"])
    T5Captions(folder, 40, np.dtype("bfloat16"), cache=tmp_path / "cache")(["a red circle"])
    T5Captions(tiny_t5.write(tmp_path / "other", seed=1), 40, cache=tmp_path / "cache")(
        ["a red circle"]
    )
    assert len(loads) == 4 and len(list((tmp_path / "cache").iterdir())) == 4
    kept = sorted((tmp_path / "cache" / f"{first.fingerprint}-40-float32").iterdir())
    assert len(kept) == 2
    whole = kept[0].read_bytes()
    for file in kept:
        file.write_bytes(file.read_bytes()[:50])
    np.testing.assert_array_equal(
        T5Captions(folder, 40, cache=tmp_path / "cache")(["a red circle"])[0], wanted[0]
    )
    assert len(loads) == 5 and sum(file.stat().st_size > 50 for file in kept) == 1
    assert kept[0].read_bytes() in (whole, whole[:50])


def test_a_cache_that_cannot_be_written_gives_one_warning(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    rows = T5Captions(folder, 40, cache=tmp_path / "file")(["a red circle", "a blue square"])
    assert len(rows) == 2
    assert capsys.readouterr().err.count("text embeddings are not cached: ") == 1


def test_a_folder_is_known_for_what_it_holds(folder, tmp_path):
    assert load_captions(folder).length == 250
    assert load_captions(folder, length=30).fingerprint == T5Folder(folder).fingerprint
    with pytest.raises(
        UserError, match="holds no text encoder: give the folder of a T5, or of a vdit run"
    ):
        load_captions(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_captions(tmp_path)


def run(**changes):
    values = {
        "objective": "vdit",
        "embedder": "e",
        "model": {"width": 16, "depth": 1, "heads": 2, "text_width": 16, "null_caption_tokens": 40},
        "text": {"kind": "t5", "path": "t5", "length": 40},
        "data": {
            "source": {"kind": "synthetic"},
            "buckets": [{"frames": 5, "height": 16, "width": 16, "batch_size": 2}],
        },
        "optimizer": {"learning_rate": 1e-3},
        "loop": {"steps": 1},
    }
    for group, keys in changes.items():
        values[group] = {**values[group], **keys}
    return run_config(values)


def test_a_text_encoder_must_fit_the_network(captions):
    conditioner = make_conditioner(run(), fingerprint="f", encoder=captions)
    assert (conditioner.length, conditioner.width, conditioner.opensora_compat) == (40, 16, False)
    with pytest.raises(UserError, match="need --config.model.null_caption_tokens=39$"):
        make_conditioner(run(text={"length": 39}))
    message = "tokens 40, text_width 24; .* t5 need .*=40 --config.model.text_width=16$"
    with pytest.raises(UserError, match=message):
        make_conditioner(run(model={"text_width": 24}), encoder=captions)
    with pytest.raises(UserError, match=r"text\.length must be 1 or more"):
        run(text={"length": 0})
