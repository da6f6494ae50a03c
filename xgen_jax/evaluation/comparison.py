"""HTML page that compares several experiments: figures, curves, samples, reconstructions, and what
differs in their configurations."""

import collections
import itertools
import json
import os
import pathlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from xgen_jax.config.build import flat
from xgen_jax.errors import UserError
from xgen_jax.evaluation import page
from xgen_jax.evaluation.chart import SERIES
from xgen_jax.evaluation.clips import Clip, Clips, Sheet
from xgen_jax.evaluation.experiment import STAGES, Experiment, read_experiment, training_charts
from xgen_jax.evaluation.measures import (
    HIGHER,
    LOWER,
    ONE,
    RECONSTRUCTION,
    Measure,
    reconstruction_figures,
)
from xgen_jax.evaluation.report import (
    accuracy_rows,
    frame_charts,
    reconstructed,
    style_of,
    with_truth,
)

MAX_SHOWN = 24  # prompts, and clips
IN_SIGHT = 8
MAX_NAME = 40  # characters of a run's name that are shown
VIDEO_BUDGET = 3_000_000  # bytes of all videos before base64, which adds a third
ABSENT = "–"


def write_comparison(
    roots: Sequence[str | os.PathLike], out: str | os.PathLike
) -> tuple[pathlib.Path, list[str]]:
    """Write the page, atomically.

    Args:
      roots: folders of experiments, or of single runs; see `experiment`.
      out: the page's path.

    Returns:
      The page's path, and what the runs are called on it.

    Raises:
      UserError: fewer than two folders or more than there are colours, one given twice or without a
        run, or the page cannot be written.
    """
    names = _names([pathlib.Path(root) for root in roots])
    runs = dict(zip(names, map(read_experiment, roots)))
    clips = Clips(VIDEO_BUDGET)
    stages = [stage for stage in STAGES if any(run.stages.get(stage) for run in runs.values())]
    warnings = _warnings(runs)
    path = page.write_page(
        out,
        "comparison",
        f"{len(runs)} runs compared",
        "media",
        facts=page.facts(*map(itertools.chain, *(run.recorded for run in runs.values()))),
        names=names,
        groups=_figures(runs, warnings),
        warnings=warnings.values(),
        stages={
            STAGES[stage]: training_charts(
                {n: run.stages.get(stage, {}).get("metrics", []) for n, run in runs.items()}
            )
            for stage in stages
        },
        frames=frame_charts({name: run.shape or {} for name, run in runs.items()}),
        samples=_samples(runs, clips),
        reconstructions=_reconstructions(runs, clips),
        differences={
            STAGES[stage]: _differences({n: run.config(stage) for n, run in runs.items()})
            for stage in stages
        },
        trained={name: run.commands for name, run in runs.items() if run.commands},
        given=shlex.quote(",".join(str(run.root) for run in runs.values())),
        folder=shlex.quote(str(pathlib.Path(out).parent)),
    )
    return path, names


def _names(roots: Sequence[pathlib.Path]) -> list[str]:
    """Return the shortest ends of the folders' paths by which they differ."""
    if not 2 <= len(roots) <= SERIES:
        raise UserError(
            f"{len(roots)} runs cannot be compared: give --runs=DIR,DIR,... with 2 to {SERIES}"
        )
    parts = [root.resolve().parts for root in roots]
    for twice, count in collections.Counter(parts).items():
        if count > 1:
            raise UserError(f"--runs has {pathlib.Path(*twice)} {count} times: give it once")
    depth = next(n for n in itertools.count(1) if len({x[-n:] for x in parts}) == len(parts))
    names = ["/".join(each[-depth:]) for each in parts]
    short = [page.middle_out(name, MAX_NAME) for name in names]
    return short if len(set(short)) == len(short) else names


Cell = tuple[str, bool, str]  # text, whether it is the best, interval
Row = tuple[Measure, str, list[Cell]]


def _figures(runs: dict[str, Experiment], warnings: Mapping[str, str]) -> dict[str, list[Row]]:
    """Return by group (measure, its key, a cell for each run); none is the best of a group with a
    warning."""
    accuracies = [{row[0]: row[1:] for row in accuracy_rows(run.captions)} for run in runs.values()]
    means = [reconstruction_figures(run.shape) for run in runs.values()]
    groups: dict[str, list[Row]] = {"Captions": [], "Reconstruction": [], "Size and time": []}
    for key in dict.fromkeys(key for each in accuracies for key in each):
        values = [each.get(key, (None, None)) for each in accuracies]
        measure = Measure("all attributes right" if key == "all" else key, ".1%", HIGHER)
        cells = _best(measure, [value for value, _ in values])
        intervals = ["{:.0%} to {:.0%}".format(*each) if each else "" for _, each in values]
        texts = [(text, best, each) for (text, best, _), each in zip(cells, intervals)]
        groups["Captions"].append((measure, key, texts))
    for key in dict.fromkeys(key for each in means for key in each):
        cells = _best(RECONSTRUCTION[key], [each.get(key) for each in means])
        groups["Reconstruction"].append((RECONSTRUCTION[key], key, cells))
    for stage, title in STAGES.items():
        sizes = [
            (x.stages.get(stage, {}).get("run") or {}).get("parameters") for x in runs.values()
        ]
        if any(sizes):
            measure = Measure(f"parameters: {title}", ",")
            groups["Size and time"].append((measure, "", _best(measure, sizes)))
    times = [(page.fact(x.total_s, "_s") if x.times else ABSENT, False, "") for x in runs.values()]
    groups["Size and time"].append((Measure("time of all stages"), "time", times))
    for name in warnings.keys() & groups.keys():
        for _, _, cells in groups[name]:
            cells[:] = [(text, False, interval) for text, _, interval in cells]
    return {name: rows for name, rows in groups.items() if rows}


def _best(measure: Measure, values: Sequence[Any]) -> list[Cell]:
    """Return the text of each value, and whether it is the best of different ones."""
    texts = [measure.show(value) for value in values]
    distance = {HIGHER: lambda x: -x, LOWER: lambda x: x, ONE: lambda x: abs(x - 1)}
    known = [value for value in values if page.number(value) is not None]
    if measure.better not in distance or len(set(texts) - {ABSENT}) < 2:
        return [(text, False, "") for text in texts]
    best = measure.show(min(known, key=distance[measure.better]))
    return [(text, text == best, "") for text in texts]


def _warnings(runs: dict[str, Experiment]) -> dict[str, str]:
    """Say, by group, where figures stand side by side that were not made alike."""
    clips, prompts, settings = [], [], []
    for run in runs.values():
        if run.shape:
            facts = {
                key: (run.reconstruction or {}).get(key) for key in ("source", "split", "seed")
            }
            clips.append(facts | {key: run.shape.get(key) for key in ("shape", "clips")})
        if run.captions:
            prompts.append({key: run.captions.get(key) for key in ("prompts", "seed")})
        if results := run.captions or run.samples:
            settings.append(results.get("settings") or {})
    asked = {
        "Reconstruction": ("clips of reconstruction", clips),
        "Captions": ("prompts", prompts),
        "Samples": ("settings of sampling", settings),
    }
    lines = {}
    for group, (what, each) in asked.items():
        if rows := _unequal(each):
            listed = (f"{key.replace('_', ' ')} {', '.join(values)}" for key, values in rows)
            lines[group] = f"The {what} differ between runs: {'; '.join(listed)}."
    return lines


def _unequal(columns: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return (key, its value in each) of what is not the same in all."""
    rows = [
        (key, [json.dumps(column[key]) if key in column else ABSENT for column in columns])
        for key in dict.fromkeys(key for column in columns for key in column)
    ]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _differences(
    configs: Mapping[str, dict[str, Any]],
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the runs that have a configuration, and which settings differ between those."""
    known = {name: flat(config) for name, config in configs.items() if config}
    return list(known), _unequal(list(known.values()))


def _samples(runs: dict[str, Experiment], clips: Clips) -> Sheet:
    """Return the videos of the prompts that all runs were given, the truth first."""
    found, style = [], {}
    for name, run in runs.items():
        results, kind = run.captions or run.samples or {}, "captions" if run.captions else "samples"
        rows = {row.get("prompt"): row for row in results.get("samples") or () if row.get("file")}
        found.append({prompt: (run.evaluation / kind, row) for prompt, row in rows.items()})
        style[name] = style_of(run)

    def make(row: dict[str, Any]) -> list[Clip]:
        made: list[Clip] = []
        for name, (folder, sample) in zip(runs, row["of"]):
            correct = sample.get("correct") or {}
            wrong = [what for what, right in correct.items() if not right and what != "all"]
            mark = f" ✗ {', '.join(wrong)}" if wrong else " ✓" if correct else ""
            pair = with_truth(clips, folder, sample, style[name], f"{name}{mark}", bool(made))
            made += pair
        return made

    return _common(clips, found, make, "prompts")


def _reconstructions(runs: dict[str, Experiment], clips: Clips) -> Sheet:
    """Return the reconstructions of the clips that all runs were scored on."""
    found = []
    for run in runs.values():
        seen: collections.Counter = collections.Counter()
        by_clip = {}
        for row in (run.shape or {}).get("videos") or ():
            # Several clips of one file have one name.
            key = row.get("name"), seen[row.get("name")]
            seen[row.get("name")] += 1
            if row.get("file"):
                by_clip[key] = run, row
        found.append(by_clip)

    def make(row: dict[str, Any]) -> list[Clip]:
        return [
            reconstructed(
                clips, run, one, f"{name}: {page.figure(one.get('psnr_db'), '.1f', ' dB')}"
            )
            for name, (run, one) in zip(runs, row["of"])
        ]

    return _common(clips, found, make, "clips")


def _common(clips: Clips, found: Sequence[dict[Any, Any]], make: Any, what: str) -> Sheet:
    """Return a sheet of what all runs have."""
    every = dict.fromkeys(key for each in found for key in each)
    rows = [
        {"name": key[0] if isinstance(key, tuple) else key, "of": [each[key] for each in found]}
        for key in every
        if all(key in each for each in found)
    ]
    rest = len(every) - len(rows)
    remark = f" that all runs have{f'; {rest} others are left out' if rest else ''}"
    return clips.sheet(rows, make, MAX_SHOWN, what, remark, IN_SIGHT)
