"""A run folder describes itself: its configuration, versions, machine and times, checkpoints and metrics."""

import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
from typing import Any

import jax
import numpy as np

import xgen_jax
from xgen_jax.errors import UserError
from xgen_jax.models.embedder import VidVAEEmbedder
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.training.checkpoint import Checkpoints
from xgen_jax.training.config import RunConfig, differing_keys, run_config, to_dict
from xgen_jax.typing import Params

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

    def claim(self, config: RunConfig, overwrite: bool = False) -> None:
        """Takes the folder for a run: starts it, or goes on with it when it already holds this very run.

        Raises:
          UserError: it holds another run, or files that are none; nothing in it has been touched.
        """
        if self.path.is_file():
            raise UserError(f"{self.path} is a file; give a folder for the run")
        if (self.path / "config.json").exists():
            differing = [] if overwrite else differing_keys(self.read_json("config.json"), to_dict(config))
            if differing:
                listed = "\n  ".join(differing)
                raise UserError(
                    f"{self.path} holds a run with another configuration (there -> here):\n  {listed}\n"
                    "choose another --workdir, or start anew with --overwrite, which removes that run"
                )
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and holds no run; choose a new folder")
        if overwrite:
            # Only what a run itself writes is removed.
            for name in ("config.json", "run.json", "latent_statistics.json", "metrics.jsonl"):
                (self.path / name).unlink(missing_ok=True)
            for name in ("checkpoints", "tensorboard"):
                shutil.rmtree(self.path / name, ignore_errors=True)
        self.write_json("config.json", to_dict(config))

    def checkpoints(self, keep: int = 2) -> Checkpoints:
        """The run's checkpoints."""
        return Checkpoints(self.path / "checkpoints", keep)

    def read_json(self, name: str) -> dict[str, Any]:
        """One of the folder's JSON files."""
        path = self.path / name
        if not self.path.is_dir():
            raise UserError(f"there is no folder {self.path}")
        if not path.is_file():
            raise UserError(f"{self.path} holds no {name}: it is not the folder of a (finished) run")
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


def load_embedder(path: str | os.PathLike, dtype=np.float32) -> tuple[VidVAEEmbedder, Params]:
    """The embedder of a finished VidVAE run, and its averaged parameters with the latent statistics.

    Raises:
      UserError: no such run, one that trains something else, or one that has not finished.
    """
    folder = RunFolder(path)
    config = folder.config()
    if config.objective != "vidvae":
        raise UserError(f"{path} holds a {config.objective} run; an embedder is a vidvae run")
    statistics = folder.read_json("latent_statistics.json")
    params = folder.checkpoints().restore_part(("ema", "vidvae"))
    embedder = VidVAEEmbedder(model=VidVAE(config.model, dtype))
    return embedder, embedder.bundle(params, np.array(statistics["mean"]), np.array(statistics["std"]))
