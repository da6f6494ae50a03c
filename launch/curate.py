"""Curate a folder of raw videos: shots, duplicates, quality, text, motion, captions, shards.

python launch/curate.py --videos=DIR --out=DIR
python launch/curate.py --videos=DIR --out=DIR --config.text.max_area=0.05 --dry_run

Run the same command again to go on after an interruption, or with other thresholds: what was
measured is kept.
"""

import command
from absl import flags

CONFIG = flags.DEFINE_string(
    "config",
    "curation/default",
    "A name in configs/, or a file. --config.KEY=VALUE sets a key; with --help its keys are "
    "listed.",
)
KEYS = flags.DEFINE_multi_string("config_key", [], "KEY=VALUE: the same as --config.KEY=VALUE.")
FLAGS = [
    flags.DEFINE_string("videos", "", "Folder of the raw videos, searched recursively."),
    flags.DEFINE_string("out", "", "Folder of the curation: tables, shards, report.html."),
    flags.DEFINE_string(
        "import_tars",
        "",
        "Folder of WebDataset's tar files (KEY.mp4, KEY.txt) to unpack to --videos first.",
    ),
    flags.DEFINE_string(
        "export_tars",
        "",
        "Folder for the packed clips as WebDataset's tar files, too.",
    ),
    flags.DEFINE_bool("retry_errors", False, "Try again what could not be read or packed."),
    flags.DEFINE_bool("dry_run", False, "Print the funnel for these thresholds; write no shards."),
    flags.DEFINE_string(
        "engine",
        "inline",
        "inline: one shard of videos after another; ray: on this machine's cores or a cluster; "
        "array: this job's part of an array of jobs.",
    ),
    flags.DEFINE_integer("task_index", None, "Of --engine=array; by default the scheduler's."),
    flags.DEFINE_integer("task_count", None, "Of --engine=array; by default the scheduler's."),
    flags.DEFINE_string("ray_address", None, "Of a Ray cluster; by default Ray starts here."),
]


def main():
    from xgen_jax.commands.config_file import load_curation
    from xgen_jax.curation import check_installed

    check_installed()
    config = load_curation(CONFIG.value, KEYS.value)
    # Only now, for it loads much, and a mistake in a key is reported sooner.
    from xgen_jax.commands.curate import CurateRequest, curate

    return curate(CurateRequest(config=config, **command.values(FLAGS)))


def keys_help():
    from xgen_jax.commands.config_file import config_help, load_curation

    return config_help(CONFIG.value, KEYS.value, load_curation)


if __name__ == "__main__":
    command.run(main, __doc__, more_help=keys_help)
