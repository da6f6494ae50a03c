"""The check that all processes of a command were started alike, before they compute together."""

from typing import Any

import jax

from xgen_jax.parallel.agreement import check_equal, source_digest
from xgen_jax.runs.folder import describe_machine


def check_hosts(settings: dict[str, Any]) -> None:
    """Compare settings, code, versions of packages and devices of all processes.

    Args:
      settings: what the command was asked for, of the types of JSON.

    Raises:
      UserError: in every process, with the processes and hosts that differ, and what differs.
    """
    if jax.process_count() == 1:
        return
    devices = f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}"
    check_equal(
        {
            "config": settings,
            "source files of xgen_jax": source_digest(),
            "versions": describe_machine()["versions"],
            "devices": devices,
        }
    )
