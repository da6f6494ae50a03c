"""The keys of a run as flags: what each takes as text, and what it is for.

    --config.loop.steps=500  --config.model=tiny  --config.data.buckets=9x64x64x4,1x64x64x8

A flag's value is read by the annotation of its key. Names of presets and buckets are left to
`config.build`, which takes them from a program as well.
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from xgen_jax.config.build import TYPES, allowed, build, is_group, kind_of, may_be_none, presets
from xgen_jax.data.buckets import BUCKETS_FLAG, Bucket, buckets_text
from xgen_jax.errors import UserError
from xgen_jax.models.fingerprint import EXECUTION

PREFIX = "--config"
COLUMNS = 100
SHOWN_BUCKETS = 4

Given = Sequence[tuple[str, str]]  # key with dots, value as text


class UnknownKey(UserError):
    """A key that the configuration does not have."""


def set_keys(
    kind: type, values: dict[str, Any], given: Given, say: Callable[[str], None]
) -> dict[str, Any]:
    """Return a run's values with keys set as flags give them.

    The order of different keys does not matter: groups are set before the keys in them, and a kind
    before the keys of that kind. Of one key the last value counts.

    Args:
      kind: the class of the run.
      values: nested dicts, as for `config.runs.run_config`; they are not changed.
      given: the flags, without `--config.`.
      say: called with what a preset changes that its name does not say.

    Raises:
      UserError: a key that is not known, with the nearest, or text that is no value of the key.
    """
    values = cast(dict[str, Any], _copy(values))
    latest = dict(given)
    for key in sorted(latest, key=_rank):
        _set(kind, values, key, latest[key], say, latest)
    return values


def _rank(key: str) -> tuple[int, bool]:
    parts = key.split(".")
    # A kind belongs to its group, and comes right after it.
    return (len(parts) - 1, True) if parts[-1] == "kind" else (len(parts), False)


def _copy(value: Any) -> Any:
    return {k: _copy(v) for k, v in value.items()} if isinstance(value, dict) else value


def _set(
    kind: type,
    values: dict[str, Any],
    key: str,
    text: str,
    say: Callable[[str], None],
    given: Mapping[str, str],
) -> None:
    """Set one key in nested values."""
    *groups, name = key.split(".")
    group, kinds, where = values, [kind], PREFIX
    for part in groups:
        hint, where = _hint(kinds, part, kind, key), f"{where}.{part}"
        if not is_group(hint):
            raise UnknownKey(_no_group(hint, group.get(part), f"{PREFIX}.{key}", where))
        group[part] = _as_group(hint, group.get(part), where)
        group, kinds = group[part], allowed(hint)
        if len(kinds) > 1:
            # The kind that is chosen first: another may have a key of the same name.
            chosen = group.get("kind")
            by_name = {each.kind: each for each in kinds}
            first = [by_name.pop(chosen)] if chosen in by_name else []
            kinds = first + list(by_name.values())
    hint, where = _hint(kinds, name, kind, key), f"{where}.{name}"
    before, value = group.get(name), parse(hint, text, where, group.get(name))
    if name == "kind" and len(kinds) > 1:
        chosen = kind_of(kinds, value, where.removesuffix(".kind"))
        for other in [other for other in group if other not in hints(chosen)]:
            del group[other]
    elif is_group(hint) and isinstance(value, str):
        value = _as_group(hint, value, where)
        # A preset is also a way to compute, which its name does not say and memory depends on.
        for each in EXECUTION:
            old, new = (before or {}).get(each), value.get(each)
            if old is not None and new is not None and old != new and f"{key}.{each}" not in given:
                say(
                    f"{where}={text} also changes {key}.{each} from {old!r} to {new!r}; "
                    f"{where}.{each}={old} keeps it"
                )
    group[name] = value


def _hint(kinds: list[type], name: str, run: type, key: str) -> Any:
    """Return the annotation of a key in a group of one of some kinds."""
    for kind in kinds:
        if name in hints(kind):
            return hints(kind)[name]
    raise UnknownKey(_unknown(run, key))


def _as_group(hint: Any, value: Any, where: str) -> dict[str, Any]:
    """Return a group as a dict of its keys, also where it is None or the name of a preset."""
    if isinstance(value, str) and len(allowed(hint)) > 1:
        return {"kind": kind_of(allowed(hint), value, where).kind}
    if isinstance(value, str):
        return dataclasses.asdict(build(hint, value, where))
    return {} if value is None else value


def presets_of(hint: Any) -> dict[str, Any]:
    """Return the presets, by name, of the only class that an annotation allows."""
    kinds = allowed(hint)
    return dict(presets(kinds[0])) if len(kinds) == 1 and is_group(hint) else {}


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """Return the annotations of a dataclass's fields."""
    found = typing.get_type_hints(kind)
    return {field.name: found[field.name] for field in dataclasses.fields(kind)}


def names(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield every key of a run's class, with dots, groups included."""
    for name, hint in hints(kind).items():
        yield prefix + name
        if is_group(hint):
            for each in allowed(hint):
                yield from names(each, f"{prefix}{name}.")


def _unknown(kind: type, key: str) -> str:
    known = list(dict.fromkeys(names(kind)))
    # The same name in another group, or a name like it.
    last = key.rpartition(".")[2]
    near = [name for name in known if name.rpartition(".")[2] == last]
    near += difflib.get_close_matches(key, known, n=2, cutoff=0.75)
    near += [
        name
        for like in difflib.get_close_matches(last, {n.rpartition(".")[2] for n in known}, n=1)
        for name in known
        if name.rpartition(".")[2] == like and name.count(".") == key.count(".")
    ]
    near.sort(key=lambda name: -difflib.SequenceMatcher(None, name, key).ratio())
    near = list(dict.fromkeys(near))[:3]
    hint = f"; did you mean {' or '.join(f'{PREFIX}.{name}' for name in near)}?" if near else ""
    return f"{PREFIX}.{key} is not a key{hint}"


def _no_group(hint: Any, value: Any, flag: str, where: str) -> str:
    if _of_buckets(hint):
        now = f"; they are {shown(value)} now" if value else ""
        return f"{flag} is not a key: all buckets are given together, {BUCKETS_FLAG}{now}"
    return f"{flag} is not a key: {where} has no keys in it, it is {shown(value)}"


def _of_buckets(hint: Any) -> bool:
    return typing.get_args(hint)[:1] == (Bucket,)


def parse(hint: Any, text: str, where: str, now: Any = None) -> Any:
    """Read the value of a flag.

    Args:
      hint: the annotation of the key.
      text: as it was given.
      where: the flag, for messages.
      now: the value that it replaces, as an example in messages.

    Returns:
      A value that `config.build` takes.

    Raises:
      UserError: text of another type.
    """
    kinds = allowed(hint)
    if text.lower() == "none" and may_be_none(hint):
        return None
    if text.lower() == "none" and str not in kinds:
        raise UserError(f"{where}={text}: the key cannot be None; {_example(kinds[0], where, now)}")
    if is_group(hint):
        return _group_text(hint, text, where)
    if len(kinds) > 1:
        return _literal(text)
    kind = kinds[0]
    if kind is str:
        return text
    if kind is bool:
        values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.lower() in values:
            return values[text.lower()]
    elif kind in (int, float):
        with contextlib.suppress(ValueError):  # refused below, as every other text
            return kind(text)
    elif typing.get_origin(kind) is tuple:
        return _tuple(kind, text)
    else:
        return _literal(text)
    raise UserError(f"{where}={text} is not {TYPES[kind]}; {_example(kind, where, now)}")


def _example(kind: Any, where: str, now: Any) -> str:
    example = {int: 100, float: 0.1, bool: True}.get(kind, "VALUE")
    return f"give {where}={example if now is None else shown(now)}, for example"


def _group_text(hint: Any, text: str, where: str) -> Any:
    """The name of a preset or a kind, or a dict in Python's notation."""
    value = _literal(text)
    if isinstance(value, dict):
        return value
    kinds, named = allowed(hint), presets_of(hint)
    if named or len(kinds) > 1:
        return text
    key = next(iter(hints(kinds[0])))
    raise UserError(
        f"{where}={text}: this is a group of keys without presets; set one of them, such as "
        f"{where}.{key}=..."
    )


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        text = text.capitalize()
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def _tuple(kind: Any, text: str) -> Any:
    """(1, 2), [1, 2] or 1,2 as a tuple; buckets in their own form as text."""
    value = _literal(text)
    if isinstance(value, (tuple, list)):
        return tuple(value)
    if typing.get_args(kind)[0] is str and isinstance(value, str):
        return tuple(part.strip() for part in text.split(","))
    if typing.get_args(kind)[0] is Bucket:
        return text
    return value if isinstance(value, str) else (value,)


def shown(value: Any) -> str:
    """Return a value as a flag takes it."""
    if isinstance(value, (tuple, list)):
        if value and all(isinstance(each, Bucket) or _is_bucket(each) for each in value):
            buckets = [each if isinstance(each, Bucket) else Bucket(**each) for each in value]
            more = len(buckets) - SHOWN_BUCKETS
            text = buckets_text(buckets[:SHOWN_BUCKETS])
            return f"{text},... ({more} more)" if more > 0 else text
        if any(isinstance(each, (tuple, list)) for each in value):
            return repr(tuple(tuple(each) for each in value)).replace(" ", "")
        return ",".join(map(str, value))
    return str(value)


def _is_bucket(value: Any) -> bool:
    return isinstance(value, dict) and "batch_size" in value


@functools.cache
def documentation(kind: type) -> dict[str, str]:
    """Return what the "Attributes" of a class, and of those it derives from, say of each field."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        text = inspect.cleandoc(each.__dict__.get("__doc__") or "")
        _, _, attributes = text.partition("Attributes:\n")
        entry: list[str] = []
        for line in attributes.splitlines():
            start = re.match(r"  (\w+(?:, \w+)*): (.*)", line)
            if start:
                entry = start[1].split(", ")
                found |= dict.fromkeys(entry, start[2])
            elif line.strip():
                found |= {name: f"{found[name]} {line.strip()}" for name in entry}
    return found


def summary(kind: type) -> str:
    """Return the first paragraph of a class's docstring, in one line."""
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())


def describe(run: Any) -> str:
    """List every key of a run as a flag, with its value and what it is for, group by group."""
    return "\n".join(_lines(type(run), run, PREFIX))


def _lines(kind: type, value: Any, prefix: str, skip: str = "") -> Iterator[str]:
    """List the keys of a group, then the groups in it; at their defaults where it is None."""
    said = documentation(kind)
    groups = []
    for name, hint in hints(kind).items():
        flag = f"{prefix}.{name}"
        item = getattr(value, name) if value is not None else _default(kind, name)
        if is_group(hint):
            groups.append((flag, hint, item, said.get(name, "")))
        elif name != skip:
            yield f"  {flag}={shown(item)}"
            text = said.get(name, "")
            if _of_buckets(hint):
                text = f"{text} {BUCKETS_FLAG.partition('=')[2]}{_other_sizes(item)}"
            yield from _wrapped(text, 6)
    for flag, hint, item, about in groups:
        yield from _group_lines(flag, hint, item, about)


def _group_lines(flag: str, hint: Any, item: Any, about: str) -> Iterator[str]:
    kinds, named = allowed(hint), presets_of(hint)
    own = type(item) if item is not None else kinds[0]
    off = f" ({flag}=None now)" if item is None else ""
    yield ""
    yield from _wrapped(f"{flag}: {summary(own)}{off}", 0)
    if not about.startswith("see "):
        yield from _wrapped(about, 4)
    if named:
        yield from _wrapped(f"{flag}=NAME takes a preset: {', '.join(named)}", 2)
    yield from _lines(own, item, flag)
    for other in kinds:
        if other is not own:
            yield ""
            yield from _wrapped(f"with {flag}.kind={other.kind}: {summary(other)}", 2)
            yield from _lines(other, None, flag, skip="kind")


def _wrapped(text: str, indent: int) -> list[str]:
    later = indent if indent > 2 else indent + 4
    return textwrap.wrap(
        text,
        COLUMNS,
        initial_indent=" " * indent,
        subsequent_indent=" " * later,
        break_on_hyphens=False,
    )


def _other_sizes(buckets: Sequence[Bucket] | None) -> str:
    """Return what buckets have that the short form of them does not show."""
    names = ("weight", "keep_prob")
    found = [name for name in names if any(getattr(b, name) != 1.0 for b in buckets or ())]
    return f"; some have a {' and a '.join(found)} of their own" if found else ""


def _default(kind: type, name: str) -> Any:
    field = next(field for field in dataclasses.fields(kind) if field.name == name)
    return None if field.default is dataclasses.MISSING else field.default
