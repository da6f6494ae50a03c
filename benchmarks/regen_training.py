"""Models and data that `regen.py` trains: a REGEN or a plain convolutional decoder with the same
encoder, in minutes.

The plain one is a VidVAE with REGEN's encoder. Its decoder mirrors the encoder, at the width that
brings its number of parameters nearest to that of REGEN's expansion and decoder. Both are trained
on the same batches, for the same steps, with the same optimiser; only the loss differs: the squared
error of the reconstruction, or of x0 under noise.
"""

import bisect
import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import serialization

from xgen_jax.config.losses import REGENLossConfig, VidVAELossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, SyntheticConfig
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.pixels import random_crop, to_uint8, to_unit_range
from xgen_jax.data.sources.base import Source
from xgen_jax.data.sources.synthetic import SyntheticSource
from xgen_jax.data.video import read_video
from xgen_jax.errors import UserError
from xgen_jax.files import atomic_write, differences, read_json, refuse_differences, write_json
from xgen_jax.models.posterior import Posterior
from xgen_jax.models.regen import REGEN
from xgen_jax.models.regen_config import PRESETS, REGENConfig
from xgen_jax.models.regen_decoding import decode_chunks
from xgen_jax.models.vidvae import Decoder, Encoder, Head, VidVAE
from xgen_jax.models.vidvae_config import VidVAEConfig
from xgen_jax.testing import regen_task, vidvae_task
from xgen_jax.training.state import init_state, make_update
from xgen_jax.training.tasks.base import Task
from xgen_jax.typing import Array, Params, Video

TEST_SEED = 10_000
BATCH = 16  # clips decoded at once when they are scored
OPTIMIZER = OptimizerConfig(
    name="muon", learning_rate=0.02, adam_learning_rate=3e-3, schedule="linear", warmup_steps=50
)
EMA_DECAY = 0.995
KL = 2e-4
REGEN_LOSS = REGENLossConfig(process="flow", prediction="x0", one_step_fraction=0.5, kl=KL)
PLAIN_LOSS = VidVAELossConfig(l1=0.0, l2=1.0, lpips=0.0, kl=KL)


class Plain(VidVAE):
    """A VidVAE with a separate configuration of its decoder, and a posterior that is never wider
    than the prior, like REGEN's: the encoders are the same, including the last layer.
    """

    decoder_config: VidVAEConfig | None = None

    def setup(self):
        self.encoder = Encoder(self.config, self.dtype)
        self.decoder = Decoder(self.decoder_config or self.config, self.dtype)
        self.head = Head(self.decoder_config or self.config, self.dtype)

    def encode(self, video_BTHWC: Array, cache: tuple | None = None):
        moments, cache = self.encoder(video_BTHWC, cache)
        mean, raw = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(nn.log_sigmoid(raw), -30.0)), cache


def count(tree) -> int:
    """Count the numbers in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def decoder_parameters(model: REGEN | VidVAE) -> int:
    """Count the parameters that decode."""
    config = model.config.encoder if isinstance(model, REGEN) else model.config
    chunk = jax.ShapeDtypeStruct(
        (1, config.time_factor + 1, config.space_factor, config.space_factor, 3), jnp.float32
    )
    arguments = (
        (chunk, jax.ShapeDtypeStruct((1,), jnp.float32)) if isinstance(model, REGEN) else (chunk,)
    )
    params = jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"]
    return count({name: tree for name, tree in params.items() if name != "encoder"})


@functools.cache
def plain_decoder(config: REGENConfig) -> Plain:
    """Make the plain decoder whose width, a multiple of 8, brings its number of parameters nearest
    to that of a REGEN's."""
    encoder, wanted = config.encoder, decoder_parameters(REGEN(config))

    def at_width(width: int) -> Plain:
        scale = width / encoder.channels[0]
        channels = tuple(8 * round(scale * c / 8) for c in encoder.channels)
        hidden = 8 * round(scale * encoder.stem_hidden / 8)
        return Plain(
            encoder,
            decoder_config=dataclasses.replace(encoder, channels=channels, stem_hidden=hidden),
        )

    return nearest(at_width, range(8, 3 * encoder.channels[0], 8), wanted)


def nearest(at_width: Callable[[int], VidVAE], widths: Sequence[int], wanted: int) -> VidVAE:
    """Select the width whose number of decoder parameters is nearest; it grows with the width."""
    at = bisect.bisect(widths, wanted, key=lambda width: decoder_parameters(at_width(width)))
    candidates = [at_width(width) for width in widths[max(0, at - 1) : at + 1]]
    return min(candidates, key=lambda model: abs(decoder_parameters(model) - wanted))


class Footage(Source):
    """Crops of the videos in a folder, each shrunk once until its shorter side is twice a crop's.

    The first two thirds of each video are for training, the last third for testing: no frame is in
    both.
    """

    name = "footage"

    def __init__(self, folder: str | None, split: str, frames: int, side: int):
        if not folder:
            raise UserError("give --videos=FOLDER, a folder of real videos")
        self.split, self.videos, digest = split, [], hashlib.sha256(f"{split} {side}".encode())
        for path in sorted(pathlib.Path(folder).iterdir()):
            try:
                video, _ = read_video(path, cover=(2 * side, 2 * side))
            except UserError as error:
                print(f"left out: {error}", file=sys.stderr)
                continue
            cut = len(video) * 2 // 3
            video = video[:cut] if split == "train" else video[cut:]
            if len(video) >= frames:
                self.videos.append(video)
                digest.update(video.tobytes())
        if not self.videos:
            raise UserError(
                f"no video in {folder} has {3 * frames} frames, a third of them for testing"
            )
        self._fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return 1_000_000  # no limit: a clip is a random part of a video

    def fingerprint(self) -> str:
        return self._fingerprint

    def read(
        self, index: int, rng: np.random.Generator, frames: int, height: int, width: int
    ) -> dict[str, Any]:
        video = self.videos[index % len(self.videos)]
        start = int(rng.integers(len(video) - frames + 1))
        clip = random_crop(video[start : start + frames], height, width, tuple(rng.random(2)))
        return {"video": np.ascontiguousarray(clip), "caption": "", "fps": 0.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Length and data of a training. `videos` is the folder of `footage`; `side` is in pixels."""

    steps: int
    batch_size: int
    side: int
    clips: int
    seed: int
    videos: str | None = None

    def source(self, data: str, split: str, frames: int):
        """Make the source of clips to train on or to test on."""
        if data == "footage":
            return Footage(self.videos, split, frames, self.side)
        return SyntheticSource(
            seed=TEST_SEED + self.seed if split == "test" else self.seed,
            split="train" if split == "train" else "held_out",
        )

    def test_clips(self, data: str, frames: int, side: int) -> list[Video]:
        """Read the test clips, the same for every model."""
        source = self.source(data, "test", frames)
        rngs = (np.random.default_rng((self.seed, index)) for index in range(self.clips))
        return [
            source.read(index, rng, frames, side, side)["video"] for index, rng in enumerate(rngs)
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One training: `data` is `shapes` or `footage`, `decoder` a `conditioning` of REGEN or
    `plain`."""

    data: str
    ratio: int
    decoder: str

    @property
    def name(self) -> str:
        """The name in files and rows."""
        return f"{self.data}-{self.ratio}x-{self.decoder}"

    @property
    def config(self) -> REGENConfig:
        """The configuration of the REGEN, or of the one that the plain decoder is compared with."""
        conditioning = "content_aware" if self.decoder == "plain" else self.decoder
        return dataclasses.replace(PRESETS[f"tiny-{self.ratio}x"], conditioning=conditioning)

    @property
    def task(self) -> Task:
        """The task that is trained."""
        if self.decoder == "plain":
            return vidvae_task(model=plain_decoder(self.config), loss_config=PLAIN_LOSS)
        return regen_task(model=REGEN(self.config), loss_config=REGEN_LOSS)

    def facts(self, recipe: Recipe) -> dict[str, Any]:
        """List everything that determines the result of a training, as JSON."""
        task = self.task
        facts = {
            "decoder_parameters": decoder_parameters(task.model),
            "loss": dataclasses.asdict(task.loss_config),
            "optimizer": dataclasses.asdict(OPTIMIZER),
            "model": dataclasses.asdict(self.config),
            "recipe": {
                k: v for k, v in dataclasses.asdict(recipe).items() if k not in ("clips", "videos")
            },
        }
        return json.loads(json.dumps(facts))


def make_decode(model: REGEN | VidVAE, steps: int | None):
    """Make (parameters, latents (B, t, h, w, c), clip numbers (B,)) -> video about [-1, 1]; the
    plain decoder has no steps."""
    if isinstance(model, VidVAE):
        return jax.jit(lambda params, z, numbers: model.apply(params, z, method="decode")[0])

    def decode(params, z, numbers):
        keys_B = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(0), number))(numbers)
        process, windows = REGEN_LOSS.make_process(), REGEN_LOSS.windows
        return decode_chunks(model, params, process, steps, z, None, True, keys_B, windows)[0]

    return jax.jit(decode)


def trained(case: Case, recipe: Recipe, root: pathlib.Path) -> tuple[Params, dict[str, Any]]:
    """Return the EMA parameters of a case and its facts, with `train_s`; train it if the folder
    does not have it yet.

    Raises:
      UserError: the folder has a training with another recipe; a loss that is not finite.
    """
    files = {
        suffix: root / f"{case.name}-{recipe.steps}.{suffix}" for suffix in ("json", "msgpack")
    }
    facts, frames = case.facts(recipe), case.config.chunk_frames
    task = case.task
    bucket = Bucket(
        frames=frames, height=recipe.side, width=recipe.side, batch_size=recipe.batch_size
    )
    if files["json"].exists():
        stored = read_json(files["json"])
        refuse_differences(
            differences({name: stored.get(name) for name in facts}, facts),
            f"{files['json']} has another recipe",
            "choose another --root",
        )
        return serialization.msgpack_restore(files["msgpack"].read_bytes()), stored
    root.mkdir(parents=True, exist_ok=True)
    data = DataConfig(source=SyntheticConfig(), seed=recipe.seed, buckets=(bucket,), num_threads=1)
    pipeline = Pipeline(recipe.source(case.data, "train", frames), data)
    optimizer = task.optimizer(OPTIMIZER, recipe.steps)
    arrays = task.batch_arrays(pipeline.batch(0))
    state = jax.jit(lambda key: init_state(task, optimizer, key, arrays))(
        jax.random.key(recipe.seed)
    )
    ids = jax.ShapeDtypeStruct((recipe.batch_size,), jnp.uint32)
    update = jax.jit(make_update(task, optimizer, recipe.seed, EMA_DECAY), donate_argnums=0)
    update = update.lower(state, arrays, ids).compile()
    started, started_cpu = time.perf_counter(), time.process_time()
    with pipeline.iterate() as batches:
        for step, batch in batches:
            state, metrics = update(
                state, task.batch_arrays(batch), batch["sample_id"].astype(np.uint32)
            )
            if step % 50 == 49 or step + 1 == recipe.steps:
                psnr_db, spent_s = float(metrics["psnr_db"]), time.perf_counter() - started
                progress = f"{step + 1}/{recipe.steps}  {psnr_db:.2f} dB  {spent_s:.0f} s"
                print(f"{case.name} step {progress}", file=sys.stderr)
                if not np.isfinite(float(metrics["loss"])):
                    raise UserError(f"{case.name}: the loss is not finite at step {step + 1}")
            if step + 1 == recipe.steps:
                break
    (params,) = jax.device_get(state.ema).values()
    facts |= {
        "train_s": time.perf_counter() - started,
        "train_cpu_s": time.process_time() - started_cpu,
    }
    with atomic_write(files["msgpack"]) as temporary:
        temporary.write_bytes(serialization.msgpack_serialize(params))
    write_json(files["json"], facts)
    return params, facts


def reconstructions(
    model: REGEN | VidVAE, params: Params, clips: list[Video], steps: int | None
) -> list[Video]:
    """Encode each clip of one chunk to the posterior's mean, and decode it; clip i from noise i."""

    @jax.jit
    def encode(params: Params, video: Array) -> Array:
        encoded = model.apply(params, to_unit_range(video), method="encode")
        return (encoded if isinstance(model, REGEN) else encoded[0]).mode()

    decode, out = make_decode(model, steps), []
    for first in range(0, len(clips), BATCH):
        batch = np.stack(clips[first : first + BATCH])
        out += list(to_uint8(decode(params, encode(params, batch), first + np.arange(len(batch)))))
    return out
