"""The quickstart's transformer trained as the paper's was: DDPM with learned variance, in place of
rectified flow.

command   python launch/train.py --config=configs/quickstart/vdit_ddpm.py --workdir=runs/quickstart/vdit_ddpm
hardware  2 CPU cores, under 2 GB
time      not measured by itself; network and steps are those of vdit.py
expect    see the table in benchmarks/README.md, which benchmarks/ablation.py makes
"""

import pathlib
import runpy

_QUICKSTART = runpy.run_path(str(pathlib.Path(__file__).with_name("vdit.py")))


def get_config():
    """Every key of `VDiTRun`, locked."""
    config = _QUICKSTART["get_config"]()
    config.model.learned_variance = True
    config.loss.process = "ddpm"
    # The linear schedule spends most of its steps near noise, where a flow needs a shift to be.
    config.loss.time_distribution = "uniform"
    config.loss.time_shift = 1.0
    config.sampler = "dpm++2m"
    return config
