"""Pages from the templates next to this file: each is one file that loads nothing from the network.

The only script is `viewer.js`, which enlarges videos and steps through their frames. A content
security policy in the head of a page allows that script and the style sheet by their hashes, and
nothing else; a page reads well without it.

Text is escaped by the templates. What is HTML already is a `markupsafe.Markup`.
"""

import base64
import datetime
import functools
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from xgen_jax.files import write_text
from xgen_jax.runs.folder import code_commit
from xgen_jax.training.metric_writers import duration


def write_page(
    out: str | os.PathLike, template: str, title: str, media: str, **context: Any
) -> pathlib.Path:
    """Fill a template and write the page, atomically.

    Args:
      out: the page's path.
      template: "curation", of `templates/curation.html.j2`.
      title: plain text.
      media: what the page embeds: "img" or "media".
      context: what the template needs.

    Returns:
      The page's path.

    Raises:
      UserError: the page cannot be written.
    """
    environment = _environment()
    style, script = (_source(name) for name in ("style.css", "viewer.js"))
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        f"{media}-src data:"
    )
    page = environment.get_template(f"{template}.html.j2").render(
        title=title, policy=policy, style=Markup(style), script=Markup(script), **context
    )
    # File names that are not UTF-8 come from Python with surrogates, which cannot be written.
    write_text(out, page.encode("utf-8", "backslashreplace").decode("utf-8"))
    return pathlib.Path(out)


def macro(name: str, *values: Any) -> str:
    """Return what one macro of `macros.html.j2` makes of these values."""
    return str(getattr(_environment().get_template("macros.html.j2").module, name)(*values))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("xgen_jax.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": figure,
        "duration": duration,
        "middle_out": middle_out,
        "cut": cut,
        "json": functools.partial(json.dumps, default=str),
        "fact": fact,
        "fact_name": fact_name,
        "without": without,
    }
    return environment


def _source(name: str) -> str:
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def facts(machines: Iterable[str], commits: Iterable[str], dates: Iterable[str] = ()) -> dict:
    """Return what the head of every page says of it: date, code and machine.

    Args:
      machines, commits, dates: of the runs, each where it is known.
    """
    machines, commits, dates = (list(filter(None, x)) for x in (machines, commits, dates))
    here = code_commit()
    code = " and ".join(dict.fromkeys(commits))
    if not code:
        code = f"not recorded; this page is by {here}" if here else "not recorded"
    return {
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        **({"trained": max(dates)[:16].replace("T", " ")} if dates else {}),
        "commit": code,
        "machine": " and ".join(dict.fromkeys(machines)) or "not recorded",
    }


# Filters.


def number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def figure(value: Any, form: str, unit: str = "") -> str:
    """Format a number and its unit; a dash where there is none."""
    return "–" if number(value) is None else f"{format(value, form)}{unit}"


def middle_out(name: object, most: int = 90) -> str:
    """Return a file's name, its middle left out if it has more than `most` characters."""
    shown = str(name)
    return shown if len(shown) <= most else f"{shown[: most // 3]}…{shown[-2 * most // 3 :]}"


def cut(text: object, most: int) -> str:
    """Return at most `most` characters of a text."""
    text = str(text)
    return text if len(text) <= most else f"{text[:most]}…"


def _is_time(name: str) -> bool:
    """Return whether a fact is a number of seconds, by the unit in its name."""
    return name.endswith("_s") and not name.endswith("_per_s")


def fact_name(name: str) -> str:
    """Return the name of a fact without a unit that is shown with its value."""
    return name.removesuffix("_s") if _is_time(name) else name


def fact(value: Any, name: str) -> str:
    """Format a fact of a run, by the unit in its name."""
    if number(value) is not None:
        if _is_time(name):
            return duration(value)
        return f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return values by their names, but not those."""
    return {name: value for name, value in values.items() if name not in names}
