"""Start one of several processes, from flags or from what the cluster sets.

Every process runs the same command. Process 0 is the first: it alone writes what a run has once
(its configuration, metrics, manifests) and prints progress and results; the others print errors.
"""

import contextlib
import ipaddress
import os
import socket
import sys
import threading
import traceback
from collections.abc import Generator
from importlib.util import find_spec
from typing import Any, NoReturn

import jax

from xgen_jax.errors import TemporaryError, UserError
from xgen_jax.parallel.memory import OUT_OF_MEMORY

START_TIMEOUT_S = 300.0  # all processes must have started within
# Errors of a device that follow from the program, not from another process.
OWN_ERRORS = (OUT_OF_MEMORY, "INVALID_ARGUMENT", "UNIMPLEMENTED")
LEAVE_TIMEOUT_S = 10.0  # what one that fails waits for the others to end


@contextlib.contextmanager
def started(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_s: float = START_TIMEOUT_S,
) -> Generator[bool]:
    """Join the processes of a command; what the others than the first print is dropped inside.

    Without arguments the environment decides: a Slurm step or an Open MPI job of several tasks, a
    TPU VM, an indexed Job of Kubernetes whose API can be asked. Anything else is one process. Must
    come before anything touches a device.

    Args:
      coordinator: HOST:PORT of process 0, which every process can reach.
      num_processes: of the command; 1 alone is one process, whatever the environment says.
      process_id: number of this one.
      timeout_s: in which all processes must have joined; the process ends with 75 otherwise.

    Yields:
      Whether this is the first process.

    Raises:
      UserError: arguments that contradict each other, or an environment that names no coordinator.
      TemporaryError: another process has ended, or cannot be reached any more.
    """
    options = _options(coordinator, num_processes, process_id)
    if options is None:
        yield True
        return
    _initialize(options, timeout_s)
    first = jax.process_index() == 0
    with contextlib.ExitStack() as quiet:
        if not first:
            nowhere = quiet.enter_context(open(os.devnull, "w"))
            quiet.enter_context(contextlib.redirect_stderr(nowhere))
            quiet.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            yield first
        except jax.errors.JaxRuntimeError as error:
            if str(error).startswith(OWN_ERRORS) or jax.process_count() == 1:
                raise
            quiet.close()
            traceback.print_exc()
            raise TemporaryError(
                f"a device does not answer: {str(error).splitlines()[0][:300]}. Most often another "
                "process has ended: its own output says why. The same command, started in every "
                "process again, goes on"
            ) from error


def leave(code: int) -> NoReturn:
    """Exit with a code; one of several processes does not wait long for the others.

    At exit jax waits minutes for all processes, and one that failed would leave the others waiting
    for it. They end when it does.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        # Where all fail alike, each gets to print its error before the coordinator is gone.
        ending = threading.Thread(target=jax.distributed.shutdown, daemon=True)
        ending.start()
        ending.join(LEAVE_TIMEOUT_S)
        os._exit(code)
    sys.exit(code)


def _options(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> dict[str, Any] | None:
    """Return the arguments of jax.distributed.initialize; None for one process."""
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == 3:
        return _from_environment()
    if num_processes == 1 and len(missing) == 2:
        return None
    if coordinator is None or num_processes is None or process_id is None:
        raise UserError(
            f"give {', '.join(missing)} too: --coordinator=HOST:PORT, --num_processes=N and "
            "--process_id=I go together; --num_processes=1 alone is one process"
        )
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"--coordinator={coordinator} must be HOST:PORT of process 0")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} must be in [0, {num_processes}) with "
            f"--num_processes={num_processes}"
        )
    options: dict[str, Any] = {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
        "local_device_ids": [],  # all that the process sees
    }
    if _is_loopback(host):  # the coordinator's port has no password: reachable from here alone
        options["coordinator_bind_address"] = coordinator
    return options


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return False


def _from_environment() -> dict[str, Any] | None:
    """Return the arguments that jax cannot find out itself; None for one process."""
    env = os.environ
    # Of this step: a shell inside an allocation, and a batch script, see the tasks of the job, and
    # are one process.
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks > 1 and "SLURM_PROCID" in env:
        return {"num_processes": tasks, **_devices_of_task(tasks)}
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return {}
    # jax has set it if this is a Cloud TPU VM, and TPU_SKIP_MDS_QUERY if it has no TPU.
    if env.get("TPU_ML_PLATFORM") == "JAX" and "tpu" in env.get("JAX_PLATFORMS", "tpu"):
        hosts = env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES"))
        slices = int(env.get("MEGASCALE_NUM_SLICES", 1))
        if hosts is not None:
            return {} if "," in hosts or slices > 1 else None
        if "TPU_SKIP_MDS_QUERY" not in env:
            return {}
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= env.keys() and find_spec(
        "kubernetes"
    ):
        return {}
    return None


def _devices_of_task(tasks: int) -> dict[str, Any]:
    """Return the devices of a task of a Slurm step: {} for the one of its number on the node.

    jax gives each task one GPU, also where the node has no other task, or where Slurm itself shows
    the task its own GPUs only.
    """
    env = os.environ
    alone = tasks == int(env.get("SLURM_STEP_NUM_NODES", 1))
    visible = env.get("CUDA_VISIBLE_DEVICES")
    bound = visible is not None and "," not in visible
    return {"local_device_ids": []} if alone or bound else {}


def _initialize(options: dict[str, Any], timeout_s: float) -> None:
    # Its notifier would take SIGTERM, so that it ends no process that has no handler of its own.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # jax ends the process with a stack trace of C++ when its own time is over; this one comes first
    # and says why.
    timer = threading.Timer(timeout_s, _give_up, (options, timeout_s))
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(**options, initialization_timeout=int(timeout_s) + 60)
    except (RuntimeError, ValueError) as error:
        if "Failed to start RPC server" in str(error):
            raise TemporaryError(
                f"the coordinator cannot listen on {_where(options)}: another process has the port "
                "or the address is not of this host; give --coordinator with another port, or the "
                "address of the host of process 0"
            ) from error
        if "coordinator_address" in options or "must be called before" in str(error):
            raise
        raise UserError(
            f"the environment looks like a cluster and names no coordinator ({error}); give "
            "--coordinator=HOST:PORT, --num_processes=N and --process_id=I, or --num_processes=1 "
            "for one process"
        ) from error
    finally:
        timer.cancel()


def _give_up(options: dict[str, Any], timeout_s: float) -> None:
    """End the process: the others have not come."""
    where, number = _where(options), options.get("process_id", os.environ.get("SLURM_PROCID"))
    total = options.get("num_processes", "all")
    print(
        f"error: after {timeout_s:g} s not all of {total} processes have joined the coordinator "
        f"{where}; this is process {number if number is not None else '?'} on "
        f"{socket.gethostname()}.{_reachable(options)} See that process 0 runs there, that every "
        "process was started, each with its own number, and that no firewall is between them",
        file=sys.__stderr__,
        flush=True,
    )
    os._exit(TemporaryError.exit_code)


def _where(options: dict[str, Any]) -> str:
    nodes = os.environ.get("SLURM_STEP_NODELIST", "that the cluster names")
    return options.get("coordinator_address") or os.environ.get("JAX_COORDINATOR_ADDRESS") or nodes


def _reachable(options: dict[str, Any]) -> str:
    """Return whether the coordinator answers, as a sentence with a space before."""
    if "coordinator_address" not in options or options["process_id"] == 0:
        return ""
    host, _, port = options["coordinator_address"].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return " The coordinator answers: other processes are missing."
    except OSError as error:
        return f" The coordinator cannot be reached ({error})."
