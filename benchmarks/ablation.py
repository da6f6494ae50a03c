"""Effect of process, sampler, steps and guidance on samples of the tiny model; one JSON line per
row on stdout.

python benchmarks/ablation.py [--rows=steps,guidance] [--root=runs/quickstart] [--count=128]
[--seed=11]

Trains those of the quickstart's three models that are not in the folder yet (about twenty minutes
on two cores), samples held-out prompts, and scores the samples with the caption verifier. `steps`:
both processes with Euler and DPM-Solver++(2M) in 4 to 32 steps at guidance 3. `guidance`: both in
16 steps of DPM-Solver++(2M). `all` is the fraction of videos with all five attributes right. Tables
of both go to stderr.
"""

import argparse
import pathlib
import runpy
import sys
import time
from collections.abc import Iterator
from typing import Any

from rows import at_least_one, device_name, print_rows  # isort: skip  (it sets the environment)

from xgen_jax.commands.train import train
from xgen_jax.config.runs import run_config
from xgen_jax.data.sources.synthetic import held_out_prompts
from xgen_jax.evaluation.captions import evaluate_captions
from xgen_jax.inference.text_to_video import load_text_to_video

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs" / "quickstart"
PROCESSES = {"flow": "vdit", "ddpm": "vdit_ddpm"}
SAMPLERS = ("euler", "dpm++2m")
STEPS = (4, 8, 16, 32)
SCALES = (1.0, 2.0, 3.0, 5.0, 7.0)


def trained(root: str, name: str) -> pathlib.Path:
    """Train a run of the quickstart to its end, and return its folder."""
    folder = pathlib.Path(root) / name
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    if "embedder" in config:
        config.embedder = str(trained(root, "vidvae"))
    train(run_config(config.to_dict()), folder)  # returns at once if it is finished
    return folder


def score(model, options, **settings) -> dict[str, float]:
    """Sample the prompts: the fraction of videos with each attribute right, and with all."""

    def generate(prompts, seed):
        return list(model(prompts, seed, **settings))

    prompts = held_out_prompts(options.count, options.seed)
    return evaluate_captions(generate, prompts=prompts, seed=options.seed).scores["accuracy"]


def rows(
    options, group: str, cells: list[tuple[dict[str, Any], str, str]]
) -> Iterator[dict[str, Any]]:
    """Make a row for each process and cell (settings, row, column), and print the table."""
    table = {}
    for process, name in PROCESSES.items():
        model = load_text_to_video(trained(options.root, name))
        for settings, line, column in cells:
            started = time.perf_counter()
            accuracy = score(model, options, **settings)
            table.setdefault(f"{process}, {line}", {})[column] = accuracy["all"]
            yield {
                "what": f"{group}, {process}",
                "device": device_name(),
                "prompts": options.count,
                "seed": options.seed,
                **settings,
                **accuracy,
                "time_s": time.perf_counter() - started,
            }
    columns = list(dict.fromkeys(column for *_, column in cells))
    print(f"| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}", file=sys.stderr)
    for line, values in table.items():
        print(
            f"| {line} | "
            + " | ".join(f"{100 * values[column]:.1f}%" for column in columns)
            + " |",
            file=sys.stderr,
        )


def steps(options) -> Iterator[dict[str, Any]]:
    cells = [
        ({"sampler": sampler, "steps": steps, "guidance_scale": 3.0}, sampler, f"{steps} steps")
        for sampler in SAMPLERS
        for steps in STEPS
    ]
    yield from rows(options, "steps", cells)


def guidance(options) -> Iterator[dict[str, Any]]:
    common = {"sampler": "dpm++2m", "steps": 16}
    cells = [
        ({**common, "guidance_scale": scale}, "dpm++2m, 16 steps", f"{scale:g}") for scale in SCALES
    ]
    yield from rows(options, "guidance", cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", default="runs/quickstart", help="folder of the quickstart's runs")
    parser.add_argument("--count", default=128, type=at_least_one, help="prompts per row")
    parser.add_argument("--seed", default=11, type=int, help="seed of prompts and noise")
    print_rows(parser, {"steps": steps, "guidance": guidance})


if __name__ == "__main__":
    main()
