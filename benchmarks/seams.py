"""Seams of REGEN at the borders of its chunks, by training and by decoding; one JSON line per row
on stdout.

python benchmarks/seams.py [--rows=shapes] [--ratios=16,32] [--root=runs/seams] [--train_steps=600]
python benchmarks/seams.py --rows=footage --videos=FOLDER [--size=64]

Trains REGEN's tiny preset at each ratio, with windows of one chunk each and with windows shifted
across borders (`loss.windows`), unless the folder has that training; then reconstructs unseen clips
in several ways:

    own noise       plain chunks, one by one, separate noise for each frame
    aligned         plain chunks, one noise for all frames, as in the rows below
    straddling      windows from the middle of a chunk to the middle of the next: the same cost
    faded N         the same, with conditioning that fades from one chunk to the next over N frames
                    on each side of the border
    extended N      chunks decoded N frames beyond their borders at extrapolated times, cross-faded
                    in pixels
    overlapping N   faded windows, each decoded N frames beyond both its ends, cross-faded there in
                    pixels
    library         as the embedder decodes: the last of these, faded over half a chunk, if it was
                    trained on shifted windows; else aligned

`shapes`: clips of moving shapes. `footage`: trains on each video of a folder without its end,
shrunk to twice the size; measures on the end, in the middle and the four corners. `border` is the
seam ratio, `others` the median and `worst_other` the largest over the other pairs of frames of a
chunk (see `evaluation/seams.py`). A table goes to stderr.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from rows import at_least_one, device_name, print_rows  # isort: skip  (it sets the environment)

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.commands.train import train
from xgen_jax.config.loop import LoopConfig
from xgen_jax.config.losses import REGENLossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import REGENRun
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, SyntheticConfig, VideoFolderConfig
from xgen_jax.data.pixels import center_crop, crop, to_uint8, to_unit_range
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.data.sources.video_folder import VideoFolderSource
from xgen_jax.data.video import read_video
from xgen_jax.data.video_writer import write_video
from xgen_jax.evaluation.reconstruction import compare
from xgen_jax.evaluation.seams import measure_seams
from xgen_jax.models.regen import Conditioning
from xgen_jax.models.regen_config import PRESETS
from xgen_jax.models.regen_decoding import frame_noise, sample_frames
from xgen_jax.models.regen_windows import overlap
from xgen_jax.parallel.mesh import MeshConfig
from xgen_jax.runs.load import load_embedder

WINDOWS = ("chunk", "shifted")
CHUNKS = 2  # of a clip
BATCH = {4: 4, 8: 3, 16: 2, 32: 1}  # clips
HELD_OUT_SEED, HELD_OUT_CLIPS = 11, 24  # the decodings were chosen on seed 7


class Window(NamedTuple):
    """Frames that are decoded together.

    Attributes:
      positions_F: of the frames in the clip.
      chunks_FN: weight of each chunk in the conditioning of a frame; sums to 1.
      weights_F: of this window in the pixels of a frame; sums to 1 over all its windows.
    """

    positions_F: np.ndarray
    chunks_FN: np.ndarray
    weights_F: np.ndarray


def chunk_weights(positions: np.ndarray, n: int, length: int, fade: float = 0.0) -> np.ndarray:
    """Weights of the n chunks for each frame, (F, n): one-hot, or linear from `fade` frames before
    a border to `fade` frames after it.
    """
    borders = length * np.arange(1, n)
    over = positions[:, None] + 0.5 - borders[None]
    gone = np.clip(0.5 + over / (2 * fade), 0, 1) if fade else (over > 0).astype(float)
    ones, zeros = np.ones((len(positions), 1)), np.zeros((len(positions), 1))
    return np.concatenate([ones, gone], axis=1) - np.concatenate([gone, zeros], axis=1)


def aligned(n: int, length: int) -> list[Window]:
    """Make one window per chunk."""
    clip = np.arange(n * length).reshape(n, length)
    return [Window(at, chunk_weights(at, n, length), np.ones(length)) for at in clip]


def straddling(n: int, length: int, fade: float = 0.0, overlap: int = 0) -> list[Window]:
    """Make windows from middle to middle, and aligned windows at both ends. With `overlap`, each
    extends that many frames beyond its middles, where the two are cross-faded in pixels.
    """
    clip, middle = n * length, length - length // 2
    starts = np.arange(middle, clip - length, length)
    inner = [np.arange(start - overlap, start + length + overlap) for start in starts]
    cuts = [0, middle, *(starts + length), clip]

    def weight(inside):
        """Weight of frames by the distance of their middles from the end of the window."""
        return np.clip(inside / (2 * overlap or 1e-9) + 0.5, 0, 1)

    windows = []
    for at, begin, end in zip(
        [np.arange(length), *inner, np.arange(clip - length, clip)], cuts, cuts[1:]
    ):
        from_begin = weight(at + 0.5 - begin) if begin else np.ones(len(at))
        to_end = weight(end - at - 0.5) if end < clip else np.ones(len(at))
        chunks = chunk_weights(at, n, length, fade if begin and end < clip else 0.0)
        windows.append(Window(at, chunks, np.minimum(from_begin, to_end)))
    return windows


def extended(n: int, length: int, fade: int) -> list[Window]:
    """Make windows of one chunk each, extended by `fade` frames beyond its borders."""
    windows = []
    for i in range(n):
        at = np.arange(max(0, i * length - fade), min(n * length, (i + 1) * length + fade))
        chunks = np.zeros((len(at), n))
        chunks[:, i] = 1
        windows.append(Window(at, chunks, chunk_weights(at, n, length, fade)[:, i]))
    return windows


def ways(config) -> dict[str, list[Window]]:
    """List the decodings to compare with the library's."""
    n, length = CHUNKS, config.chunk_frames
    quarter, half = length // 4, length // 2
    return {
        "own noise": aligned(n, length),
        "aligned": aligned(n, length),
        "straddling": straddling(n, length),
        f"faded {quarter}": straddling(n, length, quarter),
        f"faded {half}": straddling(n, length, half),
        f"extended {half}": extended(n, length, half),
        **{
            f"faded {half}, overlapping {beyond}": straddling(n, length, half, beyond)
            for beyond in (1, 2, 4)
            if beyond <= overlap(config)
        },
    }


def reconstruct(
    embedder, params, videos: np.ndarray, windows: list[Window], own_noise: bool = False
) -> np.ndarray:
    """Reconstruct uint8 clips (B, T, H, W, 3) in these windows."""
    model, total = embedder.model, np.zeros(videos.shape, np.float64)
    encoded = jax.jit(embedder.encode)(params, to_unit_range(videos))
    z = encoded * params["std"][None, None, None, None] + params["mean"][None, None, None, None]
    z_NB = jnp.moveaxis(z.reshape(len(videos), -1, 2, *z.shape[2:]), 1, 0)

    @jax.jit
    def decode(params, z_NB, positions_F, chunks_FN):
        frames, of_both = len(positions_F), chunks_FN.max(1) < 1

        def expand(z_B, number):
            since = positions_F - number * model.config.chunk_frames
            # At 0 itself the SIREN replaces the content latent.
            since = jnp.where((since == 0) & of_both, 1e-3, since)
            times_BF = jnp.broadcast_to((since / model.config.ratio)[None], (len(videos), frames))
            return model.apply(params, z_B, times_BF, method="expand").added_BFHWD

        cond_NBF = jax.vmap(expand)(z_NB, jnp.arange(len(z_NB)))
        cond = jnp.einsum("fn,nbfhwd->bfhwd", chunks_FN, cond_NBF)
        key = jax.random.key(0)
        keys_F = jax.vmap(lambda number: jax.random.fold_in(key, number * own_noise))(
            positions_F.astype(jnp.int32)
        )
        noise = frame_noise(keys_F, 1, *videos.shape[2:4])[None, :, 0]
        noise = jnp.broadcast_to(noise, (len(videos), *noise.shape[1:]))
        return sample_frames(
            model, params, embedder.process, embedder.steps, Conditioning(cond), noise
        )

    for positions_F, chunks_FN, weights_F in windows:
        frames = decode(
            params["model"],
            z_NB,
            jnp.asarray(positions_F, jnp.float32),
            jnp.asarray(chunks_FN, jnp.float32),
        )
        total[:, positions_F] += weights_F[None, :, None, None, None] * np.asarray(frames)
    return to_uint8(total)


def run(
    ratio: int,
    windows: str,
    options,
    data: SyntheticConfig | VideoFolderConfig,
    height: int,
    width: int,
) -> REGENRun:
    """Make the configuration of a row's run."""
    config = PRESETS[f"tiny-{ratio}x"]
    frames = CHUNKS * config.chunk_frames
    bucket = Bucket(frames=frames, height=height, width=width, batch_size=BATCH[ratio])
    return REGENRun(
        model=config,
        loss=REGENLossConfig(
            process="flow",
            prediction="x0",
            one_step_fraction=0.5,
            kl=2e-4,
            motion=4.0,
            windows=windows,
        ),
        data=DataConfig(source=data, seed=0, buckets=(bucket,)),
        optimizer=OptimizerConfig(
            name="muon",
            learning_rate=0.02,
            adam_learning_rate=3e-3,
            schedule="linear",
            warmup_steps=50,
        ),
        loop=LoopConfig(
            steps=options.train_steps,
            ema_decay=0.995,
            compute_dtype="float32",
            checkpoint_every=100,
        ),
        mesh=MeshConfig(fsdp=1),
    )


def rows(
    options, kind: str, ratio: int, data: SyntheticConfig | VideoFolderConfig, videos: np.ndarray
) -> Iterator[dict[str, Any]]:
    """Measure each way to train and to decode on the clips."""
    config = PRESETS[f"tiny-{ratio}x"]
    for windows in options.windows.split(","):
        folder = pathlib.Path(options.root) / f"{kind}_{ratio}x_{windows}"
        # Returns at once if it is finished.
        train(run(ratio, windows, options, data, *videos.shape[2:4]), folder)
        embedder, params = load_embedder(folder)
        length, decodings = config.chunk_frames, {}
        for name, plan in ways(config).items():
            total = sum(len(window.positions_F) for window in plan)
            decodings[name] = (
                reconstruct(embedder, params, videos, plan, name == "own noise"),
                total,
            )
        latents = jax.jit(embedder.encode)(params, to_unit_range(videos))
        total = CHUNKS * length + (embedder.look_ahead > 0) * (length + 2 * overlap(config))
        decodings["library"] = (to_uint8(jax.jit(embedder.decode)(params, latents)), total)
        for name, (decoded, total) in decodings.items():
            pairs = list(zip(videos, decoded))
            seams = measure_seams(pairs, length)
            scores = [compare(*pair) for pair in pairs]
            line = {
                "what": f"{kind}, {ratio}x, trained on {windows}, {name}",
                "device": device_name(),
                "train_steps": options.train_steps,
                "shape": list(videos.shape[:4]),
                "frames_decoded": total / videos.shape[1],
                "border": seams.border,
                "others": seams.others,
                "worst_other": seams.worst_other,
                "psnr_db": float(np.mean([score["psnr_db"] for score in scores])),
                "sharpness": float(np.mean([score["sharpness"] for score in scores])),
                "ratios": seams.ratios,
            }
            ratios = (f"{line[name]:.2f}" for name in ("border", "others", "worst_other"))
            rest = f"{line['sharpness']:.2f} | {line['frames_decoded']:.1f}"
            print(
                f"| {line['what']} | {' | '.join(ratios)} | {line['psnr_db']:.2f} dB | {rest} |",
                file=sys.stderr,
            )
            yield line


def shapes(options) -> Iterator[dict[str, Any]]:
    for ratio in map(int, options.ratios.split(",")):
        frames = CHUNKS * PRESETS[f"tiny-{ratio}x"].chunk_frames
        source = SyntheticSource(seed=HELD_OUT_SEED, split="held_out")
        videos = np.stack(
            [source.read(i, None, frames, 32, 32)["video"] for i in range(HELD_OUT_CLIPS)]
        )
        yield from rows(options, "shapes", ratio, SyntheticConfig(), videos)


def footage(options) -> Iterator[dict[str, Any]]:
    if not options.videos:
        raise SystemExit("--rows=footage needs --videos=FOLDER")
    side, source = options.size, VideoFolderSource(options.videos, require_captions=False)
    for ratio in map(int, options.ratios.split(",")):
        frames = CHUNKS * PRESETS[f"tiny-{ratio}x"].chunk_frames
        folder, held = pathlib.Path(options.root) / f"videos_{ratio}x", []
        for file in source.files:
            video, fps = read_video(source.path / file, cover=(2 * side, 2 * side))
            if len(video) < 2 * frames:
                print(
                    f"{file}: {len(video)} frames are too few at {ratio}x; skipped",
                    file=sys.stderr,
                )
                continue
            if not (folder / file).exists():
                write_video(
                    folder / file,
                    center_crop(video[:-frames], *(n // 2 * 2 for n in video.shape[1:3])),
                    fps,
                )
            end, (bottom, right) = video[-frames:], (n - side for n in video.shape[1:3])
            held += [center_crop(end, side, side)]
            held += [crop(end, side, side, top, left) for top in (0, bottom) for left in (0, right)]
        data = VideoFolderConfig(path=str(folder), require_captions=False, flip=True)
        yield from rows(options, "footage", ratio, data, np.stack(held))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ratios", default="16,32", help="temporal ratios: 4, 8, 16, 32")
    parser.add_argument(
        "--windows",
        default=",".join(WINDOWS),
        help="windows to train with: " + ", ".join(WINDOWS),
    )
    parser.add_argument("--root", default="runs/seams", help="folder of the runs")
    parser.add_argument("--train_steps", default=600, type=at_least_one, help="updates per run")
    parser.add_argument("--videos", help="folder of videos, for `footage`")
    parser.add_argument(
        "--size",
        default=64,
        type=at_least_one,
        help="side of the crops of `footage`, a multiple of 8",
    )
    print_rows(parser, {"shapes": shapes, "footage": footage})


if __name__ == "__main__":
    main()
