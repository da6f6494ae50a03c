"""A fingerprint stands for every bit of a network, and for nothing of where it lies."""

import dataclasses

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from xgen_jax.models.fingerprint import OLD_FIELDS, fingerprint
from xgen_jax.models.vdit_config import VDiTConfig


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 4
    kernels: tuple[tuple[int, ...], ...] = ((1, 3, 3),)


def tree():
    return {
        "a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "std": np.ones(3, np.float32),
    }


def test_every_bit_counts():
    marks = {fingerprint(Config(), tree()), fingerprint(Config(width=5), tree())}
    for kernel in (
        np.arange(6, dtype=np.float32).reshape(3, 2),
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.arange(6, dtype=np.float32).reshape(2, 3).astype(ml_dtypes.bfloat16),
        np.nextafter(tree()["a"]["kernel"], np.float32(9)),
    ):
        marks.add(fingerprint(Config(), {**tree(), "a": {"kernel": kernel}}))
    marks.add(fingerprint(Config(), {"b": tree()["a"], "std": tree()["std"]}))
    marks.add(fingerprint(Config(), {**tree(), "scale": np.float32(1)}))
    assert len(marks) == 8


def test_neither_a_new_field_at_its_default_nor_how_it_is_computed_makes_another_network():
    @dataclasses.dataclass(frozen=True)
    class Later(Config):
        invented: str = "no"
        remat: str = "none"

    assert fingerprint(Later(), tree()) == fingerprint(Config(), tree())
    assert fingerprint(Later(remat="level"), tree()) == fingerprint(Config(), tree())
    assert fingerprint(Later(invented="yes"), tree()) != fingerprint(Config(), tree())


def test_the_same_network_has_the_same_one_for_ever():
    # Written down, for latents on disk are known by it: a change makes all of them worthless.
    assert fingerprint(Config(), tree()) == "fb10a28f1750c8b6"
    shuffled = dict(reversed(tree().items()))
    on_device = {"a": {"kernel": jnp.asarray(tree()["a"]["kernel"])}, "std": jnp.ones(3)}
    assert (
        fingerprint(Config(), shuffled)
        == fingerprint(Config(), on_device)
        == fingerprint(Config(), tree())
    )


def test_a_nested_configuration_counts_in_every_field_but_those_at_their_default():
    @dataclasses.dataclass(frozen=True)
    class Outer:
        inner: Config
        depth: int = 2

    @dataclasses.dataclass(frozen=True)
    class Later(Config):
        invented: str = "no"
        attention: str = "xla"

    plain = fingerprint(Outer(Config()), tree())
    assert plain != fingerprint(Config(), tree())
    assert (
        fingerprint(Outer(Later()), tree())
        == fingerprint(Outer(Later(attention="cudnn")), tree())
        == plain
    )
    others = {
        fingerprint(Outer(inner), tree()) for inner in (Config(width=5), Later(invented="yes"))
    }
    assert len({plain, *others, fingerprint(Outer(Config(), 3), tree())}) == 4


def test_renamed_fields_are_hashed_under_their_old_names():
    # The fingerprint as it was when the fields were called released and clip_conditions.
    config = VDiTConfig(
        width=16,
        depth=2,
        heads=2,
        position_span=32.0,
        opensora_compat=True,
        micro_cond=True,
    )
    assert set(OLD_FIELDS) == {"opensora_compat", "micro_cond"}
    assert fingerprint(config, {"a": np.arange(6, dtype=np.float32)}) == "a5143b0d40651972"
