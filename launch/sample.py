"""Draws videos from text.

    python launch/sample.py --model=runs/quickstart/vdit --prompt="a red circle moving left" --out=circle.mp4
    python launch/sample.py --model=runs/quickstart/vdit --prompts_file=prompts.txt --out=videos/

A prompts file has one prompt a line; the videos are numbered by line, and those already in --out are not drawn again.
"""

import command
from absl import flags

MODEL = flags.DEFINE_string("model", None, "Run folder of a trained VDiT.")
PROMPT = flags.DEFINE_string("prompt", None, "One prompt; --out is then a file.")
PROMPTS_FILE = flags.DEFINE_string("prompts_file", None, "A text file of prompts, one a line; --out is then a folder.")
OUT = flags.DEFINE_string("out", None, "The .mp4 (or .webm, .gif), or the folder, to write.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise.", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", None, "Sampling steps; by default the run's.", lower_bound=1)
GUIDANCE_SCALE = flags.DEFINE_float("guidance_scale", None, "1 is no guidance; by default the run's.")
SAMPLERS = ["ancestral", "ddim", "dpm++2m", "euler", "heun", "unipc"]
SAMPLER = flags.DEFINE_enum("sampler", None, SAMPLERS, "Step rule; by default the run's.")
SIZE = flags.DEFINE_string("size", None, "HEIGHTxWIDTH in pixels; by default the size trained on.")
FRAMES = flags.DEFINE_integer("frames", None, "Length in frames; by default the length trained on.", lower_bound=1)
FPS = flags.DEFINE_float("fps", None, "Frames a second of the file; by default the run's.", lower_bound=0.1)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a file that is there.")
EMBEDDER = flags.DEFINE_string("embedder", None, "The embedder's run folder, if it was moved.")
TEXT_ENCODER = flags.DEFINE_string("text_encoder", None, "The folder of the run's T5, if it has one and it was moved.")
LORA = flags.DEFINE_string("lora", None, "An adapter of the model: FILE or FILE:SCALE, or the run that trained it.")


def main():
    from xgen_jax.inference.sample_files import sample_files

    return sample_files(
        model=MODEL.value,
        prompt=PROMPT.value,
        prompts_file=PROMPTS_FILE.value,
        out=OUT.value,
        size=SIZE.value,
        fps=FPS.value,
        overwrite=OVERWRITE.value,
        embedder=EMBEDDER.value,
        text_encoder=TEXT_ENCODER.value,
        lora=LORA.value,
        seed=SEED.value,
        steps=STEPS.value,
        guidance_scale=GUIDANCE_SCALE.value,
        sampler=SAMPLER.value,
        frames=FRAMES.value,
    )


if __name__ == "__main__":
    command.run(main, __doc__)
