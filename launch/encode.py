"""Encodes a data set once, for training a VDiT on latents that are read instead of made anew each
time.

    python launch/encode.py --embedder=runs/quickstart/vidvae --data=my_videos --out=my_latents
    python launch/encode.py --embedder=runs/quickstart/vidvae --data=synthetic --count=10000
    --seed=1 --out=latents python launch/encode.py --embedder=... --data=my_videos
    --text_encoder=models/t5-v1_1-xxl --out=my_latents python launch/train.py --config=...
    --config.data.source=latents --config.data.path=my_latents

Interrupted? The same command makes what is not there yet.
"""

import command
from absl import flags

EMBEDDER = flags.DEFINE_string(
    "embedder", None, "Run folder of a trained or converted VidVAE, or a REGEN."
)
DATA = flags.DEFINE_string("data", None, "Folder of videos and images, or the word synthetic.")
OUT = flags.DEFINE_string("out", None, "Folder for the latents.")
BUCKETS = flags.DEFINE_string(
    "buckets", None, "FRAMESxHEIGHTxWIDTH[,...]; by default what the embedder trained on."
)
STAGE = flags.DEFINE_string(
    "stage", None, "240p, 480p or 720p instead of buckets: each clip in the one that it fits."
)
ASPECTS = flags.DEFINE_string(
    "aspects", None, "HEIGHT:WIDTH[,...] of a stage's buckets; by default 9:16,1:1,16:9."
)
CLIPS_PER_VIDEO = flags.DEFINE_integer(
    "clips_per_video", 1, "Clips of each bucket, at random places.", lower_bound=1
)
COUNT = flags.DEFINE_integer("count", None, "How many synthetic clips.", lower_bound=1)
SEED = flags.DEFINE_integer(
    "seed", 0, "Of places and crops, or of the synthetic world (data.seed).", lower_bound=0
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Clips encoded at once.", lower_bound=1)
SHARD_SIZE = flags.DEFINE_integer("shard_size", 1024, "Clips a shard.", lower_bound=1)
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16", "float16"], "What latents are stored as."
)
COMPUTE_DTYPE = flags.DEFINE_enum(
    "compute_dtype", "float32", ["float32", "bfloat16"], "What networks compute in."
)
TEXT_ENCODER = flags.DEFINE_string(
    "text_encoder", None, "Folder of a T5, or of a VDiT run, that embeds captions."
)
TEXT_LENGTH = flags.DEFINE_integer(
    "text_length", None, "Tokens a caption of a T5; by default 250.", lower_bound=1
)
FPS = flags.DEFINE_float(
    "fps", None, "Frames a second of the clips; by default each file's own.", lower_bound=0.001
)
STRIDE = flags.DEFINE_integer(
    "stride", 1, "Take every stride-th frame of that rate.", lower_bound=1
)
REQUIRE_CAPTIONS = flags.DEFINE_bool(
    "require_captions", True, "Leave out videos without a caption."
)


def main():
    from xgen_jax.commands.encode import encode_dataset

    return encode_dataset(
        embedder=EMBEDDER.value,
        data=DATA.value,
        out=OUT.value,
        buckets=BUCKETS.value,
        stage=STAGE.value,
        aspects=ASPECTS.value,
        clips_per_video=CLIPS_PER_VIDEO.value,
        count=COUNT.value,
        seed=SEED.value,
        batch_size=BATCH_SIZE.value,
        shard_size=SHARD_SIZE.value,
        dtype=DTYPE.value,
        compute_dtype=COMPUTE_DTYPE.value,
        text_encoder=TEXT_ENCODER.value,
        text_length=TEXT_LENGTH.value,
        fps=FPS.value,
        stride=STRIDE.value,
        require_captions=REQUIRE_CAPTIONS.value,
    )


if __name__ == "__main__":
    command.run(main, __doc__)
