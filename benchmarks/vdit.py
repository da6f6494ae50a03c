"""Speed and memory of VDiT against PyTorch transformers of the same sizes; one JSON line per row on
stdout.

python benchmarks/vdit.py [--presets=tiny,VDiT-S/2] [--rows=forward,train] [--repeats=10]

Each preset runs twice: as it is, against diffusers' `LatteTransformer3DModel` (attention in space
and in time), and on images with one attention per block, against `PixArtTransformer2DModel`, which
then does the same work. Latte also has an MLP after its attention in time, and no text there:
`flops` and `peer_flops` are the operations of each, and `ratio_per_flop` is the ratio of operations
per second. `mfu` is the fraction of the device's peak, where that is known; remat does not count as
work.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any

from rows import (  # isort: skip  (it sets the environment)
    Peer,
    at_least_one,
    dtypes,
    has_diffusers,
    peak_flops,
    print_rows,
    row,
    torch,
    torch_device,
    torch_dtype,
    variants,
    wait,
)

import jax
import jax.numpy as jnp

from xgen_jax.models.flops import vdit_flops
from xgen_jax.models.vdit import VDiT, count_parameters
from xgen_jax.models.vdit_config import PRESETS, VDiTConfig

TEXT_TOKENS = 250
# Latents (B, t, h, w, c): the quickstart's and a larger one, the paper's 17x240x426 and 65x480x854;
# then images.
CLIPS = {
    "tiny": [(16, 3, 4, 4, 4), (4, 5, 16, 16, 4)],
    "VDiT-S/2": [(1, 5, 30, 54, 4)],
    "VDiT-XL/2": [(1, 17, 60, 108, 4)],
}
IMAGES = {"tiny": (16, 1, 16, 16, 4), "VDiT-S/2": (4, 1, 32, 32, 4), "VDiT-XL/2": (8, 1, 64, 64, 4)}


def sizes(config: VDiTConfig, latent_shape) -> dict[str, Any]:
    """Make the arguments that both peers take."""
    *_, height, _, channels = latent_shape
    return {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "in_channels": channels,
        "out_channels": config.out_channels(channels),
        "num_layers": config.depth,
        "cross_attention_dim": config.width,
        "sample_size": height,
        "patch_size": config.patch,
        "caption_channels": config.text_width,
    }


def latte(config: VDiTConfig, latent_shape):
    """Make Latte: attention in space with text and MLP, then in time with MLP, `depth` times."""
    from diffusers import LatteTransformer3DModel

    return LatteTransformer3DModel(
        **sizes(config, latent_shape),
        attention_bias=True,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        video_length=latent_shape[1],
    )


def pixart(config: VDiTConfig, latent_shape):
    """Make PixArt-alpha: attention, attention to text, MLP."""
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(**sizes(config, latent_shape), use_additional_conditions=False)


def torch_peers(
    config: VDiTConfig, latent_shape, dtype, train: bool
) -> tuple[list[Peer], float | None]:
    """Make the peers, and count their operations."""
    if not has_diffusers():
        return [], None
    from torch.utils.flop_counter import FlopCounterMode

    options = {"dtype": torch_dtype(dtype), "device": torch_device()}
    batch, frames, *sides, channels = latent_shape
    network = (pixart if frames == 1 else latte)(config, latent_shape).to(**options)
    x = torch.randn(batch, channels, *(sides if frames == 1 else (frames, *sides)), **options)
    arguments = {
        "timestep": torch.full((batch,), 500, device=options["device"]),
        "encoder_hidden_states": torch.randn(batch, TEXT_TOKENS, config.text_width, **options),
    }
    if frames == 1:  # Latte takes a mask, but fails on one with several frames
        arguments["encoder_attention_mask"] = torch.ones(
            batch, TEXT_TOKENS, device=options["device"]
        )
        arguments["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}

    def peer(suffix, module):
        def run():
            with torch.set_grad_enabled(train):
                y = module(x, **arguments).sample
            if train:
                network.zero_grad()
                y.square().mean().backward()
            wait()

        parameters = sum(p.numel() for p in network.parameters())
        return Peer(
            name=f"diffusers {type(network).__name__}{suffix}", run=run, parameters=parameters
        )

    with FlopCounterMode(display=False) as counter:
        peer("", network).run()
    return [peer(*variant) for variant in variants(network)], float(counter.get_total_flops())


def rows(options, train: bool) -> Iterator[dict[str, Any]]:
    """Time one pass, or the gradients of all parameters, on clips and on images."""
    for name in options.presets.split(","):
        # As the peers: no micro-conditions, no null caption, no recomputation for gradients.
        config = dataclasses.replace(
            PRESETS[name], micro_cond=False, null_caption_tokens=0, remat="none"
        )
        whole = dataclasses.replace(config, attention_layout="full")
        for config, shape in [*((config, shape) for shape in CLIPS[name]), (whole, IMAGES[name])]:
            for dtype in dtypes():
                yield vdit_row(name, config, shape, dtype, train, options.repeats)


def vdit_row(name, config: VDiTConfig, shape, dtype, train: bool, repeats: int) -> dict[str, Any]:
    """Make one row."""
    network = VDiT(
        dataclasses.replace(config, attention="auto" if dtype == jnp.bfloat16 else "xla"), dtype
    )
    x = jax.random.normal(jax.random.key(0), shape)
    time = jnp.full(len(x), 500.0)
    text = jax.random.normal(jax.random.key(1), (len(x), TEXT_TOKENS, config.text_width))
    mask = jnp.ones(text.shape[:2], bool)
    variables = jax.jit(network.init)(jax.random.key(2), x, time, text, mask)

    def forward(variables, *arguments):
        return network.apply(variables, *arguments)

    def step(variables, *arguments):
        return jax.value_and_grad(lambda v: jnp.square(forward(v, *arguments)).mean())(variables)

    peers, peer_flops = torch_peers(config, shape, dtype, train)
    kind = "image" if shape[1] == 1 else "clip"
    what = f"{name} {kind}, {'forward+backward' if train else 'forward'}"
    arguments = (variables, x, time, text, mask)
    out = row(
        what,
        shape,
        dtype,
        step if train else forward,
        arguments,
        peers,
        repeats,
        count_parameters(config),
    )
    tokens = shape[0] * shape[1] * -(-shape[2] // config.patch) * -(-shape[3] // config.patch)
    flops, peak = vdit_flops(config, shape, TEXT_TOKENS, train), peak_flops(jnp.dtype(dtype).name)
    return out | {
        "tokens_per_s": tokens / out["time_s"],
        "flops": flops,
        "flops_per_s": flops / out["time_s"],
        "mfu": flops / out["time_s"] / peak if peak else None,
        "peer_flops": peer_flops,
        "ratio_per_flop": out["ratio"] * flops / peer_flops if peers else None,
    }


GROUPS = {
    "forward": lambda options: rows(options, train=False),
    "train": lambda options: rows(options, train=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", default="tiny,VDiT-S/2", help="networks: " + ", ".join(CLIPS))
    parser.add_argument("--repeats", default=10, type=at_least_one, help="timed runs per row")
    print_rows(parser, GROUPS)


if __name__ == "__main__":
    main()
