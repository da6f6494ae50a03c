"""The one exception that means "the user can mend this".

Commands print its message without a traceback; every other exception is a defect of the library and
keeps its traceback. A message says what was wrong, which value, and what would be right.
"""


class UserError(ValueError):
    """A mistake in a path, a value, a file or a configuration."""
