"""What objectives that train on video alone have in common; see the package for what an objective
is."""

import jax

from xgen_jax.data.buckets import Bucket
from xgen_jax.errors import UserError


class VideoObjective:
    """Needs of a batch its video, and of other networks LPIPS at most.

    Attributes:
      loss_config: has `lpips`, the weight of that term.
      lpips: module (frames x, frames y (B, H, W, 3) in [-1, 1]) -> (B,), where its weight is not 0.
      frozen: the parameters of `lpips`.
    """

    def __post_init__(self):
        if self.loss_config.lpips and self.lpips is None:
            raise UserError(
                f"loss.lpips={self.loss_config.lpips} needs loss.lpips_weights=FILE, the safetensors of LPIPS; "
                "loss.lpips=0 does without"
            )

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
        return {
            "video": jax.ShapeDtypeStruct(
                (bucket.batch_size, *bucket.shape, 3), arrays["video"].dtype
            )
        }
