"""CLIP's vision tower (arXiv 2103.00020, section 2.4): an image to a vector.

    x = norm([class, patches] + positions);  per block: x += attention(norm(x)), x += MLP(norm(x));
    feature = P norm(x[class])

The MLP's activation is x sigmoid(1.702 x). The published feature is this vector; what compares or
scores images divides it by its length, as `ImageEncoder` does. `weights.clip` reads the released
networks.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from PIL import Image

from xgen_jax.errors import UserError
from xgen_jax.nn.attention import SelfAttention
from xgen_jax.nn.embeddings import NORMAL, join_scope
from xgen_jax.nn.mlp import MLP
from xgen_jax.nn.stack import Stack
from xgen_jax.typing import Array, Params

# Of the RGB values in [0, 1] of CLIP's training images.
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def check_positive(config: Any) -> None:
    """Raise UserError unless all sizes of a tower's configuration are above 0."""
    for name, value in dataclasses.asdict(config).items():
        if not value > 0:
            raise UserError(f"a CLIP's {name} must be above 0, not {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig:
    """Sizes of a vision tower.

    Attributes:
      side: pixels of the square images.
      patch: pixels of a patch's side.
      width, hidden: of the tokens, and of the MLP.
      depth, heads: blocks, and attention heads in each.
      features: length of the result.
      epsilon: of the norms.
    """

    side: int = 224
    patch: int = 14
    width: int = 1024
    hidden: int = 4096
    depth: int = 24
    heads: int = 16
    features: int = 768
    epsilon: float = 1e-5

    def __post_init__(self):
        check_positive(self)
        if self.side % self.patch or self.width % self.heads:
            raise UserError(
                f"side={self.side} must be a multiple of patch={self.patch}, and "
                f"width={self.width} of heads={self.heads}"
            )

    @property
    def tokens(self) -> int:
        """Patches of an image, and the class token."""
        return (self.side // self.patch) ** 2 + 1


# arXiv 2103.00020, table 20. LAION's aesthetic predictor and xGen's filters work on ViT-L/14.
PRESETS = {
    "vit-b-32": CLIPVisionConfig(
        patch=32, width=768, hidden=3072, depth=12, heads=12, features=512
    ),
    "vit-l-14": CLIPVisionConfig(),
}


def quick_gelu(x: Array) -> Array:
    """CLIP's approximation of the GELU, x sigmoid(1.702 x)."""
    return x * nn.sigmoid(1.702 * x)


class Block(nn.Module):
    """Self-attention and MLP, each after its norm."""

    config: CLIPVisionConfig
    attention: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BND: Array) -> Array:
        c = self.config
        attention = SelfAttention(
            c.heads, implementation=self.attention, dtype=self.dtype, name="attention"
        )
        mlp = MLP(c.hidden, activation=quick_gelu, dtype=self.dtype, name="mlp")
        x_BND = x_BND + attention(_norm(c, self.dtype, "norm_attention")(x_BND))
        return x_BND + mlp(_norm(c, self.dtype, "norm_mlp")(x_BND))


class CLIPVision(nn.Module):
    """Encode uint8 RGB images (B, side, side, 3), see `fit_square`, to float32 (B, features).

    Attributes:
      config: sizes.
      attention: how it is computed, one of `nn.choices.IMPLEMENTATIONS`.
      dtype: of the blocks; norms, softmax and projection are float32.
    """

    config: CLIPVisionConfig
    attention: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images_BHWC: Array) -> Array:
        c = self.config
        if images_BHWC.shape[1:] != (c.side, c.side, 3):
            raise UserError(
                f"this CLIP takes images (B, {c.side}, {c.side}, 3), not {images_BHWC.shape}"
            )
        patches = nn.Conv(
            c.width,
            (c.patch, c.patch),
            strides=c.patch,
            padding="VALID",
            use_bias=False,
            kernel_init=NORMAL,
            dtype=self.dtype,
            name="patch",
        )(normalize(images_BHWC))
        first = self.param("class_token", NORMAL, (c.width,)).astype(self.dtype)
        positions = self.param("positions", NORMAL, (c.tokens, c.width)).astype(self.dtype)
        x = rearrange(patches, "b h w d -> b (h w) d")
        first = jnp.broadcast_to(first.reshape(1, 1, -1), (x.shape[0], 1, c.width))
        x = jnp.concatenate([first, x], axis=1) + positions[None]
        x = _norm(c, self.dtype, "norm_in")(x)
        blocks = Stack(Block, (c, self.attention, self.dtype), c.depth, block_name=None)
        x = join_scope(self, blocks)(x)
        x_BD = _norm(c, jnp.float32, "norm_out")(x[:, 0])
        return nn.Dense(c.features, use_bias=False, kernel_init=NORMAL, name="proj")(x_BD)


def _norm(config: CLIPVisionConfig, dtype: jnp.dtype, name: str) -> nn.LayerNorm:
    # The mean square less the squared mean, Flax's default, has few digits left where one channel
    # outgrows the others, as in CLIP's later blocks.
    return nn.LayerNorm(epsilon=config.epsilon, use_fast_variance=False, dtype=dtype, name=name)


def normalize(images_BHWC: Array) -> Array:
    """Convert uint8 RGB (B, H, W, 3) to float32 with CLIP's mean 0 and deviation 1."""
    mean, deviation = (jnp.array(c, jnp.float32).reshape(1, 1, 1, 3) for c in (MEAN, DEVIATION))
    return (images_BHWC.astype(jnp.float32) / 255 - mean) / deviation


def fit_square(image_HWC: np.ndarray, side: int) -> np.ndarray:
    """Resize the shorter side, bicubic with Pillow, and crop the centre: uint8 (side, side, 3).

    As `transformers` CLIPImageProcessor does it, pixel by pixel: the longer side is rounded down, a
    centre between two pixels moves up and left.

    Args:
      image_HWC: uint8 (H, W, 3) RGB.
      side: pixels, see `CLIPVisionConfig`.
    """
    height, width = image_HWC.shape[:2]
    shorter = min(height, width)
    height, width = (int(side * length / shorter) for length in (height, width))
    picture = Image.fromarray(image_HWC).resize((width, height), Image.Resampling.BICUBIC)
    top, left = (height - side) // 2, (width - side) // 2
    return np.asarray(picture)[top : top + side, left : left + side]


class ImageEncoder:
    """Images of any number to features of length 1, with one compiled program.

    Attributes:
      model: the network.
      batch: images that are computed at once; the last ones are filled up with black.
    """

    def __init__(self, model: CLIPVision, params: Params, batch: int):
        self.model, self.batch = model, batch
        self._params = jax.device_put(params)
        self._encode = jax.jit(model.apply)

    def __call__(self, images_NHWC: np.ndarray) -> np.ndarray:
        """Encode uint8 (N, side, side, 3), see `fit_square`, to float32 (N, features)."""
        features = [np.empty((0, self.model.config.features), np.float32)]
        for start in range(0, len(images_NHWC), self.batch):
            images = images_NHWC[start : start + self.batch]
            full = np.zeros((self.batch, *images.shape[1:]), np.uint8)
            full[: len(images)] = images
            features.append(np.asarray(self._encode(self._params, full))[: len(images)])
        together = np.concatenate(features)
        return together / np.linalg.norm(together, axis=-1, keepdims=True)

    def fit(self, image_HWC: np.ndarray) -> np.ndarray:
        """Resize and crop an image of any size for the network; see `fit_square`."""
        return fit_square(image_HWC, self.model.config.side)
