"""Terms of REGEN's loss, one change at a time, with the tiny preset; one JSON line per row on
stdout.

python benchmarks/regen_terms.py [--rows=terms] [--only='chosen;kl 0'] [--ratio=8]
    [--root=runs/regen_terms] [--steps=400] [--batch=8] [--clips=64] [--lpips=FILE]
python benchmarks/regen_terms.py --rows=bound
    --embedders=runs/quickstart/regen,runs/quickstart/vidvae [--prompts=512]

`terms` trains configs/quickstart/regen.py for a short time with each change of the loss, on moving
shapes at 32x32, and reconstructs unseen clips with 1, 4 and 16 evaluations. `chosen` is the config
as it is; the other names say what differs. A training that is in the folder is not repeated. With
--lpips, the safetensors of LPIPS, there are also rows with that term, at 64x64. The table goes to
stderr. `bound` scores reconstructions with the caption verifier.
"""

import argparse
import pathlib
import runpy
import sys
import time
from collections.abc import Iterator
from typing import Any

from rows import at_least_one, device_name, print_rows  # isort: skip  (it sets the environment)

import numpy as np

from xgen_jax.commands.train import train
from xgen_jax.config.runs import run_config
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.errors import UserError
from xgen_jax.evaluation.captions import score
from xgen_jax.evaluation.reconstruction import evaluate_reconstruction
from xgen_jax.inference.reconstruct import load_reconstructor
from xgen_jax.runs.folder import RunFolder

CONFIG = pathlib.Path(__file__).resolve().parents[1] / "configs" / "quickstart" / "regen.py"
DECODE_STEPS = (1, 4, 16)
UNSEEN = 10_000  # seed of clips that no training has
# With eps the errors of x0 near t = 1 are a hundred times as large: no other term counts.
EPS = {"process": "ddpm", "prediction": "eps", "motion": 0.0, "gradient": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "chosen": {},
    "motion 0": {"motion": 0.0},
    "none at t = 1": {"one_step_fraction": 0.0},
    "consistency 0.5": {"consistency": 0.5},
    "none at t = 1, consistency 0.5": {"one_step_fraction": 0.0, "consistency": 0.5},
    "kl 0": {"kl": 0.0},
    "velocity": {"prediction": "velocity"},
    "ddpm, eps": EPS,
    "ddpm, eps, none at t = 1, kl 0 (the paper's)": {**EPS, "one_step_fraction": 0.0, "kl": 0.0},
    "all at t = 1": {"one_step_fraction": 1.0},
    "velocity's weights": {"weighting": "velocity"},
    "ddpm, x0": {"process": "ddpm"},
    "kl 2e-3": {"kl": 2e-3},
}
PERCEPTUAL = {"lpips 0": {}, "lpips 0.05": {"lpips": 0.05}}


def variants(options) -> dict[str, dict[str, Any]]:
    """Select the changes to train with."""
    known = VARIANTS | (PERCEPTUAL if options.lpips else {})
    wanted = options.only.split(";") if options.only else list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UserError(f"--only={options.only}: {unknown[0]!r} is none of {'; '.join(known)}")
    return {name: known[name] for name in wanted}


def trained(options, name: str, changes: dict[str, Any]) -> pathlib.Path:
    """Train a run with these changes of the loss, and return its folder."""
    values = runpy.run_path(str(CONFIG))["get_config"](str(options.ratio)).to_dict()
    values["loss"] |= changes
    side = 32
    if name in PERCEPTUAL:
        values["loss"]["lpips_weights"], side = options.lpips, 64
    values["data"]["buckets"] = [
        bucket | {"batch_size": options.batch, "height": side, "width": side}
        for bucket in values["data"]["buckets"]
    ]
    values["loop"] |= {"steps": options.steps, "checkpoint_every": options.steps}
    label = "".join(c if c.isalnum() else "_" for c in name)
    folder = pathlib.Path(options.root) / f"{options.ratio}x_{options.steps}_{label}"
    train(run_config(values), folder)  # returns at once if it is finished
    return folder


def unseen(count: int, frames: int, side: int) -> tuple[list[np.ndarray], list[dict[str, str]]]:
    """Read clips of combinations that no training has, and their attributes."""
    source = SyntheticSource(seed=UNSEEN, split="held_out", num_clips=count)
    clips = [source.read(i, None, frames, side, side)["video"] for i in range(count)]
    return clips, [source.scene(i)[0].attributes for i in range(count)]


def terms(options) -> Iterator[dict[str, Any]]:
    """Make a row for each change, and print the table."""
    table = {}
    for name, changes in variants(options).items():
        started = time.process_time()
        folder = trained(options, name, changes)
        train_cpu_s = time.process_time() - started
        clips, _ = unseen(options.clips, options.ratio + 1, 64 if name in PERCEPTUAL else 32)
        table[name] = {}
        for steps in DECODE_STEPS:
            numbered = ((str(i), clip) for i, clip in enumerate(clips))
            means = evaluate_reconstruction(load_reconstructor(folder, steps=steps), numbered)[
                "mean"
            ]
            table[name] |= {
                f"psnr_{steps}_db": means["psnr_db"],
                f"sharpness_{steps}": means["sharpness"],
            }
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
    columns = [f"psnr_{steps}_db" for steps in DECODE_STEPS] + [
        f"sharpness_{steps}" for steps in DECODE_STEPS
    ]
    print(f"| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}", file=sys.stderr)
    for name, values in table.items():
        print(
            f"| {name} | " + " | ".join(f"{values[column]:.4g}" for column in columns) + " |",
            file=sys.stderr,
        )


def bound(options) -> Iterator[dict[str, Any]]:
    """Score clips and their reconstructions with the caption verifier: an upper bound for a
    transformer on these latents.
    """
    for folder in options.embedders.split(","):
        config = RunFolder(folder).config()
        frames, height, _ = RunFolder(folder).shapes("embedders")[0]
        clips, shown = unseen(options.prompts, frames, height)
        for steps in DECODE_STEPS if config.objective == "regen" else (None,):
            reconstruct = load_reconstructor(folder, steps=steps)
            decoded = [reconstruct(clip) for clip in clips]
            following = iter(decoded)
            numbered = ((str(i), clip) for i, clip in enumerate(clips))
            means = evaluate_reconstruction(
                lambda _, following=following: next(following), numbered
            )["mean"]
            yield {
                "what": f"bound, {pathlib.Path(folder).name}, {steps or 1} evaluations",
                "device": device_name(),
                "clips": options.prompts,
                "shape": list(clips[0].shape),
                **{name: means[name] for name in ("psnr_db", "ssim", "sharpness")},
                "accuracy": score(decoded, shown),
                "accuracy_of_originals": score(clips, shown)["all"],
            }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", default="runs/regen_terms", help="folder of the trainings")
    parser.add_argument(
        "--only", default=None, help="changes to train with, separated by ';'; all by default"
    )
    parser.add_argument("--ratio", default=8, type=int, choices=(4, 8, 16, 32))
    parser.add_argument("--steps", default=400, type=at_least_one, help="steps of each training")
    parser.add_argument("--batch", default=8, type=at_least_one)
    parser.add_argument(
        "--clips", default=64, type=at_least_one, help="unseen clips to reconstruct"
    )
    parser.add_argument(
        "--lpips", default=None, help="safetensors of LPIPS with VGG16, as FILE or TRUNK,HEADS"
    )
    parser.add_argument(
        "--embedders", default="runs/quickstart/regen", help="folders for `bound`, separated by ','"
    )
    parser.add_argument("--prompts", default=512, type=at_least_one, help="clips for `bound`")
    print_rows(parser, {"terms": terms, "bound": bound})


if __name__ == "__main__":
    main()
