"""Scores a trained model and keeps what it was scored on.

    python launch/evaluate.py --suite=reconstruction --embedder=runs/quickstart/vidvae
    --out=runs/quickstart/evaluation python launch/evaluate.py --suite=captions
    --model=runs/quickstart/vdit --out=runs/quickstart/evaluation python launch/evaluate.py
    --suite=report --out=runs/quickstart

`reconstruction` takes the clips of a folder (--data), or held-out clips of the world of moving
shapes; --shapes=paper scores 1x768x768, 17x512x512 and 65x256x256, with the paper's figures beside.
`captions` draws held-out prompts and reads colour, shape, direction, size and background from the
pixels. `report` writes the page of a quickstart folder.
"""

import command
from absl import flags

SUITE = flags.DEFINE_enum("suite", None, ["reconstruction", "captions", "report"], "What to do.")
EMBEDDER = flags.DEFINE_string(
    "embedder", None, "Run folder of a trained VidVAE or REGEN (reconstruction)."
)
MODEL = flags.DEFINE_string("model", None, "Run folder of a trained VDiT (captions).")
DATA = flags.DEFINE_string(
    "data", None, "Folder of videos; without it held-out synthetic clips (reconstruction)."
)
OUT = flags.DEFINE_string(
    "out", None, "Folder for the results; for report the quickstart folder itself."
)
COUNT = flags.DEFINE_integer("count", 64, "How many clips or prompts.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the clips, prompts and noise.", lower_bound=0)
STEPS = flags.DEFINE_integer(
    "steps", None, "Of sampling, or of a REGEN's decoder; else its run's.", lower_bound=1
)
GUIDANCE_SCALE = flags.DEFINE_float("guidance_scale", None, "By default the run's.")
SHAPES = flags.DEFINE_list(
    "shapes",
    None,
    "FRAMESxHEIGHTxWIDTH,... of the clips, or paper (reconstruction); by default the shape trained on.",
)
LPIPS = flags.DEFINE_list(
    "lpips",
    None,
    "VGG16 or AlexNet LPIPS weights, FILE.safetensors or TRUNK,HEADS; without it LPIPS is left out.",
)


def main():
    from xgen_jax.commands import evaluate as suites
    from xgen_jax.evaluation.report import write_report

    match SUITE.value:
        case "reconstruction":
            return suites.reconstruction_suite(
                embedder=EMBEDDER.value,
                data=DATA.value,
                out=OUT.value,
                count=COUNT.value,
                seed=SEED.value,
                shapes=SHAPES.value,
                lpips=LPIPS.value,
                steps=STEPS.value,
            )
        case "captions":
            return suites.captions_suite(
                model=MODEL.value,
                out=OUT.value,
                count=COUNT.value,
                seed=SEED.value,
                steps=STEPS.value,
                guidance_scale=GUIDANCE_SCALE.value,
            )
        case "report":
            return {"report": str(write_report(suites.require("out", OUT.value)))}
    return suites.require("suite", None)


if __name__ == "__main__":
    command.run(main, __doc__)
