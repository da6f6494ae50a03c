"""The config.json of a foreign checkpoint: every key is used, checked or known to be harmless."""

import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xgen_jax.errors import UserError
from xgen_jax.files import read_json

# Keys that libraries write about the file, not about the network.
ABOUT_THE_FILE = frozenset(
    (
        "_commit_hash",
        "_diffusers_version",
        "_name_or_path",
        "architectures",
        "auto_map",
        "dtype",
        "torch_dtype",
        "transformers_version",
    )
)


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """Read the config.json next to a checkpoint (a file or its folder); empty if there is none."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    return read_json(file, "fetch it again") if file.is_file() else {}


def check_config(
    config: Mapping[str, Any],
    origin: str,
    *,
    allowed: Mapping[str, Sequence[Any]],
    used: Iterable[str] = (),
    harmless: Iterable[str] = (),
) -> None:
    """Refuse a foreign configuration of a network that ours does not compute.

    Unknown keys are named on stderr: they may change the network.

    Args:
      config: the checkpoint's config.json.
      origin: name of the checkpoint in errors.
      allowed: keys that change the network, with the values that ours can have, or that the tensors
        have.
      used: keys whose values the conversion uses.
      harmless: keys that change nothing here, such as those of training, besides `ABOUT_THE_FILE`.

    Raises:
      UserError: values that are not allowed, all of them listed.
    """
    wrong = [
        f"{key}={value!r}: must be {' or '.join(repr(_plain(other)) for other in allowed[key])}"
        for key, value in config.items()
        if key in allowed and value not in [_plain(other) for other in allowed[key]]
    ]
    if wrong:
        rows = "".join(f"\n  {row}" for row in wrong)
        raise UserError(
            f"the config.json of {origin} describes a network that is not known here, or is not "
            f"of its tensors{rows}"
        )
    unknown = sorted(config.keys() - {*allowed, *used, *harmless, *ABOUT_THE_FILE})
    if unknown:
        print(
            f"{origin}: these keys of its config.json are not known and are ignored: "
            f"{', '.join(unknown)}",
            file=sys.stderr,
        )


def positive_integer(config: Mapping[str, Any], key: str, default: int, origin: str) -> int:
    """Return the value of a key, or the default if it is absent or null."""
    value = default if config.get(key) is None else config[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(
            f"the config.json of {origin} has {key}={value!r}; it must be an integer of 1 or more"
        )
    return value


def _plain(value: Any) -> Any:
    """Convert tuples to lists, as in JSON."""
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
