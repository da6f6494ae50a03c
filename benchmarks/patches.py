"""Tiny decoders by mesh, grain and error, one change at a time; one JSON line per row on stdout.

python benchmarks/patches.py [--config=vidvae] [--only='chosen;head'] [--steps=600]
    [--root=runs/patches] [--clips=64]
python benchmarks/patches.py --config=vidvae:videos --videos=FOLDER --held_out=FOLDER
python benchmarks/patches.py --config=regen [--size=48] [--batch=4]

Trains configs/quickstart/vidvae.py or regen.py for some steps with each change, and scores unseen
clips: of the moving shapes, or of the folder --held_out. `chosen` is the config as it is; the other
names say what differs. A training that is in the folder is not repeated. The table goes to stderr.
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
from xgen_jax.data.sources.base import Source
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.errors import UserError, choose
from xgen_jax.evaluation.reconstruction import evaluate_reconstruction
from xgen_jax.inference.reconstruct import load_reconstructor

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs" / "quickstart"
UNSEEN = 10_000  # seed of clips that no training has
SCORES = ("psnr_db", "ssim", "sharpness", "blockiness")
HEAD, NO_HEAD = {"model.head_channels": 8}, {"model.head_channels": 0}
NO_GRADIENT = {"loss.gradient": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "chosen": {},
    "no head, no gradient term": NO_HEAD | NO_GRADIENT,
    "head": HEAD | NO_GRADIENT,
    "head, gradient 0.05": HEAD | {"loss.gradient": 0.05},
    "head, gradient 0.1": HEAD | {"loss.gradient": 0.1},
    "head, gradient 0.2": HEAD | {"loss.gradient": 0.2},
    "head, gradient 0.3": HEAD | {"loss.gradient": 0.3},
}
OF_REGEN = {
    "attention in 3x3": {"model.attention_window": (3, 3)},
    "patch 16, head": {"model.latent_patch": 2} | HEAD,
}
OF_VIDVAE = {
    "stem_hidden 128": {"model.stem_hidden": 128},
    "8 latent channels": {"model.latent_channels": 8},
    "16 latent channels": {"model.latent_channels": 16},
}


def variants(options) -> dict[str, dict[str, Any]]:
    """Select the changes to train with."""
    known = VARIANTS | (OF_REGEN if options.config == "regen" else OF_VIDVAE)
    wanted = options.only.split(";") if options.only else list(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise UserError(f"--only={options.only}: {unknown[0]!r} is none of {'; '.join(known)}")
    return {name: known[name] for name in wanted}


def values_of(options, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the config with changes, dotted keys."""
    name, *argument = choose("config", options.config, ("vidvae", "vidvae:videos", "regen")).split(
        ":"
    )
    values = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"](*argument).to_dict()
    changes = changes | ({"loop.steps": options.steps} if options.steps else {})
    if argument:
        if not (options.videos and options.held_out):
            raise UserError("give --videos=FOLDER, to train on, and --held_out=FOLDER, to score")
        changes |= {"data.source.path": options.videos, "data.source.held_out_fraction": 0.0}
    given = {"height": options.size, "width": options.size, "batch_size": options.batch}
    given = {key: value for key, value in given.items() if value}
    values["data"]["buckets"] = [bucket | given for bucket in values["data"]["buckets"]]
    for key, value in changes.items():
        group = values
        *groups, last = key.split(".")
        for part in groups:
            group = group[part]
        group[last] = value
    return values


def changes(options) -> Iterator[dict[str, Any]]:
    """Make a row for each change, and print the table."""
    print(f"| | {' | '.join(SCORES)} |\n|---|{'---:|' * len(SCORES)}", file=sys.stderr)
    for name, changed in variants(options).items():
        run = run_config(values_of(options, changed))
        label = "".join(c if c.isalnum() else "_" for c in f"{options.config} {name}")
        bucket = run.data.buckets[0]
        folder = f"{label}_{run.loop.steps}_{bucket.width}px_{bucket.batch_size}"
        folder = pathlib.Path(options.root) / folder
        started, started_cpu = time.perf_counter(), time.process_time()
        train(run, folder)  # returns at once if it is finished
        took = {
            "train_s": time.perf_counter() - started,
            "train_cpu_s": time.process_time() - started_cpu,
        }
        reconstruct, shape = load_reconstructor(folder), run.data.buckets[0].shape
        source: Source = (
            VideoFolderSource(options.held_out, require_captions=False)
            if options.held_out
            else SyntheticSource(seed=UNSEEN, split="held_out", num_clips=options.clips)
        )
        clips = (
            (source.where(i), source.read(i, np.random.default_rng((0, i)), *shape)["video"])
            for i in range(min(options.clips, len(source)))
        )
        result = evaluate_reconstruction(reconstruct, clips, patch=reconstruct.embedder.patch)
        scores = {key: result["mean"][key] for key in SCORES}
        figures = " | ".join(f"{value:.4g}" for value in scores.values())
        print(f"| {name} | {figures} |", file=sys.stderr)
        yield {
            "what": f"{options.config}, {name}",
            "device": device_name(),
            "changes": changed,
            "train_steps": run.loop.steps,
            "clips": result["clips"],
            "shape": list(shape),
            **scores,
            **took,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="vidvae", help="vidvae, vidvae:videos or regen")
    parser.add_argument("--only", help="names of changes, with semicolons between")
    parser.add_argument("--steps", type=at_least_one, help="of each training; the config's")
    parser.add_argument("--size", type=at_least_one, help="side of the clips; the config's")
    parser.add_argument("--batch", type=at_least_one, help="clips a step; the config's")
    parser.add_argument("--clips", type=at_least_one, default=64)
    parser.add_argument("--root", default="runs/patches", help="folder of the trainings")
    parser.add_argument("--videos", help="folder to train on")
    parser.add_argument("--held_out", help="folder to score")
    print_rows(parser, {"changes": changes})


if __name__ == "__main__":
    main()
