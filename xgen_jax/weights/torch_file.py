"""The one place that opens a PyTorch file: it copies the tensors to safetensors, in a process of
its own that `weights.i3d` starts.

    python -P torch_file.py SOURCE OUT.safetensors [FRAMES ...]

needs torch, numpy and safetensors, and nothing of this package, so any Python that has them can run
it. A state dict is read with `weights_only`, which refuses everything but tensors; a TorchScript
archive by `torch.jit.load`, which runs its own language and not Python. A TorchScript network is
also run on the clips of `check_clip` with FRAMES frames each, and what it gives is kept next to its
tensors: so whoever converts them can check the result. Exit codes: 3 for torch missing, 1 for a
file that is not read.
"""

import hashlib
import json
import pathlib
import sys
import zipfile

import numpy as np

NO_TORCH = 3
CHECK = "check."  # beginning of the names of the network's results: check.16
# How StyleGAN-V calls its I3D: pixels are in [-1, 1] already and 224x224, logits are wanted.
ARGUMENTS = {"rescale": False, "resize": False, "return_features": True}


def check_clip(frames: int, side: int = 224) -> np.ndarray:
    """Make a clip that any two processes make alike: gratings that move, (T, side, side, 3) float32
    in [-1, 1]."""
    t = np.arange(frames).reshape(-1, 1, 1, 1)
    y, x = (np.arange(side).reshape(shape) / side for shape in ((1, -1, 1, 1), (1, 1, -1, 1)))
    channel = np.arange(3).reshape(1, 1, 1, 3)
    coarse = np.sin(9 * x + 4 * y * (1 + channel) + 0.7 * t)
    fine = np.sin(160 * (x - 0.5) * (y - 0.4) + 1.3 * channel - 0.5 * t)
    return (0.6 * coarse + 0.4 * fine).astype(np.float32)


def is_torchscript(path: pathlib.Path) -> bool:
    """Return whether a file is a TorchScript archive, by the names in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(name.endswith("/constants.pkl") for name in names) and any(
        "/code/" in name for name in names
    )


def main(source: str, out: str, lengths: list[int]) -> None:
    try:
        import torch  # pyrefly: ignore
        from safetensors.numpy import save_file
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(NO_TORCH)
    path, about = pathlib.Path(source), {}
    try:
        if is_torchscript(path):
            module = torch.jit.load(str(path), map_location="cpu").eval()
            state = module.state_dict()
            epsilons = {float(m.eps) for m in module.modules() if hasattr(m, "eps")}
            results = _results(torch, module, lengths)
            about = {"form": "torchscript", "epsilons": json.dumps(sorted(epsilons))}
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state, results = state.get("state_dict", state), {}
            about = {"form": "state dict"}
        tensors = {
            name: value.detach().float().contiguous().numpy()
            for name, value in state.items()
            if isinstance(value, torch.Tensor)
        }
    except Exception as error:
        # Whatever a foreign file makes the library say, the last line is for the person.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"{path} is not read as TorchScript or a state dict: {lines[0]}", file=sys.stderr)
        sys.exit(1)
    with open(path, "rb") as file:
        about |= {"source": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    # The format sorts the names; the network's order may be needed to know its layers.
    about["order"] = json.dumps(list(tensors))
    save_file({**tensors, **results}, out, metadata=about)


def _results(torch, module, lengths: list[int]) -> dict[str, np.ndarray]:
    results = {}
    for frames in lengths:
        clip = torch.from_numpy(check_clip(frames)).permute(3, 0, 1, 2)[None].contiguous()
        try:
            with torch.no_grad():
                features = module(clip, **ARGUMENTS)
        except (RuntimeError, TypeError) as error:
            why = str(error).strip().splitlines()[0]
            raise ValueError(f"it cannot be run as StyleGAN-V's I3D is: {why}") from error
        results[f"{CHECK}{frames}"] = features.float().contiguous().numpy()
    return results


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [int(value) for value in sys.argv[3:]])
