"""The plan of every paper-scale configuration and of every rung of configs/finetune, and the page
that shows them.

python benchmarks/plans.py [--only=vdit/480p,finetune/vdit:24gb] [--again]   compile what is missing
python benchmarks/plans.py --write                                          only the page

Neither a GPU nor a TPU is needed, but their compilers: pip install ".[plan,gpu]". Each plan is a
run of launch/plan.py in a process of its own, a line of benchmarks/results/plans.jsonl;
docs/plans.md is made of all lines.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from xgen_jax.commands.plan_text import duration  # noqa: E402  (the path comes first)

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "plans.jsonl"
PAGE = ROOT / "docs" / "plans.md"
BEGIN, END = "<!-- plans: begin -->", "<!-- plans: end -->"


class Case(NamedTuple):
    """A plan to make.

    Attributes:
      config, topology: of the plan.
      flags: further ones of launch/plan.py.
    """

    config: str
    topology: str
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The case in words."""
        return " ".join((self.config, self.topology, *self.flags))


# Largest bucket of each configuration, on the devices that its batches are made for.
PAPER = (
    Case("vidvae/paper", "v5p:2x2x2"),
    Case("vidvae/paper", "gpu:h100:8"),
    Case("vidvae/paper", "v6e:2x4", ("--bucket=17x512x512",)),
    Case("regen/paper", "v5p:2x4x4"),
    Case("regen/paper", "gpu:h100:32"),
    Case("vdit/240p", "v5p:4x4x4"),
    Case("vdit/240p:8", "gpu:h100:8"),
    Case("vdit/480p", "v5p:4x4x4"),
    Case("vdit/480p:8", "gpu:h100:8"),
    Case("vdit/720p", "v5p:4x4x4"),
    Case("vdit/720p:8", "gpu:h100:8"),
    Case("vdit/regen_5b", "v5p:4x4x4"),
    Case("vdit/regen_5b", "gpu:h100:64"),
)
DEVICES = {"12gb": "gpu:4070", "24gb": "gpu:4090", "80gb": "gpu:h100", "cpu": "cpu"}
RUNGS = tuple(
    Case(f"finetune/{family}:{rung}", device)
    for rung, device in DEVICES.items()
    for family in ("vidvae", "vdit", "vdit_lora", "regen")
)
USE = (
    Case("vdit/720p", "gpu:h100", ("--what=sample", "--frames=113", "--size=720x1280")),
    Case("vidvae/paper", "gpu:h100", ("--what=decode", "--frames=81", "--size=720x1280")),
    Case("vidvae/paper", "gpu:h100", ("--what=encode", "--bucket=17x480x848")),
    Case("regen/paper", "gpu:h100", ("--what=decode", "--frames=66")),
)
# tests/benchmarks/test_plans.py compiles these again.
SMALLEST = tuple(
    Case(f"quickstart/{family}", "v5e:1x1", ("--config.mesh.fsdp=1",))
    for family in ("vidvae", "vdit", "regen")
)
CASES = (*SMALLEST, *PAPER, *RUNGS, *USE)


def saved() -> dict[str, dict[str, Any]]:
    """Read the lines of the results, by name; of two the later."""
    if not RESULTS.exists():
        return {}
    rows = map(json.loads, RESULTS.read_text().splitlines())
    return {row["case"]: row for row in rows}


def command(case: Case) -> list[str]:
    """Return the command that makes a plan."""
    flags = (f"--config={case.config}", f"--topology={case.topology}", *case.flags)
    return [sys.executable, str(ROOT / "launch" / "plan.py"), *flags]


def make(cases: Iterable[Case]) -> None:
    """Make plans, each in a process of its own, and append their lines."""
    for case in cases:
        print(f"== {case.name}", file=sys.stderr, flush=True)
        done = subprocess.run(command(case), stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(f"== {case.name}: exit {done.returncode}", file=sys.stderr, flush=True)
            continue
        row = {"case": case.name, "config": case.config, **json.loads(done.stdout)}
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")


def tables(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the page's tables."""
    groups = (
        ("Training at the papers' scale", PAPER),
        ("Training on your own clips: `configs/finetune`", RUNGS),
        ("Sampling, encoding, decoding", USE),
        ("The smallest of each family", SMALLEST),
    )
    for title, cases in groups:
        yield f"## {title}"
        yield ""
        yield (
            "| config | devices | program | parameters | GiB a device: state + temporaries | "
            "TFLOP | sent, GB | floor | at 40% | all of it at 40% |"
        )
        yield "|---|---|---|---|---|---|---|---|---|---|"
        missing = []
        for case in cases:
            if case.name in rows:
                yield _row(case, rows[case.name])
            else:
                missing.append(f"`{case.name}`")
        yield ""
        if missing:
            yield f"Not compiled yet: {', '.join(missing)}."
            yield ""


def _row(case: Case, row: dict[str, Any]) -> str:
    sizes = {name: size or 0 for name, size in row["bytes"].items()}
    temporaries = sizes.pop("temporaries")
    memory = f"{_gib(sum(sizes.values()))} + {_gib(temporaries)}"
    if row["limit_bytes"] is not None:
        memory += f" of {_gib(row['limit_bytes'])}"
    if not row["fits"]:
        memory = (
            f"**does not fit**: needs {_gib(row['peak_bytes'])}, has {_gib(row['limit_bytes'])}"
        )
    sent = sum(
        kind["link_bytes"] + kind["network_bytes"] for kind in (row["collectives"] or {}).values()
    )
    times = [""] * 3
    if "floor" in row:
        total = row["at_assumed_mfu"]["total_s"]
        chips = f" x {row['chips']}" if row["chips"] > 1 else ""
        times = [
            f"{duration(row['floor']['step_s'])} ({row['floor']['bound']})",
            duration(row["at_assumed_mfu"]["step_s"]),
            f"{row['runs']:,} x = {duration(total)}{chips}",
        ]
    what = "" if row["what"] == "train" else f"{row['what']} "
    cells = [
        f"`{case.config}`",
        f"{row['topology']}",
        f"{what}{row['bucket']}, {row['batch_size']} clips",
        f"{row['parameters'] / 1e6:,.1f} M",
        memory,
        f"{row['flops'] / 1e12:,.4g}",
        "" if row["collectives"] is None else f"{sent / 1e9:.3g}",
        *times,
    ]
    return f"| {' | '.join(cells)} |"


def _gib(size: int | None) -> str:
    return "more" if size is None else f"{size / 2**30:.2f}"


def write(page: pathlib.Path = PAGE) -> None:
    """Write the tables between the marks of the page."""
    text = page.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    lines = "\n".join(tables(saved()))
    page.write_text(f"{before}{BEGIN}\n\n{lines}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="configurations, or whole cases, with commas between")
    parser.add_argument("--again", action="store_true", help="also those that are there")
    parser.add_argument("--write", action="store_true", help="only write the page")
    options = parser.parse_args()
    if not options.write:
        wanted, known = options.only and options.only.split(","), saved()
        chosen = [case for case in CASES if options.again or case.name not in known]
        if wanted:
            # In the order in which they are given.
            chosen = [c for name in wanted for c in chosen if name in (c.config, c.name)]
        make(chosen)
    write()


if __name__ == "__main__":
    main()
