"""A command line as of this release: configs by name, and old names of flags and keys."""

import difflib
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping

from absl import flags

import xgen_jax.configs
from xgen_jax.errors import UserError

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
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5) or difflib.get_close_matches(
        path, map(str, folder.glob(f"*{ending}")), n=1
    )
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(
        f"--{flag}={path} is not known{hint}; give a file, or one of {', '.join(known)}"
    )


def _named_files(ending: str) -> Iterator[tuple[str, pathlib.Path]]:
    """The files in configs/ that can be given by name; modules that these share are left out."""
    for root in map(pathlib.Path, xgen_jax.configs.__path__):
        for path in sorted(root.rglob(f"*{ending}")):
            if ending != ".py" or "def get_config(" in path.read_text():
                yield path.relative_to(root).with_suffix("").as_posix(), path
