"""Trains the model of a configuration, or goes on training it when the work folder already holds
this run.

python launch/train.py --config=configs/quickstart/vidvae.py --workdir=runs/vidvae
[--config.loop.steps=5000 ...]
"""

import command  # first: it sets the environment jax reads at import
from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file in configs/; --config.key=value changes a key."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Run folder: checkpoints, metrics, configuration.")
OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Start anew, removing the run that is in --workdir."
)


def main():
    from xgen_jax.commands.train import train
    from xgen_jax.config.runs import run_config
    from xgen_jax.errors import UserError

    if CONFIG.value is None or WORKDIR.value is None:
        raise UserError("give --config=FILE and --workdir=DIR")
    return train(run_config(CONFIG.value.to_dict()), WORKDIR.value, overwrite=OVERWRITE.value)


if __name__ == "__main__":
    command.run(main, __doc__)
