"""Serves a page on which a person uses a model: text to video, reconstruction, a look at latents.

python launch/demo.py --model=runs/quickstart/vdit
python launch/demo.py --model=runs/quickstart/regen --port=8080

Then open http://127.0.0.1:7860 in a browser; Ctrl-C ends it. The folder of a VidVAE or a REGEN
serves all but text to video. Nobody but this machine can reach the page, unless --host says so.
"""

import command
from absl import flags

text, integer, number = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
FLAGS = [
    text("model", None, "Run folder of a VDiT, a VidVAE or a REGEN."),
    text("embedder", None, "The embedder's run folder, if it is no longer where the run found it."),
    text("text_encoder", None, "The folder of the run's T5, likewise."),
    text("lora", None, "An adapter of the model: FILE or FILE:SCALE, or the run that trained it."),
    text(
        "restore", "latest", "Checkpoint: latest, latest_good (the newest whole), best, or a step."
    ),
    flags.DEFINE_bool("offload", False, "Transformer and decoder on the devices in turns."),
    number("memory_budget_gb", None, "What a device may use, in GB (1e9 bytes)."),
    text("gallery", "runs/demo", "Folder of the videos that are made, each with its settings."),
    text("host", "127.0.0.1", "Address to serve; 0.0.0.0 is for everyone who reaches the machine."),
    integer("port", 7860, "Of the address; 0 takes a free one.", lower_bound=0, upper_bound=65535),
    integer("max_upload_mb", 200, "Largest file to upload, in MB (1e6 bytes).", lower_bound=1),
    number("max_seconds", 10.0, "Longest part of a video that is reconstructed, in seconds."),
    integer(
        "max_side", 512, "Pixels of its longer side; larger ones are made smaller.", lower_bound=16
    ),
    integer("queue_size", 16, "Requests that may wait for the device.", lower_bound=1),
]


def main():
    from xgen_jax.commands.demo.serve import DemoRequest, serve_demo

    return serve_demo(DemoRequest(**command.values(FLAGS)))


if __name__ == "__main__":
    command.run(main, __doc__)
