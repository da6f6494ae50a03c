"""HTML page of a folder of runs, finished or not: figures, curves, videos, verdicts, settings.

It is written from the files under the folder (see `experiment`), so it can be made again at any
time; what is missing there is marked as missing.
"""

import dataclasses
import math
import os
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from xgen_jax.config.build import flat
from xgen_jax.evaluation import page
from xgen_jax.evaluation.chart import Chart, Curve, histogram, line_chart
from xgen_jax.evaluation.clips import Clip, Clips, Sheet
from xgen_jax.evaluation.experiment import STAGES, Experiment, read_experiment, training_charts
from xgen_jax.evaluation.intervals import wilson_interval
from xgen_jax.evaluation.measures import RECONSTRUCTION, reconstruction_figures
from xgen_jax.evaluation.vbench import COLUMNS, group_rows

MAX_SAMPLES = 64
MAX_RECONSTRUCTIONS = 12
MAX_WORST = 4
MAX_WRONG = 8
MAX_CONFUSIONS = 8
IN_SIGHT = 16  # samples
RECONSTRUCTIONS_IN_SIGHT = 8
# Bytes of all embedded videos before base64, which adds a third: the page stays below 3 MB.
VIDEO_BUDGET = 2_000_000
Interval = tuple[float, float]
FRAME_CURVES = {"psnr_db": "PSNR, dB,", "ssim": "SSIM"}
SPLITS = {
    "held_out": "clips that were held out of training",
    "train": "clips that were trained on, which says little of other footage",
    "all": "clips of a whole folder, which training may have seen",
}


def write_report(root: str | os.PathLike, out: str | os.PathLike | None = None) -> pathlib.Path:
    """Write the page, atomically.

    Args:
      root: the folder of the runs.
      out: the page's path; `ROOT/report.html` by default.

    Returns:
      The page's path.

    Raises:
      UserError: the folder holds no run, or a file in it is not what a run writes.
    """
    experiment = read_experiment(root)
    clips = Clips(VIDEO_BUDGET)
    samples = _samples(experiment, clips)
    reconstruction = experiment.reconstruction
    return page.write_page(
        pathlib.Path(root) / "report.html" if out is None else out,
        "report",
        experiment.name,
        "media",
        facts=page.facts(*experiment.recorded),
        experiment=experiment,
        stages=STAGES,
        samples=samples,
        vbench=group_rows(experiment.vbench, "this model") if experiment.vbench else None,
        vbench_columns=COLUMNS,
        settings=sampled_with(experiment.captions or experiment.samples or {}),
        accuracy=accuracy_rows(experiment.captions),
        confusions=_confusions(experiment.captions),
        split=SPLITS.get(str((reconstruction or {}).get("split"))) if experiment.own else None,
        reconstruction=_reconstruction(experiment, clips),
        training={
            stage: training_charts({"training": files.get("metrics", [])})
            for stage, files in experiment.stages.items()
        },
        settings_of={
            stage: flat(files["config"]) if "config" in files else None
            for stage, files in experiment.stages.items()
        },
        folder=shlex.quote(
            f"runs/{experiment.name}" if experiment.root.is_absolute() else str(root)
        ),
        flags=_flags(experiment),
    )


# Samples.


def _samples(experiment: Experiment, clips: Clips) -> list[Sheet]:
    """Return the samples of held-out prompts, those with something wrong first, or else of own
    prompts."""
    results = experiment.captions or experiment.samples or {}
    folder = experiment.evaluation / ("captions" if experiment.captions else "samples")
    rows = results.get("samples") or []
    wrong = [row for row in rows if (row.get("correct") or {}).get("all") is False]
    kept = [row for row in rows if row.get("file")]

    def make(row: dict[str, Any]) -> list[Clip]:
        return with_truth(clips, folder, row, style_of(experiment))

    sheets = []
    if worst := [row for row in kept if row["file"] in {row.get("file") for row in wrong}]:
        sheet = clips.sheet(worst[:MAX_WRONG], make, MAX_WRONG, "samples", "", MAX_WRONG)
        note = f"{len(wrong)} of {len(rows)} samples have something wrong"
        note += f"; the first {len(sheet.cards)}:" if len(sheet.cards) < len(wrong) else ":"
        sheets.append(dataclasses.replace(sheet, note=note))
    if kept:
        sheet = clips.sheet(kept, make, MAX_SAMPLES, "samples", "", IN_SIGHT)
        shown = "All" if len(sheet.cards) == len(rows) else f"The first {len(sheet.cards)} of"
        note = f"{shown} {len(rows)} samples, in the order of the prompts."
        sheets.append(dataclasses.replace(sheet, note=note))
    return sheets


def style_of(experiment: Experiment) -> str:
    """Return how the moving shapes that were trained on are drawn."""
    source = experiment.config("vdit").get("data", {}).get("source")
    return source.get("style", "filled") if isinstance(source, dict) else "filled"


def with_truth(
    clips: Clips,
    folder: pathlib.Path,
    row: Mapping[str, Any],
    style: str,
    note: str = "",
    alone: bool = False,
) -> list[Clip]:
    """Return a sample, and unless it is to stand alone, before it what its prompt says where that
    is known.

    Raises:
      PageIsFull: they do not fit.
    """
    sample = clips.read(folder, row.get("file"), str(row.get("prompt", "")), note)
    truth = None if alone else clips.truth(row.get("wanted"), sample, "truth", style)
    return (
        [sample] if truth is None else [truth, dataclasses.replace(sample, note=note or "sample")]
    )


def sampled_with(results: Mapping[str, Any]) -> str:
    """Return a line with the settings of sampling; "" where none is known."""
    settings = results.get("settings") or {}
    listed = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
    return f"Sampled with {listed}." if listed else ""


def accuracy_rows(captions: Mapping[str, Any] | None) -> list[tuple[str, float, Interval | None]]:
    """Return (attribute, fraction that is right, its interval) of the prompts; all of them come
    last."""
    captions = captions or {}
    accuracy, prompts = captions.get("accuracy", {}), captions.get("prompts")
    known = isinstance(prompts, int) and prompts > 0
    return [
        (name, accuracy[name], wilson_interval(accuracy[name], prompts) if known else None)
        for name in sorted(accuracy, key=lambda name: name == "all")
        if page.number(accuracy[name]) is not None
    ]


def _confusions(captions: Mapping[str, Any] | None) -> list[tuple[str, str, str, int]]:
    """Return (attribute, wanted, read, how often) of what was read wrong, most frequent first."""
    found = [
        (name, wanted, read, count)
        for name, rows in ((captions or {}).get("confusions") or {}).items()
        for wanted, counts in rows.items()
        for read, count in counts.items()
        if read != wanted
    ]
    return sorted(found, key=lambda each: -each[-1])[:MAX_CONFUSIONS]


# Reconstruction.


def _reconstruction(experiment: Experiment, clips: Clips) -> dict[str, Any] | None:
    shape = experiment.shape
    if shape is None:
        return None
    rows = shape.get("videos", [])
    shown = [row for row in rows if row.get("file")]

    def make(row: dict[str, Any]) -> list[Clip]:
        return [reconstructed(clips, experiment, row)]

    remark = ": the original left, its reconstruction right"
    some = clips.sheet(shown, make, MAX_RECONSTRUCTIONS, "clips", remark, RECONSTRUCTIONS_IN_SIGHT)
    sheets = [some] if shown else []
    if len(shown) > 2 * MAX_WORST:
        ranked = sorted(shown, key=lambda row: page.number(row.get("psnr_db")) or math.inf)
        worst = clips.sheet(ranked[:MAX_WORST], make, MAX_WORST, "clips", remark)
        note = f"The {MAX_WORST} worst of {len(shown)} clips by PSNR{remark}."
        sheets.insert(0, dataclasses.replace(worst, note=note))
    return {
        "clips": page.figure(shape.get("clips"), ","),
        "figures": [
            (RECONSTRUCTION[key].name, RECONSTRUCTION[key].show(value), key)
            for key, value in reconstruction_figures(shape).items()
        ],
        "sheets": sheets,
        "charts": [
            *frame_charts({"mean of all clips": shape}),
            histogram([row.get("psnr_db") or math.nan for row in rows], "PSNR, dB"),
        ],
    }


def reconstructed(
    clips: Clips, experiment: Experiment, row: Mapping[str, Any], note: str = ""
) -> Clip:
    """Return an original and its reconstruction, one video, with the PSNR of its frames.

    Raises:
      PageIsFull: it does not fit.
    """
    folder = experiment.evaluation / "reconstruction"
    notes = [page.figure(value, ".1f", " dB") for value in row.get("psnr_db_frames") or ()]
    return clips.read(folder, row.get("file"), str(row.get("name", "")), note, notes)


def frame_charts(shapes: Mapping[str, Mapping[str, Any]]) -> list[Chart]:
    """Plot PSNR and SSIM of each frame, the mean over clips, and of one run its worst clip, too.

    Args:
      shapes: the runs' results at a clip shape, by what to call their means.
    """
    charts = []
    for metric, label in FRAME_CURVES.items():
        curves: dict[str, Curve] = {}
        borders: set[float] = set()
        for name, shape in shapes.items():
            by_frame = shape.get("by_frame") or {}
            borders |= {start + 0.5 for start in by_frame.get("chunk_starts") or ()}
            rows = [row for row in shape.get("videos", []) if row.get(f"{metric}_frames")]
            clips = [np.array(row[f"{metric}_frames"], np.float64) for row in rows]
            mean = by_frame.get(metric)
            if mean is None and len(set(map(len, clips))) == 1:
                mean = np.mean(clips, 0)
            mean = () if mean is None else mean
            curves[name] = range(1, len(mean) + 1), mean
            if len(shapes) == 1 and len(clips) > 1:
                worst = min(clips, key=np.mean)
                curves["worst clip"] = range(1, len(worst) + 1), worst
        if any(len(frames) for frames, _ in curves.values()):
            title = f"{label} by frame"
            charts.append(line_chart(curves, title, False, "frame", False, sorted(borders)))
    return charts


def _flags(experiment: Experiment) -> str:
    """Return the flags of launch/sample.py for another sample like the first."""
    results = experiment.captions or experiment.samples or {}
    settings = results.get("settings") or {}
    prompts = (str(row["prompt"]) for row in results.get("samples", []) if row.get("prompt"))
    names = [name for name in ("seed", "steps", "sampler", "guidance_scale") if name in settings]
    flags = [f"--{name}={shlex.quote(str(settings[name]))}" for name in names]
    return " ".join([*flags, f"\\\n  --prompt={shlex.quote(next(prompts, '...'))}"])
