"""Cleaning: each rule's fact on an example, and a cleaned caption is a fixed point."""

import string

import numpy as np
import pytest

from xgen_jax.models.prompts import clean_prompt


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("  A Red   Circle\tmoving\nleft ", "a red circle moving left"),
        ("a dog see https://example.com/a_b?c=1 running", "a dog see running"),
        ("a dog www.example.com running", "a dog running"),
        ("shop.example.com/dogs?x=1 a dog", "a dog"),
        ("half/half a.b", "half half a. b"),
        ("x2 zoom, 4k, 50mm f/1.8", "x2 zoom, 4k, 50mm f 1.8"),
        ("a <b>bold</b> dog<br/>runs<script>alert(1)</script>", "a bold dog runs"),
        ("portrait of <person> smiling", "portrait of person smiling"),
        ("tom &amp; jerry &lt;3", "tom jerry <3"),
        ("twice &amp;lt;b&amp;gt; escaped", "twice escaped"),
        ("caf&eacute; at night", "café at night"),
        ("by @painter_1 in oil", "by in oil"),
        (
            "\u201chello\u201d said the fox\u2019s friend \u2014 twice",
            '"hello" said the fox\'s friend - twice',
        ),
        ("server 192.168.0.1 room", "server room"),
        ("print #12 of 1234567 copies", "print of copies"),
        ("a still from holiday.jpg on a wall", "a still from on a wall"),
        ("what... is [this] {thing}*?", "what is this thing ?"),
        ("code jc6640 and jc6640vc and 6640vc231", "code and and"),
        ("worldwide free shipping of a chair", "of a chair"),
        ("free download of a chair", "of a chair"),
        ("click for details a chair", "a chair"),
        ("a png image of a cat, page 12", "a of a cat"),
        ("a 1920x1080 video of rain", "a video of rain"),
        ("a_b_c_d_e f", "a b c d e f"),
        ("well-known blue-green sea", "well-known blue-green sea"),
        ("red,green and blue", "red, green and blue"),
        ("'a whole quotation'", "a whole quotation"),
        ("a red%20circle+moving", "a red circle moving"),
        ("zero\u200bwidth \x00null\x07bell", "zerowidth null bell"),
        ("half \ud800 a character", "half a character"),
        ("ein gr\u00fcner W\u00fcrfel", "ein gr\u00fcner w\u00fcrfel"),
        ("", ""),
        (" \n\x00 ", ""),
        ("https://example.com", ""),
        ("\u8d64\u3044 circle", "\u3044 circle"),
    ],
)
def test_a_rule_does_what_it_says(prompt, cleaned):
    assert clean_prompt(prompt) == cleaned


def test_ideographs_are_kept_for_encoders_that_know_them():
    assert clean_prompt("\u8d64\u3044 Circle", ideographs=True) == "\u8d64\u3044 circle"


def test_cleaning_twice_is_cleaning_once():
    """On captions with all that the rules look for, in any order: one pass alone would not settle
    them."""
    rng = np.random.default_rng(0)
    pieces = [
        *(
            "a red circle",
            "&amp;lt;b&amp;gt;",
            "%2525",
            "<p>",
            "</p>",
            "www.a.b",
            "'",
            '"',
            "''",
            "...",
            " . ",
            " : ",
        ),
        *(
            "--",
            "_",
            "#12",
            "1234567",
            "3:45 ",
            "x.png",
            "jc6640vc",
            "1x2",
            "\u00d7",
            "@me",
            "free download",
            "page 3",
        ),
        *(
            "\\n",
            "\u4e2d",
            "\u2014",
            "\u00a0",
            "\u0130",
            "\x01",
            "+",
            ",b",
            "./",
            ";",
            "&eacute;",
            "(",
            "]",
            " ",
        ),
    ]
    letters = list(string.printable + "\u201c\u2019\u3000\u202e\ufb01")
    for trial in range(1500):
        alphabet = pieces if trial % 2 else letters
        prompt = "".join(rng.choice(alphabet, rng.integers(1, 25)))
        cleaned = clean_prompt(prompt)
        assert clean_prompt(cleaned) == cleaned, repr(prompt)
        assert cleaned == cleaned.strip() and not any(ord(c) < 32 for c in cleaned)
