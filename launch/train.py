"""Train the model of a config, or continue the run that the work folder holds.

python launch/train.py --config=quickstart/vidvae --workdir=runs/vidvae --config.loop.steps=5000
python launch/train.py --config=quickstart/vidvae --help
"""

import sys

import command
from absl import flags

CONFIG = flags.DEFINE_string(
    "config",
    None,
    "A name in configs/, or a file; NAME:ARGUMENT if it takes one. --config.KEY=VALUE sets a key; "
    "with --help its keys are listed.",
)
KEYS = flags.DEFINE_multi_string("config_key", [], "KEY=VALUE: the same as --config.KEY=VALUE.")
WORKDIR = flags.DEFINE_string("workdir", None, "Run folder: checkpoints, metrics, configuration.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Remove the run in --workdir, and start again.")
ACCEPT_CHANGES = flags.DEFINE_bool(
    "accept_changes",
    False,
    "Go on with the run in --workdir although its data, schedule or loss has changed; run.json "
    "notes what.",
)
RESTORE = flags.DEFINE_enum(
    "restore",
    "latest",
    ["latest", "latest_good"],
    "Checkpoint to go on from: latest_good steps over damaged ones, and renames them.",
)
PROCESSES = command.process_flags()


def main():
    from xgen_jax.commands.config_file import load_config
    from xgen_jax.errors import UserError

    if CONFIG.value is None or WORKDIR.value is None:
        raise UserError("give --config=FILE and --workdir=DIR")
    config = load_config(CONFIG.value, KEYS.value, lambda line: print(line, file=sys.stderr))

    def call():
        # Only now, for it loads jax, and a mistake in a key is reported sooner.
        from xgen_jax.commands.train import train

        return train(config, WORKDIR.value, OVERWRITE.value, ACCEPT_CHANGES.value, RESTORE.value)

    return command.in_processes(PROCESSES, call)


def keys_help():
    from xgen_jax.commands.config_file import config_help

    return config_help(CONFIG.value, KEYS.value) if CONFIG.value else ""


if __name__ == "__main__":
    command.run(main, __doc__, more_help=keys_help)
