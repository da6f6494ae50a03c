"""The sizes and variants of a VidVAE and of its discriminator, and the presets of the VidVAE (arXiv
2408.12590, section 3.1).

Compression in time and space, channels of the latent, and parameters:

    name              latent          parameters
    paper             4x8x8,   4     229,169,895
    osp-v1.0, -v1.1   4x8x8,   4     (Open-Sora-Plan's weights)
    base              4x8x8,  16      85,648,067
    small             4x8x8,  16      14,806,019
    tiny              4x4x4,   8         519,720
"""

import dataclasses

from xgen_jax.errors import UserError, choose
from xgen_jax.nn.choices import IMPLEMENTATIONS, VIDEO_NORMS
from xgen_jax.typing import Kernel, Shape

CHOICES = {
    "attention": IMPLEMENTATIONS,
    "time_down": ("average_pool", "convolution"),
    "time_up": ("causal", "trilinear"),
    "norm": VIDEO_NORMS,
    "attention_layout": ("per_frame", "released"),
    "remat": ("none", "level", "block"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VidVAEConfig:
    """Sizes and variants of a VidVAE.

    Attributes:
      channels: width of each level of the pyramid, highest resolution first.
      space_reduction: for each level, whether the encoder halves height and width after it.
      time_reduction: for each level, whether the encoder halves the frame rate after it.
      time_expansion: for each level, whether the decoder doubles the frame rate before it; None for
        the mirror of `time_reduction`.
      time_down: `average_pool` (the paper's), or `convolution`: a learnt mix of that and a
        convolution.
      time_up: `causal`, repetition, or `trilinear` (Open-Sora-Plan's weights), which looks ahead.
      time_up_convolution: a learnt mix of the result of `time_up` and a convolution of it.
      flat_levels: how many of the encoder's first levels mix no frames.
      latent_channels: channels of the latent.
      blocks: residual blocks a level in the encoder; the decoder has one more.
      stem: (T, H, W) of the patches in front of the pyramid; (1, 1, 1) for none.
      stem_hidden: width of a hidden layer between a patch and the pyramid, at both ends; 0 for
        none. A patch holds more values than a narrow pyramid has channels, and a linear map of few
        channels cannot reproduce its edges.
      head_channels: channels of the decoder at the resolution of pixels, in front of a last
        convolution of 1x3x3 taps; 0 for none, as in the paper. A decoder with a stem puts frames
        together from patches that know nothing of each other, and leaves a mesh of their borders;
        the convolution lets them overlap.
      mid_attention: attention at the lowest resolution.
      attention_layout: `per_frame`, or `released`: as Open-Sora-Plan's first public weights were
        trained, a reshape that mixes channels and frames of the whole clip (right for one frame).
      kernels: taps (T, H, W) of the two convolutions of a residual block.
      norm: `group_per_frame` (strictly causal, valid for Stable Diffusion's weights), `group` (over
        time as well, as Open-Sora-Plan's weights need), or `rms` (per pixel: exact under any cut of
        space as well).
      norm_groups: groups of channels of the first two, or as many as divide a layer's channels.
      attention: the implementation, see `xgen_jax.nn.attention`.
      remat: `level` recomputes each level in the backward pass instead of keeping what it computed;
        `block` each level, keeping only the inputs of its residual blocks, and then each of these:
        the least memory, and one more forward pass.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    space_reduction: tuple[bool, ...] = (True, True, True, False)
    time_reduction: tuple[bool, ...] = (True, True, False, False)
    time_expansion: tuple[bool, ...] | None = None
    time_down: str = "average_pool"
    time_up: str = "causal"
    time_up_convolution: bool = False
    flat_levels: int = 0
    latent_channels: int = 4
    blocks: int = 2
    stem: Kernel = (1, 1, 1)
    stem_hidden: int = 0
    head_channels: int = 0
    mid_attention: bool = True
    attention_layout: str = "per_frame"
    kernels: tuple[Kernel, Kernel] = ((3, 3, 3), (3, 3, 3))
    norm: str = "group_per_frame"
    norm_groups: int = 32
    attention: str = "xla"
    remat: str = "none"

    def __post_init__(self):
        for name, choices in CHOICES.items():
            choose(name, getattr(self, name), choices)
        if self.norm_groups < 1:
            raise UserError(f"norm_groups must be 1 or more, not {self.norm_groups}")
        if self.head_channels < 0:
            raise UserError(f"head_channels must be 0 or more, not {self.head_channels}")
        if self.stem[1] != self.stem[2]:
            raise UserError(f"stem {self.stem} must be as wide as high")
        levels = [
            len(x)
            for x in (self.channels, self.space_reduction, self.time_reduction, self.expansion)
        ]
        if len(set(levels)) > 1:
            raise UserError(
                "channels, space_reduction, time_reduction and time_expansion need one entry a "
                f"level, but have {levels[0]}, {levels[1]}, {levels[2]} and {levels[3]}"
            )
        if sum(self.expansion) != sum(self.time_reduction):
            raise UserError(
                f"the encoder halves the frame rate {sum(self.time_reduction)} times, but the "
                f"decoder doubles it {sum(self.expansion)} times"
            )
        if not 0 <= self.flat_levels <= len(self.channels):
            raise UserError(
                f"flat_levels must be 0 to {len(self.channels)}, the number of levels, "
                f"not {self.flat_levels}"
            )

    @property
    def expansion(self) -> tuple[bool, ...]:
        """For each level, whether the decoder doubles the frame rate before it."""
        return self.time_reduction if self.time_expansion is None else self.time_expansion

    @property
    def pixel_kernel(self) -> Kernel:
        """Taps of the first and the last convolution; 1x1x1 with a stem, whose patches are wide."""
        return (3, 3, 3) if self.stem == (1, 1, 1) else (1, 1, 1)

    @property
    def space_factor(self) -> int:
        """Pixels a side of one latent cell."""
        return self.stem[1] * 2 ** sum(self.space_reduction)

    @property
    def patch(self) -> int:
        """Pixels a side of the patches that the decoder puts together, or of a latent cell if its
        pyramid ends in pixels."""
        return self.stem[1] if self.stem[1] > 1 else self.space_factor

    @property
    def time_factor(self) -> int:
        """Frames of one latent frame, except the first."""
        return self.stem[0] * 2 ** sum(self.time_reduction)

    @property
    def look_ahead(self) -> int:
        """Frames by which the decoder looks ahead.

        They come one chunk later when decoding chunk after chunk.
        """
        return self.stem[0] * (2 ** sum(self.expansion) - 1) if self.time_up == "trilinear" else 0

    @property
    def depends_on_whole_clip(self) -> str:
        """Reason why the model cannot work chunk after chunk; empty where it can."""
        if self.norm == "group":
            return (
                "norm='group' takes its statistics over the whole clip; "
                "norm='group_per_frame' would not"
            )
        if self.mid_attention and self.attention_layout == "released":
            return "attention_layout='released' mixes all frames of a clip; 'per_frame' would not"
        return ""

    @property
    def halo(self) -> int | None:
        """Latent rows or columns on each side that a latent or a pixel depends on; None for all.

        A frame can be cut without a change of result only where norms are per pixel and nothing
        attends.
        """
        if self.norm != "rms" or self.mid_attention:
            return None
        block, ends = sum(kernel[1] // 2 for kernel in self.kernels), self.pixel_kernel[1] // 2
        # From the latents down, and from the pixels up: a tap of the head beyond a patch's border
        # lies in the next patch.
        encoder, decoder = 1 + 2 * block, ends + bool(self.head_channels)
        for reduced in reversed(self.space_reduction):
            encoder = (2 * encoder + 2 if reduced else encoder) + self.blocks * block
        for reduced in self.space_reduction:
            decoder += (self.blocks + 1) * block
            decoder = -(-(decoder + 1) // 2) if reduced else decoder
        return max(
            -(-(encoder + ends) * self.stem[1] // self.space_factor), decoder + 2 * block + 1
        )

    def latent_shape(self, video_shape: Shape) -> Shape:
        """Return the shape of a clip's latents: (t, h, w) of (T, H, W), or with batch and channels.

        Raises:
          UserError: a length or size that the model cannot take; the message names the nearest ones
          that it can.
        """
        if len(video_shape) == 5:
            return (video_shape[0], *self.latent_shape(video_shape[1:4]), self.latent_channels)
        frames, height, width = video_shape
        f, s = self.time_factor, self.space_factor
        if frames < 1 or (frames - 1) % f:
            below = max(1, (frames - 1) // f * f + 1)
            raise UserError(
                f"{frames} frames cannot be encoded: lengths are 1 + {f}n; "
                f"the nearest are {below}, {below + f}"
            )
        for name, side in (("height", height), ("width", width)):
            if side < s or side % s:
                below = max(s, side // s * s)
                raise UserError(
                    f"{name} {side} is not a multiple of {s}; "
                    f"the nearest are {below} and {below + s}"
                )
        return 1 + (frames - 1) // f, height // s, width // s

    def frames(self, latent_frames: int) -> int:
        """Return the frames of a clip of `latent_frames`: the inverse of `latent_shape`."""
        return 1 + self.time_factor * (latent_frames - 1) if latent_frames else 0

    def padded_frames(self, frames: int) -> int:
        """Return the least length, `frames` or more, that can be encoded."""
        return frames + -(frames - 1) % self.time_factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Sizes of a discriminator.

    Attributes:
      width: channels of the first layer; each later one has twice as many, up to eight times.
      layers: layers that stride; one more and the one to the logits follow.
    """

    width: int = 64
    layers: int = 3

    def __post_init__(self):
        for name in ("width", "layers"):
            if getattr(self, name) < 1:
                raise UserError(
                    f"the discriminator's {name} must be 1 or more, not {getattr(self, name)}"
                )

    def features(self) -> list[tuple[int, Kernel]]:
        """Return (channels, stride) of each layer before the logits."""
        strides: list[Kernel] = [
            (2, 2, 2) if layer < 2 else (1, 2, 2) for layer in range(self.layers)
        ]
        return [
            (self.width * min(2**layer, 8), stride)
            for layer, stride in enumerate([*strides, (1, 1, 1)])
        ]


# Open-Sora-Plan's published form, which differs from the paper preset in three ways.
_OSP = VidVAEConfig(
    time_expansion=(False, True, True, False),
    time_up="trilinear",
    norm="group",
    attention_layout="released",
)

_PATCHES = VidVAEConfig(mid_attention=False, norm="rms")
_SEPARATE = ((1, 3, 3), (3, 1, 1))  # in space, then in time

PRESETS = {
    # The paper's table 3 network, 4x8x8, in the form of Open-Sora-Plan's CausalVAE v1.0, made
    # strictly causal.
    "paper": VidVAEConfig(time_expansion=(False, True, True, False)),
    # Open-Sora-Plan's public weights v1.0.0 and v1.1.0, as they were trained.
    "osp-v1.0": _OSP,
    "osp-v1.1": dataclasses.replace(
        _OSP,
        time_reduction=(False, True, True, False),
        time_down="convolution",
        time_up_convolution=True,
        flat_levels=2,
    ),
    # Ours, for one GPU: 4x8x8 with 16 channels, from patches, so that no level works on pixels. No
    # norm and no attention looks beyond a convolution's taps: any size can be cut exactly.
    "base": dataclasses.replace(
        _PATCHES,
        channels=(96, 192, 384),
        space_reduction=(True, True, False),
        time_reduction=(False, True, True),
        stem=(1, 2, 2),
        head_channels=16,
        latent_channels=16,
    ),
    "small": dataclasses.replace(
        _PATCHES,
        channels=(128, 384),
        space_reduction=(True, False),
        time_reduction=(True, False),
        blocks=1,
        stem=(2, 4, 4),
        stem_hidden=384,
        head_channels=16,
        latent_channels=16,
        kernels=_SEPARATE,
    ),
    # Minutes on a laptop's CPU: 4x4x4.
    "tiny": dataclasses.replace(
        _PATCHES,
        channels=(64,),
        space_reduction=(False,),
        time_reduction=(False,),
        latent_channels=8,
        blocks=1,
        stem=(4, 4, 4),
        stem_hidden=256,
        kernels=_SEPARATE,
    ),
}
