"""Verify the captions of sampled moving shapes: `--suite=captions`."""

import time
from typing import Any

from xgen_jax.commands.evaluate_request import EvaluateRequest
from xgen_jax.commands.suites.clips import trained_on
from xgen_jax.commands.suites.results import SHOWN, results_folder
from xgen_jax.commands.suites.samples import sample_prompts, settings_of, write_sample
from xgen_jax.config.runs import VDiTRun
from xgen_jax.data.sources.factory import shapes_style
from xgen_jax.data.sources.synthetic import held_out_prompts
from xgen_jax.errors import UserError
from xgen_jax.evaluation.captions import evaluate_captions
from xgen_jax.files import write_json
from xgen_jax.inference.text_to_video import load_text_to_video
from xgen_jax.parallel.agreement import is_first
from xgen_jax.runs.folder import RunFolder


def captions(request: EvaluateRequest) -> dict[str, Any]:
    _check_shapes(request.model)
    folder = results_folder(request.out, "captions")
    loaded, seed = load_text_to_video(request.model, step=request.restore), request.seed
    started = time.monotonic()
    report = evaluate_captions(
        lambda prompts, seed: sample_prompts(loaded, request, prompts, seed),
        prompts=held_out_prompts(request.count, seed),
        seed=seed,
        keep=SHOWN,
    )
    for number, video in report.videos.items():
        write_sample(folder, report.scores["samples"][number], number, video, loaded.fps)
    if is_first():
        settings = {"settings": settings_of(loaded, request), "model": str(request.model)}
        write_json(folder / "captions.json", {**report.scores, **settings})
    return {
        "suite": "captions",
        **{name: report.scores[name] for name in ("prompts", "distinct_prompts")},
        **{name: round(value, 4) for name, value in report.scores["accuracy"].items()},
        "interval": {
            name: [round(value, 4) for value in ends]
            for name, ends in report.scores["interval"].items()
        },
        "wall_s": round(time.monotonic() - started, 1),
        "file": str(folder / "captions.json"),
    }


def _check_shapes(model: str) -> None:
    """Raise UserError unless a run was trained on moving shapes, whose captions can be verified."""
    run, instead = RunFolder(model), "give --suite=samples and --prompts_file=FILE"
    config = run.expect(VDiTRun, "a model: a vdit run")
    source = trained_on(run, config.data.source, instead)
    if (style := shapes_style(source)) != "filled":
        what = f"shapes of style {style!r}" if style else source.path or "other videos"
        raise UserError(
            f"--suite=captions verifies captions of moving shapes that are filled, and {model} was "
            f"trained on {what}: {instead}"
        )
