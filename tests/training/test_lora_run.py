"""Runs that train an adapter: the base is unchanged, an interrupted run ends as an uninterrupted
one, and commands load the result."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from run_states import contents, state_of

import xgen_jax
from xgen_jax import convert
from xgen_jax.commands.train import train
from xgen_jax.config.runs import run_config
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.sources.factory import make_source
from xgen_jax.errors import UserError
from xgen_jax.inference.text_to_video import load_text_to_video
from xgen_jax.models.fingerprint import fingerprint
from xgen_jax.parallel import sharding
from xgen_jax.runs.folder import ADAPTER, RunFolder
from xgen_jax.runs.load import load_text_encoder
from xgen_jax.testing import VDIT, task_of
from xgen_jax.training.metric_writers import read_jsonl
from xgen_jax.training.state import sample_keys
from xgen_jax.weights.lora import read_adapter

pytestmark = pytest.mark.slow

PROMPT = "a red circle moving left"


def values(root, steps=6, **changes):
    run = {
        **VDIT,
        "embedder": str(root / "vidvae"),
        "init_from": str(root / "vdit"),
        "lora": {"rank": 4, "alpha": 8.0},
        "data": {**VDIT["data"], "source": {"kind": "synthetic", "num_clips": 2}},
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 1},
        "loop": {
            "steps": steps,
            "compute_dtype": "float32",
            "log_every": 1,
            "checkpoint_every": 3,
            "ema_decay": 0.5,
        },
    }
    return {
        key: {**value, **changes.get(key, {})} if isinstance(value, dict) else value
        for key, value in run.items()
    }


@pytest.fixture(scope="module")
def root(tiny_runs, tmp_path_factory):
    """The tiny runs, and "straight", an adapter of six steps that was never stopped."""
    root = tmp_path_factory.mktemp("lora") / "runs"
    shutil.copytree(tiny_runs, root)
    before = contents(root)
    train(run_config(values(root)), root / "straight")
    assert contents(root).items() >= before.items(), "the base or its embedder has changed"
    return root


@pytest.fixture(scope="module")
def measured(root):
    """(the objective, a batch's arrays, keys of a step, its compiled loss)."""
    config = run_config(values(root))
    objective = task_of(config)
    batch = Pipeline(make_source(config.data), config.data).batch(0)
    arrays = objective.prepare(objective.batch_arrays(batch))

    def keys(step):
        return sample_keys(0, np.int32(step), batch["sample_id"].astype(np.uint32))

    return objective, arrays, keys, jax.jit(objective.loss)


def test_step_0_is_the_base(measured):
    objective, arrays, keys, loss = measured
    params = objective.init(jax.random.key(0), arrays)
    found, _ = loss(params, arrays, keys(0), 0, objective.frozen)
    wanted, _ = jax.jit(objective.base.loss)(objective.frozen, arrays, keys(0), 0)
    np.testing.assert_array_equal(found, wanted)


def test_the_loss_of_a_fixed_batch_falls(root, measured):
    objective, arrays, keys, loss = measured

    def mean(params):
        return np.mean(
            [loss(params, arrays, keys(step), 0, objective.frozen)[0] for step in range(16)]
        )

    before = objective.init(jax.random.key(0), arrays)
    assert mean(state_of(root / "straight")["params"]) < mean(before)


def test_it_learns_and_keeps_and_averages_the_adapter_alone(root):
    rows = read_jsonl(root / "straight" / "metrics.jsonl")
    state = state_of(root / "straight")
    assert state["params"].keys() == state["ema"].keys() == {"lora"}
    sizes = [leaf.size for leaf in jax.tree.leaves(state["params"])]
    base = RunFolder(root / "vdit").ema_params()
    trained = RunFolder(root / "straight").read_json("run.json")["parameters"]
    assert trained == sum(sizes) < sum(leaf.size for leaf in jax.tree.leaves(base)) / 2
    # Two moments and a few counters: nothing of the base.
    assert sum(np.size(leaf) for leaf in jax.tree.leaves(state["opt_state"])) < 2 * sum(sizes) + 10
    assert all(np.any(pair["b"]) for pair in state["params"]["lora"].values())
    assert len(rows) == 6 and all(row["grad_norm"] > 0 for row in rows)


def test_a_resumed_run_is_the_run_that_never_stopped(root):
    shutil.copytree(root / "straight", root / "resumed")
    for name in ("checkpoints/6", ADAPTER):
        path = root / "resumed" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert train(run_config(values(root)), root / "resumed")["step"] == 6
    jax.tree.map(
        np.testing.assert_array_equal, state_of(root / "resumed"), state_of(root / "straight")
    )
    assert (root / "resumed" / ADAPTER).read_bytes() == (root / "straight" / ADAPTER).read_bytes()


def test_the_file_is_the_average_with_the_bases_fingerprint(root):
    base = RunFolder(root / "vdit")
    model, params = base.config().model, base.ema_params()
    config, adapter = read_adapter(root / "straight", params, fingerprint(model, params))
    assert config == RunFolder(root / "straight").config().lora
    jax.tree.map(np.testing.assert_array_equal, adapter, state_of(root / "straight")["ema"]["lora"])


def test_folder_file_and_merged_folder_sample_the_same(root):
    wanted = xgen_jax.load(root / "straight")(PROMPT)
    base = load_text_to_video(root / "vdit")
    by_file = load_text_to_video(root / "vdit", lora=f"{root / 'straight' / ADAPTER}")
    np.testing.assert_array_equal(by_file(PROMPT), wanted)
    assert np.any(base(PROMPT) != wanted)
    half = load_text_to_video(root / "vdit", lora=f"{root / 'straight'}:0.5")
    jax.tree.map(
        lambda x, y, z: np.testing.assert_allclose(x, (y + z) / 2, atol=1e-6),
        *(model.networks.params["vdit"] for model in (half, base, by_file)),
    )
    arguments = {
        "kind": "lora",
        "source": str(root / "straight" / ADAPTER),
        "base": str(root / "vdit"),
    }
    summary = convert(**arguments, out=str(root / "merged"))
    np.testing.assert_array_equal(xgen_jax.load(root / "merged")(PROMPT), wanted)
    merged = RunFolder(root / "merged")
    assert merged.read_json("run.json")["adapter"] == arguments["source"]
    assert summary["fingerprint"] == fingerprint(
        merged.config().model, RunFolder(root / "straight").ema_params()
    )
    with pytest.raises(UserError, match="holds a model already"):
        convert(**arguments, out=str(root / "merged"))
    # The text encoder of a run with an adapter is its base's.
    jax.tree.map(
        np.testing.assert_array_equal,
        load_text_encoder(root / "straight")[1],
        load_text_encoder(root / "vdit")[1],
    )


def test_it_is_a_base_once_merged(root, tmp_path):
    with pytest.raises(
        UserError, match="holds an adapter; make a base of it with launch/convert.py --kind=lora"
    ):
        train(
            run_config({**values(root), "init_from": str(root / "straight")}), tmp_path / "second"
        )
    source = f"{root / 'straight'}:2"
    convert(kind="lora", source=source, base=str(root / "vdit"), out=str(tmp_path / "merged"))
    objective = task_of(run_config({**values(root), "init_from": str(tmp_path / "merged")}))
    folder = RunFolder(tmp_path / "merged")
    assert objective.fingerprints()["base"] == fingerprint(
        folder.config().model, folder.ema_params()
    )


def test_another_base_is_refused_with_both_fingerprints(root, tmp_path):
    moved = tmp_path / "runs"
    for name in ("vidvae", "vdit", "straight"):
        shutil.copytree(root / name, moved / name)
    before = RunFolder(root / "vdit").ema_params()
    # Trained on by one step, the base is another one.
    base, checkpoints = RunFolder(moved / "vdit").config(), RunFolder(moved / "vdit").checkpoints()
    checkpoints.save(
        3, {"ema": jax.tree.map(lambda x: x + 1e-6, before)}, checkpoints.restore_data()
    )
    checkpoints.wait()
    after = RunFolder(moved / "vdit").ema_params()
    old, new = (fingerprint(base.model, params) for params in (before, after))
    config = run_config({**values(root), "init_from": str(moved / "vdit")})
    RunFolder(moved / "straight").write_json("config.json", dataclasses.asdict(config))
    for attempt in (
        lambda: xgen_jax.load(moved / "straight"),
        lambda: load_text_to_video(moved / "vdit", lora=str(root / "straight")),
        lambda: train(config, moved / "straight"),
    ):
        with pytest.raises(UserError, match=f"(?s)base {old}.*{new}"):
            attempt()


def test_runs_moved_together_find_the_base_next_to_them(root, tmp_path):
    for name in ("vidvae", "vdit", "straight"):
        shutil.copytree(root / name, tmp_path / name)
    config = dataclasses.replace(
        RunFolder(root / "straight").config(), init_from="gone/vdit", embedder="gone/vidvae"
    )
    RunFolder(tmp_path / "straight").write_json("config.json", dataclasses.asdict(config))
    moved = RunFolder(tmp_path / "straight").ema_params()
    jax.tree.map(np.testing.assert_array_equal, moved, RunFolder(root / "straight").ema_params())


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"init_from": None}, "lora needs a base: give init_from=FOLDER"),
        ({"optimizer": {"name": "muon", "learning_rate": 1e-2}}, "an adapter takes 'adamw'"),
        ({"lora": {"rank": 17}}, "lora.rank=17 is more than vdit/.* can have: choose 16"),
        (
            {"lora": {"rank": 2, "rules": ["mlp/fc3/kernel"]}},
            "finds none of .*; the nearest: vdit/.*mlp/fc",
        ),
        (
            {"lora": {"ranks": 2}},
            "config.lora has no key 'ranks'; did you mean --config.lora.rank?",
        ),
        (
            {"model": {**VDIT["model"], "qk_norm": False}},
            r"does not fit this run .*model.qk_norm: True -> False",
        ),
        ({"text": {**VDIT["text"], "depth": 2}}, r"does not fit this run .*text.depth: 1 -> 2"),
    ],
)
def test_what_cannot_be_right_is_refused_and_leaves_nothing(root, tmp_path, changes, message):
    with pytest.raises(UserError, match=f"(?s){message}"):
        train(run_config({**values(root), **changes}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"base": None}, "--kind=lora needs --base=FOLDER"),
        ({"kind": "pixart"}, "no other kind takes it"),
        ({"base": "vidvae"}, "holds a vidvae run; give a transformer: a vdit run"),
        ({"source": "straight:x"}, "must be FILE or FILE:SCALE, and 'x' is not a number"),
        ({"source": "nowhere"}, "there is no .*nowhere"),
    ],
)
def test_arguments_of_merging_that_cannot_be_right_are_refused(
    root, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(root)
    arguments = {
        "kind": "lora",
        "source": "straight",
        "base": "vdit",
        "out": str(tmp_path / "out"),
    } | arguments
    with pytest.raises(UserError, match=message):
        convert(**arguments)
    assert not (tmp_path / "out").exists()


def test_the_base_and_the_adapter_are_split_over_devices(root, monkeypatch):
    """Six steps on eight devices, with all that can be sharded sharded, end as on one."""
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 0)
    config = run_config(values(root, mesh={"fsdp": 2, "tensor": 2, "sequence": 2}))
    train(config, root / "eight_devices")
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5),
        state_of(root / "eight_devices")["ema"],
        state_of(root / "straight")["ema"],
    )
