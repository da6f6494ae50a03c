"""Plan a run before renting anything: does it fit, how long at least, for how much?

The program that the train, sample, encode or decode command would run is compiled for a TPU slice
or for GPUs, on any CPU host, and read. For a TPU this needs libtpu (`pip install xgen_jax[plan]`),
which has the TPU compiler and refuses a program that exceeds a chip's memory. For a GPU it needs
CUDA's wheels (`xgen_jax[gpu]`); that compiler refuses nothing, and kernels are not tuned without
the device, so that the workspace of a convolution may be larger there.
"""

import dataclasses
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from xgen_jax.commands.plan_programs import (
    ENCODE_BATCH,
    Program,
    decode_program,
    encode_program,
    find_embedder,
    sample_program,
    train_program,
)
from xgen_jax.commands.plan_text import advice, readable
from xgen_jax.commands.sample import parse_size
from xgen_jax.config.runs import Run, VDiTRun
from xgen_jax.data.buckets import Bucket, Shape, shape_name
from xgen_jax.errors import UserError, choose
from xgen_jax.inference.request import VideoRequest
from xgen_jax.models.embedder import Embedder
from xgen_jax.parallel.collectives import Collectives, collectives
from xgen_jax.parallel.devices import (
    COMPILER_OPTIONS,
    chips,
    domains,
    memory_limit,
    named_devices,
    peak_of,
)
from xgen_jax.parallel.memory import OUT_OF_MEMORY, largest_chunk, program_bytes
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.step_time import ASSUMED_MFU, dollars, step_time

WHATS = ("train", "sample", "encode", "decode")
MOST_CLIPS = 1024  # of a device, where the largest batch is looked for


class Outcome(NamedTuple):
    """What compiling a program gave.

    Attributes:
      compiled: None if the compiler refused.
      peak: bytes that it needs on a device; None if the compiler does not say.
      why: it does not fit; None if it does.
      seconds: that it took.
    """

    compiled: jax.stages.Compiled | None
    peak: int | None
    why: str | None
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """A request to plan a run.

    Attributes:
      config: of the run.
      topology: devices, see `parallel.devices.named_devices`.
      slices: of TPUs.
      what: the program: "train", "sample", "encode" or "decode".
      bucket: "FRAMESxHEIGHTxWIDTH", one of the run's; by default the largest, see
        `largest_bucket`. Of encoding and decoding the clip, of any shape.
      batch_size: clips at once on all devices together; by default the bucket's, and otherwise one
        clip a device (16 where they are encoded).
      size, frames: of the videos to sample or decode, "HEIGHTxWIDTH" in pixels, and their length.
      embedder: run folder or preset, on whose latents a transformer works.
      dollars_per_hour: of one chip or GPU.
      largest_batch: find the largest batch that fits, by compiling several.

    Raises:
      UserError: missing or contradicting values, by flag.
    """

    config: Run
    topology: str
    slices: int = 1
    what: str = "train"
    bucket: str | None = None
    batch_size: int | None = None
    size: str | None = None
    frames: int | None = None
    embedder: str | None = None
    dollars_per_hour: float | None = None
    largest_batch: bool = False

    def __post_init__(self):
        choose("--what", self.what, WHATS)
        if not self.topology:
            raise UserError("give --topology, e.g. v5p:4x4x4, gpu:h100:8 or cpu:8")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"--batch_size must be 1 or more, not {self.batch_size}")
        if self.dollars_per_hour is not None and not self.dollars_per_hour > 0:
            raise UserError(f"--dollars_per_hour must be above 0, not {self.dollars_per_hour}")
        if (self.size or self.frames) and self.what == "train":
            raise UserError(
                "--size and --frames are for --what=sample, encode or decode; a train "
                "step has a --bucket"
            )
        if self.bucket and self.what == "sample":
            raise UserError("--bucket is for training; give --size and --frames")
        if self.largest_batch and self.batch_size:
            raise UserError("give --batch_size or --largest_batch, not both")


def plan(
    request: PlanRequest, say: Callable[[str], None] = lambda line: print(line, file=sys.stderr)
) -> dict[str, Any]:
    """Compile the requested program, and return its plan.

    Args:
      request: see `PlanRequest`.
      say: called with the plan in words, and with each compilation on the way to the largest batch.

    Returns:
      The plan; docs/plans.md names its parts.

    Raises:
      UserError: no such devices, no compiler, a mesh, a batch, heads, a bucket or a video that does
        not fit the devices or the networks: all before anything is compiled.
    """
    devices = named_devices(request.topology, request.slices)
    dtype = np.dtype(request.config.loop.compute_dtype)
    embedder, origin = find_embedder(request.config, request.embedder, dtype)
    lower = _lowering(request, devices, embedder)
    program = lower(request.batch_size)  # mistakes in the request show here
    outcome, largest = None, {}
    if request.largest_batch:
        program, outcome, largest = _largest_batch(lower, program, _unit(request, program), say)
    report = {
        "what": request.what,
        "topology": request.topology,
        "slices": request.slices,
        "embedder": origin,
        **_report(program, outcome or compile_program(program), request.dollars_per_hour),
        **largest,
    }
    if not report["fits"]:
        report["advice"] = advice(request.config, report)
    say(readable(report))
    return report


def lower(request: PlanRequest) -> Program:
    """Return the requested program, lowered but not compiled; see `plan`."""
    devices = named_devices(request.topology, request.slices)
    dtype = np.dtype(request.config.loop.compute_dtype)
    embedder, _ = find_embedder(request.config, request.embedder, dtype)
    return _lowering(request, devices, embedder)(request.batch_size)


def _lowering(
    request: PlanRequest, devices: Sequence[Any], embedder: Embedder
) -> Callable[[int | None], Program]:
    """Return (clips at once, or None for the default) -> the program."""
    config = request.config
    if request.what == "train":
        mesh = make_mesh(config.mesh, devices)
        if mesh.size != len(devices):
            raise UserError(
                f"the mesh {dict(mesh.shape)} has {mesh.size} of the {len(devices)} devices of "
                f"{request.topology}; give --config.mesh.fsdp={len(devices) // mesh.size}, or -1 "
                "for all that are left"
            )
        bucket = _bucket(config, embedder, request.bucket)

        def train(clips):
            return train_program(
                config,
                embedder,
                mesh,
                dataclasses.replace(bucket, batch_size=clips or bucket.batch_size),
            )

        return train
    if request.what == "sample":
        mesh = make_mesh(MeshConfig(fsdp=-1), devices)
        size = None if request.size is None else parse_size(request.size)
        video = VideoRequest(frames=request.frames, size=size)
        return lambda clips: sample_program(config, embedder, mesh, clips or mesh.size, video)
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1), devices)  # each device has all parameters
    shape = _clip(request, embedder)
    if request.what == "encode":
        return lambda clips: encode_program(
            embedder, mesh, clips or ENCODE_BATCH * mesh.size, shape
        )
    return lambda clips: decode_program(embedder, mesh, clips or mesh.size, shape)


def _bucket(config: Run, embedder: Embedder, name: str | None) -> Bucket:
    if name is None:
        return largest_bucket(config, embedder)
    buckets = {bucket.name: bucket for bucket in config.data.buckets}
    return buckets[choose("--bucket", name, buckets)]


def largest_bucket(config: Run, embedder: Embedder) -> Bucket:
    """Return the trained bucket with most to compute on a batch: latent cells of a transformer,
    pixels of an embedder; of equal ones, that of the longest clips."""

    def size(bucket):
        transformer = isinstance(config, VDiTRun)
        shape = embedder.latent_shape(bucket.shape) if transformer else bucket.shape
        return bucket.batch_size * int(np.prod(shape)), bucket.frames

    return max((bucket for bucket in config.data.buckets if bucket.keep_prob), key=size)


def _clip(request: PlanRequest, embedder: Embedder) -> Shape:
    """The clip to encode or decode: as given, and for the rest the largest bucket's."""
    if request.bucket and not re.fullmatch(r"\d+x\d+x\d+", request.bucket):
        raise UserError(f"--bucket={request.bucket} must be FRAMESxHEIGHTxWIDTH, e.g. 17x256x256")
    if request.bucket:
        frames, height, width = map(int, request.bucket.split("x"))
    else:
        frames, height, width = largest_bucket(request.config, embedder).shape
    height, width = parse_size(request.size) if request.size else (height, width)
    return request.frames or frames, height, width


def _unit(request: PlanRequest, program: Program) -> int:
    """The least number of clips by which a batch can grow."""
    if request.what != "train":
        return program.mesh.size
    shards = program.mesh.shape["data"] * program.mesh.shape["fsdp"]
    return shards * request.config.loop.accumulate


def _largest_batch(
    lower: Callable[[int], Program], first: Program, unit: int, say: Callable[[str], None]
) -> tuple[Program, "Outcome | None", dict[str, Any]]:
    """Return the program of the largest batch that fits and what compiling it gave, or the first
    and None; and what was tried, for the report."""
    limit = memory_limit(first.mesh.devices.flat[0])
    if limit is None:
        raise UserError("--largest_batch needs devices whose memory is known, not a CPU")
    best: list[tuple[Program, Outcome]] = []
    tried: dict[int, int | None] = {}

    def measure(units: int) -> float:
        program = lower(units * unit)
        outcome = compile_program(program)
        tried[program.batch_size] = outcome.peak
        fits = outcome.why is None and outcome.peak is not None
        say(f"batch {program.batch_size}: {_gib(outcome.peak)}, {'fits' if fits else 'too large'}")
        if not fits or outcome.peak is None:
            return math.inf
        best[:] = [(program, outcome)]
        return outcome.peak

    units = largest_chunk(measure, MOST_CLIPS, limit)
    found = {"largest_batch": {"batch_size": units * unit, "tried": tried}}
    return (*best[0], found) if units else (first, None, found)


def _gib(size: int | None) -> str:
    return "too much" if size is None else f"{size / 2**30:.2f} GiB"


def compile_program(program: Program) -> Outcome:
    """Compile a program; the compiler's refusal for want of memory is an outcome."""
    started, device = time.monotonic(), program.mesh.devices.flat[0]
    limit, options = memory_limit(device), COMPILER_OPTIONS.get(device.platform)
    try:
        compiled = program.lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        peak = named_bytes(str(error), sum(program.resident.values()))
        return Outcome(None, peak, _does_not_fit(peak, limit), time.monotonic() - started)
    peak = program_bytes(compiled)
    why = None if limit is None or peak <= limit else _does_not_fit(peak, limit)
    return Outcome(compiled, peak, why, time.monotonic() - started)


def _does_not_fit(peak: int | None, limit: int | None) -> str:
    has = "" if limit is None else f", has {limit / 2**30:.2f} GiB"
    needs = "more" if peak is None else _gib(peak)
    return f"does not fit: needs {needs}{has} on each device"


def _report(program: Program, outcome: Outcome, dollars_per_hour: float | None) -> dict[str, Any]:
    """Return all of a plan that follows from a compiled program."""
    mesh, (compiled, peak, why, seconds) = program.mesh, outcome
    device = mesh.devices.flat[0]
    rented = chips(device, mesh.size)
    sent = Collectives.none() if mesh.size == 1 else _sent(compiled, mesh)
    temporaries = None if peak is None else max(0, peak - sum(program.resident.values()))
    report: dict[str, Any] = {
        "devices": mesh.size,
        "chips": rented,
        "device_kind": device.device_kind,
        "mesh": dict(mesh.shape),
        "bucket": shape_name(program.shape),
        "batch_size": program.batch_size,
        "dtype": program.dtype,
        "parameters": program.parameters,
        "bytes": {**program.resident, "temporaries": temporaries},
        "peak_bytes": peak,
        "limit_bytes": memory_limit(device),
        "fits": why is None,
        "why": why,
        "flops": program.flops,
        "runs": program.runs,
        "collectives": None if sent is None else sent.table(),
        "compile_s": round(seconds, 1),
    }
    figures = peak_of(device)
    if figures is None or compiled is None or temporaries is None:
        return report
    rewritten = sum(program.resident[name] for name in program.rewritten)
    least = step_time(
        figures,
        program.dtype,
        flops=program.flops / mesh.size,
        rewritten=rewritten,
        read=sum(program.resident.values()) - rewritten,
        temporaries=temporaries,
        link_bytes=0 if sent is None else sent.link_bytes.total(),
        network_bytes=0 if sent is None else sent.network_bytes.total(),
    )
    report["device_figures"] = dataclasses.asdict(figures)
    report["floor"] = dataclasses.asdict(least) | {"step_s": least.floor_s, "bound": least.bound}
    for name, seconds in (("at_floor", least.floor_s), ("at_assumed_mfu", least.at_mfu())):
        report[name] = {"step_s": seconds, "total_s": seconds * program.runs}
        if dollars_per_hour is not None:
            total = dollars(seconds * program.runs, rented, dollars_per_hour)
            report[name]["dollars"] = round(total, 2)
    report["at_assumed_mfu"]["mfu"] = ASSUMED_MFU
    return report


def _sent(compiled: jax.stages.Compiled | None, mesh: jax.sharding.Mesh) -> Collectives | None:
    """Read what a device sends; None if there is no program, or this jaxlib cannot show it."""
    text = None if compiled is None else program_text(compiled)
    return None if text is None else collectives(text, domains(list(mesh.devices.flat)))


def program_text(compiled: jax.stages.Compiled) -> str | None:
    """Return the HLO of a compiled program; None if this jaxlib cannot show it."""
    try:
        return compiled.as_text() or None
    except jax.errors.JaxRuntimeError:
        # Programs by libtpu 0.0.52 may have instructions that jaxlib 0.10.2 does not know: all for
        # tpu7x do, and some with many transfers for a v5p.
        return None


def named_bytes(message: str, resident: int = 0) -> int | None:
    """Read the bytes needed from a compiler's refusal, in GiB; None if there are none.

    Compilers write "Used 16.51G of 15.75G hbm", or "memory required for HLO temporaries (54.68G)
    exceeds available HBM (31.25G)", which leaves out the `resident` bytes of the arguments.
    """
    pattern = r"(?:[Uu]sed |required for HLO (?P<of>\w+) \()(?P<number>[\d.]+)(?P<unit>[KMGT])"
    if (found := re.search(pattern, message)) is None:
        return None
    size = int(float(found["number"]) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[found["unit"]])
    return size + resident if found["of"] == "temporaries" else size
