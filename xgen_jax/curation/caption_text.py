"""The text of captions: what is taken out of an answer, what is no caption, and how long they are.

An answer may hold what a person wrote into the picture, so nothing in it is trusted: no mark that a
tokenizer or a page could take for its own survives.
"""

import html
import re
import unicodedata
from collections.abc import Iterable

import numpy as np

MAX_CHARACTERS = 4000  # of a caption; 120 words are about 700
_MAX_RAW = 100_000  # of an answer, with its thoughts
_PASSES = 8  # markup inside markup, at most

# Special tokens: <|im_start|>, DeepSeek's with a wide bar, Llama's [INST] and <<SYS>>, <s>.
_CHAT = re.compile(
    r"(?:<\|(?:im_start|start_header_id)\|>|<start_of_turn>)\s*(?:assistant|user|system|model)?\b"
    r"|<[|｜][^<>]{0,64}[|｜]>|\[/?INST\]|<</?SYS>>"
    r"|</?(?:s|pad|unk|bos|eos|image|video|start_of_turn|end_of_turn|extra_id_\d+)>",
    re.IGNORECASE,
)
_HTML = re.compile(r"<!--[^<>]{0,500}-->|<[/!?]?[a-zA-Z][^<>]{0,500}>")
_MARKDOWN = (
    (re.compile(r"^[ \t]*(?:```|~~~)[\w+-]*[ \t]*$", re.MULTILINE), ""),
    (re.compile(r"^[ \t]*(?:#{1,6}|[-*•]|>)[ \t]+", re.MULTILINE), ""),
    (re.compile(r"!?\[([^\[\]]{0,500})\]\([^()\s]{0,500}\)"), r"\1"),
    (re.compile(r"\*\*|__|`"), ""),
    (re.compile(r"(?<!\w)([*_])(\w[^*_\n]{0,200})\1(?!\w)"), r"\2"),
)
_ROLE = re.compile(
    r"^[ \t]*(?:assistant|user|system|human|ai)[ \t]*:[ \t]*", re.IGNORECASE | re.MULTILINE
)
_NOUN = r"(?:caption|description|summary|answer)"
_PREAMBLE = re.compile(
    r"\s*(?:(?:sure|certainly|of course|okay|ok|absolutely)\b[ \t]*[,.!:]+\s*)?"
    rf"(?:here(?:['’]s|[ ]is|[ ]are)\b[^:.\n]{{0,60}}\b{_NOUN}s?\b[^:.\n]{{0,100}}(?::|\.?[ \t]*\n)"
    rf"|(?:the[ ])?(?:video[ ]|short[ ]|detailed[ ])?{_NOUN}[ \t]*:)\s*",
    re.IGNORECASE,
)
_COURTESY = re.compile(
    r"\s*(?:sure|certainly|of course|okay|absolutely)[ \t]*[!.:]+\s+", re.IGNORECASE
)
_QUOTES = (('"', '"'), ("“", "”"), ("'", "'"), ("«", "»"))
_REFUSAL = re.compile(
    r"(?:i['’]?m sorry|i am sorry|sorry[,.]|i apologi[sz]e|i can(?:no|['’])t\b|i can not\b"
    r"|i(?:['’]m| am) (?:unable|not able)\b|as an ai\b|unfortunately, i\b)",
    re.IGNORECASE,
)


def clean_caption(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a caption as one line of plain text, and what was taken out of it.

    The text is in Unicode's normal form C. Its words are left as they are; taken out are thoughts
    (<think>), special tokens of chat models, HTML, Markdown, control, bidirectional and zero-width
    characters, names of speakers, "Here is a description:" and quotes around the whole. A clean
    caption stays as it is.

    Returns:
      The text, "" where nothing is left; and names of what was taken out, in alphabetical order.
    """
    taken: set[str] = set()
    if len(text) > _MAX_RAW:
        return "", ("text above the limit",)
    for _ in range(_PASSES):
        before = text
        text = _pass(text, taken)
        if text == before:
            return text, tuple(sorted(taken))
    return "", ("nested markup",)  # each pass uncovered more: written to get past this function


def _pass(text: str, taken: set[str]) -> str:
    def keep(name: str, new: str) -> None:
        nonlocal text
        if new != text:
            taken.add(name)
        text = new

    text = text.replace("\r\n", "\n").replace("\r", "\n")
    keep("characters", "".join(filter(_visible, text)))
    text = unicodedata.normalize("NFC", html.unescape(text))
    # Some chat templates open the thoughts themselves, so that an answer holds their end alone.
    thought = text.rpartition("</think>")[2].partition("<think>")[0]
    keep("thoughts", thought)
    keep("chat markup", _CHAT.sub(" ", text))
    keep("HTML", _HTML.sub(" ", text))
    for pattern, new in _MARKDOWN:
        keep("Markdown", pattern.sub(new, text))
    keep("speaker", _ROLE.sub("", text))
    for pattern in (_PREAMBLE, _COURTESY):
        found = pattern.match(text)
        keep("preamble", text[found.end() :] if found else text)
    if not _CHAT.search(text) and not _HTML.search(text):  # else they go with the next pass
        keep("angle brackets", text.replace("<", " ").replace(">", " "))  # so that no tag can form
    text = " ".join(text.split())
    for first, last in _QUOTES:
        inner = text[1:-1]
        if len(text) > 1 and text[0] == first and text[-1] == last and first not in inner:
            keep("quotes", inner.strip())
    return text


def _visible(character: str) -> bool:
    """False for control, format (bidirectional, zero-width), private and broken characters."""
    return character.isspace() or (
        unicodedata.category(character) not in ("Cc", "Cf", "Co", "Cs") and character != "\ufffd"
    )


def why_no_caption(text: str) -> str | None:
    """Return why a clean text is no caption; None if it is one."""
    if not any(character.isalpha() for character in text):
        return "empty answer"
    if len(text) > MAX_CHARACTERS:
        return f"{len(text)} characters, above the limit of {MAX_CHARACTERS}"
    if _REFUSAL.match(text):
        return "the model declined"
    return None


def length_statistics(captions: Iterable[str]) -> dict[str, float]:
    """Return how long captions are, in words.

    arXiv 2408.12590, section 3, gives a mean of 84.4 and about 0.87 within 50 to 120.

    Returns:
      `captions`, their number; and if there are any, `mean_words`, the percentiles `p5`, `p50` and
      `p95`, and `within_50_120`, a fraction of them.
    """
    words = np.array([len(caption.split()) for caption in captions])
    if not words.size:
        return {"captions": 0}
    p5, p50, p95 = np.percentile(words, (5, 50, 95))
    return {
        "captions": len(words),
        "mean_words": float(words.mean()),
        "p5": float(p5),
        "p50": float(p50),
        "p95": float(p95),
        "within_50_120": float(np.mean((words >= 50) & (words <= 120))),
    }
