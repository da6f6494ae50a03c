"""Tiny VDiT on the world of moving shapes, on the latents of configs/quickstart/regen.py: two
frames for nine.

command   python launch/train.py --config=configs/quickstart/vdit_regen.py --workdir=runs/quickstart/vdit_regen
hardware  2 CPU cores, under 2 GB
time      8 min 34 s, on one core
expect    67% (43 of 64) of held-out prompts with all attributes right: color 98%, direction 100%, size 95%,
          background 100%, shape 69%; 53% after 2,400 steps

--config=configs/quickstart/vdit_regen.py:16 is of clips of 17 frames, on the latents of
runs/quickstart/regen16, which configs/quickstart/regen.py:16 trains.
"""

import pathlib
import runpy

_QUICKSTART = runpy.run_path(str(pathlib.Path(__file__).with_name("vdit.py")))


def get_config(ratio: str = "8"):
    """That of vdit.py on other latents; one chunk a clip."""
    config = _QUICKSTART["get_config"]()
    config.embedder = "runs/quickstart/regen" + ("" if ratio == "8" else ratio)
    config.model.patch = 1  # the latents are 4x4
    (bucket,) = config.data.buckets
    config.data.buckets = ({**bucket, "frames": int(ratio) + 1},)
    return config
