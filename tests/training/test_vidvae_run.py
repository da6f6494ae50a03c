"""Runs of the autoencoder with all its terms: images and videos mixed, resumed, warm-started,
stopped."""

import shutil

import jax
import numpy as np
import pytest
from run_states import assert_same, state_of

from xgen_jax.commands.train import train
from xgen_jax.config.runs import run_config
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.sources.factory import make_source
from xgen_jax.errors import UserError
from xgen_jax.models.lpips import LPIPS, LPIPSConfig
from xgen_jax.runs.load import load_embedder
from xgen_jax.testing import POINTWISE, VIDVAE, tiny_values
from xgen_jax.training.loss_guard import NonFiniteLoss
from xgen_jax.training.metric_writers import read_jsonl
from xgen_jax.weights.safetensors import write_safetensors

pytestmark = pytest.mark.slow

IMAGE, VIDEO = ({"frames": frames, "height": 16, "width": 16, "batch_size": 2} for frames in (1, 5))
# The rate is 0 at the first step, and does not depend on the number of steps.
OPTIMIZER = {"learning_rate": 1e-3, "warmup_steps": 2}


def values(
    steps=4, lpips=None, buckets=(VIDEO,), model=None, adversarial=None, loop=None, **changes
):
    game = {"discriminator": {"width": 4, "layers": 1}, "optimizer": OPTIMIZER}
    base = tiny_values(
        VIDVAE,
        model=POINTWISE,
        loss={
            "lpips": 0.5 if lpips else 0.0,
            "lpips_weights": lpips,
            "adversarial": game | (adversarial or {}),
        },
        data={"source": {"kind": "synthetic"}, "buckets": buckets},
        optimizer=OPTIMIZER,
        loop={"steps": steps, "checkpoint_every": 2},
    )
    return tiny_values(base, model=model or {}, loop=loop or {}) | changes


def run(workdir, **changes):
    return train(run_config(values(**changes)), workdir)


@pytest.fixture(scope="module")
def lpips(tmp_path_factory):
    """A narrow LPIPS with random weights, as a file in the form of the public weights."""
    model = LPIPS(LPIPSConfig(widths=(2, 2, 2, 2, 2)))
    image = np.zeros((1, 16, 16, 3), np.float32)
    params = jax.jit(model.init)(jax.random.key(0), image, image)["params"]
    tensors, index = {}, 0
    for number, convs in enumerate((2, 2, 3, 3, 3), 1):
        index += number > 1
        for place in range(1, convs + 1):
            layer = params[f"conv{number}_{place}"]
            tensors[f"net.slice{number}.{index}.weight"] = np.transpose(
                layer["kernel"], (3, 2, 0, 1)
            )
            tensors[f"net.slice{number}.{index}.bias"] = np.asarray(layer["bias"])
            index += 2
        tensors[f"lin{number - 1}.model.1.weight"] = np.reshape(
            params[f"head{number}"], (1, -1, 1, 1)
        )
    return str(write_safetensors(tmp_path_factory.mktemp("lpips") / "lpips.safetensors", tensors))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Images and videos, the discriminator from the second step on; also what others start from."""
    workdir = tmp_path_factory.mktemp("mixed") / "run"
    changes = {"buckets": (IMAGE, VIDEO), "adversarial": {"weight": 0.5, "start_step": 1}}
    assert run(workdir, **changes)["step"] == 4
    return workdir, changes


def test_images_and_videos_train_together_and_resume_bit_for_bit(mixed, tmp_path):
    straight, changes = mixed
    data = run_config(values(**changes)).data
    pipeline = Pipeline(make_source(data), data)
    assert all(
        {pipeline.bucket(step).frames for step in steps} == {1, 5} for steps in ((0, 1), (2, 3))
    )
    rows = read_jsonl(straight / "metrics.jsonl")
    assert rows[0]["disc_loss"] == rows[0]["gan_weight"] == 0
    for row in rows[1:]:
        assert 0 < row["disc_loss"] < 4
        assert 0 < row["gan_weight"] <= 0.5e4
        assert min(row["grad_norm_vidvae"], row["grad_norm_discriminator"]) > 0
    state = state_of(straight)
    assert state["params"].keys() == {"vidvae", "discriminator"}
    assert state["ema"].keys() == {"vidvae"}
    shutil.copytree(straight, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    assert run(tmp_path / "run", **changes)["step"] == 4
    assert_same(state_of(tmp_path / "run"), state)


def test_the_perceptual_term_comes_from_a_file_in_parts_of_a_batch_as_well(lpips, tmp_path):
    summary = run(tmp_path / "run", steps=1, lpips=lpips, loop={"accumulate": 2})
    # And a little KL.
    np.testing.assert_allclose(summary["loss"], summary["l1"] + 0.5 * summary["lpips"], atol=3e-5)
    assert summary["lpips"] > 1e-3


def test_a_run_starts_from_another_embedder_and_needs_it_no_more_then(mixed, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(mixed[0], other)
    # The same shapes, another function: that may be, but not unsaid.
    changes = {"init_from": str(other), "model": {"time_up": "trilinear"}}
    run(tmp_path / "run", steps=1, **changes)
    said = "fits, but was another model (there -> here):\n  model.time_up: 'causal' -> 'trilinear'"
    assert said in capsys.readouterr().err
    state = state_of(tmp_path / "run")
    # The first step's learning rate is 0.
    assert_same(state["params"]["vidvae"], state_of(other)["ema"]["vidvae"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        state["ema"],
        state_of(other)["ema"],
    )
    assert_same(load_embedder(other)[1]["model"], state["params"]["vidvae"])
    with pytest.raises(
        UserError, match=r"another configuration.*\n  init_from: '.*other' -> None\n"
    ):
        run(tmp_path / "run", steps=2, **changes | {"init_from": None})
    shutil.rmtree(other)
    assert run(tmp_path / "run", steps=2, **changes)["step"] == 2
    with pytest.raises(UserError, match="there is no folder .*other"):
        run(tmp_path / "second", **changes)
    assert not (tmp_path / "second").exists()


def test_a_start_of_other_shapes_is_refused_before_anything_is_made(mixed, tmp_path):
    message = (
        r"(?s)init_from=.*has other parameters.*\n  model\.latent_channels: 2 -> 3\n"
        r"  .*/kernel: .* -> .*\n\d+ of \d+ parameters differ"
    )
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", init_from=str(mixed[0]), model={"latent_channels": 3})
    assert not (tmp_path / "run").exists()


def test_a_discriminator_that_is_not_finite_stops_the_run(tmp_path):
    absurd = {"weight": 0.5, "optimizer": {"learning_rate": 1e30, "warmup_steps": 0}}
    with pytest.raises(
        NonFiniteLoss, match=r"bucket 5x16x16, samples \[\d+, \d+\]; not finite: .*disc_loss"
    ):
        run(tmp_path, adversarial=absurd, loop={"checkpoint_every": 1})
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state_of(tmp_path)["params"]))


def test_a_batch_that_cannot_be_cut_in_equal_parts_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"a batch of 2 cannot be cut in loop\.accumulate=3 equal parts"
    ):
        run(tmp_path / "run", loop={"accumulate": 3})
    assert not (tmp_path / "run").exists()


def test_frames_too_small_for_lpips_are_refused_before_anything_is_made(lpips, tmp_path):
    with pytest.raises(
        UserError, match="LPIPS needs frames of at least 16x16 pixels; a bucket has 16x8"
    ):
        run(tmp_path / "run", lpips=lpips, buckets=({**VIDEO, "width": 8},))
    assert not (tmp_path / "run").exists()
