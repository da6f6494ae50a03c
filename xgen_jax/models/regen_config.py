"""The sizes and variants of a REGEN, and its presets (arXiv 2503.08665).

The paper gives 8 channels, 8x8 in space, chunks of k + 1 frames for k = 4, 8, 16 and 32, and a
decoder of 24 blocks of width 2048 with 16 heads. It gives no sizes of encoder and SIREN; those here
are ours.
"""

import dataclasses
from collections.abc import Mapping

from xgen_jax.errors import UserError, choose
from xgen_jax.models.vidvae_config import VidVAEConfig
from xgen_jax.nn.choices import IMPLEMENTATIONS, REMAT, WINDOW_BLOCKS
from xgen_jax.parallel.sequence import check_attention
from xgen_jax.typing import Shape

# Frames that are denoised together, see `models.regen_windows`.
WINDOWS = ("chunk", "shifted")
CHOICES = {
    "attention": IMPLEMENTATIONS,
    "conditioning": ("content_aware", "in_context"),
    "remat": REMAT,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class REGENConfig:
    """Sizes and variants of a REGEN.

    Attributes:
      encoder: a VidVAE of which only the encoder is built: with a temporal ratio of k it makes two
        latent frames of k + 1.
      latent_patch: latent cells a side of one of the decoder's tokens, whose patch of pixels is the
        encoder's factor in space times that: 1, as in the paper, or 2 for a quarter of the tokens.
        Frames that are no whole number of patches are padded, and cut again.
      width, depth, heads, mlp_ratio: of the decoder.
      head_channels: channels of the decoder at the resolution of pixels, in front of a last
        convolution of each frame with 3x3 taps, which lets the tokens' patches overlap; 0 for none,
        as in the paper.
      siren_hidden, siren_depth: see `nn.siren.ModulatedSIREN`.
      siren_features: channels of its result, and of the projected content latent.
      conditioning: `content_aware`: the expanded latents are added to the tokens, which have no
        other embedding of position; or `in_context`, the paper's ablation: the latents are tokens
        as well, and all have fixed embeddings.
      attention_window: rows and columns of the window, in tokens, that the decoder attends to
        around blocks of a third of these sides, in all frames; None for the whole frame, as in the
        paper. See `nn.local_attention`.
      attention, remat, scan_layers: see `VDiTConfig`.
    """

    encoder: VidVAEConfig
    latent_patch: int = 1
    width: int = 2048
    depth: int = 24
    heads: int = 16
    mlp_ratio: int = 4
    head_channels: int = 0
    siren_hidden: int = 256
    siren_depth: int = 3
    siren_features: int = 64
    conditioning: str = "content_aware"
    attention_window: tuple[int, int] | None = None
    attention: str = "xla"
    remat: str = "full"
    scan_layers: bool = True

    def __post_init__(self):
        for name, choices in CHOICES.items():
            choose(name, getattr(self, name), choices)
        if self.width % self.heads:
            raise UserError(f"width {self.width} must be a multiple of the {self.heads} heads")
        for name in ("latent_patch", "depth", "siren_hidden", "siren_depth", "siren_features"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if self.head_channels < 0:
            raise UserError(f"head_channels must be 0 or more, not {self.head_channels}")
        if any(side < 1 or side % WINDOW_BLOCKS for side in self.attention_window or ()):
            raise UserError(
                f"attention_window={self.attention_window} must be two multiples of "
                f"{WINDOW_BLOCKS}, rows and columns of tokens, or None for the whole frame"
            )
        if self.ratio < 2:
            raise UserError("the encoder must reduce time: time_factor 1 leaves no motion latent")
        if self.encoder.depends_on_whole_clip:
            raise UserError(
                "the content latent must see only the first frame: "
                f"{self.encoder.depends_on_whole_clip}"
            )

    @property
    def ratio(self) -> int:
        """k, the frames of a motion latent."""
        return self.encoder.time_factor

    @property
    def chunk_frames(self) -> int:
        """k + 1, the frames of a chunk, which becomes two latent frames."""
        return self.ratio + 1

    @property
    def siren_bands(self) -> int:
        """Number of the SIREN's Fourier frequencies; the fastest has a period of four frames.

        At a period of two frames the sine would be 0 at every frame, and at one the cosine would be
        1 as well: training would not constrain them between frames.
        """
        return max(1, self.ratio.bit_length() - 1)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.encoder.latent_channels

    @property
    def space_factor(self) -> int:
        """Pixels a side of one latent cell."""
        return self.encoder.space_factor

    @property
    def patch(self) -> int:
        """Pixels a side of the patches that the decoder puts together, one a token."""
        return self.space_factor * self.latent_patch

    def token_grid(self, latent_rows: int, latent_columns: int) -> tuple[int, int]:
        """Return the rows and columns of tokens of a frame of that many latent cells."""
        return -(-latent_rows // self.latent_patch), -(-latent_columns // self.latent_patch)

    def latent_shape(self, video_shape: Shape) -> Shape:
        """Return the shape of a clip's latents: (t, h, w) of (T, H, W), or with batch and channels.

        A clip is whole chunks, two latent frames each, and at most one frame more, an image, which
        is one latent frame.

        Raises:
          UserError: a length or size that the model cannot take; the message names the nearest ones
          that it can.
        """
        if len(video_shape) == 5:
            return (video_shape[0], *self.latent_shape(video_shape[1:4]), self.latent_channels)
        frames, height, width = video_shape
        chunks, tail = divmod(frames, self.chunk_frames)
        if frames < 1 or tail > 1:
            below = max(1, chunks * self.chunk_frames + 1)
            above = (chunks + 1) * self.chunk_frames
            raise UserError(
                f"{frames} frames cannot be encoded: lengths are {self.chunk_frames}n and "
                f"{self.chunk_frames}n + 1; the nearest are {below}, {above}"
            )
        return 2 * chunks + tail, *self.encoder.latent_shape((1, height, width))[1:]

    def check_mesh(self, mesh: Mapping[str, int], latent_shape: Shape) -> None:
        """Raise UserError for latents (t, h, w) that devices cannot share; see `check_attention`.

        Args:
          mesh: sizes by axis.
          latent_shape: of a clip.
        """
        grid = self.token_grid(*latent_shape[1:])
        check_attention(mesh, self.heads, self.chunk_frames, grid, frames_apart=False)

    def frames(self, latent_frames: int) -> int:
        """Return the frames of a clip of `latent_frames`: the inverse of `latent_shape`."""
        return latent_frames // 2 * self.chunk_frames + latent_frames % 2

    def padded_frames(self, frames: int) -> int:
        """Return the least length, `frames` or more, that can be encoded."""
        chunks, tail = divmod(frames, self.chunk_frames)
        return frames if tail < 2 else (chunks + 1) * self.chunk_frames


def _patch_encoder(channels: int, hidden: int, ratio: int) -> VidVAEConfig:
    """Return an encoder of 4x8x8 patches, and a level for each further halving of time."""
    halvings = (ratio // 4).bit_length() - 1
    return VidVAEConfig(
        channels=(channels,) * (1 + halvings),
        space_reduction=(False,) * (1 + halvings),
        time_reduction=(True,) * halvings + (False,),
        latent_channels=8,
        blocks=1,
        stem=(4, 8, 8),
        stem_hidden=hidden,
        mid_attention=False,
        kernels=((1, 3, 3), (3, 1, 1)),
        norm="rms",
    )


def _encoder(channels: tuple[int, ...], ratio: int) -> VidVAEConfig:
    """Return a pyramid, 8x8 in space, that halves time at its last levels, where it is cheapest."""
    halvings, levels = ratio.bit_length() - 1, len(channels)
    return VidVAEConfig(
        channels=channels,
        space_reduction=tuple(level < 3 for level in range(levels)),
        time_reduction=tuple(
            levels - 1 - halvings <= level < levels - 1 for level in range(levels)
        ),
        latent_channels=8,
        remat="level",
    )


RATIOS = (4, 8, 16, 32)
PRESETS = {
    # 24 blocks of 2048 and the ratios are the paper's.
    **{
        f"paper-{k}x": REGENConfig(encoder=_encoder((128, 256, 512, 512, 512, 512), k))
        for k in RATIOS
    },
    # The same with a quarter of the tokens, and a convolution of pixels across patches of 16x16.
    **{
        f"paper-{k}x-patch16": REGENConfig(
            encoder=_encoder((128, 256, 512, 512, 512, 512), k), latent_patch=2, head_channels=16
        )
        for k in RATIOS
    },
    # Ours, for one GPU.
    **{
        f"base-{k}x": REGENConfig(
            encoder=_encoder((64, 128, 256, 256, 256, 256), k),
            width=512,
            depth=12,
            heads=8,
            siren_hidden=128,
            siren_features=32,
        )
        for k in RATIOS
    },
    **{
        f"small-{k}x": REGENConfig(
            encoder=_patch_encoder(192, 768, k),
            width=320,
            depth=10,
            heads=5,
            siren_hidden=128,
            siren_features=32,
        )
        for k in RATIOS
    },
    # Minutes on a laptop's CPU.
    **{
        f"tiny-{k}x": REGENConfig(
            encoder=_patch_encoder(96, 384, k),
            width=128,
            depth=4,
            heads=4,
            siren_hidden=64,
            siren_depth=2,
            siren_features=32,
            remat="none",
        )
        for k in RATIOS
    },
}
