"""REGEN against a plain convolutional decoder, above its training size, and its speed; one JSON
line per row on stdout.

python benchmarks/regen.py [--rows=decoder,time,size,speed] [--data=shapes,footage]
    [--videos=FOLDER] [--root=runs/regen_benchmark] [--steps=400] [--batch=8] [--side=32]
    [--ratios=4,8,16] [--clips=128]

`decoder`: at 4x, 8x and 16x, both decoders with the same encoder and latents (two latent frames of
8 channels, 8x8 in space, for each chunk of k + 1 frames), about equal decoder parameters, and the
same batches, steps and optimiser. `time`: the time to decode one of these clips. `size`: REGEN's
content-aware conditioning against latents in context with fixed embeddings, trained at one size,
decoded at that size and at twice that. `speed`: time and memory to decode in one step, against
VidVAE decoders of about equal parameters; the peer is the VidVAE. Trainings and rows are kept in
the folder `root`, and are not repeated. Tables go to stderr.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rows import at_least_one, device_name, print_rows, time_alternating  # isort: skip  (it sets the environment)

import jax
import jax.numpy as jnp
import numpy as np
from regen_training import (
    Case,
    Recipe,
    decoder_parameters,
    make_decode,
    nearest,
    plain_decoder,
    reconstructions,
    trained,
)

from xgen_jax.errors import UserError
from xgen_jax.evaluation import frechet
from xgen_jax.evaluation.reconstruction import evaluate_reconstruction
from xgen_jax.models.regen import REGEN
from xgen_jax.models.regen_config import PRESETS, REGENConfig
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_config import VidVAEConfig
from xgen_jax.parallel.memory import program_bytes

DATA = ("shapes", "footage")
STEPS = (1, 4, 16)  # of the decoder
SCORES = ("psnr_db", "ssim", "sharpness")
COLUMNS = (*SCORES, frechet.NAME)


def recipe(options) -> Recipe:
    return Recipe(
        steps=options.steps,
        batch_size=options.batch,
        side=options.side,
        clips=options.clips,
        seed=options.seed,
        videos=options.videos,
    )


def scores(case: Case, options, side: int, steps: int | None) -> dict[str, Any]:
    """Train the case if needed, reconstruct unseen clips at a size, and score them."""
    r, root, model = recipe(options), pathlib.Path(options.root), case.task.model
    params, facts = trained(case, r, root)
    clips = r.test_clips(case.data, case.config.chunk_frames, side)
    decoded = reconstructions(model, params, clips, steps)
    following = iter(decoded)
    means = evaluate_reconstruction(
        lambda _: next(following), ((str(i), clip) for i, clip in enumerate(clips))
    )["mean"]
    distance = frechet.frechet_distance(
        frechet.random_features(clips), frechet.random_features(decoded)
    )
    return {
        "shape": list(clips[0].shape),
        "clips": len(clips),
        **{name: means[name] for name in SCORES},
        frechet.NAME: distance,
        "train_steps": r.steps,
        "train_batch": r.batch_size,
        "train_side": r.side,
        **{name: facts[name] for name in ("train_s", "train_cpu_s", "decoder_parameters")},
    }


def kept(options, what: str, make) -> dict[str, Any]:
    """Return the row of that name from `root`, or make it and store it there."""
    path = pathlib.Path(options.root) / f"rows-{options.steps}.jsonl"
    settings = {
        "batch": options.batch,
        "side": options.side,
        "clips": options.clips,
        "seed": options.seed,
    }
    if path.exists():
        for stored in map(json.loads, path.read_text().splitlines()):
            if stored["what"] == what:
                if stored["settings"] != settings:
                    raise UserError(f"{path} has {what!r} of other settings; choose another --root")
                return stored["row"]
    row = {"what": what, "device": device_name(), **make()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"what": what, "settings": settings, "row": row}) + "\n")
    return row


def show(title: str, rows: Iterable[tuple[str, dict[str, Any]]], columns: Iterable[str]) -> None:
    """Print a table in Markdown on stderr."""
    columns = list(columns)
    print(
        f"\n{title}\n\n| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}", file=sys.stderr
    )
    for name, row in rows:
        print(
            f"| {name} | " + " | ".join(f"{row[column]:.4g}" for column in columns) + " |",
            file=sys.stderr,
        )


# --- against a plain decoder


def compiled_decode(model: REGEN | VidVAE, shape: tuple[int, ...], steps: int | None):
    """Compile the decoder for clips of a shape: (program, its arguments), random parameters."""
    config = model.config
    encoder = config.encoder if isinstance(model, REGEN) else config
    least = jnp.zeros(
        (1, encoder.time_factor + 1, 2 * encoder.space_factor, 2 * encoder.space_factor, 3)
    )
    arguments = (least, jnp.zeros(1)) if isinstance(model, REGEN) else (least,)
    params = jax.jit(model.init)(jax.random.key(0), *arguments)
    params = {
        "params": {name: tree for name, tree in params["params"].items() if name != "encoder"}
    }
    z = jax.random.normal(jax.random.key(1), config.latent_shape(shape))
    arguments = (params, z, np.arange(len(z)))
    return make_decode(model, steps).lower(*arguments).compile(), arguments


def decoder(options) -> Iterator[dict[str, Any]]:
    """Compare both decoders at each ratio, REGEN's with several numbers of steps."""
    for data in options.data.split(","):
        table = []
        for ratio in map(int, options.ratios.split(",")):
            for label, name, steps in decoders(ratio):
                case = Case(data=data, ratio=ratio, decoder=name)
                row = kept(
                    options,
                    f"decoder, {data}, {label}",
                    lambda c=case, n=steps: scores(c, options, options.side, n),
                )
                table.append((label, row))
                yield row
        show(f"decoder, {data}", table, (*COLUMNS, "decoder_parameters", "train_cpu_s"))


def time(options) -> Iterator[dict[str, Any]]:
    """Time both decoders on a clip of one chunk, alternating. Parameters are random, which does not
    change the time."""
    table = []
    for ratio in map(int, options.ratios.split(",")):
        config, programs = PRESETS[f"tiny-{ratio}x"], {}
        shape = (1, config.chunk_frames, options.side, options.side, 3)
        for label, name, steps in decoders(ratio):
            model = plain_decoder(config) if name == "plain" else REGEN(config)
            compiled, arguments = compiled_decode(model, shape, steps)
            programs[label] = lambda c=compiled, a=arguments: jax.block_until_ready(c(*a))
        spent = time_alternating(list(programs.values()), options.repeats)
        for label, times in zip(programs, spent):
            table.append((label, times))
            yield {"what": f"time, {label}", "device": device_name(), "shape": list(shape), **times}
    show("time of a clip", table, ("time_s", "cpu_s"))


def decoders(ratio: int) -> Iterator[tuple[str, str, int | None]]:
    """Yield (label, decoder, steps) of each decoder to compare at a ratio."""
    yield f"{ratio}x, plain", "plain", None
    for steps in STEPS:
        yield f"{ratio}x, REGEN, {steps} step{'s' * (steps > 1)}", "content_aware", steps


# --- above the training size


def size(options) -> Iterator[dict[str, Any]]:
    """Compare both conditionings at the training size and at twice that, in one step."""
    ratio = int(options.ratios.split(",")[0])
    for data in options.data.split(","):
        table = []
        for name in ("content_aware", "in_context"):
            for side in (options.side, 2 * options.side):
                case = Case(data=data, ratio=ratio, decoder=name)
                label = f"{ratio}x, {name}, {side}x{side}"
                row = kept(
                    options,
                    f"size, {data}, {label}",
                    lambda c=case, s=side: scores(c, options, s, 1),
                )
                table.append((label, row))
                yield row
        show(f"size, {data}, trained at {options.side}x{options.side}", table, COLUMNS)


# --- speed


def pyramid_decoder(config: REGENConfig) -> VidVAE:
    """Make a VidVAE that convolves at every resolution, as the paper's does, with about as many
    decoder parameters as a REGEN.

    Its levels double in width twice and halve time where REGEN's encoder of the larger presets
    does.
    """
    halvings, wanted = config.ratio.bit_length() - 1, decoder_parameters(REGEN(config))

    def at_width(width: int) -> VidVAE:
        channels = tuple(width * c for c in (1, 2, 4, 4, 4, 4))
        return VidVAE(
            VidVAEConfig(
                channels=channels,
                space_reduction=(True,) * 3 + (False,) * 3,
                time_reduction=tuple(5 - halvings <= level < 5 for level in range(6)),
                latent_channels=config.latent_channels,
                blocks=config.encoder.blocks,
                mid_attention=config.encoder.mid_attention,
            )
        )

    return nearest(at_width, range(4, 520, 2), wanted)


def speed(options) -> Iterator[dict[str, Any]]:
    """Time one clip of one chunk in one step, against a plain decoder on patches (tiny) and one at
    every resolution."""
    table = []
    for preset, side in zip(
        options.presets.split(","), map(int, options.sides.split(",")), strict=True
    ):
        config = PRESETS[preset]
        shape = (1, config.chunk_frames, side, side, 3)
        peers = {"pyramid": pyramid_decoder(config)}
        if config.encoder.stem[0] > 1:
            peers["patches"] = plain_decoder(config)
        models = {"REGEN": REGEN(config), **peers}
        programs = {name: compiled_decode(model, shape, 1) for name, model in models.items()}
        runs = [lambda c=c, a=a: jax.block_until_ready(c(*a)) for c, a in programs.values()]
        times = dict(zip(programs, time_alternating(runs, options.repeats)))
        for name in peers:
            row = {
                "what": f"speed, {preset}, beside {name}",
                "shape": list(shape),
                "device": device_name(),
                **times["REGEN"],
                "ns_per_pixel": 1e9 * times["REGEN"]["time_s"] / np.prod(shape[:-1]),
                "peak_bytes": program_bytes(programs["REGEN"][0]),
                "parameters": decoder_parameters(models["REGEN"]),
                "peer": f"VidVAE decoder, {name}, channels {channels_of(models[name])}",
                **{f"peer_{key}": value for key, value in times[name].items()},
                "peer_ns_per_pixel": 1e9 * times[name]["time_s"] / np.prod(shape[:-1]),
                "peer_peak_bytes": program_bytes(programs[name][0]),
                "peer_parameters": decoder_parameters(models[name]),
                "ratio": times[name]["time_s"] / times["REGEN"]["time_s"],
            }
            table.append((f"{preset}, {side}x{side}, {name}", row))
            yield row
    columns = ("ns_per_pixel", "peer_ns_per_pixel", "ratio", "peak_bytes", "peer_peak_bytes")
    show("speed, one step, against VidVAE decoders", table, columns)


def channels_of(model: VidVAE) -> list[int]:
    config = getattr(model, "decoder_config", None) or model.config
    return list(config.channels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--root", default="runs/regen_benchmark", help="folder of trainings and rows"
    )
    parser.add_argument("--data", default="shapes", help="of " + ", ".join(DATA))
    parser.add_argument("--videos", help="folder of real videos, for --data=footage")
    parser.add_argument(
        "--ratios", default="4,8,16", help="temporal compressions; `size` uses the first"
    )
    parser.add_argument("--steps", default=400, type=at_least_one, help="updates per training")
    parser.add_argument("--batch", default=8, type=at_least_one, help="clips per training batch")
    parser.add_argument("--side", default=32, type=at_least_one, help="side of clips in pixels")
    parser.add_argument("--clips", default=128, type=at_least_one, help="test clips per row")
    parser.add_argument(
        "--seed", default=0, type=int, help="seed of data, initialisation and noise"
    )
    parser.add_argument(
        "--presets", default="tiny-4x,tiny-8x,tiny-16x,base-4x", help="presets for `speed`"
    )
    parser.add_argument(
        "--sides", default="64,64,64,64", help="sides of clips for `speed`, one per preset"
    )
    parser.add_argument("--repeats", default=10, type=at_least_one, help="runs that are timed")
    print_rows(parser, {"decoder": decoder, "time": time, "size": size, "speed": speed})


if __name__ == "__main__":
    main()
