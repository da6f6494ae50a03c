r"""Encodes a data set once, for training a VDiT on latents that are read instead of made again.

python launch/encode.py --embedder=runs/quickstart/vidvae --data=my_videos --out=my_latents
python launch/encode.py --embedder=runs/quickstart/vidvae --data=synthetic --count=10000 --seed=1 \
    --out=my_latents
python launch/encode.py --embedder=... --data=my_videos --text_encoder=models/t5-v1_1-xxl \
    --out=my_latents
python launch/train.py --config=... --config.data.source.path=my_latents

Interrupted? The same command writes the shards that are missing. After videos or captions were
added or corrected it encodes what is new and keeps the rest.
"""

import command
from absl import flags

text, integer, enum = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_enum
FLAGS = [
    text("embedder", None, "Run folder of a trained or converted VidVAE, or a REGEN."),
    text("data", None, "Folder of videos and images or of curated clips, tfds:NAME, or synthetic."),
    text("out", None, "Folder for the latents."),
    text("buckets", None, "FRAMESxHEIGHTxWIDTH[,...]; by default what the embedder trained on."),
    text("stage", None, "240p, 480p or 720p: each clip in the one bucket that it fits."),
    text("aspects", None, "HEIGHT:WIDTH[,...] of a stage's buckets; by default 9:16,1:1,16:9."),
    integer("clips_per_video", 1, "Clips of each bucket, at random places.", lower_bound=1),
    integer("count", None, "Number of synthetic clips.", lower_bound=1),
    integer("seed", 0, "Of places and crops, or of synthetic clips (data.seed).", lower_bound=0),
    text("restore", "latest", "Checkpoint: latest, latest_good (newest whole), best, or a step."),
    integer("batch_size", 16, "Clips encoded at once.", lower_bound=1),
    integer("shard_size", 1024, "Clips a shard.", lower_bound=1),
    enum("dtype", "float32", ["float32", "bfloat16", "float16"], "In which latents are stored."),
    enum("compute_dtype", "float32", ["float32", "bfloat16"], "In which networks compute."),
    text("text_encoder", None, "Folder of a T5, or of a VDiT run, that embeds captions."),
    integer("text_length", None, "Tokens a caption of a T5; by default 250.", lower_bound=1),
    flags.DEFINE_float(
        "fps", None, "Frames a second of the clips; by default each file's own.", lower_bound=0.001
    ),
    integer("stride", 1, "Take every stride-th frame of that rate.", lower_bound=1),
    flags.DEFINE_bool("require_captions", True, "Leave out videos without a caption."),
    flags.DEFINE_float(
        "seconds_per_clip", 4.0, "Seconds of a video that count as one clip.", lower_bound=0.001
    ),
    flags.DEFINE_float(
        "held_out_fraction",
        0.05,
        "Share of the clips that training does not see.",
        lower_bound=0.0,
        upper_bound=0.99,
    ),
    enum(
        "hold_out",
        "files",
        ["files", "ends"],
        "files: ends of long videos, and some others whole; ends: the end of every video.",
    ),
]
PROCESSES = command.process_flags()


def main():
    from xgen_jax.commands.encode import EncodeRequest, encode_dataset

    request = EncodeRequest(**command.values(FLAGS))
    return command.in_processes(PROCESSES, lambda: encode_dataset(request))


if __name__ == "__main__":
    command.run(main, __doc__)
