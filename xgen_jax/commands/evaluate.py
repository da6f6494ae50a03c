"""Score a trained model, from folders to folders: `launch/evaluate.py`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from xgen_jax.commands.evaluate_request import EvaluateRequest
from xgen_jax.commands.hosts import check_hosts
from xgen_jax.commands.suites.captions import captions
from xgen_jax.commands.suites.clip_score import clip_score
from xgen_jax.commands.suites.compare import compare
from xgen_jax.commands.suites.fvd import fvd
from xgen_jax.commands.suites.reconstruction import reconstruction
from xgen_jax.commands.suites.samples import samples
from xgen_jax.commands.suites.vbench import vbench_export, vbench_import
from xgen_jax.errors import UserError
from xgen_jax.evaluation.report import write_report
from xgen_jax.parallel.agreement import together


def evaluate(request: EvaluateRequest) -> dict[str, Any]:
    """Score a trained model, and keep the videos it was scored on.

    `reconstruction` writes reconstruction.json, .md and SHAPE/NNN.mp4 into OUT/reconstruction;
    `captions` samples held-out prompts of moving shapes and writes captions.json and NNN.mp4 into
    OUT/captions (see `evaluation.captions` for the verifier); `samples` samples the prompts of a
    file, and writes samples.json and NNN.mp4 into OUT/samples; `fvd` compares a model's samples, or
    a folder of videos, with a folder, and writes fvd.json into OUT/fvd; `vbench_export` writes
    VBench's prompt suite as videos into OUT/videos, and `vbench_import` makes vbench_scores.json
    and .md of its results; `clip_score` writes clip_score.json into OUT/clip_score; `report` writes
    the page of a folder with runs and these results; `compare` writes OUT/comparison.html of
    several such folders.

    Several processes (`jax.process_count()`) divide clips and prompts, and need a common folder;
    the results are those of one process. A report is for one process.

    Returns:
      The scores, and the paths of the files.

    Raises:
      UserError: no such run, videos or weights that cannot be read, a shape that is none.
    """
    if request.suite in ("report", "compare", "vbench_import") and jax.process_count() > 1:
        raise UserError(f"--suite={request.suite} writes one page: start it in one process")
    check_hosts(dataclasses.asdict(request))
    with together():  # a mistake that one process finds ends all of them
        return SUITES[request.suite](request)


def _report(request: EvaluateRequest) -> dict[str, Any]:
    return {"suite": "report", "report": str(write_report(request.out))}


SUITES: dict[str, Callable[[EvaluateRequest], dict[str, Any]]] = {
    "reconstruction": reconstruction,
    "captions": captions,
    "samples": samples,
    "fvd": fvd,
    "vbench_export": vbench_export,
    "vbench_import": vbench_import,
    "clip_score": clip_score,
    "report": _report,
    "compare": compare,
}
