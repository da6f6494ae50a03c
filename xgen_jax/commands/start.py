"""Start a command: one JSON line on stdout, all else on stderr, no traceback for a mistake."""

import contextlib
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, NoReturn, TextIO

from absl import app, flags

from xgen_jax.commands.arguments import current_arguments
from xgen_jax.environment import ask_for_huge_pages
from xgen_jax.errors import UserError


def run(
    main: Callable[[], dict[str, Any]], help_text: str, renamed: Mapping[str, str] | None = None
) -> NoReturn:
    """Parse the flags, call `main` and print what it returns as one JSON line.

    Exits with 0, with 1 for a mistake of the user that `main` finds, with 2 for one in the flags,
    and with 130 when interrupted.

    Args:
      main: the command; it reads its flags and imports what is slow to import.
      help_text: what --help shows above the flags.
      renamed: flags that had another name in the release before, old -> new.
    """
    ask_for_huge_pages()
    _set_environment()
    flags.FLAGS.set_gnu_getopt(True)
    if any(argument in ("--help", "-help", "-h") for argument in sys.argv[1:]):
        own = flags.FLAGS.module_help(sys.modules["__main__"])
        print(f"{help_text.strip()}\n\nflags:\n{own}\n\n--helpfull lists the libraries' flags too.")
        sys.exit(0)
    # At level INFO it lists each kind of device that the machine does not have.
    logging.getLogger("jax").setLevel(logging.WARNING)

    def call(argv: list[str]) -> None:
        with result_stream() as stream:
            try:
                if len(argv) > 1:
                    raise UserError(f"{argv[1]!r} is not a flag; flags are written --name=value")
                result = main()
            # OSError: a full disk, or a folder without permission, is not a defect of the library.
            except (UserError, OSError) as error:
                print(f"error: {error}", file=sys.stderr)
                sys.exit(1)
            except KeyboardInterrupt:
                print("interrupted; run the same command again to go on", file=sys.stderr)
                sys.exit(130)
            stream.write(json.dumps(result) + "\n")

    def parse(argv: list[str]) -> list[str]:
        try:
            # In place, because config_flags reads sys.argv for the keys that are given.
            sys.argv[:] = argv[:1] + current_arguments(argv[1:], renamed or {}, _say)
            return flags.FLAGS(sys.argv)
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            name = pathlib.Path(argv[0]).name
            _say(f"error: {_explain(error)}\n{name} --help lists the flags")
            sys.exit(2)

    app.run(call, flags_parser=parse)


def values(holders: Iterable[flags.FlagHolder]) -> dict[str, Any]:
    """Return the values of flags by name, as a request takes them."""
    return {holder.name: holder.value for holder in holders}


@contextlib.contextmanager
def result_stream() -> Generator[TextIO]:
    """Give the real stdout; other output to stdout, also of C libraries, goes to stderr inside."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(kept, "w") as stream:
            yield stream
    finally:
        sys.stdout.flush()


def _set_environment() -> None:
    """Set the variables that jax reads when it is imported, unless the user has set them."""
    cache = pathlib.Path.home() / ".cache" / "xgen_jax" / "compiled"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no notes for developers of XLA


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _explain(error: BaseException) -> str:
    """Return what was wrong with the flags, in words."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    # config_flags wraps what a config file raises, traceback included; the first cause is last.
    for cause in causes:
        if isinstance(cause, UserError) and "Traceback" not in str(cause):
            return str(cause)
    if "Traceback" in str(error):
        return f"the config file fails: {type(causes[-1]).__name__}: {causes[-1]}"
    if not isinstance(error, (KeyError, AttributeError)):
        return str(error)
    if "get_config" in str(error):
        return "the config file has no function get_config()"
    text: Any = error
    while isinstance(text, BaseException) and text.args:  # str of a KeyError would quote it
        text = text.args[0]
    return f"the configuration has no such key: {text}"  # config_flags names the nearest one
