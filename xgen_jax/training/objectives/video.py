"""What objectives that train on video alone have in common; see the package for what an objective is."""

import jax

from xgen_jax.data.buckets import Bucket


class VideoObjective:
    """Needs of a batch its video, and of other networks nothing."""

    def fingerprints(self) -> dict[str, str]:
        """Nothing."""
        return {}

    def arrays(self, batch):
        """Host batch -> {"video": uint8 (B, T, H, W, 3)}."""
        return {"video": batch["video"]}

    def prepare(self, arrays):
        """Nothing is computed before the step."""
        return arrays

    def resized(self, arrays, bucket: Bucket):
        """Shapes of a bucket's arrays."""
        return {"video": jax.ShapeDtypeStruct((bucket.batch_size, *bucket.shape, 3), arrays["video"].dtype)}
