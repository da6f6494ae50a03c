"""A run folder describes itself: its configuration, versions, machine and times, checkpoints and
metrics."""

import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
from typing import Any

import jax

import xgen_jax
from xgen_jax.config.runs import RunConfig, differing_keys, run_config, to_dict
from xgen_jax.errors import UserError
from xgen_jax.models.fingerprint import fingerprint
from xgen_jax.models.lora import merge
from xgen_jax.runs.checkpoint import Checkpoints
from xgen_jax.typing import Params

LATENT_STATISTICS = (
    "latent_statistics.json"  # the one place of an embedder's mean and deviation a channel
)
ADAPTER = "adapter.safetensors"  # what a run with `lora` has trained
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av")


class RunFolder:
    """One run's folder."""

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)

    @property
    def metrics(self) -> pathlib.Path:
        """Where the metrics are."""
        return self.path / "metrics.jsonl"

    def config(self) -> RunConfig:
        """The configuration of the run.

        Raises:
          UserError: no such folder, or one that holds no run.
        """
        return run_config(self.read_json("config.json"))

    def shapes(self, flag: str) -> list[tuple[int, int, int]]:
        """(frames, height, width) of each bucket that the run trains on.

        Raises:
          UserError: converted weights, which have none: the message asks for the flag.
        """
        config = self.config()
        if config.objective.endswith("_weights"):
            raise UserError(
                f"{self.path} holds converted weights, which have no sizes of their own: give --{flag}"
            )
        return list(dict.fromkeys((b.frames, b.height, b.width) for b in config.data.buckets))

    def check(self, config: RunConfig, overwrite: bool = False) -> None:
        """Touches nothing, and raises UserError if the folder holds another run, or files that are
        none."""
        if self.path.is_file():
            raise UserError(f"{self.path} is a file; give a folder for the run")
        if (self.path / "config.json").exists():
            # Read as a configuration first: keys that a newer release added have their defaults
            # then.
            differing = [] if overwrite else differing_keys(to_dict(self.config()), to_dict(config))
            if differing:
                listed = "\n  ".join(differing)
                raise UserError(
                    f"{self.path} holds a run with another configuration (there -> here):\n  {listed}\n"
                    "choose another --workdir, or start anew with --overwrite, which removes that run"
                )
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and holds no run; choose a new folder")

    def claim(self, config: RunConfig, overwrite: bool = False) -> None:
        """Takes the folder for a run: starts it, or goes on with it when it already holds this very
        run.

        Raises:
          UserError: it holds another run, or files that are none; nothing in it has been touched.
        """
        self.check(config, overwrite)
        if overwrite:
            # Only what a run itself writes is removed.
            for name in ("config.json", "run.json", LATENT_STATISTICS, ADAPTER, "metrics.jsonl"):
                (self.path / name).unlink(missing_ok=True)
            for name in ("checkpoints", "tensorboard"):
                shutil.rmtree(self.path / name, ignore_errors=True)
        self.write_json("config.json", to_dict(config))

    def checkpoints(self, keep: int = 2) -> Checkpoints:
        """The run's checkpoints."""
        return Checkpoints(self.path / "checkpoints", keep)

    def averaged(self, step: int | None = None) -> Params:
        """The averaged parameters of a run, or converted weights, by sub-tree; those of a run that
        trained an adapter are its base's, moved by it.

        Args:
          step: a checkpoint's; the newest by default.

        Raises:
          UserError: no such run, no checkpoint, or a base that is missing or another one.
        """
        config, checkpoints = self.config(), self.checkpoints()
        ema = checkpoints.restore_part(("ema",), step)
        if getattr(config, "lora", None) is None:
            return ema
        base_folder = RunFolder(self.beside(config.init_from))
        base = base_folder.averaged()
        now = {"base": fingerprint(base_folder.config().model, base)}
        check_fingerprints(now, checkpoints.restore_data(step), f"the adapter in {self.path}")
        return merge(base, ema["lora"], config.lora.scale)

    def beside(self, configured: str) -> str:
        """A folder that the run names, or, where it was moved with its neighbours, the one of that
        name beside it."""
        other = self.path.parent / pathlib.Path(configured).name
        return str(
            other if not pathlib.Path(configured).is_dir() and other.is_dir() else configured
        )

    def read_json(self, name: str) -> dict[str, Any]:
        """One of the folder's JSON files."""
        path = self.path / name
        if not self.path.is_dir():
            raise UserError(f"there is no folder {self.path}")
        if not path.is_file():
            raise UserError(
                f"{self.path} holds no {name}: it is not the folder of a (finished) run"
            )
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}); the run cannot be read") from error

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Writes one of the folder's JSON files, whole or not at all."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            temporary = self.path / f".{name}.tmp"
            temporary.write_text(json.dumps(value, indent=2) + "\n")
            os.replace(temporary, self.path / name)
        except OSError as error:
            raise UserError(f"{self.path / name} cannot be written ({error})") from error


def describe_machine() -> dict[str, Any]:
    """Versions, device and host, for run.json."""
    device = jax.devices()[0]
    return {
        "versions": {
            "python": platform.python_version(),
            "xgen_jax": xgen_jax.__version__,
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "device": f"{len(jax.devices())} x {device.device_kind}",
        "host": f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores",
    }


def check_fingerprints(now: dict[str, str], saved: dict[str, Any], what: str) -> None:
    """Raises UserError if a run was trained on other frozen networks than those at hand.

    Args:
      now: fingerprints by name, e.g. {"embedder": "0123456789abcdef"}.
      saved: what a checkpoint keeps beside the state.
      what: the run, for the message.
    """
    for name, mark in now.items():
        before = (saved.get("fingerprints") or {}).get(name)
        if before != mark:
            raise UserError(
                f"{what} was trained on the {name} {before or 'of no known fingerprint'}, and what is loaded now is "
                f"{mark}: it was trained further or replaced. Give the {name} it was trained on, or start a new run"
            )
