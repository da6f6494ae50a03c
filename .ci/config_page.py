"""Check, or write with --update, docs/config.md: every key of a run, made from the dataclasses.

python .ci/config_page.py
python .ci/config_page.py --update
"""

import dataclasses
import pathlib
import re
import sys
import types
import typing
from collections.abc import Collection, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from xgen_jax.config.build import allowed, is_group, may_be_none  # noqa: E402  (the path first)
from xgen_jax.config.keys import documentation, hints, presets_of, shown, summary  # noqa: E402
from xgen_jax.config.runs import Run  # noqa: E402
from xgen_jax.curation.config import CurationConfig  # noqa: E402
from xgen_jax.data.buckets import BUCKETS_FLAG, Bucket  # noqa: E402

PAGE = ROOT / "docs" / "config.md"
HEAD = """# Configuration keys

<!-- Made by .ci/config_page.py from the dataclasses; change these, then run it with --update. -->

A run is a file of `configs/` and the keys that are changed on the command line:

```bash
python launch/train.py --config=quickstart/vidvae --workdir=runs/vidvae --config.loop.steps=5000
python launch/train.py --config=quickstart/vidvae --help    # its keys, with their values
```

The tables have each key's type, its default and its meaning. A default is that of the library; a
file of `configs/` may set another, and must set what is *required*. Where None is allowed,
`--config.KEY=None` gives it. A group with presets takes one by its name (`--config.model=tiny`), a
group with kinds one of them (`--config.text=t5`). Of a mistyped key the nearest is named.
"""
TITLES = {
    "vidvae": "Runs of a VidVAE",
    "regen": "Runs of a REGEN",
    "vdit": "Runs of a VDiT, and of its adapters",
}


def page() -> str:
    """Return the page."""
    shared = set(hints(Run))
    lines = [HEAD, "## Every run", "", *_group(Run, "", level=3)]
    for objective, title in TITLES.items():
        lines += [
            f"## {title}",
            "",
            f"`objective={objective}`. {summary(Run.known[objective])}",
            "",
        ]
        lines += _group(Run.known[objective], "", level=3, skip=shared)
    lines += ["## Curation", ""]
    lines += [f"The keys of `launch/curate.py`. {summary(CurationConfig)}", ""]
    lines += _group(CurationConfig, "", level=3)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def missing() -> set[str]:
    """Return the families of networks that the page does not have."""
    return set(Run.known) - set(TITLES) - {""}


def _group(kind: type, prefix: str, level: int, skip: Collection[str] = ()) -> Iterator[str]:
    """The keys of a class as a table, then the groups in it, each with a heading of its own."""
    said, fields = documentation(kind), {field.name: field for field in dataclasses.fields(kind)}
    rows, groups = [], []
    for name, hint in hints(kind).items():
        if name in skip:
            continue
        if is_group(hint):
            groups.append((name, hint))
            continue
        text = said.get(name, "")
        text = text[:1].upper() + text[1:]
        if typing.get_args(hint)[:1] == (Bucket,):
            text = f"{text} {BUCKETS_FLAG.partition('=')[2]}"
        cells = (f"`{prefix}{name}`", _type(hint), _default(fields[name]), text)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if rows:
        yield from ("| key | type | default | |", "|---|---|---|---|", *rows, "")
    for name, hint in groups:
        yield from _heading(f"{prefix}{name}", hint, fields[name], level)


def _heading(name: str, hint: Any, field: dataclasses.Field, level: int) -> Iterator[str]:
    kinds = allowed(hint)
    yield from (f"{'#' * level} `{name}`", "")
    about = summary(kinds[0]) if len(kinds) == 1 else f"One of {len(kinds)} kinds."
    if may_be_none(hint):
        about += f" `{name}=None` leaves it out" + (", the default." if not field.default else ".")
    yield from (about, "")
    if named := presets_of(hint):
        yield from (f"Presets: {', '.join(f'`{preset}`' for preset in named)}.", "")
    if len(kinds) == 1:
        yield from _group(kinds[0], f"{name}.", level + 1)
        return
    for kind in kinds:
        yield from (f"{'#' * (level + 1)} `{name}={kind.kind}`", "", summary(kind), "")
        yield from _group(kind, f"{name}.", level + 1, skip={"kind"})


def _type(hint: Any) -> str:
    """An annotation as a reader of the page needs it."""
    names = [_one_type(kind) for kind in allowed(hint)]
    return " or ".join([*names, "None"] if may_be_none(hint) else names)


def _one_type(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        if parts[-1] is Ellipsis:
            return "buckets" if parts[0] is Bucket else f"several {_type(parts[0])}"
        return "(" + ", ".join(_type(part) for part in parts) + ")"
    if isinstance(kind, types.GenericAlias) or typing.get_origin(kind) is not None:
        return str(kind).replace("collections.abc.", "").replace("typing.", "")
    return kind.__name__


def _default(field: dataclasses.Field) -> str:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "*required*"
    return f"`{shown(value)}`" if shown(value) else "empty"


def main(arguments: list[str]) -> int:
    if unknown := missing():
        print(f"TITLES of .ci/config_page.py misses {', '.join(sorted(unknown))}", file=sys.stderr)
        return 1
    wanted = page()
    if arguments == ["--update"]:
        PAGE.write_text(wanted)
    elif not PAGE.exists() or PAGE.read_text() != wanted:
        print("docs/config.md is old: run python .ci/config_page.py --update", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
