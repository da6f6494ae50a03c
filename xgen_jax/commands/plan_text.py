"""A plan in words, and what to change where a program does not fit."""

from collections.abc import Iterator
from typing import Any

from xgen_jax.config.runs import REGENRun, Run, VDiTRun, VidVAERun
from xgen_jax.parallel.devices import RESERVED
from xgen_jax.parallel.step_time import ASSUMED_MFU

CLASSES = {
    "parameters": "parameters",
    "ema": "their average (EMA)",
    "optimizer": "optimiser state",
    "frozen": "frozen networks",
    "batch": "batch",
    "cache": "cache of the chunk before",
    "temporaries": "temporaries at the peak, padding",
}
RUNS = {
    "train": ("train step", "the run of"),
    "sample": ("sampling step", "a batch of videos,"),
    "encode": ("batch", "a batch of clips,"),
    "decode": ("chunk", "a batch of clips,"),
}


def readable(report: dict[str, Any]) -> str:
    """Return a plan in lines of text."""
    return "\n".join(_lines(report))


def _lines(report: dict[str, Any]) -> Iterator[str]:
    step, whole = RUNS[report["what"]]
    slices = f"{report['slices']} x " if report["slices"] > 1 else ""
    mesh = ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
    yield (
        f"{report['what']} on {slices}{report['topology']}: {report['devices']} x "
        f"{report['device_kind']}{f' (mesh: {mesh})' if mesh else ''}"
    )
    yield (
        f"  clips        {report['bucket']}, {report['batch_size']} at once; {report['dtype']}; "
        f"embedder: {report['embedder']}"
    )
    yield f"  parameters   {report['parameters']:,}"
    yield from _memory(report)
    yield f"  compute      {_flops(report['flops'])} a {step} on all devices, by formula"
    yield from _network(report)
    yield from _time(report, step, whole)
    if "largest_batch" in report:
        largest = report["largest_batch"]["batch_size"]
        yield f"  largest batch that fits: {largest or 'none'}"
    yield f"  compiled in {report['compile_s']} s"


def _memory(report: dict[str, Any]) -> Iterator[str]:
    limit, peak = report["limit_bytes"], report["peak_bytes"]
    yield "  memory of a device"
    for name, size in report["bytes"].items():
        if size:
            yield f"    {CLASSES[name]:34}{_gib(size):>12}"
    total = "not known" if peak is None else _gib(peak)
    has = "" if limit is None else f" of {_gib(limit)}"
    yield f"    {'in all':34}{total:>12}{has}"
    if report["fits"]:
        yield "  FITS" if limit is not None else "  the memory of this device is not known"
        return
    yield f"  {report['why'].upper()[:12]}{report['why'][12:]}"
    for line in report.get("advice", ()):
        yield f"    - {line}"


def _network(report: dict[str, Any]) -> Iterator[str]:
    table = report["collectives"]
    if table is None:
        there = "floor" in report
        reason = "cannot be read; the floor is without it" if there else "there is no program"
        yield f"  network      not known: {reason}"
        return
    yield "  network      " + ("nothing is sent" if not table else "sent by a device:")
    for kind, row in table.items():
        parts = [
            f"{_gb(row[key])} {where}"
            for key, where in (
                ("link_bytes", "in its slice or host"),
                ("network_bytes", "to others"),
            )
            if row[key]
        ]
        yield f"    {kind:34}{row['count']:>6} x, {', '.join(parts)}"
    if report["slices"] > 1 and any(row["network_bytes"] for row in table.values()):
        yield (
            f"    between slices only gradients need to be sent: --config.mesh.data="
            f"{report['slices']}"
        )


def _time(report: dict[str, Any], step: str, whole: str) -> Iterator[str]:
    if "floor" not in report:
        yield "  time         not known: this device has no figures, or there is no program"
        return
    floor, peak = report["floor"], report["device_figures"]
    tflops = peak["f32_tflops" if report["dtype"] == "float32" else "bf16_tflops"]
    yield (
        f"  device       {tflops:g} TFLOP/s, memory {peak['memory_gb_s']:g} GB/s, links "
        f"{peak['link_gb_s']:g} GB/s, network {peak['network_gb_s']:g} GB/s (data sheets)"
    )
    yield (
        f"  floor        max(compute {duration(floor['compute_s'])} = FLOPs / peak, memory "
        f"{duration(floor['memory_s'])} = (2 rewritten + read + 2 temporaries) / bandwidth,"
    )
    yield (
        f"               network {duration(floor['network_s'])} = sent / links) = "
        f"{duration(floor['step_s'])} a {step}, bound by {floor['bound']}"
    )
    for name, words in (
        ("at_floor", "at the floor, which no program reaches"),
        ("at_assumed_mfu", f"if {ASSUMED_MFU:.0%} of the peak are reached (an assumption)"),
    ):
        each = report[name]
        cost = f", ${each['dollars']:,.2f}" if "dollars" in each else ""
        yield (
            f"  {whole} {report['runs']:,} x {duration(each['step_s'])} = "
            f"{duration(each['total_s'])}{cost}: {words}"
        )
    if report["what"] == "train":
        yield f"  as if each step were of {report['bucket']}"


# By what a model computes again in the backward pass: what would need less memory.
_ALL = ("full", "recompute in the backward pass")
_BUT_ATTENTION = ("attention", "or all but the results of attention and MLPs there")
_REMAT = {
    "none": (_ALL, ("dots", "or all but products and attention there")),
    "dots": (
        _ALL,
        _BUT_ATTENTION,
        ("qkv", "or all but them and the projections to queries, keys and values there"),
    ),
    "qkv": (_ALL, _BUT_ATTENTION),
    "attention": (_ALL,),
    "full": (("offload", "keep the inputs of blocks in the host's memory"),),
    "offload": (),
}
_BLOCK = ("block", "recompute levels and their blocks in the backward pass")
_REMAT_OF_VIDVAE = {
    "none": (("level", "recompute in the backward pass"), _BLOCK),
    "level": (_BLOCK,),
    "block": (),
}


def advice(config: Run, report: dict[str, Any]) -> list[str]:
    """Return what to change, as flags, so that a program needs less memory on a device."""
    return list(_advice(config, report))


def _advice(config: Run, report: dict[str, Any]) -> Iterator[str]:
    clips = report["batch_size"] // (report["mesh"]["data"] * report["mesh"]["fsdp"])
    if report["what"] == "train":
        assert isinstance(config, VDiTRun | REGENRun | VidVAERun)
        transformer = isinstance(config, VDiTRun | REGENRun)
        for remat, what in (_REMAT if transformer else _REMAT_OF_VIDVAE)[config.model.remat]:
            yield f"{what}: --config.model.remat={remat}"
        if transformer and config.model.attention == "xla":
            yield "never make the whole attention matrix: --config.model.attention=auto"
        if clips > config.loop.accumulate:
            yield f"cut the batch in parts: --config.loop.accumulate={clips}, or another divisor"
        if report["mesh"]["data"] > 1:
            yield "share the state over all devices: --config.mesh.data=1 --config.mesh.fsdp=-1"
    if clips > 1:
        smaller = report["batch_size"] // clips
        yield f"a smaller batch: --batch_size={smaller} to try; --largest_batch finds what fits"
    elif report["what"] == "train":
        yield "share clips over devices: --config.mesh.sequence=2; or choose a smaller --bucket"
    else:
        yield "fewer --frames or a smaller --size"
    if report["device_kind"].startswith("NVIDIA"):
        yield (
            f"JAX reserves {RESERVED:.0%} of a GPU, which is what counts here; "
            "XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 in the environment of the run gives it more"
        )
    state = sum(report["bytes"].get(name, 0) for name in ("parameters", "ema", "optimizer"))
    shared = report["what"] == "train" and state > (report["peak_bytes"] or 0) / 4
    more = ", or more of them: the state is shared over mesh.fsdp" if shared else ""
    yield f"devices with more memory{more}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.2f} MiB"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def _flops(number: float) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number / 1e6:.4g} MFLOP"


def duration(seconds: float) -> str:
    """Format seconds in the largest unit of which there are two or more: "3.2 days", "77.3 ms"."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 2 * size or (unit == "s" and seconds >= 1):
            return f"{seconds / size:.3g} {unit}"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"
