"""HTML report of a folder of runs, finished or not: figures, curves, videos, verdicts, settings.

The page is a single file that loads nothing from the network: videos are embedded, curves are
inline SVG, there are no scripts, and a content security policy in its head enforces that. It is
written from the files under the root folder, so it can be made again at any time; what is missing
there is marked as missing.

    ROOT/{vidvae,vdit}/{config.json,run.json,metrics.jsonl}
    ROOT/evaluation/reconstruction/reconstruction.json and the videos it names
    ROOT/evaluation/captions/captions.json and the videos it names (runs on moving shapes)
    ROOT/evaluation/samples/samples.json and the videos it names (runs on other videos)
    ROOT/timings.json
"""

import base64
import json
import math
import os
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

from xgen_jax.config.build import flat
from xgen_jax.errors import UserError
from xgen_jax.evaluation import page
from xgen_jax.evaluation.chart import line_chart
from xgen_jax.evaluation.intervals import wilson_interval
from xgen_jax.evaluation.page import escape
from xgen_jax.files import read_json, write_text
from xgen_jax.training.metric_writers import duration, read_jsonl

STAGES = {"vidvae": "Video autoencoder (VidVAE)", "vdit": "Text-to-video transformer (VDiT)"}
# Metric: its label, and whether a log scale may help.
CURVES = {
    "loss": ("loss", True),
    "psnr_db": ("PSNR, dB", False),
    "steps_per_s": ("speed, steps/s", False),
}
MAX_SAMPLES = 64
MAX_IN_SIGHT = 28  # the rest is folded away, so that the next section is near
MAX_RECONSTRUCTIONS = 12
# Bytes of all embedded videos before base64, which adds a third: the page stays below 3 MB.
VIDEO_BUDGET = 2_000_000
SOURCES = "media-src data:"


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
    root = pathlib.Path(root)
    out = root / "report.html" if out is None else pathlib.Path(out)
    runs = {stage: _read_run(root / stage) for stage in STAGES}
    reconstruction = _read_json(root / "evaluation" / "reconstruction" / "reconstruction.json")
    facts = reconstruction or {}
    if reconstruction is not None:  # the page shows one clip shape; a quickstart scores no more
        reconstruction = next(iter(reconstruction.get("shapes") or [{}]))
    captions = _read_json(root / "evaluation" / "captions" / "captions.json")
    samples = _read_json(root / "evaluation" / "samples" / "samples.json")
    own = _own_folder(runs)
    timings = _read_json(root / "timings.json") or (_training_times(runs) if own else None)
    if not any((*runs.values(), reconstruction, captions, samples)):
        wanted = ", ".join(f"{stage}/metrics.jsonl" for stage in STAGES)
        raise UserError(
            f"{root} holds no run: expected a quickstart's folder, with {wanted} or an "
            f"evaluation in it"
        )

    videos = _Videos(VIDEO_BUDGET)
    body = [
        _header(root, runs),
        _tiles(reconstruction, captions, samples if own else None, timings),
        page.section("Samples", _samples(captions, root / "evaluation" / "captions", videos))
        if captions or not (own or samples)
        else "",
        page.section("Samples of own prompts", _own_samples(samples, root / "evaluation", videos))
        if samples or own
        else "",
        page.section("Accuracy by attribute", _accuracy(captions)) if captions or not own else "",
        page.section(
            "Reconstruction",
            _note_on_clips(facts, own)
            + _reconstruction(reconstruction, root / "evaluation" / "reconstruction", videos),
        ),
        page.section("Training", _curves(runs)),
        page.section("Time", _timings(timings)),
        page.section("Configuration", _configuration(runs)),
        page.section("Versions and machine", _versions(runs)),
        page.section("Reproduce", _reproduce(root, runs, captions, samples, own)),
    ]
    title = f"xgen_jax report: {root.resolve().name}"
    write_text(out, page.document(title, "".join(body), SOURCES))
    return out


# Reading.


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


def _own_folder(runs: Mapping[str, dict[str, Any]]) -> str | None:
    """Return the folder of videos or latents that the runs were trained on; None for shapes."""
    for run in runs.values():
        source = (run.get("config") or {}).get("data", {}).get("source")
        if isinstance(source, dict) and source.get("path"):
            return str(source["path"])
    return None


class _Videos:
    """Videos as `<video>` elements, until the page is full."""

    def __init__(self, budget: int):
        self.left = budget

    def element(self, folder: pathlib.Path, file: Any, label: str) -> str | None:
        """Return the element, a remark if the file is not there, or None if the page is full."""
        path = (folder / str(file)).resolve()
        # Only files in the folder of the JSON that names them: a page that is passed on must not
        # contain others.
        if not file or not path.is_relative_to(folder.resolve()) or not path.is_file():
            return f'<p class="missing">{escape(str(file))} is not there.</p>'
        if path.stat().st_size > self.left:
            return None
        data = path.read_bytes()
        self.left -= len(data)
        source = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
        return (
            f'<video src="{source}" aria-label="{escape(label)}" autoplay loop muted playsinline>'
            "</video>"
        )

    def cards(
        self,
        rows: list[dict[str, Any]],
        folder: pathlib.Path,
        most: int,
        caption: Any,
        kind: str,
        remark: str,
    ) -> str:
        """Return a grid of the first rows, with a line that counts them."""
        cards = []
        for row in rows[:most]:
            video = self.element(
                folder, row.get("file"), str(row.get("prompt", row.get("name", "")))
            )
            if video is None:
                break
            cards.append(f"<figure>{video}<figcaption>{caption(row)}</figcaption></figure>")
        shown = (
            f"The first {len(cards)} of {len(rows)}"
            if len(cards) < len(rows)
            else f"All {len(rows)}"
        )
        in_sight, folded = cards[:MAX_IN_SIGHT], cards[MAX_IN_SIGHT:]
        grid = f'<p class="note">{shown} {kind}{remark}.</p>'
        grid += f'<div class="cards {kind}">{"".join(in_sight)}</div>'
        if folded:
            more = f'<div class="cards {kind}">{"".join(folded)}</div>'
            grid += page.folded(f"{len(folded)} more {kind}", more)
        return grid


# Formats.


def _is_time(name: str) -> bool:
    return name.endswith("_s") and not name.endswith("_per_s")


def _value(name: str, value: Any) -> str:
    """Format a fact of a run, by the unit in its name."""
    number = page.number(value)
    if number is not None and _is_time(name):
        return duration(number)
    if number is not None:
        return f"{number:,}" if isinstance(number, int) else f"{number:,.6g}"
    return escape(value if isinstance(value, str) else json.dumps(value))


# Sections.


def _header(root: pathlib.Path, runs: Mapping[str, dict[str, Any]]) -> str:
    machines = dict.fromkeys(
        str(run["run"]["device"]) for run in runs.values() if run.get("run", {}).get("device")
    )
    where = f" Trained on {escape(' and '.join(machines))}." if machines else ""
    return (
        f"<header><p>xgen_jax</p><h1>{escape(root.resolve().name)}</h1><p>From raw videos to a "
        "text-to-video model: what was trained, how well it does, and how to do it "
        f"again.{where}</p></header>"
    )


def _training_times(runs: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    """Return the seconds that each run has trained, where launch/quickstart.sh noted none."""
    times = {}
    for stage, title in STAGES.items():
        last = (runs[stage].get("metrics") or [{}])[-1]
        if page.number(last.get("time_s")) is not None:
            times[f"train the {title[0].lower()}{title[1:]}"] = last["time_s"]
    return times


def _total_s(timings: Mapping[str, Any]) -> float:
    if page.number(timings.get("total")) is not None:
        return timings["total"]
    return math.fsum(value for value in timings.values() if page.number(value) is not None)


def _tiles(
    reconstruction: dict | None, captions: dict | None, samples: dict | None, timings: dict | None
) -> str:
    tiles = []
    if reconstruction:
        mean = reconstruction.get("mean", {})
        clips = page.figure(reconstruction.get("clips"), ",")
        remark = f"SSIM {page.figure(mean.get('ssim'), '.3f')}, mean of {clips} clips"
        tiles.append(
            ("Reconstruction, PSNR", page.figure(mean.get("psnr_db"), ".1f") + " dB", remark)
        )
    else:
        tiles.append(("Reconstruction, PSNR", "–", "not evaluated yet"))
    if captions:
        count = page.figure(captions.get("prompts"), ",")
        remark = f"of {count} prompts, as the verifier reads the videos"
        tiles.append(
            (
                "All attributes right",
                page.figure(captions.get("accuracy", {}).get("all"), ".0%"),
                remark,
            )
        )
    elif samples:
        tiles.append(("Samples", str(len(samples.get("samples", []))), "of own prompts"))
    else:
        tiles.append(("All attributes right", "–", "not evaluated yet"))
    if timings:
        tiles.append(("Total time", duration(_total_s(timings)), "all stages together"))
    else:
        tiles.append(("Total time", "–", "not recorded"))
    return page.tiles(tiles)


def _samples(captions: dict | None, folder: pathlib.Path, videos: _Videos) -> str:
    if captions is None:
        return page.missing("No captions evaluation yet.")
    if not captions.get("samples"):
        return page.missing("The captions evaluation kept no samples.")

    def caption(row: dict[str, Any]) -> str:
        correct, wanted, read = (row.get(name, {}) for name in ("correct", "wanted", "read"))
        marks = []
        for name, value in wanted.items():
            if correct.get(name):
                marks.append(f'<li class="right">✓ {escape(str(name))}</li>')
            else:
                what = f"{name}: wanted {value}, read {read.get(name, 'nothing')}"
                marks.append(f'<li class="wrong">✗ {escape(what)}</li>')
        # The right ones first: the eye then finds what is wrong at the same place on every card.
        marks.sort(key=lambda mark: 'class="wrong"' in mark)
        return f"<p>{escape(str(row.get('prompt', '')))}</p><ul>{''.join(marks)}</ul>"

    cards = videos.cards(
        captions["samples"],
        folder,
        MAX_SAMPLES,
        caption,
        "samples",
        ", in the order of the prompts",
    )
    return _sampled_with(captions) + cards


def _sampled_with(results: dict[str, Any]) -> str:
    """Return a line with the settings of sampling."""
    settings = ", ".join(
        f"{escape(name.replace('_', ' '))} {escape(str(value))}"
        for name, value in results.get("settings", {}).items()
    )
    return f'<p class="note">Sampled with {settings}.</p>' if settings else ""


def _own_samples(samples: dict | None, folder: pathlib.Path, videos: _Videos) -> str:
    if not (samples or {}).get("samples"):
        return page.missing(
            "No samples yet: python launch/evaluate.py --suite=samples --prompts_file=FILE"
        )
    assert samples is not None

    def caption(row: dict[str, Any]) -> str:
        return f"<p>{escape(str(row.get('prompt', '')))}</p>"

    remark = ", in the order of the prompts"
    rows = samples["samples"]
    cards = videos.cards(rows, folder / "samples", MAX_SAMPLES, caption, "samples", remark)
    return _sampled_with(samples) + cards


def _note_on_clips(reconstruction: Mapping[str, Any], own: str | None) -> str:
    """Say which clips were scored, where a reader could take them for others."""
    split = reconstruction.get("split")
    if own is None or split is None:
        return ""
    words = {
        "held_out": "clips that were held out of training",
        "train": "clips that were trained on, which says little of other footage",
        "all": "clips of a whole folder, which training may have seen",
    }
    return f'<p class="note">Scored on {words.get(split, escape(str(split)))}.</p>'


def _accuracy(captions: dict | None) -> str:
    if captions is None:
        return page.missing("No captions evaluation yet.")
    accuracy, prompts = captions.get("accuracy", {}), captions.get("prompts")
    rows = []
    for name in sorted(accuracy, key=lambda name: name == "all"):  # all of them together comes last
        value = page.number(accuracy[name])
        if value is None:
            continue
        low_high = "–"
        if isinstance(prompts, int) and prompts > 0:
            low_high = "{:.0%} to {:.0%}".format(*wilson_interval(value, prompts))
        label = "<strong>all of them</strong>" if name == "all" else escape(str(name))
        rows.append((label, f"{value:.1%}", page.bar(value), low_high))
    note = (
        '<p class="note">The interval is the 95% one for this many prompts (Wilson); it does not '
        "hold the spread between training runs.</p>"
    )
    return page.table(("attribute", "right", "", "95% interval"), rows) + note


def _reconstruction(reconstruction: dict | None, folder: pathlib.Path, videos: _Videos) -> str:
    if reconstruction is None:
        return page.missing("No reconstruction evaluation yet.")
    mean = reconstruction.get("mean", {})
    forms = {
        "psnr_db": ("PSNR", ".2f", " dB"),
        "ssim": ("SSIM", ".4f", ""),
        "mse": ("MSE in [-1, 1]", ".5f", ""),
    }
    # Results of earlier releases have no blockiness.
    extra = ("sharpness", *(["blockiness"] if "blockiness" in mean else []))
    forms |= {name: (name, ".2f", "") for name in extra}
    figures = ", ".join(
        f"{name} {page.figure(mean.get(key), form)}{unit}"
        for key, (name, form, unit) in forms.items()
    )
    head = f"<p>Mean over {page.figure(reconstruction.get('clips'), ',')} clips: {figures}.</p>"
    rows = [row for row in reconstruction.get("videos", []) if row.get("file")]
    if not rows:
        return head + page.missing("The reconstruction evaluation kept no videos.")

    def caption(row: dict[str, Any]) -> str:
        psnr, ssim = page.figure(row.get("psnr_db"), ".1f"), page.figure(row.get("ssim"), ".3f")
        figures = f"{psnr} dB, SSIM {ssim}"
        return f'<p>{escape(str(row.get("name", "")))}</p><p class="note">{figures}</p>'

    remark = ": the original left, its reconstruction right"
    return head + videos.cards(rows, folder, MAX_RECONSTRUCTIONS, caption, "clips", remark)


def _curves(runs: Mapping[str, dict[str, Any]]) -> str:
    parts = []
    for stage, title in STAGES.items():
        parts.append(f"<h3>{title}</h3>")
        rows = runs[stage].get("metrics")
        if not rows:
            parts.append(page.missing("No metrics yet."))
            continue
        last = rows[-1]
        time = (
            f" in {duration(last['time_s'])}" if page.number(last.get("time_s")) is not None else ""
        )
        parts.append(f'<p class="note">{last["step"]:,} steps{time}.</p><div class="charts">')
        for name, (label, log) in CURVES.items():
            points = [
                (row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)
            ]
            if points:
                steps, values = zip(*points)
                parts.append(f"<div>{line_chart(steps, values, label, log)}</div>")
        parts.append("</div>")
    return "".join(parts)


def _timings(timings: dict | None) -> str:
    if not timings:
        return page.missing("No times were recorded.")
    total = _total_s(timings)
    rows = [
        (escape(name), duration(value), page.bar(value / total if total else 0))
        for name, value in timings.items()
        if name != "total" and page.number(value) is not None
    ]
    return page.table(
        ("stage", "time", ""), [*rows, ("<strong>total</strong>", duration(total), "")]
    )


def _configuration(runs: Mapping[str, dict[str, Any]]) -> str:
    parts = []
    for stage, title in STAGES.items():
        config = runs[stage].get("config")
        if config is None:
            parts.append(page.missing(f"{title}: no configuration."))
            continue
        rows = [
            (f"<code>{escape(k)}</code>", f"<code>{escape(json.dumps(v))}</code>")
            for k, v in flat(config).items()
        ]
        parts.append(
            page.folded(f"{title}: {len(rows)} settings", page.table(("name", "value"), rows))
        )
    return "".join(parts)


def _versions(runs: Mapping[str, dict[str, Any]]) -> str:
    facts = {stage: run["run"] for stage, run in runs.items() if "run" in run}
    if not facts:
        return page.missing("No run recorded its versions.")
    head = ("", *facts)

    def table(columns: Mapping[str, Mapping[str, Any]]) -> str:
        names = dict.fromkeys(name for column in columns.values() for name in column)
        cells = ([_value(n, c[n]) if n in c else "–" for c in columns.values()] for n in names)
        return page.table(
            head,
            (
                [escape(name.removesuffix("_s") if _is_time(name) else name), *row]
                for name, row in zip(names, cells)
            ),
        )

    plain = {
        stage: {k: v for k, v in fact.items() if k != "versions"} for stage, fact in facts.items()
    }
    versions = {stage: fact.get("versions", {}) for stage, fact in facts.items()}
    return table(plain) + (table(versions) if any(versions.values()) else "")


def _reproduce(
    root: pathlib.Path,
    runs: Mapping[str, dict[str, Any]],
    captions: dict | None,
    samples: dict | None,
    own: str | None,
) -> str:
    folder = shlex.quote(f"runs/{root.resolve().name}")
    results = captions or samples or {}
    settings = results.get("settings", {})
    prompt = next(
        (str(row["prompt"]) for row in results.get("samples", []) if row.get("prompt")), "..."
    )
    names = [name for name in ("seed", "steps", "sampler", "guidance_scale") if name in settings]
    flags = " ".join(f"--{name}={shlex.quote(str(settings[name]))}" for name in names)
    summaries = [run.get("run", {}).get("summary", {}) for run in runs.values()]
    trained = [summary["command"] for summary in summaries if summary.get("command")]
    if own is None:
        trained = ["bash launch/quickstart.sh"]
    commands = "# everything on this page, from nothing\n" + "\n".join(trained) if trained else ""
    commands += f"""

# one more sample from this model
python launch/sample.py --model={folder}/vdit --out=sample.mp4 {flags} \\
  --prompt={shlex.quote(prompt)}

# one more reconstruction
python launch/reconstruct.py --embedder={folder}/vidvae --video=FILE --out=reconstruction.mp4
"""
    if own is not None:
        commands += f"""
# the scores and this page
python launch/evaluate.py --suite=reconstruction --embedder={folder}/vidvae \\
  --out={folder}/evaluation
python launch/evaluate.py --suite=samples --model={folder}/vdit --prompts_file=FILE \\
  --out={folder}/evaluation
python launch/evaluate.py --suite=report --out={folder}
"""
    return (
        "<p>From a checkout of the repository, at the versions above:</p>"
        f"<pre>{escape(commands.strip())}</pre>"
    )
