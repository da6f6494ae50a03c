"""VDiT at the paper's scale, stage 2 of 3: videos up to 480p (arXiv 2408.12590, section 3.2).

command   python launch/train.py --config=configs/vdit/480p.py --workdir=runs/vdit/480p --config.data.path=LATENTS
            It starts from runs/vdit/240p.
hardware  a pod; the paper spent 642 to 672 H100 days on its three stages. Compiled ahead of time
for v5p:4x4x4 (64
          chips; 549 s on two busy CPU cores): the bucket of most latent cells, 86 images of 512x512
          a device, peaks at 16.7 of 95.7 GiB on each. A v5e has but 15.75: there a smaller batch,
          or loop.accumulate=2, is to be tried. No other bucket or slice was compiled
time      not measured here
expect    not reproduced here

LATENTS is what launch/encode.py made of captioned videos, each in the bucket that it fits, with the
embedder of configs/vidvae/paper.py and the embeddings of T5 v1.1 XXL:

          python launch/encode.py --embedder=runs/vidvae --data=VIDEOS --out=LATENTS --stage=480p
            --text_encoder=weights/t5-v1_1-xxl --fps=8 --dtype=bfloat16

From the paper: the network (VDiT-XL/2, 767M), T5 with 250 tokens, epsilon prediction by DDPM, AdamW
at 2e-5, an average of the parameters, three stages, buckets. It prints no schedule, batch, steps or
masks; these are Open-Sora 1.1's, which
it builds on: 1000 linear steps with a learned variance, 10% of captions dropped, gradients clipped
at 1.0, an average with decay 0.9999, 22,000 steps, masks of frames for conditioning on images and
videos, and the bucket table of its stage 2 (`data.buckets.STAGES`). The lengths become the
embedder's (17 for 16, ..., 113 for 128), and the batches a device are made global for 64 devices,
as there; --config=configs/vdit/480p.py:16 makes them for 16. Our own: three of the seventeen
aspects, for each shape is a program to compile (`data.buckets.ASPECTS` has all).
"""

import pathlib
import runpy

_STAGES = runpy.run_path(str(pathlib.Path(__file__).with_name("240p.py")))


def get_config(devices: str = "64"):
    """See `stage_config` in 240p.py."""
    return _STAGES["stage_config"]("480p", "runs/vdit/240p", 22_000, devices)
