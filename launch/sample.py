"""Generates videos from text.

python launch/sample.py --model=runs/quickstart/vdit --prompt="a red circle moving left"
    --out=circle.mp4
python launch/sample.py --model=runs/quickstart/vdit --prompts_file=prompts.txt --out=videos/
python launch/sample.py --flagfile=configs/sampling/720p_14s.flags --model=DIR --prompt="..."
    --out=clip.mp4

A prompts file has one prompt a line; the videos are numbered by line, and those that exist in --out
are kept.
"""

import command
from absl import flags

SAMPLERS = ["ancestral", "ddim", "dpm++2m", "euler", "heun", "unipc"]
RENAMED = {"piece_frames": "segment_frames"}  # old -> new; the old flag works for one release
text, integer, number = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
FLAGS = [
    text("model", None, "Run folder of a trained VDiT."),
    text("prompt", None, "One prompt; --out is then a file."),
    text("prompts_file", None, "A text file of prompts, one a line; --out is then a folder."),
    text("out", None, "The .mp4 (or .webm, .gif), or the folder, to write."),
    integer("seed", 0, "Of the noise.", lower_bound=0),
    integer("steps", None, "Sampling steps; by default the run's.", lower_bound=1),
    number("guidance_scale", None, "1 is no guidance; by default the run's."),
    flags.DEFINE_enum("sampler", None, SAMPLERS, "By default the run's."),
    text("spacing", None, "Time grid by name, see docs/sampling.md; by default the run's."),
    integer("steps_offset", None, "Of a leading spacing; 1 in Stable Diffusion.", lower_bound=0),
    flags.DEFINE_bool("set_alpha_to_one", None, "Of a ddim_ spacing: end on data, not on step 0."),
    text("negative_prompt", None, "What to guide away from; by default the empty prompt."),
    integer(
        "scale", None, "Enlarges by this factor; by default up to a side of 256.", lower_bound=1
    ),
    text("size", None, "HEIGHTxWIDTH in pixels; by default the size trained on."),
    integer("frames", None, "Length; by default the length trained on.", lower_bound=1),
    number("fps", None, "Frames per second; by default the run's.", lower_bound=0.1),
    text("condition_image", None, "An image file (PNG, JPEG, ...) that each video begins with."),
    text("condition_video", None, "A video file; each video begins with its last frames."),
    integer("segment_frames", None, "Frames at once; by default as in training.", lower_bound=1),
    integer("overlap", None, "Latent frames that segments share; by default 1/4.", lower_bound=1),
    integer("batch_size", None, "Prompts at once; by default enough for devices.", lower_bound=1),
    flags.DEFINE_bool("overwrite", False, "Replace videos that exist."),
    text("embedder", None, "The embedder's run folder, if it is no longer where the run found it."),
    text("text_encoder", None, "The folder of the run's T5, likewise."),
    text("lora", None, "An adapter of the model: FILE or FILE:SCALE, or the run that trained it."),
    text(
        "restore", "latest", "Checkpoint: latest, latest_good (the newest whole), best, or a step."
    ),
    text("text_cache", None, "Folder for embeddings of prompts."),
    flags.DEFINE_enum(
        "compute_dtype", None, ["bfloat16", "float32"], "By default the one trained in."
    ),
    text("attention", None, "Implementation of attention; by default the one trained with."),
    flags.DEFINE_bool("offload", False, "Transformer and decoder on the devices in turns."),
    number("memory_budget_gb", None, "What a device may use, in GB (1e9 bytes)."),
]
PROCESSES = command.process_flags()


def main():
    from xgen_jax.commands.sample import SampleRequest, sample_files

    request = SampleRequest(**command.values(FLAGS))
    return command.in_processes(PROCESSES, lambda: sample_files(request))


if __name__ == "__main__":
    command.run(main, __doc__, renamed=RENAMED)
