"""VDiT: scanned or not, recomputed or not, it is one function; samples and padding do not leak into
one another."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xgen_jax.errors import UserError
from xgen_jax.models import vdit_config
from xgen_jax.models.vdit import (
    MicroConditions,
    VDiT,
    abstract_variables,
    count_parameters,
    null_caption,
    unstack_layers,
)
from xgen_jax.models.vdit_config import PRESETS, VDiTConfig
from xgen_jax.nn.choices import REMAT

CONFIG = VDiTConfig(width=16, depth=2, heads=2, patch=2, text_width=8, remat="none")
PAPER = dataclasses.replace(CONFIG, micro_cond=True, learned_variance=True, position_span=32.0)
MODERN = dataclasses.replace(
    PAPER, positions="rope_3d", attention_layout="full", learned_variance=False
)
COMPAT = dataclasses.replace(PAPER, opensora_compat=True)
FORMS = {"plain": CONFIG, "paper": PAPER, "modern": MODERN, "compat": COMPAT}
CLIP = MicroConditions(
    *(jnp.array(v, jnp.float32) for v in ([32, 40], [48, 56], [0.66, 0.71], [9, 9], [8, 24]))
)
NOISED = jnp.array([[True, False, True], [False, True, True]])


def setup(config=CONFIG, shape=(2, 3, 4, 6, 3), seed=0):
    """A model whose parameters are all random (at initialisation its output is zero), and two
    samples."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], shape)
    text = jax.random.normal(keys[1], (2, 5, 8))
    mask = jnp.arange(5)[None] < jnp.array([[3], [5]])
    inputs = (x, jnp.array([200.0, 700.0]), text, mask, CLIP if config.micro_cond else None)
    shapes = jax.eval_shape(VDiT(config).init, keys[2], *inputs)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), jnp.float32), shapes
    )
    return params, inputs


def value_and_gradient(config, params, inputs):
    def loss(params):
        y = VDiT(config).apply(params, *inputs)
        return jnp.square(y).mean(), y

    (_, y), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return y, gradient


def assert_close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5), one, other)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["paper", "modern"])
def test_scan_and_recomputation_change_neither_values_nor_gradients(form):
    config = FORMS[form]
    params, inputs = setup(config)
    inputs = (*inputs, NOISED)
    y, gradient = value_and_gradient(config, params, inputs)
    assert y.shape == (*inputs[0].shape[:4], 3 * (1 + config.learned_variance))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient)), (
        "a parameter that nothing depends on"
    )

    looped = dataclasses.replace(config, scan_layers=False)
    unstacked = unstack_layers(params, config.depth)
    shapes = jax.eval_shape(VDiT(looped).init, jax.random.key(0), *inputs)
    assert jax.tree.structure(shapes) == jax.tree.structure(unstacked)
    for remat in REMAT:
        again = dataclasses.replace(config, remat=remat)
        assert_close(value_and_gradient(again, params, inputs), (y, gradient))
        again = dataclasses.replace(looped, remat=remat)
        y_loop, gradient_loop = value_and_gradient(again, unstacked, inputs)
        assert_close((y_loop, gradient_loop), (y, unstack_layers(gradient, config.depth)))


def test_the_tokens_after_each_block_are_those_of_a_shorter_network():
    params, inputs = setup(CONFIG)

    def apply(config, params, full):
        run = jax.jit(lambda params: VDiT(config).apply(params, *inputs, hidden_states=full))
        return run(params)

    y, states = apply(CONFIG, params, True)
    np.testing.assert_array_equal(y, apply(CONFIG, params, False))
    assert states.shape == (CONFIG.depth, 2, 3, 2 * 3, CONFIG.width)
    first = jax.tree.map(lambda leaf: leaf[:1], params["params"]["blocks"])
    short = {**params, "params": {**params["params"], "blocks": first}}
    _, wanted = apply(dataclasses.replace(CONFIG, depth=1), short, True)
    np.testing.assert_allclose(states[0], wanted[0], atol=1e-5)
    assert np.abs(states[1] - states[0]).max() > 1e-2


@pytest.mark.parametrize("form", ["plain", "modern"])
def test_samples_and_padding_do_not_leak(form):
    config = FORMS[form]
    params, (x, time, text, mask, micro_cond) = setup(config)
    apply = jax.jit(VDiT(config).apply)
    y = apply(params, x, time, text, mask, micro_cond)

    padded = text.at[0, 3:].set(100.0)
    np.testing.assert_allclose(apply(params, x, time, padded, mask, micro_cond), y, atol=1e-5)
    assert (
        np.abs(apply(params, x, time, text.at[0, 2].add(1.0), mask, micro_cond) - y)[0].max() > 1e-3
    )

    changed = (
        None if micro_cond is None else MicroConditions(*(c.at[1].set(3.0) for c in micro_cond))
    )
    other = apply(
        params, x.at[1].set(7.0), time.at[1].set(0.0), text.at[1].set(-3.0), mask, changed
    )
    np.testing.assert_allclose(other[0], y[0], atol=1e-5)
    assert np.abs(other - y)[1].max() > 1e-2
    swapped = apply(params, *jax.tree.map(lambda a: a[::-1], (x, time, text, mask, micro_cond)))
    np.testing.assert_allclose(swapped[::-1], y, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["paper", "modern", "compat"])
def test_condition_frames_are_modulated_as_at_time_zero(form):
    config = FORMS[form]
    params, (x, time, text, mask, micro_cond) = setup(config)
    apply = jax.jit(VDiT(config).apply)
    y = apply(params, x, time, text, mask, micro_cond)
    np.testing.assert_allclose(
        apply(params, x, time, text, mask, micro_cond, jnp.ones((2, 3), bool)), y, atol=2e-5
    )
    clean = apply(params, x, time, text, mask, micro_cond, jnp.zeros((2, 3), bool))
    if form == "compat":  # its last layer sees condition frames otherwise
        assert np.abs(clean - apply(params, x, 0 * time, text, mask, micro_cond)).max() > 1e-2
    else:
        np.testing.assert_allclose(
            clean, apply(params, x, 0 * time, text, mask, micro_cond), atol=2e-5
        )
    mixed = apply(params, x, time, text, mask, micro_cond, NOISED)
    assert np.abs(mixed - y).max() > 1e-2
    # A sample's mask is its own.
    other = apply(params, x, time, text, mask, micro_cond, NOISED.at[1].set(False))
    np.testing.assert_allclose(other[0], mixed[0], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["paper", "modern"])
def test_odd_sizes_are_padded_with_zeros_and_cropped(form):
    config = FORMS[form]
    params, (x, *rest) = setup(config, (2, 3, 5, 7, 3))
    got = jax.jit(VDiT(config).apply)(params, x, *rest)
    assert got.shape[:4] == x.shape[:4]
    whole = jnp.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)))
    wanted = jax.jit(VDiT(config).apply)(params, whole, *rest)
    np.testing.assert_allclose(got, wanted[:, :, :5, :7], atol=1e-5)


def test_frames_meet_in_time_attention_alone():
    params, (x, *rest) = setup(PAPER)
    time = params["params"]["blocks"]["block"]["attention_time"]
    time["proj"] = jax.tree.map(jnp.zeros_like, time["proj"])
    apply, order = jax.jit(VDiT(PAPER).apply), np.array([2, 0, 1])
    np.testing.assert_allclose(
        apply(params, x[:, order], *rest), apply(params, x, *rest)[:, order], atol=1e-5
    )
    params, _ = setup(PAPER)
    assert (
        np.abs(apply(params, x[:, order], *rest) - apply(params, x, *rest)[:, order]).max() > 1e-3
    )


def test_full_attention_sees_the_order_of_frames_and_places():
    params, (x, *rest) = setup(MODERN)
    apply = jax.jit(VDiT(MODERN).apply)
    y = apply(params, x, *rest)
    for turned in (
        lambda a: a[:, ::-1],
        lambda a: jnp.roll(a, 2, axis=2),
        lambda a: jnp.roll(a, 2, axis=3),
    ):
        assert np.abs(apply(params, turned(x), *rest) - turned(y)).max() > 1e-3


@pytest.mark.parametrize("form,other_depends", [("paper", False), ("compat", True)])
def test_a_clips_conditions_are_its_own_but_for_the_released_scale(form, other_depends):
    config = FORMS[form]
    params, (x, time, text, mask, micro_cond) = setup(config)
    apply = jax.jit(VDiT(config).apply)
    y = apply(params, x, time, text, mask, micro_cond)
    for name in micro_cond._fields:
        changed = micro_cond._replace(**{name: getattr(micro_cond, name).at[0].multiply(1.7)})
        difference = np.abs(apply(params, x, time, text, mask, changed) - y).max((1, 2, 3, 4))
        assert difference[0] > 1e-3, name
        scale = other_depends and name in ("height", "width")
        assert difference[1] > 1e-3 if scale else difference[1] < 1e-5, name


@pytest.mark.slow
def test_half_precision_stays_near():
    params, inputs = setup(MODERN)
    y = jax.jit(VDiT(MODERN).apply)(params, *inputs)
    half = jax.jit(VDiT(MODERN, jnp.bfloat16).apply)(params, *inputs)
    assert half.dtype == jnp.float32
    # 8 bits: 2^-8 of values of about 1, a few times over in two blocks.
    assert np.abs(half - y).mean() < 0.02 * np.abs(y).mean()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "modern"])
def test_the_output_is_zero_at_initialisation(form):
    config = dataclasses.replace(FORMS[form], null_caption_tokens=64)
    _, inputs = setup(config)
    y, params = jax.jit(VDiT(config).init_with_output)(jax.random.key(0), *inputs)
    assert not np.any(y)
    np.testing.assert_allclose(np.std(null_caption(params)), config.text_width**-0.5, rtol=0.2)
    # Each scanned layer starts from values of its own.
    kernel = params["params"]["blocks"]["block"]["mlp"]["fc1"]["kernel"]
    assert kernel.shape == (2, 16, 64)
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01


def test_the_papers_network_has_its_size():
    # As counted over the tensors of the public STDiT2-XL/2, less its 36 fixed frequencies.
    assert count_parameters(PRESETS["VDiT-XL/2"]) == 767_452_064
    assert count_parameters(dataclasses.replace(PRESETS["VDiT-XL/2"], qk_norm=False)) == 767_444_000


def test_presets_have_the_parameters_that_their_table_says():
    rows = [line.split() for line in vdit_config.__doc__.splitlines() if line.startswith("    ")][
        1:
    ]
    table = {name: [int(number.replace(",", "")) for number in numbers] for name, *numbers in rows}
    assert table == {
        name: [c.width, c.depth, c.heads, count_parameters(c)] for name, c in PRESETS.items()
    }


def names(config):
    return {
        jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_leaves_with_path(abstract_variables(config))
    }


@pytest.mark.parametrize(
    "changes,adds,removes",
    [
        ({"positions": "rope_3d"}, (), ()),
        ({"position_span": 32.0}, (), ()),
        ({"learned_variance": True}, (), ()),
        ({"time_sinusoid": True}, (), ()),
        ({"caption_positions": True}, ("caption_positions",), ()),
        (
            {"micro_cond": True},
            ("size_embedder", "aspect_embedder", "frames_embedder", "fps_embedder"),
            (),
        ),
        ({"null_caption_tokens": 3}, ("null_caption",), ()),
        ({"qk_norm": False}, (), ("q_norm", "k_norm")),
        ({"text_norm": True}, ("attention_text'",), ()),
        (
            {"attention_layout": "full"},
            ("'attention'",),
            ("attention_space", "attention_time", "_temporal", "t_block_temporal"),
        ),
    ],
)
def test_an_option_that_is_off_costs_no_parameters(changes, adds, removes):
    plain, other = names(CONFIG), names(dataclasses.replace(CONFIG, **changes))
    assert all(any(part in name for part in adds) for name in other - plain)
    assert all(any(part in name for part in removes) for name in plain - other)
    assert all(any(part in name for name in other - plain) for part in adds)
    assert all(any(part in name for name in plain - other) for part in removes)
    if not adds + removes:
        assert other == plain


def test_the_stored_null_caption_is_no_parameter_and_takes_no_gradient():
    config = dataclasses.replace(CONFIG, null_caption_tokens=7)
    variables, _ = setup(config)
    assert count_parameters(config) == count_parameters(CONFIG)
    caption = null_caption(variables)
    assert caption.shape == (7, 8) and np.any(caption)
    gradient = jax.grad(lambda v: jnp.square(null_caption(v)).sum())(variables)
    assert not np.any(gradient["constants"]["null_caption"])


def test_inputs_that_do_not_fit_the_network_are_refused():
    for config, micro_cond, message in (
        (PAPER, None, "needs MicroConditions"),
        (CONFIG, CLIP, "takes None"),
    ):
        _, inputs = setup(config)
        with pytest.raises(UserError, match=message):
            jax.eval_shape(VDiT(config).init, jax.random.key(0), *inputs[:4], micro_cond)
    with pytest.raises(UserError, match="latents of 0x4x4"):
        CONFIG.check_latents((0, 4, 4))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"width": 18}, "even head dimension"),
        ({"width": 15}, "even head dimension"),
        (
            {"remat": "some"},
            "remat='some' is not known; choose one of none, dots, qkv, attention, full, offload",
        ),
        ({"positions": "rope"}, "choose one of sinusoid_2d, rope_3d"),
        ({"attention_layout": "joint"}, "choose one of factorised, full"),
        ({"positions": "rope_3d", "heads": 4}, "head dimension of 6 or more, not 4"),
        ({"position_span": 0.0}, "position_span must be above 0"),
        ({"null_caption_tokens": -1}, "null_caption_tokens must be 0 or more"),
        ({"opensora_compat": True}, "opensora_compat=True needs micro_cond=True, a position_span"),
        ({"opensora_compat": True, "attention_layout": "full"}, "attention_layout='factorised'"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(CONFIG, **changes)
