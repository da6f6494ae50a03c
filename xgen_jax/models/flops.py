"""Floating-point operations of a network, by formula.

Only matrix products count, a multiply-add as two operations; so attention's two products do, and
its softmax, norms, modulations and activations do not. Recomputation by remat does not count.
"""

from xgen_jax.models.vdit_config import VDiTConfig
from xgen_jax.typing import Shape


def vdit_flops(
    config: VDiTConfig, latent_shape: Shape, text_tokens: int, train: bool = False
) -> float:
    """Return the operations of one forward pass of a VDiT, or of a training step.

    With D the width, N the tokens of a clip, S those of a frame, T frames and L text tokens, a
    block takes

        N (8 D^2 + 4 D K)     for each self-attention; K = S in space, T in time, N in both at once
        N (4 D^2 + 4 D L) + 4 L D^2    for attention to the text
        4 N D^2 mlp_ratio     for the MLP

    To the blocks come the patches, the text's projection and the networks of the diffusion time.
    Those of micro-conditioning, a few rows, are left out. A backward pass takes twice the forward.

    Args:
      config: of the network.
      latent_shape: (B, t, h, w, c) of the latents.
      text_tokens: L, padding included: it is computed on.
      train: forward and backward.
    """
    clips, frames, height, width, channels = latent_shape
    d, patch = config.width, config.patch**2
    of_a_frame = -(-height // config.patch) * -(-width // config.patch)
    tokens = frames * of_a_frame
    keys = [tokens] if config.attention_layout == "full" else [of_a_frame, frames]
    block = sum(tokens * (8 * d**2 + 4 * d * k) for k in keys)
    block += tokens * (4 * d**2 + 4 * d * text_tokens) + 4 * text_tokens * d**2
    block += tokens * 4 * d**2 * config.mlp_ratio
    ends = 2 * tokens * d * patch * (channels + config.out_channels(channels))
    text = 2 * text_tokens * (config.text_width * d + d**2)
    modulations = 6 if config.attention_layout == "full" else 9
    time = 2 * (256 * d + d**2 + modulations * d**2)
    return float(clips * (config.depth * block + ends + text + time) * (3 if train else 1))
