"""Text in files of its own, and folders of latents of earlier layouts."""

import hashlib
import json

import ml_dtypes
import numpy as np
import pytest
from small_latents import LATENTS, SETTINGS, contents, sample, write

from xgen_jax.data.buckets import Bucket
from xgen_jax.data.latent_shards import pack, verify
from xgen_jax.data.latent_writer import LatentWriter
from xgen_jax.data.sources.latents import LatentSource
from xgen_jax.errors import UserError
from xgen_jax.files import write_json


def write_version(path, version, text):
    """Write a folder as the releases with that version of the layout did."""
    path.mkdir(exist_ok=True)
    (path / "settings.json").write_text(json.dumps({"version": 2, **SETTINGS}))
    writer = LatentWriter(path, SETTINGS)
    for bucket in SETTINGS["buckets"]:
        for shard in range(writer.shards(bucket)):
            clips = {index: sample(bucket, index, text) for index in writer.clips(bucket, shard)}
            if version == 1 and text:
                for clip in clips.values():
                    tokens = len(clip["text"])
                    clip["text"] = np.pad(clip["text"], ((0, 4 - tokens), (0, 0)))
                    clip["text_mask"] = np.arange(4) < tokens
            writer.write(bucket, shard, clips.items())
    writer.finish()
    for name in ("settings.json", "manifest.json"):
        values = json.loads((path / name).read_text())
        assert values["version"] == 2
        write_json(path / name, values | {"version": version})


@pytest.mark.parametrize("version", [1, 2])
def test_folders_of_older_versions_give_the_same_clips(tmp_path, version):
    write_version(tmp_path / "old", version, text=True)
    write(tmp_path / "new", text=True)
    assert not list((tmp_path / "old").rglob("text-*"))
    for text in (True, False):
        old, new = (LatentSource(tmp_path / name, text=text) for name in ("old", "new"))
        for index in range(11):
            one, other = old.read(index, None, 5, 8, 8), new.read(index, None, 5, 8, 8)
            assert one.keys() == other.keys() and ("text" in one) == text
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])
    assert list(verify(tmp_path / "old")) == []
    # Text that a run does not need takes no bytes to read, and no file.
    for file in (tmp_path / "new").rglob("text-*"):
        file.unlink()
    assert (
        LatentSource(tmp_path / "new", text=False).read(3, None, 5, 8, 8)["caption"] == "clip 3 ☃"
    )
    with pytest.raises(
        UserError, match=r"text-00000-of-00003.arrayrecord is missing; encode again"
    ):
        LatentSource(tmp_path / "new")


def test_a_folder_of_version_2_stays_what_it_is_until_its_data_changes(tmp_path):
    write_version(tmp_path, 2, text=True)
    before = contents(tmp_path)
    assert write(tmp_path, text=True) == 0 and contents(tmp_path) == before
    # Another encoding is none the less refused.
    with pytest.raises(UserError, match=r"otherwise.*\n  embedder: "):
        write(tmp_path, text=True, embedder="f" * 16)
    # One that broke off is continued in the version that it has.
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "5x8x8" / "shard-00001-of-00003.json").unlink()
    assert write(tmp_path, text=True) == 4
    assert contents(tmp_path) == before


def test_clips_of_a_changed_folder_of_version_2_move_to_the_new_layout(tmp_path):
    def encode(path, names, settings=SETTINGS):
        """Encode clips by their names; return those that were not taken over."""
        settings = {**settings, "clips": len(names), "buckets": ["5x8x8"], "source": "files"}
        settings["source_fingerprint"] = ",".join(map(str, names))
        writer = LatentWriter(path, settings, identity=lambda clip: f"file {names[clip]}")
        new = []

        def clips(shard):
            for number in writer.clips("5x8x8", shard):
                mark = f"file {names[number]}"
                if writer.reusable("5x8x8", mark):
                    yield number, writer.reuse("5x8x8", mark) | {"identity": mark}
                else:
                    new.append(names[number])
                    yield number, sample("5x8x8", names[number], True) | {"identity": mark}

        for shard in range(writer.shards("5x8x8")):
            if not writer.finished("5x8x8", shard):
                writer.write("5x8x8", shard, clips(shard))
        writer.finish()
        return new

    tmp_path.joinpath("old").mkdir()
    older = {"version": 2, **SETTINGS, "clips": 5, "buckets": ["5x8x8"], "source": "files"}
    older["source_fingerprint"] = "0,1,2,3,4"
    (tmp_path / "old" / "settings.json").write_text(json.dumps(older))
    assert encode(tmp_path / "old", [0, 1, 2, 3, 4]) == [0, 1, 2, 3, 4]
    assert json.loads((tmp_path / "old" / "manifest.json").read_text())["version"] == 2
    for _ in range(2):  # from version 2 to 3, and within 3
        names = [0, 2, 3, 4, 7] if not list((tmp_path / "old").rglob("text-*")) else [0, 2, 7, 8]
        assert encode(tmp_path / "old", names) == names[-1:]
        encode(tmp_path / f"new{len(names)}", names)
        assert contents(tmp_path / "old") == contents(tmp_path / f"new{len(names)}")


def test_text_has_files_of_its_own_without_padding(tmp_path):
    writer = LatentWriter(tmp_path, {**SETTINGS, "clips": 4, "text_length": 6})
    rows = [
        np.random.default_rng(n).standard_normal((n, 3)).astype(ml_dtypes.bfloat16)
        for n in range(4)
    ]
    for bucket in SETTINGS["buckets"]:
        records = ((index, sample(bucket, index) | {"text": rows[index]}) for index in range(4))
        writer.write(bucket, 0, records)
    writer.finish()
    source = LatentSource(tmp_path)
    for index, row in enumerate(rows):
        clip = source.read(index, None, 5, 8, 8)
        assert clip["text"].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(clip["text"], row)
        # A run that embeds captions by itself gets none.
        alone = LatentSource(tmp_path, text=False).read(index, None, 5, 8, 8)
        assert alone.keys() == clip.keys() - {"text"}
        assert clip["latents"].dtype == np.float32
    assert len(pack(0, {"text": rows[1]})) + 2 * 3 * 2 == len(pack(0, {"text": rows[3]}))
    with pytest.raises(ValueError, match="some clips of .* have text, and some have none"):
        mixed = [(index, sample("5x8x8", index, text=index > 0)) for index in range(4)]
        writer.write("5x8x8", 0, mixed)


def test_damage_of_text_is_found_and_the_file_named(tmp_path):
    write(tmp_path, text=True)
    file = tmp_path / "5x8x8" / "text-00001-of-00003.arrayrecord"
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(
        UserError, match=r"text-00001-of-00003.arrayrecord has \d+ bytes instead of"
    ):
        LatentSource(tmp_path)
    file.write_bytes(good[:200] + bytes(byte ^ 255 for byte in good[200:264]) + good[264:])
    assert "text-00001-of-00003.arrayrecord is not what was written" in next(verify(tmp_path))
    source = LatentSource(tmp_path)
    with pytest.raises(UserError, match=r"record . of .*text-00001-of-00003.* cannot be read"):
        for index in range(4, 8):
            source.read(index, None, 5, 8, 8)
    # A shard whose text was lost is written again, with the same bytes.
    file.unlink()
    assert write(tmp_path, text=True) == 4 and file.read_bytes() == good
    file.write_bytes((tmp_path / "5x8x8" / "text-00000-of-00003.arrayrecord").read_bytes())
    with pytest.raises(UserError, match=r"text-00001.* is not clip 4"):
        LatentSource(tmp_path).read(4, None, 5, 8, 8)


def test_a_folder_of_an_older_release_keeps_its_fingerprint(tmp_path):
    """Runs that were trained on it resume, even if it was encoded again, which does nothing."""
    write(tmp_path, break_after=None)
    for marker in tmp_path.glob("*x8x8/*.json"):
        entry = json.loads(marker.read_text())
        assert entry.pop("longest_caption") and entry.pop("rates")
        marker.write_text(json.dumps(entry))
    (tmp_path / "manifest.json").unlink()
    assert write(tmp_path) == 0
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest.keys() == {"version", *SETTINGS, "shards"}
    keys = {"file", "count", "bytes", "sha256", "left_out"}
    assert all(row.keys() == keys for rows in manifest["shards"].values() for row in rows)
    source = LatentSource(tmp_path)
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    assert source.fingerprint() == digest and list(source.captions()) == []
    # Nor does it change with some shards written by this release.
    next(tmp_path.glob("5x8x8/*.json")).unlink()
    assert write(tmp_path) > 0
    assert LatentSource(tmp_path).fingerprint() == digest


@pytest.mark.parametrize("version", [2, 3])
def test_the_memory_of_a_clip_is_known_before_it_is_read(tmp_path, version):
    """About: latents as float32, and the mean of the text as it is stored."""
    settings = {**SETTINGS, "clips": 40, "shard_size": 40}
    if version == 2:
        (tmp_path / "settings.json").write_text(json.dumps({"version": 2, **settings}))
    writer, rng = LatentWriter(tmp_path, settings), np.random.default_rng(0)
    for bucket, shape in LATENTS.items():
        clips = [
            {
                "latents": rng.standard_normal(shape).astype(np.float16),
                "text": rng.standard_normal((index % 8, 4096), np.float32),
                "caption": "",
            }
            for index in range(40)
        ]
        writer.write(bucket, 0, enumerate(clips))
    writer.finish()
    for bucket in (Bucket(frames=frames, height=8, width=8, batch_size=1) for frames in (5, 1)):
        source = LatentSource(tmp_path)
        clips = [source.read(index, None, *bucket.shape) for index in range(40)]
        mean = np.mean([clip["latents"].nbytes + clip["text"].nbytes for clip in clips])
        assert 0.9 * mean < source.clip_bytes(bucket) < 1.2 * mean
        without = LatentSource(tmp_path, text=False)
        assert without.clip_bytes(bucket) == clips[0]["latents"].nbytes
