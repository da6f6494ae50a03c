"""A VDiT on your own captioned clips, on GPUs; configs/finetune/ladder.py has the rungs.

command   python launch/train.py --config=finetune/vdit:12gb --workdir=runs/gpu/vdit
            --config.data.source.path=LATENTS
hardware  peak of the compiled train step: 1.9 GiB (12gb, RTX 4070), 6.2 GiB (24gb, RTX 4090),
          22.6 GiB (80gb, H100), 1.4 GiB (cpu); not run on a GPU
time      not measured; no GPU was timed
expect    not trained to the end. VDiT-S's rate is the best of three in 240 steps on 9x32x32 shapes
          (docs/finetune.md); decay, guidance and VDiT-B's rate are those of flow models of this
          size elsewhere. The tiny model on real films is in quickstart/vdit:videos

LATENTS is what launch/encode.py makes of your videos with runs/gpu/vidvae. A folder of videos
works too, and is encoded in every step.

What to change first: with few captions, a T5 in place of the bytes, which are learnt from them
alone: --config.text=t5 --config.text.path=FOLDER, and the two flags that the run then asks for. On
a REGEN: --config.embedder=runs/gpu/regen --config.data.buckets=18x128x128x64.
"""

import dataclasses

from xgen_jax.config.losses import VDiTLossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import VDiTRun
from xgen_jax.configs.common import as_config_dict
from xgen_jax.configs.finetune.ladder import rung
from xgen_jax.data.config import VideoFolderConfig
from xgen_jax.models.text_config import ByteTextConfig
from xgen_jax.models.vdit_config import PRESETS
from xgen_jax.parallel.mesh import MeshConfig

TEXT = ByteTextConfig(width=256, depth=2, heads=4, max_bytes=512)
LEARNING_RATE = {"VDiT-S/2": 1e-3, "VDiT-B/2": 3e-4}
BATCH = {"cpu": 8, "12gb": 64, "24gb": 32, "80gb": 32}


def get_config(name: str = "12gb"):
    """The run of a rung."""
    here = rung(name)
    # Rectified flow has no variance to learn, and the text encoder learns its own null caption.
    model = dataclasses.replace(
        PRESETS[here.transformer],
        learned_variance=False,
        null_caption_tokens=0,
        text_width=TEXT.width,
        text_norm=True,
        attention="auto",
        remat=here.remat,
    )
    run = VDiTRun(
        embedder="runs/gpu/vidvae",
        model=model,
        text=TEXT,
        loss=VDiTLossConfig(cond_drop_prob=0.1, time_distribution="logit_normal", time_shift=3.0),
        data=here.data(VideoFolderConfig(), BATCH[name]),
        optimizer=OptimizerConfig(
            learning_rate=LEARNING_RATE[here.transformer], warmup_steps=200, clip_norm=1.0
        ),
        loop=here.loop(steps=50_000, ema_decay=0.9995),
        mesh=MeshConfig(fsdp=-1),
        sample_steps=30,
        guidance_scale=5.0,
    )
    return as_config_dict(run)
