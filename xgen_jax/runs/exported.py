"""An exported model as a folder: what is in it, and how it is read.

An embedder, or a transformer that was converted and knows no embedder:

    FOLDER/config.json  model.safetensors  latent_statistics.json  export.json  README.md

A text-to-video model, as diffusers' pipelines are laid out:

    FOLDER/model_index.json  README.md  embedder/...  transformer/...  text_encoder/...

`export.json` says which layout the tensors have, of which step and networks they are, and the
digest of each parameter; what is read is compared with it. Tensors are in one of `LAYOUTS`: our own
names, or those of another project where it has the same network. See `runs.export`.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from xgen_jax.errors import UserError, choose
from xgen_jax.files import read_json
from xgen_jax.parallel.sharding import path_name
from xgen_jax.runs.checkpoint import Checkpoints, Step
from xgen_jax.runs.digest import tree_digests
from xgen_jax.runs.stored import DamagedCheckpoint
from xgen_jax.typing import Params
from xgen_jax.weights import vdit, vidvae
from xgen_jax.weights.foreign_config import read_config
from xgen_jax.weights.safetensors import read_safetensors

RECORD, INDEX = "export.json", "model_index.json"
EMBEDDER, TRANSFORMER, TEXT_ENCODER = "embedder", "transformer", "text_encoder"
FORMAT = 1


def networks_folder(path: pathlib.Path) -> pathlib.Path:
    """Return the folder of a model's configuration: for a text-to-video model its transformer's."""
    return path / TRANSFORMER if (path / INDEX).is_file() else path


def is_exported(path: pathlib.Path) -> bool:
    """Return whether a folder holds an exported network."""
    return (path / RECORD).is_file()


def own_tensors(params: Params) -> dict[str, np.ndarray]:
    """Return parameters by names with dots, "params.encoder.conv_in.kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {path_name(path).replace("/", "."): np.asarray(leaf) for path, leaf in leaves}


def own_params(tensors: Mapping[str, np.ndarray]) -> Params:
    """Return the nested parameters of `own_tensors`."""
    tree: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *groups, last = name.split(".")
        inner = tree
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = tensor
    return tree


# How tensors in a folder become the parameters of a network, by the layout's name.
LAYOUTS: dict[str, Callable[[pathlib.Path], Params]] = {
    "xgen_jax": lambda path: own_params(read_safetensors(path)),
    "autoencoder_kl": lambda path: vidvae.load_vidvae(
        "sd-vae", read_safetensors(path), read_config(path), str(path)
    )[1],
    "stdit2": lambda path: (
        vdit.load_vdit("stdit2", read_safetensors(path), read_config(path), origin=str(path)).params
    ),
}


class ExportedCheckpoint(Checkpoints):
    """The only checkpoint of an exported network, which is read and never written."""

    @property
    def record(self) -> dict[str, Any]:
        """What export.json holds.

        Raises:
          UserError: of a later release.
        """
        record = read_json(self.folder / RECORD, "export the model again")
        if record.get("format") != FORMAT:
            raise UserError(
                f"{self.folder} was exported by another release of xgen_jax (format "
                f"{record.get('format')}, here {FORMAT}): install that one, or export again"
            )
        return record

    def steps(self) -> list[int]:
        """Return the step of the run that was exported."""
        return [int(self.record["step"])]

    def restore_data(self, step: Step = None) -> dict[str, Any]:
        """See `Checkpoints.restore_data`: step and fingerprints."""
        self.resolve(step)
        return {name: self.record[name] for name in ("step", "fingerprints")}

    def restore_part(self, names: tuple[str, ...], step: Step = None) -> Params:
        """See `Checkpoints.restore_part`; there is nothing but ("ema", ...)."""
        self.resolve(step)
        group, *inner = names
        if group != "ema":
            raise UserError(f"the exported model in {self.folder} holds no {group}")
        part = self._ema(inner[0] if inner else None)
        for name in inner:
            part = part[name]
        return part

    def shapes(self, step: Step = None) -> dict[str, tuple[int, ...]]:
        """See `Checkpoints.shapes`."""
        raise self._no_run()

    def restore(self, abstract_state: Params, step: Step = None, grown: bool = False) -> Any:
        """Raise UserError: an exported model has no state of training."""
        raise self._no_run()

    def save(self, step: int, state: Params, data: dict[str, Any]) -> None:
        """Raise UserError: an exported model is not written to."""
        raise self._no_run()

    def _no_run(self) -> UserError:
        return UserError(
            f"{self.folder} holds an exported model, which is no run to go on with: give it as "
            "--config.init_from to a new one"
        )

    def _ema(self, wanted: str | None) -> Params:
        record = self.record
        family = record["family"]
        read = {family: lambda: LAYOUTS[choose("layout", record["layout"], LAYOUTS)](self.folder)}
        if any(name.startswith("text/") for name in record["digests"]):
            text = self.folder.parent / TEXT_ENCODER
            read["text"] = lambda: LAYOUTS["xgen_jax"](text)
        if wanted is not None and wanted not in read:
            raise UserError(f"the exported model in {self.folder} holds no {wanted}")
        params = {name: load() for name, load in read.items() if wanted in (None, name)}
        found, written = tree_digests(params), record["digests"]
        expected = {name for name in written if wanted in (None, name.partition("/")[0])}
        wrong = sorted(
            name for name in expected | found.keys() if found.get(name) != written.get(name)
        )
        if wrong:
            more = f" and {len(wrong) - 1} others" if len(wrong) > 1 else ""
            raise DamagedCheckpoint(
                f"the exported model in {self.folder} cannot be used: the values of {wrong[0]}"
                f"{more} are not those that were written"
            )
        return jax.device_put(params, jax.local_devices()[0])
