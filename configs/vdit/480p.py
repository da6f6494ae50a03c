"""VDiT at the paper's scale, stage 2 of 3: videos up to 480p (arXiv 2408.12590, section 3.2).

command   python launch/train.py --config=vdit/480p --workdir=runs/vdit/480p
            --config.data.source.path=LATENTS
          It starts from runs/vdit/240p.
hardware  a pod; the paper spent 642 to 672 H100 days on its three stages.
          Compiled ahead of time for v5p:4x4x4 (64 chips; docs/plans.md): the bucket with the most
          latent cells, 86 images of 512x512 a device, peaks at 11.9 of 95.7 GiB on each. It was not
          compiled for a v5e, which has 15.75. Of 80 GiB and more, --config.model.remat=attention
          makes use: docs/performance.md.
time      not measured here
expect    not reproduced here

LATENTS is the output of launch/encode.py for captioned videos, each in the bucket that it fits,
with the embedder of configs/vidvae/paper.py and the embeddings of T5 v1.1 XXL:

          python launch/encode.py --embedder=runs/vidvae --data=VIDEOS --out=LATENTS --stage=480p
            --text_encoder=weights/t5-v1_1-xxl --fps=8 --dtype=bfloat16

22,000 steps, as in Open-Sora 1.1's stage 2. What else comes from where: configs/vdit/stages.py.
"""

from xgen_jax.configs.vdit.stages import stage_config


def get_config(devices: str = "64"):
    """The stage's run, its batches for `devices` devices."""
    return stage_config("480p", init_from="runs/vdit/240p", steps=22_000, devices=int(devices))
