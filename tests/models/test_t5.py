"""T5's encoder: the reference's values, the published parameter count, nothing behind the mask."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.models.t5 import PRESETS, T5Config, T5Encoder, position_buckets
from xgen_jax.parallel import sharding
from xgen_jax.parallel.mesh import MeshConfig, make_mesh

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
ABOUT = json.loads((GOLDENS / "t5_encoder.json").read_text())
SIZES = {"vocabulary": 64, "width": 32, "hidden": 64, "depth": 2, "heads": 4, "head_dim": 8}


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDENS / "t5_encoder.npz"))


def config(kind):
    return T5Config(**SIZES, bias_per_block=kind == "umt5")


def parameters(golden, kind):
    """The reference's weights in our tree, put there by hand: the loader has its own test."""

    def tensor(name):
        return golden[f"params/{kind}/{name}.weight"]

    def layers(*names):
        stacked = [[tensor(f"encoder.block.{i}.{name}").T for name in names] for i in range(2)]
        return np.stack([np.concatenate(parts, axis=-1) for parts in stacked])

    attention, mlp = "layer.0.SelfAttention", "layer.1.DenseReluDense"
    blocks = {
        "qkv": {"kernel": layers(*(f"{attention}.{x}" for x in "qkv"))},
        "proj": {"kernel": layers(f"{attention}.o")},
        "fc1": {"kernel": layers(f"{mlp}.wi_0", f"{mlp}.wi_1")},
        "fc2": {"kernel": layers(f"{mlp}.wo")},
        "norm_attention": {"scale": layers("layer.0.layer_norm")},
        "norm_mlp": {"scale": layers("layer.1.layer_norm")},
    }
    tree = {
        "embedding": tensor("shared"),
        "blocks": blocks,
        "norm_out": {"scale": tensor("encoder.final_layer_norm")},
    }
    tables = [
        golden[name]
        for i in range(2)
        if (name := f"params/{kind}/encoder.block.{i}.{attention}.relative_attention_bias.weight")
        in golden
    ]
    (blocks if kind == "umt5" else tree)["relative_bias"] = {
        "embedding": np.stack(tables) if kind == "umt5" else tables[0]
    }
    return {"params": tree}


@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_the_encoder_is_the_references(golden, kind):
    params, apply = parameters(golden, kind), jax.jit(T5Encoder(config(kind)).apply)
    for batch in ("a", "long", "nomask"):
        got = apply(
            params, golden[f"in/{batch}/input_ids"], golden.get(f"in/{batch}/attention_mask")
        )
        name = f"{kind}/{batch}/last_hidden_state"
        np.testing.assert_allclose(got, golden[f"out/{name}"], rtol=0, atol=ABOUT["atol"][name])


@pytest.mark.parametrize("kind", ["t5", "umt5"])
def test_the_states_between_blocks_are_the_references(golden, kind):
    params, encoder = parameters(golden, kind), T5Encoder(config(kind))
    ids, mask = golden["in/a/input_ids"], golden["in/a/attention_mask"]
    apply = jax.jit(encoder.apply, static_argnums=3)
    out, states = apply(params, ids, mask, True)
    np.testing.assert_array_equal(out, apply(params, ids, mask, False))
    assert states.shape == (3, *out.shape)
    for number, name in enumerate(("hidden_0", "hidden_1", "last_hidden_state")):
        name = f"{kind}/a/{name}"
        np.testing.assert_allclose(
            states[number], golden[f"out/{name}"], rtol=0, atol=ABOUT["atol"][name]
        )


def test_buckets_are_the_references(golden):
    for kind in ("t5", "umt5"):
        got = position_buckets(np.arange(-140, 141))
        np.testing.assert_array_equal(got, golden[f"out/{kind}/buckets_bidirectional"])
        table = golden[
            f"params/{kind}/encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        ]
        bias = table[position_buckets(np.arange(20)[None, :] - np.arange(12)[:, None])]
        np.testing.assert_array_equal(
            np.moveaxis(bias, -1, 0)[None], golden[f"out/{kind}/position_bias_block0_q12_k20"]
        )


def test_bfloat16_is_near_float32(golden):
    params = parameters(golden, "t5")  # exact in bfloat16
    ids, mask = golden["in/a/input_ids"], golden["in/a/attention_mask"]
    halved = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    got = jax.jit(T5Encoder(config("t5"), jnp.bfloat16).apply)(halved, ids, mask)
    wanted = golden["out/t5/a/last_hidden_state"]
    assert got.dtype == jnp.bfloat16
    error = np.abs(np.asarray(got, np.float32) - wanted)[mask == 1]
    # The error of each rounding is 2^-9; some dozen of them are on the way.
    assert 0 < error.max() < 0.08 and error.mean() < 0.01


def test_what_lies_behind_the_mask_does_not_matter(golden):
    params, apply = parameters(golden, "t5"), jax.jit(T5Encoder(config("t5")).apply)
    ids, mask = golden["in/a/input_ids"], golden["in/a/attention_mask"].astype(bool)
    one, other = apply(params, ids, mask), apply(params, np.where(mask, ids, 9), mask)
    np.testing.assert_allclose(other[mask], one[mask], atol=1e-6)
    assert np.abs(one - apply(params, np.where(ids == 1, 9, ids), mask))[mask].max() > 1e-2


@pytest.mark.parametrize(
    ("name", "parameters"), [("xxl", 4_762_310_656), ("umt5-xxl", 5_680_910_336)]
)
def test_the_presets_have_the_published_parameters(name, parameters):
    c = PRESETS[name]
    abstract = jax.eval_shape(
        T5Encoder(c).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8), jnp.int32)
    )
    inner = c.heads * c.head_dim
    tables = (c.depth if c.bias_per_block else 1) * c.buckets * c.heads
    block = 4 * c.width * inner + 3 * c.width * c.hidden + 2 * c.width
    assert c.vocabulary * c.width + c.depth * block + c.width + tables == parameters
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == parameters


def test_the_xxl_encoder_is_sharded_by_the_path_rules():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    abstract = jax.eval_shape(
        T5Encoder(PRESETS["xxl"]).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8), jnp.int32)
    )
    held = 0
    for leaf, spec in zip(
        jax.tree.leaves(abstract), jax.tree.leaves(sharding.tree_shardings(abstract, mesh))
    ):
        held += np.prod(spec.shard_shape(leaf.shape))
    # All but the embedding over eight devices, that over four, norms and bias on each.
    blocks, embedding = 24 * (4 * 4096**2 + 3 * 4096 * 10240), 32128 * 4096
    small = 4_762_310_656 - blocks - embedding
    assert blocks / 8 + embedding / 4 <= held <= blocks / 8 + embedding / 4 + small


def test_eight_devices_give_what_one_does(golden, monkeypatch):
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 1)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params, apply = parameters(golden, "t5"), T5Encoder(config("t5")).apply
    ids = np.concatenate([golden["in/a/input_ids"], golden["in/a/input_ids"][:1]])
    shardings = sharding.tree_shardings(params, mesh)
    with sharding.on_mesh(mesh):
        got = jax.jit(apply)(
            jax.device_put(params, shardings), jax.device_put(ids, sharding.batch_sharding(mesh))
        )
    np.testing.assert_allclose(got, jax.jit(apply)(params, ids), atol=1e-5)
