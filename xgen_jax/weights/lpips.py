"""LPIPS from its public weights.

Two forms are read, as safetensors:

- the state dict of the `lpips` package's `LPIPS` (net "vgg" or "alex"): `net.slice1.0.weight`,
  `lin0.model.1.weight`;
- two files: torchvision's VGG16 or AlexNet (`features.0.weight`), and the heads that ship inside
  that package, without a trunk.

With `lpips` installed, this makes the first:

    tensors = lpips.LPIPS(net="vgg").state_dict()
    tensors = {name: x.clone() for name, x in tensors.items()}
    safetensors.torch.save_file(tensors, "lpips_vgg.safetensors")
"""

import os
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.errors import UserError
from xgen_jax.models.lpips import LPIPS, PRESETS, TRUNKS, LPIPSConfig
from xgen_jax.typing import Params
from xgen_jax.weights.safetensors import Source, assemble, kernel_from_torch, read_safetensors

# The heads again under another name, the constants of the input's scaling, and the classifier
# behind the trunk.
IGNORED = ("lins.", "scaling_layer.", "classifier.")
KERNELS = {11: "alexnet", 3: "vgg16"}  # side of the trunk's first kernel


def load_lpips(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> tuple[LPIPS, Params]:
    """Load LPIPS; the tensors decide the trunk.

    Args:
      paths: a safetensors file (or folder) with trunk and heads, or a list of files that hold them
        together.

    Returns:
      The module and its parameters: `module.apply(params, x, y)`.

    Raises:
      UserError: a file that cannot be read, or tensors of neither network; all that are missing or
        wrong are listed.
    """
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    origin = " with ".join(str(path) for path in paths)
    tensors: dict[str, np.ndarray] = {}
    for path in paths:
        read = read_safetensors(path)
        twice = sorted(
            name for name in tensors.keys() & read.keys() if not name.startswith(IGNORED)
        )
        if twice:
            raise UserError(
                f"{origin} hold these tensors twice: {', '.join(twice)}; give each network once"
            )
        tensors |= read
    return assemble_lpips(tensors, origin)


def assemble_lpips(
    tensors: Mapping[str, np.ndarray], origin: str = "the checkpoint"
) -> tuple[LPIPS, Params]:
    """Build LPIPS from tensors by name; see `load_lpips`."""
    torchvision = "features.0.weight" in tensors
    first = tensors.get("features.0.weight" if torchvision else "net.slice1.0.weight")
    trunk = None if first is None else KERNELS.get(first.shape[-1] if first.ndim else 0)
    if trunk is None:
        raise UserError(
            f"{origin} holds no VGG16 or AlexNet: none of its {len(tensors)} tensors is "
            "net.slice1.0.weight (of the lpips package) or features.0.weight (of torchvision) "
            "with a kernel of 3x3 or 11x11"
        )
    convs = list(_convolutions(trunk, torchvision))
    widths = list(PRESETS[trunk].widths)
    # Narrower ones are the same network; disagreement within a slice is found below.
    for number, _, name in convs:
        weight = tensors.get(f"{name}.weight")
        if weight is not None and weight.ndim:
            widths[number - 1] = weight.shape[0]
    model = LPIPS(LPIPSConfig(trunk=trunk, widths=tuple(widths)))
    sources: dict[str, Source] = {}
    for number, place, name in convs:
        sources[f"params/conv{number}_{place}/kernel"] = (f"{name}.weight", kernel_from_torch)
        sources[f"params/conv{number}_{place}/bias"] = f"{name}.bias"
    for number in range(1, len(widths) + 1):
        sources[f"params/head{number}"] = (f"lin{number - 1}.model.1.weight", _head)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    abstract = jax.eval_shape(model.init, jax.random.key(0), image, image)
    return model, assemble(abstract, sources, tensors, ignored=IGNORED, origin=origin)


def _convolutions(trunk: str, torchvision: bool) -> Iterator[tuple[int, int, str]]:
    """Yield (slice from 1, place in it from 1, foreign name) of each convolution."""
    # Names count all layers of torchvision's `features`.
    index = 0
    for number, layers in enumerate(TRUNKS[trunk], 1):
        index += layers.pool > 0
        for place in range(1, layers.convs + 1):
            yield (
                number,
                place,
                f"features.{index}" if torchvision else f"net.slice{number}.{index}",
            )
            index += 2  # itself and its ReLU


def _head(weight: np.ndarray) -> np.ndarray:
    """Reshape a convolution (1, C, 1, 1) to (C,)."""
    return weight.reshape(weight.size) if weight.shape == (1, weight.size, 1, 1) else weight
