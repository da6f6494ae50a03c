"""Text encoders. An encoder is `tokenize(prompts)` on the host and `apply(params, ids, mask)` -> (B, L, D) on the
device.

`ByteTextEncoder` is small, needs no vocabulary file and is trained with the transformer it serves.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from xgen_jax.errors import UserError
from xgen_jax.nn.attention import SelfAttention
from xgen_jax.nn.mlp import MLP
from xgen_jax.typing import Array

PAD, BEGIN, VOCABULARY = 0, 257, 258  # bytes are 1..256
STRIDE = 4  # bytes a token


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteTextConfig:
    """Sizes of a byte-level encoder. `max_bytes` is the longest prompt in UTF-8 bytes."""

    width: int = 96
    depth: int = 2
    heads: int = 4
    max_bytes: int = 64
    attention: str = "xla"


def tokenize_bytes(prompts: list[str], max_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """UTF-8 bytes behind a begin token: ids int32 (B, max_bytes + 1), mask bool of the same shape.

    The empty string is the null caption of classifier-free guidance: the begin token alone.

    Raises:
      UserError: a prompt longer than `max_bytes`; nothing is cut off in silence.
    """
    ids = np.full((len(prompts), max_bytes + 1), PAD, np.int32)
    ids[:, 0] = BEGIN
    for row, prompt in enumerate(prompts):
        data = prompt.encode("utf-8")
        if len(data) > max_bytes:
            raise UserError(f"the prompt {prompt!r} has {len(data)} bytes; this model takes at most {max_bytes}")
        ids[row, 1 : 1 + len(data)] = np.frombuffer(data, np.uint8).astype(np.int32) + 1
    return ids, ids != PAD


class ByteTextEncoder(nn.Module):
    """Bytes to tokens: two convolutions join letters to parts of words, the second keeping every fourth place, and a
    pre-norm transformer encoder relates those (the down-sampling of CANINE, arXiv 2103.06874, section 3.2).

    ids and mask (B, L) -> tokens (B, ceil(L / 4), width) and their mask.
    """

    config: ByteTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids_BL: Array, mask_BL: Array) -> tuple[Array, Array]:
        c = self.config
        # Unit scale: with the usual 0.02 the first layers see no difference between bytes or places for long.
        unit = nn.initializers.normal(1.0)
        x = nn.Embed(VOCABULARY, c.width, embedding_init=unit, name="bytes")(ids_BL).astype(self.dtype)
        # What lies behind the mask must not reach a token in front of it through a convolution.
        x = nn.gelu(nn.Conv(c.width, (5,), dtype=self.dtype, name="letters")(x * mask_BL[..., None]))
        pad = -ids_BL.shape[1] % STRIDE
        x = jnp.pad(x * mask_BL[..., None], ((0, 0), (0, pad), (0, 0)))
        mask = jnp.pad(mask_BL, ((0, 0), (0, pad))).reshape(len(ids_BL), -1, STRIDE).any(-1)
        x = nn.Conv(c.width, (2 * STRIDE,), (STRIDE,), dtype=self.dtype, name="parts")(x)
        x = x + self.param("positions", unit, (x.shape[1], c.width)).astype(self.dtype)[None]
        mask_BL = mask
        for layer in range(c.depth):
            h = nn.LayerNorm(dtype=self.dtype, name=f"norm_attention{layer}")(x)
            attend = SelfAttention(c.heads, implementation=c.attention, dtype=self.dtype, name=f"attention{layer}")
            x = x + attend(h, mask_BN=mask_BL)
            h = nn.LayerNorm(dtype=self.dtype, name=f"norm_mlp{layer}")(x)
            x = x + MLP(4 * c.width, dtype=self.dtype, name=f"mlp{layer}")(h)
        return nn.LayerNorm(dtype=self.dtype, name="norm_out")(x), mask_BL
