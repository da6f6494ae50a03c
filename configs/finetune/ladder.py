"""What the configurations of this folder have in common: a rung of the ladder is a device and the
clips that it trains on.

    rung   device            autoencoder   transformer   clips
    cpu    2 CPU cores       small         VDiT-S/2      9x64x64
    12gb   one 12 GB GPU     small         VDiT-S/2      17x128x128
    24gb   one 24 GB GPU     base          VDiT-B/2      17x256x256
    80gb   one 80 GB GPU     base          VDiT-B/2      17x480x848

Batches leave room: a step takes less than three quarters of the device, which is what JAX reserves
on a GPU. docs/plans.md has the plan of each on its device.
"""

import dataclasses

from xgen_jax.config.loop import LoopConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, VideoFolderConfig
from xgen_jax.errors import choose

# Of the autoencoders; the quickstarts' but for a longer warm-up.
MUON = OptimizerConfig(
    name="muon",
    learning_rate=0.02,
    adam_learning_rate=3e-3,
    schedule="linear",
    warmup_steps=200,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rung:
    """A device and the clips that it trains on.

    Attributes:
      size: of the autoencoder, a preset of VidVAE and the first part of one of REGEN.
      transformer: a preset of VDiT.
      frames: of a clip, as a VidVAE takes them (1 + 4n).
      height, width: of a clip, in pixels.
      dtype: of the computation.
      threads: that prepare batches.
      remat: of the transformers.
    """

    size: str
    transformer: str
    frames: int
    height: int
    width: int
    dtype: str = "bfloat16"
    threads: int = 8
    remat: str = "full"

    def data(
        self, source: VideoFolderConfig, batch_size: int, frames: int | None = None
    ) -> DataConfig:
        """Make the data: one bucket of the rung's clips, or of clips with other frames."""
        bucket = Bucket(
            frames=frames or self.frames,
            height=self.height,
            width=self.width,
            batch_size=batch_size,
        )
        return DataConfig(
            source=source, buckets=(bucket,), num_threads=self.threads, prefetch=self.threads
        )

    def loop(self, steps: int, ema_decay: float) -> LoopConfig:
        """Make the loop, which scores held-out clips every 500 steps."""
        return LoopConfig(
            steps=steps,
            ema_decay=ema_decay,
            compute_dtype=self.dtype,
            checkpoint_every=500,
            evaluate_every=500,
        )


RUNGS = {
    "cpu": Rung(
        size="small",
        transformer="VDiT-S/2",
        frames=9,
        height=64,
        width=64,
        dtype="float32",
        threads=2,
        remat="none",
    ),
    "12gb": Rung(size="small", transformer="VDiT-S/2", frames=17, height=128, width=128),
    "24gb": Rung(size="base", transformer="VDiT-B/2", frames=17, height=256, width=256),
    "80gb": Rung(size="base", transformer="VDiT-B/2", frames=17, height=480, width=848),
}


def rung(name: str) -> Rung:
    """Return a rung by its name."""
    return RUNGS[choose("rung", name, RUNGS)]
