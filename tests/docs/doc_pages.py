"""The pages of the documentation, their blocks of code, and their commands in this process."""

import ast
import contextlib
import dataclasses
import pathlib
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags

from xgen_jax.commands.arguments import KEY_FLAG, current_arguments, keys_as_flags

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
# A command in other text, with the lines that continue it.
_LINE = re.compile(r"^(?:\$ )?((?:python|bash|pip|sbatch) \S(?:.*\\\n)*.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
      page: name of the file.
      words: as a shell splits them.
      name: of the project's command that it runs, such as train; empty for any other program.
      arguments: of that command.
    """

    page: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return self._own()[0]

    @property
    def arguments(self) -> list[str]:
        return self._own()[1]

    def _own(self) -> tuple[str, list[str]]:
        words = list(self.words)
        if words[0] == "python" and (match := re.fullmatch(r"launch/(\w+)\.py", words[1])):
            return match[1], words[2:]
        for begin in (["python", "-m", "xgen_jax"], ["sbatch", "launch/cluster/slurm.sh"]):
            if words[: len(begin)] == begin and len(words) > len(begin):
                return words[len(begin)], words[len(begin) + 1 :]
        return "", words

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(page: pathlib.Path, *languages: str) -> list[str]:
    """Return the fenced blocks of a page in these languages."""
    found = _FENCE.findall(page.read_text())
    return [code for _, language, code in found if language in languages]


def text_without_blocks(page: pathlib.Path) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def commands(page: pathlib.Path) -> list[Command]:
    """Return the commands of a page: all of ```bash blocks, then those in others, and indented."""
    code = "\n".join(blocks(page, "bash", "sh"))
    others = blocks(page, "", "console", "text")
    lines = text_without_blocks(page).splitlines()
    others += ["\n".join(line[4:] if line.startswith("    ") else "" for line in lines)]
    code += "\n" + "\n".join(_LINE.findall("\n".join(others)))
    return [Command(page.name, words) for words in split(code)]


def split(code: str) -> list[tuple[str, ...]]:
    """Split a shell's code into commands of words; comments are left out."""
    out = []
    for line in re.sub(r"\\\n\s*", " ", code).splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            out.append(tuple(words[:end]))
            words = words[end + 1 :]
    return out


@contextlib.contextmanager
def loaded(name: str) -> Iterator[dict[str, Any]]:
    """Load launch/NAME.py with its flags, and take these away again."""
    folder, before = str(ROOT / "launch"), set(flags.FLAGS)
    was_parsed, own = flags.FLAGS.is_parsed(), set()
    sys.path.insert(0, folder)
    try:
        module = runpy.run_path(f"{folder}/{name}.py", run_name=f"launch_{name}")
        own = set(flags.FLAGS) - before
        yield module
    finally:
        sys.path.remove(folder)
        for flag in own:
            delattr(flags.FLAGS, flag)
        if not was_parsed:
            flags.FLAGS.unparse_flags()


def parse(module: dict[str, Any], arguments: list[str]) -> None:
    """Set the flags of a loaded command from its arguments, as `commands.start` does.

    Raises:
      flags.Error, UserError: arguments that the command does not take.
    """
    say: list[str] = []
    flags.FLAGS.set_gnu_getopt(True)
    flags.FLAGS.unparse_flags()
    for flag in flags.FLAGS:
        flags.FLAGS[flag].unparse()
    arguments = current_arguments(arguments, module.get("RENAMED", {}), say.append)
    if KEY_FLAG in flags.FLAGS:
        arguments = keys_as_flags(arguments)
    rest = flags.FLAGS(["command", *arguments])[1:]
    assert not rest, f"{rest} are no flags"
    assert not say, f"old names: {say}"


def targets(name: str) -> list[tuple[str, str]]:
    """Return (module, function) of what launch/NAME.py calls with its request, from its source."""
    found = []
    for node in ast.walk(ast.parse((ROOT / "launch" / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "xgen_jax.commands."
        ):
            if node.module.endswith(".config_file"):
                continue
            found += [(node.module, each.name) for each in node.names if each.name.islower()]
    return found


def call(module: dict[str, Any], arguments: list[str], patch: Callable[..., None]) -> Any:
    """Run a loaded command in this process, and return its result.

    Args:
      module: of `loaded`.
      arguments: of the command.
      patch: `monkeypatch.setattr`; one process is all that there is.
    """
    parse(module, arguments)
    command = module["command"]
    patch(command, "in_processes", lambda holders, function: function())
    return module["main"]()
