"""The discriminator: the reference's size, one-frame clips, samples apart, what a patch sees, its
clips on several devices."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.models.discriminator import Discriminator
from xgen_jax.models.vidvae_config import DiscriminatorConfig

NARROW = DiscriminatorConfig(width=4)


def build(shape, dtype=jnp.float32):
    model = Discriminator(NARROW, dtype)
    video = jax.random.normal(jax.random.key(0), shape)
    return model, jax.jit(model.init)(jax.random.key(1), video), video


def test_it_has_the_references_parameters_layer_by_layer():
    video = jax.ShapeDtypeStruct((1, 17, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(Discriminator(DiscriminatorConfig()).init, jax.random.key(0), video)[
        "params"
    ]
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(layer)) for name, layer in params.items()
    }
    assert sizes == {
        "conv0": 5_248,
        "conv1": 221_184,
        "norm1": 256,
        "conv2": 884_736,
        "norm2": 512,
        "conv3": 3_538_944,
        "norm3": 1_024,
        "logits": 13_825,
    }
    assert sum(sizes.values()) == 4_665_729


@pytest.mark.parametrize(
    "shape,patches",
    [((1, 768, 768), (1, 96, 96)), ((17, 512, 512), (5, 64, 64)), ((65, 256, 256), (17, 32, 32))],
)
def test_a_logit_stands_for_four_frames_of_eight_by_eight_pixels(shape, patches):
    model = Discriminator(DiscriminatorConfig())

    def both(key, video):
        return model.init_with_output(key, video)[0]

    logits = jax.eval_shape(
        both, jax.random.key(0), jax.ShapeDtypeStruct((2, *shape, 3), jnp.float32)
    )
    assert logits.shape == (2, *patches)


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 5])
def test_a_samples_logits_do_not_depend_on_the_batch(frames):
    model, params, video = build((3, frames, 16, 16, 3))
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply(params, video)[1:2], apply(params, video[1:2]), atol=1e-6)


@pytest.mark.slow
def test_every_frame_and_every_parameter_counts():
    model, params, video = build((1, 9, 16, 16, 3))

    @jax.jit
    def gradients(params, video):
        return jax.grad(lambda p, v: jnp.square(model.apply(p, v)).sum(), argnums=(0, 1))(
            params, video
        )

    by_params, by_video = gradients(params, video)
    assert np.abs(by_video).sum((0, 2, 3, 4)).min() > 0
    assert all(np.any(leaf) for leaf in jax.tree.leaves(by_params))


def test_logits_are_float32_under_half_precision_and_near_those_of_full():
    model, params, video = build((1, 5, 16, 16, 3))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    half = jax.jit(Discriminator(NARROW, jnp.bfloat16).apply)(params, video)
    assert half.dtype == jnp.float32
    full = jax.jit(model.apply)(params, video)
    assert np.abs(half - full).max() < 0.05 * np.abs(full).max()


def test_a_size_that_is_none_is_refused():
    with pytest.raises(UserError, match="the discriminator's width must be 1 or more, not 0"):
        DiscriminatorConfig(width=0)


ON_EIGHT_GPUS = """
import json, re

import jax
import jax.numpy as jnp

from xgen_jax.config.losses import AdversarialConfig
from xgen_jax.models import discriminator
from xgen_jax.models.vidvae_config import DiscriminatorConfig
from xgen_jax.parallel.devices import named_devices
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.sharding import batch_sharding, on_mesh, replicated
from xgen_jax.training.state import place
from xgen_jax.training.tasks.adversarial import adversarial_terms

mesh = make_mesh(MeshConfig(fsdp=-1), named_devices("gpu:h100:8"))
config = AdversarialConfig(start_step=3, discriminator=DiscriminatorConfig(width=32))
model = discriminator.Discriminator(config.discriminator, jnp.bfloat16)
video = jax.ShapeDtypeStruct((8, 5, 32, 32, 3), jnp.float32, sharding=batch_sharding(mesh))
step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))


def clips():  # how many arrays of features of all clips a device has
    def loss(params, video, step):
        value, cotangent, _ = adversarial_terms(
            config, model, params, video, video, video, lambda x: x, step
        )
        return value, cotangent

    with on_mesh(mesh):
        shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), video)
        program = jax.jit(jax.value_and_grad(loss, has_aux=True))
        text = program.lower(place(shapes, mesh), video, step).compile().as_text()
    return len(re.findall(r"(?:f32|bf16)\\[8,\\d+,(?:16,16,32|8,8,64)\\]", text))


ours = clips()
discriminator.constrain = lambda x, names: x
print(json.dumps([ours, clips()]))
"""


@pytest.mark.slow
def test_in_a_branch_of_a_step_each_gpu_works_on_its_own_clips():
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        pytest.skip("the compiler for GPUs, jax_cuda13_plugin, is not installed")
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_GPUS],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ours, unconstrained = json.loads(done.stdout.splitlines()[-1])
    assert ours == 0
    assert unconstrained, "the search finds nothing where it should"
