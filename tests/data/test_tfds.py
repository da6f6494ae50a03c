"""A data set that TFDS prepares here is read without TensorFlow."""

import json
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from xgen_jax.data.buckets import Bucket
from xgen_jax.data.config import DataConfig, TFDSConfig, nest_source
from xgen_jax.data.pipeline import Pipeline
from xgen_jax.data.sources.factory import held_out_data, make_source
from xgen_jax.data.sources.tfds import TFDSSource
from xgen_jax.errors import UserError

CLIPS, FRAMES, CLASSES = 10, 9, ["riding_horse", "walking"]


def levels(number):
    """Brightness of each frame of a clip: 20 for each clip, 2 for each frame."""
    return 20 * number + 2 * np.arange(FRAMES)


class MovingGray(tfds.core.GeneratorBasedBuilder):
    """Images as PIL makes them are encoded without TensorFlow, arrays are not."""

    VERSION = tfds.core.Version("1.0.0")
    name = "moving_gray"

    def _info(self):
        features = tfds.features
        image = features.Image(shape=(16, 24, 3), encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "array": features.Tensor(shape=(None, 16, 24, 1), dtype=np.uint8),
                    "label": features.ClassLabel(names=CLASSES),
                    "lines": features.Sequence(features.Text()),
                    "number": features.Scalar(np.int64),
                    "text": features.Text(),
                    "video": features.Sequence(image),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples(2)}

    def _generate_examples(self, count=CLIPS):
        for number in range(count):
            array = np.broadcast_to(levels(number)[:, None, None, None], (FRAMES, 16, 24, 1))
            array = array.astype(np.uint8)
            yield (
                number,
                {
                    "array": array,
                    "label": number % 2,
                    "lines": [f"one {number}", f"two {number}"],
                    "number": number,
                    "text": f"clip {number}",
                    "video": [PIL.Image.fromarray(np.repeat(one, 3, -1)) for one in array],
                },
            )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    MovingGray(data_dir=folder, file_format="array_record").download_and_prepare()
    # As a `Video` says it, which TFDS cannot make without TensorFlow; it stores the same.
    config = folder / "moving_gray" / "1.0.0" / "features.json"
    features = json.loads(config.read_text())
    video = features["featuresDict"]["features"]["video"]
    assert video["pythonClassName"].endswith("sequence_feature.Sequence")
    features["featuresDict"]["features"]["video"] = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {
            "shape": {"dimensions": ["-1", "16", "24", "3"]},
            "dtype": "uint8",
            "encodingFormat": "png",
        },
    }
    config.write_text(json.dumps(features))
    return str(folder)


def read(source, index, frames=3, seed=0):
    sample = source.read(index, np.random.default_rng((seed, index)), frames, 8, 8)
    assert sample["video"].shape == (frames, 8, 8, 3) and sample["video"].dtype == np.uint8
    return sample


def place(sample):
    """The number of the clip, and those of its frames, from their brightness."""
    mean = sample["video"].mean((1, 2, 3))
    assert np.array_equal(mean, sample["video"][:, 0, 0, 0])
    return int(mean[0] // 20), (mean % 20 // 2).astype(int).tolist()


def test_clips_with_their_captions(data_dir):
    source = TFDSSource("tfds:moving_gray", data_dir=data_dir, video="video", caption="text")
    assert len(source) == CLIPS and source.rates() == {} and source.report() == ""
    numbers = set()
    for index in range(CLIPS):
        sample = read(source, index)
        number, frames = place(sample)
        assert sample["caption"] == f"clip {number}" and sample["fps"] == 0.0
        assert frames == list(range(frames[0], frames[0] + 3))
        assert np.array_equal(sample["video"], read(source, index)["video"])
        assert f"record {index}" in source.where(index)
        numbers.add(number)
    assert numbers == set(range(CLIPS))
    starts = {place(read(source, 0, seed=seed))[1][0] for seed in range(60)}
    assert starts == set(range(FRAMES - 2))
    assert place(read(source, 0, frames=12))[1][-4:] == [FRAMES - 1] * 4, "the last frame is held"


def test_features_by_name_and_by_default(data_dir):
    def caption(**options):
        source = TFDSSource("tfds:moving_gray", data_dir=data_dir, **options)
        return place(read(source, 3))[0], {
            read(source, 3, seed=seed)["caption"] for seed in range(20)
        }

    number, label = caption(caption="label")
    assert label == {CLASSES[number % 2].replace("_", " ")}
    number, lines = caption(caption="lines", video="array")
    assert lines == {f"one {number}", f"two {number}"}
    assert caption() == caption(video="array", caption="lines"), "the first, by name"
    with pytest.raises(UserError, match="'number' of .* cannot be the video; these can: array, vi"):
        TFDSSource("tfds:moving_gray", data_dir=data_dir, video="number")
    with pytest.raises(UserError, match="cannot be the caption; these can: lines, text, label"):
        TFDSSource("tfds:moving_gray", data_dir=data_dir, caption="video")


def test_stride_and_rate(data_dir):
    source = TFDSSource("tfds:moving_gray", data_dir=data_dir, stride=3, frame_rate=12.0)
    sample = read(source, 2)
    frames = place(sample)[1]
    assert frames == [frames[0], frames[0] + 3, frames[0] + 6] and sample["fps"] == 4.0
    assert source.rates() == {4.0: CLIPS}


def test_splits_of_tfds_and_clips_held_out(data_dir):
    def numbers(path, split="all", **options):
        source = TFDSSource(path, split, data_dir=data_dir, **options)
        return [place(read(source, index))[0] for index in range(len(source))]

    everything = numbers("tfds:moving_gray")
    assert numbers("tfds:moving_gray:1.0.0:train") == everything
    assert sorted(numbers("tfds:moving_gray:test")) == [0, 1]
    assert numbers("tfds:moving_gray:train[:3]") == everything[:3]
    assert numbers("tfds:moving_gray:train[20%:70%]") == everything[2:7]
    assert numbers("tfds:moving_gray:train[8:]+train[:1]") == everything[8:] + everything[:1]
    train, held_out = (
        numbers("tfds:moving_gray", split, held_out_fraction=0.25)
        for split in ("train", "held_out")
    )
    assert train + held_out == everything and len(held_out) == 3
    source = TFDSSource("tfds:moving_gray", data_dir=data_dir, held_out_fraction=0.25)
    assert source.held_out_clips().tolist() == [7, 8, 9]


def test_what_is_wrong_is_said(data_dir, tmp_path):
    for path, said in (
        ("moving_gray", "names no data set of TFDS: give tfds:NAME"),
        ("tfds:other", "holds no prepared data set: run tfds build other"),
        ("tfds:moving_gray:2.0.0", "holds no prepared data set of version 2.0.0"),
        ("tfds:moving_gray:dev", "has no split 'dev'.*it has (test, train|train, test)"),
    ):
        with pytest.raises(UserError, match=said):
            TFDSSource(path, data_dir=data_dir)
    with pytest.raises(UserError, match="none of the 10 clips.*split 'held_out'"):
        TFDSSource("tfds:moving_gray", "held_out", data_dir=data_dir)
    for wrong in ({"stride": 0}, {"frame_rate": 0.0}, {"held_out_fraction": 1.0}, {"split": "x"}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            TFDSSource("tfds:moving_gray", **{"data_dir": data_dir, **wrong})
    folder = tmp_path / "moving_gray" / "1.0.0"
    folder.mkdir(parents=True)
    info = {"name": "moving_gray", "version": "1.0.0", "fileFormat": "tfrecord"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="stored as tfrecord.*tfds convert_format"):
        TFDSSource("tfds:moving_gray", data_dir=str(tmp_path))


def test_damage_names_the_file(data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path, dirs_exist_ok=True)
    source = TFDSSource("tfds:moving_gray", data_dir=str(tmp_path))
    before = source.fingerprint()
    file = next(tmp_path.rglob("*train.array_record*"))
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=f"record . of {file} cannot be read"):
        for index in range(CLIPS):
            read(source, index)
    assert TFDSSource("tfds:moving_gray", data_dir=str(tmp_path)).fingerprint() != before
    file.unlink()
    with pytest.raises(UserError, match=f"{file} is missing"):
        TFDSSource("tfds:moving_gray", data_dir=str(tmp_path))


def test_the_path_alone_decides(data_dir):
    path = "tfds:moving_gray:train"
    nested = nest_source({"source": {"kind": "synthetic", "path": path, "num_clips": 3}})
    assert nested["source"] == {"kind": "tfds", "path": path}
    with pytest.raises(UserError, match="fps=8.0 is for videos with times"):
        nest_source({"source": {"kind": "synthetic", "path": path, "fps": 8.0}})
    buckets = (Bucket(frames=3, height=8, width=8, batch_size=2),)
    source = TFDSConfig(path=path, data_dir=data_dir, held_out_fraction=0.2)
    config = DataConfig(source=source, buckets=buckets)
    assert len(make_source(config)) == 8
    held_out, _ = held_out_data(config)
    assert len(held_out) == 2
    whole = Pipeline(make_source(config), config)
    parts = [
        Pipeline(make_source(config), config, process_index=p, process_count=2) for p in (0, 1)
    ]
    for step in range(6):
        batches = [part.batch(step) for part in parts]
        for name, values in whole.batch(step).items():
            assert np.array_equal(np.concatenate([batch[name] for batch in batches]), values)
    with pytest.raises(UserError, match="is no data set of TFDS, and data.source.kind='tfds'"):
        make_source(DataConfig(source=TFDSConfig(path=data_dir), buckets=buckets))
    with pytest.raises(UserError, match="needs a data set: give --config.data.source.path=tfds:N"):
        make_source(DataConfig(source=TFDSConfig(), buckets=buckets))


def test_tensorflow_is_not_imported(data_dir):
    """Nor jax."""
    code = f"""
import sys, numpy as np
from xgen_jax.data.sources.tfds import TFDSSource
source = TFDSSource("tfds:moving_gray", data_dir={data_dir!r})
source.read(0, np.random.default_rng(0), 3, 8, 8)
print(sorted(sys.modules.keys() & {{"tensorflow", "jax"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
