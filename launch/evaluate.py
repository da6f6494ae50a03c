r"""Score a trained model, and keep what it was scored on.

python launch/evaluate.py --suite=reconstruction --embedder=runs/quickstart/vidvae --out=scores
python launch/evaluate.py --suite=captions --model=runs/quickstart/vdit --out=scores
python launch/evaluate.py --suite=report --out=runs/quickstart

python launch/evaluate.py --suite=samples --model=runs/mine/vdit --prompts_file=prompts.txt \
    --out=scores

`reconstruction` scores the clips that were held out of the run's own folder, or those of a folder
(--data), or held-out synthetic clips; --shapes=paper scores 1x768x768, 17x512x512 and 65x256x256,
next to the paper's figures.
`captions` samples held-out prompts, and reads color, shape, direction, size and background from the
pixels.
`samples` samples your own prompts.
`fvd`: --model or --videos against the videos of --data, with --i3d.
`vbench_export`, `vbench_import`: VBench's prompts as videos; its results as the paper's groups.
`clip_score`: how well videos fit their prompts, with --clip.
`report` writes the page of a folder with the runs vidvae and vdit, and evaluation/, the scores;
`compare` one of several such folders (--runs).
"""

import command
from absl import flags

text, integer = flags.DEFINE_string, flags.DEFINE_integer
FLAGS = [
    text("suite", None, "What to do, see above."),
    text("embedder", None, "Run folder of a trained VidVAE or REGEN (reconstruction)."),
    text("model", None, "Run folder of a trained VDiT (all that sample)."),
    text("videos", None, "Folder of generated videos, in place of a model (fvd, clip_score)."),
    text("restore", "latest", "Checkpoint: latest, latest_good (whole), best, or a step."),
    text("data", None, "Folder of videos; by default the run's (reconstruction, fvd)."),
    flags.DEFINE_enum(
        "split",
        None,
        ["held_out", "train", "all"],
        "Clips: by default all of --data, or what the run held out (reconstruction).",
    ),
    text("prompts_file", None, "Text file with a prompt on each line (samples, fvd, clip_score)."),
    text("prompts_json", None, "VBench_full_info.json (vbench_export)."),
    flags.DEFINE_list("dimensions", None, "Of VBench; by default all (vbench_export)."),
    text("results", None, "VBench's *_eval_results.json, or a folder of them (vbench_import)."),
    text("i3d", None, "Folder of FVD's network, see launch/convert.py --kind=i3d (rFVD, fvd)."),
    text("clip", None, "Folder of a CLIP, in Hugging Face's layout (clip_score)."),
    flags.DEFINE_list("runs", None, "Folders DIR,DIR,... (compare)."),
    text("out", None, "Folder for the results; for report the quickstart folder itself."),
    integer("count", 64, "Number of clips or prompts.", lower_bound=1),
    integer("frames", None, "Of a clip; by default the model's (fvd, clip_score, vbench_export)."),
    integer("seed", 0, "Of the clips, prompts and noise.", lower_bound=0),
    integer("steps", None, "Of sampling or REGEN's decoder; by default the run's.", lower_bound=1),
    flags.DEFINE_float("guidance_scale", None, "By default the run's (all that sample)."),
    flags.DEFINE_list("shapes", None, "FRAMESxHEIGHTxWIDTH,... or paper (reconstruction)."),
    flags.DEFINE_list("lpips", None, "LPIPS weights: FILE or TRUNK,HEADS (reconstruction)."),
]
PROCESSES = command.process_flags()


def main():
    from xgen_jax.commands.evaluate import evaluate
    from xgen_jax.commands.evaluate_request import EvaluateRequest

    given = {name: value for name, value in command.values(FLAGS).items() if value is not None}
    request = EvaluateRequest(**given)
    return command.in_processes(PROCESSES, lambda: evaluate(request))


if __name__ == "__main__":
    command.run(main, __doc__)
