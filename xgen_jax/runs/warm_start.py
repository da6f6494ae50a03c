"""Initial parameters of a run from another network."""

import dataclasses
import sys

import jax
import numpy as np

from xgen_jax.config.runs import HoldsTransformer, Run, VDiTRun
from xgen_jax.errors import UserError
from xgen_jax.files import differences, refuse_differences
from xgen_jax.parallel.sharding import path_name
from xgen_jax.runs.folder import CONFIG, RunFolder
from xgen_jax.typing import Params


def with_base_embedder(config: Run, run: RunFolder, overwrite: bool = False) -> Run:
    """Return a run that names its embedder: a transformer that names none takes its base's.

    Args:
      config: of the run.
      run: its folder; a run that goes on keeps the embedder that it has, and needs no base.
      overwrite: start again, whatever the folder holds.

    Raises:
      UserError: the base is not a run, and so has no embedder.
    """
    if not isinstance(config, VDiTRun) or config.embedder:
        return config
    assert config.init_from is not None  # a run without both is refused
    if not overwrite and (run.path / CONFIG).is_file():
        before = run.config()
        if isinstance(before, VDiTRun) and before.init_from == config.init_from:
            return dataclasses.replace(config, embedder=before.embedder)
    folder = RunFolder(config.init_from)
    base = folder.expect(HoldsTransformer, "a vdit run to start from")
    if not isinstance(base, VDiTRun):
        raise UserError(
            f"init_from={config.init_from} holds converted weights, which know no embedder: give "
            "--config.embedder=FOLDER"
        )
    return dataclasses.replace(config, embedder=folder.resolve_sibling(base.embedder))


def starting_network(config: Run, wanted: Params, found: Params | None = None) -> Params:
    """Load the EMA parameters of the network in `config.init_from`, on the host.

    Args:
      config: of the run that starts from them.
      wanted: shapes of the run's own network.
      found: the network's parameters, if they are loaded already.

    Raises:
      UserError: no such folder, another family of networks, or parameters of other shapes. Where
        only settings differ that the shapes do not show, they are listed on stderr.
    """
    assert config.init_from is not None
    folder = RunFolder(config.init_from)
    other = folder.config()
    if other.family != config.family:
        raise UserError(
            f"init_from={config.init_from} holds a {other.family} network; give a folder of a "
            f"{config.family} run, or of converted weights of one"
        )
    found = folder.ema_params()[other.family] if found is None else found
    there, here = _shapes(found), _shapes(wanted)
    names = sorted(there.keys() | here.keys())
    differing = [name for name in names if there.get(name) != here.get(name)]
    settings = (
        {f"model.{key}": value for key, value in dataclasses.asdict(model).items()}
        for model in (other.model, config.model)
    )
    rows = differences(*settings)
    where = f"init_from={config.init_from}"
    if differing:
        name = differing[0]
        refuse_differences(
            [*rows, f"{name}: {there.get(name)} -> {here.get(name)}"],
            f"{where} has other parameters than the model",
            f"{len(differing)} of {len(here)} parameters differ; give the same model, or another "
            "--config.init_from",
        )
    if rows:
        listed = "\n  ".join(rows)
        print(f"{where} fits, but was another model (there -> here):\n  {listed}", file=sys.stderr)
    return jax.tree.map(np.asarray, found)


def extend_null_caption(variables: Params, tokens: int) -> Params:
    """Extend the null caption in a VDiT's variables to `tokens` rows by repeating its last row.

    Open-Sora extends PixArt-alpha's so. A caption of that length or longer stays as it is.
    """
    caption = variables.get("constants", {}).get("null_caption")
    if caption is None or not 0 < len(caption) < tokens:
        return variables
    rows = np.minimum(np.arange(tokens), len(caption) - 1)
    constants = {**variables["constants"], "null_caption": np.asarray(caption)[rows]}
    return {**variables, "constants": constants}


def _shapes(params: Params) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {path_name(path): leaf.shape for path, leaf in leaves}
