"""An HTML page as tests read it."""

import base64
import hashlib
import html.parser

VOID = {"meta", "line", "rect", "polyline", "img", "input"}


class Page(html.parser.HTMLParser):
    """Check nesting while reading; collect tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.sources = {"style": [], "script": []}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        for tag in set(self.open) & set(self.sources):
            self.sources[tag].append(data)
            return
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)

    @property
    def flat(self):
        """The text as one line."""
        return " ".join(self.text.split())

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def check_scripts(page):
    """Check that a page's policy allows its one style sheet and its one script, and no other."""
    policy = next(attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    media = {"media-src", "img-src"} & set(rules)
    assert set(rules) == {"default-src", "style-src", "script-src", *media} and len(media) == 1
    assert rules["default-src"] == "'none'" and rules[media.pop()] == "data:"
    for tag, (text,) in page.sources.items():
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
        assert "url(" not in text and "@import" not in text and "http" not in text
