"""The quickstart's transformer trained like the paper's: DDPM with learned variance instead of
rectified flow.

command   python launch/train.py --config=quickstart/vdit_ddpm --workdir=runs/quickstart/vdit_ddpm
hardware  2 CPU cores, under 2 GB
time      not measured on its own; network and steps are those of vdit.py
expect    see the table in benchmarks/README.md, which benchmarks/ablation.py makes
"""

from xgen_jax.configs.quickstart import vdit


def get_config():
    """The run of vdit.py by another process."""
    config = vdit.get_config()
    config.model.learned_variance = True
    config.loss.process = "ddpm"
    # The linear schedule already spends most of its steps near noise; a flow needs a shift for it.
    config.loss.time_distribution = "uniform"
    config.loss.time_shift = 1.0
    config.sampler = "dpm++2m"
    return config
