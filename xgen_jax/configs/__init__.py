"""The config files: `configs/` of the repository, under the name that they have when installed.

setup.py installs `configs/` as `xgen_jax.configs`, in place of this file. A config file builds on
another by importing it: `from xgen_jax.configs.quickstart import vdit`.
"""

import pathlib

__path__ = [str(pathlib.Path(__file__).resolve().parents[2] / "configs")]
