"""Train the model of a config, or continue the run that the work folder holds.

python launch/train.py --config=quickstart/vidvae --workdir=runs/vidvae --config.loop.steps=5000
"""

import sys

import command
from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A name in configs/, or a file; NAME:ARGUMENT if it takes one. --config.KEY=VALUE sets a key.",
)
WORKDIR = flags.DEFINE_string("workdir", None, "Run folder: checkpoints, metrics, configuration.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Remove the run in --workdir, and start again.")


def main():
    from xgen_jax.commands.train import train
    from xgen_jax.config.runs import run_config
    from xgen_jax.errors import UserError

    if CONFIG.value is None or WORKDIR.value is None:
        raise UserError("give --config=FILE and --workdir=DIR")
    config = run_config(CONFIG.value.to_dict(), lambda line: print(line, file=sys.stderr))
    return train(config, WORKDIR.value, overwrite=OVERWRITE.value)


if __name__ == "__main__":
    command.run(main, __doc__)
