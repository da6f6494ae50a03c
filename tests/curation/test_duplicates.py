"""Duplicates: copies of a video are found, and nothing else."""

from fractions import Fraction

import av
import numpy as np
import pytest

from xgen_jax.curation.config import DuplicatesConfig
from xgen_jax.curation.duplicates import HashedClip, HashMeter, find_duplicates, find_similar
from xgen_jax.data.video import VideoReader, resize_frames
from xgen_jax.errors import UserError

HEIGHT, WIDTH, FPS, SECONDS = 216, 384, 24, 3
CONFIG = DuplicatesConfig()


def texture(rng, height, width):
    """A picture with structures of all sizes, float32 (height, width, 3) from 0 to 255."""
    picture = np.zeros((height, width, 3), np.float32)
    for cell in (4, 8, 16, 32, 64):
        coarse = rng.integers(0, 256, (1, height // cell + 2, width // cell + 2, 3), np.uint8)
        picture += cell * resize_frames(coarse, height, width)[0].astype(np.float32)
    picture -= picture.min()
    return picture * (255 / picture.max())


def panned(seed, speed=50, seconds=SECONDS):
    """A camera that moves over a picture, `speed` pixels a second."""
    rng = np.random.default_rng(seed)
    way = round(speed * seconds)
    wide = texture(rng, HEIGHT + way // 2, WIDTH + 2 * way).astype(np.uint8)
    angle = rng.uniform(0, 2 * np.pi)
    for i in range(round(seconds * FPS)):
        y, x = (speed * i / FPS * np.array([np.sin(angle) / 4, np.cos(angle)])).astype(int)
        yield wide[way // 4 + y :, way + x :][:HEIGHT, :WIDTH]


def static_camera(seed, seconds, movers=2):
    """Things that move before a background that does not."""
    rng = np.random.default_rng(seed)
    background = texture(rng, HEIGHT, WIDTH)
    places = rng.uniform((0, 0), (HEIGHT, WIDTH), (movers, 2))
    speeds = rng.uniform(-90, 90, (movers, 2))
    radii = rng.uniform(12, 24, movers)
    colors = rng.uniform(0, 255, (movers, 3)).astype(np.float32)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    for i in range(round(seconds * FPS)):
        picture = background.copy()
        for place, speed, radius, color in zip(places, speeds, radii, colors):
            y, x = (place + i / FPS * speed) % (HEIGHT, WIDTH)
            picture[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = color
        yield picture.astype(np.uint8)


def encode(path, frames, size=(HEIGHT, WIDTH), fps=FPS, crf=18):
    with av.open(str(path), "w") as out:
        stream = out.add_stream(
            "libx264", rate=fps, options={"crf": str(crf), "preset": "veryfast"}
        )
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(width=size[1], height=size[0], format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def hashed(frames, name, *, pixels=HEIGHT * WIDTH, fps=FPS):
    """Hash frames, or those of a file, as curation does."""
    meter, due, end_s = HashMeter(CONFIG), 0.0, 0.0
    if isinstance(frames, list):
        timed = ((i / fps, 1 / fps, image) for i, image in enumerate(frames))
    else:
        with VideoReader(frames) as reader:
            timed, pixels = list(reader.timed()), reader.height * reader.width
    for time_s, length_s, image in timed:
        end_s = time_s + length_s
        if time_s >= due - 1e-6:
            height, width = image.shape[:2]
            scale = min(1, meter.side / max(height, width))
            size = round(height * scale), round(width * scale)
            meter.add(time_s, resize_frames(image[None], *size)[0])
            due = time_s + meter.every_s
    return as_clip(meter, name, end_s, pixels)


def as_clip(meter, name, length_s, pixels):
    rows = meter.columns()
    hashes = rows["hash"].to_pylist()
    return HashedClip(
        id=name,
        length_s=length_s,
        pixels=pixels,
        time_s=rows["time_s"],
        hashes=hashes,
        quality=rows["quality"],
    )


COPIES = {
    "crf35": {"crf": 35},
    "180p": {"size": (180, 320)},
    "108p": {"size": (108, 192), "crf": 28},
    "15fps": {"fps": 15},
    "trimmed": {"start": 31},  # 1.3 s
}


def copy(path, frames, size=(HEIGHT, WIDTH), fps=FPS, crf=18, start=0):
    kept = frames[start:]
    chosen = [kept[int(i * FPS / fps)] for i in range(int(len(kept) * fps / FPS))]
    return encode(path, chosen, size, fps, crf)


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Clips by name: four videos, each with its copies."""
    folder = tmp_path_factory.mktemp("videos")
    clips = {}
    for seed in range(4):
        frames = list(panned(seed))
        original = encode(folder / f"{seed}.mp4", frames)
        clips[f"{seed}"] = hashed(original, f"{seed}")
        for kind, options in COPIES.items():
            name = f"{seed} {kind}"
            clips[name] = hashed(copy(folder / f"{name}.mp4", frames, **options), name)
    return clips


def test_precision_and_recall_of_copies_are_one(collection):
    dropped = find_duplicates(list(collection.values()), CONFIG)
    for name, kept in dropped.items():
        assert name.split()[0] == kept.split()[0], f"{name} is no copy of {kept}"
    for seed in "0123":
        left = [name for name in collection if name[0] == seed and name not in dropped]
        assert len(left) == 1
        assert collection[left[0]].pixels == HEIGHT * WIDTH
        assert "trimmed" not in left[0]


@pytest.mark.parametrize("kind", COPIES)
def test_each_copy_is_found_next_to_its_original_alone(collection, kind):
    for seed in range(4):
        pair = [collection[f"{seed}"], collection[f"{seed} {kind}"]]
        assert len(find_duplicates(pair, CONFIG)) == 1


def test_the_order_of_the_clips_does_not_matter(collection):
    clips = list(collection.values())
    expected = find_duplicates(clips, CONFIG)
    for seed in range(3):
        shuffled = [clips[i] for i in np.random.default_rng(seed).permutation(len(clips))]
        assert find_duplicates(shuffled, CONFIG) == expected


def test_a_copy_that_was_sampled_at_other_moments_is_found():
    """A third of a frame's width a second; the copy begins between two samples of the original."""
    frames = list(panned(0, speed=130))
    steps = HashMeter(CONFIG).every_s * FPS
    for start in (1, 2, 31):
        assert start % steps
        pair = [hashed(frames, "a"), hashed(frames[start:], "b")]
        assert find_duplicates(pair, CONFIG) == {"b": "a"}


@pytest.mark.parametrize("seed", [0, 1])
def test_parts_of_one_shot_of_a_static_camera_are_not_duplicates(seed):
    frames = list(static_camera(seed, 6))
    parts = [hashed(frames[i : i + 48], f"part {i}") for i in range(0, len(frames), 48)]
    assert find_duplicates(parts, CONFIG) == {}


def test_parts_of_a_shot_in_which_nothing_moves_are_duplicates():
    frames = list(static_camera(0, 4, movers=0))
    parts = [hashed(frames[:48], "a"), hashed(frames[48:], "b")]
    assert find_duplicates(parts, CONFIG) == {"b": "a"}


def test_mirrored_copies_do_not_count():
    frames = list(panned(0))
    mirrored = [frame[:, ::-1] for frame in frames]
    assert find_duplicates([hashed(frames, "a"), hashed(mirrored, "b")], CONFIG) == {}


@pytest.mark.parametrize("part, found", [(0.02, True), (0.2, False)])
def test_only_small_crops_are_found(part, found):
    """Between the two it depends on the picture."""
    frames = list(panned(0))
    y, x = round(HEIGHT * part / 2), round(WIDTH * part / 2)
    cropped = [frame[y : HEIGHT - y, x : WIDTH - x] for frame in frames]
    assert bool(find_duplicates([hashed(frames, "a"), hashed(cropped, "b")], CONFIG)) == found


def test_flat_frames_match_nothing():
    flat = [np.full((HEIGHT, WIDTH, 3), 16, np.uint8)] * 48
    assert find_duplicates([hashed(flat, "a"), hashed(flat, "b")], CONFIG) == {}
    # Mostly flat: the same title between black frames is not the same clip.
    title = next(panned(0))
    titled = [hashed([*flat[:30], *[title] * 18], name) for name in "ab"]
    assert find_duplicates(titled, CONFIG) == {}


def test_an_empty_meter_has_typed_columns():
    rows = HashMeter(CONFIG).columns()
    assert {name: len(values) for name, values in rows.items()} == dict.fromkeys(rows, 0)
    assert rows["hash"].type.byte_width == 32


def made(name, hashes, length_s=None, pixels=1, quality=100):
    """A clip of given hashes, uint8 (N, 32)."""
    return HashedClip(
        id=name,
        length_s=len(hashes) * CONFIG.every_s if length_s is None else length_s,
        pixels=pixels,
        time_s=np.arange(len(hashes)) * CONFIG.every_s,
        hashes=[each.tobytes() for each in hashes],
        quality=np.full(len(hashes), quality),
    )


def random_hashes(seed, count=12):
    return np.random.default_rng(seed).integers(0, 256, (count, 32), np.uint8)


def flip(hashes, first, bits):
    """Change bits `first` to `first + bits` of each hash."""
    mask = np.zeros(256, np.uint8)
    mask[first : first + bits] = 1
    return hashes ^ np.packbits(mask)


def test_frames_match_up_to_max_bits_and_clips_from_min_matched():
    hashes, other = random_hashes(0, 20), random_hashes(1, 20)
    assert find_duplicates([made("a", hashes), made("b", flip(hashes, 100, 31))], CONFIG)
    assert not find_duplicates([made("a", hashes), made("b", flip(hashes, 100, 32))], CONFIG)
    for same, found in [(14, True), (13, False)]:
        mixed = np.concatenate([hashes[:same], other[same:]])
        assert bool(find_duplicates([made("a", hashes), made("b", mixed)], CONFIG)) == found


def test_frames_must_match_at_one_distance_in_time():
    hashes = random_hashes(0, 20)
    shuffled = hashes[np.random.default_rng(0).permutation(20)]
    assert not find_duplicates([made("a", hashes), made("b", shuffled)], CONFIG)
    assert find_duplicates([made("a", hashes), made("b", hashes[7:])], CONFIG) == {"b": "a"}


@pytest.mark.parametrize(
    "a, b, kept",
    [
        ({"length_s": 4.0}, {"length_s": 8.0, "pixels": 9}, "b"),  # the longer,
        ({"length_s": 8.0}, {"length_s": 4.0, "pixels": 9}, "a"),
        ({"length_s": 4.0}, {"length_s": 3.96, "pixels": 9}, "b"),  # a frame does not count,
        ({"pixels": 9}, {"pixels": 4}, "a"),  # then the larger,
        ({}, {}, "a"),  # then by id
    ],
)
def test_which_of_two_is_kept(a, b, kept):
    hashes = random_hashes(0)
    clips = [made("a", hashes, **a), made("b", hashes, **b)]
    dropped = "b" if kept == "a" else "a"
    assert find_duplicates(clips, CONFIG) == {dropped: kept}
    assert find_duplicates(clips[::-1], CONFIG) == {dropped: kept}


def test_a_clip_is_dropped_only_for_one_that_is_kept():
    """Neighbours in this chain are duplicates, the others are not."""
    hashes = random_hashes(0)
    chain = [made(f"{i}", flip(hashes, 0, 20 * i)) for i in range(5)]
    assert find_duplicates(chain, CONFIG) == {"1": "0", "3": "2"}


def test_of_many_copies_one_is_left():
    """More than are compared with each other."""
    rng = np.random.default_rng(0)
    hashes, clips = random_hashes(0, 8), []
    for i in range(150):
        flipped = np.stack([flip(each, rng.integers(0, 246), 10) for each in hashes])
        clips.append(made(f"{i:03d}", flipped))
    assert find_duplicates(clips, CONFIG) == {f"{i:03d}": "000" for i in range(1, 150)}


def test_a_logo_in_every_clip_hides_no_duplicate_and_makes_none():
    """The bucket of the logo holds more clips than are compared."""
    logo = random_hashes(10**6, 2)
    clips = [made(f"{i:04d}", np.concatenate([logo, random_hashes(i, 8)])) for i in range(500)]
    copies = [
        made(f"{i:04d} copy", flip(np.concatenate([logo, random_hashes(i, 8)]), 40, 14))
        for i in range(0, 500, 50)
    ]
    expected = {f"{i:04d} copy": f"{i:04d}" for i in range(0, 500, 50)}
    assert find_duplicates(clips + copies, CONFIG) == expected


def test_recall_among_random_clips():
    rng = np.random.default_rng(0)
    clips, expected = [], {}
    for i in range(2000):
        hashes = random_hashes(i, 10)
        clips.append(made(f"{i}", hashes))
        if i % 10 == 0:
            flipped = [each ^ np.packbits(rng.permutation(256) < 31) for each in hashes]
            clips.append(made(f"{i} copy", np.stack(flipped)))
            expected[f"{i} copy"] = f"{i}"
    dropped = find_duplicates(clips, CONFIG)
    assert dropped.items() <= expected.items()
    assert len(dropped) >= 0.995 * len(expected)


def test_no_clips_and_no_frames():
    assert find_duplicates([], CONFIG) == {}
    assert (
        find_duplicates([made("a", random_hashes(0, 0)), made("b", random_hashes(0))], CONFIG) == {}
    )
    with pytest.raises(ValueError, match="not unique"):
        find_duplicates([made("a", random_hashes(0)), made("a", random_hashes(1))], CONFIG)


def test_the_quality_decides_which_frames_are_compared():
    hashes = random_hashes(0)
    clips = [made("a", hashes, quality=49), made("b", hashes, quality=100)]
    assert find_duplicates(clips, CONFIG) == {}
    assert find_duplicates(clips, DuplicatesConfig(min_quality=49)) == {"b": "a"}
    with pytest.raises(UserError, match="min_quality must be 0 or more, not -1"):
        DuplicatesConfig(min_quality=-1)


def directions(rng, count, dim=32):
    rows = rng.standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def reference(features, lengths_s, ids, threshold):
    """The definition, one clip after another."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    order = sorted(range(len(ids)), key=lambda i: (-lengths_s[i], ids[i]))
    similar = features[order] @ features[order].T > threshold
    kept, dropped = np.zeros(len(ids), bool), {}
    for i, here in enumerate(order):
        before = similar[i, :i] & kept[:i]
        if before.any():
            dropped[ids[here]] = ids[order[before.argmax()]]
        else:
            kept[i] = True
    return dropped


def test_similar_features_agree_with_the_definition():
    rng = np.random.default_rng(0)
    topics = directions(rng, 300)
    features = topics[rng.integers(0, 300, 5000)] + 0.35 * directions(rng, 5000)
    lengths_s, ids = rng.integers(2, 16, 5000), [f"{i:04d}" for i in range(5000)]
    expected = reference(features, lengths_s, ids, 0.9)
    assert 1000 < len(expected) < 4700
    assert find_similar(features, lengths_s, ids, 0.9) == expected
    order = rng.permutation(5000)
    shuffled = features[order], lengths_s[order], [ids[i] for i in order]
    assert find_similar(*shuffled, 0.9) == expected


def test_features_in_cells_find_nearly_all(monkeypatch):
    monkeypatch.setattr("xgen_jax.curation.duplicates._EXACT", 1000)
    rng = np.random.default_rng(0)
    rows = directions(rng, 4000)
    copies = rows[::8] + 0.3 * directions(rng, 500)
    features = np.concatenate([rows, copies]) + directions(rng, 1)
    ids = [f"{i}" for i in range(4000)] + [f"{i} copy" for i in range(0, 4000, 8)]
    lengths_s = [2.0] * 4000 + [1.0] * 500
    expected = reference(features, lengths_s, ids, 0.97)
    dropped = find_similar(features, lengths_s, ids, 0.97)
    assert dropped.items() <= expected.items()
    assert len(dropped) >= 0.98 * len(expected) > 450


def test_features_without_a_direction_are_similar_to_nothing():
    features = np.ones((6, 8), np.float16)
    features[1], features[2, 3] = 0, np.nan
    ids = list("abcdef")
    assert find_similar(features, [1.0] * 6, ids, 0.9, pixels=[1, 1, 1, 2, 1, 1]) == dict.fromkeys(
        "aef", "d"
    )
    assert find_similar(features[:0], [], [], 0.9) == {}
