"""A stack is one function, scanned or looped, whatever is computed again; what is not, is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from xgen_jax.errors import UserError
from xgen_jax.nn.choices import REMAT
from xgen_jax.nn.embeddings import join_scope
from xgen_jax.nn.stack import Stack


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x, shift, mask):
        assert mask is None
        return x + jnp.tanh(nn.Dense(self.width, name="dense")(x) + shift)


class Network(nn.Module):
    scan: bool = True
    remat: str = "none"
    block_name: str | None = "block"
    collect: bool = False

    @nn.compact
    def __call__(self, x, shift):
        stack = Stack(Block, (4,), 3, self.scan, self.remat, self.block_name, self.collect)
        return join_scope(self, stack)(x, shift, None)


X, SHIFT = jnp.arange(8.0).reshape(2, 4) / 8, jnp.full((1, 4), 0.1)


def value_and_gradient(network, params):
    return jax.value_and_grad(lambda p: jnp.square(network.apply(p, X, SHIFT)).mean())(params)


@pytest.mark.parametrize("remat", REMAT)
def test_scanned_and_looped_blocks_agree_in_value_and_gradient(remat):
    params = Network().init(jax.random.key(0), X, SHIFT)
    kernel = params["params"]["blocks"]["block"]["dense"]["kernel"]
    assert kernel.shape == (3, 4, 4) and (kernel[0] != kernel[1]).any()
    wanted, gradient = value_and_gradient(Network(), params)

    def unstacked(tree):
        blocks = tree["params"]["blocks"]
        return {f"blocks_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(3)}

    looped = Network(scan=False, remat=remat)
    value, by_layer = value_and_gradient(looped, {"params": unstacked(params)})
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        by_layer["params"],
        unstacked(gradient),
    )
    scanned = value_and_gradient(Network(remat=remat), params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), scanned, (wanted, gradient)
    )


def test_a_block_without_a_name_keeps_its_parameters_in_the_stack():
    params = Network(block_name=None).init(jax.random.key(0), X, SHIFT)
    assert set(params["params"]["blocks"]) == {"dense"}


@pytest.mark.parametrize("remat", REMAT)
def test_the_outputs_of_blocks_are_collected_without_changing_the_last(remat):
    params = Network().init(jax.random.key(0), X, SHIFT)
    blocks = params["params"]["blocks"]
    looped = {f"blocks_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(3)}
    wanted, x = [], X
    for i in range(3):
        x = Block(4).apply({"params": looped[f"blocks_{i}"]["block"]}, x, SHIFT, None)
        wanted.append(x)
    for scan, tree in ((True, params), (False, {"params": looped})):
        plain, full = (Network(scan=scan, remat=remat, collect=flag) for flag in (False, True))
        out, outputs = full.apply(tree, X, SHIFT)
        np.testing.assert_array_equal(out, plain.apply(tree, X, SHIFT))
        np.testing.assert_allclose(outputs, jnp.stack(wanted), atol=1e-6)


def lowered(platform, **options):
    """The gradient's program for a platform, as text."""
    network = Network(**options)
    params = network.init(jax.random.key(0), X, SHIFT)
    gradient = jax.jit(jax.grad(lambda p: jnp.square(network.apply(p, X, SHIFT)).mean()))
    return gradient.trace(params).lower(lowering_platforms=(platform,)).as_text()


def test_with_dots_no_product_is_made_again():
    products = {
        remat: lowered("cpu", scan=False, remat=remat).count("dot_general") for remat in REMAT
    }
    assert products["none"] == products["dots"]
    assert products["full"] == products["offload"] == products["none"] + 3  # one a block


@pytest.mark.parametrize("scan,blocks", [(True, 1), (False, 3)])
@pytest.mark.parametrize("platform", ["cuda", "tpu", "cpu"])
def test_with_offload_the_blocks_inputs_go_to_the_host_and_back(platform, scan, blocks):
    text = lowered(platform, scan=scan, remat="offload")
    placed = '_xla_buffer_placement = "{}"'
    there, back = (text.count(placed.format(to)) for to in ("pinned_host", "device"))
    # A CPU's memory is the host's.
    assert (there, back) == ((0, 0) if platform == "cpu" else (blocks, blocks))
    assert "_xla_buffer_placement" not in lowered(platform, scan=scan, remat="full")


def test_an_unknown_way_is_refused_with_the_known_ones():
    with pytest.raises(
        UserError, match="'some' is not known; choose one of none, dots, qkv, attention, full"
    ):
        Network(remat="some").init(jax.random.key(0), X, SHIFT)
