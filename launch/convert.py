"""Turns the weights of another project into a folder of ours. Only safetensors are read, never a
pickle.

python launch/convert.py --kind=sd-vae --source=sd-vae-ft-mse/diffusion_pytorch_model.safetensors
--out=runs/sd-vae

An embedder's folder, for --embedder: `sd-vae`: Stable Diffusion's 2D autoencoder, inflated in time:
an image, and a static video, come out as from the 2D model. `osp-vae`: Open-Sora-Plan's CausalVAE
v1.0.0 or v1.1.0, with the config.json beside it.

A transformer's folder, for --config.init_from of a vdit run: `stdit2`: Open-Sora 1.1's. `pixart`:
PixArt-alpha, in its own names or diffusers'; all that an image network has not starts anew.
`stdit2-export` goes the other way: from the folder of a vdit run in the released form, or of
converted weights, to a file.

`lora`: an adapter (FILE, FILE:SCALE, or the folder of the run that trained it) merged into --base,
the run or the
converted weights that it was trained on: a folder as the base's.
"""

import command
from absl import flags

KIND = flags.DEFINE_string("kind", None, "sd-vae, osp-vae, stdit2, pixart, stdit2-export or lora.")
SOURCE = flags.DEFINE_string(
    "source", None, "The .safetensors file, or the folder that holds it; to export, a run folder."
)
OUT = flags.DEFINE_string(
    "out", None, "The folder to write, for --embedder or init_from; to export, the file."
)
BASE = flags.DEFINE_string(
    "base", None, "Of --kind=lora: the folder of the model that the adapter was trained on."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace what is in --out.")


def main():
    from xgen_jax.commands.convert import convert

    return convert(
        kind=KIND.value,
        source=SOURCE.value,
        out=OUT.value,
        base=BASE.value,
        overwrite=OVERWRITE.value,
    )


if __name__ == "__main__":
    command.run(main, __doc__)
