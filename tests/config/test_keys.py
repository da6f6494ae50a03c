"""Keys of a run as flags: what each takes as text, in any order, and what --help says of it."""

import dataclasses
import itertools

import pytest

from xgen_jax.config.build import allowed, flat, is_group
from xgen_jax.config.keys import (
    UnknownKey,
    describe,
    documentation,
    hints,
    names,
    set_keys,
)
from xgen_jax.config.runs import REGENRun, Run, VDiTRun, VidVAERun, run_config, to_dict
from xgen_jax.data.buckets import Bucket
from xgen_jax.errors import UserError
from xgen_jax.models import regen_config, vdit_config, vidvae_config
from xgen_jax.models.lora_config import LoRAConfig
from xgen_jax.models.text_config import T5TextConfig
from xgen_jax.testing import VDIT, VIDVAE, tiny_run, tiny_values

# The presets learn a variance, which a flow does not have.
VDIT_VALUES = tiny_values(VDIT, embedder="vae", loss={"process": "ddpm"}, sampler="ddim")
SMALL = vdit_config.PRESETS["VDiT-S/2"]


def given(values, *flags, say=lambda line: None):
    pairs = [tuple(flag.split("=", 1)) for flag in flags]
    return set_keys(Run.known[values["objective"]], values, pairs, say)


def built(values, *flags):
    return run_config(given(values, *flags))


def test_buckets_are_written_as_sizes_in_a_flag_and_in_a_program():
    wanted = (
        Bucket(frames=9, height=64, width=32, batch_size=4),
        Bucket(frames=1, height=64, width=64, batch_size=8),
    )
    text = "9x64x32x4,1x64x64x8"
    assert built(VIDVAE, f"data.buckets={text}").data.buckets == wanted
    assert tiny_run(VIDVAE, data={"buckets": text}).data.buckets == wanted
    as_dicts = tuple(map(dataclasses.asdict, wanted))
    assert built(VIDVAE, f"data.buckets={as_dicts}").data.buckets == wanted


@pytest.mark.parametrize(
    "text", ["9x64x64", "9x64x64x4;1x64x64x8", "0x64x64x4", "9x64x64x", "", "4"]
)
def test_buckets_of_another_form_are_refused_with_the_form_and_the_flag(text):
    form = "give --config.data.buckets=FRAMESxHEIGHTxWIDTHxBATCH,..., e.g. 9x64x64x4"
    with pytest.raises(UserError) as error:
        tiny_run(VIDVAE, data={"buckets": text})
    assert form in str(error.value) and repr(text) in str(error.value)
    with pytest.raises(UserError):
        built(VIDVAE, f"data.buckets={text}")


def test_one_size_of_a_bucket_is_refused_with_the_buckets_that_there_are():
    with pytest.raises(UnknownKey) as error:
        given(VIDVAE, "data.buckets.0.height=64")
    assert "data.buckets.0.height is not a key: all buckets are given together" in str(error.value)
    assert "--config.data.buckets=FRAMESxHEIGHTxWIDTHxBATCH" in str(error.value)
    assert "they are 5x16x16x2 now" in str(error.value)


@pytest.mark.parametrize(
    ("run", "module", "name"),
    [
        (VidVAERun, vidvae_config, "paper"),
        (REGENRun, regen_config, "small-8x"),
        (VDiTRun, vdit_config, "VDiT-S/2"),
    ],
)
def test_a_model_is_a_preset_by_name(run, module, name):
    values = {"objective": run.objective, "model": {}}
    set_ = given(values, f"model={name}")["model"]
    assert set_ == dataclasses.asdict(module.PRESETS[name])
    with pytest.raises(UserError, match=r"^--config.model='huge' is not known.*; choose one of"):
        given(values, "model=huge")


def test_a_preset_and_single_keys_in_any_order():
    flags = ("model=VDiT-S/2", "model.depth=3", "model.text_width=8")
    wanted = dataclasses.replace(SMALL, depth=3, text_width=8)
    for order in itertools.permutations(flags):
        assert built(VDIT_VALUES, *order).model == wanted
    # Of one key the last value counts.
    assert built(VDIT_VALUES, "model.depth=1", *flags, "model.depth=5").model.depth == 5


def test_a_preset_by_name_in_a_program_can_be_changed_by_flags():
    values = tiny_values(VDIT_VALUES, model="VDiT-S/2")
    assert run_config(values).model == SMALL
    assert built(values, "model.depth=3").model == dataclasses.replace(SMALL, depth=3)
    with pytest.raises(UserError, match=r"--config.model='paper' is not known; choose one of VDiT"):
        tiny_run(VDIT_VALUES, model="paper")


def test_a_preset_says_how_else_the_model_is_computed():
    values, said = tiny_values(VDIT_VALUES, model={"attention": "chunked"}), []
    given(values, "model=VDiT-S/2", say=said.append)
    assert [line.split(";")[0] for line in said] == [
        "--config.model=VDiT-S/2 also changes model.attention from 'chunked' to 'xla'",
        "--config.model=VDiT-S/2 also changes model.remat from 'none' to 'full'",
    ]
    said.clear()
    given(values, "model=VDiT-S/2", "model.attention=xla", "model.remat=none", say=said.append)
    assert said == []


def test_a_kind_by_its_group_or_its_key():
    wanted = T5TextConfig(path="weights", length=7)
    for kind in ("text=t5", "text.kind=t5"):
        for order in itertools.permutations((kind, "text.path=weights", "text.length=7")):
            assert built(VDIT_VALUES, *order).text == wanted
    with pytest.raises(
        UserError, match=r"--config.text has no key 'path' where .*kind=bytes; it is"
    ):
        built(VDIT_VALUES, "text.path=weights")
    with pytest.raises(UserError, match=r"--config.text.kind='clip' is not known"):
        built(VDIT_VALUES, "text=clip")


def test_what_may_be_none_can_be_set_and_set_back():
    adapted = built(VDIT_VALUES, "init_from=base", "lora.rank=4", "loop.profile_steps=1,2")
    assert adapted.lora == LoRAConfig(rank=4) and adapted.loop.profile_steps == (1, 2)
    back = built(to_dict(adapted), "lora=None", "init_from=none", "loop.profile_steps=None")
    assert back == run_config(VDIT_VALUES)
    with pytest.raises(UserError, match="loop.steps=None: the key cannot be None; give --config"):
        given(VIDVAE, "loop.steps=None")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "loop.steps=many",
            "--config.loop.steps=many is not a whole number; give --config.loop.steps=2",
        ),
        ("loop.steps=1.5", "is not a whole number"),
        ("optimizer.learning_rate=fast", "=fast is not a number; give --config.optimizer."),
        ("data.fit=perhaps", "=perhaps is not True or False"),
        ("model.stem=4,4", "--config.model.stem must have 3 entries, not 2"),
        ("model.channels=wide", "--config.model.channels must be a list, not 'wide'"),
        ("loop.steps=0", "loop.steps must be 1 or more, not 0 (--config.loop.steps=...)"),
        ("model.norm_groups=0", "(--config.model.norm_groups=...)"),
        (
            "mesh=4",
            "this is a group of keys without presets; set one of them, such as --config.mesh.",
        ),
    ],
)
def test_a_value_of_another_type_is_refused_by_its_flag(flag, message):
    with pytest.raises(UserError) as error:
        built(VIDVAE, flag)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("loop.stepz", "did you mean --config.loop.steps?"),
        ("steps", "did you mean --config.loop.steps?"),
        ("optimiser.learning_rate", "did you mean --config.optimizer.learning_rate"),
        ("lr", "--config.lr is not a key"),
        ("model.chanels", "did you mean --config.model.channels"),
        ("loop.steps.first", "--config.loop.steps has no keys in it, it is 2"),
    ],
)
def test_a_misspelt_key_names_the_nearest(key, nearest):
    with pytest.raises(UnknownKey) as error:
        given(VIDVAE, f"{key}=1")
    assert nearest in str(error.value) and "\\" not in str(error.value)


def test_flags_leave_the_values_they_are_given():
    values = tiny_values(VDIT_VALUES)
    given(values, "model=tiny", "loop.steps=9", "text=t5")
    assert values == VDIT_VALUES


@pytest.mark.parametrize("values", [VIDVAE, VDIT_VALUES], ids=["vidvae", "vdit"])
def test_help_lists_every_key_with_a_value_that_a_flag_takes(values):
    run = run_config(values)
    lines = describe(run).splitlines()
    flags = [line[2:].removeprefix("--config.") for line in lines if line.startswith("  --config.")]
    flags = [flag for flag in flags if "=NAME takes" not in flag]
    listed = {flag.partition("=")[0] for flag in flags}
    leaves = set(names(type(run)))
    assert listed == {key for key in leaves if not any(k.startswith(f"{key}.") for k in leaves)}
    # What it shows of the run's own keys sets the same run.
    own = {key for key in flat(to_dict(run)) if key in listed}
    assert built(values, *(flag for flag in flags if flag.partition("=")[0] in own)) == run


@pytest.mark.parametrize("values", [VIDVAE, VDIT_VALUES], ids=["vidvae", "vdit"])
def test_every_key_has_a_description(values):
    def silent(kind):
        for name, hint in hints(kind).items():
            if not is_group(hint) and not documentation(kind).get(name):
                yield f"{kind.__name__}.{name}"
            for part in allowed(hint) if is_group(hint) else ():
                yield from silent(part)

    assert sorted(set(silent(type(run_config(values))))) == []


def test_help_says_what_a_key_is_for():
    text = " ".join(describe(run_config(VDIT_VALUES)).split())
    assert "--config.loop.checkpoint_every=1000 steps between checkpoints; the last" in text
    assert "--config.lora: Kernels to adapt" in text and "(--config.lora=None now)" in text
    assert "--config.model=NAME takes a preset: VDiT-S/2, " in text
    assert "with --config.text.kind=t5: A frozen T5 encoder." in text
    assert "--config.embedder=vae the embedder's folder; empty for that of" in text
