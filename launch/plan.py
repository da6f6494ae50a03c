"""Plans a run before anything is rented: does it fit, how long at least, at what cost? The program
that the run would execute is compiled for the devices, on any CPU host.

python launch/plan.py --config=vdit/480p --topology=v5p:4x4x4
python launch/plan.py --config=finetune/vidvae:24gb --topology=gpu:4090 --largest_batch
python launch/plan.py --config=vdit/720p --topology=gpu:h100:8 --what=sample --frames=113 \
    --size=720x1280 --dollars_per_hour=3

Topologies: v4, v5e, v5p, v6e or tpu7x with chips along each axis; gpu:NAME:NUMBER with 4070, 4090,
a100, b200, h100, h200 or l40s, of which hosts have 8; cpu:NUMBER. They need the compilers of
pip install -e ".[plan]" (TPU) and ".[gpu]". The plan is printed on stderr.
"""

import sys

import command
from absl import flags

text, integer = flags.DEFINE_string, flags.DEFINE_integer
CONFIG = text(
    "config",
    None,
    "A name in configs/, or a file; NAME:ARGUMENT if it takes one. --config.KEY=VALUE sets a key; "
    "with --help its keys are listed.",
)
KEYS = flags.DEFINE_multi_string("config_key", [], "KEY=VALUE: the same as --config.KEY=VALUE.")
FLAGS = [
    text("topology", None, "Devices to compile for, e.g. v5p:4x4x4, gpu:h100:8 or cpu:8."),
    integer("slices", 1, "Slices of TPUs, joined by the data center's network.", lower_bound=1),
    flags.DEFINE_enum(
        "what", "train", ["train", "sample", "encode", "decode"], "The program to compile."
    ),
    text("bucket", None, "FRAMESxHEIGHTxWIDTH; by default the run's largest."),
    integer("batch_size", None, "Clips at once on all devices together.", lower_bound=1),
    text("size", None, "HEIGHTxWIDTH in pixels of videos to sample, encode or decode."),
    integer("frames", None, "Length of these videos.", lower_bound=1),
    text("embedder", None, "Run folder or preset on whose latents a vdit run works."),
    flags.DEFINE_float(
        "dollars_per_hour", None, "Of one chip or GPU, to print what the run costs."
    ),
    flags.DEFINE_bool("largest_batch", False, "Find the largest batch that fits; compiles many."),
]


def main():
    from xgen_jax.environment import compile_only
    from xgen_jax.errors import UserError

    values = command.values(FLAGS)
    if CONFIG.value is None or values["topology"] is None:
        raise UserError("give --config=FILE and --topology=DEVICES, e.g. v5p:4x4x4 or gpu:h100:8")
    compile_only(values["topology"])
    from xgen_jax.commands.config_file import load_config
    from xgen_jax.commands.plan import PlanRequest, plan

    config = load_config(CONFIG.value, KEYS.value, lambda line: print(line, file=sys.stderr))
    return plan(PlanRequest(config=config, **values))


def keys_help():
    from xgen_jax.commands.config_file import config_help

    return config_help(CONFIG.value, KEYS.value) if CONFIG.value else ""


if __name__ == "__main__":
    command.run(main, __doc__, more_help=keys_help)
