"""A small folder of latents."""

import numpy as np

from xgen_jax.data.latent_writer import LatentWriter

SETTINGS = {
    "embedder": "e" * 16,
    "buckets": ["5x8x8", "1x8x8"],
    "clips": 11,
    "shard_size": 4,
    "dtype": "float32",
}
LATENTS = {"5x8x8": (2, 2, 2, 3), "1x8x8": (1, 2, 2, 3)}


def sample(bucket, index, text=False):
    rng = np.random.default_rng((index, len(bucket), bucket.startswith("1")))
    out = {
        "latents": rng.standard_normal(LATENTS[bucket], np.float32),
        "caption": f"clip {index} ☃",
    }
    if text:
        out["text"] = rng.standard_normal((1 + index % 4, 6), np.float32)
    return out


def write(path, bad=(), break_after=None, text=False, members=None, **changes):
    """Write the missing shards; `bad` clips cannot be read; stop after `break_after` clips."""
    writer = LatentWriter(path, {**SETTINGS, **changes}, members)
    count = 0

    def samples(bucket, shard):
        nonlocal count
        for index in writer.clips(bucket, shard):
            if count == break_after:
                raise KeyboardInterrupt
            count += 1
            yield index, f"no video {index}" if index in bad else sample(bucket, index, text)

    for bucket in writer.settings["buckets"]:
        for shard in range(writer.shards(bucket)):
            if not writer.finished(bucket, shard):
                writer.write(bucket, shard, samples(bucket, shard))
    writer.finish()
    return count


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
