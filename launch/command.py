"""What every command shares: one JSON line on stdout, all else on stderr, no traceback for a user's
mistake."""

import contextlib
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from xgen_jax.environment import ask_for_huge_pages  # noqa: E402  (the path comes first)

ask_for_huge_pages()

from absl import app, flags  # noqa: E402  (a process that begins again should do so before it has loaded much)

# Before jax is imported: compiled programs are kept between calls, for this user alone.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "xgen_jax" / "compiled")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own notes say nothing to a user


@contextlib.contextmanager
def result_stream() -> Iterator[TextIO]:
    """The real stdout; until the end whatever else prints there, libraries written in C included,
    goes to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(kept, "w") as stream:
            yield stream
    finally:
        sys.stdout.flush()


def run(main: Callable[[], dict[str, Any]], help_text: str) -> None:
    """Parses the flags, calls main and prints what it returns as one JSON line; never returns."""
    flags.FLAGS.set_gnu_getopt(True)
    if any(arg in ("--help", "-help", "-h") for arg in sys.argv[1:]):
        shown = flags.FLAGS.module_help(sys.modules["__main__"])
        print(
            f"{help_text.strip()}\n\nflags:\n{shown}\n\n--helpfull lists the flags of the libraries as well."
        )
        sys.exit(0)

    logging.getLogger("jax").setLevel(
        logging.WARNING
    )  # else it tells of every kind of device that is not there

    def call(argv):
        from xgen_jax.errors import UserError

        with result_stream() as stream:
            try:
                if len(argv) > 1:
                    raise UserError(f"{argv[1]!r} is not a flag; flags are written --name=value")
                result = main()
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                sys.exit(1)
            except OSError as error:  # a full disk, a folder without permission: the machine's, not the library's fault
                print(f"error: {error}", file=sys.stderr)
                sys.exit(1)
            except KeyboardInterrupt:
                print("interrupted; the same command goes on from what is saved", file=sys.stderr)
                sys.exit(130)
            stream.write(json.dumps(result) + "\n")

    def parse(argv):
        try:
            return flags.FLAGS(argv)
        except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
            # ml_collections names the nearest key itself; a config file that does not load is a
            # user's mistake too.
            text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
            if isinstance(error, (KeyError, AttributeError)):
                text = f"the configuration has no such key: {text}"
            print(
                f"error: {text}\n{pathlib.Path(argv[0]).name} --help lists the flags",
                file=sys.stderr,
            )
            sys.exit(2)

    app.run(call, flags_parser=parse)
