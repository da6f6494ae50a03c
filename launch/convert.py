"""Turns the weights of another project into an embedder's folder. Only safetensors are read, never a pickle.

python launch/convert.py --kind=sd-vae --source=sd-vae-ft-mse/diffusion_pytorch_model.safetensors --out=runs/sd-vae

`sd-vae`: Stable Diffusion's 2D autoencoder, inflated in time: an image, and a static video, come out as from the 2D
model. `osp-vae`: Open-Sora-Plan's CausalVAE v1.0.0 or v1.1.0, with the config.json beside it.
"""

import command
from absl import flags

KIND = flags.DEFINE_string("kind", None, "sd-vae or osp-vae.")
SOURCE = flags.DEFINE_string("source", None, "The .safetensors file, or the folder that holds it.")
OUT = flags.DEFINE_string("out", None, "The folder to write; --embedder of the other commands.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the weights or the run that are in --out.")


def main():
    from xgen_jax.training.convert import convert

    return convert(kind=KIND.value, source=SOURCE.value, out=OUT.value, overwrite=OVERWRITE.value)


if __name__ == "__main__":
    command.run(main, __doc__)
