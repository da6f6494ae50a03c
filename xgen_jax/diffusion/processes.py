"""Processes by name."""

from xgen_jax.diffusion.ddpm import DDPM
from xgen_jax.diffusion.flow import RectifiedFlow
from xgen_jax.diffusion.process import Process
from xgen_jax.errors import UserError

PROCESSES = {"flow": RectifiedFlow, "ddpm": DDPM}


def make_process(name: str, **options) -> Process:
    """A process by its name in `PROCESSES`, with the options of its class.

    Raises:
      UserError: an unknown name, or an option that the process refuses.
    """
    if name not in PROCESSES:
        raise UserError(f"process {name!r} is not known; choose one of {', '.join(PROCESSES)}")
    return PROCESSES[name](**options)
