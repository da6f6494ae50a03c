"""Start a command of this folder, with the xgen_jax of the same checkout."""

import pathlib
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[1]
# Installed, this folder is xgen_jax/launch, and the package is found without help.
if (_ROOT / "xgen_jax").is_dir() and str(_ROOT) not in sys.path:
    sys.path.insert(0, str(_ROOT))

from xgen_jax.commands.start import (  # noqa: E402  (the path comes first)
    in_processes,
    process_flags,
    run,
    values,
)

__all__ = ["in_processes", "process_flags", "run", "values"]
