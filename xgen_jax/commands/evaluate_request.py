"""The flags of `launch/evaluate.py`, and which suite takes which."""

import dataclasses
from collections.abc import Sequence

from xgen_jax.data.sources.base import SPLITS
from xgen_jax.errors import UserError, choose
from xgen_jax.runs.checkpoint import LATEST

Flags = tuple[str, ...]
# By suite the flags that it needs besides --out, and those that it takes.
SUITE_FLAGS: dict[str, tuple[Flags, Flags]] = {
    "reconstruction": (
        ("embedder",),
        ("data", "split", "count", "seed", "steps", "shapes", "lpips", "i3d", "restore"),
    ),
    "captions": (("model",), ("count", "seed", "steps", "guidance_scale", "restore")),
    "samples": (("model", "prompts_file"), ("seed", "steps", "guidance_scale", "restore")),
    "fvd": (
        (),  # which of them are needed is said by the suite in more words
        (
            *("i3d", "model", "videos", "data", "prompts_file", "frames", "count", "seed"),
            *("steps", "guidance_scale", "restore"),
        ),
    ),
    "vbench_export": (
        ("model", "prompts_json"),
        ("dimensions", "frames", "seed", "steps", "guidance_scale", "restore"),
    ),
    "vbench_import": (("results",), ()),
    "clip_score": (
        ("clip",),
        (
            *("model", "videos", "prompts_file", "frames", "count", "seed"),
            *("steps", "guidance_scale", "restore"),
        ),
    ),
    "report": ((), ()),
    "compare": (("runs",), ()),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """The flags of `launch/evaluate.py`.

    Attributes:
      suite: a key of `SUITE_FLAGS`.
      out: folder for the results; for `report` the folder of a quickstart.
      embedder: run folder of a VidVAE or a REGEN (reconstruction).
      model: run folder of a VDiT (all that sample).
      videos: folder of videos that were generated, in place of a model (fvd, clip_score).
      i3d: folder of a converted I3D, see `weights.i3d` (fvd; reconstruction, for rFVD).
      clip: folder of a CLIP in Hugging Face's layout (clip_score).
      frames: length of the clips; the model's by default, or 16 of folders (fvd, vbench_export,
        clip_score).
      prompts_json: VBench_full_info.json (vbench_export).
      dimensions: of VBench, all by default (vbench_export).
      results: a result file of VBench, or a folder of them (vbench_import).
      data: folder of videos, or of curated clips (reconstruction); by default that of the run, or
        the moving-shapes dataset if the run was trained on it.
      split: clips of the folder, "held_out", "train" or "all" (reconstruction); by default those
        held out of the run's own folder, and all of another one.
      runs: folders to compare, each as for `report`, or of a single run (compare).
      prompts_file: text file with a prompt on each line (samples, fvd, clip_score).
      count: number of prompts, or of clips a shape; of a folder at most as many as there are.
      seed: of the clips, crops, prompts and noise.
      steps: of sampling, or of a REGEN's decoder; the run's by default.
      guidance_scale: the run's by default (captions, samples).
      shapes: of the clips, "FRAMESxHEIGHTxWIDTH" each, or "paper" for the paper's three; the shape
        trained on by default (reconstruction).
      lpips: safetensors files of LPIPS (see `weights.lpips`); without them it is left out.
      restore: checkpoint of the run: "latest", "latest_good", which steps over damaged ones,
        "best" (see `LoopConfig.keep_best`), or the number of a step.

    Raises:
      UserError: an unknown suite, or one without the flags that it needs.
    """

    suite: str = ""
    out: str = ""
    embedder: str = ""
    model: str = ""
    videos: str = ""
    i3d: str = ""
    clip: str = ""
    frames: int | None = None
    prompts_json: str = ""
    dimensions: Sequence[str] | None = None
    results: str = ""
    data: str | None = None
    split: str | None = None
    runs: Sequence[str] | None = None
    prompts_file: str | None = None
    count: int = 64
    seed: int = 0
    steps: int | None = None
    guidance_scale: float | None = None
    shapes: Sequence[str] | None = None
    lpips: Sequence[str] | None = None
    restore: str = LATEST

    def __post_init__(self):
        if not self.suite:
            raise UserError(f"give --suite, one of {', '.join(SUITE_FLAGS)}")
        needed, optional = SUITE_FLAGS[choose("suite", self.suite, SUITE_FLAGS)]
        for field in dataclasses.fields(self):
            if field.name in ("suite", "out", *needed, *optional):
                continue
            if getattr(self, field.name) != field.default:
                takers = [
                    name for name, each in SUITE_FLAGS.items() if field.name in each[0] + each[1]
                ]
                raise UserError(f"--{field.name} is for --suite={' and '.join(takers)}")
        if missing := [name for name in (*needed, "out") if not getattr(self, name)]:
            raise UserError(f"give {', '.join(f'--{name}' for name in missing)}")
        if self.split is not None:
            choose("split", self.split, SPLITS)

    def only_for_samples(self, *flags: str) -> None:
        """Raise UserError for flags of sampling that were given with `videos`."""
        for field in dataclasses.fields(self):
            if field.name in flags and getattr(self, field.name) != field.default:
                raise UserError(
                    f"--{field.name} is for samples of a --model; --videos are there already"
                )
