"""Curation by the rules of xGen-VideoSyn-1 (arXiv 2408.12590, section 3 and table 5).

command   python launch/curate.py --config=curation/xgen --videos=VIDEOS --out=CURATED
            --config.aesthetics.clip_dir=CLIP --config.aesthetics.head=FILE
            --config.captions=endpoint --config.captions.url=URL --config.captions.model=NAME
hardware  CPU for all but CLIP and the captions; the paper used a cluster with a queue for each step
time      see docs/curation.md
expect    of the clips of the paper's videos 64.18% are no duplicates; 90.23% of these reach the
          aesthetic score, 67.9% have little text, 88.6% move: 34.84% in all, 13 million clips

CLIP is a folder of openai/clip-vit-large-patch14, FILE LAION's predictor as safetensors. From the
paper: similarity 0.9, score 4.5, 20,000 pixels of text (its frames have 720 lines), videos of 720p
and more. It prints no thresholds for cuts and motion; these are our defaults. It had a video
language model of its own for captions; here any endpoint with OpenAI's interface writes them.
"""

import dataclasses

from xgen_jax.curation.config import CurationConfig, DuplicatesConfig, ShotsConfig, TextConfig


def get_config():
    curation = CurationConfig(
        shots=ShotsConfig(min_side=720),
        duplicates=DuplicatesConfig(similarity=0.9),
        text=TextConfig(max_area=20_000 / (1280 * 720)),
    )
    return dataclasses.asdict(curation)
