"""Convert the weights of another project to a folder of ours, or back. Only safetensors are read,
never a pickle; `i3d` opens its file with PyTorch in a process of its own.

python launch/convert.py --kind=sd-vae --source=sd-vae-ft-mse/diffusion_pytorch_model.safetensors
    --out=runs/sd-vae

To an embedder's folder, for --embedder:
`sd-vae`: Stable Diffusion's 2D autoencoder, inflated in time; images and static videos come out as
from the 2D model.
`osp-vae`: Open-Sora-Plan's CausalVAE v1.0.0 or v1.1.0, with its config.json in the same folder.

To a transformer's folder, for --config.init_from of a vdit run:
`stdit2`: Open-Sora 1.1's.
`pixart`: PixArt-alpha, in its own names or those of diffusers; what an image network lacks keeps
its random initial values.

Back, to a file:
`stdit2-export`: a vdit run in Open-Sora's form, or converted weights.

To a merged model's folder, like that of its base:
`lora`: an adapter (FILE, FILE:SCALE, or the folder of the run that trained it) merged into --base,
the run or the converted weights that it was trained on.

For FVD, --i3d of launch/evaluate.py:
`i3d`: StyleGAN-V's i3d_torchscript.pt.
"""

import command
from absl import flags

text = flags.DEFINE_string
FLAGS = [
    text("kind", None, "sd-vae, osp-vae, stdit2, pixart, stdit2-export, lora or i3d."),
    text("source", None, "The .safetensors file, or its folder; to export, a run folder."),
    text("out", None, "The folder to write, for --embedder or init_from; to export, the file."),
    text("base", None, "For lora: the folder of the model that the adapter was trained on."),
    flags.DEFINE_bool("overwrite", False, "Replace what is in --out."),
]


def main():
    from xgen_jax.commands.convert import ConvertRequest, convert

    given = {name: value for name, value in command.values(FLAGS).items() if value is not None}
    return convert(ConvertRequest(**given))


if __name__ == "__main__":
    command.run(main, __doc__)
