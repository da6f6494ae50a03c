"""Foreign weights become a folder that commands take, and a transformer a foreign file, for
`launch/convert.py`."""

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
from xgen_jax.runs.adapters import with_adapter
from xgen_jax.runs.folder import RunFolder, describe_machine
from xgen_jax.runs.load import load_transformer
from xgen_jax.training.metric_writers import ConsoleWriter
from xgen_jax.typing import Params
from xgen_jax.weights import i3d, vdit, vidvae
from xgen_jax.weights.foreign_config import read_config
from xgen_jax.weights.safetensors import SUFFIX, iterate_safetensors, tensor_names

EXPORT, LORA = "stdit2-export", "lora"
KINDS = (*vidvae.KINDS, *vdit.KINDS, EXPORT, LORA, i3d.KIND)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertRequest:
    """The flags of `launch/convert.py`.

    Attributes:
      kind: `sd-vae` or `osp-vae`, see `weights.vidvae`; `stdit2` or `pixart`, see `weights.vdit`;
        `stdit2-export`, the way back; `lora`, see `weights.lora`; or `i3d`, see `weights.i3d`.
      source: the safetensors file, or the folder that holds it and its config.json; to export, a
        vdit run or weights in STDiT2's form. FILE:SCALE weighs an adapter.
      out: the folder to write; to export, the file.
      base: of an adapter, the vdit run or the converted weights that it was trained on.
      overwrite: remove the run or the weights that are in the folder, or the file.

    Raises:
      UserError: flags that are missing, not known, or contradict each other.
    """

    kind: str = ""
    source: str = ""
    out: str = ""
    base: str | None = None
    overwrite: bool = False

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


def convert(request: ConvertRequest) -> dict[str, Any]:
    """Write foreign weights as a folder: an autoencoder's for --embedder, a transformer's for
    init_from. Or merge an adapter into its base, or write a transformer as a foreign file.

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
        summary = _export(source, out, request.overwrite)
    elif kind == i3d.KIND:
        summary = i3d.convert_i3d(source, out, request.overwrite)
    elif kind in vidvae.KINDS:
        summary = _autoencoder(kind, pathlib.Path(source), out, request.overwrite)
    else:
        summary = _transformer(kind, pathlib.Path(source), out, request.overwrite)
    return {**summary, "wall_s": round(time.monotonic() - started, 1)}


def _autoencoder(kind: str, source: pathlib.Path, out: str, overwrite: bool) -> dict[str, Any]:
    tensors, foreign = _read(source), read_config(source)
    model, params = vidvae.load_vidvae(kind, tensors, foreign, origin=str(source))
    config = VidVAEWeights(model=model, kind=kind, source=str(source.resolve()))
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


def _transformer(kind: str, source: pathlib.Path, out: str, overwrite: bool) -> dict[str, Any]:
    tensors, foreign = _read(source), read_config(source)
    model, channels, params, new = vdit.load_vdit(kind, tensors, foreign, origin=str(source))
    config = VDiTWeights(
        model=model, kind=kind, source=str(source.resolve()), latent_channels=channels
    )
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
    config = config.derived(str(folder.path.resolve()), LORA)
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


def _export(source: str, out: str, overwrite: bool) -> dict[str, Any]:
    if not out.endswith(SUFFIX):
        raise UserError(f"--out={out} must be a file that ends with {SUFFIX}")
    config, params = load_transformer(source)
    params = params[config.family]
    path = vdit.write_stdit2(out, config.model, params, overwrite=overwrite)
    return {"file": str(path), "kind": EXPORT, "fingerprint": fingerprint(config.model, params)}
