"""Config files: each key can be set by a flag, also those without a value."""

import dataclasses
import pathlib
import typing

import pytest

from xgen_jax.commands.arguments import keys_as_flags
from xgen_jax.commands.config_file import config_help, load_config, load_curation
from xgen_jax.commands.start import FlagError
from xgen_jax.config.build import allowed, flat, is_group
from xgen_jax.config.keys import hints
from xgen_jax.config.runs import run_config
from xgen_jax.configs.quickstart import vdit
from xgen_jax.curation.config import CurationConfig
from xgen_jax.errors import UserError
from xgen_jax.models.lora_config import LoRAConfig
from xgen_jax.models.text_config import T5TextConfig

ROOT = pathlib.Path(__file__).parents[2] / "configs"
CONFIGS = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if "def get_config(" in path.read_text() and path.parent.name != "curation"  # of no run
]


def name(path):
    return str(path.relative_to(ROOT).with_suffix(""))


def keys(kind, value, prefix=""):
    """Yield the dotted keys of a run's class, each with its value, if the run has it, and type."""
    for name, hint in hints(kind).items():
        item = getattr(value, name) if value is not None else None
        if is_group(hint):
            found = {}
            for each in sorted(allowed(hint), key=lambda each: not isinstance(item, each)):
                own = item if isinstance(item, each) else None
                for row in keys(each, own, f"{prefix}{name}."):
                    found.setdefault(row[0], row)
            yield from found.values()
        else:
            yield prefix + name, item, typing.get_origin(allowed(hint)[0]) or allowed(hint)[0]


def plain(value):
    """A value as a dict or a tuple of plain values, whose text a flag takes."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


def example(key, kind, run):
    """Return a value that a key without one can take."""
    match key.split("."):
        case [*_, "hold_out"]:
            return "ends"
        case [*_, "attention_window"]:
            return 3, 6
        case ["loop", "keep_best"]:
            return "held_out_loss"
        case ["guidance", "interval"]:
            return (0.2, 0.8)
        case ["lora", "rules"]:
            return ("attention", "mlp/fc1")
        case ["model", "time_expansion"]:
            return run.model.time_reduction
        case ["model", "encoder", "time_expansion"]:
            return run.model.encoder.time_reduction
        case [*_, "attention"]:
            return "auto"
        case ["grid", "steps_offset"]:
            return 0  # the spacings of these runs have none
        case ["sample_spacing"]:
            return "even" if run.loss.process == "flow" else "linspace"
    return {str: "x", int: 2, float: 2.0, bool: True, tuple: (1, 2)}[kind]


def needed(kind, value, parts, group="config"):
    """Return the flags that a key's group, or its kind, needs."""
    first, *rest = parts
    if not rest:
        return []
    if rest == ["keep_best"]:
        return ["--config.loop.evaluate_every=2"]
    if first == "lora":
        return ["--config.init_from=base", "--config.optimizer.name=adamw"]
    own, kinds = getattr(value, first), allowed(hints(kind)[first])
    kinds = sorted(kinds, key=lambda each: not isinstance(own, each))
    kind = next(each for each in kinds if rest[0] in hints(each))
    group = f"{group}.{first}"
    flags = [f"--{group}.kind={kind.kind}"] if len(kinds) > 1 else []
    if not isinstance(own, kind):
        flags += [
            f"--{group}.{field.name}=x"
            for field in dataclasses.fields(kind)
            if field.default is dataclasses.MISSING and field.name != rest[0]
        ]
        return flags
    return flags + needed(kind, own, rest, group)


def load(path, *arguments):
    """Load a config with flags, as `launch/train.py` does."""
    flags = keys_as_flags(list(arguments))
    return load_config(str(path), [flag.removeprefix("--config_key=") for flag in flags])


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_every_key_can_be_set_by_a_flag_and_back_to_none(path):
    run = load(path)
    listed = list(keys(type(run), run))
    given = [
        f"--config.{key}={plain(value)}"
        for key, value, _ in listed
        if value is not None and not key.startswith("data.source.")
    ]
    assert load(path, *given) == run

    unset = [(key, kind) for key, value, kind in listed if value is None]
    assert unset
    for key, kind in unset:
        value = example(key, kind, run)
        extra = needed(type(run), run, key.split("."))
        built = load(path, *extra, f"--config.{key}={value}")
        assert flat(dataclasses.asdict(built))[key] == flat({"": value})[""], key
        if flat(dataclasses.asdict(run)).get(key, value) is None and "kind" not in str(extra):
            given = [f"--config.{key}={value}", f"--config.{key}=None"]
            assert flat(dataclasses.asdict(load(path, *given)))[key] is None


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_float_takes_a_fraction_and_no_key_a_value_of_another_type(path):
    assert load(path, "--config.optimizer.clip_norm=0.25").optimizer.clip_norm == 0.25
    with pytest.raises(FlagError, match="--config.loop.steps=many is not a whole number; give "):
        load(path, "--config.loop.steps=many")


def test_another_kind_of_a_group_takes_its_keys_and_drops_those_of_the_first():
    path = ROOT / "quickstart" / "vdit.py"
    text = load(path, "--config.text.kind=t5", "--config.text.path=weights/t5").text
    assert (text.kind, text.path, text.length) == ("t5", "weights/t5", 250)
    # A key of the kind that is not chosen is a mistake, if the user has given it.
    for flags, message in (
        (("kind=t5", "path=x", "width=8"), "config.text has no key 'width'"),
        (("path=weights/t5",), "config.text has no key 'path'"),
        (("kind=t5",), "config.text lacks the key 'path'"),
        (("kind=clip",), r"config.text.kind='clip' is not known"),
    ):
        with pytest.raises(UserError, match=message):
            load(path, *(f"--config.text.{flag}" for flag in flags))


def test_a_group_that_may_be_none_is_there_once_a_key_of_it_is_set():
    path = ROOT / "quickstart" / "vdit.py"
    assert load(path).lora is None
    arguments = ["--config.init_from=x", "--config.optimizer.name=adamw", "--config.lora.rank=8"]
    assert load(path, *arguments).lora == LoRAConfig(rank=8)


def test_a_config_built_on_another_changes_kind_and_keys():
    config = vdit.get_config()
    config.text.max_bytes = 32
    config.sample_spacing = "even"
    run = run_config(config.to_dict())
    assert (run.text.max_bytes, run.sample_spacing) == (32, "even")
    config.text = {"kind": "t5", "path": "weights/t5"}
    assert run_config(config.to_dict()).text == T5TextConfig(path="weights/t5")


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_path_given_by_flag_decides_the_kind_of_clips(path, tmp_path):
    (tmp_path / "latents").mkdir()
    (tmp_path / "latents" / "manifest.json").write_text('{"shard_size": 8}')
    (tmp_path / "videos").mkdir()
    for folder, kind in (("latents", "latents"), ("videos", "video_folder")):
        given = f"--config.data.source.path={tmp_path / folder}"
        source = load(path, given).data.source
        assert (source.kind, source.path) == (kind, str(tmp_path / folder))
        # A kind that is given too is only checked, where the clips are read.
        other = "latents" if kind == "video_folder" else "video_folder"
        assert load(path, given, f"--config.data.source.kind={other}").data.source.kind == other
    own = load(path).data.source
    assert load(path, "--config.data.source.path=None").data.source.kind == own.kind


@pytest.mark.parametrize("path", sorted((ROOT / "curation").glob("*.py")), ids=lambda p: p.stem)
def test_a_curation_takes_its_own_keys_and_lists_each_with_a_word_for_it(path):
    config = load_curation(str(path), ["text.max_area=0.5", "pack.tiers=64,128"])
    assert config.text.max_area == 0.5 and config.pack.tiers == (64, 128)
    listed = config_help(f"curation/{path.stem}", [], load_curation)
    for key, _, _ in keys(CurationConfig, config):
        assert f"  --config.{key}=" in listed, key
    with pytest.raises(FlagError, match="did you mean --config.text.max_area"):
        load_curation(str(path), ["text.max_aria=0.5"])
    named = ["captions=endpoint", "captions.url=http://a/v1", "captions.model=seer"]
    assert load_curation(str(path), named).captions.model == "seer"
    with pytest.raises(UserError, match="give --config.captions.url="):
        load_curation(str(path), ["captions=endpoint", "captions.model=seer"])
    with pytest.raises(UserError, match=r"max_s=1 .*\(--config.shots.max_s=...\)"):
        load_curation(str(path), ["shots.max_s=1"])
