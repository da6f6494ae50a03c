"""What is taken out of captions, what is no caption, and their lengths."""

import unicodedata

import numpy as np
import pytest

from xgen_jax.curation.caption_text import (
    MAX_CHARACTERS,
    clean_caption,
    length_statistics,
    why_no_caption,
)

DOG = "A dog runs over wet sand."


@pytest.mark.parametrize(
    ("text", "clean", "stripped"),
    [
        (DOG, DOG, ()),
        ("  A dog\n\nruns \t over\u3000wet\u2028sand.\r\n", DOG, ()),
        ("A cafe\u0301 at night.", "A café at night.", ()),
        ("A \u202edog\u202c runs\u200b over\x00 wet \x07sand.", DOG, ("characters",)),
        ("A dog\U000e0041\U000e0042 runs over wet sand.\ufffd\ue000\ud800", DOG, ("characters",)),
        (f"<|im_start|>assistant\n{DOG}<|im_end|>", DOG, ("chat markup",)),
        (f"<|start_header_id|>assistant<|end_header_id|>\n\n{DOG}", DOG, ("chat markup",)),
        (f"<start_of_turn>model\n{DOG}<end_of_turn>", DOG, ("chat markup",)),
        (f"<s>[INST] <<SYS>> <</SYS>> [/INST] {DOG}</s>", DOG, ("chat markup",)),
        (f"<｜begin▁of▁sentence｜>{DOG}<extra_id_0>", DOG, ("chat markup",)),
        (f"<think>A dog? A wolf?</think>\n{DOG}", DOG, ("thoughts",)),
        (f"A dog? A wolf?\n</think>\n{DOG}", DOG, ("thoughts",)),
        (f"Assistant: {DOG}", DOG, ("speaker",)),
        (f"```text\n{DOG}\n```", DOG, ("Markdown",)),
        ("# A **dog** runs\n- over `wet`\n- *sand*.", DOG, ("Markdown",)),
        ("A [dog](http://a.b/c) runs over wet sand.", DOG, ("Markdown",)),
        ("<p>A dog <b>runs</b> over<!-- x --> wet sand.</p>", DOG, ("HTML",)),
        ("A dog &lt;script&gt;runs over wet sand.", DOG, ("HTML",)),
        ("Tom &amp; Jerry run.", "Tom & Jerry run.", ()),
        (f"Caption: {DOG}", DOG, ("preamble",)),
        (f"**Video Description:** {DOG}", DOG, ("Markdown", "preamble")),
        (f"Here is a description of the video:\n\n{DOG}", DOG, ("preamble",)),
        (f"Sure! Here’s a detailed caption for this clip: {DOG}", DOG, ("preamble",)),
        (f"Certainly! {DOG}", DOG, ("preamble",)),
        (f'"{DOG}"', DOG, ("quotes",)),
        (f"Caption: “{DOG}”", DOG, ("preamble", "quotes")),
        # Words that only look like it.
        ("Here is a dog that runs: it is wet.", "Here is a dog that runs: it is wet.", ()),
        ("A sign says 'Stop' and 'Go'", "A sign says 'Stop' and 'Go'", ()),
        ("'Stop' and 'Go' are on signs, 'left'", "'Stop' and 'Go' are on signs, 'left'", ()),
        ("A snake_case_name and 3 * 4 * 5.", "A snake_case_name and 3 * 4 * 5.", ()),
        ("A well-lit room; the user types.", "A well-lit room; the user types.", ()),
        ("Ein Hund läuft – über 犬 कुत्ता.", "Ein Hund läuft – über 犬 कुत्ता.", ()),
        # Markup that forms when other markup is taken out.
        (f"<|im_<|im_end|>start|>{DOG}", DOG, ("chat markup",)),
        (f"[IN[INST]ST] {DOG}", f"[IN ST] {DOG}", ("chat markup",)),
        (f"&amp;lt;b&amp;gt;{DOG}", DOG, ("HTML",)),
        ("a" * 200_000, "", ("text above the limit",)),
        ("[" * 20 + "dog" + "](a)" * 20, "", ("nested markup",)),
    ],
)
def test_what_is_taken_out(text, clean, stripped):
    given, taken = clean_caption(text)
    assert (given, taken) == (clean, stripped)
    assert clean_caption(given) == (given, ())


def test_any_mixture_of_markup_ends_clean():
    rng = np.random.default_rng(0)
    pieces = ["<", ">", "|", "<|", "|>", "im_start", "[", "INST", "]", "</", "think>", "<b", "*"]
    pieces += ["_", "`", "```", "\n", " ", "# ", "- ", "assistant:", "Caption:", "&lt;", "&amp;"]
    pieces += ["\u202e", "\u200d", "\x00", "\ud800", "e\u0301", '"', "dog", "(x)", "<!--", "-->"]
    for _ in range(800):
        text = "".join(rng.choice(pieces, rng.integers(1, 30)))
        clean, _ = clean_caption(text)
        assert clean_caption(clean) == (clean, ())
        assert not set("<>\n\x00\u202e\u200d\ud800") & set(clean)
        assert "[INST]" not in clean and clean == " ".join(clean.split())
        assert unicodedata.is_normalized("NFC", clean)
        clean.encode()  # no surrogates


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DOG, None),
        ("犬が走る。", None),
        ("", "empty answer"),
        ("... 123 --", "empty answer"),
        ("word " * MAX_CHARACTERS, "above the limit"),
        ("I'm sorry, but I can't help with that.", "declined"),
        ("I cannot describe this video.", "declined"),
        ("As an AI model, I see nothing.", "declined"),
        ("I can see a sorry man.", None),
        ("Sorry is written on a wall.", None),
    ],
)
def test_what_is_no_caption(text, reason):
    given = why_no_caption(text)
    assert given is None if reason is None else reason in given


def test_lengths():
    words = [10, 50, 80, 100, 120, 121, 84, 84, 84, 84]
    statistics = length_statistics("w " * count for count in words)
    assert statistics["captions"] == 10 and statistics["mean_words"] == np.mean(words)
    assert statistics["within_50_120"] == 0.8 and statistics["p50"] == 84
    assert statistics["p5"] == np.percentile(words, 5) and 120 < statistics["p95"] <= 121
    assert all(type(value) in (int, float) for value in statistics.values())
    assert length_statistics([]) == {"captions": 0}
