"""`as_config_dict`: a run's dataclass as the ConfigDict that a config file returns."""

import dataclasses

from ml_collections import config_dict

from xgen_jax.config.runs import Run


def as_config_dict(run: Run) -> config_dict.ConfigDict:
    """Return every key of a run, so that another config file can take it and change some.

    The values are plain: dataclasses are groups of keys. `config.runs.run_config` takes what
    `to_dict` gives; flags set keys by the annotations of the dataclass (`config.keys`).
    """
    return config_dict.ConfigDict(dataclasses.asdict(run))
