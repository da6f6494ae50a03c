"""Draws videos from text.

    python launch/sample.py --model=runs/quickstart/vdit --prompt="a red circle moving left"
    --out=circle.mp4 python launch/sample.py --model=runs/quickstart/vdit --prompts_file=prompts.txt
    --out=videos/ python launch/sample.py --flagfile=configs/sampling/720p_14s.flags --model=DIR
    --prompt="..." --out=clip.mp4

A prompts file has one prompt a line; the videos are numbered by line, and those already in --out
are not drawn again.
"""

import command
from absl import flags

SAMPLERS = ["ancestral", "ddim", "dpm++2m", "euler", "heun", "unipc"]
FLAGS = [
    flags.DEFINE_string("model", None, "Run folder of a trained VDiT."),
    flags.DEFINE_string("prompt", None, "One prompt; --out is then a file."),
    flags.DEFINE_string(
        "prompts_file", None, "A text file of prompts, one a line; --out is then a folder."
    ),
    flags.DEFINE_string("out", None, "The .mp4 (or .webm, .gif), or the folder, to write."),
    flags.DEFINE_integer("seed", 0, "Of the noise.", lower_bound=0),
    flags.DEFINE_integer("steps", None, "Sampling steps; by default the run's.", lower_bound=1),
    flags.DEFINE_float("guidance_scale", None, "1 is no guidance; by default the run's."),
    flags.DEFINE_enum("sampler", None, SAMPLERS, "Step rule; by default the run's."),
    flags.DEFINE_string("size", None, "HEIGHTxWIDTH in pixels; by default the size trained on."),
    flags.DEFINE_integer(
        "frames", None, "Length in frames; by default the length trained on.", lower_bound=1
    ),
    flags.DEFINE_float(
        "fps", None, "Frames a second, told and written; by default the run's.", lower_bound=0.1
    ),
    flags.DEFINE_string(
        "condition_image", None, "A PNG, JPEG or WebP file that each video begins with."
    ),
    flags.DEFINE_string(
        "condition_video", None, "A video file with whose last frames each video begins."
    ),
    flags.DEFINE_integer(
        "piece_frames", None, "Frames at once; by default the longest trained on.", lower_bound=1
    ),
    flags.DEFINE_integer(
        "overlap",
        None,
        "Latent frames given to the next piece; by default a quarter.",
        lower_bound=1,
    ),
    flags.DEFINE_integer(
        "batch_size", None, "Prompts at once; by default what keeps devices busy.", lower_bound=1
    ),
    flags.DEFINE_bool("overwrite", False, "Replace what is there."),
    flags.DEFINE_string("embedder", None, "The embedder's run folder, if it was moved."),
    flags.DEFINE_string(
        "text_encoder", None, "The folder of the run's T5, if it has one and it was moved."
    ),
    flags.DEFINE_string(
        "lora", None, "An adapter of the model: FILE or FILE:SCALE, or the run that trained it."
    ),
    flags.DEFINE_string("text_cache", None, "Where embeddings of prompts are kept."),
    flags.DEFINE_enum(
        "compute_dtype", None, ["bfloat16", "float32"], "By default the one trained in."
    ),
    flags.DEFINE_string(
        "attention", None, "Implementation of attention; by default the one trained with."
    ),
    flags.DEFINE_bool(
        "offload", False, "Transformer and decoder on the devices in turn, not both."
    ),
    flags.DEFINE_float(
        "memory_budget_gb", None, "What a device may use; chunks and --offload follow from it."
    ),
]


def main():
    from xgen_jax.commands.sample import sample_files

    return sample_files(**{flag.name: flag.value for flag in FLAGS})


if __name__ == "__main__":
    command.run(main, __doc__)
