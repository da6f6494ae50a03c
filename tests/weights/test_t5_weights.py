"""A T5 folder: the reference's weights are read to their places, an unfit folder is refused."""

import json
import pathlib
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_t5

from xgen_jax.errors import UserError
from xgen_jax.models.t5 import T5Encoder
from xgen_jax.weights.safetensors import write_safetensors
from xgen_jax.weights.t5 import T5Folder

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
NORM = "encoder.final_layer_norm.weight"


@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_the_references_folder_gives_the_references_values(tmp_path, kind):
    golden, about = (
        dict(np.load(GOLDENS / "t5_encoder.npz")),
        json.loads((GOLDENS / "t5_encoder.json").read_text()),
    )
    held = {n.split("/")[2]: x for n, x in golden.items() if n.startswith(f"params/{kind}/")}
    (tmp_path / "config.json").write_text(json.dumps({**about["config"], "model_type": kind}))
    # A whole T5, cut in two files: the decoder and the second name of the embedding are left aside.
    held |= {
        "decoder.final_layer_norm.weight": np.ones(32, np.float32),
        "lm_head.weight": held["shared.weight"],
    }
    names = sorted(held)
    parts = {"a-1-of-2.safetensors": names[::2], "a-2-of-2.safetensors": names[1::2]}
    for file, part in parts.items():
        write_safetensors(tmp_path / file, {name: held[name] for name in part})
    weight_map = {name: file for file, part in parts.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    folder = T5Folder(tmp_path)
    params = folder.load(jnp.float32)
    ids, mask = golden["in/long/input_ids"], np.arange(150)[None] < 131
    got = jax.jit(T5Encoder(folder.config).apply)(params, ids, mask)
    name = f"{kind}/long/last_hidden_state"
    np.testing.assert_allclose(got, golden[f"out/{name}"], rtol=0, atol=about["atol"][name])
    # The reference's weights are exact in bfloat16.
    halved = folder.load()
    assert {x.dtype for x in jax.tree.leaves(halved)} == {jnp.dtype(jnp.bfloat16)}
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a.astype(np.float32), b), halved, params
    )


def test_a_parameter_is_placed_as_soon_as_it_is_whole(tmp_path):
    folder, paths = T5Folder(tiny_t5.write(tmp_path / "t5")), []

    def place(path, array):
        paths.append(path)
        return jnp.asarray(array) * 2

    twice, once = folder.load(jnp.float32, place), folder.load(jnp.float32)
    assert len(paths) == len(set(paths)) == len(jax.tree.leaves(once)) == 9
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), twice, once)


def test_the_fingerprint_is_of_the_network_and_its_tokenizer(tmp_path):
    base = T5Folder(tiny_t5.write(tmp_path / "a")).fingerprint
    assert len(base) == 16 and int(base, 16) >= 0
    held = tiny_t5.tensors()
    # In bfloat16, in another place, with a decoder, the embedding under its other name: the same
    # network.
    same = {name: x.astype(jnp.bfloat16) for name, x in held.items()}
    same |= {
        "encoder.embed_tokens.weight": same["shared.weight"],
        "decoder.x": np.ones(3, np.float32),
    }
    assert T5Folder(tiny_t5.write(tmp_path / "b", **same)).fingerprint == base
    assert (
        T5Folder(tiny_t5.write(tmp_path / "b2", **{**same, "shared.weight": None})).fingerprint
        == base
    )
    others = [
        tiny_t5.write(tmp_path / "c", seed=1),
        tiny_t5.write(tmp_path / "d", **{NORM: held[NORM] * 1.01}),
        tiny_t5.write(tmp_path / "e", config={**tiny_t5.CONFIG, "layer_norm_epsilon": 1e-5}),
        tiny_t5.write(tmp_path / "f"),
    ]
    (tmp_path / "f" / "spiece.model").write_bytes(tiny_t5.spiece(28))
    assert len({base, *(T5Folder(path).fingerprint for path in others)}) == 5


def test_a_large_tensor_counts_by_its_beginning_middle_and_end(tmp_path, monkeypatch):
    monkeypatch.setattr("xgen_jax.weights.t5._SAMPLE", 64)
    # 80 rows of 16: 4 rows at each of three places count.
    table = tiny_t5.tensors()["shared.weight"]
    assert (
        T5Folder(tiny_t5.write(tmp_path / "a")).fingerprint == T5Folder(tmp_path / "a").fingerprint
    )

    def with_row(row):
        moved = table.copy()
        moved[row] *= 1.5
        return T5Folder(
            tiny_t5.write(tmp_path / f"row{row}", **{"shared.weight": moved})
        ).fingerprint

    base = T5Folder(tmp_path / "a").fingerprint
    assert [with_row(row) != base for row in (0, 3, 4, 37, 38, 41, 42, 75, 76, 79)] == [
        *(True, True, False, False, True, True, False, False, True, True)
    ]


def test_a_pipelines_folder_will_do(tmp_path):
    plain = T5Folder(tiny_t5.write(tmp_path / "plain"))
    shutil.copytree(tmp_path / "plain", tmp_path / "pipeline" / "text_encoder")
    (tmp_path / "pipeline" / "tokenizer").mkdir()
    (tmp_path / "pipeline" / "text_encoder" / "spiece.model").rename(
        tmp_path / "pipeline" / "tokenizer/spiece.model"
    )
    for path in (tmp_path / "pipeline", tmp_path / "pipeline" / "text_encoder"):
        assert T5Folder(path).fingerprint == plain.fingerprint
        assert T5Folder(path).tokenizer.size == plain.tokenizer.size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({NORM: None}, r"missing, 1:\n  encoder.final_layer_norm.weight$"),
        (
            {"classifier.weight": np.ones((2, 3), np.float32)},
            r"extra, 1:\n  classifier.weight \(2, 3\)$",
        ),
        (
            {NORM: np.ones(7, np.float32)},
            r"mis-shaped, 1:\n  encoder.final_layer_norm.weight \(7,\): .* wanted \(16,\)$",
        ),
        (
            {NORM: np.full(16, np.inf, np.float32)},
            r"not finite, 1:\n  encoder.final_layer_norm.weight$",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_listed(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        T5Folder(tiny_t5.write(tmp_path / "t5", **changes)).load()


def test_an_incomplete_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*; give the T5's"):
        T5Folder(tmp_path / "none")
    path = tiny_t5.write(tmp_path / "t5")
    (path / "spiece.model").unlink()
    for ask in (lambda: T5Folder(path).tokenizer, lambda: T5Folder(path).fingerprint):
        with pytest.raises(UserError, match=r"holds no spiece.model, the tokenizer: fetch it"):
            ask()
    (path / "spiece.model").write_bytes(b"<html>")
    with pytest.raises(UserError, match="spiece.model is not a sentencepiece model"):
        _ = T5Folder(path).tokenizer
    (path / "spiece.model").write_bytes(tiny_t5.spiece(pad_id=3, eos_id=2, unk_id=0))
    with pytest.raises(
        UserError, match="is not a T5 tokenizer: its <pad> and </s> are 3 and 2, not 0 and 1"
    ):
        _ = T5Folder(path).tokenizer
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin is a pickle"):
        T5Folder(path).load()
    (path / "config.json").unlink()
    with pytest.raises(UserError, match="holds no config.json: it is not the folder of a T5"):
        T5Folder(path).load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "clip"}, "describes a 'clip' model; a text encoder is a 't5' or 'umt5'"),
        (
            {"feed_forward_proj": "relu"},
            "feed_forward_proj='relu'; T5 version 1.1 has 'gated-gelu'",
        ),
        ({"d_ff": None}, "lacks d_ff"),
        ({"num_heads": 0}, "heads must be above 0"),
        (
            {"vocab_size": 25},
            "tokens, and the network's vocabulary is 25: it is the tokenizer of another model",
        ),
    ],
)
def test_another_network_is_refused(tmp_path, changes, message):
    path = tiny_t5.write(tmp_path / "t5")
    (path / "config.json").write_text(json.dumps({**tiny_t5.CONFIG, **changes}))
    with pytest.raises(UserError, match=message):
        _ = T5Folder(path).tokenizer
    (path / "config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        _ = T5Folder(path).config


def test_transformers_gives_the_same(tmp_path):
    """The folder as it is, ids included; skipped without transformers and torch."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    path = tiny_t5.write(tmp_path / "t5")
    folder = T5Folder(path)
    theirs = transformers.T5EncoderModel.from_pretrained(path, attn_implementation="eager").eval()
    captions = ["a red circle moving left", "a  Blue square!"]
    (rows, _), tokenizer = (
        folder.tokenizer(captions, 60),
        transformers.T5Tokenizer.from_pretrained(path, extra_ids=0),
    )
    for caption, row in zip(captions, rows):
        assert tokenizer(caption)["input_ids"] == row.tolist()
        with torch.no_grad():
            wanted = theirs(
                input_ids=torch.tensor(row[None].astype(np.int64))
            ).last_hidden_state.numpy()
        got = jax.jit(T5Encoder(folder.config).apply)(folder.load(jnp.float32), row[None])
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


def test_no_second_copy_of_the_whole_is_made(tmp_path):
    config = {
        **tiny_t5.CONFIG,
        "d_model": 128,
        "d_ff": 256,
        "d_kv": 16,
        "num_heads": 8,
        "num_layers": 12,
    }
    folder = T5Folder(tiny_t5.write(tmp_path / "t5", config=config))
    whole = sum(x.size for x in tiny_t5.tensors(config=config).values())
    largest = 128 * 256
    folder.load()  # what is imported and compiled on the way does not count
    tracemalloc.start()
    params = folder.load()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(x.nbytes for x in jax.tree.leaves(params)) == 2 * whole
    # The parameters, and a few forms of the one tensor in hand; a float32 copy of the whole would
    # be twice that again.
    assert peak < 2 * whole + 8 * 4 * largest < 4 * whole
