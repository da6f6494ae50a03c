"""Floating-point operations of the networks, by formula.

Only matrix products and convolutions count, a multiply-add as two operations; so attention's two
products do, and its softmax, norms, modulations and activations do not. Taps that meet the zeros
around a frame count. Recomputation by remat does not. A backward pass takes twice the forward.
"""

import math
from typing import NamedTuple

from xgen_jax.models import regen_windows
from xgen_jax.models.lpips import TRUNKS, LPIPSConfig
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.models.text_config import STRIDE, ByteTextConfig
from xgen_jax.models.vdit_config import VDiTConfig
from xgen_jax.models.vidvae_config import DiscriminatorConfig, VidVAEConfig
from xgen_jax.nn.convolution import Kernel
from xgen_jax.nn.local_attention import SpaceWindow
from xgen_jax.typing import Shape

TRAIN = 3  # forward passes in a training step


def vdit_flops(
    config: VDiTConfig, latent_shape: Shape, text_tokens: int, train: bool = False
) -> float:
    """Return the operations of one forward pass of a VDiT, or of a training step.

    With D the width, N the tokens of a clip, S those of a frame, T frames and L text tokens, a
    block takes

        N (8 D^2 + 4 D K)     for each self-attention; K = S in space, T in time, N in both at once
        N (4 D^2 + 4 D L) + 4 L D^2    for attention to the text
        4 N D^2 mlp_ratio     for the MLP

    To the blocks come the patches, the text's projection, the networks of the diffusion time and
    those of positions that depend on the caption: 12 N D^2, a few rows, and 4 N D^2 for all clips
    together. The few rows of micro-conditioning are left out.

    Args:
      config: of the network.
      latent_shape: (B, t, h, w, c) of the latents.
      text_tokens: L, padding included: it is computed on.
      train: forward and backward.
    """
    clips, frames, height, width, channels = latent_shape
    d, patch = config.width, config.patch**2
    of_a_frame = config.tokens((1, height, width))
    tokens = frames * of_a_frame
    keys = [tokens] if config.attention_layout == "full" else [of_a_frame, frames]
    block = sum(_self_attention(tokens, d, k) for k in keys)
    block += tokens * (4 * d**2 + 4 * d * text_tokens) + 4 * text_tokens * d**2
    block += tokens * 4 * d**2 * config.mlp_ratio
    ends = 2 * tokens * d * patch * (channels + config.out_channels(channels))
    text = 2 * text_tokens * (config.text_width * d + d**2)
    places = 0
    if config.caption_positions:
        text += 4 * text_tokens * config.text_width * d + 12 * d**2 + 12 * tokens * d**2
        places = 4 * tokens * d**2
    modulations = 6 if config.attention_layout == "full" else 9
    time = 2 * (256 * d + d**2 + modulations * d**2)
    of_a_clip = config.depth * block + ends + text + time
    return float((clips * of_a_clip + places) * (TRAIN if train else 1))


def text_encoder_flops(config: ByteTextConfig, captions: int, train: bool = False) -> float:
    """Return the operations of the encoder of bytes that trains along with a VDiT."""
    d, letters, tokens = config.width, config.max_bytes + 1, config.tokens
    convolutions = 2 * (letters * 5 + tokens * 2 * STRIDE) * d**2
    block = _self_attention(tokens, d, tokens) + 16 * tokens * d**2
    return float(captions * (convolutions + config.depth * block) * (TRAIN if train else 1))


def _self_attention(tokens: int, width: int, keys: int) -> float:
    return tokens * (8 * width**2 + 4 * width * keys)


class _Clip(NamedTuple):
    """Sizes of an activation in a pyramid.

    Attributes:
      frames, height, width, channels: of it.
      started: whether the clip began in an earlier chunk.
    """

    frames: int
    height: int
    width: int
    channels: int
    started: bool

    def convolve(self, features: int, kernel: Kernel, stride: int = 1) -> tuple[float, "_Clip"]:
        """Return the operations of a causal convolution, with `stride` in height and width."""
        # Of an image only the sum of the taps in time is computed.
        taps = (1, *kernel[1:]) if self.frames == 1 and not self.started else kernel
        out = self._replace(
            height=self.height // stride, width=self.width // stride, channels=features
        )
        places = out.frames * out.height * out.width
        return 2.0 * places * math.prod(taps) * self.channels * features, out

    def halve_time(self) -> "_Clip":
        first = 0 if self.started else 1
        return self._replace(frames=first + (self.frames - first) // 2)

    def double_time(self) -> "_Clip":
        return self._replace(frames=2 * self.frames - (0 if self.started else 1))


def _block(c: VidVAEConfig, x: _Clip, features: int, flat: bool = False) -> tuple[float, _Clip]:
    """A residual block."""
    total, y = 0.0, x
    for kernel in c.kernels:
        flops, y = y.convolve(features, (1, *kernel[1:]) if flat else kernel)
        total += flops
    if x.channels != features:
        total += x.convolve(features, (1, 1, 1))[0]
    return total, y


def _mid(c: VidVAEConfig, x: _Clip) -> float:
    total = 2 * _block(c, x, x.channels)[0]
    if c.mid_attention:
        places = x.height * x.width
        total += _self_attention(x.frames * places, x.channels, places)
    return total


def vidvae_encode_flops(config: VidVAEConfig, video_shape: Shape, started: bool = False) -> float:
    """Return the operations of a VidVAE's encoder, a REGEN's included.

    Args:
      config: of the network.
      video_shape: (B, T, H, W, 3) of a clip, or of a chunk.
      started: the clip began in an earlier chunk.
    """
    c, (clips, frames, height, width, channels) = config, video_shape
    first = 0 if started else 1
    x = _Clip(
        first + (frames - first) // c.stem[0],
        height // c.stem[1],
        width // c.stem[2],
        channels * math.prod(c.stem),
        started,
    )
    total = 0.0
    if c.stem_hidden:
        total, x = x.convolve(c.stem_hidden, (1, 1, 1))
    kernel = (1, *c.pixel_kernel[1:]) if c.flat_levels else c.pixel_kernel
    flops, x = x.convolve(c.channels[0], kernel)
    total += flops
    for level, features in enumerate(c.channels):
        for _ in range(c.blocks):
            flops, x = _block(c, x, features, level < c.flat_levels)
            total += flops
        if c.space_reduction[level]:
            flops, x = x.convolve(features, (1, 3, 3), 2)
            total += flops
        if c.time_reduction[level]:
            image = x.frames == 1 and not started
            x = x.halve_time()
            if c.time_down == "convolution":
                kernel = (1, 3, 3) if image else (3, 3, 3)
                total += 2.0 * math.prod((*x[:3], *kernel)) * features**2
    total += _mid(c, x)
    flops, x = x.convolve(2 * c.latent_channels, (3, 3, 3))
    return clips * (total + flops + x.convolve(2 * c.latent_channels, (1, 1, 1))[0])


def vidvae_decode_flops(config: VidVAEConfig, latent_shape: Shape, started: bool = False) -> float:
    """Return the operations of a VidVAE's decoder.

    Of one that looks ahead (`time_up="trilinear"`) chunks count as if it did not.

    Args:
      config: of the network.
      latent_shape: (B, t, h, w, c) of a clip, or of a chunk.
      started: the clip began in an earlier chunk.
    """
    c, (clips, frames, height, width, channels) = config, latent_shape
    x = _Clip(frames, height, width, channels, started)
    total, x = x.convolve(c.latent_channels, (1, 1, 1))
    flops, x = x.convolve(c.channels[-1], (3, 3, 3))
    total += flops + _mid(c, x)
    for level in reversed(range(len(c.channels))):
        if c.space_reduction[level]:
            x = x._replace(height=2 * x.height, width=2 * x.width)
            total += x.convolve(x.channels, (1, 3, 3))[0]
        if c.expansion[level]:
            x = x.double_time()
            if c.time_up_convolution:
                total += x.convolve(x.channels, (3, 3, 3))[0]
        for _ in range(c.blocks + 1):
            flops, x = _block(c, x, c.channels[level])
            total += flops
    if c.stem_hidden:
        flops, x = x.convolve(c.stem_hidden, (1, 1, 1))
        total += flops
    pixels = c.head_channels or 3
    flops, x = x.convolve(pixels * math.prod(c.stem), c.pixel_kernel)
    total += flops
    if c.head_channels:
        first = 0 if started else 1
        frames = first + (x.frames - first) * c.stem[0]
        video = _Clip(frames, x.height * c.stem[1], x.width * c.stem[2], pixels, started)
        total += video.convolve(3, (1, 3, 3))[0]
    return clips * total


def lpips_flops(config: LPIPSConfig, image_shape: Shape) -> float:
    """Return the operations of one pass of LPIPS's classifier over images (B, H, W, 3)."""
    images, height, width, channels = image_shape
    total = 0.0
    for layers, features in zip(TRUNKS[config.trunk], config.widths):
        if layers.pool:
            height, width = ((side - layers.pool) // 2 + 1 for side in (height, width))
        for _ in range(layers.convs):
            padding = 2 if layers.kernel > 3 else 1
            height, width = (
                (side + 2 * padding - layers.kernel) // layers.stride + 1
                for side in (height, width)
            )
            total += 2.0 * height * width * layers.kernel**2 * channels * features
            channels = features
    return images * total


def lpips_loss_flops(config: LPIPSConfig, image_shape: Shape) -> float:
    """Return what LPIPS adds to a training step: passes over both images, and the way back through
    one of them to its pixels."""
    return 3 * lpips_flops(config, image_shape)


def discriminator_flops(config: DiscriminatorConfig, video_shape: Shape) -> float:
    """Return the operations of one pass of the discriminator over clips (B, T, H, W, 3)."""
    clips, *sides, channels = video_shape
    total = 0.0
    for features, stride in (*config.features(), (1, (1, 1, 1))):
        sides = [-(-side // step) for side, step in zip(sides, stride)]
        total += 2.0 * math.prod(sides) * 27 * channels * features
        channels = features
    return clips * total


def adversarial_loss_flops(config: DiscriminatorConfig, video_shape: Shape) -> float:
    """Return what the adversarial term adds to a training step: the gradient of reconstructions, a
    pass and the way back to the pixels; and the discriminator's own step on both clips."""
    return (2 + 2 * TRAIN) * discriminator_flops(config, video_shape)


def vidvae_train_flops(config: VidVAEConfig, video_shape: Shape) -> float:
    """Return the operations of a training step of the autoencoder: encode, decode, and backward.

    LPIPS and the adversarial term come on top (`lpips_loss_flops`, `adversarial_loss_flops`).
    """
    latents = config.latent_shape(video_shape)
    encode = vidvae_encode_flops(config, video_shape)
    return TRAIN * (encode + vidvae_decode_flops(config, latents))


def _expansion_flops(c: REGENConfig, frames: int, latents: int, cells: tuple[int, int]) -> float:
    """The expansion of a chunk's latents, of that many rows and columns, at some times."""
    z, d = c.latent_channels, c.width
    tokens, of_a_token = math.prod(c.token_grid(*cells)), c.latent_patch**2
    if c.conditioning == "in_context":
        return 2.0 * latents * tokens * of_a_token * z * d
    siren = (1 + 2 * c.siren_bands) * c.siren_hidden + (c.siren_depth - 1) * c.siren_hidden**2
    of_a_cell = z * (c.siren_features + 2 * c.siren_hidden)
    of_a_cell += frames * c.siren_hidden * c.siren_features
    project = frames * tokens * of_a_token * 2 * c.siren_features * d
    return 2.0 * (frames * siren + math.prod(cells) * of_a_cell + project)


def _denoise_flops(c: REGENConfig, frames: int, latents: int, cells: tuple[int, int]) -> float:
    """The decoder's network on a window of `frames`.

    In windows of space (`attention_window`) queries that fill the last blocks count.
    """
    grid, d, pixels = c.token_grid(*cells), c.width, c.patch**2
    places = math.prod(grid)
    attended = frames + (latents if c.conditioning == "in_context" else 0)
    space = SpaceWindow(grid, c.attention_window or grid)
    products = 4.0 * (attended * space.queries) * (attended * space.keys) * d
    block = products + attended * places * (8 + 4 * c.mlp_ratio) * d**2
    tokens = frames * places
    ends = 2.0 * tokens * d * pixels * (3 + (c.head_channels or 3))
    time = 2.0 * (256 * d + d**2)
    head = 2.0 * tokens * pixels * 9 * c.head_channels * 3
    return c.depth * block + ends + time + head


def regen_encode_flops(config: REGENConfig, video_shape: Shape) -> float:
    """Return the operations of encoding clips (B, T, H, W, 3), chunk by chunk."""
    clips, frames, *rest = video_shape
    chunks, tail = divmod(frames, config.chunk_frames)
    whole = vidvae_encode_flops(config.encoder, (chunks, config.chunk_frames, *rest))
    image = vidvae_encode_flops(config.encoder, (1, 1, *rest)) if tail else 0.0
    return clips * (whole + image)


def regen_decode_flops(
    config: REGENConfig, latent_shape: Shape, steps: int, windows: str, started: bool = False
) -> float:
    """Return the operations of sampling a clip from its latents.

    Args:
      config: of the network.
      latent_shape: (B, t, h, w, c) of a clip, or of a chunk in its middle.
      steps: evaluations a window.
      windows: a name in `regen_windows.WINDOWS`.
      started: the latents are a chunk in the middle of a clip.
    """
    clips, latents, height, width, _ = latent_shape
    cells, (chunks, tail) = (height, width), divmod(latents, 2)

    def sampled(frames, latents=2, expansions=1):
        expand = expansions * _expansion_flops(config, frames, latents, cells)
        return expand + steps * _denoise_flops(config, frames, latents, cells)

    own = sampled(config.chunk_frames)
    across = sampled(config.chunk_frames + 2 * regen_windows.overlap(config), expansions=2)
    if windows == "chunk" or (chunks == 1 and not started):
        total = chunks * own
    elif started:
        total = chunks * across
    else:
        total = 2 * own + (chunks - 1) * across if chunks else 0.0
    return clips * (total + (sampled(1, 1) if tail else 0.0))


def regen_train_flops(
    config: REGENConfig, video_shape: Shape, windows: str, consistency: bool = False
) -> float:
    """Return the operations of a training step: encode, expand, denoise once, and backward.

    Args:
      config: of the network.
      video_shape: (B, T, H, W, 3).
      windows: see `regen_decode_flops`; shifted ones are expanded on both sides of a border too.
      consistency: the loss has that term, which denoises once more.
    """
    clips, frames, height, width, _ = video_shape
    cells = height // config.space_factor, width // config.space_factor
    chunks, tail = divmod(frames, config.chunk_frames)
    borders = 2 * (chunks - 1) if windows == "shifted" and chunks > 1 else 0

    def of(frames, latents):
        return _denoise_flops(config, frames, latents, cells) * (2 if consistency else 1)

    whole = chunks * of(config.chunk_frames, 2)
    whole += (chunks + borders) * _expansion_flops(config, config.chunk_frames, 2, cells)
    image = of(1, 1) + _expansion_flops(config, 1, 1, cells) if tail else 0.0
    return TRAIN * (regen_encode_flops(config, video_shape) + clips * (whole + image))
