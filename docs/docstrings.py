"""Griffe's extension of mkdocs.yml, for docstrings as this project writes them.

`embedder, params: text` is an entry for each: names are checked against the signature, and shown
with their own types. What follows `Example:` is code.
"""

import re
import textwrap
from typing import Any

import griffe

_ENTRY = re.compile(r"( +)(\**\w+(?:, \**\w+)+):( .*)")


def one_name_an_entry(text: str) -> str:
    """Repeat each entry of several names for each of them."""
    lines, entry, names, indent = [], [], [], ""
    for line in [*text.splitlines(), ""]:
        start = _ENTRY.fullmatch(line)
        inside = line.strip() and line.startswith(indent + " ")
        if names and not inside:
            for name in names:
                lines += [f"{indent}{name}:{entry[0]}", *entry[1:]]
            names = []
        if start:
            indent, names, entry = start[1], start[2].split(", "), [start[3]]
        elif names:
            entry.append(line)
        else:
            lines.append(line)
    return "\n".join(lines).rstrip()


def example_as_code(text: str) -> str:
    """Make the lines below `Example:` a block of code."""
    before, found, code = text.partition("\nExample:\n")
    if not found:
        return text
    code, blank, after = code.partition("\n\n")
    return f"{before}\n\n```python\n{textwrap.dedent(code)}\n```\n{blank}{after}"


class Docstrings(griffe.Extension):
    """See the module."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite an object's docstring when it has been read."""
        if obj.docstring is not None:
            obj.docstring.value = example_as_code(one_name_an_entry(obj.docstring.value))
