"""CLIP features and aesthetic scores of frames, with a tiny tower and a random predictor."""

import dataclasses
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tiny_clip
from verdict import dropped

from xgen_jax.curation.aesthetics import (
    BATCH,
    FeatureMeter,
    aesthetics_scores,
    mean_feature,
    weights_digest,
)
from xgen_jax.curation.config import AestheticsConfig
from xgen_jax.curation.meter import between
from xgen_jax.errors import UserError
from xgen_jax.models.clip import fit_square
from xgen_jax.weights.clip import load_clip_vision
from xgen_jax.weights.safetensors import write_safetensors

LAYERS = tiny_clip.head()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aesthetics")
    head = write_safetensors(folder / "head.safetensors", tiny_clip.head_tensors(LAYERS))
    clip_dir = tiny_clip.write(folder / "clip")
    return AestheticsConfig(clip_dir=str(clip_dir), head=str(head), every_s=0.5)


def frames(count, seed=0):
    """Frames that differ in size and content."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, 256, (30 + 7 * number, 60 - 3 * number, 3), np.uint8)
        for number in range(count)
    ]


def measured(config, images):
    meter = FeatureMeter(config)
    for number, image in enumerate(images):
        meter.add(number * config.every_s, image)
    return meter.columns()


def features_of(columns):
    return np.stack(columns["feature"].to_numpy(zero_copy_only=False)).astype(np.float32)


def test_features_and_scores_are_those_computed_by_hand(config):
    images = frames(BATCH + 1)
    columns = measured(config, images)
    model, params = load_clip_vision(config.clip_dir)
    squares = np.stack([fit_square(image, model.config.side) for image in images])
    raw = np.asarray(jax.jit(model.apply)(params, squares), np.float64)
    unit = raw / np.sqrt((raw**2).sum(1, keepdims=True))
    h = unit
    for weight, bias in LAYERS:
        h = h @ weight.T + bias
    np.testing.assert_array_equal(columns["time_s"], np.arange(BATCH + 1) * 0.5)
    assert columns["aesthetic"].dtype == np.float32 and np.ptp(h) > 0.1
    np.testing.assert_allclose(columns["aesthetic"], h[:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(features_of(columns), unit, rtol=0, atol=5e-4)
    assert columns["feature"].type == pa.list_(pa.float16(), tiny_clip.FEATURES)


def test_columns_are_typed_without_frames_and_survive_parquet(config, tmp_path):
    empty, some = measured(config, []), measured(config, frames(3))
    tables = [pa.table(dict(columns)) for columns in (empty, some)]
    assert tables[0].schema == tables[1].schema and tables[0].num_rows == 0
    pyarrow.parquet.write_table(pa.concat_tables(tables), tmp_path / "a.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "a.parquet").equals(tables[1])


def test_a_meter_without_a_head_has_no_scores(config):
    columns = measured(dataclasses.replace(config, head=None), frames(2))
    assert set(columns) == {"time_s", "feature"}
    np.testing.assert_allclose(np.linalg.norm(features_of(columns), axis=1), 1, atol=1e-3)


def test_a_clip_has_the_mean_of_its_own_frames(config):
    rows = {
        "time_s": np.arange(4.0),
        "aesthetic": np.array([1, 5, 6, 9], np.float32),
        "feature": np.array([[1, 0], [1, 0], [0, 1], [0, -1]], np.float16),
    }
    clip = between(rows, 1, 3)
    assert aesthetics_scores(clip, config) == {"aesthetic": 5.5}
    np.testing.assert_allclose(mean_feature(clip), [0.5**0.5, 0.5**0.5], rtol=1e-6)
    # As tables give them: one array a row.
    lists = np.empty(2, object)
    lists[:] = list(clip["feature"])
    np.testing.assert_array_equal(mean_feature({"feature": lists}), mean_feature(clip))
    none = between(rows, 1.2, 1.8)
    assert np.isnan(aesthetics_scores(none, config)["aesthetic"]) and mean_feature(none) is None
    without = dataclasses.replace(config, head=None)
    assert np.isnan(aesthetics_scores({"time_s": np.arange(2.0)}, without)["aesthetic"])
    assert mean_feature({"time_s": np.arange(2.0)}) is None


def test_low_scores_are_rejected_and_unknown_ones_are_not(config):
    scores = {"aesthetic": np.array([4.4, 4.5, 9.0, np.nan])}
    np.testing.assert_array_equal(
        dropped(scores, "aesthetics", aesthetics=config), [True, False, False, False]
    )
    strict = dataclasses.replace(config, min_score=9.5)
    np.testing.assert_array_equal(
        dropped(scores, "aesthetics", aesthetics=strict), [True, True, True, False]
    )


def test_networks_are_read_once_a_process(tmp_path):
    clip_dir = tiny_clip.write(tmp_path / "clip")
    config = AestheticsConfig(clip_dir=str(clip_dir))
    first = measured(config, frames(2))
    shutil.rmtree(clip_dir)
    assert measured(config, frames(2))["feature"].equals(first["feature"])


def test_the_digest_is_of_the_files_not_of_their_paths(config, tmp_path):
    base = weights_digest(config)
    assert len(base) == 12 and int(base, 16) >= 0
    shutil.copytree(config.clip_dir, tmp_path / "copy")
    shutil.copy(config.head, tmp_path / "other.safetensors")
    copied = dataclasses.replace(
        config, clip_dir=str(tmp_path / "copy"), head=str(tmp_path / "other.safetensors")
    )
    assert weights_digest(copied) == base
    assert len({base, weights_digest(dataclasses.replace(config, head=None)), ""}) == 3
    assert weights_digest(AestheticsConfig()) == ""

    # One byte of the weights; size and, on a coarse clock, time of change may be the same.
    path = tmp_path / "copy" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    changed = weights_digest(copied)
    (tmp_path / "copy" / "config.json").write_text("{}")
    assert len({base, changed, weights_digest(copied)}) == 3
    write_safetensors(
        tmp_path / "other.safetensors", tiny_clip.head_tensors(tiny_clip.head(1)), overwrite=True
    )
    assert weights_digest(dataclasses.replace(copied, clip_dir=config.clip_dir)) != base


def test_mistakes_are_named(config, tmp_path):
    with pytest.raises(UserError, match="need aesthetics.clip_dir"):
        FeatureMeter(AestheticsConfig())
    with pytest.raises(UserError, match="head needs the CLIP network"):
        AestheticsConfig(head="head.safetensors")
    for call in (FeatureMeter, weights_digest):
        with pytest.raises(UserError, match="nowhere"):
            call(AestheticsConfig(clip_dir=str(tmp_path / "nowhere")))
        with pytest.raises(UserError, match="missing.safetensors"):
            call(dataclasses.replace(config, head=str(tmp_path / "missing.safetensors")))
    with pytest.raises(UserError, match="aesthetics.clip_dir=.* holds no safetensors"):
        weights_digest(AestheticsConfig(clip_dir=str(tmp_path)))
    pickle = tmp_path / "head.pth"
    pickle.write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"is a pickle(?s:.*)torch.load\("):
        FeatureMeter(dataclasses.replace(config, head=str(pickle)))


def test_curation_without_clip_does_not_import_jax():
    code = (
        "import sys; from xgen_jax.curation.aesthetics import *; "
        "weights_digest(AestheticsConfig()); sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
