"""Start a command: one JSON line on stdout, all else on stderr, no traceback for a mistake."""

import contextlib
import json
import logging
import os
import pathlib
import sys
import traceback
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, NoReturn, TextIO

from absl import app, flags

from xgen_jax.commands.arguments import KEY_FLAG, current_arguments, keys_as_flags
from xgen_jax.environment import ask_for_huge_pages, prefer_channels_last
from xgen_jax.errors import UserError
from xgen_jax.signals import Stopped, stop_when_asked

# What defines flags for a command leaves them to it: its --help shows them.
flags.disclaim_key_flags()


class FlagError(UserError):
    """A mistake in the flags, such as a key that the configuration does not have."""

    exit_code = 2


HELP = ("--help", "-help", "-h")


def run(
    main: Callable[[], dict[str, Any] | None],
    help_text: str,
    renamed: Mapping[str, str] | None = None,
    more_help: Callable[[], str] | None = None,
) -> NoReturn:
    """Parse the flags, call `main` and print what it returns as one JSON line.

    Exits with 0, with 1 for a mistake of the user that `main` finds, with 2 for one in the flags
    (also `FlagError` by `main`), with 75 for what may pass (`TemporaryError`), with 130 when
    interrupted (Ctrl-C), and with 143 or 129 when a scheduler or a closed terminal stops it (see
    `signals.Stopped`).

    Args:
      main: the command; it reads its flags and imports what is slow to import. None prints nothing.
      help_text: what --help shows above the flags.
      renamed: flags that had another name in the release before, old -> new.
      more_help: what --help shows after the flags, which it may read; empty for nothing.
    """
    ask_for_huge_pages()
    prefer_channels_last()
    _set_environment()
    flags.FLAGS.set_gnu_getopt(True)
    if any(argument in HELP for argument in sys.argv[1:]):
        _show_help(help_text, renamed or {}, more_help)
        sys.exit(0)
    # At level INFO it lists each kind of device that the machine does not have.
    logging.getLogger("jax").setLevel(logging.WARNING)

    def call(argv: list[str]) -> None:
        stop_when_asked()
        with result_stream() as stream:
            try:
                if len(argv) > 1:
                    raise UserError(f"{argv[1]!r} is not a flag; flags are written --name=value")
                result = main()
            except FlagError as error:
                _fail_in_flags(argv, error)
            # OSError: a full disk, or a folder without permission, is not a defect of the library.
            except (UserError, OSError) as error:
                print(f"error: {error}", file=sys.stderr)
                _leave(getattr(error, "exit_code", 1))
            except KeyboardInterrupt as error:
                print("interrupted; run the same command again to go on", file=sys.stderr)
                _leave(error.exit_code if isinstance(error, Stopped) else 130)
            except Exception:
                if not _one_of_several():
                    raise
                traceback.print_exc()
                _leave(1)
            if result is not None:
                stream.write(json.dumps(result) + "\n")

    def parse(argv: list[str]) -> list[str]:
        try:
            sys.argv[:] = argv[:1] + _arguments(argv[1:], renamed or {})
            return flags.FLAGS(sys.argv)
        except (flags.Error, UserError, OSError) as error:
            _fail_in_flags(argv, error)

    app.run(call, flags_parser=parse)


def process_flags() -> list[flags.FlagHolder]:
    """Define the flags of a command that several processes can share; see
    `parallel.processes.started`."""
    return [
        flags.DEFINE_string(
            "coordinator",
            None,
            "HOST:PORT of process 0, where the environment (Slurm, TPU VM) does not say it.",
        ),
        flags.DEFINE_integer(
            "num_processes",
            None,
            "Of this command; 1 alone is one process, whatever the environment says.",
            lower_bound=1,
        ),
        flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", lower_bound=0),
    ]


def in_processes(
    holders: Iterable[flags.FlagHolder], call: Callable[[], dict[str, Any]]
) -> dict[str, Any] | None:
    """Call a command as one of the processes that `process_flags` describe.

    Returns:
      What it returns; None in other processes than the first.
    """
    from xgen_jax.parallel.processes import started

    with started(**values(holders)) as first:
        result = call()
    return result if first else None


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


def _one_of_several() -> bool:
    if "jax" not in sys.modules:  # a command that failed before it was loaded, or needs none
        return False
    import jax

    return jax.distributed.is_initialized()


def _compiling() -> bool:
    compiled = sys.modules.get("xgen_jax.training.compiled")
    return compiled is not None and compiled.compiling()


def _leave(code: int) -> NoReturn:
    """Exit; one of several processes as `parallel.processes.leave` does."""
    if _one_of_several():
        from xgen_jax.parallel.processes import leave

        leave(code)
    if _compiling():  # the interpreter would wait for it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _set_environment() -> None:
    """Set the variables that jax reads when it is imported, unless the user has set them."""
    cache = pathlib.Path.home() / ".cache" / "xgen_jax" / "compiled"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no notes for developers of XLA


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _arguments(arguments: list[str], renamed: Mapping[str, str]) -> list[str]:
    arguments = current_arguments(arguments, renamed, _say)
    return keys_as_flags(arguments) if KEY_FLAG in flags.FLAGS else arguments


def _show_help(
    help_text: str, renamed: Mapping[str, str], more_help: Callable[[], str] | None
) -> None:
    own = flags.FLAGS.module_help(sys.modules["__main__"])
    text = f"{help_text.strip()}\n\nflags:\n{own}\n\n--helpfull lists the libraries' flags too."
    if more_help is not None:
        given = [argument for argument in sys.argv[1:] if argument not in HELP]
        try:
            flags.FLAGS([sys.argv[0], *_arguments(given, renamed)])
            text += more_help()
        except (flags.Error, UserError, OSError) as error:
            _fail_in_flags(sys.argv, error)
    print(text)


def _fail_in_flags(argv: list[str], error: Exception) -> NoReturn:
    _say(f"error: {error}\n{pathlib.Path(argv[0]).name} --help lists the flags")
    _leave(2)
