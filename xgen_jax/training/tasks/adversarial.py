"""The adversarial part of a reconstruction loss: hinge losses, adaptive weight, R1.

    discriminator   E[max(0, 1 - D(x))] + E[max(0, 1 + D(y))] + r1/2 R1
    generator       w * -E[D(y)],   w = weight * clip(|dL_rec/dk| / (|dL_gan/dk| + 1e-4), 0, clamp)

for clips x and reconstructions y, with k the kernel of the last convolution (hinge: arXiv
1705.02894, section 3.2; adaptive weight of VQGAN: arXiv 2012.09841, equation 7). The gradient
reaches the generator as d w L_gan / dy, so that one backward pass through it serves all its losses.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xgen_jax.config.losses import AdversarialConfig
from xgen_jax.models.discriminator import Discriminator
from xgen_jax.typing import Array, Params


def hinge_discriminator(real: Array, fake: Array) -> Array:
    """Compute the discriminator's loss from logits of real clips and reconstructions, any shape.

    It is 2 for logits of 0.
    """
    return jax.nn.relu(1.0 - real).mean() + jax.nn.relu(1.0 + fake).mean()


def hinge_generator(fake: Array) -> Array:
    """Compute the generator's loss from logits of reconstructions, any shape."""
    return -fake.mean()


def r1_penalty(discriminate: Callable[[Array], Array], video_BTHWC: Array) -> Array:
    """Compute the mean squared gradient of each clip's summed logits with respect to its values."""
    return jnp.square(jax.grad(lambda video: discriminate(video).sum())(video_BTHWC)).mean()


def adaptive_ratio(reconstruction_grad: Array, adversarial_grad: Array, clamp: float) -> Array:
    """Compute |reconstruction gradient| / |adversarial gradient|, at most `clamp`: a scalar."""
    ratio = jnp.linalg.norm(reconstruction_grad.ravel()) / (
        jnp.linalg.norm(adversarial_grad.ravel()) + 1e-4
    )
    return jnp.minimum(ratio, clamp)


def adversarial_terms(
    config: AdversarialConfig,
    model: Discriminator,
    params: Params,
    video: Array,
    reconstruction: Array,
    reconstruction_cotangent: Array,
    to_kernel: Callable[[Array], Array],
    step: Array | np.int32,
) -> tuple[Array, Array, dict[str, Array]]:
    """Compute the discriminator's loss, and the gradient that it gives a reconstruction.

    Args:
      params: the discriminator's; results can be differentiated by this argument only.
      video, reconstruction: (B, T, H, W, 3).
      reconstruction_cotangent: gradient of the reconstruction losses with respect to the
        reconstruction.
      to_kernel: (gradient with respect to the reconstruction) -> that of the kernel of the last
        convolution.
      step: updates made; before `start_step` all results are 0, and nothing is computed.

    Returns:
      The discriminator's loss; the gradient of the generator's weighted loss with respect to the
      reconstruction; and metrics, `gan` (the generator's loss before its weight) and `gan_weight`
      among them.
    """
    video, reconstruction, reconstruction_cotangent = jax.lax.stop_gradient(
        (video, reconstruction, reconstruction_cotangent)
    )

    def logits(params, video_BTHWC) -> Any:
        return model.apply(params, video_BTHWC)

    def terms(params):
        frozen = jax.lax.stop_gradient(params)
        gan, cotangent = jax.value_and_grad(lambda y: hinge_generator(logits(frozen, y)))(
            reconstruction
        )
        ratio = jnp.ones(())
        if config.adaptive:
            ratio = adaptive_ratio(
                to_kernel(reconstruction_cotangent), to_kernel(cotangent), config.clamp
            )
        real, fake = logits(params, video), logits(params, reconstruction)
        loss = hinge_discriminator(real, fake)
        metrics = {
            "gan": gan,
            "gan_weight": config.weight * ratio,
            "logits_real": real.mean(),
            "logits_fake": -gan,
        }
        if config.r1:
            r1 = r1_penalty(lambda x: logits(params, x), video)
            loss, metrics["r1"] = loss + 0.5 * config.r1 * r1, r1
        metrics["disc_loss"] = loss
        return loss, config.weight * ratio * cotangent, jax.lax.stop_gradient(metrics)

    if not config.start_step:
        return terms(params)

    def nothing(params):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(terms, params))

    return jax.lax.cond(step >= config.start_step, terms, nothing, params)
