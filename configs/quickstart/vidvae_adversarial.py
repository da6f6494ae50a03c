"""The tiny VidVAE of configs/quickstart/vidvae.py, trained further with a discriminator.

command   python launch/train.py --config=quickstart/vidvae_adversarial
            --workdir=runs/vidvae_adversarial
hardware  2 CPU cores (AMD EPYC), under 2 GB
time      565 s with five processes sharing the cores; not measured on free ones
expect    edges a little sharper, all else a little worse, compared with as many more steps without
          the discriminator (--config.loss.adversarial.weight=0), on 64 held-out clips:

                                                  with     without
            gradient at the original's edges      0.908    0.863
            gradient where the original is flat   3.07     2.67
            sharpness                             1.92     1.79
            PSNR (dB)                             30.66    30.88
            SSIM                                  0.895    0.909
            LPIPS, VGG of random weights          0.073    0.070

Gradients are relative to the original's; an edge is where its luma steps by over 5 of 255. A
sharpness of 1 is natural, above it is noisy.

So it does not beat the plain one: both ripple around edges, and a discriminator of this size trades
some blur for more ripple. Its own loss stays between 1.7 and 2.2, mostly near 2: the generator
keeps it guessing.

The weight is fixed, because the adaptive one follows the gradient of the reconstruction, which is
close to zero near the optimum. At 0.5, from step 1,200 of 2,400 on, it fell to 2e-5 (median) and
changed nothing (30.49 dB with and without); at 5, started as here, the run oscillated (30.15 dB,
edges 0.834). R1 at 0.3 lies between the two columns.
"""

import dataclasses

from xgen_jax.config.loop import LoopConfig
from xgen_jax.config.losses import AdversarialConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import VidVAERun
from xgen_jax.configs.common import as_config_dict
from xgen_jax.configs.quickstart.vidvae import LOSS, MODEL
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, SyntheticConfig
from xgen_jax.models.vidvae_config import DiscriminatorConfig
from xgen_jax.parallel.mesh import MeshConfig


def get_config():
    run = VidVAERun(
        init_from="runs/quickstart/vidvae",
        model=MODEL,
        loss=dataclasses.replace(
            LOSS,
            adversarial=AdversarialConfig(
                weight=0.002,
                start_step=1,
                adaptive=False,
                discriminator=DiscriminatorConfig(width=16, layers=2),
                optimizer=OptimizerConfig(
                    learning_rate=1e-3, warmup_steps=0, b1=0.5, b2=0.9, schedule="linear"
                ),
            ),
        ),
        data=DataConfig(
            source=SyntheticConfig(),
            seed=0,
            buckets=(Bucket(frames=9, height=32, width=32, batch_size=4),),
        ),
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=0.01,
            adam_learning_rate=3e-3,
            schedule="linear",
            warmup_steps=50,
        ),
        loop=LoopConfig(steps=800, ema_decay=0.995, compute_dtype="float32", checkpoint_every=1000),
        mesh=MeshConfig(fsdp=1),
    )
    return as_config_dict(run)
