"""What REGEN's loss is made of, one change at a time, at the tiny preset; one JSON line a row on stdout.

python benchmarks/regen_terms.py [--only='chosen;kl 0'] [--ratio=8] [--root=runs/regen_terms] [--steps=400]
    [--batch=8] [--clips=64] [--lpips=FILE]

Trains configs/quickstart/regen.py for a short time with each change of the loss, on the world of moving shapes at
32x32, and reconstructs unseen clips with 1, 4 and 16 evaluations. `chosen` is the configuration as it is; the others
say what differs. A training that is in the folder is not done again. With --lpips, the safetensors of LPIPS, rows with
that term are there as well, at 64x64. The table comes on stderr.
"""

import argparse
import dataclasses
import pathlib
import runpy
import sys
import time
from collections.abc import Iterator
from typing import Any

from rows import at_least_one, device_name, print_rows  # isort: skip  (it sets the environment)

import jax
import numpy as np

from xgen_jax.data.synthetic import SyntheticSource
from xgen_jax.errors import UserError
from xgen_jax.evaluation.reconstruction import evaluate_reconstruction
from xgen_jax.training.config import run_config
from xgen_jax.training.loop import train
from xgen_jax.training.run_folder import load_embedder

CONFIG = pathlib.Path(__file__).resolve().parents[1] / "configs" / "quickstart" / "regen.py"
DECODE_STEPS = (1, 4, 16)
UNSEEN = 10_000  # seed of a world that no training has
VARIANTS: dict[str, dict[str, Any]] = {
    "chosen": {},
    "no share at t = 1": {"one_step_share": 0.0},
    "all at t = 1": {"one_step_share": 1.0},
    "consistency": {"consistency": 0.5},
    "consistency, no share at t = 1": {"consistency": 0.5, "one_step_share": 0.0},
    "kl 0": {"kl": 0.0},
    "kl 2e-3": {"kl": 2e-3},
    "velocity's weights": {"weighting": "velocity"},
    "velocity": {"prediction": "velocity"},
    "ddpm, x0": {"process": "ddpm"},
    "ddpm, eps": {"process": "ddpm", "prediction": "eps"},
    "the paper's": {"process": "ddpm", "prediction": "eps", "one_step_share": 0.0, "kl": 0.0},
}
PERCEPTUAL = {"lpips 0": {}, "lpips 0.05": {"lpips": 0.05}}


def variants(options) -> dict[str, dict[str, Any]]:
    """The changes to train with."""
    known = VARIANTS | (PERCEPTUAL if options.lpips else {})
    wanted = options.only.split(";") if options.only else list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UserError(f"--only={options.only}: {unknown[0]!r} is none of {'; '.join(known)}")
    return {name: known[name] for name in wanted}


def trained(options, name: str, changes: dict[str, Any]) -> pathlib.Path:
    """The folder of a run with these changes of the loss."""
    values = runpy.run_path(str(CONFIG))["get_config"](str(options.ratio)).to_dict()
    values["loss"] |= changes
    side = 32
    if name in PERCEPTUAL:
        values["loss"]["lpips_weights"], side = options.lpips, 64
    values["data"]["buckets"] = [
        bucket | {"batch_size": options.batch, "height": side, "width": side} for bucket in values["data"]["buckets"]
    ]
    values["loop"] |= {"steps": options.steps, "checkpoint_every": options.steps}
    label = "".join(c if c.isalnum() else "_" for c in name)
    folder = pathlib.Path(options.root) / f"{options.ratio}x_{options.steps}_{label}"
    train(run_config(values), folder)  # at once where it is finished
    return folder


def scores(folder: pathlib.Path, clips: list[np.ndarray]) -> dict[str, float]:
    """PSNR and sharpness of unseen clips by number of evaluations."""
    embedder, params = load_embedder(folder)
    found = {}
    for steps in DECODE_STEPS:
        again = dataclasses.replace(embedder, steps=steps)

        @jax.jit
        def reconstruct(params, video, key, again=again):
            return again.decode(params, again.encode(params, video), key)

        def one(video, reconstruct=reconstruct):
            drawn = reconstruct(params, video[None] / np.float32(127.5) - 1, jax.random.key(0))[0]
            return np.clip(np.round((np.asarray(drawn) + 1) * 127.5), 0, 255).astype(np.uint8)

        means = evaluate_reconstruction(one, ((str(i), clip) for i, clip in enumerate(clips)))["mean"]
        found |= {f"psnr_{steps}_db": means["psnr_db"], f"sharpness_{steps}": means["sharpness"]}
    return found


def terms(options) -> Iterator[dict[str, Any]]:
    """A row for each change, and the table."""
    table = {}
    for name, changes in variants(options).items():
        started = time.process_time()
        folder = trained(options, name, changes)
        train_cpu_s = time.process_time() - started
        side, frames = 64 if name in PERCEPTUAL else 32, options.ratio + 1
        world = SyntheticSource(seed=UNSEEN, split="held_out", num_clips=options.clips)
        clips = [world.read(i, np.random.default_rng(i), frames, side, side)["video"] for i in range(options.clips)]
        table[name] = scores(folder, clips)
        yield {
            "what": f"terms at {options.ratio}x, {name}",
            "device": device_name(),
            "changes": changes,
            "train_steps": options.steps,
            "train_batch": options.batch,
            "clips": options.clips,
            "shape": list(clips[0].shape),
            **table[name],
            "train_cpu_s": train_cpu_s,
        }
    columns = [f"psnr_{steps}_db" for steps in DECODE_STEPS] + [f"sharpness_{steps}" for steps in DECODE_STEPS]
    print(f"| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}", file=sys.stderr)
    for name, values in table.items():
        print(f"| {name} | " + " | ".join(f"{values[column]:.4g}" for column in columns) + " |", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="runs/regen_terms", help="folder of the trainings")
    parser.add_argument("--only", default=None, help="changes to train with, separated by ';'; all by default")
    parser.add_argument("--ratio", default=8, type=int, choices=(4, 8, 16, 32))
    parser.add_argument("--steps", default=400, type=at_least_one, help="of each training")
    parser.add_argument("--batch", default=8, type=at_least_one)
    parser.add_argument("--clips", default=64, type=at_least_one, help="unseen ones to reconstruct")
    parser.add_argument("--lpips", default=None, help="safetensors of LPIPS with VGG16, as FILE or TRUNK,HEADS")
    print_rows(parser, {"terms": terms})


if __name__ == "__main__":
    main()
