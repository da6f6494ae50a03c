"""Write a trained model, or converted weights, as a folder to keep, to share and to load.

See `runs.exported` for what is in it. EMA parameters are exported. An embedder inside a
text-to-video model keeps float32 whatever the model has: latents and transformer know it by its
fingerprint.
"""

import contextlib
import os
import pathlib
import shutil
import sys
from collections.abc import Generator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.config.runs import HoldsEmbedder, Run, VDiTRun, Weights, folder_config, to_dict
from xgen_jax.errors import UserError, choose
from xgen_jax.files import read_json, temporary_path, write_json, write_text
from xgen_jax.models.fingerprint import fingerprint
from xgen_jax.runs import model_card
from xgen_jax.runs.checkpoint import Step
from xgen_jax.runs.digest import tree_digests
from xgen_jax.runs.exported import (
    EMBEDDER,
    FORMAT,
    INDEX,
    RECORD,
    TEXT_ENCODER,
    TRANSFORMER,
    networks_folder,
    own_tensors,
)
from xgen_jax.runs.folder import CONFIG, LATENT_STATISTICS, RunFolder, check_fingerprints
from xgen_jax.runs.hub import is_address, refuse_address
from xgen_jax.runs.load import count_parameters, load_embedder
from xgen_jax.typing import Params
from xgen_jax.weights.export import Layout, foreign_layout
from xgen_jax.weights.safetensors import INDEX_SUFFIX, SUFFIX, write_sharded

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(jnp.bfloat16)}
CARD = "README.md"
# What an export writes, besides the files of tensors.
FOLDERS = (EMBEDDER, TRANSFORMER, TEXT_ENCODER)
FILES = (CARD, CONFIG, INDEX, LATENT_STATISTICS, RECORD)


class Network(NamedTuple):
    """A network to export.

    Attributes:
      config: of its folder.
      params: EMA parameters by sub-tree, NumPy arrays, rounded to the dtype to export.
      data: step and fingerprints of the networks that it was trained on.
      statistics: of an embedder's latents; {} if it has none.
    """

    config: Any  # every class of a folder has a model
    params: Params
    data: dict[str, Any]
    statistics: dict[str, Any]


def export_model(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    dtype: str = "float32",
    embedder: str | None = None,
    step: Step = None,
    licence: str | None = None,
    evaluation: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Export the model of a run, or converted weights, as a folder; whole or not at all.

    Args:
      source: the run's folder.
      out: the folder to write.
      dtype: of the tensors, `float32` or `bfloat16`.
      embedder: of a vdit run, if it is no longer where the run found it.
      step: of a checkpoint, or one of `runs.checkpoint.CHOICES`; the newest by default.
      licence: of the weights, for the model card: "apache-2.0".
      evaluation: JSON files of `launch/evaluate.py`, or folders of them, with commas between.
      overwrite: replace the exported model that is in the folder.

    Returns:
      A summary: folder, family, layout, parameters, dtype, step, fingerprint.

    Raises:
      UserError: no such run, a folder that holds something else, or an embedder that is missing or
        another one.
    """
    refuse_address("--out", out)
    stored, target = DTYPES[choose("dtype", dtype, DTYPES)], pathlib.Path(out)
    folder = RunFolder(source)
    figures = model_card.read_figures(evaluation)
    config: Any = folder.config()
    pipeline = isinstance(config, VDiTRun)
    main = _read(folder, config, step, stored)
    mark = fingerprint(config.model, main.params[config.family])
    summary: dict[str, Any] = {"folder": str(target), "family": config.family, "dtype": dtype}
    summary |= {"step": main.data["step"], "parameters": count_parameters(main.params)}
    summary |= {"fingerprint": mark}
    parts = {"": main}
    if pipeline:
        place = embedder or folder.resolve_sibling(cast(VDiTRun, config).embedder)
        parts = {TRANSFORMER: main, EMBEDDER: _read_embedder(folder, place, main)}
    # In the record, so that the same command says the same again.
    main.data["card"] = {"licence": licence, "evaluation": figures or None}
    if held := _same_there(target, mark, dtype, main.data["card"], overwrite):
        print(f"{target} holds this very export already; it is left as it is", file=sys.stderr)
        return {**summary, "layout": held["layout"]}
    layouts = {}
    with _whole_folder(target) as new:
        for name, network in parts.items():
            kept = stored if network is main else DTYPES["float32"]
            layouts[name] = _write_network(new / name, network, kept, folder)
        if pipeline:
            _write_text_encoder(new, cast(VDiTRun, config), main.params, stored)
            write_json(new / INDEX, _index(parts))
        about = model_card.About(
            name=target.resolve().name,
            config=config,
            published=published(main.config),
            data=main.data,
            facts=folder.facts(),
            dtype=dtype,
            layouts=layouts,
            parameters=_counts(parts),
            files=sorted(str(p.relative_to(new)) for p in new.rglob("*") if p.is_file()),
            licence=licence,
            figures=figures,
            fingerprint=mark,
        )
        write_text(new / CARD, model_card.card(about))
    return {**summary, "layout": layouts[TRANSFORMER if pipeline else ""]}


def published(config: Run | Weights) -> dict[str, Any]:
    """Return a configuration without paths of this machine: of each its last part is left. What the
    run started from is in its weights, and is left out."""
    values = to_dict(config)
    for name in ("init_from", "lora"):
        if name in values:
            values[name] = None
    if values.get("embedder"):
        values["embedder"] = f"../{EMBEDDER}"
    return cast(dict[str, Any], _without_paths(values))


def _without_paths(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _without_paths(each, name) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(each, key) for each in value]
    kept = key == EMBEDDER or is_address(str(value))
    if isinstance(value, str) and os.sep in value and not kept:
        return ",".join(pathlib.PurePath(part).name for part in value.split(","))
    return value


def _read(folder: RunFolder, config: Run | Weights, step: Step, dtype: np.dtype) -> Network:
    checkpoints = folder.checkpoints()
    params = folder.ema_params(step)
    step = checkpoints.resolve(step)  # after reading: LATEST_GOOD steps over what is damaged
    data = checkpoints.restore_data(step)
    kept = {"step": step, "fingerprints": data.get("fingerprints") or {}}
    if figures := data.get("held_out"):
        kept["held_out"] = figures
    there = (folder.path / LATENT_STATISTICS).is_file()
    statistics = folder.read_json(LATENT_STATISTICS) if there else {}
    if isinstance(config, HoldsEmbedder) and not there:
        print(
            f"{folder.path} has no {LATENT_STATISTICS}, and neither will the exported folder: it "
            "encodes and decodes, but no transformer trains on it. launch/encode.py measures them",
            file=sys.stderr,
        )
    return Network(config, _rounded(params, dtype), kept, statistics)


def _read_embedder(folder: RunFolder, place: str, main: Network) -> Network:
    """Read the embedder of a text-to-video model, which must be the one it was trained on."""
    embedder, params = load_embedder(place)
    now = {"embedder": embedder.fingerprint(params)}
    check_fingerprints(now, main.data, f"the model in {folder.path}")
    there = RunFolder(place)
    return _read(there, there.config(), None, DTYPES["float32"])


def _rounded(params: Params, dtype: np.dtype) -> Params:
    """Return parameters on the host as they are after storing in a dtype."""

    def rounded(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf)
        return array if array.dtype == dtype else array.astype(dtype).astype(array.dtype)

    return jax.tree.map(rounded, params)


def _write_network(path: pathlib.Path, network: Network, dtype: np.dtype, run: RunFolder) -> str:
    """Write a network's folder; return the name of its layout."""
    config, family = network.config, network.config.family
    params, values = network.params[family], published(config)
    about = {"_class_name": type(config.model).__name__.removesuffix("Config")}
    own = Layout("xgen_jax", "model", own_tensors(params), about | values)
    layout = foreign_layout(config.model, params, network.statistics) or own
    write_json(path / CONFIG, layout.config)
    folder_config(values)  # what is written can be read
    tensors = {name: tensor.astype(dtype) for name, tensor in layout.tensors.items()}
    write_sharded(path, layout.stem, tensors, metadata={"format": "pt"})
    if network.statistics:
        write_json(path / LATENT_STATISTICS, network.statistics)
    record: dict[str, Any] = {"format": FORMAT, "layout": layout.name, "family": family}
    record |= {**network.data, "dtype": dtype.name}
    record |= {"fingerprint": fingerprint(config.model, params)}
    record |= {"versions": run.facts().get("versions", {})}
    record |= {} if layout is own else {"config": values}
    write_json(path / RECORD, {**record, "digests": tree_digests(network.params)})
    return layout.name


def _write_text_encoder(
    new: pathlib.Path, config: VDiTRun, params: Params, dtype: np.dtype
) -> None:
    """Write the text encoder that a run trained; a frozen one is too large, and stays where it is
    from."""
    if not config.text.trained:
        return
    values = to_dict(config)["text"]
    write_json(new / TEXT_ENCODER / CONFIG, {"_class_name": "ByteTextEncoder", **values})
    tensors = {name: x.astype(dtype) for name, x in own_tensors(params["text"]).items()}
    write_sharded(new / TEXT_ENCODER, "model", tensors, metadata={"format": "pt"})


def _counts(parts: dict[str, Network]) -> dict[str, int]:
    """Return the number of parameters of each network by its folder, "" for the only one."""
    counts = {}
    for place, network in parts.items():
        for name, params in network.params.items():
            own = place if name == network.config.family else TEXT_ENCODER
            counts[own] = count_parameters(params)
    return counts


def _index(parts: dict[str, Network]) -> dict[str, Any]:
    """Return model_index.json, as diffusers' pipelines have it."""
    named = {
        name: ["xgen_jax", type(network.config.model).__name__.removesuffix("Config")]
        for name, network in parts.items()
    }
    text = cast(VDiTRun, parts[TRANSFORMER].config).text
    kind = "ByteTextEncoder" if text.trained else "T5Encoder"
    return {"_class_name": "TextToVideo", **named, TEXT_ENCODER: ["xgen_jax", kind]}


def _same_there(
    target: pathlib.Path, mark: str, dtype: str, card: dict[str, Any], overwrite: bool
) -> dict[str, Any] | None:
    """Return the record of the same export in a folder, or None if it is free for this one.

    Args:
      target: the folder.
      mark, dtype, card: of the export; what is None in the card was not given.
      overwrite: whatever model is there is replaced.

    Raises:
      UserError: it holds something else.
    """
    if target.is_file():
        raise UserError(f"--out={target} is a file; give a folder")
    if not target.is_dir() or not any(target.iterdir()):
        return None
    record_file = networks_folder(target) / RECORD
    if not record_file.is_file():
        raise UserError(
            f"--out={target} is not empty and holds no exported model; give a new folder"
        )
    record = read_json(record_file)
    if overwrite:
        return None
    if (record.get("fingerprint"), record.get("dtype")) != (mark, dtype):
        raise UserError(
            f"--out={target} holds another exported model ({record.get('fingerprint')}, "
            f"{record.get('dtype')}); choose a new folder, or replace it with --overwrite"
        )
    written = record.get("card", {})
    for name, value in card.items():
        if value is not None and value != written.get(name):
            raise UserError(
                f"--out={target} holds this model already, and its card was written with another "
                f"--{name}: edit its README.md and leave that flag out, or write the folder again "
                "with --overwrite"
            )
    return record


def _replace(new: pathlib.Path, target: pathlib.Path) -> None:
    """Put a new folder in the place of an exported one. Other files stay: it may be a clone of the
    hub's repository."""
    if not target.is_dir():
        new.rename(target)
        return
    for path in target.iterdir():
        if path.name in FOLDERS and path.is_dir():
            shutil.rmtree(path)
        elif path.name in FILES or path.name.endswith((SUFFIX, INDEX_SUFFIX)):
            path.unlink()
    # What names the folder a model comes last.
    for path in sorted(new.iterdir(), key=lambda path: path.name in (RECORD, INDEX)):
        path.rename(target / path.name)


@contextlib.contextmanager
def _whole_folder(target: pathlib.Path) -> Generator[pathlib.Path]:
    """Give a new folder to write, which takes the place of `target` at the end, or is removed."""
    new = temporary_path(target)
    try:
        new.mkdir(parents=True)
        yield new
        _replace(new, target)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{target} cannot be written ({reason}); free space or permissions?"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
