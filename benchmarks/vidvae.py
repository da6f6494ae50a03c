"""Speed and memory of VidVAE against PyTorch modules of the same widths; one JSON line per row on
stdout.

python benchmarks/vidvae.py [--rows=conv,model] [--preset=small|paper] [--repeats=10]
"""

import argparse
import dataclasses
import types
from collections.abc import Iterator
from typing import Any

from rows import (  # isort: skip  (it sets the environment)
    Peer,
    at_least_one,
    dtypes,
    has_diffusers,
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

from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_config import PRESETS
from xgen_jax.nn.convolution import CausalConv3D

# (batch, frames, height, width, channels in and out), stride 1, 3x3x3: two small ones, and
# two of the paper's network.
CONVOLUTIONS = {
    "A": (1, 9, 64, 64, 64),
    "B": (1, 17, 128, 128, 32),
    "paper level 0": (1, 5, 64, 64, 128),
    "paper level 3": (1, 5, 32, 32, 512),
}
# Two clips: with one, torch chooses a slow kernel wherever the input of a layer is small.
MODELS = {
    # The paper's network at a quarter of its widths, and at its full widths: configuration, then
    # the shapes of video and image.
    "small": (
        dataclasses.replace(PRESETS["paper"], channels=(32, 64, 128, 128)),
        (2, 9, 64, 64, 3),
        (4, 1, 128, 128, 3),
    ),
    "paper": (PRESETS["paper"], (2, 5, 128, 128, 3), (2, 1, 128, 128, 3)),
}


# --- the convolution


def torch_convolutions(shape, dtype, backward: bool) -> Iterator[Peer]:
    """Make conv3d in channels_last_3d, its fastest layout, with the first frame repeated before."""
    batch, frames, height, width, channels = shape
    layout = {
        "dtype": torch_dtype(dtype),
        "device": torch_device(),
        "memory_format": torch.channels_last_3d,
    }
    convolution = torch.nn.Conv3d(channels, channels, 3, padding=(0, 1, 1)).to(**layout)
    x = torch.randn(batch, channels, frames, height, width).to(**layout).requires_grad_(backward)
    causal = lambda x: torch.cat([x[:, :, :1], x[:, :, :1], x], 2)  # noqa: E731

    for suffix, module in variants(convolution):

        def run(module=module):
            with torch.set_grad_enabled(backward):
                y = module(causal(x))
            if backward:
                x.grad = None
                convolution.zero_grad()
                y.backward(y.detach())
            wait()

        yield Peer(name=f"torch {torch.__version__} conv3d, channels_last_3d{suffix}", run=run)


def conv(options) -> Iterator[dict[str, Any]]:
    """Time one causal 3x3x3 convolution without a cache, and its gradients."""
    for name, shape in CONVOLUTIONS.items():
        for dtype in dtypes():
            layer = CausalConv3D(shape[-1], dtype=dtype)
            x = jax.random.normal(jax.random.key(0), shape, dtype)
            params = layer.init(jax.random.key(1), x[:, :1, :8, :8])

            def forward(params, x, layer=layer):
                return layer.apply(params, x)[0]

            def with_gradients(params, x, forward=forward):
                y, pullback = jax.vjp(forward, params, x)
                return y, pullback(y)

            for what, function in (("forward", forward), ("forward+backward", with_gradients)):
                peers = (
                    list(torch_convolutions(shape, dtype, function is with_gradients))
                    if torch
                    else []
                )
                what = f"causal conv {name}, {what}"
                yield row(what, shape, dtype, function, (params, x), peers, options.repeats)


# --- the whole model


def in_layout(value, channels_last: bool):
    """Lay out the kernels of a module, or a tensor, channels first or last."""
    if isinstance(value, torch.nn.Module):
        for parameter in value.parameters():
            parameter.data = in_layout(parameter.data, channels_last)
        return value
    formats = {4: torch.channels_last, 5: torch.channels_last_3d} if channels_last else {}
    return value.contiguous(memory_format=formats.get(value.ndim, torch.contiguous_format))


def video_peer(config):
    """Make EasyAnimate's autoencoder, the nearest in diffusers: 3D-causal, 3x3x3 throughout, group
    norm per frame, 4x8x8.

    Time is halved and doubled at the same levels. It has strides where the paper pools, one more
    residual block in each middle, and no attention there; the rows have the parameter counts. As
    published it convolves three frames at a time and encodes four, which takes about five times as
    long on CPU; here all frames after the first are processed at once.
    """
    from diffusers import AutoencoderKLMagvit

    down = [
        "SpatialTemporalDownBlock3D" if halved else "SpatialDownBlock3D"
        for halved in config.time_reduction
    ]
    # Ours doubles before a level, the peer after one.
    up = [
        f"Spatial{'Temporal' * doubled}UpBlock3D"
        for doubled in (*reversed(config.expansion[:-1]), False)
    ]
    model = AutoencoderKLMagvit(
        latent_channels=config.latent_channels,
        block_out_channels=config.channels,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=config.blocks,
    )
    model.num_sample_frames_batch_size = model.num_latent_frames_batch_size = 1024

    def convolve(self, x):
        if self.prev_features is None:
            before = [x[:, :, :1]] * self.temporal_padding
        else:
            before = [self.prev_features[:, :, self.t_stride - 1 :]]
        x = torch.cat([*before, x], 2)
        self.prev_features = x[:, :, -self.temporal_padding :].clone()
        return torch.nn.Conv3d.forward(self, x)

    for module in model.modules():
        if hasattr(module, "temporal_padding"):
            module.forward = types.MethodType(convolve, module)
    return model


def image_peer(config):
    """Make Stable Diffusion's autoencoder, the 2D network that the paper's is inflated from."""
    from diffusers import AutoencoderKL

    levels = len(config.channels)
    return AutoencoderKL(
        latent_channels=config.latent_channels,
        block_out_channels=config.channels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        layers_per_block=config.blocks,
    )


def torch_models(config, shape, latent_shape, dtype) -> dict[str, list[Peer]]:
    """Make the peers of each row: what is timed -> its peers."""
    options = {"dtype": torch_dtype(dtype), "device": torch_device()}
    peers = {"encode": [], "decode": [], "forward": [], "forward+backward": []}
    for channels_last in (False, True):
        model = image_peer(config) if shape[1] == 1 else video_peer(config)
        model = in_layout(model, channels_last).to(**options)

        def random(shape, channels_last=channels_last):
            batch, frames, height, width, channels = shape
            sides = (height, width) if frames == 1 else (frames, height, width)
            return in_layout(torch.randn(batch, channels, *sides, **options), channels_last)

        video, latents = random(shape), random(latent_shape)

        def encode(model=model, video=video):
            return model.encode(video).latent_dist.mode()

        def decode(model=model, latents=latents):
            return model.decode(latents).sample

        def forward(model=model, encode=encode):
            return model.decode(encode()).sample

        def train(model=model, forward=forward):
            model.zero_grad()
            forward().square().mean().backward()

        for row_peers, step in zip(peers.values(), (encode, decode, forward, train)):
            for suffix, function in variants(step):

                def run(function=function, backward=step is train):
                    with torch.set_grad_enabled(backward):
                        function()
                    wait()

                layout = "channels last" if channels_last else "channels first"
                name = f"diffusers {type(model).__name__}, {layout}{suffix}"
                row_peers.append(
                    Peer(name=name, run=run, parameters=sum(p.numel() for p in model.parameters()))
                )
    return peers


def model(options) -> Iterator[dict[str, Any]]:
    """Time encode, decode, both, and both with the gradients of all parameters, for clips and for
    images."""
    config, *shapes = MODELS[options.preset]
    for shape in shapes:
        latent_shape = config.latent_shape(shape)
        for dtype in dtypes():
            vae = VidVAE(config, dtype)
            video = jax.random.normal(jax.random.key(0), shape)
            latents = jax.random.normal(jax.random.key(1), latent_shape)
            params = jax.jit(vae.init)(jax.random.key(2), jnp.zeros((1, 1, *shape[2:])))

            def encode(params, video, vae=vae):
                return vae.apply(params, video, method="encode")[0]

            def decode(params, latents, vae=vae):
                return vae.apply(params, latents, method="decode")[0]

            def autoencode(params, video, vae=vae):
                return vae.apply(params, video)[0]

            def train(params, video, autoencode=autoencode):
                return jax.value_and_grad(
                    lambda params: jnp.square(autoencode(params, video)).mean()
                )(params)

            peers = torch_models(config, shape, latent_shape, dtype) if has_diffusers() else {}
            for what, function, argument in (
                ("encode", encode, video),
                ("decode", decode, latents),
                ("forward", autoencode, video),
                ("forward+backward", train, video),
            ):
                kind = "image" if shape[1] == 1 else "video"
                count = sum(leaf.size for leaf in jax.tree.leaves(params))
                title = f"{options.preset} {kind}, {what}"
                arguments = (params, argument)
                yield row(
                    title,
                    shape,
                    dtype,
                    function,
                    arguments,
                    peers.get(what, []),
                    options.repeats,
                    count,
                )


GROUPS = {"conv": conv, "model": model}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--preset", default="small", choices=MODELS, help="network of the group `model`"
    )
    parser.add_argument("--repeats", default=10, type=at_least_one, help="timed runs per row")
    print_rows(parser, GROUPS)


if __name__ == "__main__":
    main()
