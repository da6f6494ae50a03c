"""Encodes and decodes a video file, and writes original and reconstruction side by side.

python launch/reconstruct.py --embedder=runs/quickstart/vidvae --video=clip.mp4 --out=both.mp4
python launch/reconstruct.py --embedder=runs/quickstart/regen --video=clip.mp4 --speed=0.5
    --out=slow.mp4
python launch/reconstruct.py --embedder=runs/vidvae --video=film.mkv --start=61.5 --frames=97
    --out=both.mp4
"""

import command
from absl import flags

FLAGS = [
    flags.DEFINE_string(
        "embedder", None, "Folder of a VidVAE (a run, or converted weights) or a REGEN."
    ),
    flags.DEFINE_string(
        "video", None, "The video to reconstruct: mp4, mov, webm, mkv, avi, gif, ..."
    ),
    flags.DEFINE_string("out", None, "The .mp4 (or .webm, .gif) to write."),
    flags.DEFINE_float(
        "start", 0.0, "Seconds from which the video is taken; 0 is its beginning.", lower_bound=0.0
    ),
    flags.DEFINE_integer(
        "frames", None, "Number of frames from --start at most; by default all.", lower_bound=1
    ),
    flags.DEFINE_integer(
        "steps", None, "Evaluations of a REGEN's decoder; by default its run's.", lower_bound=1
    ),
    flags.DEFINE_float(
        "speed", 1.0, "0.5 is twice as slow, at the same frames per second; for a REGEN."
    ),
    flags.DEFINE_enum(
        "between",
        "interpolated",
        ["interpolated", "continuous"],
        "How frames between the encoded ones are decoded: see inference/resample_time.",
    ),
    flags.DEFINE_float(
        "memory_budget_gb",
        None,
        "Device memory to use, in GB (1e9 bytes); chunks are as long as it allows.",
    ),
    flags.DEFINE_string(
        "restore", "latest", "Checkpoint: latest, latest_good (the newest whole), best, or a step."
    ),
    flags.DEFINE_bool("overwrite", False, "Replace a file that exists."),
]


def main():
    from xgen_jax.commands.reconstruct import ReconstructRequest, reconstruct_file

    return reconstruct_file(ReconstructRequest(**command.values(FLAGS)))


if __name__ == "__main__":
    command.run(main, __doc__)
