"""A run's configuration from a file of configs/ and the flags that change its keys."""

import importlib.util
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from xgen_jax.commands.arguments import config_name, find_config
from xgen_jax.commands.start import FlagError
from xgen_jax.config.build import build, rename
from xgen_jax.config.keys import PREFIX, UnknownKey, describe, set_keys
from xgen_jax.config.runs import Run, run_config
from xgen_jax.curation.config import CurationConfig
from xgen_jax.data.config import SyntheticConfig, nest_source
from xgen_jax.errors import UserError, choose

PATH, KIND = "data.source.path", "data.source.kind"


def load_config(
    given: str, keys: Sequence[str], say: Callable[[str], None] = lambda line: None
) -> Run:
    """Build the configuration that a file and flags give.

    Args:
      given: a name in configs/ or a file, followed by `:ARGUMENT` if its get_config takes one.
      keys: KEY=VALUE for each flag --config.KEY=VALUE.
      say: called with a line for each renamed key, and for what a preset changes.

    Raises:
      FlagError: a key that is not known, or text that is no value of it.
      UserError: no such file, one that fails, or values that a part refuses.
    """
    values = rename(_values(given), say)
    if isinstance(values.get("data"), dict):
        values["data"] = nest_source(values["data"], say)
    objective = choose("objective", values.get("objective"), Run.known)
    pairs = _pairs(keys)
    values = _set(Run.known[objective], values, given, pairs, say)
    flags = dict(pairs)
    if flags.get(PATH, "None") != "None" and KIND not in flags:
        # What lies there decides, whatever kind of clips the file is for.
        values["data"]["source"]["kind"] = SyntheticConfig.kind
    return run_config(values, say)


def load_curation(given: str, keys: Sequence[str]) -> CurationConfig:
    """Build the configuration of a curation; see `load_config`."""
    values = _set(CurationConfig, _values(given), given, _pairs(keys), lambda line: None)
    return build(CurationConfig, values, PREFIX)


def config_help(given: str, keys: Sequence[str], load: Callable[..., Any] = load_config) -> str:
    """List the keys of a configuration as flags, with their values and what they are for."""
    title = (
        f"keys of --config={config_name(given)}, with their values (=None where None is allowed)"
    )
    return f"\n\n{title}:\n\n{describe(load(given, keys))}"


def _pairs(keys: Sequence[str]) -> list[tuple[str, str]]:
    return [(key, value) for key, _, value in (each.partition("=") for each in keys)]


def _set(
    kind: type,
    values: dict[str, Any],
    given: str,
    pairs: list[tuple[str, str]],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Set keys as flags give them; see `set_keys`."""
    try:
        return set_keys(kind, values, pairs, say)
    except UnknownKey as error:
        raise FlagError(f"{error}\n--config={config_name(given)} --help lists all keys") from error
    except UserError as error:
        raise FlagError(str(error)) from error


def _values(given: str) -> dict[str, Any]:
    """Run a config file's get_config; nested dicts."""
    path, colon, argument = find_config(given).partition(":")
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None or spec.loader is None or not pathlib.Path(path).is_file():
        raise FlagError(f"--config={given} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError("the config file has no function get_config()")
        values = module.get_config(*([argument] if colon else []))
        values = values.to_dict() if hasattr(values, "to_dict") else values
    except UserError as error:
        raise FlagError(str(error)) from error
    except Exception as error:  # whatever the user's own code raises
        place = _line(error, path)
        text = f"the config file fails: {type(error).__name__}: {error}{place}"
        raise FlagError(text) from error
    if not isinstance(values, dict):
        raise FlagError(f"get_config() of {path} returned a {type(values).__name__}, not a dict")
    return values


def _line(error: Exception, path: str) -> str:
    """Return the last line of a file that was running, for a message."""
    trace, line = sys.exc_info()[2], 0
    while trace:
        if trace.tb_frame.f_code.co_filename == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line} of {path})" if line and not isinstance(error, SyntaxError) else ""
