"""A VidVAE on your own clips, on GPUs; configs/finetune/ladder.py has the rungs.

command   python launch/train.py --config=finetune/vidvae:12gb --workdir=runs/gpu/vidvae
            --config.data.source.path=FOLDER
hardware  peak of the compiled train step: 4.6 GiB (12gb, RTX 4070), 10.0 GiB (24gb, RTX 4090),
          27.2 GiB (80gb, H100), 0.6 GiB (cpu); not run on a GPU
time      cpu, but two clips a step, on one core shared with other work: 1.8 s a step with AdamW,
          5 s with Muon, whose cost does not grow with the batch; no GPU was timed
expect    not trained to the end here. On the films of docs/vidvae.md, mean PSNR of the training
          clips in steps 80 to 110: 19.4 dB with Muon at 0.02, 16.4 dB with AdamW at 1e-3, which
          reaches 19.4 dB after 250 steps, in about the same time on this core

The loss is that of quickstart/vidvae:videos, whose KL term, 2e-4 for 16 channels, is meant to keep
latents that a transformer learns easily.

What to change first: out of memory, a smaller batch in --config.data.buckets, or
--config.model.remat=level; texture, --config.loss.lpips=1 --config.loss.lpips_weights=FILE. From
Stable Diffusion's autoencoder, inflated (launch/convert.py --kind=sd-vae), on the rung 24gb:
--config.init_from=runs/sd-vae --config.model=paper --config.model.remat=level
--config.loss.kl=1e-6 --config.loss.l1=1 --config.loss.l2=0 --config.optimizer.name=adamw
--config.optimizer.learning_rate=1e-5 --config.data.buckets=17x256x256x1; 11.3 GiB.
"""

import dataclasses

from xgen_jax.config.losses import VidVAELossConfig
from xgen_jax.config.runs import VidVAERun
from xgen_jax.configs.common import as_config_dict
from xgen_jax.configs.finetune.ladder import MUON, rung
from xgen_jax.data.config import VideoFolderConfig
from xgen_jax.models.vidvae_config import PRESETS
from xgen_jax.parallel.mesh import MeshConfig

BATCH = {"cpu": 4, "12gb": 32, "24gb": 8, "80gb": 4}


def get_config(name: str = "12gb"):
    """The run of a rung."""
    here = rung(name)
    model = PRESETS[here.size]
    if here.size == "base":
        model = dataclasses.replace(model, remat="level")
    run = VidVAERun(
        model=model,
        loss=VidVAELossConfig(l1=0.0, l2=1.0, lpips=0.0, gradient=0.05, chroma=4.0, kl=2e-4),
        data=here.data(VideoFolderConfig(require_captions=False), BATCH[name]),
        optimizer=MUON,
        loop=here.loop(steps=20_000, ema_decay=0.999),
        mesh=MeshConfig(fsdp=-1),
    )
    return as_config_dict(run)
