"""Peers of `gpu.py`: what torch needs for the same work, eager and with `torch.compile`."""

from collections.abc import Callable, Iterator
from typing import Any

from rows import (  # isort: skip  (it sets the environment)
    ON_GPU,
    measure,
    torch,
    torch_device,
    torch_dtype,
    wait,
)

import jax.numpy as jnp

Peer = tuple[str, Callable[[], Any], list[Any]]  # name, what a run does, the modules to compile


def time_peers(options, make: Callable[[], Peer]) -> Iterator[dict[str, Any]]:
    """Time a peer, eager and then compiled; what fails is said."""
    if why := _missing(options):
        yield {"peer": None, "peer_error": why}
        return
    if ON_GPU:
        torch.cuda.set_per_process_memory_fraction(0.48)
    torch.manual_seed(0)
    try:
        name, run, modules = make()
    except ModuleNotFoundError as error:  # not every peer needs diffusers
        yield {"peer": None, "peer_error": f"{error.name} is not installed"}
        return
    except Exception as error:
        yield {"peer": None, "peer_error": _said(error)}
        return

    def waited():
        run()
        wait()

    best, errors = float("inf"), []
    for way in ("eager", "torch.compile"):
        try:
            if way != "eager":
                for module in modules:
                    module.compile()
            times = measure(waited, options.repeats)
        except Exception as error:  # a peer's failure is a result, not ours
            errors.append(f"{way}: {_said(error)}")
            yield {"peer_error": "; ".join(errors)}
            continue
        yield {"peer_eager_s" if way == "eager" else "peer_compiled_s": times["time_s"]}
        if times["time_s"] < best:
            best = times["time_s"]
            yield {"peer": f"{name}, {way}", **{f"peer_{key}": times[key] for key in times}}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _options(dtype) -> dict[str, Any]:
    return {"dtype": torch_dtype(jnp.dtype(dtype)), "device": torch_device()}


def _missing(options) -> str | None:
    """Say why there is no peer; None if there is one."""
    if options.nopeers:
        return "not asked for"
    if torch is None:
        return "torch is not installed"
    return "torch has no CUDA" if ON_GPU and torch_device() == "cpu" else None


def latte_step(config, text_tokens: int, latents, dtype) -> Peer:
    """A train step of Latte of the same sizes, in `dtype`, recomputing its blocks, with AdamW.

    It has one more MLP a block than ours, and no text in time.
    """
    from vdit import latte

    options = _options(dtype)
    network = latte(config, latents).to(**options).train()
    network.enable_gradient_checkpointing()
    batch, *sides, channels = latents
    x = torch.randn(batch, channels, *sides, **options)
    arguments = {
        "timestep": torch.full((batch,), 500, device=options["device"]),
        "encoder_hidden_states": torch.randn(batch, text_tokens, config.text_width, **options),
    }
    fused = options["device"] == "cuda"
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=fused)

    def run():
        optimizer.zero_grad()
        network(x, **arguments).sample.float().square().mean().backward()
        optimizer.step()

    blocks = [*network.transformer_blocks, *network.temporal_transformer_blocks]
    return "diffusers LatteTransformer3DModel with AdamW", run, blocks


def magvit_decode(config, latents, dtype) -> Peer:
    """EasyAnimate's decoder of the same widths, four latent frames at a time; see `vidvae.py`."""
    from vidvae import in_layout, video_peer

    model = in_layout(video_peer(config), True).to(
        dtype=torch_dtype(jnp.dtype(dtype)), device=torch_device()
    )
    model.num_latent_frames_batch_size = 4
    batch, *sides, channels = latents
    z = torch.randn(
        batch, channels, *sides, dtype=torch_dtype(jnp.dtype(dtype)), device=torch_device()
    )
    z = in_layout(z, True)

    @torch.no_grad()
    def run():
        return to_frames(model.decode(z).sample)

    return "diffusers AutoencoderKLMagvit, channels last", run, [model.decoder]


def transformer_decode(config, clip, dtype) -> Peer:
    """A transformer of the decoder's sizes on as many tokens, from patches to patches.

    It has torch's own blocks, whose attention is fused, and no conditions: REGEN has no peer.
    """

    options = _options(dtype)
    frames, height, width = clip
    side = config.space_factor
    nn, values = torch.nn, 3 * side**2
    layer = nn.TransformerEncoderLayer(
        config.width,
        config.heads,
        config.mlp_ratio * config.width,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
    blocks = nn.TransformerEncoder(layer, config.depth, enable_nested_tensor=False)
    inward, outward = nn.Linear(values, config.width), nn.Linear(config.width, values)
    network = nn.Sequential(inward, blocks, outward).to(**options).eval()
    x = torch.randn(1, frames * (height // side) * (width // side), values, **options)

    @torch.no_grad()
    def run():
        y = network(x).reshape(1, frames, height // side, width // side, side, side, 3)
        return to_frames(y.transpose(3, 4).reshape(1, *clip, 3))

    return "torch TransformerEncoder of the decoder's sizes", run, list(blocks.layers)


def to_frames(video):
    """Convert [-1, 1] to uint8 on the host."""

    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
