"""The least time that a step can take on some devices, and what a run of many steps costs.

    compute   FLOPs of a device / its peak in the dtype of the computation
    memory    (2 x what is rewritten + what is read + 2 x temporaries) / its bandwidth
    network   the larger of bytes sent in the slice or host / its links
              and bytes sent to others / its part of the network
    floor     the largest of the three, as if they overlapped wholly

FLOPs are those of the formula, without recomputation. Each byte that is rewritten, such as the
optimiser's state, is read and written once, and each byte of the temporaries at their peak is
written and read at least once. No program reaches its floor: it is a bound, not a forecast.
"""

import dataclasses

from xgen_jax.parallel.device_figures import Peak

ASSUMED_MFU = 0.4  # fraction of the peak that well-tuned training of transformers reaches


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTime:
    """The parts of a step's least time, in seconds."""

    compute_s: float
    memory_s: float
    network_s: float

    @property
    def floor_s(self) -> float:
        """The step's least time."""
        return max(self.compute_s, self.memory_s, self.network_s)

    @property
    def bound(self) -> str:
        """The part that decides."""
        parts = {"compute": self.compute_s, "memory": self.memory_s, "network": self.network_s}
        return max(parts, key=lambda name: parts[name])

    def at_mfu(self, mfu: float = ASSUMED_MFU) -> float:
        """Return the seconds at a fraction of the peak, no less than memory and network take."""
        return max(self.compute_s / mfu, self.memory_s, self.network_s)


def step_time(
    peak: Peak,
    dtype: str,
    *,
    flops: float,
    rewritten: float,
    read: float,
    temporaries: float,
    link_bytes: float,
    network_bytes: float,
) -> StepTime:
    """Return the least time of a step.

    Args:
      peak: of a device.
      dtype: of the computation.
      flops, rewritten, read, temporaries, link_bytes, network_bytes: of one device, the last five
        in bytes.
    """
    return StepTime(
        compute_s=flops / peak.flops(dtype),
        memory_s=(2 * rewritten + read + 2 * temporaries) / (1e9 * peak.memory_gb_s),
        network_s=max(link_bytes / peak.link_gb_s, network_bytes / peak.network_gb_s) / 1e9,
    )


def dollars(seconds: float, chips: int, dollars_per_hour: float) -> float:
    """Return what chips cost for some time, each `dollars_per_hour`."""
    return seconds / 3600 * chips * dollars_per_hour
