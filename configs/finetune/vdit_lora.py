"""A LoRA adapter of configs/finetune/vdit.py's model, on other captioned clips.

command   python launch/train.py --config=finetune/vdit_lora:12gb --workdir=runs/gpu/lora
            --config.data.source.path=LATENTS
hardware  peak of the compiled train step: 1.3 GiB (12gb, RTX 4070), 4.8 GiB (24gb, RTX 4090),
          20.8 GiB (80gb, H100), 0.9 GiB (cpu); not run on a GPU
time      not measured
expect    not measured; configs/quickstart/vdit_lora.py has a measured adapter

The rung is the base's, runs/gpu/vdit, and LATENTS are of the base's embedder.

What to change first: --config.lora.rank, --config.loop.steps.
"""

from xgen_jax.configs.finetune import vdit


def get_config(name: str = "12gb"):
    """The run of a rung; its model, text encoder and embedder are the base's."""
    config = vdit.get_config(name)
    config.init_from = "runs/gpu/vdit"
    config.embedder = ""  # the base's
    config.lora = {"rank": 16, "alpha": 16.0}
    config.optimizer.learning_rate = 1e-3
    config.loop.steps = 2_000
    return config
