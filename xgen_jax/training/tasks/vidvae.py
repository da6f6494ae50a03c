"""VidVAE's task: reconstruction + KL, with an optional perceptual and adversarial term.

    loss = l1 |x - y| + l2 (x - y)^2 + gradient |grad (x - y)| + chroma (Cb, Cr of x - y)^2
           + lpips LPIPS(x, y) + kl KL(q(z|x) || N(0, 1)) + adversarial (see `adversarial`)

The paper (arXiv 2408.12590, section 3.1) prints neither terms nor weights; these are the terms of
Open-Sora-Plan v1.1, which it builds on. The gradient and chroma terms (`gradient_error` and
`chroma_error` in `embedder`) are ours: the square of an error hardly counts where it is small, and
leaves grain on flat ground; and most of it is luma, so that narrow latents drop colours.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xgen_jax.config.losses import VidVAELossConfig
from xgen_jax.config.optimizer import OptimizerConfig
from xgen_jax.config.runs import VidVAERun
from xgen_jax.data.pixels import to_unit_range
from xgen_jax.models.discriminator import Discriminator
from xgen_jax.models.flops import adversarial_loss_flops, vidvae_train_flops
from xgen_jax.training.optimizer import make_optimizer, optimize_apart
from xgen_jax.training.tasks.adversarial import adversarial_terms
from xgen_jax.training.tasks.base import Arrays, Metrics
from xgen_jax.training.tasks.embedder import (
    EmbedderTask,
    chroma_error,
    gradient_error,
    psnr_db,
)
from xgen_jax.typing import Array, Params, Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class VidVAETask(EmbedderTask):
    """Train {"vidvae": ...}, and {"discriminator": ...} if the adversarial term is on."""

    config_class = VidVAERun

    loss_config: VidVAELossConfig

    @functools.cached_property
    def discriminator(self) -> Discriminator | None:
        """Discriminator in the model's compute dtype; None if the adversarial term is off."""
        config = self.loss_config.adversarial
        return Discriminator(config.discriminator, self.model.dtype) if config.weight else None

    @property
    def last_convolution(self) -> str:
        """Name of the decoder's last convolution in its head."""
        return "pixels" if self.model.config.head_channels else "conv_out"

    def train_flops(self, video_shape: Shape) -> float:
        """Return the operations of both groups; see `EmbedderTask.train_flops`."""
        flops = vidvae_train_flops(self.model.config, video_shape)
        if self.discriminator is not None:
            flops += adversarial_loss_flops(self.discriminator.config, video_shape)
        return flops

    def init(self, key: Array, arrays) -> Params:
        """Initialise the parameters of each group from one key."""
        video = to_unit_range(arrays["video"])
        params = {"vidvae": self.model.init(key, video)}
        if self.discriminator is not None:
            params["discriminator"] = self.discriminator.init(jax.random.fold_in(key, 1), video)
        return params

    def ema_params(self, params: Params) -> Params:
        """Select the autoencoder: the EMA of a discriminator would be of no use."""
        return {"vidvae": params["vidvae"]}

    def optimizer(self, config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
        """Make an optimiser for each group; the discriminator's begins at its `start_step`."""
        groups = {"vidvae": make_optimizer(config, steps)}
        if self.discriminator is not None:
            c = self.loss_config.adversarial
            own = make_optimizer(c.optimizer, max(1, steps - c.start_step))
            groups["discriminator"] = optax.conditionally_mask(
                own, lambda step, **_: jnp.greater_equal(step, c.start_step)
            )
        return optimize_apart(groups)

    def loss(
        self,
        params: Params,
        arrays: Arrays,
        keys_B: Array,
        step: Array | np.int32,
        frozen: Params = None,
    ) -> tuple[Array, Metrics]:
        """Compute the loss, the sum of both groups' losses, and metrics of a batch.

        The loss of a group has no gradient for the other's parameters. With the adversarial term,
        <d (rec + w gan) / dy, y> + KL is differentiated with the first factor held fixed: the
        gradient of the loss as written, for one backward pass through the decoder.
        """
        c, vidvae, video = self.loss_config, params["vidvae"], to_unit_range(arrays["video"])
        posterior, _ = self.model.apply(vidvae, video, method="encode")
        features, _ = self.model.apply(vidvae, posterior.sample(keys_B), method="decode_features")

        def to_pixels(vidvae, features):
            return self.model.apply(vidvae, features, method="decode_pixels")[0]

        reconstruction = to_pixels(vidvae, features)
        kl = posterior.kl_values().mean()
        terms = functools.partial(self._reconstruction_loss, video=video, frozen=frozen)
        if self.discriminator is None:
            loss, metrics = terms(reconstruction)
            return loss + c.kl * kl, metrics | {"kl": kl}

        y = jax.lax.stop_gradient(reconstruction)
        (loss, metrics), cotangent = jax.value_and_grad(terms, has_aux=True)(y)
        fixed, fixed_features = jax.lax.stop_gradient((vidvae, features))
        kernel = fixed["params"]["head"][self.last_convolution]["kernel"]
        _, to_kernel = jax.vjp(
            lambda kernel: to_pixels(
                _with_kernel(fixed, self.last_convolution, kernel), fixed_features
            ),
            kernel,
        )
        disc_loss, gan_cotangent, gan_metrics = adversarial_terms(
            c.adversarial,
            self.discriminator,
            params["discriminator"],
            video,
            y,
            cotangent,
            lambda cotangent: to_kernel(cotangent)[0],
            step,
        )
        surrogate = jnp.vdot(jax.lax.stop_gradient(cotangent + gan_cotangent), reconstruction)
        generator_loss = loss + gan_metrics["gan_weight"] * gan_metrics["gan"] + c.kl * kl
        # The value is the loss's, the gradient the surrogate's.
        moving = surrogate + c.kl * kl + disc_loss
        loss = jax.lax.stop_gradient(generator_loss + disc_loss) + (
            moving - jax.lax.stop_gradient(moving)
        )
        return loss, metrics | {"kl": kl} | gan_metrics

    def _reconstruction_loss(self, reconstruction: Array, *, video: Array, frozen: Params):
        """Weighted sum of the terms that compare clips, and metrics."""
        c, error = self.loss_config, reconstruction - video
        l1, l2 = jnp.abs(error).mean(), jnp.square(error).mean()
        loss = c.l1 * l1 + c.l2 * l2
        metrics = {"l1": l1, "l2": l2, "psnr_db": psnr_db(reconstruction, video)}
        if c.gradient:
            metrics["gradient"] = gradient_error(reconstruction, video)
            loss = loss + c.gradient * metrics["gradient"]
        if c.chroma:
            metrics["chroma"] = chroma_error(reconstruction, video)
            loss = loss + c.chroma * metrics["chroma"]
        if c.lpips:
            metrics["lpips"] = self.perceptual(frozen, reconstruction, video)
            loss = loss + c.lpips * metrics["lpips"]
        return loss, metrics


def _with_kernel(vidvae: Params, name: str, kernel: Array) -> Params:
    """Return the autoencoder's variables with another kernel in a convolution of the head."""
    head = vidvae["params"]["head"]
    head = {**head, name: {**head[name], "kernel": kernel}}
    return {**vidvae, "params": {**vidvae["params"], "head": head}}
