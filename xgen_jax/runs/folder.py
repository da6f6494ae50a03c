"""A run folder describes itself: its configuration, versions, machine and times, checkpoints,
metrics. A folder of converted weights has the same form, without metrics.
"""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

import jax

from xgen_jax.config.changes import change_rows, changed_keys, changes_network
from xgen_jax.config.runs import Run, Weights, folder_config, to_dict
from xgen_jax.errors import UserError
from xgen_jax.files import check_free, read_json, refuse_differences, write_json
from xgen_jax.models.fingerprint import fingerprint
from xgen_jax.models.lora import merge
from xgen_jax.runs.checkpoint import Checkpoints, Step
from xgen_jax.runs.exported import RECORD, ExportedCheckpoint, is_exported, networks_folder
from xgen_jax.runs.hub import is_address, local_folder
from xgen_jax.typing import Params

CONFIG, RUN, METRICS = "config.json", "run.json", "metrics.jsonl"
LATENT_STATISTICS = "latent_statistics.json"  # mean and standard deviation of each latent channel
ADAPTER = "adapter.safetensors"  # what a run with `lora` has trained
TRACKERS = "trackers.json"  # runs of Weights & Biases or Trackio that follow this one
FOLDERS = ("checkpoints", "tensorboard", "previews", "profile", "wandb")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av")

T = TypeVar("T")


class RunFolder:
    """The folder of a run, of converted weights or of an exported model.

    Args:
      path: of the folder, or hf://OWNER/NAME, which is downloaded; see `runs.hub`.

    Attributes:
      path: of the folder with the configuration; of an exported text-to-video model that of its
        transformer.
      written: False for what is never written to: an exported model, or one on the hub.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = networks_folder(local_folder(path))
        self.written = not is_address(path) and not is_exported(self.path)
        kind = ExportedCheckpoint if is_exported(self.path) else Checkpoints
        self._checkpoints = kind(
            self.path if kind is ExportedCheckpoint else self.path / "checkpoints"
        )

    @property
    def trackers(self) -> pathlib.Path:
        """Path of the record of the trackers' runs."""
        return self.path / TRACKERS

    @property
    def metrics(self) -> pathlib.Path:
        """Path of the metrics, one JSON object a line."""
        return self.path / METRICS

    def config(self) -> Run | Weights:
        """Read the configuration.

        Raises:
          UserError: no such folder, or one that holds neither a run nor weights.
        """
        values = self.read_json(CONFIG)
        if is_exported(self.path):  # in another project's layout it is in the record
            values = self.read_json(RECORD).get("config") or values
        elif foreign := values.get("_class_name") or values.get("model_type"):
            raise UserError(
                f"{self.path} holds a {foreign} of another project: make a folder of it with "
                "launch/convert.py --kind=KIND --source=FOLDER --out=NEW"
            )
        return folder_config({k: v for k, v in values.items() if not k.startswith("_")})

    def expect(self, kind: type[T], wanted: str) -> T:
        """Read the configuration, which must be of a class, e.g. `HoldsEmbedder`.

        Args:
          kind: the class.
          wanted: for the message, what is needed: "an embedder: a vidvae or regen run".

        Raises:
          UserError: see `config`, and a configuration of another class.
        """
        config = self.config()
        if not isinstance(config, kind):
            found = "run" if isinstance(config, Run) else "network in converted weights"
            raise UserError(f"{self.path} holds a {config.family} {found}; give {wanted}")
        return config

    def shapes(self, flag: str) -> list[tuple[int, int, int]]:
        """Return (frames, height, width) of each bucket that the run trains on.

        Raises:
          UserError: converted weights, which have none: the message asks for the flag.
        """
        config = self.config()
        if not isinstance(config, Run):
            raise UserError(
                f"{self.path} holds converted weights, which have no sizes of their own: "
                f"give --{flag}"
            )
        return list(dict.fromkeys(bucket.shape for bucket in config.data.buckets))

    def check(
        self, config: Run | Weights, overwrite: bool = False, accept_changes: bool = False
    ) -> dict[str, tuple[Any, Any]]:
        """Compare a configuration with what the folder holds; touch nothing.

        Args:
          config: of the run.
          overwrite: whether what is there will be removed.
          accept_changes: allow other values of keys that leave the network as it is.

        Returns:
          The keys that have changed, (old, new) of each.

        Raises:
          UserError: the folder holds another run or other files.
        """
        there = check_free(self.path, CONFIG, "run")
        if not self.written:
            raise UserError(
                f"{self.path} holds an exported model, which is not trained further in its folder: "
                "choose another one, with --config.init_from to start from the model"
            )
        if not there or overwrite:
            return {}
        # Read as a configuration: keys that a newer release added then have their defaults.
        changed = changed_keys(to_dict(self.config()), to_dict(config))
        trained = bool(self.checkpoints().steps())
        fixed = [key for key in changed if trained and changes_network(key)]
        again = "choose another folder, or start again with --overwrite, which removes that run"
        if fixed:
            refuse_differences(
                change_rows({key: changed[key] for key in fixed}),
                f"{self.path} holds a run of another network, whose weights cannot be used",
                again,
            )
        if not accept_changes:
            refuse_differences(
                change_rows(changed),
                f"{self.path} holds a run with another configuration",
                f"go on from its newest checkpoint with --accept_changes, {again}",
            )
        return changed

    def create_or_resume(
        self,
        config: Run | Weights,
        overwrite: bool = False,
        changed: Mapping[str, tuple[Any, Any]] | None = None,
    ) -> None:
        """Start a run in the folder, or go on with the same run in it.

        Args:
          config: of the run.
          overwrite: remove what a run has written there.
          changed: changes that are accepted, (old, new) by key: keys of the configuration, and
            "data" for other clips. They are noted in run.json.

        Raises:
          UserError: see `check`; nothing has been touched then.
        """
        self.check(config, overwrite, accept_changes=bool(changed))
        if overwrite:
            # Only what a run itself writes is removed.
            for name in FOLDERS:
                if (self.path / name).is_dir():
                    shutil.rmtree(self.path / name)
            # The configuration last: it marks the folder as a run, if this is interrupted.
            for name in (RUN, LATENT_STATISTICS, ADAPTER, METRICS, TRACKERS, CONFIG):
                (self.path / name).unlink(missing_ok=True)
        elif changed:
            self._note_changes(changed)
        self.write_json(CONFIG, to_dict(config))

    def changes(self) -> list[dict[str, Any]]:
        """Return the changes that were accepted so far, the oldest first: {"step", "date", "key",
        "old", "new"} of each, where the step is that from which training went on."""
        return self.facts().get("changes", [])

    def facts(self) -> dict[str, Any]:
        """Return what run.json notes; {} if it is missing or cannot be read, which no run needs to
        go on: it is renamed then, with a note on stderr."""
        path = self.path / RUN
        if not path.is_file():
            return {}
        try:
            return self.read_json(RUN)
        except UserError as error:
            aside = path.with_name(f"{RUN}.unreadable")
            try:
                path.replace(aside)
                done = f"renamed to {aside.name}"
            except OSError as failed:  # the next record replaces it
                done = f"left there ({failed.strerror})"
            print(
                f"{error}; it is {done}: the record of times and changes begins again",
                file=sys.stderr,
            )
            return {}

    def _note_changes(self, changed: Mapping[str, tuple[Any, Any]]) -> None:
        step = max(self.checkpoints().steps(), default=0)
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        noted = self.changes()
        # A call that ended before its first checkpoint, or another process, has noted it already.
        known = [{**each, "date": date} for each in noted]
        for key, (old, new) in changed.items():
            change = {"step": step, "date": date, "key": key, "old": old, "new": new}
            if change not in known:
                noted.append(change)
        self.write_json(RUN, {**self.facts(), "changes": noted})

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Write run.json; the changes that it notes are kept."""
        changes = self.changes()
        self.write_json(RUN, {**facts, **({"changes": changes} if changes else {})})

    def checkpoints(self) -> Checkpoints:
        """Return the run's checkpoints; see `Checkpoints`."""
        return self._checkpoints

    def ema_params(self, step: Step = None) -> Params:
        """Load the EMA parameters of a run, or converted weights, by sub-tree. Those of a run that
        trained an adapter are its base's, with the adapter merged.

        Args:
          step: of a checkpoint, or one of `runs.checkpoint.CHOICES`; the newest by default.

        Raises:
          UserError: no such run, no checkpoint, or a base that is missing or has changed.
        """
        config, checkpoints = self.config(), self.checkpoints()
        ema = checkpoints.restore_part(("ema",), step)
        if not isinstance(config, Run) or config.adapter is None:
            return ema
        assert config.init_from is not None
        base_folder = RunFolder(self.resolve_sibling(config.init_from))
        base = base_folder.ema_params()
        now = {"base": fingerprint(base_folder.config().model, base)}
        saved = checkpoints.restore_data(checkpoints.resolve(step))
        check_fingerprints(now, saved, f"the adapter in {self.path}")
        return merge(base, ema["lora"], config.adapter.scale)

    def resolve_sibling(self, configured: str) -> str:
        """Return the path of a folder that the run names; if it was moved together with the run,
        the folder of the same name next to the run."""
        if is_address(configured):
            return configured
        sibling = self.path.parent / pathlib.Path(configured).name
        if is_exported(self.path) and sibling.is_dir():  # an exported model names its own parts
            return str(sibling)
        moved = not pathlib.Path(configured).is_dir() and sibling.is_dir()
        return str(sibling if moved else configured)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read one of the folder's JSON files."""
        if not self.path.is_dir():
            raise UserError(f"there is no folder {self.path}")
        if not (self.path / name).is_file():
            raise UserError(
                f"{self.path} holds no {name}: it is not the folder of a (finished) run"
            )
        return read_json(self.path / name, "the run cannot be read")

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write one of the folder's JSON files, whole or not at all."""
        write_json(self.path / name, value)


def describe_machine() -> dict[str, Any]:
    """Return date, commit, versions, device and host, for run.json."""
    device = jax.devices()[0]
    commit = code_commit()
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        **({"commit": commit} if commit else {}),
        "versions": {
            "python": platform.python_version(),
            **{name: package_version(name) for name in ("xgen_jax", *PACKAGES)},
        },
        "device": f"{len(jax.devices())} x {device.device_kind}",
        "host": f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores",
    }


def code_commit() -> str:
    """Return the commit of the checkout that this package is in, with "+changes" where tracked
    files differ from it; "" where there is no checkout or no git."""
    root = pathlib.Path(__file__).resolve().parents[2]
    # Hooks of git set variables that would name another checkout.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        # An installed package may lie in the checkout of something else.
        if pathlib.Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return ""
        changes = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def package_version(package: str) -> str:
    """Return the version of an installed package, "not installed" for any other."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout that is on the path only
        return "not installed"


def check_fingerprints(now: dict[str, str], saved: dict[str, Any], what: str) -> None:
    """Raise UserError if a run was trained on other frozen networks than those loaded now.

    Args:
      now: fingerprints by name, e.g. {"embedder": "0123456789abcdef"}.
      saved: the data of a checkpoint, see `Checkpoints.restore_data`.
      what: the run, for the message.
    """
    for name, mark in now.items():
        before = (saved.get("fingerprints") or {}).get(name)
        if before != mark:
            raise UserError(
                f"{what} was trained on the {name} {before or 'of no known fingerprint'}, and what "
                f"is loaded now is {mark}: it was trained further or replaced. Give the {name} it "
                "was trained on, or start a new run"
            )
