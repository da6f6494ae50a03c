"""Nested frozen dataclasses out of plain dicts; a key that no part knows is an error which names
the nearest one."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable
from typing import Any

from xgen_jax.errors import UserError

# Keys that had another name in a release: old -> new. A config.json of a run and a flag may still
# use the old one for a release; `rename` says so on stderr.
RENAMED: dict[str, str] = {
    "model.released": "model.opensora_compat",
    "model.clip_conditions": "model.micro_cond",
    "loss.caption_drop": "loss.cond_drop_prob",
    "loss.one_step_share": "loss.one_step_fraction",
}
# Values that had another name: key (the new name) -> {old: new}.
RENAMED_VALUES: dict[str, dict[str, str]] = {"loss.windows": {"moved": "shifted"}}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; tuples become lists, as JSON has them."""
    out = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = _lists(value)
    return out


def _lists(value):
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, (tuple, list)) else value


def _build(kind, value, where: str):
    """A value of the annotated kind out of plain data."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a group of keys, not {value!r}")
        fields = {field.name: field for field in dataclasses.fields(kind)}
        for key in value:
            if key not in fields:
                near = difflib.get_close_matches(str(key), fields, n=1)
                hint = (
                    f"did you mean {near[0]!r}?"
                    if near
                    else f"it knows {', '.join(sorted(fields))}"
                )
                raise UserError(f"{where} has no key {key!r}; {hint}")
        kinds = typing.get_type_hints(kind)
        built = {key: _build(kinds[key], item, f"{where}.{key}") for key, item in value.items()}
        for name, field in fields.items():
            no_default = (
                field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING
            )
            if no_default and name not in built:
                raise UserError(f"{where} lacks the key {name!r}")
        return kind(**built)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        kinds = [arg for arg in args if arg is not type(None)]
        return _build(_of_kind(kinds, value, where) if len(kinds) > 1 else kinds[0], value, where)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise UserError(f"{where} must be a list, not {value!r}")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise UserError(f"{where} must have {len(kinds)} entries, not {len(value)}")
        return tuple(
            _build(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, value))
        )
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{where} must be {kind.__name__}, not {value!r}")
    return value


def _of_kind(kinds: list[type], value, where: str) -> type:
    """Of several groups of keys, the one whose default `kind` the value names; the first where it
    names none."""
    by_name = {kind.kind: kind for kind in kinds}
    name = value.get("kind", kinds[0].kind) if isinstance(value, dict) else kinds[0].kind
    if name not in by_name:
        raise UserError(f"{where}.kind={name!r} is not known; choose one of {', '.join(by_name)}")
    return by_name[name]


def rename(values: dict[str, Any], say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Nested values with the keys and values of older releases under their new names.

    Args:
      values: nested dicts, as `configs/` and config.json hold them; they are not changed.
      say: called with a line for each renamed key or value.

    Raises:
      UserError: a key that is given under both names.
    """
    values = _copied(values)
    for old, new in RENAMED.items():
        *groups, name = old.split(".")
        group = _group(values, groups)
        if group is None or name not in group:
            continue
        value = group.pop(name)
        *groups, name = new.split(".")
        target = _group(values, groups, make=True)
        if target.get(name, value) != value:
            raise UserError(f"{old} is called {new} now, and both are given; leave out {old}")
        target[name] = value
        if say:
            say(f"{old} is called {new} now")
    for key, renamed in RENAMED_VALUES.items():
        *groups, name = key.split(".")
        group = _group(values, groups)
        if group is not None and isinstance(group.get(name), str) and group[name] in renamed:
            old, group[name] = group[name], renamed[group[name]]
            if say:
                say(f"{key}={old!r} is called {group[name]!r} now")
    return values


def _copied(values):
    return {k: _copied(v) for k, v in values.items()} if isinstance(values, dict) else values


def _group(values, groups: list[str], make: bool = False):
    """The group of keys at a path; None where there is none, unless it is to be made."""
    for group in groups:
        found = values.setdefault(group, {}) if make else values.get(group)
        if not isinstance(found, dict):
            return None
        values = found
    return values
