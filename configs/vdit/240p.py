"""VDiT at the paper's scale, stage 1 of 3: images up to 1024x1024, videos up to 240p (arXiv
2408.12590, section 3.2).

command   python launch/train.py --config=vdit/240p --workdir=runs/vdit/240p
            --config.data.source.path=LATENTS --config.init_from=PIXART
          PIXART is a folder that launch/convert.py made of PixArt-alpha, where the paper starts.
hardware  a pod; the paper spent 642 to 672 H100 days on its three stages.
          Compiled ahead of time for v5p:4x4x4 (64 chips): the bucket with the most latent cells, 12
          images of 512x512 a device, peaks at 2.1 of 95.7 GiB on each (docs/plans.md).
time      not measured here
expect    not reproduced here

LATENTS is the output of launch/encode.py for captioned videos, each in the bucket that it fits,
with the embedder of configs/vidvae/paper.py and the embeddings of T5 v1.1 XXL:

          python launch/encode.py --embedder=runs/vidvae --data=VIDEOS --out=LATENTS --stage=240p
            --text_encoder=weights/t5-v1_1-xxl --fps=8 --dtype=bfloat16

81,000 steps, as in Open-Sora 1.1's stage 1; frame masks are used in all of them, there in the last
17,000 only. What else comes from where: configs/vdit/stages.py.
"""

from xgen_jax.configs.vdit.stages import stage_config


def get_config(devices: str = "64"):
    """The stage's run, its batches for `devices` devices."""
    return stage_config("240p", init_from=None, steps=81_000, devices=int(devices))
