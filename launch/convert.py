"""Convert the weights of another project to a folder of ours, or export a model to share. Only
safetensors are read, never a pickle; `i3d` opens its file with PyTorch in a process of its own.

python launch/convert.py --kind=sd-vae --source=sd-vae-ft-mse/diffusion_pytorch_model.safetensors
    --out=runs/sd-vae
python launch/convert.py --kind=export --source=runs/vdit --out=moving-shapes --push=hf://me/shapes

To an embedder's folder, for --embedder:
`sd-vae`: Stable Diffusion's 2D autoencoder, inflated in time; images and static videos come out as
from the 2D model.
`osp-vae`: Open-Sora-Plan's CausalVAE v1.0.0 or v1.1.0, with its config.json in the same folder.

To a transformer's folder, for --config.init_from of a vdit run:
`stdit2`: Open-Sora 1.1's.
`pixart`: PixArt-alpha, in its own names or those of diffusers; layers that an image network lacks
are newly initialised, attention over time so that it changes nothing at first.

To a folder to keep and to share, which every command takes back:
`export`: a run or converted weights, as safetensors with a model card; a text-to-video model with
its embedder. --push uploads it.

To a file:
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
    text("kind", None, "sd-vae, osp-vae, stdit2, pixart, lora, i3d, export or stdit2-export."),
    text("source", None, "The .safetensors file, or its folder (also hf://OWNER/NAME), or a run."),
    text("out", None, "The folder to write; of stdit2-export the file."),
    text("base", None, "For lora: the folder of the model that the adapter was trained on."),
    flags.DEFINE_bool("overwrite", False, "Replace what is in --out."),
    text("dtype", None, "Of export: float32 (default) or bfloat16, which keeps an embedder as is."),
    text("embedder", None, "Of export: the embedder's folder, if it is no longer where it was."),
    text("evaluation", None, "Of export: launch/evaluate.py's --out, for the card's figures."),
    text("licence", None, "Of export: the weights', for the card, such as apache-2.0."),
    text("push", None, "Of export: hf://OWNER/NAME to upload the folder to."),
    flags.DEFINE_bool("private", False, "Of export: a repository that --push makes is private."),
]


def main():
    from xgen_jax.commands.convert import ConvertRequest, convert

    given = {name: value for name, value in command.values(FLAGS).items() if value is not None}
    return convert(ConvertRequest(**given))


if __name__ == "__main__":
    command.run(main, __doc__)
