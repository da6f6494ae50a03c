"""Frames that a REGEN decodes between its input frames, compared with the truth; one JSON line per
row on stdout.

python benchmarks/slow_motion.py --embedder=FOLDER [--chunks=2] [--clips=24] [--steps=N]

Moving shapes can be rendered at any rate. Clips of held-out combinations are rendered at twice the
rate, every other frame is encoded, and the clip is decoded at half the speed, so that each moment
has a true frame. The frames decoded between two others, with either conditioning (see
`inference/resample_time.py`), are compared with the previous frame of the reconstruction
(`repeated`) and the mean of both neighbours (`blended`). PSNR is taken over the whole frame and,
because most of it does not move, over the pixels that differ between the two true neighbours
(`moving_psnr_db`). `own` are the frames that were encoded; `within` the moments between two frames
of a chunk, `border` those between two chunks.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from rows import at_least_one, device_name, print_rows  # isort: skip  (it sets the environment)

import numpy as np

from xgen_jax.data.sources.synthetic import SyntheticSource, render
from xgen_jax.evaluation.reconstruction import DATA_RANGE
from xgen_jax.inference.reconstruct import load_reconstructor
from xgen_jax.inference.resample_time import BETWEEN
from xgen_jax.models.regen_embedder import REGENEmbedder

HELD_OUT_SEED, SIDE = 7, 32


def squared_errors(truth: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Squared error of each pixel, (T, H, W)."""
    return np.square(truth.astype(np.float64) - got).mean(-1)


def psnr_db(errors: list[np.ndarray]) -> float:
    """PSNR of the mean squared error over all listed arrays."""
    return float(
        10
        * np.log10(DATA_RANGE**2 / np.concatenate([error.reshape(-1) for error in errors]).mean())
    )


def moments(options) -> Iterator[dict[str, Any]]:
    reconstruct = load_reconstructor(options.embedder, steps=options.steps)
    if not isinstance(reconstruct.embedder, REGENEmbedder):
        raise SystemExit(
            f"{options.embedder} holds a VidVAE, which decodes nothing between its frames"
        )
    length = reconstruct.embedder.model.config.chunk_frames
    frames, source = options.chunks * length, SyntheticSource(seed=HELD_OUT_SEED, split="held_out")
    errors: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    before = np.arange(frames - 1)
    border = before % length == length - 1
    for index in range(options.clips):
        truth = render(source.scene(index)[0], 2 * frames - 1, SIDE, SIDE)
        slow = {way: reconstruct(truth[::2], speed=0.5, between=way) for way in BETWEEN}
        own, true = slow[BETWEEN[0]][::2], truth[1::2]
        moving = (truth[:-2:2] != truth[2::2]).any(-1)
        mean = np.rint((own[:-1].astype(np.float64) + own[1:]) / 2).astype(np.uint8)
        got = {way: video[1::2] for way, video in slow.items()} | {
            "repeated": own[:-1],
            "blended": mean,
        }
        for way, frames_between in got.items():
            error = squared_errors(true, frames_between)
            for where, at in (("within", ~border), ("border", border)):
                errors.setdefault((where, way), []).append((error[at], error[at][moving[at]]))
        error = squared_errors(truth[::2], own)
        errors.setdefault(("own", "plain"), []).append((error, error[:-1][moving]))
    for (where, way), pairs in errors.items():
        whole, moving = zip(*pairs)
        if sum(error.size for error in whole):
            yield {
                "what": f"{where}, {way}",
                "device": device_name(),
                "embedder": options.embedder,
                "decode_steps": reconstruct.embedder.steps,
                "shape": [options.clips, frames, SIDE, SIDE],
                "psnr_db": psnr_db(whole),
                "moving_psnr_db": psnr_db(moving),
            }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--embedder", required=True, help="run folder of a REGEN that was trained on moving shapes"
    )
    parser.add_argument("--chunks", default=2, type=at_least_one, help="chunks of a clip")
    parser.add_argument("--clips", default=24, type=at_least_one, help="number of clips")
    parser.add_argument(
        "--steps", type=at_least_one, help="evaluations of the decoder; the run's by default"
    )
    print_rows(parser, {"moments": moments})


if __name__ == "__main__":
    main()
