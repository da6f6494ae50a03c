"""Build nested frozen dataclasses from plain dicts; an unknown key is an error that names the
nearest known one."""

import copy
import dataclasses
import difflib
import types
import typing
from collections.abc import Callable
from typing import Any

from xgen_jax.errors import UserError, choose

# Keys that had another name in the last release: old -> new. A run's config.json and a flag may
# use the old one for a release; `rename` prints the new one. A list in a path stands for each of
# its items.
RENAMED: dict[str, str] = {
    "model.released": "model.opensora_compat",
    "model.clip_conditions": "model.micro_cond",
    "loss.caption_drop": "loss.cond_drop_prob",
    "loss.one_step_share": "loss.one_step_fraction",
    "data.buckets.keep": "data.buckets.keep_prob",
}
# Values that had another name: key (the new name) -> {old: new}.
RENAMED_VALUES: dict[str, dict[str, str]] = {"loss.windows": {"moved": "shifted"}}

# Objectives that named converted weights: old -> the network of them.
RENAMED_OBJECTIVES = {"vidvae_weights": "vidvae", "vdit_weights": "vdit"}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten {"a": {"b": 1}} to {"a.b": 1}; tuples become lists, as in JSON."""
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


def build(kind: Any, value: Any, where: str) -> Any:
    """Build a value of an annotated kind from plain data.

    Args:
      kind: a dataclass, or what a field of one may be annotated with: a union, a tuple, a type.
      value: dicts, lists and plain values.
      where: the path of the key, for messages.

    Raises:
      UserError: an unknown or missing key, or a value of another type.
    """
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
        built = {key: build(kinds[key], item, f"{where}.{key}") for key, item in value.items()}
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
        return build(_of_kind(kinds, value, where) if len(kinds) > 1 else kinds[0], value, where)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise UserError(f"{where} must be a list, not {value!r}")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise UserError(f"{where} must have {len(kinds)} entries, not {len(value)}")
        return tuple(
            build(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(kinds, value))
        )
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{where} must be {kind.__name__}, not {value!r}")
    return value


def _of_kind(kinds: list[type], value, where: str) -> type:
    """Choose the class whose default `kind` the value names; the first if it names none."""
    by_name = {kind.kind: kind for kind in kinds}
    name = value.get("kind", kinds[0].kind) if isinstance(value, dict) else kinds[0].kind
    return by_name[choose(f"{where}.kind", name, by_name)]


def rename(values: dict[str, Any], say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Nested values with the keys and values of older releases under their new names.

    Args:
      values: nested dicts, as `configs/` and config.json hold them; they are not changed.
      say: called with a line for each renamed key or value.

    Raises:
      UserError: a key that is given under both names.
    """
    values = copy.deepcopy(values)
    said = []
    for old, new in RENAMED.items():
        (*old_path, old_name), (*new_path, new_name) = old.split("."), new.split(".")
        groups = [group for group in _groups(values, old_path) if old_name in group]
        targets = groups
        if groups and old_path != new_path:
            targets = _groups(values, new_path, make=True)
        for group, target in zip(groups, targets):
            value = group.pop(old_name)
            if value is None and new_name in target:  # not given, only listed for a flag to set
                continue
            if target.get(new_name, value) != value:
                raise UserError(f"{old} is called {new} now, and both are given; leave out {old}")
            target[new_name] = value
            said.append(f"{old} is called {new} now")
    for key, renamed in RENAMED_VALUES.items():
        *path, name = key.split(".")
        for group in _groups(values, path):
            if isinstance(group.get(name), str) and group[name] in renamed:
                old, group[name] = group[name], renamed[group[name]]
                said.append(f"{key}={old!r} is called {group[name]!r} now")
    if say:
        for line in dict.fromkeys(said):
            say(line)
    return values


def _groups(values: dict[str, Any], path: list[str], make: bool = False) -> list[dict[str, Any]]:
    """Return the groups of keys at a path: none, one, or one for each item of a list in the path.

    With `make`, a missing group is made.
    """
    groups = [values]
    for name in path:
        found = [group.setdefault(name, {}) if make else group.get(name) for group in groups]
        items = (item if isinstance(item, (list, tuple)) else [item] for item in found)
        groups = [item for some in items for item in some if isinstance(item, dict)]
    return groups
