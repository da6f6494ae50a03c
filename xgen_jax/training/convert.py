"""Foreign weights become an embedder's folder: what `launch/convert.py` does."""

import pathlib
import time
from typing import Any

import jax

from xgen_jax.errors import UserError
from xgen_jax.models.fingerprint import fingerprint
from xgen_jax.training.config import VidVAEWeights
from xgen_jax.training.run_folder import RunFolder, describe_machine
from xgen_jax.weights.safetensors import read_safetensors
from xgen_jax.weights.vidvae import KINDS, load_vidvae, read_config


def convert(*, kind: str | None, source: str | None, out: str | None, overwrite: bool = False) -> dict[str, Any]:
    """Reads a foreign autoencoder and writes it as a folder that every command takes for --embedder.

    Latent statistics are not converted: `launch/encode.py` measures them where they are needed.

    Args:
      kind: `sd-vae` or `osp-vae`, see `weights.vidvae`.
      source: the safetensors file, or the folder that holds it and its config.json.
      out: the folder to write.
      overwrite: remove the run or the weights that are in the folder.

    Returns:
      A summary: kind, parameters, the network's factors, fingerprint, seconds.

    Raises:
      UserError: arguments that are missing or not known, a file that cannot be read, tensors that do not fit, a folder
        that holds something else.
    """
    started = time.monotonic()
    for name, value in (("kind", kind), ("source", source), ("out", out)):
        if not value:
            raise UserError(f"give --{name}" + (f", one of {', '.join(KINDS)}" if name == "kind" else ""))
    path = pathlib.Path(source)
    model, params = load_vidvae(kind, read_safetensors(path), read_config(path), origin=source)
    folder = RunFolder(out)
    config = VidVAEWeights(model=model, kind=kind, source=str(path.resolve()))
    folder.claim(config, overwrite)
    checkpoints = folder.checkpoints()
    checkpoints.save(0, {"ema": {"vidvae": params}}, {"fingerprints": {}})
    checkpoints.wait()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    folder.write_json("run.json", {**describe_machine(), "parameters": parameters})
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
        "wall_s": round(time.monotonic() - started, 1),
    }
