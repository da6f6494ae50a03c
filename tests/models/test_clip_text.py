"""CLIP's text tower and tokenizer against the transformers library."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_clip
import tiny_clip_text

from xgen_jax.errors import UserError
from xgen_jax.evaluation.clip_score import CLIPScore
from xgen_jax.models.clip_text import CLIPText, CLIPTextConfig, CLIPTokenizer, TextEncoder
from xgen_jax.weights.clip import load_clip_text, load_clip_vision

GOLDEN, ABOUT = tiny_clip_text.GOLDEN, tiny_clip_text.ABOUT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_clip_text.write(tmp_path_factory.mktemp("clip") / "whole")


def test_the_preset_of_vit_l_14_has_the_published_parameters():
    model = CLIPText(CLIPTextConfig())
    ids = jax.ShapeDtypeStruct((2, 77), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids)
    # 123,060,480 of the tower and the projection, 768 x 768.
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 123_060_480 + 768 * 768


def test_features_are_the_references(folder):
    model, params = load_clip_text(folder)
    with jax.default_matmul_precision("highest"):
        got = jax.jit(model.apply)(params, GOLDEN["in/ids"])
    assert got.dtype == jnp.float32 and np.abs(GOLDEN["out/features"]).max() > 0.5
    np.testing.assert_allclose(got, GOLDEN["out/features"], rtol=0, atol=1e-5)
    # What follows the end has no effect.
    ids = GOLDEN["in/ids"].copy()
    assert ids[1, 2] == ids.max()
    ids[1, 3:] = 0
    np.testing.assert_allclose(jax.jit(model.apply)(params, ids)[1], got[1], atol=1e-5)


def test_the_score_does_not_round_its_products(folder, monkeypatch):
    """Whatever the device does by default: its program asks for the highest precision."""
    real, texts = jax.jit, []

    def jit(function):
        compiled = real(function)

        def call(*arguments):
            texts.append(compiled.lower(*arguments).as_text())
            return compiled(*arguments)

        return call

    monkeypatch.setattr(jax, "jit", jit)
    score = CLIPScore(folder)
    monkeypatch.undo()
    score.frames("the cat", np.zeros((2, 28, 28, 3), np.uint8))
    assert len(texts) == 2
    for text in texts:
        lines = text.splitlines()
        products = [line for line in lines if "dot_general" in line or ".convolution" in line]
        assert len(products) > 5 and all("HIGHEST" in line for line in products)


@pytest.mark.parametrize("number", range(len(ABOUT["texts"])))
def test_ids_are_the_references(folder, number):
    assert CLIPTokenizer(folder).encode(ABOUT["texts"][number]) == ABOUT["ids"][number]


def test_rows_are_filled_and_cut(folder):
    tokenizer = CLIPTokenizer(folder)
    texts = [
        "the cat and",
        "a",
        "the weather in the theatre of another ring and more of it than fits",
    ]
    ids, cut = tokenizer(texts, 20)
    np.testing.assert_array_equal(ids, GOLDEN["in/ids"])
    assert cut == 1 and tokenizer.size == ABOUT["config"]["vocab_size"]


def test_both_towers_come_from_one_folder(folder):
    model, params = load_clip_text(folder)
    _, vision = load_clip_vision(folder)
    _, alone = load_clip_vision(tiny_clip.write(folder.parent / "alone"))
    jax.tree.map(np.testing.assert_array_equal, vision, alone)
    held = tiny_clip_text.tensors()
    assert sum(x.size for x in jax.tree.leaves(params)) == sum(x.size for x in held.values())
    encoder = TextEncoder(model, params, CLIPTokenizer(folder))
    features = encoder(["the cat and", "a", "the cat and"], batch=2)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(features[0], features[2], atol=1e-6)
    wanted = GOLDEN["out/features"][0]
    np.testing.assert_allclose(features[0], wanted / np.linalg.norm(wanted), atol=1e-5)


def test_the_score_is_the_cosine(folder):
    score = CLIPScore(folder)
    video = np.concatenate([tiny_clip.GOLDEN["in/images"]] * 6)  # more frames than at once
    got = score.frames("a", video)
    text, images = GOLDEN["out/features"][1], tiny_clip.GOLDEN["out/features"]
    cosines = images @ text / np.linalg.norm(images, axis=1) / np.linalg.norm(text)
    assert cosines.min() < 0 < cosines.max()
    np.testing.assert_allclose(got, np.tile(100 * np.maximum(cosines, 0), 6), atol=1e-3)
    assert score.cut == 0
    with pytest.raises(UserError, match="must be a uint8 array"):
        score.frames("a", video / 255)


def test_what_does_not_fit_is_refused(folder, tmp_path):
    model, params = load_clip_text(folder)
    with pytest.raises(UserError, match=r"takes ids \(B, 20\), not \(1, 21\)"):
        model.apply(params, np.zeros((1, 21), np.int32))
    with pytest.raises(UserError, match="width=768 must be a multiple of heads=7"):
        CLIPTextConfig(heads=7)
    with pytest.raises(UserError, match="there is no folder"):
        load_clip_text(tmp_path / "none")
    with pytest.raises(UserError, match="wanted 'clip' or 'clip_text_model'"):
        load_clip_text(tiny_clip.write(tmp_path / "vision"))
    with pytest.raises(UserError, match="there is no file .*vocab.json"):
        CLIPTokenizer(tmp_path)
    tiny_clip_text.write_tokenizer(tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    big = {**vocabulary, "more": 5000, "<|endoftext|>": 5001}
    (tmp_path / "vocab.json").write_text(json.dumps(big))
    with pytest.raises(UserError, match="5002 tokens and the network .* not of one CLIP"):
        TextEncoder(model, params, CLIPTokenizer(tmp_path))
    (tmp_path / "vocab.json").write_text(json.dumps({**vocabulary, "more": 5000}))
    with pytest.raises(UserError, match="must be the last token"):
        CLIPTokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(UserError, match="no CLIP tokenizer: vocab.json lacks"):
        CLIPTokenizer(tmp_path)
