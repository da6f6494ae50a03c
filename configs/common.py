"""`as_config_dict`: a run's dataclass as the ConfigDict that a config file returns."""

import dataclasses
import types
import typing
from typing import Any

from ml_collections import config_dict

from xgen_jax.config.runs import Run


def as_config_dict(run: Run) -> config_dict.ConfigDict:
    """Every key of a run, locked; `--config.KEY=VALUE` sets each.

    A key whose value is None is a placeholder of its annotated type. A group that may be None, such
    as `lora`, has placeholders for all its keys, and is None until one of them is set. A group of
    several kinds, such as `text`, has the keys of all its kinds; its key `kind` chooses.

    Returns:
      A ConfigDict whose `to_dict()` gives what `run_config` takes.
    """
    return _RunConfigDict(run).lock()


class _RunConfigDict(config_dict.ConfigDict):
    """The keys of a run; `to_dict` omits placeholders and other kinds' keys that are not set."""

    def __init__(self, run: Run):
        super().__init__(_group([type(run)], run))
        object.__setattr__(self, "_run", type(run))

    def lock(self):
        # What get_config returned is locked again before flags are applied: keys that differ from
        # this copy later were set by the user.
        object.__setattr__(self, "_before", super().to_dict())
        return super().lock()

    def to_dict(self, visit_map=None, preserve_field_references=False) -> dict[Any, Any]:
        values = super().to_dict(visit_map, preserve_field_references)
        if preserve_field_references:  # for printing
            return values
        return _without_unset(self._run, values, self._before)


def _allowed(hint) -> list[Any]:
    """The types that an annotation allows, without None."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    kinds = typing.get_args(hint) if union else (hint,)
    return [kind for kind in kinds if kind is not types.NoneType]


def _hints(kind: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _group(kinds: list[type], value) -> dict[str, Any]:
    """The keys of a group: those of its own kind first, then those that other kinds add."""
    group = {}
    for kind in sorted(kinds, key=lambda kind: not isinstance(value, kind)):
        for name, hint in _hints(kind).items():
            if name not in group:
                item = getattr(value, name) if isinstance(value, kind) else None
                group[name] = _entry(hint, item)
    return group


def _entry(hint, value):
    kinds = _allowed(hint)
    if dataclasses.is_dataclass(kinds[0]):
        return _group(kinds, value)
    if value is None:
        kind = kinds[0] if len(kinds) == 1 else object
        return config_dict.placeholder(typing.get_origin(kind) or kind)
    if kinds == [float]:
        return float(value)  # a whole number would refuse fractions from a flag
    return _plain(value)


def _plain(value):
    """Dataclasses within tuples as dicts."""
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def _without_unset(hint, values, before) -> Any:
    """Values without the keys that only stood there to be set, given the values before flags."""
    kinds = _allowed(hint)
    if not dataclasses.is_dataclass(kinds[0]):
        return values
    optional = types.NoneType in typing.get_args(hint)
    if optional and _is_unset(values):
        return None
    kind = kinds[0]
    if len(kinds) > 1:
        kind = next((kind for kind in kinds if kind.kind == values["kind"]), kind)
    hints = _hints(kind)
    # Without values of its own in the config file, the dataclass's defaults stand for None.
    is_new = _is_unset(before) or before.get("kind") != values.get("kind")
    given = {}
    for name, value in values.items():
        if name not in hints:
            # A key of another kind; `run_config` refuses it if the user has set it.
            if value is not None and value != before[name]:
                given[name] = value
            continue
        value = _without_unset(hints[name], value, before[name])
        if value is not None or not is_new:
            given[name] = value
    return given


def _is_unset(values) -> bool:
    if isinstance(values, dict):
        return all(map(_is_unset, values.values()))
    return values is None
