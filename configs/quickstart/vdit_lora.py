"""A LoRA adapter of configs/quickstart/vdit.py's model for another style: the same dataset with
its shapes as outlines.

command   python launch/train.py --config=quickstart/vdit_lora --workdir=runs/quickstart/vdit_lora
hardware  2 CPU cores, under 2 GB
time      42 s for 400 steps; 89,088 parameters, a file of 0.36 MB
expect    a hole in the shape for 39 of 64 held-out prompts, 0 of 64 with the base, 1 of 64 at half
          the weight; the base was a run of configs/quickstart/vdit.py, whose autoencoder was not
          trained on outlines (24.3 dB, 30.4 dB on filled shapes)

Your own videos: add --config.data.source.path=FOLDER, with
captions.jsonl in the folder.

Sample with launch/sample.py --model=runs/quickstart/vdit_lora, or with any weight:
--model=runs/quickstart/vdit --lora=runs/quickstart/vdit_lora/adapter.safetensors:0.7
"""

from xgen_jax.config.losses import VDiTLossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import LoopConfig, VDiTRun
from xgen_jax.configs.common import as_config_dict
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, SyntheticConfig
from xgen_jax.models.lora import LoRAConfig
from xgen_jax.models.text import ByteTextConfig
from xgen_jax.models.vdit_config import PRESETS
from xgen_jax.parallel.mesh import MeshConfig


def get_config():
    """A run whose model, text and loss are the base's."""
    run = VDiTRun(
        embedder="runs/quickstart/vidvae",
        init_from="runs/quickstart/vdit",
        lora=LoRAConfig(rank=8, alpha=16.0),
        model=PRESETS["tiny"],
        text=ByteTextConfig(width=96, depth=1, heads=4, max_bytes=64),
        loss=VDiTLossConfig(cond_drop_prob=0.1, time_distribution="logit_normal", time_shift=4.0),
        data=DataConfig(
            source=SyntheticConfig(style="outline"),
            seed=2,
            buckets=(Bucket(frames=9, height=32, width=32, batch_size=16),),
        ),
        optimizer=OptimizerConfig(
            name="adamw", learning_rate=5e-3, schedule="linear", warmup_steps=50
        ),
        loop=LoopConfig(steps=400, ema_decay=0.99, compute_dtype="float32", checkpoint_every=200),
        mesh=MeshConfig(fsdp=1),
        sample_steps=12,
        guidance_scale=3.0,
    )
    return as_config_dict(run)
