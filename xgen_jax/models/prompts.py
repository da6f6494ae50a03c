r"""Cleaning of captions and prompts for T5.

The rules are DeepFloyd IF's, which PixArt-alpha and Open-Sora took over: lower case, no markup, no
addresses, no file names, no catalogue numbers. These projects apply them twice at inference,
because what one rule leaves another may catch. Here they are applied until nothing changes, so that
cleaning is idempotent.
"""

import html
import re
import unicodedata
import urllib.parse

# A list of (pattern, replacement), in order. Matching is on lower-cased text.
Rules = tuple[tuple[re.Pattern, str], ...]


def _compiled(*rules: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rules)


_IMAGES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_ADDRESS_END = r"[^\s<>\"']*"

_MARKUP = _compiled(
    ("<person>", "person"),  # how some caption sets hide a name
    (r"\b(?:https?:/*|www\.)" + _ADDRESS_END, ""),
    (r"\b(?:[a-z0-9-]+\.)+(?:com|co|ru|net|org|edu|gov|it)\b(?:/" + _ADDRESS_END + ")?", ""),
    (r"<(script|style)\b.*?</\1\s*>", ""),
    (r"<!--.*?-->", ""),
    (r"</?[a-z][^<>]*>", " "),
    (r"@[\w\d]+\b", ""),  # nicknames
)
# Ideographs, their strokes, enclosed forms, and hexagrams: T5 v1.1 has no pieces for them.
_IDEOGRAPHS = _compiled(
    (
        "[\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff]+",
        "",
    )
)
_CHARACTERS = _compiled(
    # Every dash is a hyphen, every double or single quotation mark the plain one.
    (
        "[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d]+",
        "-",
    ),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
)
_NUMBERS = _compiled(
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # addresses of machines
    (r"\d:\d\d\s+$", ""),  # a time at the end
    (r"\\n", " "),  # a line break spelled out
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{_IMAGES})", ""),
)
_PUNCTUATION = _compiled(
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (
        "[#\u00ae\u2022\u00a9\u2122&@\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7~()\\[\\]{}|\\\\/*]+",
        " ",
    ),
    (r"\s+\.\s+", " "),
)
_PHRASES = _compiled(
    (r"\b[a-z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-z]+\d+[a-z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-z]+\d+\b", ""),  # 6640vc231
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_IMAGES})(\simages?)?\b", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-z]+\d+[a-z]+\d+[a-z\d]*\b", " "),  # j2d1a2a
    ("\\b\\d+\\.?\\d*[x\u0445\u00d7]\\d+\\.?\\d*\\b", ""),  # sizes, with either alphabet's x
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)
_ENDS = _compiled(
    (r"^[\"'](.+)[\"']$", r"\1"),  # a caption that is one quotation
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)
_MOST_JOINED = 3  # hyphens and underscores; a caption with more was a name-of-a-file


def clean_prompt(prompt: str, ideographs: bool = False) -> str:
    """Clean a caption or prompt for T5: a fixed point of the rules; it may be empty.

    Args:
      prompt: any text; control characters and unpaired surrogates are removed.
      ideographs: keep Chinese characters, for encoders that know them (UMT5; not T5 v1.1).
    """
    before = None
    while prompt != before:
        before, prompt = prompt, _apply(prompt, ideographs)
    return prompt


def _apply(text: str, ideographs: bool) -> str:
    text = html.unescape(
        html.unescape(urllib.parse.unquote_plus(text))
    )  # captions from the web are often escaped twice
    text = _without_control(text).strip().lower()
    text = _replace(text, _MARKUP)
    if not ideographs:
        text = _replace(text, _IDEOGRAPHS)
    text = _replace(text, _CHARACTERS + _NUMBERS + _PUNCTUATION)
    if len(re.findall("[-_]", text)) > _MOST_JOINED:
        text = re.sub("[-_]", " ", text)
    return _replace(_replace(text, _PHRASES).strip(), _ENDS).strip()


def _without_control(text: str) -> str:
    """Replace line breaks and control characters by spaces; remove invisible and half ones."""
    kinds = {"Cc": " ", "Cf": "", "Cs": "", "Zl": " ", "Zp": " "}
    return "".join(kinds.get(unicodedata.category(c), c) for c in text)


def _replace(text: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text
