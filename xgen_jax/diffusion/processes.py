"""The table of diffusion processes."""

from xgen_jax.diffusion.ddpm import DDPM
from xgen_jax.diffusion.flow import RectifiedFlow
from xgen_jax.diffusion.process import Process
from xgen_jax.errors import choose

PROCESSES = {"flow": RectifiedFlow, "ddpm": DDPM}


def make_process(name: str, **options) -> Process:
    """Make a process by its name in `PROCESSES`, with the options of its class.

    Raises:
      UserError: an unknown name, or an option that the process refuses.
    """
    return PROCESSES[choose("process", name, PROCESSES)](**options)
