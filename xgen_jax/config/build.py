"""Build nested frozen dataclasses from plain dicts; an unknown key is an error that names the
nearest known one.

A few values may also be given as people write them, in a dict as by a flag: a group by the name of
a preset ({"model": "tiny"}) or of its kind ({"text": "t5"}), and buckets as "9x64x64x4,1x64x64x8".
"""

import copy
import dataclasses
import difflib
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from xgen_jax.data.buckets import Bucket, parse_buckets
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


def presets(kind: type) -> Mapping[str, Any]:
    """Return the presets of a dataclass by name: those in the table PRESETS of its module."""
    table = getattr(sys.modules.get(kind.__module__), "PRESETS", {})
    return {name: preset for name, preset in table.items() if type(preset) is kind}


def allowed(hint: Any) -> list[Any]:
    """Return the types that an annotation allows, without None."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    kinds = typing.get_args(hint) if union else (hint,)
    return [kind for kind in kinds if kind is not types.NoneType]


def may_be_none(hint: Any) -> bool:
    """Return whether an annotation allows None."""
    return hint is types.NoneType or types.NoneType in typing.get_args(hint)


def is_group(hint: Any) -> bool:
    """Return whether an annotation is of a group of keys: a dataclass, or one of several."""
    return dataclasses.is_dataclass(allowed(hint)[0])


def kind_of(kinds: list[type], value: Any, where: str) -> type:
    """Choose the class whose default `kind` the value names; the first if it names none.

    Args:
      kinds: classes with a default of `kind`.
      value: a group of keys, or the name of a kind.
      where: the path of the group, for messages.

    Raises:
      UserError: a name that no class has.
    """
    by_name = {kind.kind: kind for kind in kinds}
    name = value.get("kind", kinds[0].kind) if isinstance(value, dict) else kinds[0].kind
    return by_name[choose(f"{where}.kind", value if isinstance(value, str) else name, by_name)]


def build(kind: Any, value: Any, where: str) -> Any:
    """Build a value of an annotated kind from plain data.

    Args:
      kind: a dataclass, or what a field of one may be annotated with: a union, a tuple, a type.
      value: dicts, lists and plain values; for a dataclass with presets, the name of one.
      where: the path of the key, for messages: the flag that sets it, "--config.loop.steps".

    Raises:
      UserError: an unknown or missing key, or a value of another type.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build_group(typing.cast(type, kind), value, where)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        kinds = allowed(kind)
        if len(kinds) == 1:
            return build(kinds[0], value, where)
        chosen = kind_of(kinds, value, where)
        value = {"kind": value} if isinstance(value, str) else value
        _refuse_other_kinds(kinds, chosen, value, where)
        return build(chosen, value, where)
    if origin is tuple:
        if args[0] is Bucket and isinstance(value, str):
            return parse_buckets(value)
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
        raise UserError(f"{where} must be {TYPES.get(kind, kind.__name__)}, not {value!r}")
    return value


# What a value of a type is called in messages.
TYPES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
}


def _build_group(kind: type, value: Any, where: str) -> Any:
    named = presets(kind)
    if isinstance(value, str) and named:
        return named[choose(where, value, named)]
    if not isinstance(value, dict):
        names = f", or one of {', '.join(named)}" if named else ""
        raise UserError(f"{where} must be a group of keys{names}, not {value!r}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in value:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = (
                f"did you mean {where}.{near[0]}?"
                if near
                else f"it knows {', '.join(sorted(fields))}"
            )
            raise UserError(f"{where} has no key {key!r}; {hint}")
    kinds = typing.get_type_hints(kind)
    built = {key: build(kinds[key], item, f"{where}.{key}") for key, item in value.items()}
    for name, field in fields.items():
        no_default = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if no_default and name not in built:
            raise UserError(f"{where} lacks the key {name!r}; give {where}.{name}=...")
    try:
        return kind(**built)
    except UserError as error:
        leaves = [name for name in fields if not is_group(kinds[name])]
        raise UserError(with_flag(str(error), where, leaves)) from error


def _refuse_other_kinds(kinds: list[Any], chosen: Any, value: Any, where: str) -> None:
    """Raise UserError for a key that another kind of the group has."""
    own = {field.name for field in dataclasses.fields(chosen)}
    for key in value if isinstance(value, dict) else ():
        of = [k.kind for k in kinds if key in {field.name for field in dataclasses.fields(k)}]
        if key not in own and of:
            raise UserError(
                f"{where} has no key {key!r} where {where}.kind={chosen.kind}; it is a key of "
                f"{where}.kind={' or '.join(of)}"
            )


def with_flag(message: str, where: str, names: typing.Iterable[str]) -> str:
    """Add to what a class says of its values the flag of the one that it names first."""
    if "--config" in message or not where.startswith("--"):
        return message
    places = {name: re.search(rf"\b{name}\b", message) for name in names}
    found = {name: place.start() for name, place in places.items() if place}
    if not found:
        return message
    # A bucket is set with all others.
    return f"{message} ({where.partition('[')[0]}" + (
        "=...)" if "[" in where else f".{min(found, key=lambda name: found[name])}=...)"
    )


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
