"""Model folders on the Hugging Face hub, as hf://OWNER/NAME[@REVISION][/FOLDER] (extra `hub`).

Only such an address touches the network. Files are kept in the hub's own cache on this machine
(HF_HOME); what is there already is not fetched again, and a whole download is used without a
network too. Pickles are not fetched.
"""

import functools
import logging
import os
import pathlib
import re
import sys
from typing import Any, NamedTuple

from xgen_jax.errors import UserError

SCHEME = "hf://"
FORM = "hf://OWNER/NAME, hf://OWNER/NAME@REVISION or hf://OWNER/NAME/FOLDER"
# Of a model folder; everything else, such as pickles and other frameworks' weights, stays there.
FETCHED = ("*.json", "*.safetensors", "*.model", "README.md")
_PART = r"[\w-][\w.-]*"
_ADDRESS = re.compile(rf"hf://({_PART}/{_PART})(?:@([\w.-]+))?((?:/{_PART})*)/?")


class Address(NamedTuple):
    """An address on the hub.

    Attributes:
      name: OWNER/NAME.
      revision: a branch, tag or commit; None for the main branch.
      folder: in the repository, "" for its root.
    """

    name: str
    revision: str | None
    folder: str


def is_address(path: str | os.PathLike) -> bool:
    """Return whether a path is an address on the hub."""
    return str(path).startswith(SCHEME)


def parse(address: str) -> Address:
    """Split an address into its parts.

    Raises:
      UserError: another form.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise UserError(f"{address} is no address of a model: give {FORM}")
    return Address(match[1], match[2], match[3].strip("/"))


def local_folder(path: str | os.PathLike) -> pathlib.Path:
    """Return a path as it is, and for an address the folder of its files, downloaded if needed.

    Raises:
      UserError: no such model, revision or folder, no permission, no network, or the package is not
        installed.
    """
    return _download(str(path)) if is_address(path) else pathlib.Path(path)


def refuse_address(flag: str, path: str | os.PathLike) -> None:
    """Raise UserError for an address where a folder is written.

    Args:
      flag: which names it: "--workdir".
      path: its value.
    """
    if is_address(path):
        raise UserError(f"{flag}={path} is written to: give a folder of this machine")


def upload(folder: pathlib.Path, address: str, private: bool = False) -> str:
    """Upload a folder to the hub, in one commit; the repository is made if it is not there.

    Args:
      folder: of an exported model.
      address: hf://OWNER/NAME.
      private: of a repository that is made.

    Returns:
      The URL of the commit.

    Raises:
      UserError: no permission, no network, an address with a folder, or the package is not
        installed.
    """
    to, hub = check_target(address), _hub()
    print(f"uploading {folder} to {address}", file=sys.stderr)
    try:
        api = hub.HfApi(endpoint=_endpoint())
        # None leaves it to the account, which may make everything private.
        api.create_repo(to.name, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=to.name,
            folder_path=folder,
            revision=to.revision,
            commit_message="Upload a model exported by xgen_jax",
        )
    except Exception as error:
        raise UserError(
            _reason(error, address) + f"; the folder {folder} is whole: the same command goes on"
        ) from error
    return str(commit.commit_url)


def check_target(address: str) -> Address:
    """Check an address to upload to, before anything is made for it.

    Raises:
      UserError: another form, one with a folder, or the package is not installed.
    """
    if not is_address(address) or (to := parse(address)).folder:
        raise UserError(f"--push={address} must be hf://OWNER/NAME, or hf://OWNER/NAME@BRANCH")
    _hub()
    return to


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            'addresses hf://OWNER/NAME need huggingface_hub: pip install "xgen_jax[hub]"'
        ) from error
    for name in ("httpx", "httpx2"):  # at level INFO it lists every request
        logging.getLogger(name).setLevel(logging.WARNING)
    return huggingface_hub


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


@functools.cache  # a process that loads several networks of a model takes one revision of it
def _download(path: str) -> pathlib.Path:
    address, hub = parse(path), _hub()
    prefix = f"{address.folder}/" if address.folder else ""
    print(f"{path}: looking at {_endpoint()}", file=sys.stderr)
    try:
        root = hub.snapshot_download(
            address.name,
            revision=address.revision,
            allow_patterns=[prefix + pattern for pattern in FETCHED],
            endpoint=_endpoint(),
            library_name="xgen_jax",
        )
    except Exception as error:
        raise UserError(_reason(error, path)) from error
    folder = pathlib.Path(root) / address.folder
    if not folder.is_dir():
        raise UserError(
            f"{path}: {address.name} has no folder {address.folder!r} with a model"
            if address.folder
            else f"{path}: {address.name} holds no file of a model ({', '.join(FETCHED)})"
        )
    print(f"{path}: in {folder}", file=sys.stderr)
    return folder


def _reason(error: Exception, address: str) -> str:
    """Return what an error of the hub means, in one sentence."""
    import huggingface_hub.errors as errors

    name, host = parse(address), _endpoint()
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{address} is gated: accept its terms at {host}/{name.name}, and log in with "
            "`hf auth login`, or set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{address}: {host} has no model {name.name}, or it is private: check the name, and "
            "for a private one log in with `hf auth login`, or set HF_TOKEN"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{address}: {name.name} has no revision {name.revision!r}"
    if isinstance(error, errors.IncompleteSnapshotError):
        return (
            f"{address}: its download was cut off, and {host} cannot be reached now to go on: it "
            "is not used; the same command goes on when there is a network"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        offline = isinstance(error.__cause__, errors.OfflineModeIsEnabled)
        why = "HF_HUB_OFFLINE is set" if offline else f"{host} cannot be reached"
        return f"{address} is not on this machine, and {why}"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{address} cannot be reached: HF_HUB_OFFLINE is set"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.LocalTokenNotFoundError) or status == 401:
        return f"{address}: nobody is logged in: `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return f"{address}: your token has no permission for it"
    chain = [error, *([error.__cause__] if error.__cause__ else [])]
    reason = ": ".join((str(e).strip() or type(e).__name__).splitlines()[0][:200] for e in chain)
    return f"{address}: {host} cannot be used now ({reason})"
