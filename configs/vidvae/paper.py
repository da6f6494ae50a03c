"""VidVAE at the paper's scale (arXiv 2408.12590, section 3.1): 4x8x8, 229M parameters, images and
videos mixed.

command   python launch/train.py --config=vidvae/paper --workdir=runs/vidvae
            --config.data.source.path=VIDEOS --config.init_from=EMBEDDER
            --config.loss.lpips_weights=FILE
hardware  a pod; the paper spent about 40 H100 days
time      not measured here
expect    the paper's table 3, PSNR and SSIM, not reproduced here: 39.41 dB, 0.971 (1x768x768),
          33.83 dB, 0.935 (17x512x512), 29.68 dB, 0.879 (65x256x256)

EMBEDDER is a folder that launch/convert.py made of Stable Diffusion's VAE, where the paper starts.
FILE is LPIPS with VGG16 as safetensors; --config.loss.lpips=0 trains without it.

From the paper: the network, its initial weights, the three shapes. It gives no loss, weight, rate
or number of steps; these are Open-Sora-Plan v1.1's, which it builds on: L1 + LPIPS, KL at 1e-6, the
3D discriminator from step 2001 on with adaptive weight, Adam(0.5, 0.9) at 1e-5 clipped at 1.0,
bfloat16, 100,000 steps. Losses there are sums over values; here they are means, so that the KL
weighs 3 (at 65x256x256) to 50 (at 1x768x768) times as much. Our own: the fraction of each shape,
the batches (8 clips an update; one a device there), the decay of the parameters' average, and
rematerialisation by level and residual block (17x512x512 takes 22.3 GiB of an H200 and 19.9 of a
v6e, compiled).
"""

import dataclasses

from xgen_jax.config.loop import LoopConfig
from xgen_jax.config.losses import AdversarialConfig, VidVAELossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import VidVAERun
from xgen_jax.configs.common import as_config_dict
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, VideoFolderConfig
from xgen_jax.models.vidvae_config import PRESETS
from xgen_jax.parallel.mesh import MeshConfig


def get_config():
    adam = OptimizerConfig(
        learning_rate=1e-5, b1=0.5, b2=0.9, schedule="constant", warmup_steps=0, clip_norm=1.0
    )
    run = VidVAERun(
        model=dataclasses.replace(PRESETS["paper"], remat="block"),
        loss=VidVAELossConfig(
            l1=1.0,
            lpips=1.0,
            kl=1e-6,
            adversarial=AdversarialConfig(
                weight=0.5, start_step=2001, adaptive=True, clamp=1e4, optimizer=adam
            ),
        ),
        data=DataConfig(
            source=VideoFolderConfig(require_captions=False),
            buckets=(
                Bucket(frames=1, height=768, width=768, batch_size=8),
                Bucket(frames=17, height=512, width=512, batch_size=8),
                Bucket(frames=65, height=256, width=256, batch_size=8),
            ),
            num_threads=16,
            prefetch=16,
        ),
        optimizer=adam,
        loop=LoopConfig(steps=100_000, ema_decay=0.999, compute_dtype="bfloat16"),
        mesh=MeshConfig(fsdp=-1),
    )
    return as_config_dict(run)
