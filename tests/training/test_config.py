"""Configurations: there and back through JSON, and mistakes named so that they can be mended."""

import copy
import importlib.util
import json
import pathlib

import pytest

from xgen_jax.errors import UserError
from xgen_jax.training.config import FREE_KEYS, RUNS, differing_keys, flat, run_config, to_dict

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs" / "quickstart").glob("*.py"))


def values(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config().to_dict()


@pytest.fixture
def vidvae():
    return values(next(path for path in CONFIGS if path.stem == "vidvae"))


def test_there_is_a_quickstart_of_every_objective():
    assert {values(path)["objective"] for path in CONFIGS} == RUNS.keys()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_goes_through_json_and_back(path):
    config = run_config(values(path))
    again = run_config(json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert hash(again) == hash(config)  # tuples all the way down, or it could not be a static argument
    assert differing_keys(json.loads(json.dumps(to_dict(config))), to_dict(config)) == []


@pytest.mark.parametrize(
    "place,key,value,message",
    [
        ((), "optimiser", {}, r"config has no key 'optimiser'; did you mean 'optimizer'\?"),
        (("optimizer",), "learnin_rate", 1.0, r"config\.optimizer has no key .*did you mean 'learning_rate'\?"),
        (("loop",), "zzz", 1, r"config\.loop has no key 'zzz'; it knows checkpoint_every, "),
        (("loop",), "steps", 1.5, r"config\.loop\.steps must be int, not 1\.5"),
        (("loop",), "steps", True, r"config\.loop\.steps must be int, not True"),
        (("loop",), "steps", 0, r"steps must be 1 or more, not 0"),
        (("loop",), "compute_dtype", "float16", r"compute_dtype='float16' is not known"),
        (("optimizer",), "learning_rate", "fast", r"config\.optimizer\.learning_rate must be float, not 'fast'"),
        (("model",), "stem", (4, 4), r"config\.model\.stem must have 3 entries, not 2"),
        (("model",), "channels", 64, r"config\.model\.channels must be a list, not 64"),
        (("model",), "channels", ("64",), r"config\.model\.channels\[0\] must be int, not '64'"),
        ((), "model", 3, r"config\.model must be a group of keys, not 3"),
        ((), "objective", "vqvae", r"objective='vqvae' is not known; choose one of vidvae, vdit"),
    ],
)
def test_a_mistake_is_named(vidvae, place, key, value, message):
    group = vidvae
    for name in place:
        group = group[name]
    group[key] = value
    with pytest.raises(UserError, match=message):
        run_config(vidvae)


@pytest.mark.parametrize("place,key", [((), "optimizer"), (("loop",), "steps"), (("data",), "buckets")])
def test_a_missing_key_is_named(vidvae, place, key):
    group = vidvae
    for name in place:
        group = group[name]
    del group[key]
    where = ".".join(("config", *place))
    with pytest.raises(UserError, match=f"^{where} lacks the key '{key}'"):
        run_config(vidvae)


def test_whole_numbers_stand_for_floats_and_none_for_what_may_be_none(vidvae):
    vidvae["optimizer"]["learning_rate"] = 1
    vidvae["data"]["path"] = None
    config = run_config(vidvae)
    assert isinstance(config.optimizer.learning_rate, float)
    assert config.data.path is None


def test_differing_keys_ignores_the_free_ones_and_names_the_others(vidvae):
    old = to_dict(run_config(vidvae))
    new = copy.deepcopy(old)
    new["loop"]["steps"] = 5
    new["mesh"]["data"] = 4
    new["data"]["num_threads"] = 7
    assert differing_keys(old, new) == []
    new["optimizer"]["learning_rate"] = 0.5
    new["model"]["channels"] = (32,)
    assert differing_keys(old, new) == ["model.channels: [64] -> [32]", "optimizer.learning_rate: 0.02 -> 0.5"]


def test_every_free_key_exists():
    known = set()
    for path in CONFIGS:
        known |= flat(to_dict(run_config(values(path)))).keys()
    assert known >= FREE_KEYS
