"""Speed of the paper's networks on one GPU, in under ten minutes; one JSON line a row on stdout.

python benchmarks/gpu.py [--rows=train,vae,regen] [--presets=paper] [--row_s=SECONDS]
    [--batch_size=8] [--remat=full] [--repeats=5] [--nopeers]

    train   the train step of VDiT-XL/2 on clips of 17x480x848, bfloat16: configs/vdit/480p.py
    vae     decode 81x720x1280 by the paper's VidVAE, in chunks, to uint8 frames on the host
    regen   decode a chunk of 33x192x320 by the paper's REGEN in one step, to the same

Weights, latents and text are random. Each row runs in a process of its own, which is ended after
270, 195 and 120 seconds (or `--row_s`), so that what fails or takes too long does not stop the
others: `error` says why (`peer_error` where only the peer is missing), and the line has what was
measured before. `targets` are next to `met`, which is null on a CPU, and `not_judged`: the targets
that were not measured, such as `ratio` without a peer. The exit code is 1 if a row has an error.

`channels_last` says whether XLA was asked for 3D convolutions with channels last.
`frames_kernel_error` of the row `train` is how far the kernel of attention in time is off in
bfloat16, in units of what plain operations in bfloat16 are: near 1 as it should be.

Where torch is installed, and for `train` and `vae` diffusers, the same process then times a peer,
eager and with `torch.compile`, of which the faster counts: `ratio` is its time divided by ours.
Neither JAX nor torch returns memory to the other, so each may take half of the GPU; --nopeers gives
JAX nine tenths. A batch of `train` that does not fit is halved. `compile_s` is the first run,
compiling included, without the time of one run. --presets=tiny are small networks, to try the
script on a CPU.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

# Seconds for each row, ours and peer, with all that is compiled: ten minutes together.
ROWS = {"train": 270.0, "vae": 195.0, "regen": 120.0}
# Written next to what was measured: model FLOPs of the peak, seconds, and the peer's time by ours.
TARGETS = {
    "train": {"mfu": 0.45, "ratio": 1.0},
    "vae": {"time_s": 3.0, "ratio": 1.0},
    "regen": {"ratio": 1.0},
}
# Configuration of the run, keys, embedder of its latents, clip (frames, height, width).
TRAIN = {
    "paper": ("vdit/480p", ["model.attention=auto"], "paper", (17, 480, 848)),
    "tiny": ("quickstart/vdit", [], "tiny", (9, 32, 32)),
}
# Keys, clip.
VAE = {
    "paper": ([], (81, 720, 1280)),
    "tiny": (["model.channels=32,32,32,32", "loop.compute_dtype=float32"], (9, 32, 32)),
}
# Configuration, size.
REGEN = {"paper": ("regen/paper", (192, 320)), "tiny": ("quickstart/regen", (32, 32))}


def random_like(tree: Any, scale: float) -> Any:
    """Make arrays for shapes: floats normal, masks true, integers zero; `scale` is a deviation."""
    import jax
    import numpy as np

    values = scale * np.random.default_rng(0).standard_normal(2**20 + 1, np.float32)

    def one(leaf):
        if np.issubdtype(leaf.dtype, np.integer) or leaf.dtype == np.bool_:
            return jax.numpy.full(leaf.shape, leaf.dtype == np.bool_, leaf.dtype)
        return jax.numpy.asarray(np.resize(values, leaf.shape), leaf.dtype)

    return jax.tree.map(one, tree)


def frames_kernel_error() -> float | None:
    """Return the error of the device's kernel of attention in time, divided by that of plain
    operations in its dtype: the largest of its value and gradients. None where it has none."""
    import jax
    import jax.numpy as jnp
    from einops import rearrange

    from xgen_jax.nn.attention import SelfAttention
    from xgen_jax.nn.short_attention import ShortAttention, takes_short

    heads, frames, places, channels = 4, 29, 100, 72
    if not takes_short("auto", frames, channels, jnp.bfloat16):
        return None
    kernel = ShortAttention(heads, qk_norm=True, dtype=jnp.bfloat16)
    plain = SelfAttention(heads, qk_norm=True, dtype=jnp.bfloat16, dims=("batch", "space", None))
    positions = jnp.arange(frames, dtype=jnp.float32)[:, None]
    x = jax.ShapeDtypeStruct((2, frames, places, heads * channels), jnp.float32)
    params = jax.eval_shape(kernel.init, jax.random.key(0), x, positions)
    x, params = random_like(x, 1.0), random_like(params, 0.1)

    def transposed(layer, params, x, positions):
        y = layer.apply(params, rearrange(x, "b t s d -> b s t d"), positions)
        return rearrange(y, "b s t d -> b t s d")

    def results(apply):
        def loss(params, x):
            y = apply(params, x, positions).astype(jnp.float32)
            return jnp.square(y).sum(), y

        with jax.default_matmul_precision("highest"):
            return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)

    def ratio(found, other, exact):
        return float(jnp.linalg.norm(found - exact) / jnp.linalg.norm(other - exact))

    layers = (plain, plain.clone(dtype=jnp.float32))
    other, exact = (results(functools.partial(transposed, layer)) for layer in layers)
    return max(jax.tree.leaves(jax.tree.map(ratio, results(kernel.apply), other, exact)))


# --- rows: each yields parts of its line, as they are known


def train(options) -> Iterator[dict[str, Any]]:
    """Time the train step of a transformer."""
    import jax
    import jax.numpy as jnp
    from gpu_peers import latte_step, time_peers
    from rows import measure, peak_flops

    from xgen_jax.commands.arguments import find_config
    from xgen_jax.commands.config_file import load_config
    from xgen_jax.commands.plan_programs import find_embedder, train_program
    from xgen_jax.data.buckets import Bucket
    from xgen_jax.parallel.memory import program_bytes
    from xgen_jax.parallel.mesh import MeshConfig, make_mesh

    name, keys, embedder_name, (frames, height, width) = TRAIN[options.presets]
    keys = [*keys, "mesh.fsdp=1", *([f"model.remat={options.remat}"] if options.remat else [])]
    config = load_config(find_config(name), keys)
    dtype = jnp.dtype(config.loop.compute_dtype)
    embedder, _ = find_embedder(config, embedder_name, dtype)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    bucket = Bucket(frames=frames, height=height, width=width, batch_size=options.batch_size)
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    while True:
        start = time.perf_counter()
        program = train_program(config, embedder, mesh, bucket)
        lower_s, start = time.perf_counter() - start, time.perf_counter()
        compiled = program.lowered.compile()
        compile_s, needed = time.perf_counter() - start, program_bytes(compiled)
        if limit is None or needed <= 0.95 * limit or bucket.batch_size == 1:
            break
        bucket = dataclasses.replace(bucket, batch_size=bucket.batch_size // 2)
    t, h, w = embedder.latent_shape(bucket.shape)
    latents = (bucket.batch_size, t, h, w, embedder.latent_channels)
    tokens = bucket.batch_size * t * -(-h // config.model.patch) * -(-w // config.model.patch)
    yield {
        "what": f"train step, {name}, {bucket.name}",
        "shape": list(latents),
        "dtype": dtype.name,
        "attention": config.model.attention,
        "remat": config.model.remat,
        "parameters": program.parameters,
        "lower_s": lower_s,
        "compile_s": compile_s,
        "peak_bytes": needed,
    }

    def shapes(info):
        return jax.ShapeDtypeStruct(info.shape, info.dtype)

    (state, arrays, *rest), _ = jax.tree.map(shapes, compiled.args_info)
    # Second moments are not negative: all of the optimiser starts at zero.
    opt_state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state.opt_state)
    params, ema = random_like(state.params, 0.02), random_like(state.ema, 0.02)
    shardings = compiled.input_shardings[0]
    start = state.replace(step=jnp.int32(0), params=params, ema=ema, opt_state=opt_state)
    *rest, _ = random_like(rest, 0.0)
    turn = jnp.int32(0)
    held = list(jax.device_put((start, random_like(arrays, 1.0), *rest, turn), shardings))
    metrics: dict[str, float] = {}

    def step():
        held[0], found, held[-1] = compiled(*held)
        metrics.update(found.fetch(), step=int(held[0].step))

    ours = measure(step, options.repeats)
    peak = peak_flops(dtype.name)
    mfu = program.flops / ours["time_s"] / peak if peak else None
    yield {
        **ours,
        "updates": metrics["step"],
        "tokens_per_s": tokens / ours["time_s"],
        "flops": program.flops,
        "mfu": mfu,
    }
    del held[:], start, params, ema, opt_state
    yield {"frames_kernel_error": frames_kernel_error()}  # last: its failure costs no time
    make = functools.partial(latte_step, config.model, config.text.tokens, latents, dtype)
    yield from time_peers(options, make)


def vae(options) -> Iterator[dict[str, Any]]:
    """Decode latents of a VidVAE, as `sample` does."""
    from gpu_peers import magvit_decode, time_peers

    from xgen_jax.commands.arguments import find_config
    from xgen_jax.commands.config_file import load_config

    keys, clip = VAE[options.presets]
    config = load_config(find_config("vidvae/paper"), keys)
    dtype = config.loop.compute_dtype
    embedder = config.make_embedder(dtype)
    yield from decoding(options, embedder, clip, f"decode, vidvae/paper {' '.join(keys)}".strip())
    latents = (1, *embedder.latent_shape(clip), embedder.latent_channels)
    yield from time_peers(options, functools.partial(magvit_decode, config.model, latents, dtype))


def regen(options) -> Iterator[dict[str, Any]]:
    """Decode the latents of a chunk by a REGEN, in one step."""
    from gpu_peers import time_peers, transformer_decode

    from xgen_jax.commands.arguments import find_config
    from xgen_jax.commands.config_file import load_config

    name, size = REGEN[options.presets]
    config = load_config(find_config(name), [])
    embedder = config.make_embedder(config.loop.compute_dtype).with_steps(1)
    clip = (config.model.chunk_frames, *size)
    yield from decoding(options, embedder, clip, f"decode a chunk in one step, {name}")
    make = functools.partial(transformer_decode, config.model, clip, config.loop.compute_dtype)
    yield from time_peers(options, make)


def decoding(options, embedder, clip, what: str) -> Iterator[dict[str, Any]]:
    """Time latents to uint8 frames on the host."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from rows import measure, peak_flops

    from xgen_jax.inference.streaming import decode

    latents = (1, *embedder.latent_shape(clip), embedder.latent_channels)
    z = np.random.default_rng(0).standard_normal(latents, np.float32)
    model = random_like(embedder.abstract_model(), 0.02)
    ones = np.ones(embedder.latent_channels, np.float32)
    params = jax.device_put(embedder.bundle(model, 0 * ones, ones))
    key = jax.random.key(0)

    def run():
        video = decode(embedder, params, z, key=key, uint8=True)
        assert video.shape == (1, *clip, 3) and video.dtype == np.uint8

    ours = measure(run, options.repeats)
    # Of the chunks of a clip that is cut in several, the first starts it.
    dtype = jnp.dtype(embedder.model.dtype)
    flops, peak = embedder.decode_flops(latents), peak_flops(dtype.name)
    assert flops is not None
    memory = jax.devices()[0].memory_stats() or {}
    yield {
        "what": what,
        "shape": [1, *clip, 3],
        "dtype": dtype.name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(model)),
        **ours,
        "compile_s": ours["first_s"] - ours["time_s"],
        "peak_bytes": memory.get("peak_bytes_in_use"),
        "frames_per_s": clip[0] / ours["time_s"],
        "flops": flops,
        "mfu": flops / ours["time_s"] / peak if peak else None,
    }


# --- one process a row


def run_row(name: str, options) -> None:
    """Run a row in this process, and print its line after each part."""
    stdout, sys.stdout = sys.stdout, sys.stderr  # output of libraries is not a row
    line: dict[str, Any] = {}

    def say(part):
        line.update(part)
        if line.keys() >= {"time_s", "peer_time_s"}:
            line["ratio"] = line["peer_time_s"] / line["time_s"]
        print(json.dumps(line), file=stdout, flush=True)

    try:
        from rows import ON_GPU, THREADS, device_name, torch

        from xgen_jax.environment import CHANNELS_LAST

        if torch:
            torch.set_num_threads(THREADS)
        versions = {"jax": importlib.metadata.version("jax"), "torch": torch and torch.__version__}
        channels_last = f"--{CHANNELS_LAST}=true" in os.environ.get("XLA_FLAGS", "")
        facts = {"device": device_name(), "threads": THREADS, "channels_last": channels_last}
        say({**facts, "on_gpu": ON_GPU, **versions})
        for part in {"train": train, "vae": vae, "regen": regen}[name](options):
            say(part)
        say({"complete": True})
    except Exception as error:
        import traceback

        traceback.print_exc()
        say({"error": f"{type(error).__name__}: {error}".splitlines()[0][:500]})
    os._exit(0)  # two libraries' threads and caches are not waited for


def met(name: str, line: dict[str, Any]) -> dict[str, bool | None]:
    """Compare what was measured with the targets: seconds at most, all else at least."""
    found = {key: line.get(key) for key in TARGETS[name]}
    return {
        key: None
        if value is None
        else value <= TARGETS[name][key]
        if key.endswith("_s")
        else value >= TARGETS[name][key]
        for key, value in found.items()
    }


def verdict(name: str, line: dict[str, Any], judged: bool) -> dict[str, Any]:
    """Return the targets of a row, which are met, and those that were not judged.

    Args:
      name: of the row.
      line: what was measured.
      judged: whether the targets are for this device and these networks.
    """
    found = met(name, line) if judged else dict.fromkeys(TARGETS[name])
    missing = [key for key, value in found.items() if value is None]
    return {
        "targets": TARGETS[name],
        "met": None if len(missing) == len(found) else found,
        "not_judged": missing,
    }


def supervise(name: str, options, arguments: list[str]) -> dict[str, Any]:
    """Run a row in a process of its own, and return its line."""
    environment = dict(os.environ)
    share = "0.9" if options.nopeers else "0.5"
    environment.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", share)
    start, error, limit_s = time.monotonic(), None, options.row_s or ROWS[name]
    # A file and no pipe, which the helpers of torch.compile would keep open.
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), *arguments, f"--one={name}"],
            stdout=out,
            env=environment,
            start_new_session=True,
        )
        try:
            if process.wait(timeout=limit_s):
                error = f"the process ended with {process.returncode}"
        except subprocess.TimeoutExpired:
            error = f"not finished after {limit_s:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # nothing is left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        lines = [line for line in out if line.endswith("}\n")]
    line = json.loads(lines[-1]) if lines else {}
    if line.pop("complete", False):
        error = None
    elif error and "time_s" in line:  # what is missing is a peer
        line, error = line | {"peer_error": error}, None
    judged = bool(line.pop("on_gpu", False)) and options.presets == "paper"
    return {
        "row": name,
        "presets": options.presets,
        **line,
        **verdict(name, line, judged),
        "error": line.get("error", error),
        "wall_s": round(time.monotonic() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default=",".join(ROWS), help="of " + ", ".join(ROWS))
    parser.add_argument("--presets", default="paper", choices=["paper", "tiny"])
    parser.add_argument("--row_s", type=float, help="seconds for each row at most")
    parser.add_argument("--batch_size", default=8, type=int, help="clips of a train step at most")
    parser.add_argument("--remat", help="of the transformer; by default the configuration's")
    parser.add_argument("--repeats", default=5, type=int, help="timed runs of each")
    parser.add_argument("--nopeers", action="store_true", help="time ours alone")
    parser.add_argument("--one", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.repeats < 1 or options.batch_size < 1:
        parser.error("--repeats and --batch_size must be at least 1")
    if options.one:
        return run_row(options.one, options)
    wanted = options.rows.split(",")
    if unknown := [name for name in wanted if name not in ROWS]:
        parser.error(f"--rows={options.rows}: {unknown[0]!r} is none of {', '.join(ROWS)}")
    failed = 0
    for name in wanted:
        line = supervise(name, options, sys.argv[1:])
        failed += line["error"] is not None
        print(json.dumps(line), flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
