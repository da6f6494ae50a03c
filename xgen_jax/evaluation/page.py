"""Building blocks of HTML pages that are one file, load nothing from the network and hold no
scripts; a content security policy in their head enforces that.

Arguments named `body`, `cells` or `head` are HTML already. All else goes through `escape`.
"""

import html
import math
import re
from collections.abc import Iterable
from typing import Any

from xgen_jax.evaluation.report_style import STYLE

escape = html.escape
MAX_NAME = 90  # characters of a file's name that are shown


def document(title: str, body: str, sources: str, style: str = "") -> str:
    """Return a whole page.

    Args:
      title: plain text.
      body: HTML.
      sources: what the page embeds, as directives of a content security policy: "img-src data:".
      style: CSS in addition to the common one.
    """
    policy = f"default-src 'none'; style-src 'unsafe-inline'; {sources}"
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )
    # File names that are not UTF-8 come from Python with surrogates, which cannot be written.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def file_name(name: object) -> str:
    """Return a file's name: its middle left out if it is long, its direction kept to itself."""
    shown = str(name)
    if len(shown) > MAX_NAME:
        shown = f"{shown[: MAX_NAME // 3]}…{shown[-2 * MAX_NAME // 3 :]}"
    return f"<bdi>{escape(shown)}</bdi>"


def shortened(text: object, most: int) -> str:
    """Return at most `most` characters of a text."""
    text = str(text)
    return f"<bdi>{escape(text if len(text) <= most else f'{text[:most]}…')}</bdi>"


def section(title: str, body: str) -> str:
    """Return a section under a heading."""
    return f'<section id="{_anchor(title)}"><h2>{title}</h2>{body}</section>'


def contents(titles: Iterable[str]) -> str:
    """Return links to the sections with these headings."""
    links = (f'<a href="#{_anchor(title)}">{title}</a>' for title in titles)
    return f"<nav>{' '.join(links)}</nav>"


def _anchor(title: str) -> str:
    return "-".join(re.findall("[a-z]+", title.lower()))


def missing(body: str) -> str:
    """Return a line that says that something is not there."""
    return f'<p class="missing">{body}</p>'


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table of cells, which scrolls sideways where it is too wide."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def folded(summary: str, body: str) -> str:
    """Return a part that is opened by a click on its summary, which is HTML too."""
    return f"<details><summary>{summary}</summary>{body}</details>"


def tiles(cells: Iterable[tuple[str, str, str]]) -> str:
    """Return the large figures at the top: name, value and remark of each."""
    shown = (
        f"<div><p>{name}</p><strong>{value}</strong><p>{remark}</p></div>"
        for name, value, remark in cells
    )
    return f'<div class="tiles">{"".join(shown)}</div>'


def bar(fraction: float, kind: str = "") -> str:
    """Return a bar that is filled from the left, with a further class for its colour."""
    width = 100 * min(max(fraction, 0), 1)
    return f'<span class="{f"bar {kind}".strip()}"><span style="width:{width:.1f}%"></span></span>'


def number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def figure(value: Any, form: str) -> str:
    """Format a number; a dash where there is none."""
    return "–" if number(value) is None else format(value, form)
