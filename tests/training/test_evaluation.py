"""Evaluation inside the loop: held-out figures, a preview, a trace; training is unchanged."""

import jax
import numpy as np
import pytest
from run_states import assert_same, state_of

from xgen_jax.commands.train import train
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.sources.factory import make_source
from xgen_jax.data.sources.synthetic import ATTRIBUTES
from xgen_jax.data.video import read_video
from xgen_jax.errors import UserError
from xgen_jax.evaluation import captions
from xgen_jax.parallel.mesh import make_mesh
from xgen_jax.parallel.sharding import batch_sharding
from xgen_jax.testing import VDIT, VIDVAE, task_of, tiny_run
from xgen_jax.training.metric_writers import read_jsonl

pytestmark = pytest.mark.slow

LOOP = {"steps": 3, "evaluate_every": 2, "evaluate_batches": 1}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A VidVAE's run with two evaluations and a trace of its second step."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    train(tiny_run(VIDVAE, loop={**LOOP, "profile_steps": [1, 1]}), folder)
    return folder


def test_held_out_figures_stand_in_the_metrics(evaluated):
    rows = read_jsonl(evaluated / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert "held_out_psnr_db" not in rows[0]
    assert np.isfinite([row["held_out_psnr_db"] for row in rows[1:]]).all()


def test_a_preview_shows_clips_above_their_reconstructions(evaluated):
    files = sorted((evaluated / "previews").iterdir())
    assert [file.name for file in files] == ["00000002.gif", "00000003.gif"]
    video, _ = read_video(files[0])
    assert video.shape == (5, 2 * 16, 2 * 16, 3)  # two clips, in two rows


def test_steps_are_traced(evaluated):
    assert list((evaluated / "profile").rglob("*.xplane.pb"))


def test_evaluation_changes_nothing(evaluated, tmp_path):
    train(tiny_run(VIDVAE, loop={"steps": 3}), tmp_path / "plain")
    assert_same(state_of(tmp_path / "plain"), state_of(evaluated))


def test_a_transformer_is_evaluated_by_quartile_of_time_and_sampled(tiny_runs, tmp_path):
    changes = {
        "embedder": str(tiny_runs / "vidvae"),
        "model": {"micro_cond": True},
        "loss": {"shift_by_size": True},
        "loop": {**LOOP, "steps": 2},
    }
    train(tiny_run(VDIT, **changes), tmp_path / "run")
    last = read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]
    quartiles = [last[f"held_out_loss_quartile_{quartile}"] for quartile in range(1, 5)]
    assert last["held_out_loss"] == pytest.approx(np.mean(quartiles), rel=1e-5)
    assert len(set(quartiles)) == 4
    (preview,) = (tmp_path / "run" / "previews").iterdir()
    assert read_video(preview)[0].shape == (5, 16, 2 * 16, 3)


ACCURACIES = [f"held_out_accuracy_{name}" for name in (*ATTRIBUTES, "all")]


def accuracies(folder):
    rows = read_jsonl(folder / "metrics.jsonl")
    return {row["step"]: [row[name] for name in ACCURACIES] for row in rows if ACCURACIES[0] in row}


def test_accuracies_of_captions_are_tracked_and_resumed_exactly(tiny_runs, tmp_path, monkeypatch):
    """A verifier that only looks at the first pixel, for tiny networks make no shapes."""
    monkeypatch.setattr(
        captions,
        "read_attributes",
        lambda video: {
            name: values[video[0, 0, 0, 0] % len(values)] for name, values in ATTRIBUTES.items()
        },
    )
    changes = {"embedder": str(tiny_runs / "vidvae"), "optimizer": {"learning_rate": 0.1}}

    def run(name, steps, **loop):
        loop = {"checkpoint_every": 2, "evaluate_every": 2, "evaluate_batches": 1, **loop}
        train(tiny_run(VDIT, **changes, loop={"steps": steps, **loop}), tmp_path / name)
        return tmp_path / name

    best = {"keep_best": "held_out_accuracy_shape", "evaluate_prompts": 5}
    whole = run("whole", 4, **best)
    found = accuracies(whole)
    assert list(found) == [2, 4] and found[2] != found[4]
    for values in found.values():
        assert all(round(5 * value, 6) in range(6) for value in values)
    run("resumed", 2, **best)
    resumed = run("resumed", 4, **best)
    assert accuracies(resumed) == found
    assert_same(state_of(resumed), state_of(whole))


def test_other_videos_have_no_accuracies_to_keep_the_best_of(tiny_runs, tmp_path):
    changes = {
        "embedder": str(tiny_runs / "vidvae"),
        "data": {"source": {"kind": "synthetic", "style": "outline"}},
        "loop": {**LOOP, "keep_best": "held_out_accuracy_all"},
    }
    with pytest.raises(UserError, match="held_out_accuracy_all.* is not known"):
        train(tiny_run(VDIT, **changes), tmp_path / "run")


def test_prompts_are_sampled_from_the_same_noise_in_every_call(tiny_runs):
    config = tiny_run(VDIT, embedder=str(tiny_runs / "vidvae"))
    task = task_of(config)
    assert task.samples_prompts
    batch = Pipeline(make_source(config.data), config.data).batch(0)
    sharding = batch_sharding(make_mesh(config.mesh))
    arrays, _ = task.to_device(batch, sharding)
    params = task.init(jax.random.key(0), arrays)
    prompts = ["a red circle moving left", "a blue square moving up", "a red circle moving left"]
    two_at_once = list(task.generate(params, arrays, prompts))
    assert [video.shape for video in two_at_once] == [(5, 16, 16, 3)] * 3
    assert (two_at_once[0] != two_at_once[2]).any()  # another noise
    for one, again in zip(two_at_once, task.generate(params, arrays, prompts[:2])):
        np.testing.assert_array_equal(one, again)
    swapped = list(task.generate(params, arrays, [*prompts[:2], prompts[1]]))
    np.testing.assert_array_equal(swapped[0], two_at_once[0])


@pytest.mark.parametrize("steps", [[3, 1], [-1, 2]])
def test_a_trace_needs_a_first_and_a_last_step(steps):
    with pytest.raises(UserError, match=r"profile_steps=.* must be a first and a last step"):
        tiny_run(VIDVAE, loop={"profile_steps": steps})
