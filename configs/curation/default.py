"""Curation without any weights, from a folder of raw videos to training shards.

command   python launch/curate.py --videos=VIDEOS --out=CURATED
hardware  CPU; --engine=ray or --engine=array for many
time      see docs/curation.md
expect    CURATED/report.html shows what was kept and why; CURATED/shards is what training reads

Every value is the default of `xgen_jax.curation.config`. With a CLIP ViT-L/14 and LAION's predictor
as safetensors, clips are also compared by their features and scored:
--config.aesthetics.clip_dir=FOLDER --config.aesthetics.head=FILE.
"""

import dataclasses

from xgen_jax.curation.config import CurationConfig


def get_config():
    return dataclasses.asdict(CurationConfig())
