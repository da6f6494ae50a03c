"""A command line as of this release: configs by name, and old names of flags and keys."""

import difflib
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping

from absl import flags

import xgen_jax.configs
from xgen_jax.errors import UserError

# The flag that `--config.KEY=VALUE` becomes, so that flags are read before a configuration is.
KEY_FLAG = "config_key"
# The flags that take a file of configs/ by its name, and the ending of these files.
NAMED_FILES = {"config": ".py", "flagfile": ".flags"}
_FLAG = re.compile(r"(?P<dashes>--?)(?P<name>[^=]+)(?P<value>=.*)?", re.DOTALL)


def current_arguments(
    arguments: list[str], renamed: Mapping[str, str], say: Callable[[str], None]
) -> list[str]:
    """Return the arguments with paths for names of configs, and new names for old ones.

    Flag files are read in, so that what they hold is treated alike.

    Args:
      arguments: of the command, without its own name.
      renamed: flags that had another name, old -> new; those of config keys need no entry.
      say: called with a line for each old name.

    Raises:
      UserError: no config has the name given; the nearest one is named.
      flags.Error: a flag file that cannot be read.
    """
    names = dict(renamed) | {f"config.{old}": f"config.{new}" for old, new in _keys().items()}
    arguments = _with_paths(arguments, "flagfile")
    arguments = flags.FLAGS.read_flags_from_files(arguments, force_gnu=True)
    arguments = _with_paths(arguments, "config")
    return [_with_new_name(argument, names, say) for argument in arguments]


def keys_as_flags(arguments: list[str]) -> list[str]:
    """Return the arguments with `--config_key=KEY=VALUE` for each `--config.KEY=VALUE`.

    Also of `--config.KEY VALUE`; a key without a value is True, and --noconfig.KEY is False.
    """
    out, left = [], list(arguments)
    while left:
        argument = left.pop(0)
        match = _FLAG.fullmatch(argument)
        key = re.fullmatch(r"(no)?config\.(.+)", match["name"]) if match else None
        if argument == "--" or not match or not key:
            out += [argument, *left] if argument == "--" else [argument]
            left = [] if argument == "--" else left
            continue
        if match["value"] is not None:
            value = match["value"][1:]
        elif key[1]:
            value = "False"
        elif left and re.fullmatch(r"[^-].*|-[\d.].*|", left[0], re.DOTALL):
            value = left.pop(0)
        else:
            value = "True"
        out.append(f"--{KEY_FLAG}={key[2]}={value}")
    return out


def _keys() -> dict[str, str]:
    """Keys of configs that had another name, old -> new."""
    from xgen_jax.config.build import RENAMED
    from xgen_jax.data.config import OLD_KEYS

    # Keys that stood in `data` before its source was a group.
    table = {f"data.{key}": f"data.source.{key}" for key in OLD_KEYS}
    return table | {"data.source": "data.source.kind"} | RENAMED


def _with_new_name(argument: str, names: Mapping[str, str], say: Callable[[str], None]) -> str:
    match = _FLAG.fullmatch(argument)
    if match is None:
        return argument
    given = match["name"]
    for prefix in ("", "no"):  # --noflag is --flag=false
        if not given.startswith(prefix):
            continue
        name = given.removeprefix(prefix)
        for old, new in names.items():
            # A group's new name holds for its keys, unless the group is where they were.
            inside = name.startswith(f"{old}.") and not new.startswith(f"{old}.")
            if name == old or inside:
                name = new + name.removeprefix(old)
                say(f"--{given.removeprefix(prefix)} is called --{name} now")
                return f"{match['dashes']}{prefix}{name}{match['value'] or ''}"
    return argument


def _with_paths(arguments: list[str], flag: str) -> list[str]:
    """The arguments with the path of a config file where its name is given."""
    arguments = list(arguments)
    for index, argument in enumerate(arguments):
        match = _FLAG.fullmatch(argument)
        if match is None or match["name"] != flag:
            continue
        if match["value"] is not None:
            arguments[index] = f"--{flag}={find_config(match['value'][1:], flag)}"
        elif index + 1 < len(arguments):
            arguments[index + 1] = find_config(arguments[index + 1], flag)
    return arguments


def find_config(given: str, flag: str = "config") -> str:
    """Return the path of a config file, followed by `:ARGUMENT` if that is given.

    Args:
      given: a path, or a name in configs/ with or without `configs/` and its ending, such as
        quickstart/vidvae; then perhaps `:ARGUMENT`.
      flag: a key of `NAMED_FILES`.

    Raises:
      UserError: there is no such file; the nearest name is given.
    """
    ending = NAMED_FILES[flag]
    path, colon, argument = given.partition(":")
    if not path or pathlib.Path(path).is_file():
        return given
    name = path.removeprefix("configs/").removesuffix(ending)
    known = dict(_named_files(ending))
    if name in known:
        return f"{known[name]}{colon}{argument}"
    folder = pathlib.Path(path).parent
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5) or difflib.get_close_matches(
        path, map(str, folder.glob(f"*{ending}")), n=1
    )
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise UserError(
        f"--{flag}={path} is not known{hint}; give a file, or one of {', '.join(known)}"
    )


def config_name(given: str) -> str:
    """Return the name in configs/ of what `find_config` returned, or the path of another file."""
    path, colon, argument = given.partition(":")
    names = {str(file): name for name, file in _named_files(NAMED_FILES["config"])}
    return f"{names.get(path, path)}{colon}{argument}"


def _named_files(ending: str) -> Iterator[tuple[str, pathlib.Path]]:
    """The files in configs/ that can be given by name; modules that these share are left out."""
    for root in map(pathlib.Path, xgen_jax.configs.__path__):
        for path in sorted(root.rglob(f"*{ending}")):
            if ending != ".py" or "def get_config(" in path.read_text():
                yield path.relative_to(root).with_suffix("").as_posix(), path
