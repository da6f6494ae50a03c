"""Evaluation inside the loop: held-out figures, a preview, a trace; training is unchanged."""

import numpy as np
import pytest
from run_states import assert_same, state_of

from xgen_jax.commands.train import train
from xgen_jax.data.video import read_video
from xgen_jax.errors import UserError
from xgen_jax.testing import VDIT, VIDVAE, tiny_run
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


@pytest.mark.parametrize("steps", [[3, 1], [-1, 2]])
def test_a_trace_needs_a_first_and_a_last_step(steps):
    with pytest.raises(UserError, match=r"profile_steps=.* must be a first and a last step"):
        tiny_run(VIDVAE, loop={"profile_steps": steps})
