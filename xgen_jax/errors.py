"""The exception that means "the user can fix this", and the one check of a value among choices.

Commands print a UserError's message without a traceback; every other exception is a defect of the
library and keeps its traceback. A message says what was wrong, which value, and what would be
right.
"""

import difflib
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """A mistake in a path, a value, a file or a configuration.

    Attributes:
      exit_code: of a command that ends with it.
    """

    exit_code = 1


class TemporaryError(UserError):
    """Nobody's mistake: the same command may go on when it is started again."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: schedulers start the command again


def choose(name: str, value: Any, choices: Iterable[T]) -> T:
    """Return a value that is one of the choices.

    Args:
      name: of the key or flag, as the user gives it.
      value: what was given.
      choices: the values that are known, in the order to show them.

    Raises:
      UserError: any other value; the message lists the choices, and the nearest one if any is near.
    """
    known = [str(choice) for choice in choices]
    if str(value) in known:
        return value
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise UserError(f"{name}={value!r} is not known{hint}; choose one of {', '.join(known)}")
