"""A prepared video data set of TensorFlow Datasets as a source, without TensorFlow.

`tfds.data_source` reads ArrayRecord without TensorFlow, except that its feature `Video` cannot be
built without it. What such a feature stores is a sequence of images, as which it is read here;
splits, their slices, and features are TFDS's own.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from typing import Any

import numpy as np

from xgen_jax.data.array_records import OpenRecords
from xgen_jax.data.pixels import UNIFORMS, hold_last, random_view
from xgen_jax.data.sources.base import SPLITS, Sample, Source, choose_caption
from xgen_jax.data.video import resize_cover
from xgen_jax.errors import UserError, choose
from xgen_jax.files import read_json

_PATH = re.compile(r"tfds:(?P<name>[^:]+)(:(?P<version>\d+\.\d+\.\d+))?(:(?P<split>.+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_INFO = "dataset_info.json"
_FEATURES = "tensorflow_datasets.core.features."


class TFDSSource(Source):
    """Clips of a data set that TFDS has prepared as ArrayRecord.

    Starting costs O(files), whatever the number of clips. A clip is at a random place of its video;
    its frames are uint8 of one or three channels.

    Args:
      path: `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`; the latest version, and the split `train`, where
        none is given. SPLIT may be a slice, as in `train[:10%]`. NAME may be a folder's path.
      split: "train", all clips of SPLIT but the last `held_out_fraction`; "held_out", those; or
        "all". TFDS shuffles clips when it prepares them.
      data_dir: of prepared data sets; None for $TFDS_DATA_DIR, or ~/tensorflow_datasets.
      held_out_fraction: in [0, 1).
      video: name of the feature with the frames; None for the first that can be one,
        by name.
      caption: name of the feature with the caption, a text, several, or a class label; None for the
        first text, else the first class label, else no captions.
      frame_rate: frames a second of the videos; None where it is not known.
      stride: take every stride-th frame.
      flip: mirror half of the clips.

    Raises:
      UserError: no such data set, split or feature; files that are missing or not ArrayRecord; a
        split without a clip.
    """

    name = "tfds"

    def __init__(
        self,
        path: str,
        split: str = "all",
        *,
        data_dir: str | None = None,
        held_out_fraction: float = 0.0,
        video: str | None = None,
        caption: str | None = None,
        frame_rate: float | None = None,
        stride: int = 1,
        flip: bool = False,
    ):
        if not 0 <= held_out_fraction < 1:
            raise UserError(
                f"held_out_fraction must be 0 or more and below 1, not {held_out_fraction}"
            )
        if stride < 1:
            raise UserError(f"stride must be 1 or more, not {stride}")
        if frame_rate is not None and not 0 < frame_rate <= 1000:
            raise UserError(f"frame_rate must be above 0 and at most 1000, not {frame_rate}")
        choose("split", split, SPLITS)
        named = _PATH.fullmatch(path)
        if named is None:
            raise UserError(
                f"{path!r} names no data set of TFDS: give tfds:NAME or tfds:NAME:SPLIT"
            )
        self.path = folder = _folder(data_dir, named["name"], named["version"])
        self._files = _files(folder, named["split"] or "train")
        info = read_json(folder / _INFO)
        self._identity = [info.get("name"), info.get("version")]
        self._examples = _Examples(folder, video, caption)
        self._frame_rate, self._stride, self._flip = frame_rate, stride, flip
        counts = [file.take for file in self._files]
        self._first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        total = int(self._first[-1])
        held_out = int(np.ceil(total * held_out_fraction))
        spans = {"train": (0, total - held_out), "held_out": (total - held_out, total)}
        self._begin, self._end = spans.get(split, (0, total))
        self._held_out = {"train": 0, "held_out": held_out, "all": held_out}[split]
        names = [self._examples.video, self._examples.caption]
        self._settings = [split, held_out_fraction, *names, frame_rate, stride, flip]
        if not len(self):
            raise UserError(
                f"none of the {total} clips of {path} is in the split {split!r} at "
                f"held_out_fraction={held_out_fraction:g}"
            )
        self._records = OpenRecords(64)

    def __len__(self) -> int:
        return self._end - self._begin

    def _locate(self, index: int) -> tuple[str, int]:
        """Return the file and the record of clip `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        place = self._begin + index
        number = int(np.searchsorted(self._first, place, side="right")) - 1
        file = self._files[number]
        return file.path, file.skip + int(place - self._first[number])

    def held_out_clips(self) -> np.ndarray:
        """Return the clips that training does not see, ascending; see `Source.held_out_clips`."""
        return np.arange(len(self) - self._held_out, len(self))

    def rates(self) -> dict[float, int]:
        """See `Source.rates`."""
        return {} if self._frame_rate is None else {self._rate(): len(self)}

    def _rate(self) -> float:
        return (self._frame_rate or 0.0) / self._stride

    def where(self, index: int) -> str:
        """Return the file of clip `index` and the number of its record."""
        file, place = self._locate(index)
        return f"{file} record {place}"

    def report(self) -> str:
        """Return that there are no captions; empty if there are."""
        return (
            ""
            if self._examples.caption
            else f"no feature of {self.path} is a text or a class label"
        )

    def fingerprint(self) -> str:
        """Return a hex digest of files with their sizes, and settings; the folder may move."""
        files = [
            (os.path.basename(file.path), file.skip, file.take, os.path.getsize(file.path))
            for file in self._files
        ]
        facts = [self.name, self._identity, files, self._settings]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def read(
        self, index: int, rng: np.random.Generator, frames: int, height: int, width: int
    ) -> Sample:
        """Return a clip with a random start and crop: "video", uint8 (frames, height, width, 3),
        "caption", "fps".

        One that is too short repeats its last frame. Of several captions a random one is taken.

        Raises:
          UserError: a damaged record, naming its file.
        """
        uniforms = rng.random(UNIFORMS)
        file, place = self._locate(index)
        data = self._records.read(file, place)
        try:
            example = self._examples.parse(data)
            video = self._examples.frames(example, frames, self._stride, uniforms[0])
            captions = self._examples.captions(example)
        except Exception as error:  # TFDS, protobuf and image decoders each raise their own
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"record {place} of {file} cannot be read ({reason})") from error
        video = hold_last(resize_cover(video, height, width), frames)
        view = random_view(video, height, width, uniforms, self._flip)
        return {"video": view, "caption": choose_caption(captions, rng), "fps": self._rate()}


def _folder(data_dir: str | None, name: str, version: str | None) -> pathlib.Path:
    """Return the folder of a prepared data set."""
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    folder = pathlib.Path(root).expanduser() / name
    if (folder / _INFO).is_file():
        return folder
    found = [
        path.parent for path in folder.glob(f"*/{_INFO}") if _VERSION.fullmatch(path.parent.name)
    ]
    if version:
        found = [path for path in found if path.name == version]
    if found:
        return max(found, key=lambda path: [int(part) for part in path.name.split(".")])
    configs = sorted({path.parents[1].name for path in folder.glob(f"*/*/{_INFO}")})
    if configs:
        raise UserError(
            f"{folder} has several configurations: give tfds:{name}/CONFIG, one of "
            f"{', '.join(configs)}"
        )
    raise UserError(
        f"{folder} holds no prepared data set{f' of version {version}' if version else ''}: run "
        f"tfds build {name} --file_format=array_record, or give --config.data.source.data_dir"
    )


@dataclasses.dataclass(frozen=True)
class _File:
    """A run of records in a file: `take` of them from `skip` on."""

    path: str
    skip: int
    take: int


def _files(folder: pathlib.Path, split: str) -> list[_File]:
    """Return the files of a split of TFDS, or of a slice of one."""
    # Only here: it takes a second to import, and most runs read other clips.
    import tensorflow_datasets as tfds

    info = read_json(folder / _INFO)
    form = info.get("fileFormat", "tfrecord")
    if form != "array_record":
        raise UserError(
            f"{folder} is stored as {form}, which cannot be read at random: convert it with tfds "
            f"convert_format --root_data_dir={folder} --out_file_format=array_record --out_path=NEW"
        )
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=info["name"], filetype_suffix=form
    )
    splits = tfds.core.SplitDict(
        tfds.core.SplitInfo(
            name=each["name"],
            shard_lengths=[int(length) for length in each["shardLengths"]],
            num_bytes=int(each.get("numBytes", 0)),
            filename_template=template.replace(
                split=each["name"], template=each.get("filepathTemplate", "")
            ),
        )
        for each in info.get("splits", ())
    )
    try:
        instructions = splits[split].file_instructions
    except (ValueError, KeyError, AssertionError) as error:
        raise UserError(
            f"{folder} has no split {split!r} ({str(error).splitlines()[0]}); it has "
            f"{', '.join(splits)}"
        ) from error
    files = [_File(str(each.filename), each.skip, each.take) for each in instructions]
    for file in files:
        if not os.path.isfile(file.path):
            raise UserError(f"{file.path} is missing; prepare {folder} again")
    return files


class _Examples:
    """Parses the records of a data set, of which it takes the frames and the caption.

    Attributes:
      video, caption: names of the features.
    """

    def __init__(self, folder: pathlib.Path, video: str | None, caption: str | None):
        import tensorflow_datasets as tfds

        config = read_json(folder / "features.json")
        types = tfds.features
        built = types.FeatureConnector.from_json(_without_video(config))
        if not isinstance(built, types.FeaturesDict):
            raise UserError(f"{folder} has no features with names")
        built.load_metadata(folder, feature_name=None)  # names of classes
        features: dict[str, Any] = {name: built[name] for name in sorted(built)}
        names = list(features)
        videos = [name for name in names if _is_video(features[name])]
        texts = [name for name in names if _is_text(features[name], types)]
        labels = [name for name in names if isinstance(features[name], types.ClassLabel)]
        named = self._named(folder, "video", video, videos)
        if named is None:
            raise UserError(
                f"{folder} has no video: none of its features, {', '.join(names)}, is of uint8 "
                "(frames, height, width, channels)"
            )
        self.video: str = named
        self.caption = self._named(folder, "caption", caption, texts + labels)
        # What else is in a record is not parsed. Images stay bytes, so that only those of a clip
        # are decoded.
        stored = features[self.video]
        images = isinstance(stored, types.Sequence) and isinstance(stored.feature, types.Image)
        self._image = stored.feature if images else None
        parsed = {self.video: types.Sequence(types.Text()) if images else stored}
        if self.caption:
            parsed[self.caption] = features[self.caption]
        self._features: Any = types.FeaturesDict(parsed)
        self._label = features[self.caption] if self.caption in labels else None

    @staticmethod
    def _named(folder: pathlib.Path, what: str, given: str | None, there: list[str]) -> str | None:
        if given is not None and given not in there:
            raise UserError(
                f"feature {given!r} of {folder} cannot be the {what}; these can: "
                f"{', '.join(there) or 'none'}"
            )
        return given or (there[0] if there else None)

    def parse(self, data: bytes) -> dict[str, Any]:
        """Parse a record."""
        return self._features.deserialize_example_np(data)

    def frames(
        self, example: dict[str, Any], frames: int, stride: int, uniform: float
    ) -> np.ndarray:
        """Return up to `frames` frames, every stride-th from a random one, uint8 (T, H, W, 3)."""
        stored = example[self.video]
        starts = 1 + max(0, len(stored) - 1 - (frames - 1) * stride)
        start = int(uniform * starts)
        some = stored[start : start + (frames - 1) * stride + 1 : stride]
        if self._image is not None:
            some = [self._image.decode_example_np(image) for image in some]
        video = np.asarray(some, np.uint8)
        return np.repeat(video, 3, axis=-1) if video.shape[-1] == 1 else video

    def captions(self, example: dict[str, Any]) -> list[str]:
        """Return the captions of an example, "" where there is none."""
        if self.caption is None:
            return [""]
        value = example[self.caption]
        if self._label is not None:
            return [self._label.int2str(int(value)).replace("_", " ")]
        texts = [value] if isinstance(value, (str, bytes)) else list(value)
        decoded = [text.decode() if isinstance(text, bytes) else text for text in texts]
        return decoded or [""]


def _is_video(feature: Any) -> bool:
    info = feature.get_tensor_info()
    shape = getattr(info, "shape", ())
    return len(shape) == 4 and shape[-1] in (1, 3) and info.np_dtype == np.uint8


def _is_text(feature: Any, types: Any) -> bool:
    if isinstance(feature, types.Sequence):
        feature = feature.feature
    return isinstance(feature, types.Text)


def _without_video(config: Any) -> Any:
    """Return the JSON of features with each `Video` as the sequence of images that it stores."""
    if isinstance(config, list):
        return [_without_video(each) for each in config]
    if not isinstance(config, dict):
        return config
    if config.get("pythonClassName", config.get("type")) != f"{_FEATURES}video_feature.Video":
        return {name: _without_video(each) for name, each in config.items()}
    about = config.get("video", config.get("content", {}))
    about = json.loads(about) if isinstance(about, str) else about
    shape = about.get("shape") or {"dimensions": [-1, -1, -1, 3]}
    length, *of_frame = shape["dimensions"] if isinstance(shape, dict) else shape
    image = {
        "shape": {"dimensions": [-1 if size is None else size for size in of_frame]},
        "dtype": about.get("dtype") or "uint8",
        "encodingFormat": about.get("encodingFormat", about.get("encoding_format", "png")),
    }
    frame = {"pythonClassName": f"{_FEATURES}image_feature.Image", "image": image}
    return {
        "pythonClassName": f"{_FEATURES}sequence_feature.Sequence",
        "sequence": {"feature": frame, "length": -1 if length is None else length},
    }
