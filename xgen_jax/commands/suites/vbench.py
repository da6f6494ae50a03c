"""VBench's prompt suite sampled for it, and its results read: `--suite=vbench_export` and
`--suite=vbench_import`."""

import contextlib
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax

from xgen_jax.commands.evaluate_request import EvaluateRequest
from xgen_jax.commands.sample import (
    make_batches,
    sampling_settings,
    setting_differences,
    write_videos,
)
from xgen_jax.commands.suites.results import results_folder
from xgen_jax.errors import UserError, choose
from xgen_jax.evaluation.vbench import (
    CONVENTION,
    DIMENSIONS,
    MOST_VIDEOS,
    Prompt,
    file_name,
    read_results,
    read_suite,
    summarize,
    table,
)
from xgen_jax.files import (
    locked,
    read_json,
    refuse_differences,
    remove_temporaries,
    write_json,
    write_text,
)
from xgen_jax.inference.request import VideoRequest
from xgen_jax.inference.sampling import BatchRow
from xgen_jax.inference.text_to_video import load_text_to_video
from xgen_jax.parallel.agreement import check_equal, from_first, is_first, together

# VBench takes the ending of whatever file it lists first, so nothing but videos lies with them.
FOLDER, RECORD, RENAMED = "videos", "vbench.json", "renamed.jsonl"


def vbench_export(request: EvaluateRequest) -> dict[str, Any]:
    """Sample the suite into OUT/videos, `{prompt}-{index}.mp4` each, and record every seed.

    Video `index` of prompt `number` has the seed of the request + 25 number + index, whichever
    dimensions are chosen. Videos that exist are kept, so that a run goes on where it was stopped,
    in as many processes as one likes; other settings are refused.
    """
    started, out = time.monotonic(), pathlib.Path(request.out)
    suite = read_suite(request.prompts_json)
    dimensions = [choose("dimensions", each, DIMENSIONS) for each in request.dimensions or ()]
    dimensions = dimensions or list(DIMENSIONS)
    if request.seed + MOST_VIDEOS * (suite[-1].number + 1) > 2**32:
        raise UserError(f"seed={request.seed} must be below 2^32 with all videos added to it")
    folder = results_folder(request.out, FOLDER)
    # All that the suite knows, whatever is chosen: a video's place decides its row in a batch.
    videos = [
        (prompt, index) for prompt in suite for index in range(prompt.videos(list(DIMENSIONS)))
    ]
    wanted = [n for n, (prompt, index) in enumerate(videos) if index < prompt.videos(dimensions)]
    if not wanted:
        raise UserError(f"{request.prompts_json} has no prompt for {', '.join(dimensions)}")
    paths = [folder / file_name(prompt.text, index) for prompt, index in videos]
    rows = [
        BatchRow(prompt.text, request.seed + MOST_VIDEOS * prompt.number + index)
        for prompt, index in videos
    ]
    loaded = load_text_to_video(request.model, step=request.restore)
    plan = loaded.plan(
        VideoRequest(
            frames=request.frames, steps=request.steps, guidance_scale=request.guidance_scale
        )
    )
    # Asked once: another process may have begun to write.
    todo = from_first(lambda: [n for n in wanted if not paths[n].exists()])
    loaded.networks.text.prepare(list(dict.fromkeys(rows[n].prompt for n in todo)))
    size = min(loaded.batch_size(plan), len(videos))
    generator = loaded.generator(plan, size)
    settings = {**sampling_settings(loaded, generator, request.seed), "prompts": _digest(suite)}
    check_equal({"sampled": settings, "videos": len(wanted)})
    batches = make_batches(todo, size)[jax.process_index() :: jax.process_count()]
    with contextlib.ExitStack() as stack:
        with together():
            if is_first():  # it stands for all processes
                stack.enter_context(locked(out, "samples into"))
                _check_settings(out, settings, any(path.exists() for path in paths))
                remove_temporaries(folder, {paths[n].stem for n in todo})
                write_json(out / RECORD, {"settings": settings, "videos": []})
        with together():
            write_videos(generator, batches, rows, paths, None, 1)
        renamed = _record(out, settings, videos, paths, rows) if is_first() else 0
    if renamed:
        print(
            f"{renamed} videos could not be named by their prompts and VBench will not find them: "
            f"see {out / RENAMED}",
            file=sys.stderr,
        )
    return {
        "suite": "vbench_export",
        "videos": str(folder),
        "dimensions": dimensions,
        "prompts": len({videos[n][0].number for n in wanted}),
        "generated": len(todo),
        "kept": len(wanted) - len(todo),
        "wall_s": round(time.monotonic() - started, 1),
        "file": str(out / RECORD),
    }


def vbench_import(request: EvaluateRequest) -> dict[str, Any]:
    """Make the paper's groups and VBench's own totals of its result files."""
    scores = read_results(request.results)
    summary, out = summarize(scores), pathlib.Path(request.out)
    text = table(scores, "this model")
    print(text, file=sys.stderr)
    write_text(out / "vbench_scores.md", text)
    facts = {"results": str(request.results), "convention": CONVENTION}
    write_json(out / "vbench_scores.json", {**summary, "scores": scores, **facts})
    return {
        "suite": "vbench_import",
        **summary,
        "file": str(out / "vbench_scores.json"),
        "table": str(out / "vbench_scores.md"),
    }


def _digest(suite: Sequence[Prompt]) -> str:
    texts = json.dumps([(prompt.number, prompt.text) for prompt in suite])
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def _check_settings(out: pathlib.Path, settings: dict[str, Any], any_video: bool) -> None:
    fix = "choose another --out, or remove that folder"
    if any_video and (out / RECORD).exists():
        there = read_json(out / RECORD, fix).get("settings", {})
        refuse_differences(
            setting_differences(there, settings), f"{out} holds videos with other settings", fix
        )
    elif any_video:
        raise UserError(
            f"{out / FOLDER} holds videos without {RECORD}, of no known settings; {fix}"
        )


def _record(
    out: pathlib.Path,
    settings: dict[str, Any],
    videos: list[tuple[Prompt, int]],
    paths: list[pathlib.Path],
    rows: list[BatchRow],
) -> int:
    """Write down all videos that are there, and the names that are not prompts; return how many."""
    there, renamed = [], []
    for (prompt, index), path, row in zip(videos, paths, rows, strict=True):
        if not path.exists():
            continue
        facts = {"file": path.name, "prompt": prompt.text, "index": index}
        there.append({**facts, "seed": row.seed, "dimensions": prompt.dimensions})
        if path.name != f"{prompt.text}-{index}.mp4":
            renamed.append(facts)
    write_json(out / RECORD, {"settings": settings, "videos": there})
    if renamed:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in renamed)
        write_text(out / RENAMED, "".join(lines))
    return len(renamed)
