"""Configurations: to JSON and back, and mistakes named so that they can be fixed."""

import copy
import dataclasses
import importlib.util
import json
import math
import pathlib

import pytest

from xgen_jax.commands.train import train
from xgen_jax.config.build import flat
from xgen_jax.config.changes import FREE_KEYS, differing_keys
from xgen_jax.config.runs import Run, run_config, to_dict
from xgen_jax.data.config import KINDS
from xgen_jax.errors import UserError
from xgen_jax.models.regen_config import PRESETS as REGEN_PRESETS
from xgen_jax.models.vidvae_config import PRESETS
from xgen_jax.testing import VDIT, VIDVAE, task_of, tiny_run
from xgen_jax.training.tasks.vdit_checks import check_buckets

ROOT = pathlib.Path(__file__).parents[2] / "configs"
CONFIGS = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if "def get_config(" in path.read_text() and path.parent.name != "curation"  # of no run
]
QUICKSTART = sorted((ROOT / "quickstart").glob("*.py"))


def name(path):
    return str(path.relative_to(ROOT).with_suffix(""))


def values(path, *argument):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*argument).to_dict()


@pytest.fixture
def vidvae():
    return values(ROOT / "quickstart" / "vidvae.py")


def test_there_is_a_quickstart_of_every_objective():
    trained = set(Run.known)
    assert {values(path)["objective"] for path in QUICKSTART} == trained


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_configuration_goes_through_json_and_back(path):
    config = run_config(values(path))
    again = run_config(json.loads(json.dumps(to_dict(config))))
    assert again == config
    # Tuples all the way down, or it could not be a static argument.
    assert hash(again) == hash(config)
    assert differing_keys(json.loads(json.dumps(to_dict(config))), to_dict(config)) == []


@pytest.mark.parametrize(
    "place,key,value,message",
    [
        (
            (),
            "optimiser",
            {},
            r"--config has no key 'optimiser'; did you mean --config\.optimizer\?",
        ),
        (
            ("optimizer",),
            "learnin_rate",
            1.0,
            r"config\.optimizer has no key .*did you mean --config\.optimizer\.learning_rate\?",
        ),
        (
            ("loop",),
            "zzz",
            1,
            r"config\.loop has no key 'zzz'; it knows accumulate, checkpoint_every, ",
        ),
        (("loop",), "steps", 1.5, r"config\.loop\.steps must be a whole number, not 1\.5"),
        (("loop",), "steps", True, r"config\.loop\.steps must be a whole number, not True"),
        (("loop",), "steps", 0, r"steps must be 1 or more, not 0"),
        (("loop",), "compute_dtype", "float16", r"compute_dtype='float16' is not known"),
        (
            ("optimizer",),
            "learning_rate",
            "fast",
            r"config\.optimizer\.learning_rate must be a number, not 'fast'",
        ),
        (("model",), "stem", (4, 4), r"config\.model\.stem must have 3 entries, not 2"),
        (("model",), "channels", 64, r"config\.model\.channels must be a list, not 64"),
        (
            ("model",),
            "channels",
            ("64",),
            r"config\.model\.channels\[0\] must be a whole number, not '64'",
        ),
        (
            (),
            "model",
            3,
            r"config\.model must be a group of keys, or one of paper, osp-v1\.0, .*, not 3",
        ),
        (
            (),
            "objective",
            "vqvae",
            r"objective='vqvae' is not known \(did you mean 'vidvae'\?\); choose one of vidvae, "
            r"regen, vdit",
        ),
    ],
)
def test_a_mistake_is_named(vidvae, place, key, value, message):
    group = vidvae
    for name in place:
        group = group[name]
    group[key] = value
    with pytest.raises(UserError, match=message):
        run_config(vidvae)


@pytest.mark.parametrize(
    "place,key,value,message",
    [
        (
            (),
            "sampler",
            "euller",
            r"sampler='euller' is not known \(did you mean 'euler'\?\); choose one of",
        ),
        ((), "sample_spacing", "trailing", "spacing='trailing' is for the process 'ddpm'"),
        (("grid",), "steps_offset", 1, "steps_offset=1 is for the spacings ddim_leading"),
        ((), "sample_steps", 0, "steps=0 must be at least 1"),
        (("guidance",), "interval", (0.9, 0.1), "two rising times"),
        (("loss",), "process", "edm", "process='edm' is not known; choose one of flow, ddpm"),
    ],
)
def test_what_could_not_be_sampled_is_not_trained(place, key, value, message):
    config = values(ROOT / "quickstart" / "vdit.py")
    group = config
    for name in place:
        group = group[name]
    group[key] = value
    with pytest.raises(UserError, match=message):
        run_config(config)


@pytest.mark.parametrize(
    "place,key", [((), "optimizer"), (("loop",), "steps"), (("data",), "buckets")]
)
def test_a_missing_key_is_named(vidvae, place, key):
    group = vidvae
    for name in place:
        group = group[name]
    del group[key]
    where = ".".join(("--config", *place))
    with pytest.raises(UserError, match=f"^{where} lacks the key '{key}'"):
        run_config(vidvae)


def test_whole_numbers_stand_for_floats_and_none_for_what_may_be_none(vidvae):
    vidvae["optimizer"]["learning_rate"] = 1
    vidvae["init_from"] = None
    config = run_config(vidvae)
    assert isinstance(config.optimizer.learning_rate, float)
    assert config.init_from is None


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_folder_given_by_a_flag_decides_what_is_trained_on(path, tmp_path):
    """Flags can set the keys of every kind; an old flag means the same."""
    given = values(path)
    kind = given["data"]["source"]["kind"]
    given["data"]["source"]["path"] = str(tmp_path)
    config = run_config(given)
    assert config.data.source.path == str(tmp_path)
    assert config.data.source.kind == ("video_folder" if kind == "synthetic" else kind)
    old = values(path)
    old["data"]["path"] = str(tmp_path)
    assert run_config(old) == config


def test_a_run_of_an_older_release_is_the_same_run(vidvae):
    config = run_config(vidvae)
    old = copy.deepcopy(vidvae)
    old["data"] |= {"source": "synthetic", "path": None, "split": "train", "num_clips": 1_000_000}
    old["data"] |= {"style": "filled", "fps": None, "stride": 1, "require_captions": True}
    old["data"]["flip"] = False
    assert run_config(old) == config


def test_differing_keys_ignores_the_free_ones_and_names_the_others(vidvae):
    old = to_dict(run_config(vidvae))
    new = copy.deepcopy(old)
    new["loop"]["steps"] = 5
    new["mesh"]["data"] = 4
    new["data"]["num_threads"] = 7
    assert differing_keys(old, new) == []
    new["optimizer"]["learning_rate"] = 0.5
    new["model"]["channels"] = (32,)
    assert differing_keys(old, new) == [
        "model.channels: [64] -> [32]",
        "optimizer.learning_rate: 0.02 -> 0.5",
    ]


def shrunk(values, embedder):
    """Shrink a run to one step of tiny networks; every part and every kind of bucket stays."""
    values = copy.deepcopy(values)
    # tests/training/test_evaluation.py evaluates.
    values["loop"] |= {"steps": 1, "log_every": 1, "evaluate_every": 0}
    # bfloat16 takes half as long again to compile on a CPU; tests/training has steps with it.
    values["loop"]["compute_dtype"] = "float32"
    values["mesh"] = {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1}
    model, buckets = values["model"], values["data"]["buckets"]
    values["data"] |= {"source": {"kind": "synthetic", "num_clips": 8}, "num_threads": 0}
    if values["objective"] == "vdit":
        values["embedder"] = str(embedder)
        model |= {"width": 16, "depth": 2, "heads": 2, "text_width": 16}
        values["text"] |= {"width": 16, "depth": 1, "heads": 2}
        if values["lora"]:
            base = embedder.parent / "vdit"
            of_base = json.loads((base / "config.json").read_text())
            values |= {"init_from": str(base)} | {part: of_base[part] for part in ("model", "text")}
        space, time = 4, 4
    elif values["objective"] == "regen":
        encoder = model["encoder"]
        encoder |= {
            "channels": (4,) * len(encoder["channels"]),
            "blocks": 1,
            "mid_attention": False,
        }
        encoder |= {
            "kernels": ((1, 1, 1), (1, 1, 1)),
            "stem_hidden": min(4, encoder["stem_hidden"]),
            "remat": "none",
        }
        model |= {
            "width": 16,
            "depth": 1,
            "heads": 2,
            "siren_hidden": 4,
            "siren_depth": 1,
            "siren_features": 4,
        }
        space, time = 4, None
    else:
        for key in ("channels", "space_reduction", "time_reduction"):
            model[key] = model[key][:2]
        model |= {
            "channels": (4,) * len(model["channels"]),
            "blocks": 1,
            "kernels": ((1, 1, 1), (1, 1, 1)),
        }
        model["time_expansion"] = None
        model["stem_hidden"] = min(4, model["stem_hidden"])
        config = run_config(values).model
        space, time = config.space_factor, config.time_factor
        # There are no weights here; tests/training/test_vidvae_loss.py has the term.
        values["loss"]["lpips"] = 0.0
        values["init_from"] = None  # tests/training/test_vidvae_run.py has starts from another run
        adversarial = values["loss"]["adversarial"]
        adversarial["start_step"] = 0
        adversarial["discriminator"] |= {"width": 4}
    for bucket in buckets:
        if values["objective"] != "regen":  # whose chunks are as long as they were
            bucket["frames"] = 1 + time * (bucket["frames"] > 1)
        bucket |= {"height": 4 * space, "width": 4 * space, "batch_size": 2}
    return values


# The paper's depth alone takes half a minute to compile. The stages of vdit/ need latents:
# tests/test_vdit_stages.py.
QUICK = ("quickstart/vidvae",)  # test_regen_run.py has runs of a REGEN


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=name(p), marks=() if name(p) in QUICK else pytest.mark.slow)
        for p in CONFIGS
        if not name(p).startswith("vdit/")
    ],
)
def test_every_configuration_takes_a_step_when_shrunk(path, tiny_runs, tmp_path):
    config = run_config(shrunk(values(path), tiny_runs / "vidvae"))
    summary = train(config, tmp_path / "run")
    assert summary["step"] == 1
    assert all(math.isfinite(value) for value in summary.values() if isinstance(value, float))


@pytest.mark.slow
def test_the_quickstart_for_videos_takes_a_step_when_shrunk(tmp_path):
    given = values(ROOT / "quickstart" / "vidvae.py", "videos")
    with pytest.raises(UserError, match="needs a folder: give --config.data.source.path=FOLDER"):
        task_of(run_config(given))
    assert train(run_config(shrunk(given, None)), tmp_path / "run")["step"] == 1


def test_the_quickstart_for_videos_has_a_head_and_the_adversarial_one_that_of_shapes():
    shapes, adversarial = (
        run_config(values(ROOT / "quickstart" / f"{name}.py"))
        for name in ("vidvae", "vidvae_adversarial")
    )
    assert adversarial.model == shapes.model
    plain = dataclasses.replace(adversarial.loss, adversarial=shapes.loss.adversarial)
    assert plain == shapes.loss and adversarial.loss.adversarial.weight
    videos = run_config(values(ROOT / "quickstart" / "vidvae.py", "videos"))
    assert videos.data.source.kind == "video_folder"
    assert videos.model.head_channels and videos.loss.gradient and videos.loss.chroma
    assert not videos.data.source.require_captions and videos.data.source.held_out_fraction
    with pytest.raises(UserError, match="clips='films' is not known; choose one of shapes, videos"):
        values(ROOT / "quickstart" / "vidvae.py", "films")


def test_the_papers_configuration_is_the_papers():
    given = values(ROOT / "vidvae" / "paper.py")
    config = run_config(given)
    assert [(b.frames, b.height, b.width) for b in config.data.buckets] == [
        (1, 768, 768),
        (17, 512, 512),
        (65, 256, 256),
    ]
    assert (config.model.time_factor, config.model.space_factor, config.model.latent_channels) == (
        4,
        8,
        4,
    )
    assert dataclasses.replace(config.model, remat="none") == PRESETS["paper"]
    with pytest.raises(
        UserError,
        match=r"loss\.lpips=1\.0 needs loss\.lpips_weights=FILE.*; loss\.lpips=0 does without",
    ):
        task_of(run_config(given | {"data": {**given["data"], "source": {"kind": "synthetic"}}}))


def test_the_papers_regen_is_the_papers():
    for ratio in (4, 8, 16, 32):
        config = run_config(values(ROOT / "regen" / "paper.py", str(ratio)))
        assert [b.shape for b in config.data.buckets] == [(1, 192, 320), (2 * ratio + 2, 192, 320)]
        assert (
            dataclasses.replace(config.model, attention="xla") == REGEN_PRESETS[f"paper-{ratio}x"]
        )
    terms = (
        config.loss.process,
        config.loss.prediction,
        config.loss.one_step_fraction,
        config.loss.kl,
        config.loss.lpips,
    )
    assert terms == ("ddpm", "eps", 0, 0, 0)


@pytest.mark.parametrize("ratio", [8, 16])
def test_the_quickstarts_regen_and_its_transformer_are_of_one_ratio(ratio):
    """Folders are those in the lab notes; a clip is one chunk."""
    regen, vdit = (
        run_config(values(ROOT / "quickstart" / f"{n}.py", str(ratio)))
        for n in ("regen", "vdit_regen")
    )
    preset, head = REGEN_PRESETS[f"tiny-{ratio}x"], {8: 8, 16: 0}[ratio]
    assert regen.model == dataclasses.replace(preset, head_channels=head)
    assert (
        [b.shape for b in regen.data.buckets]
        == [b.shape for b in vdit.data.buckets]
        == [(ratio + 1, 32, 32)]
    )
    assert vdit.embedder == {8: "runs/quickstart/regen", 16: "runs/quickstart/regen16"}[ratio]
    check_buckets(vdit, regen.model.latent_shape)


def test_a_discriminator_is_turned_on_by_one_key(vidvae):
    vidvae["loss"]["adversarial"]["weight"] = 0.5
    assert run_config(vidvae).loss.adversarial.optimizer.b1 == 0.5
    vidvae["loss"]["adversarial"]["optimizer"]["learnin_rate"] = 1.0
    with pytest.raises(
        UserError, match=r"config\.loss\.adversarial\.optimizer has no key .*learning_rate\?"
    ):
        run_config(vidvae)


def with_t5(**text):
    return values(ROOT / "quickstart" / "vdit.py") | {
        "text": {"kind": "t5", "path": "models/t5", **text}
    }


def test_the_kind_of_text_says_which_keys_it_has():
    config = run_config(with_t5(length=120))
    assert (config.text.path, config.text.length) == ("models/t5", 120)
    assert run_config(json.loads(json.dumps(to_dict(config)))) == config
    moved = to_dict(run_config(with_t5(length=120, path="elsewhere")))
    assert differing_keys(to_dict(config), moved) == []
    assert differing_keys(to_dict(config), to_dict(run_config(with_t5()))) == [
        "text.length: 120 -> 250"
    ]
    with pytest.raises(
        UserError, match=r"config\.text\.kind='clip' is not known; choose one of bytes, t5"
    ):
        run_config(with_t5(kind="clip"))
    with pytest.raises(UserError, match=r"config\.text has no key 'max_bytes'"):
        run_config(with_t5(max_bytes=64))
    without_kind = values(ROOT / "quickstart" / "vdit.py")
    del without_kind["text"]["kind"]  # as older runs wrote it
    assert run_config(without_kind).text.max_bytes == 64
    with pytest.raises(UserError, match=r"config\.text must be a group of keys, not 3"):
        run_config({**without_kind, "text": 3})


def test_every_free_key_exists():
    known = set()
    for path in CONFIGS:
        known |= flat(to_dict(run_config(values(path)))).keys()
    known |= flat(to_dict(run_config(with_t5()))).keys()
    for source in KINDS.values():
        known |= {f"data.source.{field.name}" for field in dataclasses.fields(source)}
    assert known >= FREE_KEYS


@pytest.mark.parametrize(
    "values,changes,message",
    [
        (VIDVAE, {"optimizer": {"schedule": "cosin"}}, "optimizer.schedule='cosin' is not known"),
        (VIDVAE, {"optimizer": {"name": "adam"}}, "optimizer.name='adam' is not known"),
        (VIDVAE, {"model": {"attention": "flash"}}, "attention='flash' is not known"),
        (VDIT, {"model": {"attention": "flash"}}, "attention='flash' is not known"),
        (VDIT, {"text": {"attention": "flash"}}, "text.attention='flash' is not known"),
        (VDIT, {"loss": {"time_distribution": "normal"}}, "loss.time_distribution='normal' is not"),
    ],
)
def test_a_name_is_refused_before_any_folder_is_touched(values, changes, message):
    with pytest.raises(UserError, match=message):
        tiny_run(values, **{"embedder": "vae"} if values is VDIT else {}, **changes)
