"""The three training stages: their buckets fit the embedder; each builds, shards and takes a step
when shrunk."""

import dataclasses
import importlib.util
import pathlib
import shutil

import jax
import numpy as np
import pytest

from xgen_jax.commands.train import train
from xgen_jax.config.runs import VidVAEWeights, run_config
from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, LatentsConfig
from xgen_jax.data.latent_writer import LatentWriter
from xgen_jax.errors import UserError
from xgen_jax.models.regen_config import PRESETS as REGEN_PRESETS
from xgen_jax.models.vdit import count_parameters
from xgen_jax.models.vidvae import VidVAE
from xgen_jax.models.vidvae_config import PRESETS
from xgen_jax.parallel import sharding
from xgen_jax.parallel.mesh import make_mesh
from xgen_jax.runs.folder import LATENT_STATISTICS, RunFolder
from xgen_jax.runs.load import load_embedder
from xgen_jax.runs.text_encoders import make_conditioner
from xgen_jax.runs.warm_start import extend_null_caption
from xgen_jax.testing import VIDVAE_4X8X8, warm_start
from xgen_jax.training.state import abstract_state
from xgen_jax.training.tasks.vdit import VDiTTask
from xgen_jax.training.tasks.vdit_checks import check_buckets

STAGES = ("240p", "480p", "720p")
IMAGE, VIDEO = (Bucket(frames=frames, height=24, width=16, batch_size=8) for frames in (1, 9))
TEXT_WIDTH, TOKENS, CLIPS = 16, 4, 16


def stage(name, devices="64"):
    path = pathlib.Path(__file__).parents[1] / "configs" / "vdit" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"stage_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return run_config(module.get_config(devices).to_dict())


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_what_the_papers_embedder_takes(name):
    config = stage(name)
    assert count_parameters(config.model) == 767_452_064
    check_buckets(config, PRESETS["paper"].latent_shape)
    largest = max(b.height * b.width for b in config.data.buckets if b.frames > 1 and b.keep_prob)
    assert largest == {"240p": 320 * 320, "480p": 960 * 960, "720p": 960 * 960}[name]
    assert config.data.fit
    assert config.optimizer.learning_rate == 2e-5
    assert all(
        b.batch_size == 16 * c.batch_size
        for b, c in zip(stage(name, "64").data.buckets, stage(name, "4").data.buckets)
    )
    assert (
        config.init_from == {"240p": None, "480p": "runs/vdit/240p", "720p": "runs/vdit/480p"}[name]
    )


def test_the_transformer_on_regens_latents_has_two_frames_for_33():
    config = stage("regen_5b")
    assert 4.9e9 < count_parameters(config.model) < 5e9
    regen = REGEN_PRESETS["paper-32x"]
    check_buckets(config, regen.latent_shape)
    shapes = [regen.latent_shape(b.shape) for b in config.data.buckets]
    assert shapes == [(2, 24, 40), (4, 24, 40), (8, 24, 40)]  # the paper's are of four and of eight
    assert all(
        64 * c.batch_size == b.batch_size
        for b, c in zip(config.data.buckets, stage("regen_5b", "1").data.buckets)
    )


def test_a_length_that_the_embedder_cannot_take_is_caught_by_the_buckets_name():
    config = stage("480p")
    bucket = Bucket(frames=16, height=240, width=424, batch_size=64)
    wrong = dataclasses.replace(config, data=dataclasses.replace(config.data, buckets=(bucket,)))
    with pytest.raises(
        UserError, match=r"bucket 16x240x424 of runs/vidvae: 16 frames .* the nearest are 13, 17"
    ):
        check_buckets(wrong, PRESETS["paper"].latent_shape)
    wide = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, buckets=(Bucket(frames=17, height=240, width=426, batch_size=64),)
        ),
    )
    with pytest.raises(
        UserError, match=r"bucket 17x240x426 .*width 426 is not a multiple of 8; .* 424 and 432"
    ):
        check_buckets(wide, PRESETS["paper"].latent_shape)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("stages") / "embedder")
    folder.create_or_resume(VidVAEWeights(model=VIDVAE_4X8X8, kind="test", source="random"))
    params = jax.jit(VidVAE(VIDVAE_4X8X8).init)(
        jax.random.key(0), np.zeros((1, 5, 16, 16, 3), np.float32)
    )
    checkpoints = folder.checkpoints()
    checkpoints.save(0, {"ema": {"vidvae": params}}, {"fingerprints": {}})
    checkpoints.wait()
    folder.write_json(LATENT_STATISTICS, {"mean": [0.0] * 4, "std": [1.0] * 4})
    return folder.path


@pytest.fixture(scope="module")
def latents(embedder):
    """Random latents and text embeddings as `launch/encode.py` stores them; images and videos are
    different clips."""
    network, params = load_embedder(embedder)
    settings = {
        "embedder": network.fingerprint(params),
        "text_encoder": "t5-of-the-test",
        "clips": CLIPS,
    }
    settings |= {"text_length": TOKENS, "text_width": TEXT_WIDTH, "shard_size": CLIPS, "fps": 8.0}
    writer = LatentWriter(
        embedder.parent / "latents", {**settings, "buckets": [IMAGE.name, VIDEO.name]}
    )
    rng = np.random.default_rng(0)
    for number, bucket in enumerate((IMAGE, VIDEO)):

        def sample(index, bucket=bucket):
            text = rng.standard_normal((TOKENS, TEXT_WIDTH), np.float32)[: 1 + index % TOKENS]
            latents = rng.standard_normal((*VIDVAE_4X8X8.latent_shape(bucket.shape), 4), np.float32)
            return {"caption": "", "fps": 8.0, "latents": latents, "text": text}

        clips = [(i, sample(i) if i % 2 == number else "of the other bucket") for i in range(CLIPS)]
        writer.write(bucket.name, 0, clips)
    writer.finish()
    return writer.path


def shrunk(name, embedder, latents, init_from):
    config = stage(name)
    model = dataclasses.replace(
        config.model,
        width=32,
        depth=1,
        heads=2,
        remat="none",
        text_width=TEXT_WIDTH,
        null_caption_tokens=TOKENS,
    )
    buckets = (IMAGE, VIDEO) if name == "240p" else (VIDEO,)
    return dataclasses.replace(
        config,
        embedder=str(embedder),
        init_from=init_from,
        model=model,
        text=dataclasses.replace(config.text, length=TOKENS),
        data=dataclasses.replace(
            config.data,
            source=LatentsConfig(path=str(latents)),
            buckets=buckets,
            num_threads=1,
            prefetch=1,
        ),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-3),
        loop=dataclasses.replace(config.loop, steps=2, compute_dtype="float32", log_every=1),
    )


def ema(workdir):
    return RunFolder(workdir).checkpoints().restore_part(("ema", "vdit"))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_split_over_eight_devices(name, embedder):
    """At full size, by shapes only: a device has an eighth of nearly all of parameters, EMA and
    both moments."""
    config = stage(name, "8")
    text = make_conditioner(config)
    objective = VDiTTask.on_latents(config, PRESETS["paper"], text)
    row = {
        "latents": np.zeros((1, 1, 2, 2, 4), np.float32),
        "micro_cond": np.ones((1, 5), np.float32),
        "caption": [""],
        "text": [np.zeros((250, 4096), np.float32)],
    }
    mesh = make_mesh(config.mesh)
    optimizer = objective.optimizer(config.optimizer, config.loop.steps)
    state, _ = abstract_state(
        objective, optimizer, mesh, jax.random.key(0), objective.batch_arrays(row)
    )

    def count(shape_of):
        return sum(int(np.prod(shape_of(leaf))) for leaf in jax.tree.leaves(state))

    whole, one = (
        count(lambda leaf: leaf.shape),
        count(lambda leaf: leaf.sharding.shard_shape(leaf.shape)),
    )
    assert whole > 4 * 767_452_064
    assert one < 1.01 * whole / 8


def steps_of(name, embedder, latents, init_from, monkeypatch, capsys):
    """Train a shrunk stage for two steps; return its folder."""
    monkeypatch.setattr(sharding, "SMALLEST_SHARDED", 1024)  # everything here is small
    workdir = embedder.parent / name
    config = shrunk(name, embedder, latents, init_from)
    assert config.mesh.fsdp == -1
    summary = train(config, workdir)
    assert summary["step"] == 2
    assert all(
        np.isfinite(summary[key]) and summary[key] > 0 for key in ("loss", "mse", "vb", "grad_norm")
    )
    said = capsys.readouterr().err
    for bucket in config.data.buckets:
        assert f"compiled {bucket.name}, batch 8: " in said
    return workdir


@pytest.mark.slow
def test_a_shrunk_stage_takes_steps_on_eight_devices(embedder, latents, monkeypatch, capsys):
    workdir = steps_of("480p", embedder, latents, None, monkeypatch, capsys)
    start = warm_start(shrunk("720p", embedder, latents, str(workdir)))
    jax.tree.map(
        np.testing.assert_array_equal, start["vdit"], jax.tree.map(np.asarray, ema(workdir))
    )


@pytest.mark.slow
def test_the_stages_train_one_after_another_on_eight_devices(
    embedder, latents, tmp_path, monkeypatch, capsys
):
    before = None
    for name in STAGES:
        home = tmp_path / name / "embedder"
        shutil.copytree(embedder, home)
        workdir = steps_of(
            name, home, latents, None if before is None else str(before), monkeypatch, capsys
        )
        if before is not None:
            # Two steps of Adam at 1e-3 move no parameter by more than 4e-3 or so: it did start from
            # the stage before.
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, atol=5e-3), ema(workdir), ema(before)
            )
        before = workdir


def test_a_start_that_does_not_fit_is_refused_before_anything_is_made(embedder, latents, tmp_path):
    config = shrunk("480p", embedder, latents, str(embedder))
    with pytest.raises(
        UserError, match="holds a vidvae network in converted weights; give a vdit run"
    ):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_split_over_the_devices_is_refused(embedder, latents, tmp_path):
    config = shrunk("480p", embedder, latents, None)
    odd = dataclasses.replace(VIDEO, batch_size=4)
    data: DataConfig = dataclasses.replace(config.data, buckets=(odd,))
    with pytest.raises(
        UserError, match="bucket 9x24x16: a batch of 4 cannot be split equally over 8 devices"
    ):
        train(dataclasses.replace(config, data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_shorter_null_caption_repeats_its_last_row():
    caption = np.arange(6.0).reshape(3, 2)
    longer = extend_null_caption({"params": {}, "constants": {"null_caption": caption}}, 5)
    np.testing.assert_array_equal(longer["constants"]["null_caption"], caption[[0, 1, 2, 2, 2]])
    assert extend_null_caption({"params": {}}, 5) == {"params": {}}
