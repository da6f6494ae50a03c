"""REGEN's task: encoder and re-generative decoder together, end to end (arXiv 2503.08665,
section 3).

    loss = process.losses(decoder(x_t, t | expand(z, times)), x0, eps) + kl KL(q(z|x) || N(0, 1))
           + motion | diff(x0' - x0) |^2 + gradient |grad(x0' - x0)| + lpips LPIPS(x0', x0)
           + consistency | x0'(x_1, 1) - stop_gradient x0'(x_t, t) |^2

x0' is the prediction converted to clean frames. The paper has the first term only, with eps of
DDPM; all others are ours, and off if their weight is 0. With diff from a frame of the window to the
next, the motion term weighs errors that flicker, and hardly those that stand still. The gradient
term (`embedder.gradient_error`) weighs the grain on flat ground that a square hardly counts. The
consistency term pulls the result of one step (t = 1, the same noise) to the prediction at the
sampled time: a self-distillation into one step.

A clip is cut in chunks, each encoded by itself. `choose_windows` chooses the frames that are
denoised together. All random numbers of a clip come from its own key.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.config.losses import REGENLossConfig
from xgen_jax.config.runs import REGENRun
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.pixels import to_unit_range
from xgen_jax.diffusion.process import Process
from xgen_jax.errors import UserError
from xgen_jax.models.flops import regen_train_flops
from xgen_jax.models.regen import Conditioning, frame_times
from xgen_jax.models.regen_config import REGENConfig
from xgen_jax.models.regen_windows import condition_chunks, condition_shifted, shifted_starts
from xgen_jax.training.tasks.base import Arrays, Metrics
from xgen_jax.training.tasks.embedder import EmbedderTask, gradient_error, psnr_db
from xgen_jax.typing import Array, Params, Shape

# The streams of a chunk's randomness.
POSTERIOR, TIME, ONE_STEP, NOISE, WINDOW = range(5)


def cut_chunks(config: REGENConfig, video_BTHWC: Array) -> list[Array]:
    """Cut a clip of n(k + 1) or n(k + 1) + 1 frames in chunks.

    Returns:
      The whole chunks (B, n, k + 1, H, W, 3), if any; the one frame more, if any, as a chunk of
      one, (B, 1, 1, H, W, 3).
    """
    batch, frames = video_BTHWC.shape[:2]
    chunks = frames // config.chunk_frames
    whole = chunks * config.chunk_frames
    groups = []
    if chunks:
        groups.append(
            video_BTHWC[:, :whole].reshape(
                batch, chunks, config.chunk_frames, *video_BTHWC.shape[2:]
            )
        )
    if whole < frames:
        groups.append(video_BTHWC[:, None, whole:])
    return groups


def choose_windows(
    config: REGENLossConfig,
    keys_BN: Array,
    frames_BNFHWC: Array,
    own: Conditioning,
    shifted_BTHWD: Array | None = None,
) -> tuple[Array, Conditioning]:
    """Choose the frames that are denoised together, a window a chunk, each with a time of its own.

    Args:
      config: its `windows` is used.
      keys_BN: a key a chunk, for the position of its window.
      frames_BNFHWC: the chunks of each clip in [-1, 1].
      own: conditioning of the frames in their own chunks, folded: (B N, F, h, w, D).
      shifted_BTHWD: their conditioning in shifted windows, see `regen_windows.condition_shifted`.

    Returns:
      Frames (B, N, F, H, W, 3) of the windows, and their conditioning, folded likewise.
    """
    chunks, frames = frames_BNFHWC.shape[1:3]
    if config.windows == "chunk" or chunks == 1:
        return frames_BNFHWC, own

    def shift(keys_N, video_TX, own_TX, shifted_TX):
        keys_N = jax.vmap(lambda key: jax.random.fold_in(key, WINDOW))(keys_N)
        first_N = shifted_starts(keys_N, frames)
        at_NF = first_N[:, None] + jnp.arange(frames)[None]
        aligned = (first_N % frames == 0)[:, None, None, None, None]
        return video_TX[at_NF], jnp.where(aligned, own_TX[at_NF], shifted_TX[at_NF])

    added = own.added_BFHWD.reshape(-1, chunks * frames, *own.added_BFHWD.shape[2:])
    video = frames_BNFHWC.reshape(-1, chunks * frames, *frames_BNFHWC.shape[3:])
    video, added = jax.vmap(shift)(keys_BN, video, added, shifted_BTHWD)
    return video, Conditioning(_fold(added))


@dataclasses.dataclass(frozen=True, kw_only=True)
class REGENTask(EmbedderTask):
    """Train {"regen": ...}: encoder and decoder together."""

    config_class = REGENRun

    loss_config: REGENLossConfig

    def __post_init__(self):
        super().__post_init__()
        if self.loss_config.windows == "shifted" and self.model.config.conditioning == "in_context":
            raise UserError(
                "loss.windows='shifted' has frames of two chunks in a window, and with "
                "model.conditioning='in_context' latents do not show their chunk; choose "
                "loss.windows='chunk', or 'content_aware'"
            )

    @property
    def process(self) -> Process:
        """Diffusion process of the frames."""
        return self.loss_config.make_process()

    def check_mesh(self, mesh: Mapping[str, int], bucket: Bucket) -> None:
        """Check the decoder's heads and tokens; see `Task.check_mesh`."""
        config = self.model.config
        config.check_mesh(mesh, config.latent_shape(bucket.shape))

    def train_flops(self, video_shape: Shape) -> float:
        """Return the operations of encoding, expanding and denoising once, or twice with the
        consistency term; see `EmbedderTask.train_flops`."""
        loss = self.loss_config
        return regen_train_flops(
            self.model.config, video_shape, loss.windows, bool(loss.consistency)
        )

    def init(self, key: Array, arrays) -> Params:
        """Initialise parameters from a key; they do not depend on the batch."""
        del arrays
        c = self.model.config
        chunk = jnp.zeros((1, c.chunk_frames, 2 * c.space_factor, 2 * c.space_factor, 3))
        return {"regen": self.model.init(key, chunk, jnp.zeros(1))}

    def loss(
        self,
        params: Params,
        arrays: Arrays,
        keys_B: Array,
        step: Array | np.int32,
        frozen: Params = None,
    ) -> tuple[Array, Metrics]:
        """Compute the loss and metrics of a batch, the same at any step.

        The loss is a mean over samples, and over the frames of a clip.
        """
        del step
        video = to_unit_range(arrays["video"])
        terms, first = [], 0
        for frames_BNFHWC in cut_chunks(self.model.config, video):
            chunks = frames_BNFHWC.shape[1]
            numbers = first + jnp.arange(chunks)
            keys_BN = jax.vmap(
                lambda key, n=numbers: jax.vmap(lambda i: jax.random.fold_in(key, i))(n)
            )(keys_B)
            fraction = chunks * frames_BNFHWC.shape[2] / video.shape[1]
            terms.append(
                (fraction, self._chunks_loss(params["regen"], frames_BNFHWC, keys_BN, frozen))
            )
            first += chunks
        names = terms[0][1]
        metrics: dict[str, Any] = {
            name: sum(weight * term[name] for weight, term in terms) for name in names
        }
        return metrics.pop("loss"), metrics

    def _chunks_loss(
        self, regen: Params, frames_BNFHWC: Array, keys_BN: Array, frozen: Params
    ) -> dict[str, Array]:
        """Compute the loss of chunks of one length, and its terms as scalars."""
        c, process = self.loss_config, self.process
        posterior: Any = self.model.apply(regen, _fold(frames_BNFHWC), method="encode")
        z = posterior.sample(_stream(keys_BN, POSTERIOR)) if c.kl else posterior.mode()
        z = z.reshape(*frames_BNFHWC.shape[:2], *z.shape[1:])
        times_F = frame_times(self.model.config, frames_BNFHWC.shape[2])
        conditioning, shifted = condition_chunks(self.model, regen, z, times_F), None
        if c.windows == "shifted" and frames_BNFHWC.shape[1] > 1:
            shifted = condition_shifted(self.model, regen, z, conditioning.added_BFHWD)
        frames_BNFHWC, conditioning = choose_windows(
            c, keys_BN, frames_BNFHWC, conditioning, shifted
        )

        x0 = _fold(frames_BNFHWC)
        t_B = process.sample_times(_stream(keys_BN, TIME), c.time_distribution, c.time_shift)
        if c.one_step_fraction:
            t_B = jnp.where(
                jax.vmap(jax.random.uniform)(_stream(keys_BN, ONE_STEP)) < c.one_step_fraction,
                1.0,
                t_B,
            )
        eps = standard_normal(keys_BN, NOISE, x0.shape[1:])

        def predict(t_B):
            """Return the network's output, and x0 from it."""
            x_t = process.corrupt(x0, eps, t_B)
            time_B = process.timestep(t_B)
            output = self.model.apply(regen, x_t, time_B, conditioning, method="denoise")
            return output, process.convert(output, x_t, t_B, c.prediction, "x0")

        output, predicted = predict(t_B)
        losses = process.losses(output, x0, eps, t_B)
        loss_B = losses["loss"].mean(1) * self.time_weight(t_B)
        metrics = {
            "loss": loss_B.mean(),
            "mse": losses["mse"].mean(),
            "psnr_db": psnr_db(jnp.clip(predicted, -1.0, 1.0), x0),
        }
        if c.kl:
            metrics["kl"] = posterior.kl_values().mean()
            metrics["loss"] += c.kl * metrics["kl"]
        if c.motion:
            change = jnp.diff(predicted - x0, axis=1)
            metrics["motion"] = jnp.square(change).sum() / max(1, change.size)  # an image has none
            metrics["loss"] += c.motion * metrics["motion"]
        if c.gradient:
            metrics["gradient"] = gradient_error(predicted, x0)
            metrics["loss"] += c.gradient * metrics["gradient"]
        if c.lpips:
            # Far from data (eps at t = 1) a prediction is no picture: only what is within range is
            # compared.
            metrics["lpips"] = self.perceptual(frozen, jnp.clip(predicted, -1.0, 1.0), x0)
            metrics["loss"] += c.lpips * metrics["lpips"]
        if c.consistency:
            _, one_step = predict(jnp.ones_like(t_B))
            metrics["consistency"] = jnp.square(one_step - jax.lax.stop_gradient(predicted)).mean()
            metrics["psnr_one_step_db"] = psnr_db(jnp.clip(one_step, -1.0, 1.0), x0)
            metrics["loss"] += c.consistency * metrics["consistency"]
        return metrics

    def time_weight(self, t_B: Array) -> Array:
        """Weight of the squared error at each time (B,)."""
        c = self.loss_config
        if c.weighting == "uniform":
            return jnp.ones_like(t_B)
        # An error of x0 at the same x_t is sigma / (alpha + sigma) times that of the velocity.
        alpha, sigma = self.process.schedule(t_B)
        return jnp.minimum(jnp.square((alpha + sigma) / jnp.maximum(sigma, 1e-6)), c.weight_limit)


def _fold(x_BN: Array) -> Array:
    """(B, N, ...) -> (B N, ...)."""
    return x_BN.reshape(-1, *x_BN.shape[2:])


def _stream(keys_BN: Array, number: int) -> Array:
    """A key for each chunk, (B N,)."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys_BN.reshape(-1))


def standard_normal(keys_BN: Array, number: int, shape: tuple[int, ...]) -> Array:
    """Standard normal (B N, *shape)."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(_stream(keys_BN, number))
