"""Caption verifier of the moving-shapes dataset: compares prompts with what is read from pixels.

See `evaluation.attributes` for how a video is read.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgen_jax.data.sources.synthetic import ATTRIBUTES, check_attributes, held_out_prompts
from xgen_jax.errors import UserError
from xgen_jax.evaluation.attributes import read_attributes
from xgen_jax.evaluation.intervals import WILSON, wilson_interval

NOTHING = "nothing"  # how the confusions name what could not be read


@dataclass(frozen=True, kw_only=True)
class CaptionReport:
    """Scores of generated videos, and some of the videos.

    Attributes:
      scores: ready for JSON; see `evaluate_captions`.
      videos: uint8 (T, H, W, 3) each, by their place in `scores["samples"]`.
    """

    scores: dict
    videos: dict[int, np.ndarray]


def verdict(video: np.ndarray, wanted: Mapping[str, str]) -> dict[str, bool]:
    """Compare a video with the attributes wanted of it.

    Args:
      video: uint8 (T, H, W, 3).
      wanted: {attribute: value}, at least one.

    Returns:
      {attribute: whether it is shown}, and "all": whether all are.

    Raises:
      UserError: an unknown attribute, or none.
    """
    return _compare(read_attributes(video), wanted)


def score(videos: Sequence[np.ndarray], wanted: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Compute the fraction of videos that show each attribute, of those where it was wanted.

    Args:
      videos: uint8 (T, H, W, 3) each.
      wanted: {attribute: value} of each video.

    Returns:
      {attribute: fraction in [0, 1]}, and "all": the fraction that show all that was wanted.
      Attributes that no video was to show are absent.

    Raises:
      UserError: the two sequences differ in length or are empty.
    """
    if len(videos) != len(wanted):
        raise UserError(
            f"{len(videos)} videos for {len(wanted)} captions; there must be one of each"
        )
    return _accuracy([verdict(video, wish) for video, wish in zip(videos, wanted)])


def evaluate_captions(
    generate: Callable[[list[str], int], Iterable[np.ndarray]],
    *,
    prompts: Sequence[tuple[str, Mapping[str, str]]],
    seed: int,
    keep: int = 64,
    keep_wrong: int = 16,
) -> CaptionReport:
    """Generate one video a prompt and read its attributes.

    Videos are read as they come: memory does not grow with their number if `generate` yields them
    one after another.

    Args:
      generate: (texts, seed) -> uint8 (T, H, W, 3) videos in the order of the texts.
      prompts: (text, attributes wanted) each.
      seed: passed to `generate`.
      keep: number of videos to keep, the first.
      keep_wrong: number of videos to keep of those after them that do not show all attributes.

    Returns:
      A report; its scores are
        "prompts": count,
        "distinct_prompts": different texts among them, which are sampled from other noise each
          time,
        "distinct_attributes": different combinations of attributes wanted,
        "seed",
        "accuracy": {attribute or "all": fraction},
        "interval": {attribute or "all": [low, high]}, see `intervals.WILSON`,
        "counts": {attribute or "all": [right, judged]},
        "confusions": {attribute: {value wanted: {value read, or "nothing": count}}},
        "samples": [{"prompt", "wanted", "read", "correct"}],
        "conventions": {"interval", "confusions"}.

    Raises:
      UserError: no prompts, or another number of videos than of prompts.
    """
    texts, count = [text for text, _ in prompts], 0
    samples: list[dict[str, Any]] = []
    kept: dict[int, np.ndarray] = {}
    for count, video in enumerate(generate(texts, seed) if texts else (), 1):
        if count > len(texts):
            break
        text, wanted = prompts[count - 1]
        video = np.asarray(video)
        read = read_attributes(video)
        correct = _compare(read, wanted)
        samples.append({"prompt": text, "wanted": dict(wanted), "read": read, "correct": correct})
        if count <= keep or (not correct["all"] and len(kept) < keep + keep_wrong):
            kept[count - 1] = video.copy()  # a part of a batch would keep all of it in memory
    if count != len(texts):
        more = " or more" if count > len(texts) else ""
        raise UserError(
            f"{count}{more} videos came back for {len(texts)} prompts; there must be one of each"
        )
    counts = _counts([sample["correct"] for sample in samples])
    accuracy = {name: right / judged for name, (right, judged) in counts.items()}
    scores = {
        "prompts": len(samples),
        "distinct_prompts": len(set(texts)),
        "distinct_attributes": len({tuple(sorted(wanted.items())) for _, wanted in prompts}),
        "seed": seed,
        "accuracy": accuracy,
        "interval": {
            name: list(wilson_interval(accuracy[name], judged))
            for name, (_, judged) in counts.items()
        },
        "counts": counts,
        "confusions": confusions(samples),
        "samples": samples,
        "conventions": {
            "interval": WILSON,
            "confusions": f"rows: wanted; columns: read from the pixels, or {NOTHING}",
        },
    }
    return CaptionReport(scores=scores, videos=kept)


def confusions(samples: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, int]]]:
    """Count which value was read where which was wanted.

    Args:
      samples: "wanted" and "read" of each.

    Returns:
      {attribute: {value wanted: {value read, or "nothing": count}}} in the order of `ATTRIBUTES`;
      values that were never wanted, and counts of 0, are absent.
    """
    found: dict[str, dict[str, dict[str, int]]] = {}
    for sample in samples:
        for name, value in sample["wanted"].items():
            row = found.setdefault(name, {}).setdefault(value, {})
            read = sample["read"].get(name, NOTHING)
            row[read] = row.get(read, 0) + 1
    order = {name: (*values, NOTHING) for name, values in ATTRIBUTES.items()}
    return {
        name: {
            value: {read: found[name][value][read] for read in values if read in found[name][value]}
            for value in values
            if value in found[name]
        }
        for name, values in order.items()
        if name in found
    }


class HeldOutCaptions:
    """Figures of samples of held-out prompts of moving shapes, for an evaluation while training.

    Args:
      count: number of prompts.
      seed: of the prompts.

    Attributes:
      prompts: texts to sample.
      names: of the figures.
    """

    def __init__(self, count: int, seed: int = 0):
        chosen = held_out_prompts(count, seed)
        self.prompts = [text for text, _ in chosen]
        self._wanted = [wanted for _, wanted in chosen]
        self.names = tuple(f"accuracy_{name}" for name in (*ATTRIBUTES, "all"))

    def figures(self, videos: Iterable[np.ndarray]) -> dict[str, float]:
        """Return the fraction of videos, one a prompt in their order, that show each attribute."""
        pairs = zip(videos, self._wanted, strict=True)
        verdicts = [verdict(video, wish) for video, wish in pairs]
        return {f"accuracy_{name}": value for name, value in _accuracy(verdicts).items()}


def _compare(read: Mapping[str, str], wanted: Mapping[str, str]) -> dict[str, bool]:
    check_attributes(wanted)
    if not wanted:
        raise UserError(
            f"no attribute is wanted, so nothing can be right; name at least one of "
            f"{', '.join(ATTRIBUTES)}"
        )
    correct = {name: read.get(name) == wanted[name] for name in ATTRIBUTES if name in wanted}
    return {**correct, "all": all(correct.values())}


def _accuracy(verdicts: Sequence[Mapping[str, bool]]) -> dict[str, float]:
    return {name: right / judged for name, (right, judged) in _counts(verdicts).items()}


def _counts(verdicts: Sequence[Mapping[str, bool]]) -> dict[str, list[int]]:
    """{attribute or "all": [right, judged]}."""
    if not verdicts:
        raise UserError("no video to score; give at least one prompt")
    judged = {name: [v[name] for v in verdicts if name in v] for name in (*ATTRIBUTES, "all")}
    return {name: [sum(values), len(values)] for name, values in judged.items() if values}
