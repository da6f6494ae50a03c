"""VBench (arXiv 2311.17982): its prompt suite, the names of its files, and what is made of its
scores.

VBench scores videos with its own networks, outside of this library: a model's samples are written
as it expects them, and its results are read back. Limits, weights and the two lists of dimensions
are those of its scripts/constant.py.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from xgen_jax.errors import UserError, choose

# By dimension the raw scores that are normalised to 0 and 1, and its weight in quality or semantic.
QUALITY = {
    "subject_consistency": (0.1462, 1.0, 1.0),
    "background_consistency": (0.2615, 1.0, 1.0),
    "temporal_flickering": (0.6293, 1.0, 1.0),
    "motion_smoothness": (0.706, 0.9975, 1.0),
    "aesthetic_quality": (0.0, 1.0, 1.0),
    "imaging_quality": (0.0, 1.0, 1.0),
    "dynamic_degree": (0.0, 1.0, 0.5),
}
SEMANTIC = {
    "object_class": (0.0, 1.0, 1.0),
    "multiple_objects": (0.0, 1.0, 1.0),
    "human_action": (0.0, 1.0, 1.0),
    "color": (0.0, 1.0, 1.0),
    "spatial_relationship": (0.0, 1.0, 1.0),
    "scene": (0.0, 0.8222, 1.0),
    "appearance_style": (0.0009, 0.2855, 1.0),
    "temporal_style": (0.0, 0.364, 1.0),
    "overall_consistency": (0.0, 0.364, 1.0),
}
DIMENSIONS = (*QUALITY, *SEMANTIC)
_QUALITY_WEIGHT, _SEMANTIC_WEIGHT = 4, 1
# Plain means of raw scores (arXiv 2408.12590, table 4); "average" is the mean of these four.
GROUPS = {
    "consistency": ("background_consistency", "subject_consistency", "overall_consistency"),
    "temporal": ("temporal_flickering", "motion_smoothness", "human_action"),
    "aesthetic": ("aesthetic_quality", "imaging_quality", "color"),
    "spatial": ("spatial_relationship",),
}
COLUMNS = (*GROUPS, "average")
PAPER = {  # the rows of that table
    "ModelScope (paper)": (0.702, 0.955, 0.641, 0.337, 0.659),
    "OpenSora V1.1 (paper)": (0.716, 0.941, 0.599, 0.520, 0.694),
    "xGen-VideoSyn-1 (paper)": (0.714, 0.947, 0.655, 0.523, 0.709),
}
CONVENTION = (
    "groups: plain means of VBench's raw scores, average: mean of the four groups (arXiv "
    "2408.12590, table 4; the paper's size, length and steps are not given); quality, semantic: "
    "weighted means of normalised scores, total = (4 quality + semantic) / 5, as VBench's "
    "scripts/cal_final_score.py; 1 is best"
)

VIDEOS, MOST_VIDEOS = 5, 25  # of a prompt; for temporal flickering a filter drops static ones
_NAME_BYTES = 255  # of a file's name, on most file systems


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt of the suite: its number in the file, text, and dimensions that are judged by it."""

    number: int
    text: str
    dimensions: tuple[str, ...]

    def videos(self, dimensions: Sequence[str]) -> int:
        """Return how many videos it needs for these dimensions; 0 if it serves none of them."""
        mine = set(self.dimensions) & set(dimensions)
        return MOST_VIDEOS if "temporal_flickering" in mine else VIDEOS if mine else 0


def read_suite(path: str | os.PathLike) -> list[Prompt]:
    """Read VBench_full_info.json; a prompt that stands there twice is one, with all dimensions.

    Raises:
      UserError: a file that cannot be read, or is no list of prompts.
    """
    try:
        entries = json.loads(pathlib.Path(path).read_bytes())
        rows = [(str(entry["prompt_en"]), tuple(entry["dimension"])) for entry in entries]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no prompt suite of VBench ({error!r}): give its VBench_full_info.json, a "
            "list of objects with prompt_en and dimension"
        ) from error
    prompts: dict[str, Prompt] = {}
    for number, (text, dimensions) in enumerate(rows):
        for dimension in dimensions:
            choose("dimension", dimension, DIMENSIONS)
        if not text.strip():
            raise UserError(f"{path} has an empty prompt, number {number}")
        first = prompts.get(text, Prompt(number, text, ()))
        merged = tuple(dict.fromkeys((*first.dimensions, *dimensions)))
        prompts[text] = dataclasses.replace(first, dimensions=merged)
    if not prompts:
        raise UserError(f"{path} has no prompt")
    return list(prompts.values())


def file_name(text: str, index: int) -> str:
    """Return the name of a video: `{prompt}-{index}.mp4`, by which VBench finds it.

    Where that cannot be a file's name, for a slash, a NUL or more than 255 bytes, those characters
    become underscores, and a text that is too long is cut; 8 hex digits of the prompt's SHA-256
    keep such names apart. VBench does not find these.
    """
    ending = f"-{index}.mp4"
    room = _NAME_BYTES - len(f"-{MOST_VIDEOS}.mp4")
    clean = text.replace("/", "_").replace("\0", "_")
    # While it is written, the name also holds some digits more.
    if clean == text and len(text.encode()) <= room and len(text[:64].encode()) <= room - 32:
        return f"{text}{ending}"
    cut = clean.encode()[: min(room, 160) - 9].decode(errors="ignore")
    return f"{cut}~{hashlib.sha256(text.encode()).hexdigest()[:8]}{ending}"


def read_results(path: str | os.PathLike) -> dict[str, float]:
    """Read the scores of VBench's result files.

    Args:
      path: a *_eval_results.json, or a folder in which all JSON files with scores are read.

    Returns:
      The raw score of each dimension that is there.

    Raises:
      UserError: no scores, a score outside 0 to 1, or two files with different ones.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(f"there is no {path}; give VBench's *_eval_results.json, or its folder")
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    scores: dict[str, float] = {}
    origins: dict[str, pathlib.Path] = {}
    for file in files:
        for dimension, score in _scores(file, strict=not path.is_dir()).items():
            if scores.get(dimension, score) != score:
                raise UserError(
                    f"{origins[dimension]} and {file} have different scores of {dimension}, "
                    f"{scores[dimension]:g} and {score:g}: give the results of one model"
                )
            scores[dimension], origins[dimension] = score, file
    if not scores:
        raise UserError(f"no score of VBench in {path}; wanted files {{dimension: [score, ...]}}")
    return scores


def _scores(file: pathlib.Path, strict: bool) -> dict[str, float]:
    try:
        held = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); run VBench again") from error
    found: dict[str, float] = {}
    for key, value in held.items() if isinstance(held, dict) else ():
        dimension = key.replace(" ", "_")
        if dimension not in DIMENSIONS:
            if strict:
                choose(f"{file}: dimension", dimension, DIMENSIONS)
            continue
        score = value[0] if isinstance(value, list) and value else value
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
            raise UserError(
                f"{file}: {dimension} is {score!r}; VBench's raw scores are numbers from 0 to 1"
            )
        found[dimension] = float(score)
    return found


def summarize(scores: Mapping[str, float]) -> dict[str, Any]:
    """Make the figures of raw scores; one whose dimensions are not all there is None.

    Returns:
      groups (with "average"), quality, semantic, total, and missing: for each figure that is None
      the dimensions that it lacks.
    """
    missing = {
        name: [dimension for dimension in needed if dimension not in scores]
        for name, needed in {**GROUPS, "quality": QUALITY, "semantic": SEMANTIC}.items()
    }
    groups = {
        name: None if missing[name] else sum(scores[d] for d in needed) / len(needed)
        for name, needed in GROUPS.items()
    }
    missing["average"] = [d for name in GROUPS for d in missing[name]]
    missing["total"] = missing["quality"] + missing["semantic"]
    whole = [value for value in groups.values() if value is not None]
    groups["average"] = None if missing["average"] else sum(whole) / len(whole)
    quality, semantic = (
        None if missing[name] else _weighted(scores, limits)
        for name, limits in (("quality", QUALITY), ("semantic", SEMANTIC))
    )
    total = None
    if quality is not None and semantic is not None:
        total = (_QUALITY_WEIGHT * quality + _SEMANTIC_WEIGHT * semantic) / (
            _QUALITY_WEIGHT + _SEMANTIC_WEIGHT
        )
    return {
        "groups": groups,
        "quality": quality,
        "semantic": semantic,
        "total": total,
        "missing": {name: lacking for name, lacking in missing.items() if lacking},
    }


def _weighted(
    scores: Mapping[str, float], limits: Mapping[str, tuple[float, float, float]]
) -> float:
    parts = [
        (scores[name] - low) / (high - low) * weight for name, (low, high, weight) in limits.items()
    ]
    return sum(parts) / sum(weight for _, _, weight in limits.values())


def group_rows(summary: Mapping[str, Any], name: str) -> list[tuple[str, list[float | None]]]:
    """Return the paper's rows and the one of a `summarize`: (model, the groups and the average)."""
    rows: list[tuple[str, list[float | None]]] = [(model, [*row]) for model, row in PAPER.items()]
    return [*rows, (name, [summary["groups"][column] for column in COLUMNS])]


def table(scores: Mapping[str, float], name: str) -> str:
    """Return the figures as markdown, next to the paper's rows."""
    summary = summarize(scores)

    def row(cells: Sequence[Any]) -> str:
        texts = ("–" if x is None else f"{x:.3f}" if isinstance(x, float) else x for x in cells)
        return f"| {' | '.join(texts)} |"

    lines = [
        row(["model", *COLUMNS]),
        row(["---"] * (1 + len(COLUMNS))),
        *(row([model, *figures]) for model, figures in group_rows(summary, name)),
        "",
        row(["quality", "semantic", "total"]),
        row(["---"] * 3),
        row([summary["quality"], summary["semantic"], summary["total"]]),
        "",
        row(["dimension", "raw score"]),
        row(["---"] * 2),
        *(row([dimension, scores.get(dimension)]) for dimension in DIMENSIONS),
        "",
    ]
    lines += [f"No {key}: {', '.join(lacks)} missing." for key, lacks in summary["missing"].items()]
    return "\n".join([*lines, "", CONVENTION[0].upper() + CONVENTION[1:] + "."]) + "\n"
