"""Config files: each key can be set by a flag, also those without a value."""

import dataclasses
import pathlib
import typing

import pytest
from absl import flags
from ml_collections import config_flags

from xgen_jax.commands.arguments import keys_as_flags
from xgen_jax.commands.config_file import load_config
from xgen_jax.commands.start import FlagError
from xgen_jax.config.build import flat
from xgen_jax.config.runs import run_config
from xgen_jax.configs.common import as_config_dict
from xgen_jax.configs.quickstart import vdit
from xgen_jax.errors import UserError
from xgen_jax.models.lora import LoRAConfig
from xgen_jax.models.text import T5TextConfig

ROOT = pathlib.Path(__file__).parents[2] / "configs"
CONFIGS = [path for path in sorted(ROOT.rglob("*.py")) if "def get_config(" in path.read_text()]

# ml_collections loads a config file by a deprecated method.
pytestmark = pytest.mark.filterwarnings("ignore:.*load_module.*:DeprecationWarning")


def name(path):
    return str(path.relative_to(ROOT).with_suffix(""))


def parse(path, *arguments):
    """Parse a command line to its config, as a command does."""
    argv = ["command", f"--config={path}", *arguments]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    return holder.value


def keys(config, prefix=""):
    """Yield the dotted keys of a config, each with its value and type."""
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value, config.get_type(key)


def example(key, kind, run):
    """Return a value that a key without one can take."""
    match key.split("."):
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
        case ["sample_spacing"]:
            return "even" if run.loss.process == "flow" else "linspace"
    return {str: "x", int: 2, float: 2.0, bool: True, tuple: (1, 2)}[kind]


def needed(kind, config, parts, group="config"):
    """Return the flags that a key's group, or its kind, needs."""
    first, *rest = parts
    if not rest:
        return []
    if first == "lora":
        return ["--config.init_from=base", "--config.optimizer.name=adamw"]
    hint = typing.get_type_hints(kind)[first]
    kinds = [kind for kind in typing.get_args(hint) if dataclasses.is_dataclass(kind)] or [hint]
    kinds.sort(key=lambda kind: len(kinds) > 1 and kind.kind != config[first].kind)
    kind = next(
        kind for kind in kinds if rest[0] in {field.name for field in dataclasses.fields(kind)}
    )
    group = f"{group}.{first}"
    flags = [f"--{group}.kind={kind.kind}"] if len(kinds) > 1 else []
    if flags and kind.kind != config[first].kind:
        flags += [
            f"--{group}.{field.name}=x"
            for field in dataclasses.fields(kind)
            if field.default is dataclasses.MISSING and field.name != rest[0]
        ]
    return flags + needed(kind, config[first], rest, group)


def load(path, *arguments):
    """Load a config with flags, as `launch/train.py` does."""
    flags = keys_as_flags(list(arguments))
    return load_config(str(path), [flag.removeprefix("--config_key=") for flag in flags])


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_every_key_can_be_set_by_a_flag_and_back_to_none(path):
    config = parse(path)
    assert config.is_locked
    run = load(path)
    assert run == run_config(config.to_dict())
    given = [
        f"--config.{key}={value}"
        for key, value, _ in keys(config)
        if value is not None and not key.startswith("data.source.")
    ]
    assert load(path, *given) == run

    unset = [(key, kind) for key, value, kind in keys(config) if value is None]
    assert unset
    for key, kind in unset:
        value = example(key, kind, run)
        extra = needed(type(run), config, key.split("."))
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
    config = parse(path, "--config.text.kind=t5", "--config.text.path=weights/t5")
    text = run_config(config.to_dict()).text
    assert (text.kind, text.path, text.length) == ("t5", "weights/t5", 250)
    # A key of the kind that is not chosen is a mistake, if the user has given it.
    config = parse(path, "--config.text.kind=t5", "--config.text.path=x", "--config.text.width=8")
    with pytest.raises(UserError, match="config.text has no key 'width'"):
        run_config(config.to_dict())
    config = parse(path, "--config.text.path=weights/t5")
    with pytest.raises(UserError, match="config.text has no key 'path'"):
        run_config(config.to_dict())
    with pytest.raises(UserError, match="config.text lacks the key 'path'"):
        run_config(parse(path, "--config.text.kind=t5").to_dict())
    with pytest.raises(UserError, match=r"config.text.kind='clip' is not known"):
        run_config(parse(path, "--config.text.kind=clip").to_dict())


def test_a_group_that_may_be_none_is_there_once_a_key_of_it_is_set():
    path = ROOT / "quickstart" / "vdit.py"
    assert run_config(parse(path).to_dict()).lora is None
    arguments = ["--config.init_from=x", "--config.optimizer.name=adamw", "--config.lora.rank=8"]
    assert run_config(parse(path, *arguments).to_dict()).lora == LoRAConfig(rank=8)


def test_a_config_built_on_another_changes_kind_and_keys():
    config = vdit.get_config()
    config.text.max_bytes = 32
    assert run_config(config.to_dict()).text.max_bytes == 32
    config.lock()  # as config_flags does: the value is the config file's now, not the user's
    config.text.kind = "t5"
    config.text.path = "weights/t5"
    assert run_config(config.to_dict()).text == T5TextConfig(path="weights/t5")


def test_whole_numbers_are_floats_where_floats_belong():
    run = run_config(vdit.get_config().to_dict())
    config = as_config_dict(dataclasses.replace(run, guidance_scale=4))
    assert config.get_type("guidance_scale") is float
