"""Convert foreign weights to a folder that commands take, and back: `launch/convert.py`."""

import pathlib
import time
from typing import Any

import jax

from xgen_jax.config.runs import VDiTWeights, VidVAEWeights
from xgen_jax.errors import UserError, choose
from xgen_jax.models.fingerprint import fingerprint
from xgen_jax.runs.adapters import with_adapter
from xgen_jax.runs.folder import RunFolder, describe_machine
from xgen_jax.runs.load import load_transformer
from xgen_jax.typing import Params
from xgen_jax.weights import vdit, vidvae
from xgen_jax.weights.safetensors import SUFFIX, read_safetensors

EXPORT, LORA = "stdit2-export", "lora"
KINDS = (*vidvae.KINDS, *vdit.KINDS, EXPORT, LORA)


def convert(
    *,
    kind: str | None,
    source: str | None,
    out: str | None,
    base: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Convert weights between our folders and other projects' files.

    An autoencoder's folder is for --embedder, a transformer's for init_from. Kind `lora` merges an
    adapter into its base, which gives a transformer's folder. Latent statistics are not converted:
    `launch/encode.py` measures them where they are needed.

    Args:
      kind: `sd-vae` or `osp-vae`, see `weights.vidvae`; `stdit2` or `pixart`, see `weights.vdit`;
        `stdit2-export`, the way back; or `lora`, see `weights.lora`.
      source: the safetensors file, or the folder that holds it and its config.json; to export, a
        vdit run or converted weights with model.opensora_compat. FILE:SCALE scales an adapter.
      out: the folder to write; to export, the file.
      base: of an adapter, the vdit run or the converted weights that it was trained on; else None.
      overwrite: remove the run or the weights that are in the folder, or the file.

    Returns:
      A summary: kind, parameters, the network's sizes, fingerprint, seconds.

    Raises:
      UserError: arguments that are missing or not known, a file that cannot be read, tensors that
        do not fit, a folder that holds something else.
    """
    started = time.monotonic()
    for name, value in (("kind", kind), ("source", source), ("out", out)):
        if not value:
            raise UserError(
                f"give --{name}" + (f", one of {', '.join(KINDS)}" if name == "kind" else "")
            )
    choose("kind", kind, KINDS)
    if (base is None) == (kind == LORA):
        raise UserError(
            f"--kind={LORA} needs --base=FOLDER, which the adapter was trained on; no other kind "
            f"takes it"
        )
    if kind == LORA:
        summary = _merge(source, base, out, overwrite)
    elif kind == EXPORT:
        summary = _export(source, out, overwrite)
    elif kind in vidvae.KINDS:
        summary = _autoencoder(kind, pathlib.Path(source), out, overwrite)
    else:
        summary = _transformer(kind, pathlib.Path(source), out, overwrite)
    return {**summary, "wall_s": round(time.monotonic() - started, 1)}


def _autoencoder(kind: str, source: pathlib.Path, out: str, overwrite: bool) -> dict[str, Any]:
    tensors, foreign = read_safetensors(source), vidvae.read_config(source)
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
    tensors, foreign = read_safetensors(source), vidvae.read_config(source)
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


def _merge(source: str, base: str, out: str, overwrite: bool) -> dict[str, Any]:
    folder = RunFolder(base)
    config, base_params = load_transformer(base)
    if RunFolder(out).checkpoints().steps() and not overwrite:
        raise UserError(
            f"--out={out} holds a model already; choose a new folder, or replace it with "
            f"--overwrite"
        )
    params = with_adapter(base_params, config.model, source)
    # A derived configuration, so that the result is not taken for the base's run.
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
    """Write weights as a folder; return it and the number of its parameters.

    `about`: further entries of run.json.
    """
    folder = RunFolder(out)
    folder.create_or_resume(config, overwrite)
    checkpoints = folder.checkpoints()
    checkpoints.save(0, {"ema": ema}, {"fingerprints": fingerprints or {}})
    checkpoints.wait()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(ema))
    folder.write_json("run.json", {**describe_machine(), "parameters": parameters, **about})
    return folder, parameters


def _export(source: str, out: str, overwrite: bool) -> dict[str, Any]:
    if not out.endswith(SUFFIX):
        raise UserError(f"--out={out} must be a file that ends with {SUFFIX}")
    config, params = load_transformer(source)
    params = params[config.family]
    path = vdit.write_stdit2(out, config.model, params, overwrite=overwrite)
    return {"file": str(path), "kind": EXPORT, "fingerprint": fingerprint(config.model, params)}
