"""Runs of REGEN: images and videos mixed, resumed, warm-started, refused before anything is
written."""

import shutil

import jax
import numpy as np
import pytest
from run_states import assert_same, state_of
from test_regen_loss import MODEL

from xgen_jax.commands.train import train
from xgen_jax.config.runs import run_config, to_dict
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.sources.factory import make_source
from xgen_jax.errors import UserError
from xgen_jax.runs.load import load_embedder

IMAGE, CHUNK, LONG = (
    {"frames": frames, "height": 8, "width": 8, "batch_size": 2} for frames in (1, 5, 11)
)


def values(steps=4, buckets=(CHUNK,), model=None, **changes):
    return {
        "objective": "regen",
        "model": to_dict(MODEL) | (model or {}),
        "loss": {"kl": 1e-3, "one_step_fraction": 0.5},
        "data": {"source": {"kind": "synthetic", "num_clips": 100}, "buckets": buckets},
        # The rate is 0 at the first step, and does not depend on the number of steps.
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
        "loop": {"steps": steps, "compute_dtype": "float32", "checkpoint_every": 2, "log_every": 1},
        "mesh": {"fsdp": 1},
    } | changes


def run(workdir, **changes):
    return train(run_config(values(**changes)), workdir)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Images, and clips of two chunks and a frame; also what others start from."""
    workdir = tmp_path_factory.mktemp("mixed") / "run"
    changes = {"buckets": (IMAGE, LONG)}
    assert run(workdir, **changes)["step"] == 4
    return workdir, changes


@pytest.mark.slow
def test_images_and_videos_train_together_and_resume_bit_for_bit(mixed, tmp_path):
    straight, changes = mixed
    data = run_config(values(**changes)).data
    pipeline = Pipeline(make_source(data), data)
    assert {pipeline.bucket(step).frames for step in range(2)} == {1, 11}
    state = state_of(straight)
    assert state["params"].keys() == state["ema"].keys() == {"regen"}
    shutil.copytree(straight, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    assert run(tmp_path / "run", **changes)["step"] == 4
    assert_same(state_of(tmp_path / "run"), state)


@pytest.mark.slow
def test_a_finished_run_is_an_embedder_of_unit_latents(mixed):
    """The statistics are of content and motion latents together, over the clips of its first
    steps."""
    embedder, params = load_embedder(mixed[0])
    data = run_config(values(**mixed[1])).data
    pipeline = Pipeline(make_source(data), data)
    encode = jax.jit(embedder.encode)
    latents = [
        encode(params, pipeline.batch(step)["video"] / np.float32(127.5) - 1) for step in range(32)
    ]
    assert {z.shape[1:] for z in latents} == {(1, 2, 2, 3), (5, 2, 2, 3)}
    values_NC = np.concatenate([np.reshape(z, (-1, 3)) for z in latents])
    np.testing.assert_allclose(values_NC.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(values_NC.std(0), 1, atol=1e-3)


@pytest.mark.slow
def test_a_run_starts_from_another(mixed, tmp_path):
    run(tmp_path / "run", steps=1, init_from=str(mixed[0]))
    # The first step's learning rate is 0.
    assert_same(state_of(tmp_path / "run")["params"]["regen"], state_of(mixed[0])["ema"]["regen"])


@pytest.mark.parametrize(
    "bucket, message", [({"frames": 8}, "5n and 5n \\+ 1; .* 6, 10"), ({"height": 10}, "height 10")]
)
def test_a_bucket_that_it_cannot_take_is_refused_before_anything_is_made(tmp_path, bucket, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", buckets=({**CHUNK, **bucket},))
    assert not (tmp_path / "run").exists()


def test_windows_across_borders_need_clips_that_have_one():
    loss = {"windows": "shifted"}
    assert (
        run_config(values(buckets=(CHUNK, {**CHUNK, "frames": 10}), loss=loss)).loss.windows
        == "shifted"
    )
    with pytest.raises(
        UserError, match="two chunks, 10 frames or more, and the longest bucket has 5"
    ):
        run_config(values(loss=loss))


@pytest.mark.slow
def test_a_start_that_does_not_fit_is_refused_before_anything_is_made(mixed, tiny_runs, tmp_path):
    with pytest.raises(UserError, match=r"has other parameters.*\n  model\.width: 16 -> 32\n"):
        run(tmp_path / "run", init_from=str(mixed[0]), model={"width": 32})
    with pytest.raises(UserError, match="holds a vidvae network; give a folder of a regen run"):
        run(tmp_path / "run", init_from=str(tiny_runs / "vidvae"))
    with pytest.raises(UserError, match=r"steps=0 must be at least 1"):
        run(tmp_path / "run", decode_steps=0)
    assert not (tmp_path / "run").exists()
