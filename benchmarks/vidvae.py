"""Speed and memory of VidVAE beside PyTorch's modules of the same widths; one JSON line a row on stdout.

python benchmarks/vidvae.py [--rows=conv,model] [--preset=small|paper] [--repeats=10]

Ours and the peer run in one process, in turn, so that whatever else keeps the machine busy slows both. `time_s` is the
shortest run and `median_s` the middle one; `cpu_s` is the least CPU time of a run, the steadier figure on a shared
machine; `ratio` is the peer's time over ours: above 1 we are the faster. Without torch and diffusers (extra `bench`)
the rows have no peer. The machine's other work shows as `median_s` far above `time_s`.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer needs memory of the same device
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax  # noqa: E402  (the environment comes first)
import jax.numpy as jnp  # noqa: E402

from xgen_jax.models.vidvae import PRESETS, VidVAE  # noqa: E402
from xgen_jax.nn.convolution import CausalConv3D  # noqa: E402

try:
    import torch
except ImportError:
    torch = None

ON_GPU = jax.default_backend() == "gpu"
THREADS = len(os.sched_getaffinity(0))

# (batch, frames, height, width, channels in and out), stride 1, 3x3x3: two that stand in the issue and two of the
# paper's network.
CONVOLUTIONS = {
    "A": (1, 9, 64, 64, 64),
    "B": (1, 17, 128, 128, 32),
    "paper level 0": (1, 5, 64, 64, 128),
    "paper level 3": (1, 5, 32, 32, 512),
}
MODELS = {
    # The paper's network at a quarter of its widths, and whole: configuration, then the shapes of video and image.
    "small": (
        dataclasses.replace(PRESETS["paper"], channels=(32, 64, 128, 128)),
        (1, 17, 128, 128, 3),
        (4, 1, 128, 128, 3),
    ),
    "paper": (PRESETS["paper"], (1, 17, 128, 128, 3), (2, 1, 128, 128, 3)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peer:
    """A function of no arguments that does with torch what ours does, and waits for the result."""

    name: str
    run: Callable[[], Any]
    parameters: int | None = None


@functools.cache
def device_name() -> str:
    if ON_GPU:
        return jax.devices()[0].device_kind
    name = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model n")]
        name = models[0] if models else name
    return f"{THREADS} cores {name}"


def in_turn(functions: list[Callable[[], Any]], repeats: int) -> list[dict[str, float]]:
    """Runs the functions one after the other, `repeats` times after two runs that do not count."""
    walls, cpus = [[] for _ in functions], [[] for _ in functions]
    for repeat in range(-2, repeats):
        for function, wall, cpu in zip(functions, walls, cpus):
            start, cpu_start = time.perf_counter(), time.process_time()
            function()
            if repeat >= 0:
                wall.append(time.perf_counter() - start)
                cpu.append(time.process_time() - cpu_start)
    return [
        {"time_s": min(wall), "median_s": statistics.median(wall), "cpu_s": min(cpu)} for wall, cpu in zip(walls, cpus)
    ]


def peak_bytes(compiled) -> int:
    """What XLA says the program needs at once: arguments, results and temporary buffers."""
    memory = compiled.memory_analysis()
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return getattr(memory, "peak_memory_in_bytes", 0) or total


def rows(what, shape, dtype, function, arguments, peers, repeats, parameters=None) -> Iterator[dict[str, Any]]:
    """Compiles and times function(*arguments); one row for each peer, or one without."""
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_s = time.perf_counter() - start
    ours, *theirs = in_turn(
        [lambda: jax.block_until_ready(compiled(*arguments)), *(peer.run for peer in peers)], repeats
    )
    row = {
        "what": what,
        "shape": list(shape),
        "dtype": jnp.dtype(dtype).name,
        "device": device_name(),
        "threads": THREADS,
        **ours,
        "compile_s": compile_s,
        "peak_bytes": peak_bytes(compiled),
        "frames_per_s": shape[0] * shape[1] / ours["time_s"],
        "parameters": parameters,
    }
    none = {"peer": None, "peer_parameters": None, "peer_time_s": None, "peer_median_s": None, "peer_cpu_s": None}
    if not peers:
        yield {**row, **none, "ratio": None}
    for peer, their in zip(peers, theirs):
        yield {
            **row,
            "peer": peer.name,
            "peer_parameters": peer.parameters,
            "peer_time_s": their["time_s"],
            "peer_median_s": their["median_s"],
            "peer_cpu_s": their["cpu_s"],
            "ratio": their["time_s"] / ours["time_s"],
        }


def dtypes() -> list[Any]:
    """float32 everywhere; bfloat16 where the hardware has it."""
    return [jnp.float32, jnp.bfloat16] if ON_GPU else [jnp.float32]


def torch_device() -> str:
    return "cuda" if ON_GPU and torch.cuda.is_available() else "cpu"


def torch_dtype(dtype):
    return torch.bfloat16 if dtype == jnp.bfloat16 else torch.float32


def wait() -> None:
    if torch_device() == "cuda":
        torch.cuda.synchronize()


def variants(module) -> list[tuple[str, Any]]:
    """The module as it is, and on a GPU compiled too."""
    return [("", module), *([(", torch.compile", torch.compile(module))] if torch_device() == "cuda" else [])]


# --- the convolution ------------------------------------------------------------------------------------------------


def torch_convolutions(shape, dtype, backward: bool) -> Iterator[Peer]:
    """conv3d in channels_last_3d, its fastest layout, with the first frame repeated in front."""
    batch, frames, height, width, channels = shape
    layout = {"dtype": torch_dtype(dtype), "device": torch_device(), "memory_format": torch.channels_last_3d}
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
    """One causal 3x3x3 convolution, from (input, no history) to output, and its gradients."""
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
                peers = list(torch_convolutions(shape, dtype, function is with_gradients)) if torch else []
                what = f"causal conv {name}, {what}"
                yield from rows(what, shape, dtype, function, (params, x), peers, options.repeats)


# --- the whole model ------------------------------------------------------------------------------------------------


def channels_last(module):
    """Every kernel in the layout of its dimensions that puts channels last."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
    return module


def video_peer(config):
    """EasyAnimate's autoencoder, diffusers' nearest: 3D-causal, 3x3x3 throughout, group norm a frame, 4x8x8.

    Time is halved and doubled at the same levels. It strides where the paper pools, has one residual block more in each
    middle and no attention there; the parameter counts stand in the rows.
    """
    from diffusers import AutoencoderKLMagvit

    down = ["SpatialTemporalDownBlock3D" if halved else "SpatialDownBlock3D" for halved in config.time_reduction]
    # Ours doubles before a level, the peer's after one.
    up = [f"Spatial{'Temporal' * doubled}UpBlock3D" for doubled in (*reversed(config.expansion[:-1]), False)]
    return AutoencoderKLMagvit(
        latent_channels=config.latent_channels,
        block_out_channels=config.channels,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=config.blocks,
    )


def image_peer(config):
    """Stable Diffusion's autoencoder, the two-dimensional network that the paper's is inflated from."""
    from diffusers import AutoencoderKL

    levels = len(config.channels)
    return AutoencoderKL(
        latent_channels=config.latent_channels,
        block_out_channels=config.channels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        layers_per_block=config.blocks,
    )


def torch_models(config, shape, latent_shape, dtype) -> Iterator[tuple[str, list[Peer]]]:
    """What is timed -> the peers that do it."""
    image = shape[1] == 1
    options = {"dtype": torch_dtype(dtype), "device": torch_device()}
    model = channels_last(image_peer(config) if image else video_peer(config)).to(**options)
    parameters = sum(p.numel() for p in model.parameters())

    def random(shape):
        batch, frames, height, width, channels = shape
        if image:
            return torch.randn(batch * frames, channels, height, width, **options).to(memory_format=torch.channels_last)
        return torch.randn(batch, channels, frames, height, width, **options).to(memory_format=torch.channels_last_3d)

    video, latents = random(shape), random(latent_shape)

    def autoencode():
        return model.decode(model.encode(video).latent_dist.mode()).sample

    def train():
        model.zero_grad()
        autoencode().square().mean().backward()

    def without_gradients(function):
        with torch.no_grad():
            function()

    steps = {
        "encode": functools.partial(without_gradients, lambda: model.encode(video).latent_dist.mode()),
        "decode": functools.partial(without_gradients, lambda: model.decode(latents).sample),
        "forward": functools.partial(without_gradients, autoencode),
        "forward+backward": train,
    }
    for what, step in steps.items():
        peers = []
        for suffix, function in variants(step):

            def run(function=function):
                function()
                wait()

            name = f"diffusers {type(model).__name__}, channels last{suffix}"
            peers.append(Peer(name=name, run=run, parameters=parameters))
        yield what, peers


def model(options) -> Iterator[dict[str, Any]]:
    """Encode, decode, both, and both with the gradients of all parameters, for a clip and for a batch of images."""
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
                return jax.value_and_grad(lambda params: jnp.square(autoencode(params, video)).mean())(params)

            peers = dict(torch_models(config, shape, latent_shape, dtype)) if torch and has_diffusers() else {}
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
                yield from rows(title, shape, dtype, function, arguments, peers.get(what, []), options.repeats, count)


def has_diffusers() -> bool:
    try:
        import diffusers  # noqa: F401
    except ImportError:
        return False
    return True


GROUPS = {"conv": conv, "model": model}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(GROUPS), help="groups of rows, of " + ", ".join(GROUPS))
    parser.add_argument("--preset", default="small", choices=MODELS, help="which network the group `model` runs")
    parser.add_argument("--repeats", default=10, type=int, help="runs a row that are counted")
    options = parser.parse_args()
    groups = options.rows.split(",")
    unknown = [name for name in groups if name not in GROUPS]
    if unknown:
        parser.error(f"--rows={options.rows}: {unknown[0]!r} is none of {', '.join(GROUPS)}")
    if options.repeats < 1:
        parser.error(f"--repeats={options.repeats} must be at least 1")
    if torch:
        torch.set_num_threads(THREADS)
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # whatever libraries print is no row
        for name in groups:
            for row in GROUPS[name](options):
                print(json.dumps(row), file=stdout, flush=True)


if __name__ == "__main__":
    main()
