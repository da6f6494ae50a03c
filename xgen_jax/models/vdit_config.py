"""The sizes and variants of a VDiT, and its presets (arXiv 2408.12590, section 3.2).

Trainable parameters on latents of 4 channels, counted by `models.vdit.count_parameters`:

    name         width  depth  heads     parameters
    VDiT-S/2       384     12      6     39,421,984
    VDiT-B/2       768     12     12    153,519,136
    VDiT-L/2      1024     24     16    523,057,792
    VDiT-XL/2     1152     28     16    767,452,064
    VDiT-3B/2     2560     28     20  3,017,402,480
    VDiT-5B/2     3072     32     24  4,945,804,304
    tiny            96      4      4        887,632

S, B and L are the sizes of DiT (arXiv 2212.09748, table 1); XL is the paper's network, of which it
prints 731M, in units of 1024^2.
"""

import dataclasses
from collections.abc import Mapping

from xgen_jax.errors import UserError, choose
from xgen_jax.nn.choices import IMPLEMENTATIONS, REMAT
from xgen_jax.parallel.sequence import check_attention
from xgen_jax.typing import Shape

CHOICES = {
    "attention": IMPLEMENTATIONS,
    "positions": ("sinusoid_2d", "rope_3d"),
    "attention_layout": ("factorised", "full"),
    "remat": REMAT,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VDiTConfig:
    """Sizes and variants of a VDiT. An option that is off costs no parameters.

    Attributes:
      width: model width; a multiple of heads.
      mlp_ratio: width of the MLP's hidden layer, in widths.
      depth: blocks.
      heads: attention heads.
      patch: side of a patch in latent cells; latents that patches do not tile are padded with
        zeros, and the output is cropped.
      text_width: width of the text tokens.
      null_caption_tokens: length L of the stored null caption, (L, text_width) in the collection
        `constants`, that stands in for a dropped caption; 0 where the text encoder has its own.
      micro_cond: condition on height, width, aspect, frames and frame rate (`MicroConditions`).
      learned_variance: twice the output channels: the prediction, then its variance (DDPM, arXiv
        2102.09672).
      positions: `sinusoid_2d`, added to the tokens once, with rotary positions in time; or
        `rope_3d`, rotary positions in time, rows and columns.
      position_span: range of row and column positions at any size, so that an object has the same
        place at any resolution; None counts patches.
      attention_layout: `factorised`, attention in space and then in time; or `full`, one attention
        over both.
      text_norm: normalise the input of cross-attention, and its queries and keys; the paper's
        predecessors do not.
      time_sinusoid: also add sinusoids of the frame index to the tokens, as in the paper's
        introduction.
      caption_positions: also add positions that depend on the caption and on the diffusion time,
        see `nn.embeddings.CaptionPositions`.
      qk_norm: normalise queries and keys of the self-attentions.
      opensora_compat: compute as the public STDiT2 (Open-Sora 1.1) did, which its weights need; see
      `models.vdit`.
      scan_layers: one scanned block (compiles once) or `depth` separate ones (for debugging).
      remat: what of each block the backward pass computes again: `none`, `dots` (all but attention
        and the products with parameters), `qkv` (all but attention, the projections to it and the
        MLP's results), `attention` (all but the results of attention and MLP), `full` (all), or
        `offload` (all, from inputs that wait in the host's memory; on a CPU as `full`).
      attention: the implementation, see `xgen_jax.nn.attention`.
    """

    width: int = 1152
    depth: int = 28
    heads: int = 16
    patch: int = 2
    text_width: int = 4096
    null_caption_tokens: int = 0
    mlp_ratio: int = 4
    micro_cond: bool = False
    learned_variance: bool = False
    positions: str = "sinusoid_2d"
    position_span: float | None = None
    attention_layout: str = "factorised"
    qk_norm: bool = True
    text_norm: bool = False
    time_sinusoid: bool = False
    caption_positions: bool = False
    opensora_compat: bool = False
    scan_layers: bool = True
    remat: str = "full"
    attention: str = "xla"

    def __post_init__(self):
        for name, choices in CHOICES.items():
            choose(name, getattr(self, name), choices)
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise UserError(
                f"width {self.width} over {self.heads} heads must give an even head dimension"
            )
        if self.positions == "rope_3d" and self.width // self.heads < 6:
            raise UserError(
                f"positions='rope_3d' needs a head dimension of 6 or more, not "
                f"{self.width // self.heads}: each of three axes rotates pairs of channels"
            )
        if self.position_span is not None and self.position_span <= 0:
            raise UserError(f"position_span must be above 0, or None, not {self.position_span}")
        if self.null_caption_tokens < 0:
            raise UserError(
                f"null_caption_tokens must be 0 or more, not {self.null_caption_tokens}"
            )
        if self.opensora_compat:
            needed = {
                "positions": "sinusoid_2d",
                "attention_layout": "factorised",
                "micro_cond": True,
                "text_norm": False,
                "time_sinusoid": False,
                "caption_positions": False,
            }
            wrong = [
                f"{key}={value!r}" for key, value in needed.items() if getattr(self, key) != value
            ]
            if self.position_span is None:
                wrong.append("a position_span (32.0 for the public weights)")
            if wrong:
                raise UserError(
                    f"opensora_compat=True needs {', '.join(wrong)}, as the public network has"
                )

    def out_channels(self, channels: int) -> int:
        """Return the channels of the output for latents of `channels`."""
        return channels * (2 if self.learned_variance else 1)

    def check_latents(self, latent_shape: Shape) -> None:
        """Raise UserError for an empty (t, h, w); every other size can be cut into patches."""
        if min(latent_shape) < 1:
            raise UserError(
                f"latents of {'x'.join(map(str, latent_shape))} (t x h x w) hold nothing to work on"
            )

    def tokens(self, latent_shape: Shape) -> int:
        """Return the tokens of a clip's latents (t, h, w), one a patch of a frame."""
        frames, height, width = latent_shape
        return frames * -(-height // self.patch) * -(-width // self.patch)

    def check_mesh(self, mesh: Mapping[str, int], latent_shape: Shape) -> None:
        """Raise UserError for latents (t, h, w) that devices cannot share; see `check_attention`.

        Args:
          mesh: sizes by axis.
          latent_shape: of a clip.
        """
        frames, *sides = latent_shape
        rows, columns = (-(-side // self.patch) for side in sides)
        apart = self.attention_layout == "factorised"
        check_attention(mesh, self.heads, frames, (rows, columns), apart)


# The form of the paper's network, and of its smaller relatives.
_PAPER = VDiTConfig(
    null_caption_tokens=250, micro_cond=True, learned_variance=True, position_span=32.0
)
# The form of later networks: full attention, rotary positions everywhere, and flow matching, which
# has no variance.
_MODERN = dataclasses.replace(
    _PAPER, learned_variance=False, positions="rope_3d", attention_layout="full"
)

PRESETS = {
    "VDiT-S/2": dataclasses.replace(_PAPER, width=384, depth=12, heads=6),
    "VDiT-B/2": dataclasses.replace(_PAPER, width=768, depth=12, heads=12),
    "VDiT-L/2": dataclasses.replace(_PAPER, width=1024, depth=24, heads=16),
    "VDiT-XL/2": _PAPER,
    "VDiT-3B/2": dataclasses.replace(_MODERN, width=2560, depth=28, heads=20),
    "VDiT-5B/2": dataclasses.replace(_MODERN, width=3072, depth=32, heads=24),
    # Minutes on a laptop's CPU.
    "tiny": VDiTConfig(
        width=96,
        depth=4,
        heads=4,
        patch=2,
        text_width=96,
        text_norm=True,
        time_sinusoid=True,
        remat="none",
    ),
}
