"""The most that a compiled program can reach on a device, read from the program: no device is
needed. One JSON line on stdout, a table of the program's parts on stderr.

python benchmarks/roofline.py --config=vdit/480p --topology=v5p:2x2x1 [--bucket=17x480x848]
    [--batch_size=16] [--what=train|sample|encode|decode] [--config.KEY=VALUE ...] [--save=FILE]
python benchmarks/roofline.py --hlo=FILE[.gz] --topology=gpu:h200 [--devices=8] [--tflop=150.8]

The first form compiles the program that launch/plan.py would (with the same compilers), the second
reads one that was saved. --tflop are the useful operations of a device in 1e12, by formula and
without recomputation: the first form knows them.

    compute_s    padded operations of each dtype / the device's peak in it
    memory_s     bytes moved / the bandwidth of its memory
    network_s    the larger of bytes sent / links and bytes sent / network
    overlap      useful operations / peak / the largest of the three: all of it overlapped
    serial       the same with their sum: nothing overlapped
"""

import argparse
import collections
import gzip
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from xgen_jax.environment import compile_only  # noqa: E402  (the path comes first)
from xgen_jax.errors import UserError  # noqa: E402

# Sides of the matrix units, to which channels are padded; GPUs' tiles are small.
MATRIX_UNIT = {"v4": 128, "v5e": 128, "v5p": 128, "v6e": 256, "tpu7x": 256}
# A part is the first of these words in the name of an operation.
PARTS = (
    *("attention_space", "attention_time", "attention_text", "attention", "mlp", "discriminator"),
    *("siren", "expansion", "encoder", "decoder", "head", "LPIPS", "VGG", "norm"),
)
OPTIMIZER = ("adam", "optax", "_where", "incremental")


def part_of(op_name: str) -> str:
    """Name the part of the model that an operation belongs to, and its pass."""
    found = next((part for part in PARTS if part in op_name), None)
    if found is None:
        return "optimizer" if any(word in op_name for word in OPTIMIZER) else "other"
    return f"{found} {'backward' if 'transpose(' in op_name else 'forward'}"


def roofline(
    hlo: str,
    topology: str,
    domains: list[int],
    useful_flops: float | None,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Return the bounds of a program on one device.

    Args:
      hlo: text of the optimised program of one device.
      topology: its devices, see `parallel.devices.named_devices`.
      domains: of its devices, see `parallel.devices.domains`.
      useful_flops: of one device, without recomputation; None leaves the fractions out.
      dtype: of the computation, in whose peak the fractions are; by default that of most of the
        program's operations.

    Raises:
      UserError: devices whose peak is not known.
    """
    from xgen_jax.parallel.collectives import Collectives, collectives
    from xgen_jax.parallel.devices import named_peak
    from xgen_jax.parallel.program_work import program_work

    peak = named_peak(topology)
    work = program_work(hlo, MATRIX_UNIT.get(topology.partition(":")[0], 1))
    padded = work.flops(padded=True)
    sent = Collectives.none() if len(domains) == 1 else collectives(hlo, domains)
    compute_s = sum(flops / peak.flops(kind) for kind, flops in padded.items())
    memory_s = work.bytes / (1e9 * peak.memory_gb_s)
    network_s = (
        max(
            sent.link_bytes.total() / peak.link_gb_s, sent.network_bytes.total() / peak.network_gb_s
        )
        / 1e9
    )
    row: dict[str, Any] = {
        "topology": topology,
        "tflop": _tera(work.flops()),
        "padded_tflop": _tera(padded),
        "gb": round(work.bytes / 1e9, 3),
        "compute_s": compute_s,
        "memory_s": memory_s,
        "network_s": network_s,
        "overlap_s": max(compute_s, memory_s, network_s),
        "serial_s": compute_s + memory_s + network_s,
        "products": _counts(work),
        "collectives": sent.table(),
        "unknown_kernels": dict(work.unknown),
        "endless_loops": work.endless,
        "parts": parts(work),
    }
    if useful_flops is not None:
        flops = work.flops() or {"bfloat16": 0.0}
        dtype = dtype or max(flops, key=lambda name: flops[name])
        least = useful_flops / peak.flops(dtype)
        row |= {"dtype": dtype, "useful_tflop": useful_flops / 1e12}
        for name in ("overlap", "serial"):
            row[f"mfu_{name}"] = least / row[f"{name}_s"] if row[f"{name}_s"] else None
    return row


def parts(work) -> dict[str, dict[str, float]]:
    """Return the bytes and padded operations of each part of the model, most bytes first."""
    table: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for transfer in work.transfers:
        table[part_of(transfer.op_name)][0] += transfer.bytes / 1e9
    for product in work.products:
        table[part_of(product.op_name)][1] += product.padded_flops / 1e12
    rows = sorted(table.items(), key=lambda item: -item[1][0])
    return {name: {"gb": round(gb, 3), "tflop": round(tf, 3)} for name, (gb, tf) in rows}


def _tera(flops: dict[str, float]) -> dict[str, float]:
    return {dtype: round(value / 1e12, 6) for dtype, value in sorted(flops.items())}


def _counts(work) -> dict[str, int]:
    """How often each kind of product runs, "convolution bf16 x bf16 -> bf16"."""
    counts: collections.Counter = collections.Counter()
    for p in work.products:
        counts[f"{p.kind} {' x '.join(p.operands)} -> {p.result}"] += p.runs
    return dict(counts.most_common())


def of_config(options, keys: list[str]) -> dict[str, Any]:
    """Compile the program of a configuration, and return its row."""
    from xgen_jax.commands.arguments import find_config
    from xgen_jax.commands.config_file import load_config
    from xgen_jax.commands.plan import PlanRequest, compile_program, lower, program_text
    from xgen_jax.parallel.devices import domains, named_peak

    named_peak(options.topology)  # refused before anything is compiled
    config = load_config(find_config(options.config), keys)
    names = ("topology", "what", "bucket", "batch_size", "size", "frames", "embedder")
    request = PlanRequest(config=config, **{name: getattr(options, name) for name in names})
    program = lower(request)
    start = time.monotonic()
    outcome = compile_program(program)
    if outcome.compiled is None:
        raise UserError(f"{options.config} on {options.topology} {outcome.why}")
    hlo = program_text(outcome.compiled)
    if hlo is None:
        raise UserError(
            f"this jaxlib cannot read the program that it compiled for {options.topology}, which "
            "may have instructions that it does not know: give another --topology"
        )
    if options.save:
        with _opened(options.save, "wt") as file:
            file.write(hlo)
    row = roofline(
        hlo,
        options.topology,
        domains(list(program.mesh.devices.flat)),
        program.flops / program.mesh.size,
        program.dtype,
    )
    return {
        "config": options.config,
        "what": options.what,
        "clip": list(program.shape),
        "batch_size": program.batch_size,
        "devices": program.mesh.size,
        "peak_bytes": outcome.peak,
        "fits": outcome.why is None,
        "compile_s": round(time.monotonic() - start, 1),
        **row,
    }


def of_file(options) -> dict[str, Any]:
    """Read a saved program, and return its row."""
    from xgen_jax.parallel.devices import GPUS_PER_HOST

    try:
        with _opened(options.hlo, "rt") as file:
            hlo = file.read()
    except OSError as error:
        raise UserError(f"--hlo={options.hlo} cannot be read: {error.strerror or error}") from error
    if not re.search(r"^ENTRY ", hlo, re.MULTILINE):
        raise UserError(f"--hlo={options.hlo} is not the text of an optimised program (no ENTRY)")
    useful = None if options.tflop is None else options.tflop * 1e12
    # TPUs are those of one slice.
    together = GPUS_PER_HOST if options.topology.startswith("gpu:") else options.devices
    domains = [place // together for place in range(options.devices)]
    row = roofline(hlo, options.topology, domains, useful)
    return {"hlo": options.hlo, "devices": options.devices, **row}


def _opened(path: str, mode: str):
    return gzip.open(path, mode) if path.endswith(".gz") else open(path, mode)


def readable(row: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a row in words."""
    for name in ("compute", "memory", "network"):
        yield f"{name:9} {1e3 * row[f'{name}_s']:10,.1f} ms"
    for name in ("overlap", "serial"):
        mfu = row.get(f"mfu_{name}")
        bound = "" if mfu is None else f", MFU at most {100 * mfu:.1f}%"
        yield f"{name:9} {1e3 * row[f'{name}_s']:10,.1f} ms{bound}"
    for name, part in row["parts"].items():
        yield f"  {name:28} {part['gb']:10,.2f} GB {part['tflop']:10,.3f} TFLOP"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="a name in configs/, or a file")
    parser.add_argument("--hlo", help="a saved program instead")
    parser.add_argument("--topology", required=True, help="v5p:2x2x1, gpu:h100:8; see plan.py")
    parser.add_argument("--what", default="train", choices=["train", "sample", "encode", "decode"])
    parser.add_argument("--bucket", help="FRAMESxHEIGHTxWIDTH; by default the run's largest")
    parser.add_argument("--batch_size", type=int, help="clips at once on all devices together")
    parser.add_argument("--size", help="HEIGHTxWIDTH of videos to sample or decode")
    parser.add_argument("--frames", type=int, help="of these videos")
    parser.add_argument("--embedder", help="run folder or preset of a vdit run's latents")
    parser.add_argument("--devices", type=int, default=1, help="of a saved program")
    parser.add_argument("--tflop", type=float, help="useful 1e12 operations of a device, of --hlo")
    parser.add_argument("--save", help="file for the program's text; .gz compresses it")
    options, rest = parser.parse_known_args()
    prefix = "--config."
    if wrong := [flag for flag in rest if not flag.startswith(prefix) or "=" not in flag]:
        parser.error(f"{wrong[0]} is not known; keys are given as --config.KEY=VALUE")
    try:
        if (options.config is None) == (options.hlo is None):
            raise UserError("give --config=NAME or --hlo=FILE, one of them")
        compile_only(options.topology)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        keys = [flag.removeprefix(prefix) for flag in rest]
        row = of_file(options) if options.hlo else of_config(options, keys)
    except UserError as error:
        sys.exit(f"error: {error}")
    print("\n".join(readable(row)), file=sys.stderr)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
