"""Encodes and decodes a video file, and writes original and reconstruction side by side.

python launch/reconstruct.py --embedder=runs/quickstart/vidvae --video=clip.mp4 --out=both.mp4
python launch/reconstruct.py --embedder=runs/quickstart/regen --video=clip.mp4 --speed=0.5
--out=slow.mp4
"""

import command
from absl import flags

EMBEDDER = flags.DEFINE_string(
    "embedder", None, "Folder of a VidVAE (a run, or converted weights) or a REGEN."
)
VIDEO = flags.DEFINE_string("video", None, "The video to reconstruct: mp4, webm, avi or gif.")
OUT = flags.DEFINE_string("out", None, "The .mp4 (or .webm, .gif) to write.")
FRAMES = flags.DEFINE_integer("frames", None, "Only so many frames from the start.", lower_bound=1)
STEPS = flags.DEFINE_integer(
    "steps", None, "Evaluations of a REGEN's decoder; by default its run's.", lower_bound=1
)
SPEED = flags.DEFINE_float(
    "speed",
    1.0,
    "0.5 is twice as slow, at the same frames a second; a REGEN draws what lies between.",
)
BETWEEN = flags.DEFINE_enum(
    "between",
    "interpolated",
    ["interpolated", "continuous"],
    "What is drawn between frames: see inference/slow_motion.",
)
MEMORY_BUDGET_GB = flags.DEFINE_float(
    "memory_budget_gb",
    None,
    "Device memory that may be used; chunks are as long as it allows, with the same result.",
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a file that is there.")


def main():
    from xgen_jax.commands.reconstruct import reconstruct_file

    return reconstruct_file(
        embedder=EMBEDDER.value,
        video=VIDEO.value,
        out=OUT.value,
        frames=FRAMES.value,
        steps=STEPS.value,
        speed=SPEED.value,
        between=BETWEEN.value,
        memory_budget_gb=MEMORY_BUDGET_GB.value,
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    command.run(main, __doc__)
