"""Weights in and out, for `launch/convert.py`: foreign ones become a folder that commands take, a
model becomes a folder to share, and a transformer a foreign file."""

import contextlib
import dataclasses
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np

from xgen_jax.config.runs import VDiTRun, VDiTWeights, VidVAEWeights
from xgen_jax.errors import UserError, choose
from xgen_jax.models.fingerprint import fingerprint
from xgen_jax.runs import hub
from xgen_jax.runs.adapters import with_adapter
from xgen_jax.runs.export import export_model
from xgen_jax.runs.folder import RunFolder, describe_machine
from xgen_jax.runs.load import load_transformer
from xgen_jax.training.metric_writers import ConsoleWriter
from xgen_jax.typing import Params
from xgen_jax.weights import i3d, vdit, vidvae
from xgen_jax.weights.foreign_config import read_config
from xgen_jax.weights.safetensors import SUFFIX, iterate_safetensors, tensor_names

EXPORT, STDIT2, LORA = "export", "stdit2-export", "lora"
KINDS = (*vidvae.KINDS, *vdit.KINDS, EXPORT, STDIT2, LORA, i3d.KIND)
EXPORT_ONLY = ("dtype", "embedder", "evaluation", "licence", "push", "private")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertRequest:
    """The flags of `launch/convert.py`.

    Attributes:
      kind: `sd-vae` or `osp-vae`, see `weights.vidvae`; `stdit2` or `pixart`, see `weights.vdit`;
        `lora`, see `weights.lora`; `i3d`, see `weights.i3d`; `export`, see `runs.export`; or
        `stdit2-export`, one file.
      source: the safetensors file, or the folder that holds it and its config.json; to export, a
        run or converted weights, for `stdit2-export` in STDiT2's form. FILE:SCALE weighs an
        adapter. A folder may be an address, see `runs.hub`.
      out: the folder to write; for `stdit2-export` the file.
      base: of an adapter, the vdit run or the converted weights that it was trained on.
      overwrite: remove the run or the weights that are in the folder, or the file.
      dtype, embedder, evaluation, licence: of `export`, see `export_model`.
      push: of `export`, the address to upload the folder to.
      private: of the repository, if `push` makes it.

    Raises:
      UserError: flags that are missing, not known, or contradict each other.
    """

    kind: str = ""
    source: str = ""
    out: str = ""
    base: str | None = None
    overwrite: bool = False
    dtype: str | None = None
    embedder: str | None = None
    evaluation: str | None = None
    licence: str | None = None
    push: str | None = None
    private: bool = False

    def __post_init__(self):
        for name in ("kind", "source", "out"):
            if not getattr(self, name):
                known = f", one of {', '.join(KINDS)}" if name == "kind" else ""
                raise UserError(f"give --{name}{known}")
        choose("kind", self.kind, KINDS)
        if (self.base is None) == (self.kind == LORA):
            raise UserError(
                f"--kind={LORA} needs --base=FOLDER, which the adapter was trained on; no other "
                "kind takes it"
            )
        if self.kind != EXPORT:
            given = [name for name in EXPORT_ONLY if getattr(self, name)]
            if given:
                raise UserError(f"--{given[0]} is for --kind={EXPORT}")
        if self.private and not self.push:
            raise UserError("--private is for --push=hf://OWNER/NAME")
        if self.push:
            hub.check_target(self.push)
        hub.refuse_address("--out", self.out)


def convert(request: ConvertRequest) -> dict[str, Any]:
    """Write foreign weights as a folder: an autoencoder's for --embedder, a transformer's for
    init_from. Or merge an adapter into its base, export a model, or write a transformer as
    a foreign file.

    Latent statistics are not converted: `launch/encode.py` measures them where they are needed.

    Returns:
      A summary: kind, parameters, the network's sizes, fingerprint, seconds.

    Raises:
      UserError: a file that cannot be read, tensors that do not fit, a folder that holds something
        else.
    """
    started = time.monotonic()
    kind, source, out = request.kind, request.source, request.out
    if request.base is not None:
        summary = _merge(source, request.base, out, request.overwrite)
    elif kind == EXPORT:
        summary = {"kind": kind, **_export(request)}
    elif kind == STDIT2:
        summary = _stdit2_file(source, out, request.overwrite)
    elif kind == i3d.KIND:
        summary = i3d.convert_i3d(source, out, request.overwrite)
    elif kind in vidvae.KINDS:
        summary = _autoencoder(kind, source, out, request.overwrite)
    else:
        summary = _transformer(kind, source, out, request.overwrite)
    return {**summary, "wall_s": round(time.monotonic() - started, 1)}


def _autoencoder(kind: str, given: str, out: str, overwrite: bool) -> dict[str, Any]:
    source = hub.local_folder(given)
    tensors, foreign = _read(source), read_config(source)
    model, params = vidvae.load_vidvae(kind, tensors, foreign, origin=str(source))
    config = VidVAEWeights(model=model, kind=kind, source=_origin(given))
    folder, parameters = _write(out, config, {"vidvae": params}, overwrite)
    return {
        "embedder": str(folder.path),
        "kind": kind,
        "parameters": parameters,
        "channels": list(model.channels),
        "latent_channels": model.latent_channels,
        "time_factor": model.time_factor,
        "space_factor": model.space_factor,
        "look_ahead": model.look_ahead,
        "streams": not model.depends_on_whole_clip,
        "fingerprint": fingerprint(model, params),
    }


def _transformer(kind: str, given: str, out: str, overwrite: bool) -> dict[str, Any]:
    source = hub.local_folder(given)
    tensors, foreign = _read(source), read_config(source)
    model, channels, params, new = vdit.load_vdit(kind, tensors, foreign, origin=str(source))
    config = VDiTWeights(model=model, kind=kind, source=_origin(given), latent_channels=channels)
    folder, parameters = _write(out, config, {"vdit": params}, overwrite)
    return {
        "model": str(folder.path),
        "kind": kind,
        "parameters": parameters,
        "width": model.width,
        "depth": model.depth,
        "heads": model.heads,
        "text_width": model.text_width,
        "null_caption_tokens": model.null_caption_tokens,
        "latent_channels": channels,
        "opensora_compat": model.opensora_compat,
        "new_layers": list(new),
        "fingerprint": fingerprint(model, params),
    }


def _origin(given: str) -> str:
    return given if hub.is_address(given) else str(pathlib.Path(given).resolve())


def _read(source: pathlib.Path) -> dict[str, np.ndarray]:
    """Read all tensors of a checkpoint, with a progress bar."""
    tensors: dict[str, np.ndarray] = {}
    total = len(tensor_names(source))
    with contextlib.closing(ConsoleWriter(total, f"read {source}", unit="tensors")) as console:
        for name, tensor in iterate_safetensors(source):
            tensors[name] = tensor
            console.progress(len(tensors), {})
    return tensors


def _merge(source: str, base: str, out: str, overwrite: bool) -> dict[str, Any]:
    folder = RunFolder(base)
    config, base_params = load_transformer(base)
    if RunFolder(out).checkpoints().steps() and not overwrite:
        raise UserError(
            f"--out={out} holds a model already; choose a new folder, or replace it with "
            "--overwrite"
        )
    params = with_adapter(base_params, config.model, source)
    assert isinstance(config, (VDiTRun, VDiTWeights))  # what holds a transformer
    # It is not the base's run, and must not be taken for it.
    config = config.derived(_origin(base), LORA)
    fingerprints = folder.checkpoints().restore_data()["fingerprints"]
    written, parameters = _write(out, config, params, overwrite, fingerprints, adapter=source)
    return {
        "model": str(written.path),
        "kind": LORA,
        "parameters": parameters,
        "base": str(base),
        "fingerprint": fingerprint(config.model, params),
    }


def _write(
    out: str,
    config,
    ema: Params,
    overwrite: bool,
    fingerprints: dict[str, str] | None = None,
    **about: str,
) -> tuple[RunFolder, int]:
    """Writes weights as a folder, with what else run.json is to say of them: (it, its
    parameters)."""
    folder, parameters = RunFolder(out), sum(leaf.size for leaf in jax.tree.leaves(ema))
    print(f"writing {out}: {parameters:,} parameters", file=sys.stderr)
    folder.create_or_resume(config, overwrite)
    checkpoints = folder.checkpoints()
    if checkpoints.steps():
        held = folder.ema_params()[config.family]
        if fingerprint(config.model, held) != fingerprint(config.model, ema[config.family]):
            raise UserError(
                f"--out={out} holds other weights of the same name; choose a new folder, or "
                "replace them with --overwrite"
            )
    checkpoints.save(0, {"ema": ema}, {"fingerprints": fingerprints or {}})
    checkpoints.wait()
    folder.write_json("run.json", {**describe_machine(), "parameters": parameters, **about})
    return folder, parameters


def _export(request: ConvertRequest) -> dict[str, Any]:
    summary = export_model(
        request.source,
        request.out,
        dtype=request.dtype or "float32",
        embedder=request.embedder,
        licence=request.licence,
        evaluation=request.evaluation,
        overwrite=request.overwrite,
    )
    if request.push is None:
        return summary
    return {**summary, "url": hub.upload(pathlib.Path(request.out), request.push, request.private)}


def _stdit2_file(source: str, out: str, overwrite: bool) -> dict[str, Any]:
    if not out.endswith(SUFFIX):
        raise UserError(f"--out={out} must be a file that ends with {SUFFIX}")
    config, params = load_transformer(source)
    params = params[config.family]
    path = vdit.write_stdit2(out, config.model, params, overwrite=overwrite)
    return {"file": str(path), "kind": STDIT2, "fingerprint": fingerprint(config.model, params)}
