"""Foreign checkpoints: safetensors files to tensors, and tensors to the parameters of our networks.

Only safetensors are read. A pickle (.pt, .pth, .ckpt, .bin) is a program: opening it runs its code.

A network's conversion is a table from our paths to the tensors there, given to `assemble`:

    {"params/conv_in/kernel": ("conv_in.weight", kernel_from_torch),
     "params/conv_in/bias": "conv_in.bias"}

Every tensor must be accounted for: all that are missing, left over or of another shape are listed
in one error.
"""

import contextlib
import os
import pathlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from einops import EinopsError, rearrange

from xgen_jax.errors import UserError
from xgen_jax.files import atomic_write, read_json, write_json
from xgen_jax.typing import Params

SUFFIX, INDEX_SUFFIX = ".safetensors", ".safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # of a file, at most
PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # PyTorch's files since and before its version 1.6

# Source of one of our parameters: a tensor's name; (name, transform); or ((name, ...), transform)
# for several tensors, or none.
Source = str | tuple[str | tuple[str, ...], Callable[..., np.ndarray]]


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the tensors of a checkpoint.

    Args:
      path: a safetensors file, the `*.safetensors.index.json` of a checkpoint in several files, or
        a folder that holds one of the two.

    Returns:
      The tensors by name, all float32 whatever they were stored as.

    Raises:
      UserError: no such file, several in the folder, a pickle, a file cut short or damaged, a shard
        that is missing.
    """
    path = _locate(pathlib.Path(path))
    return _read_shards(path) if path.name.endswith(INDEX_SUFFIX) else _read_file(path)


def iterate_safetensors(path: str | os.PathLike) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, tensor) of a checkpoint file by file, each in its stored dtype.

    For checkpoints that are too large to be held twice. Arguments and errors are those of
    `read_safetensors`; a tensor that the index names and no file holds is refused before the first.
    """
    for shard, names in _files(path).items():
        with _opened(shard) as file:
            for name in names:
                yield name, file.get_tensor(name)


def tensor_names(path: str | os.PathLike) -> list[str]:
    """Return the names of a checkpoint's tensors, in the order of `iterate_safetensors`; errors
    are the same."""
    return [name for names in _files(path).values() for name in names]


def sample_safetensors(
    path: str | os.PathLike, values: int
) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    """Yield (name, shape, sample) of each tensor, and read no more than that of the files.

    A sample is rows from the beginning, middle and end, `values` numbers of each or a little more,
    flat and in the stored dtype; of a small tensor all.
    """
    for shard, names in _files(path).items():
        with _opened(shard) as file:
            for name in names:
                part = file.get_slice(name)
                shape = tuple(part.get_shape())
                rows = -(-values // max(1, int(np.prod(shape[1:])))) if shape else 0
                if not shape or shape[0] <= 3 * rows:
                    yield name, shape, file.get_tensor(name).ravel()
                    continue
                starts = (0, (shape[0] - rows) // 2, shape[0] - rows)
                yield (
                    name,
                    shape,
                    np.concatenate([part[start : start + rows].ravel() for start in starts]),
                )


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Read the metadata of a safetensors file, or of the one in a folder; most have none.

    Raises:
      UserError: see `read_safetensors`.
    """
    with _opened(_locate(pathlib.Path(path))) as file:
        return file.metadata() or {}


def write_safetensors(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> pathlib.Path:
    """Write tensors, each in its own dtype, and metadata; the whole file or nothing.

    Raises:
      UserError: another suffix, a file that exists, a folder that cannot be written.
    """
    path = pathlib.Path(path)
    if path.suffix != SUFFIX:
        raise UserError(f"{path} must end with {SUFFIX}")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; choose another name, or remove it")
    # The library copies memory as it is: a transposed array must be made contiguous.
    dense = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    about = None if metadata is None else dict(metadata)
    try:
        with atomic_write(path) as temporary:
            safetensors.numpy.save_file(dense, temporary, metadata=about)
            # The library leaves it to its writer alone; who may read the folder may read the file.
            temporary.chmod(path.parent.stat().st_mode & 0o666)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} cannot be written ({error})") from error
    return path


def write_sharded(
    folder: pathlib.Path,
    stem: str,
    tensors: Mapping[str, np.ndarray],
    *,
    metadata: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[pathlib.Path]:
    """Write tensors as STEM.safetensors, or in several such files with their index where one would
    be larger than `shard_bytes`, as the hub and diffusers do.

    Raises:
      UserError: see `write_safetensors`.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    if len(shards) == 1:
        return [write_safetensors(folder / f"{stem}{SUFFIX}", tensors, metadata=metadata)]
    files, where = [], {}
    for number, names in enumerate(shards, 1):
        file = folder / f"{stem}-{number:05d}-of-{len(shards):05d}{SUFFIX}"
        part = {name: tensors[name] for name in names}
        files.append(write_safetensors(file, part, metadata=metadata))
        where |= dict.fromkeys(names, file.name)
    index = folder / f"{stem}{INDEX_SUFFIX}"
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(index, {"metadata": {"total_size": total}, "weight_map": where})
    return [*files, index]


def kernel_from_torch(weight: np.ndarray) -> np.ndarray:
    """Convert the weight (O, I, ...) of a PyTorch convolution or linear layer to a kernel (...,
    I, O)."""
    return rearrange(weight, "o i ... -> ... i o")


def assemble(
    abstract: Params,
    sources: Mapping[str, Source],
    tensors: Mapping[str, np.ndarray],
    *,
    ignored: Iterable[str] = (),
    origin: str = "the checkpoint",
) -> Params:
    """Build our parameters from a checkpoint's tensors.

    Args:
      abstract: nested dicts of arrays, or of shapes from `jax.eval_shape`.
      sources: for each of our paths, "params/conv_in/kernel", its source (see `Source`); exactly
        one a leaf.
      tensors: the checkpoint's, by name.
      ignored: beginnings of the names of tensors that our network has no use for.
      origin: name of the checkpoint in the error, such as its path.

    Returns:
      A tree like `abstract` of NumPy arrays of its shapes and dtypes.

    Raises:
      UserError: tensors are missing, left over, of another shape or not finite; all of them are
        listed.
      KeyError: `sources` and `abstract` name different parameters, a mistake in the table itself.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
    wanted = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if wanted.keys() != sources.keys():
        raise KeyError(
            f"parameters with one of leaf and source only: {sorted(wanted.keys() ^ sources.keys())}"
        )
    missing, misshaped, filled, used = [], [], [], set()
    for path, leaf in wanted.items():
        names, transform = _parse(sources[path])
        absent = [name for name in names if name not in tensors]
        missing += [f"{name}, for {path} {leaf.shape}" for name in absent]
        used.update(names)
        if absent:
            continue
        value, problem = _transformed(transform, [tensors[name] for name in names], leaf.shape)
        if problem:
            given = " and ".join(f"{name} {tensors[name].shape}" for name in names)
            misshaped.append(f"{given or 'a constant'}: {problem}, wanted {leaf.shape} for {path}")
        filled.append(np.asarray(value, leaf.dtype) if not problem else None)
    ignored = tuple(ignored)
    extra = [
        f"{name} {x.shape}"
        for name, x in tensors.items()
        if name not in used and not name.startswith(ignored)
    ]
    broken = [name for name in tensors if name in used and not np.isfinite(tensors[name]).all()]
    problems = {"missing": missing, "extra": extra, "mis-shaped": misshaped, "not finite": broken}
    if any(problems.values()):
        lists = (
            f"{kind}, {len(rows)}:" + "".join(f"\n  {r}" for r in rows)
            for kind, rows in problems.items()
            if rows
        )
        raise UserError(f"{origin} does not fit this network\n" + "\n".join(lists))
    return tree.unflatten(filled)


def _parse(source: Source) -> tuple[tuple[str, ...], Callable[..., np.ndarray]]:
    names, transform = (source, np.asarray) if isinstance(source, str) else source
    return ((names,) if isinstance(names, str) else tuple(names)), transform


def _transformed(transform, given: list[np.ndarray], shape: tuple[int, ...]) -> tuple[Any, str]:
    """Return the transformed tensors, and the problem if they do not give the shape, else ""."""
    try:
        value = transform(*given)
    except (ValueError, IndexError, EinopsError):
        # A tensor of another rank cannot even be transposed.
        return None, "cannot be rearranged"
    return value, "" if value.shape == shape else f"becomes {value.shape}"


def _locate(path: pathlib.Path) -> pathlib.Path:
    """Return the file to read for a path that may be a folder."""
    if not path.exists():
        raise UserError(f"there is no {path}; give a {SUFFIX} file, or the folder that holds it")
    if not path.is_dir():
        return path
    found = sorted(path.glob(f"*{INDEX_SUFFIX}")) or sorted(path.glob(f"*{SUFFIX}"))
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{path} holds {', '.join(file.name for file in found)}; name the one to read"
        )
    pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if pickles:
        raise _pickle_refused(pickles[0])
    raise UserError(f"{path} holds no {SUFFIX} file")


def _pickle_refused(path: pathlib.Path) -> UserError:
    return UserError(
        f"{path} is a pickle, or named like one: opening one runs whatever code its maker put in, "
        "so only safetensors are read. Look for the same weights as safetensors, or convert them "
        "once, with PyTorch:\n"
        "  import torch; from safetensors.torch import save_file\n"
        f'  tensors = torch.load("{path.name}", map_location="cpu", weights_only=True)\n'
        '  tensors = tensors.get("state_dict", tensors)\n'
        f"  save_file({{name: x.clone().contiguous() for name, x in tensors.items()}}, "
        f'"{path.stem}{SUFFIX}")'
    )


def _read_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    with _opened(path) as file:
        return {name: file.get_tensor(name).astype(np.float32, copy=False) for name in file.keys()}  # noqa: SIM118


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Generator[Any]:
    """Open a safetensors file; errors inside, also while it is read, become UserErrors."""
    try:
        with path.open("rb") as file:
            head = file.read(9)
        # A header's length may begin with a pickle's bytes by chance, but only a safetensors header
        # then opens a brace.
        if path.suffix in PICKLE_SUFFIXES or (
            head.startswith((_ZIP, _PICKLE)) and head[8:] != b"{"
        ):
            raise _pickle_refused(path)
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from error
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); fetch it again"
        ) from error
    except (AttributeError, TypeError) as error:
        # A dtype that NumPy has no name for.
        raise UserError(
            f"{path} holds a dtype that is not read ({error}); convert it to float32"
        ) from error


def _files(path: str | os.PathLike) -> dict[pathlib.Path, list[str]]:
    """Return the names of the tensors in each file of a checkpoint."""
    path = _locate(pathlib.Path(path))
    names, shards = _index(path) if path.name.endswith(INDEX_SUFFIX) else ({}, [path])
    held = {}
    for shard in shards:
        with _opened(shard) as file:
            held[shard] = sorted(file.keys())
    _check_held(path, names, {name for there in held.values() for name in there})
    return held


def _read_shards(index: pathlib.Path) -> dict[str, np.ndarray]:
    names, shards = _index(index)
    tensors: dict[str, np.ndarray] = {}
    for shard in shards:
        tensors |= _read_file(shard)
    _check_held(index, names, tensors)
    return tensors


def _index(index: pathlib.Path) -> tuple[dict[str, str], list[pathlib.Path]]:
    """Read an index: {tensor: file name}, and the files, which all exist."""
    try:
        names = read_json(index, "fetch it again")["weight_map"]
        shards = sorted(set(names.values()))
        # An index may have come from anywhere: it may name files in its own folder only.
        outside = [shard for shard in shards if pathlib.PurePath(shard).name != shard]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} is not the index of a checkpoint in shards ({error!r})"
        ) from error
    if outside:
        raise UserError(f"{index} names files outside its folder: {', '.join(outside)}")
    absent = [shard for shard in shards if not (index.parent / shard).is_file()]
    if absent:
        raise UserError(
            f"{index} names files that are not there: {', '.join(absent)}; fetch them too"
        )
    return names, [index.parent / shard for shard in shards]


def _check_held(index: pathlib.Path, names: Mapping[str, str], held: Iterable[str]) -> None:
    held = set(held)
    lost = [f"{name} ({shard})" for name, shard in names.items() if name not in held]
    if lost:
        raise UserError(f"{index} names tensors that its files do not hold: {', '.join(lost)}")
