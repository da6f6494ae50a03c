"""LoRA: chosen by rules, nothing at first, then W + alpha / rank A B; for stacked, plain and
convolution kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from xgen_jax.errors import UserError
from xgen_jax.models.lora import adapter_shapes, init_adapter, merge
from xgen_jax.models.lora_config import BLOCKS, LoRAConfig
from xgen_jax.models.vdit import VDiT, abstract_variables, unstack_layers
from xgen_jax.models.vdit_config import VDiTConfig
from xgen_jax.parallel.mesh import MeshConfig, make_mesh
from xgen_jax.parallel.sharding import path_name, tree_shardings

CONFIG = VDiTConfig(width=16, depth=2, heads=2, text_width=8, remat="none", text_norm=True)
CHANNELS = 4
INPUTS = (
    np.random.default_rng(0).standard_normal((2, 3, 4, 6, CHANNELS), np.float32),
    np.array([100.0, 800.0], np.float32),
    np.random.default_rng(1).standard_normal((2, 5, 8), np.float32),
)


def perturbed(tree, seed=0, scale=0.2):
    """Off the zeros of the initialisation, which would hide what an adapter does."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: np.float32(scale) * rng.standard_normal(x.shape).astype(np.float32), tree
    )


@pytest.fixture(scope="module")
def base():
    return {"vdit": perturbed(abstract_variables(CONFIG, CHANNELS))}


@pytest.fixture(scope="module")
def apply():
    return jax.jit(VDiT(CONFIG).apply)


def test_default_rules_choose_attention_and_mlp_of_all_blocks(base):
    shapes = adapter_shapes(LoRAConfig(rank=3), base)
    assert (
        len(shapes) == 9
    )  # of attention in space, time: qkv, proj; text: q, kv, proj; mlp: fc1, fc2
    assert all(
        name.startswith("vdit/params/blocks/block/") and name.endswith("/kernel") for name in shapes
    )
    qkv = shapes["vdit/params/blocks/block/attention_space/qkv/kernel"]
    assert (qkv["a"].shape, qkv["b"].shape) == ((2, 16, 3), (2, 3, 48))  # layers lead
    apart = {
        "vdit": abstract_variables(VDiTConfig(**{**vars(CONFIG), "scan_layers": False}), CHANNELS)
    }
    assert len(adapter_shapes(LoRAConfig(rank=3), apart)) == 2 * 9


@pytest.mark.slow
def test_a_new_adapter_leaves_every_bit_of_the_output(base, apply):
    adapter = init_adapter(LoRAConfig(rank=3), base, jax.random.key(0))
    moved = merge(base, adapter, 1.0)
    jax.tree.map(np.testing.assert_array_equal, moved, base)
    np.testing.assert_array_equal(apply(moved["vdit"], *INPUTS), apply(base["vdit"], *INPUTS))
    for pair in adapter.values():
        assert np.std(pair["a"]) * pair["a"].shape[-2] ** 0.5 == pytest.approx(
            1, abs=0.35
        ) and not np.any(pair["b"])


def test_merged_is_the_sum_of_both_paths():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((7, 12), np.float32)
    layer = nn.Dense(9)
    params = perturbed(jax.eval_shape(layer.init, jax.random.key(0), x))
    config = LoRAConfig(rank=4, alpha=6.0, rules=("kernel",))
    adapter = perturbed(adapter_shapes(config, params))
    a, b = adapter["params/kernel"]["a"], adapter["params/kernel"]["b"]
    wanted = layer.apply(params, x) + 6.0 / 4 * ((x @ a) @ b)
    moved = merge(params, adapter, config.scale)
    np.testing.assert_allclose(layer.apply(moved, x), wanted, atol=1e-6)
    assert moved["params"]["bias"] is params["params"]["bias"]
    back = merge(moved, adapter, -config.scale)
    np.testing.assert_allclose(back["params"]["kernel"], params["params"]["kernel"], atol=1e-6)


def test_a_convolution_is_one_matrix_of_all_its_taps():
    x = np.random.default_rng(0).standard_normal((2, 11, 6), np.float32)
    layer = nn.Conv(8, (5,))
    params = perturbed(jax.eval_shape(layer.init, jax.random.key(0), x))
    config = LoRAConfig(rank=8, alpha=8.0, rules=("kernel",))
    adapter = perturbed(adapter_shapes(config, params))
    a, b = adapter["params/kernel"]["a"], adapter["params/kernel"]["b"]
    assert (a.shape, b.shape) == ((30, 8), (8, 8))
    thin = nn.Conv(8, (5,), use_bias=False).apply({"params": {"kernel": a.reshape(5, 6, 8)}}, x) @ b
    moved = merge(params, adapter, config.scale)
    np.testing.assert_allclose(layer.apply(moved, x), layer.apply(params, x) + thin, atol=1e-5)


@pytest.mark.slow
def test_scanned_layers_move_as_separate_ones_do(base, apply):
    config = LoRAConfig(rank=3)
    adapter = perturbed(adapter_shapes(config, base), seed=1)
    apart = {
        name.replace("/blocks/", f"/blocks_{layer}/"): {part: x[layer] for part, x in pair.items()}
        for name, pair in adapter.items()
        for layer in range(CONFIG.depth)
    }
    unstacked = {"vdit": unstack_layers(base["vdit"], CONFIG.depth)}
    assert jax.tree.map(np.shape, apart) == jax.tree.map(
        lambda s: s.shape, adapter_shapes(config, unstacked)
    )
    moved = merge(base, adapter, 0.7)["vdit"]
    one_by_one = merge(unstacked, apart, 0.7)["vdit"]
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
        unstack_layers(moved, CONFIG.depth),
        one_by_one,
    )
    changed = np.abs(apply(moved, *INPUTS) - apply(base["vdit"], *INPUTS)).max()
    assert changed > 1e-2
    loop = VDiT(VDiTConfig(**{**vars(CONFIG), "scan_layers": False}))
    np.testing.assert_allclose(
        jax.jit(loop.apply)(one_by_one, *INPUTS), apply(moved, *INPUTS), atol=2e-5
    )


@pytest.mark.slow
def test_gradients_reach_b_alone_at_first_and_then_both(base):
    config, model = LoRAConfig(rank=3, rules=(r"mlp/fc1",)), VDiT(CONFIG)

    @jax.jit
    def gradients(adapter):
        def loss(adapter, frozen):
            return jnp.square(
                model.apply(merge(frozen, adapter, config.scale)["vdit"], *INPUTS)
            ).mean()

        return jax.grad(loss)(adapter, base)

    adapter = init_adapter(config, base, jax.random.key(0))
    (pair,) = gradients(adapter).values()
    assert not np.any(pair["a"]) and np.any(pair["b"])
    (pair,) = gradients(perturbed(adapter)).values()
    assert np.any(pair["a"]) and np.any(pair["b"])


def test_a_and_b_lie_on_the_mesh_as_the_sides_of_their_kernel(base):
    wide = {
        "vdit": abstract_variables(
            VDiTConfig(width=1024, depth=2, heads=8, text_width=64), CHANNELS
        )
    }
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shapes = adapter_shapes(LoRAConfig(rank=16), wide)
    of_kernels = {
        path_name(path): sharding.spec
        for path, sharding in jax.tree_util.tree_leaves_with_path(tree_shardings(wide, mesh))
    }
    for name, pair in tree_shardings(shapes, mesh).items():
        layers, rows, columns = of_kernels[name]
        assert {rows, columns} == {"fsdp", "tensor"} and layers is None
        assert (tuple(pair["a"].spec), tuple(pair["b"].spec)) == (
            (None, rows, None),
            (None, None, columns),
        ), name

    # Sums and outputs are those of one device.
    adapter = perturbed(adapter_shapes(LoRAConfig(rank=3), base), seed=1)
    wanted = merge(base, adapter, 0.5)
    on_mesh = jax.jit(merge)(
        *(jax.device_put(t, tree_shardings(t, mesh)) for t in (base, adapter)), 0.5
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), on_mesh, wanted)


@pytest.mark.parametrize(
    "changes,message",
    [
        (
            {"rules": (*BLOCKS, "vdit/params/blocks/block/mlp/fc3/kernel")},
            r"none of \d+ kernels; the nearest: .*mlp/fc",
        ),
        ({"rules": ("bias$",)}, "'bias[$]', which finds none of"),
        (
            {"rank": 17},
            "lora.rank=17 is more than vdit/params/blocks/.* can have: choose 16 or less",
        ),
        (
            {"rank": 9, "rules": ("y_embedder1",)},
            "y_embedder1/kernel of 8x16 can have: choose 8 or less",
        ),
    ],
)
def test_rules_and_ranks_that_do_not_fit_are_refused(base, changes, message):
    with pytest.raises(UserError, match=message):
        adapter_shapes(LoRAConfig(**{"rank": 2} | changes), base)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"rank": 0}, "lora.rank must be above 0"),
        ({"alpha": -1.0}, "lora.alpha must be above 0"),
        ({"alpha": float("nan")}, "lora.alpha must be above 0"),
        ({"rules": ()}, "lora.rules is empty"),
        ({"rules": ("mlp/(fc1",)}, "is no regular expression"),
    ],
)
def test_values_that_cannot_be_right_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        LoRAConfig(**changes)


def test_an_adapter_of_other_kernels_is_a_defect(base):
    with pytest.raises(KeyError, match="no such kernels"):
        merge(
            base,
            {"vdit/params/nothing/kernel": {"a": np.zeros((16, 2)), "b": np.zeros((2, 16))}},
            1.0,
        )
