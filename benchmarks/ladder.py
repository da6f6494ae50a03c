"""What each rung of configs/finetune needs: its train step, compiled for the rung's device.

JAX_PLATFORMS=cpu python benchmarks/ladder.py [--only=vidvae:12gb,vdit:24gb]

No GPU is needed, but its compiler: pip install ".[gpu]". One JSON line per row on stdout; the peak
is that of the compiled program, parameters, optimiser and EMA included. The embedder of a
transformer is in memory only where it trains on videos instead of latents.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from rows import print_rows  # isort: skip  (it sets the environment)

from xgen_jax.commands.config_file import load_config
from xgen_jax.commands.plan import compile_train_step
from xgen_jax.config.runs import VDiTRun
from xgen_jax.configs.finetune.ladder import RUNGS
from xgen_jax.errors import choose
from xgen_jax.models.vidvae_config import PRESETS

FAMILIES = ("vidvae", "vdit", "vdit_lora", "regen")
DEVICES = {"cpu": "cpu", "12gb": "gpu:4070", "24gb": "gpu:4090", "80gb": "gpu:h100"}


def steps(options) -> Iterator[dict[str, Any]]:
    """Make a row for each configuration and rung."""
    known = [f"{family}:{name}" for family in FAMILIES for name in RUNGS]
    wanted = options.only.split(",") if options.only else known
    for what in wanted:
        name = choose("--only", what, known).split(":")[1]
        config = load_config(f"finetune/{what}", options.set)
        embedder = PRESETS[RUNGS[name].size] if isinstance(config, VDiTRun) else None
        report = compile_train_step(config, DEVICES[name], embedder)
        peak = report["peak_bytes"]
        report["peak_gib"] = peak and round(peak / 2**30, 2)
        yield {"what": f"finetune/{what}", **report}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="configurations and rungs, with commas between")
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the configuration")
    print_rows(parser, {"steps": steps})


if __name__ == "__main__":
    main()
