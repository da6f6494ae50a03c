"""What lies in the folder of an experiment: runs, finished or not, and their evaluation.

ROOT/{vidvae,regen,vdit}/{config.json,run.json,metrics.jsonl}     or those of one run in ROOT
ROOT/evaluation/reconstruction/reconstruction.json and the videos it names
ROOT/evaluation/captions/captions.json and the videos it names (runs on moving shapes)
ROOT/evaluation/samples/samples.json and the videos it names (runs on other videos)
ROOT/evaluation/fvd/fvd.json, clip_score/clip_score.json and vbench_scores.json
ROOT/timings.json
"""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from xgen_jax.errors import UserError
from xgen_jax.evaluation import page
from xgen_jax.evaluation.chart import Chart, Curve, line_chart
from xgen_jax.files import read_json
from xgen_jax.training.metric_writers import read_jsonl

STAGES = {
    "vidvae": "Video autoencoder (VidVAE)",
    "regen": "Video autoencoder (REGEN)",
    "vdit": "Text-to-video transformer (VDiT)",
}
MAX_CURVES = 3  # of a run: a row of the page
# Metric: its label, and whether a log scale may help. The first of these that a run has are shown.
CURVES = {
    "loss": ("loss", True),
    "psnr_db": ("PSNR, dB", False),
    "held_out_accuracy_all": ("accuracy of held-out captions", False),
    "steps_per_s": ("speed, steps/s", False),
    "grad_norm": ("norm of the gradients", True),
}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The files of an experiment, as far as they exist.

    Attributes:
      root: the folder.
      name: what to call it.
      stages: by stage {"config", "run", "metrics"}, each where the file is there.
      reconstruction, captions, samples, fvd, clip_score, vbench, timings: the JSON files.
    """

    root: pathlib.Path
    name: str
    stages: Mapping[str, dict[str, Any]]
    reconstruction: dict[str, Any] | None
    captions: dict[str, Any] | None
    samples: dict[str, Any] | None
    fvd: dict[str, Any] | None
    clip_score: dict[str, Any] | None
    vbench: dict[str, Any] | None
    timings: dict[str, Any] | None

    @property
    def evaluation(self) -> pathlib.Path:
        """The folder of the evaluation."""
        return self.root / "evaluation"

    @functools.cached_property
    def shape(self) -> dict[str, Any] | None:
        """The reconstruction at the first clip shape; a quickstart scores no more."""
        if self.reconstruction is None:
            return None
        return next(iter(self.reconstruction.get("shapes") or [{}]))

    def config(self, stage: str) -> dict[str, Any]:
        """Return the configuration of a stage; {} where there is none."""
        return self.stages.get(stage, {}).get("config") or {}

    @property
    def own(self) -> str | None:
        """The folder of videos or latents that was trained on; None for moving shapes, and for
        latents of them: those of an autoencoder that was trained on them."""
        sources = [self.config(stage).get("data", {}).get("source") for stage in self.stages]
        known = [source for source in sources if isinstance(source, dict)]
        if known and "path" not in known[0]:
            return None
        return next((str(source["path"]) for source in known if source.get("path")), None)

    @property
    def times(self) -> dict[str, float] | None:
        """Seconds of each stage; those of training where launch/quickstart.sh noted none."""
        if self.timings:
            return {
                name: value
                for name, value in self.timings.items()
                if name != "total" and page.number(value) is not None
            }
        times = {}
        for stage, files in self.stages.items():
            spent = (files.get("metrics") or [{}])[-1].get("time_s")
            if page.number(spent) is not None:
                times[f"train the {STAGES[stage][0].lower()}{STAGES[stage][1:]}"] = spent
        return times or None

    @property
    def total_s(self) -> float:
        """Seconds of all stages together."""
        total = page.number((self.timings or {}).get("total"))
        return math.fsum((self.times or {}).values()) if total is None else total

    @property
    def recorded(self) -> tuple[list[str], ...]:
        """Machines, commits and dates of its runs, "" where one is not known; for `page.facts`."""
        runs = [stage.get("run") or {} for stage in self.stages.values()]
        machines = ["; ".join(filter(None, (x.get("device"), x.get("host")))) for x in runs]
        return machines, *([x.get(name) or "" for x in runs] for name in ("commit", "date"))

    @property
    def commands(self) -> list[str]:
        """The commands that trained it."""
        runs = [stage.get("run") or {} for stage in self.stages.values()]
        given = (x.get("command") or (x.get("summary") or {}).get("command") for x in runs)
        return list(filter(None, given))


def read_experiment(root: str | os.PathLike) -> Experiment:
    """Read the folder of an experiment.

    Raises:
      UserError: the folder holds no run, or a file in it is not what a run writes.
    """
    root = pathlib.Path(root)
    if (root / "config.json").is_file():
        alone = _read_run(root)
        objective = alone["config"].get("objective", "vdit")
        stages = {objective if objective in STAGES else "vdit": alone}
    else:
        there = {stage for stage in STAGES if (root / stage).is_dir()}
        there |= {"vdit"} if "regen" in there else {"vidvae", "vdit"}
        stages = {stage: _read_run(root / stage) for stage in STAGES if stage in there}
    found = {
        name: _read_json(root / "evaluation" / name / f"{name}.json")
        for name in ("reconstruction", "captions", "samples", "fvd", "clip_score")
    }
    found["vbench"] = _read_json(root / "evaluation" / "vbench_scores.json")
    timings = _read_json(root / "timings.json")
    if not any((*stages.values(), *found.values())):
        wanted = ", ".join(f"{stage}/metrics.jsonl" for stage in stages)
        raise UserError(
            f"{root} holds no run: expected a quickstart's folder, with {wanted} or an "
            f"evaluation in it"
        )
    return Experiment(root=root, name=root.resolve().name, stages=stages, timings=timings, **found)


def _read_json(path: pathlib.Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _read_run(folder: pathlib.Path) -> dict[str, Any]:
    """Read config, run and metrics, as far as they exist."""
    found: dict[str, Any] = {
        "config": _read_json(folder / "config.json"),
        "run": _read_json(folder / "run.json"),
    }
    if (folder / "metrics.jsonl").is_file():
        found["metrics"] = read_jsonl(folder / "metrics.jsonl")
    return {name: value for name, value in found.items() if value}


def training_charts(runs: Mapping[str, list[dict[str, Any]]]) -> list[Chart]:
    """Plot the metrics of runs of one stage, by the runs' names; of a single run those of held-out
    clips, too."""

    def curve(rows: list[dict[str, Any]], metric: str) -> Curve:
        known = [row for row in rows if isinstance(row.get(metric), int | float)]
        return [row["step"] for row in known], [row[metric] for row in known]

    charts = []
    for metric, (label, log) in CURVES.items():
        curves = {name: curve(rows, metric) for name, rows in runs.items()}
        if len(runs) == 1:
            held_out = curve(next(iter(runs.values())), f"held_out_{metric}")
            curves |= {"held out": held_out} if held_out[0] else {}
        if any(steps for steps, _ in curves.values()):
            charts.append(line_chart(curves, label, log))
    return charts[:MAX_CURVES]
