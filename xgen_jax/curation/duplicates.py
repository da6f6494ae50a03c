"""Clips that show the same as another, by PDQ hashes of their frames and by CLIP features.

arXiv 2408.12590, section 3, drops the shorter of two clips whose CLIP features have a cosine above
0.9; `find_similar` does. `find_duplicates` needs no weights: two clips are duplicates if most
frames of the shorter have nearly the PDQ hashes (Facebook, 2019: signs of 256 low frequencies) of
frames of the longer, at one distance in time. This finds copies of other sizes, codecs, frame rates
and starts. Mirrored copies do not count, and larger crops, added borders and other speeds are not
found.

Of two duplicates the better is kept: the longer, then the one of more pixels, then of
more bytes a second, then the first by id.
Similarity is not transitive. Clips are therefore taken from best to worst, and one is dropped only
if it is a duplicate of a clip that is kept: nothing is lost through a chain of small changes, and
no two duplicates are kept. The result does not depend on the order of the clips.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pdqhash
import pyarrow as pa

from xgen_jax.curation.config import DuplicatesConfig
from xgen_jax.curation.meter import Columns, Meter

HASH_BYTES = 32

# A bucket's clips are each compared with these many of the same bucket: the best ones, and those
# next to it. Buckets of black frames or of a logo would otherwise cost the square of their size.
_BEST, _NEXT = 16, 16
_PARTNERS = 64  # better clips that one is compared with in full, those that it meets most often
# Chance to compare two frames of exactly `max_bits` differences; clips have several such frames.
_FRAME_RECALL = 0.8
_MAX_TABLES = 64
_COMPARED = 1 << 20  # pairs of frames at a time
_FEW = 8  # frames of a clip by which a pair is first judged
# A frame lies between two others if it differs from the path between them in this part of
# `max_bits` at most, and these two in this number of bits; unrelated frames differ in about 128.
_DETOUR, _RELATED = 0.75, 96

# Up to this many features all are compared with all that are kept; more are divided into cells.
_EXACT = 100_000
_CELLS_OF_ROW = 4  # the nearest, in which a row is listed and searched
_MEANS_STEPS = 5
_ROWS, _KEPT_ROWS = 2048, 8192  # features of a matrix product


class HashMeter(Meter):
    """PDQ hashes of frames.

    Columns: time_s; hash, 32 bytes; quality, 0 (flat) to 100, of PDQ: below about 50 the signs of
    the frequencies are noise.
    """

    side = 256

    def __init__(self, config: DuplicatesConfig):
        self.every_s = config.every_s
        self._times: list[float] = []
        self._hashes: list[bytes] = []
        self._quality: list[int] = []

    def add(self, time_s: float, image: np.ndarray) -> None:
        bits, quality = pdqhash.compute(np.ascontiguousarray(image))
        self._times.append(time_s)
        self._hashes.append(np.packbits(bits).tobytes())
        self._quality.append(quality)

    def columns(self) -> Columns:
        return {
            "time_s": np.array(self._times, np.float64),
            "hash": pa.array(self._hashes, pa.binary(HASH_BYTES)),
            "quality": np.array(self._quality, np.uint8),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class HashedClip:
    """A clip as `find_duplicates` compares it.

    Attributes:
      id: unique.
      length_s: seconds.
      pixels: of a frame.
      bitrate: bytes a second of its file.
      time_s: of the hashed frames, from any origin, increasing.
      hashes: of each, 32 bytes.
      quality: of each, 0 to 100.
    """

    id: str
    length_s: float
    pixels: int
    bitrate: float = 0.0
    time_s: Sequence[float] | np.ndarray
    hashes: Sequence[bytes]
    quality: Sequence[int] | np.ndarray


def find_duplicates(clips: Sequence[HashedClip], config: DuplicatesConfig) -> dict[str, str]:
    """Return the clip that is kept for each clip that is dropped, by id; see the module.

    Frames below `min_quality` match nothing, and a clip that has more of them than others is never
    a duplicate. Candidates come from sorted tables of hash bits: time and memory grow as
    N log N with the number of hashes.

    Raises:
      ValueError: ids are not unique.
    """
    clips = [
        clips[i]
        for i in _preference(
            [clip.id for clip in clips],
            [clip.length_s for clip in clips],
            [clip.pixels for clip in clips],
            [clip.bitrate for clip in clips],
        )
    ]
    usable = [_usable(clip, config.min_quality) for clip in clips]
    counts = np.array([len(chosen) for chosen in usable], np.int64)
    if not counts.sum():
        return {}
    words = np.frombuffer(
        b"".join(clip.hashes[i] for clip, chosen in zip(clips, usable) for i in chosen), np.uint64
    ).reshape(-1, HASH_BYTES // 8)
    times_s = np.concatenate(
        [np.asarray(clip.time_s, np.float64)[chosen] for clip, chosen in zip(clips, usable)]
    )
    better, worse = _frame_matches(words, np.repeat(np.arange(len(clips)), counts), config.max_bits)
    # First by a few frames of each clip: most clips that have only a logo in common end here.
    for frames, part in ((_FEW, config.min_matched / 2), (None, config.min_matched)):
        same = _clip_matches(words, times_s, counts, better, worse, frames, part, config)
        better, worse = better[same], worse[same]
    kept_for = np.full(len(clips), -1)
    _drop(better, worse, kept_for)
    return {clips[i].id: clips[kept_for[i]].id for i in np.flatnonzero(kept_for >= 0)}


def find_similar(
    features: np.ndarray,
    lengths_s: Sequence[float],
    ids: Sequence[str],
    threshold: float,
    pixels: Sequence[int] | None = None,
    bitrates: Sequence[float] | None = None,
) -> dict[str, str]:
    """Return the clip that is kept for each clip that is dropped, by id; see the module.

    Exact up to 100,000 clips. More are divided into cells by k-means, and compared only within the
    four cells nearest to each: the cost grows with N^1.5.

    Args:
      features: (N, D), of each clip; rows without a direction (zeros, NaN) are similar to nothing.
      lengths_s: (N,) seconds.
      ids: (N,), unique.
      threshold: cosine above which two clips are similar.
      pixels: (N,) of a frame; None for all alike.
      bitrates: (N,) bytes a second of the files; None for all alike.

    Raises:
      ValueError: ids are not unique.
    """
    alike = [0] * len(ids)
    order = _preference(ids, lengths_s, pixels or alike, bitrates or alike)
    norms = np.array([np.linalg.norm(row.astype(np.float32)) for row in features])
    order = order[np.isfinite(norms[order]) & (norms[order] > 0)]

    def rows(ranks: np.ndarray) -> np.ndarray:
        chosen = order[ranks]
        return features[chosen].astype(np.float32) / norms[chosen, None]

    cells = _cells(rows, len(order))
    by_cell = np.argsort(cells, axis=None, kind="stable")
    members = np.split(
        by_cell // cells.shape[1],
        np.searchsorted(cells.ravel()[by_cell], np.arange(1, cells.max(initial=0) + 1)),
    )
    kept_for = np.full(len(order), -1)
    for start in range(0, len(order), _ROWS):
        block = np.arange(start, min(start + _ROWS, len(order)))
        values, nobody = rows(block), len(order)
        first = np.full(len(block), nobody)
        for cell in np.unique(cells[block]):
            here = np.flatnonzero((cells[block] == cell).any(axis=1))
            kept = members[cell][: np.searchsorted(members[cell], start)]
            kept = kept[kept_for[kept] < 0]
            for chunk in (kept[i : i + _KEPT_ROWS] for i in range(0, len(kept), _KEPT_ROWS)):
                similar = values[here] @ rows(chunk).T > threshold
                best = np.where(similar.any(axis=1), chunk[similar.argmax(axis=1)], nobody)
                first[here] = np.minimum(first[here], best)
        kept_for[block] = np.where(first < nobody, first, -1)
        left = np.flatnonzero(first == nobody)
        worse, better = np.nonzero(np.tril(values[left] @ values[left].T > threshold, -1))
        _drop(block[left[better]], block[left[worse]], kept_for)
    return {ids[order[i]]: ids[order[kept_for[i]]] for i in np.flatnonzero(kept_for >= 0)}


def _cells(rows: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
    """Return the cells of each unit row, (N, 1) zeros for few rows: by spherical k-means.

    Args:
      rows: returns unit rows, float32, by their numbers.
      count: of rows.
    """
    if count <= _EXACT:
        return np.zeros((count, 1), np.int32)
    cells = math.isqrt(count)
    rng = np.random.default_rng(0)
    sample = rows(np.sort(rng.choice(count, min(count, 64 * cells), replace=False)))
    centres = sample[rng.choice(len(sample), cells, replace=False)]
    for _ in range(_MEANS_STEPS):
        nearest = (sample @ centres.T).argmax(axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, sample)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(norms > 0, sums / np.maximum(norms, 1e-12), centres)
    found = np.empty((count, _CELLS_OF_ROW), np.int32)
    for start in range(0, count, _KEPT_ROWS):
        block = np.arange(start, min(start + _KEPT_ROWS, count))
        nearness = rows(block) @ centres.T
        found[block] = np.argpartition(nearness, -_CELLS_OF_ROW, axis=1)[:, -_CELLS_OF_ROW:]
    return found


def _preference(
    ids: Sequence[str],
    lengths_s: Sequence[float],
    pixels: Sequence[int],
    bitrates: Sequence[float],
) -> np.ndarray:
    """Return the clips' indices from best to worst."""
    if len(set(ids)) != len(ids):
        raise ValueError("the ids of the clips are not unique")
    # Copies differ by a frame or two in length; that must not outweigh their size.
    lengths = [math.floor(2 * length_s + 0.5) for length_s in lengths_s]
    keys = [
        (-length, -size, -rate, name)
        for length, size, rate, name in zip(lengths, pixels, bitrates, ids)
    ]
    return np.array(sorted(range(len(ids)), key=keys.__getitem__), np.int64)


def _drop(better: np.ndarray, worse: np.ndarray, kept_for: np.ndarray) -> None:
    """Drop clips for others that are kept: kept_for[worse] = better, from best to worst.

    Args:
      better, worse: ranks of pairs of similar clips, better < worse.
      kept_for: (N,) the clip that is kept instead of each, -1 for itself; changed.
    """
    order = np.lexsort((better, worse))
    for first, second in zip(better[order].tolist(), worse[order].tolist()):
        if kept_for[second] < 0 and kept_for[first] < 0:
            kept_for[second] = first


def _usable(clip: HashedClip, min_quality: int) -> np.ndarray:
    """Return the indices of a clip's frames that can be compared."""
    chosen = np.flatnonzero(np.asarray(clip.quality) >= min_quality)
    return chosen if 2 * len(chosen) >= len(clip.hashes) else chosen[:0]


def _distances(words: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return in how many bits pairs of hashes differ."""
    return np.bitwise_count(words[first] ^ words[second]).sum(axis=1, dtype=np.int16)


def _frame_matches(
    words: np.ndarray, clip_of: np.ndarray, max_bits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of clips, better and worse, with a frame in common.

    Locality-sensitive hashing by bit sampling: a table sorts all hashes by some of their bits, and
    compares those that agree in all of them. The tables of one permutation of the bits are
    disjoint, so that the first ones find all pairs of fewer differences than tables. The number of
    sampled bits grows with log2(N), so that random hashes rarely meet.

    Args:
      words: (N, 4) uint64, hashes.
      clip_of: (N,) the clip of each, increasing.
      max_bits: in which the same frames may differ.
    """
    count = len(words)
    sampled = min(max(math.ceil(math.log2(count)) + 2, 16), 32)
    met = (1 - max_bits / 256) ** sampled
    wanted = min(math.log(1 - _FRAME_RECALL) / math.log1p(-met), _MAX_TABLES) if met < 1 else 1
    bands = 256 // sampled
    columns = np.ascontiguousarray(words.view(np.uint8).T)
    clips = int(clip_of[-1]) + 1
    rng = np.random.default_rng(0)
    found = []
    for _ in range(math.ceil(wanted / bands)):
        for bits in rng.permutation(256)[: bands * sampled].reshape(bands, sampled):
            pairs = [np.empty(0, np.int64)]
            for first, second in _bucket_pairs(columns, bits, clip_of):
                near = _distances(words, first, second) <= max_bits
                pairs.append(clip_of[first[near]] * clips + clip_of[second[near]])
            found.append(np.unique(np.concatenate(pairs)))
    codes, hits = np.unique(np.concatenate(found), return_counts=True)
    better, worse = np.divmod(codes, clips)
    # Duplicates meet in nearly all tables, clips that share a logo in some. Of many copies all meet
    # as often, and are dropped for the best.
    kept = np.zeros(len(codes), bool)
    for limit, first in ((_PARTNERS, -hits), (_BEST, better)):
        order = np.lexsort((better, first, worse))
        place = np.arange(len(order)) - np.searchsorted(worse[order], worse[order])
        kept[order[place < limit]] = True
    return better[kept], worse[kept]


def _bucket_pairs(
    columns: np.ndarray, bits: np.ndarray, clip_of: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of hashes of different clips that agree in `bits`, the better clip's first."""
    keys = np.zeros(columns.shape[1], np.uint64)
    for bit in bits.tolist():
        keys <<= 1
        keys |= columns[bit // 8] >> (bit % 8) & 1
    # One sort of packed words is several times faster than an argsort.
    keys <<= 32
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    rows = (keys & 0xFFFFFFFF).astype(np.int64)
    keys >>= 32
    # One hash of each clip: its own frames are alike.
    clips = clip_of[rows]
    fresh = np.ones(len(keys), bool)
    fresh[1:] = (keys[1:] != keys[:-1]) | (clips[1:] != clips[:-1])
    rows, keys = rows[fresh], keys[fresh]
    place = np.arange(len(keys))
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    start = np.repeat(starts, np.diff(np.append(starts, len(keys))))
    place = place - start
    later = np.flatnonzero(place)
    near, far = later, later[place[later] > _NEXT]
    for back in range(1, _NEXT + 1):
        near = near[place[near] >= back]
        yield from _blocks(rows[near - back], rows[near])
    for best in range(_BEST):
        far = far[place[far] - best > _NEXT]
        yield from _blocks(rows[start[far] + best], rows[far])


def _blocks(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for i in range(0, len(first), _COMPARED):
        yield first[i : i + _COMPARED], second[i : i + _COMPARED]


def _clip_matches(
    words: np.ndarray,
    times_s: np.ndarray,
    counts: np.ndarray,
    better: np.ndarray,
    worse: np.ndarray,
    frames: int | None,
    part: float,
    config: DuplicatesConfig,
) -> np.ndarray:
    """Return which pairs of clips are duplicates, bool per pair.

    Args:
      words: (N, 4) uint64, hashes of all clips, one clip after another.
      times_s: (N,) their times.
      counts: of hashes of each clip.
      better, worse: pairs of clips.
      frames: of the shorter clip that are compared, at equal distances; None for all.
      part: of them that must match.
      config: of the stage.
    """
    starts = np.cumsum(counts) - counts
    swapped = counts[better] < counts[worse]
    shorter, longer = np.where(swapped, better, worse), np.where(swapped, worse, better)
    compared = counts[shorter] if frames is None else counts[shorter].clip(max=frames)
    needed = np.ceil(part * compared - 1e-9).clip(1)
    sizes = compared * counts[longer]
    # In quick motion a frame may lie between two of the other clip, and far from both. Then going
    # from one to the other through it is hardly a detour.
    steps = np.append(_distances(words, np.arange(len(words) - 1), np.arange(1, len(words))), 0)
    related = (steps <= _RELATED) & (np.diff(times_s, append=np.inf) < 2 * config.every_s)
    steps[~related] = -512  # more than any two distances
    same = np.zeros(len(better), bool)
    # Pairs of clips that together have about `_COMPARED` pairs of frames.
    borders = np.flatnonzero(np.diff(np.cumsum(sizes) // _COMPARED, prepend=0)) + 1
    for pairs in np.split(np.arange(len(better)), borders):
        pair = np.repeat(pairs, sizes[pairs])
        number = np.arange(len(pair)) - np.repeat(
            np.cumsum(sizes[pairs]) - sizes[pairs], sizes[pairs]
        )
        frame, other = np.divmod(number, counts[longer[pair]])
        frame = frame * counts[shorter[pair]] // compared[pair]
        first, second = starts[shorter[pair]] + frame, starts[longer[pair]] + other
        distances = _distances(words, first, second)
        detours = distances[:-1] + distances[1:] - steps[second[:-1]]
        # The last frame of a clip has no next one.
        between = np.flatnonzero((detours <= 2 * _DETOUR * config.max_bits) & (other[1:] > 0))
        near = distances <= config.max_bits
        near[between] = near[between + 1] = True
        near = np.flatnonzero(near)
        pair, frame = pair[near], frame[near]
        apart_s = times_s[first[near]] - times_s[second[near]]
        # Frames that belong together are up to one period apart in distance, as the two clips were
        # not sampled at the same moments: three half periods in a row hold them.
        half = np.floor(apart_s / (config.every_s / 2)).astype(np.int64)
        half -= half.min(initial=0)
        offsets, most = int(half.max(initial=0)) + 3, int(counts.max())
        offset = pair * offsets + half
        codes = np.unique(np.concatenate([(offset + shift) * most + frame for shift in range(3)]))
        offset, matched = np.unique(codes // most, return_counts=True)
        pair = offset // offsets
        same[pair[matched >= needed[pair]]] = True
    return same
