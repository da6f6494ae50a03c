"""CLIP score (arXiv 2104.08718): how well the frames of a video fit its prompt.

Of a video, the mean over its frames of 100 max(cos, 0), with the cosine between CLIP's features of
frame and prompt. Papers differ in the network, in the frames and in the factor (100 or 2.5): only
figures of one CLIP compare. It judges what is seen in single frames; it does not see motion.
"""

import os

import jax
import numpy as np

from xgen_jax.data.pixels import check_clip
from xgen_jax.models.clip import ImageEncoder
from xgen_jax.models.clip_text import CLIPTokenizer, TextEncoder
from xgen_jax.typing import Video
from xgen_jax.weights.clip import load_clip_text, load_clip_vision

CONVENTION = (
    "CLIP score: mean over the frames of a video of 100 max(cos, 0), then over videos; frames "
    "resized by CLIP's own preprocessing (shorter side bicubic, centre crop); prompts as they are, "
    "cut to CLIP's length; more is better; only figures of one CLIP compare"
)
_FRAMES_AT_ONCE = 16


class CLIPScore:
    """The score of videos, one by one.

    Args:
      folder: a whole CLIP in Hugging Face's layout: config.json, model.safetensors, vocab.json and
        merges.txt.

    Raises:
      UserError: a file that is missing, or of another network.
    """

    def __init__(self, folder: str | os.PathLike):
        self._images = ImageEncoder(*load_clip_vision(folder), batch=_FRAMES_AT_ONCE)
        self._texts = TextEncoder(*load_clip_text(folder), CLIPTokenizer(folder))

    @property
    def cut(self) -> int:
        """How many prompts so far were longer than CLIP takes, and were cut."""
        return self._texts.cut

    def frames(self, prompt: str, video: Video) -> np.ndarray:
        """Return 100 max(cos, 0) of each frame, float32 (T,).

        Args:
          prompt: any text.
          video: uint8 (T, H, W, 3).

        Raises:
          UserError: another kind of array.
        """
        check_clip(video)
        fitted = np.stack([self._images.fit(frame) for frame in video])
        # A published figure must not depend on whether the device rounds its products.
        with jax.default_matmul_precision("highest"):
            text = self._texts([prompt], batch=1)[0]
            images = self._images(fitted)
        return 100 * np.maximum(images @ text, 0)
