"""VDiT at the paper's scale, stage 3 of 3: videos up to 720p (arXiv 2408.12590, section 3.2).

command   python launch/train.py --config=vdit/720p --workdir=runs/vdit/720p
            --config.data.source.path=LATENTS
          It starts from runs/vdit/480p.
hardware  a pod; the paper spent 642 to 672 H100 days on its three stages.
          Compiled ahead of time for v5p:4x4x4 (64 chips; docs/plans.md): the bucket with the most
          latent cells, 40 images of 1024x1024 a device, peaks at 20.4 of 95.7 GiB on each; the
          largest video bucket, one clip of 113x720x1280 a device, at 16.8, and at 56.3 with
          --config.model.remat=attention, 54.2 on an H200 (docs/performance.md). Sampling 14 s at
          720p (29x90x160 latents, 104,400 tokens), condition and null batched, bfloat16 over
          float32 parameters, compiled for v5e:2x2: a forward of one clip a device peaks at 9.68
          of 15.75 GiB, without text encoder and decoder.
time      not measured here
expect    not reproduced here

LATENTS is the output of launch/encode.py for captioned videos, each in the bucket that it fits,
with the embedder of configs/vidvae/paper.py and the embeddings of T5 v1.1 XXL:

          python launch/encode.py --embedder=runs/vidvae --data=VIDEOS --out=LATENTS --stage=720p
            --text_encoder=weights/t5-v1_1-xxl --fps=8 --dtype=bfloat16

4,000 steps, as in Open-Sora 1.1's stage 3. Our own: the two longest lengths at 720p and the longest
at 480p, for the paper's 14 s. What else comes from where: configs/vdit/stages.py.
"""

from xgen_jax.configs.vdit.stages import stage_config


def get_config(devices: str = "64"):
    """The stage's run, its batches for `devices` devices."""
    return stage_config("720p", init_from="runs/vdit/480p", steps=4_000, devices=int(devices))
