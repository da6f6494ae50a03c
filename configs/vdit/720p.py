"""VDiT at the paper's scale, stage 3 of 3: videos up to 720p (arXiv 2408.12590, section 3.2).

command   python launch/train.py --config=configs/vdit/720p.py --workdir=runs/vdit/720p --config.data.path=LATENTS
            It starts from runs/vdit/480p.
hardware  a pod; the paper spent 642 to 672 H100 days on its three stages. Compiled ahead of time
for v5p:4x4x4 (64
          chips): the bucket of most latent cells, 40 images of 1024x1024 a device, peaks at 25.2 of
          95.7 GiB on each (588 s on two busy CPU cores), the heaviest of videos, one of
          113x720x1280 a device, at 17.4 (602 s). That is more than the 15.75 GiB of a v5e, and one
          clip a device cannot be cut further. No other bucket or slice was compiled. Sampling 14 s
          at 720p (113x720x1280: 29x90x160 latents, 104,400 tokens), condition and null batched,
          bfloat16 over float32 parameters, compiled for v5e:2x2 (522 s): a forward of one clip a
          device peaks at 9.68 of 15.75 GiB; text encoder and decoder are not in it
time      not measured here
expect    not reproduced here

LATENTS is what launch/encode.py made of captioned videos, each in the bucket that it fits, with the
embedder of configs/vidvae/paper.py and the embeddings of T5 v1.1 XXL:

          python launch/encode.py --embedder=runs/vidvae --data=VIDEOS --out=LATENTS --stage=720p
            --text_encoder=weights/t5-v1_1-xxl --fps=8 --dtype=bfloat16

From the paper: the network (VDiT-XL/2, 767M), T5 with 250 tokens, epsilon prediction by DDPM, AdamW
at 2e-5, an average of the parameters, three stages, buckets. It prints no schedule, batch, steps or
masks; these are Open-Sora 1.1's, which
it builds on: 1000 linear steps with a learned variance, 10% of captions dropped, gradients clipped
at 1.0, an average with decay 0.9999, 4,000 steps, masks of frames for conditioning on images and
videos, and the bucket table of its stage 3 (`data.buckets.STAGES`). The lengths become the
embedder's (17 for 16, ..., 113 for 128), and the batches a device are made global for 64 devices,
as there; --config=configs/vdit/720p.py:16 makes them for 16. Our own: the two longest at 720p and
the longest at 480p, for the paper's 14 s; three of the seventeen aspects, for each shape is a
program to compile (`data.buckets.ASPECTS` has all).
"""

import pathlib
import runpy

_STAGES = runpy.run_path(str(pathlib.Path(__file__).with_name("240p.py")))


def get_config(devices: str = "64"):
    """See `stage_config` in 240p.py."""
    return _STAGES["stage_config"]("720p", "runs/vdit/480p", 4_000, devices)
