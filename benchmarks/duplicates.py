"""Finding duplicates among many clips; one JSON line per row on stdout.

python benchmarks/duplicates.py [--rows=meter,hashes,logo,features] [--hashes=100000,1000000]
    [--features=50000,200000]

`meter`: PDQ of one frame. `hashes`: clips of 40 random hashes each, and 500 planted copies whose
frames all differ in exactly 14, and 500 in exactly 31 bits, the most that counts as the same.
`logo`: the same, with two frames of every clip replaced by nearly the same picture. `features`:
rows like those of CLIP, close to a common direction and to one of 1,000 topics, with 500 planted
copies each at cosines of 0.92 and 0.97. `recall` is the part of the planted copies that is found,
and `wrong` counts other clips that are dropped. `bytes_before` is the most that the process had
used before the search, and `peak_bytes` after it; each row has a process of its own.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rows import device_name, print_rows  # isort: skip  (it sets the environment)

import numpy as np

from xgen_jax.curation.config import DuplicatesConfig
from xgen_jax.curation.duplicates import HashedClip, HashMeter, find_duplicates, find_similar

CONFIG = DuplicatesConfig()
FRAMES = 40  # of a clip, 5 s
PLANTED = 500  # copies at each distance
BITS = (14, 31)
COSINES = (0.92, 0.97)
DIM = 768
LOGO_BITS = 6


def flipped(hashes: np.ndarray, bits: int, rng: np.random.Generator) -> np.ndarray:
    """Return hashes, uint8 (N, 32), each with exactly `bits` other bits."""
    order = rng.random((len(hashes), 256), np.float32).argpartition(bits, axis=1)[:, :bits]
    mask = np.zeros((len(hashes), 256), np.uint8)
    np.put_along_axis(mask, order, 1, axis=1)
    return hashes ^ np.packbits(mask, axis=1)


def found_and_wrong(dropped: dict[str, str], planted: dict[str, list[str]]) -> dict[str, Any]:
    """Return the recall for each kind of copies, and the number of other clips that are dropped.

    Args:
      dropped: clip that is kept, by clip that is dropped.
      planted: names of copies by kind; a copy is the name of its original and "+".
    """
    copies = {name for names in planted.values() for name in names}
    right = {name for name in copies if dropped.get(name) == name[:-1]}
    return {
        "recall": {
            kind: len(right.intersection(names)) / len(names) for kind, names in planted.items()
        },
        "wrong": len(dropped) - len(right),
    }


def measured(what: str, shape: list[int], run: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """Call a function once; return the row and the result."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    begun, cpu = time.perf_counter(), time.process_time()
    result = run()
    row = {
        "what": what,
        "shape": shape,
        "device": device_name(),
        "time_s": time.perf_counter() - begun,
        "cpu_s": time.process_time() - cpu,
        "bytes_before": before,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    return row, result


def meter(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    del options
    image = np.random.default_rng(0).integers(0, 256, (144, 256, 3)).astype(np.uint8)
    hashes = HashMeter(CONFIG)

    def run():
        for i in range(200):
            hashes.add(i * CONFIG.every_s, image)

    row, _ = measured("PDQ of a frame", [200, 144, 256, 3], run)
    yield row | {"ms_per_frame": 1e3 * row["cpu_s"] / 200}


def search_hashes(count: int, logo: bool) -> dict[str, Any]:
    """Plant copies among random hashes, and search."""
    rng = np.random.default_rng(0)
    originals = count // FRAMES - PLANTED * len(BITS)
    hashes = rng.integers(0, 256, (originals, FRAMES, 32), np.uint8)
    names = [f"{n:07d}" for n in range(originals)]
    planted, parts = {}, [hashes]
    for i, bits in enumerate(BITS):
        chosen = slice(i * PLANTED, (i + 1) * PLANTED)
        copies = flipped(hashes[chosen].reshape(-1, 32), bits, rng)
        parts.append(copies.reshape(PLANTED, FRAMES, 32))
        planted[f"{bits} bits"] = [f"{name}+" for name in names[chosen]]
        names = names + planted[f"{bits} bits"]
    hashes = np.concatenate(parts)
    if logo:
        same = np.broadcast_to(rng.integers(0, 256, 32, np.uint8), (2 * len(hashes), 32))
        hashes[:, :2] = flipped(same, LOGO_BITS, rng).reshape(-1, 2, 32)
    times_s, quality = np.arange(FRAMES) * CONFIG.every_s, np.full(FRAMES, 100)
    clips = [
        HashedClip(
            id=name,
            length_s=FRAMES * CONFIG.every_s,
            pixels=1 if name.endswith("+") else 2,
            time_s=times_s,
            hashes=[each.tobytes() for each in rows],
            quality=quality,
        )
        for name, rows in zip(names, hashes)
    ]
    what = "duplicates by hashes" + (", two frames of each clip are a logo" if logo else "")
    row, dropped = measured(what, [len(clips), FRAMES], lambda: find_duplicates(clips, CONFIG))
    return row | found_and_wrong(dropped, planted)


def search_features(count: int) -> dict[str, Any]:
    """Plant copies among features like those of CLIP, and search."""
    rng = np.random.default_rng(0)

    def directions(number: int) -> np.ndarray:
        rows = rng.standard_normal((number, DIM), np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    originals = count - PLANTED * len(COSINES)
    common, topics = directions(1), directions(1000)
    features = directions(originals)
    features *= 0.55
    features += 0.7 * common + 0.45 * topics[rng.integers(0, 1000, originals)]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    names = [f"{n:07d}" for n in range(originals)]
    planted, parts = {}, [features]
    for i, cosine in enumerate(COSINES):
        chosen = slice(i * PLANTED, (i + 1) * PLANTED)
        rows, away = features[chosen], directions(PLANTED)
        away -= (away * rows).sum(axis=1, keepdims=True) * rows
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        parts.append(cosine * rows + np.sqrt(1 - cosine**2) * away)
        planted[f"cosine {cosine}"] = [f"{name}+" for name in names[chosen]]
        names = names + planted[f"cosine {cosine}"]
    features = np.concatenate(parts)
    del parts
    lengths_s = [1.0 if name.endswith("+") else 2.0 for name in names]
    row, dropped = measured(
        "duplicates by features",
        list(features.shape),
        lambda: find_similar(features, lengths_s, names, CONFIG.similarity),
    )
    return row | found_and_wrong(dropped, planted)


def hashes(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for count in sizes(options.hashes):
        yield alone(options, "hashes", count) or search_hashes(count, logo=False)


def logo(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for count in sizes(options.hashes):
        yield alone(options, "logo", count) or search_hashes(count, logo=True)


def features(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for count in sizes(options.features):
        yield alone(options, "features", count) or search_features(count)


def alone(options: argparse.Namespace, group: str, count: int) -> dict[str, Any] | None:
    """Return the row from a process of its own, so that its peak is not that of another; None in
    such a process."""
    if options.here:
        return None
    name = "features" if group == "features" else "hashes"
    command = [sys.executable, str(pathlib.Path(__file__)), "--here", f"--rows={group}"]
    output = subprocess.run([*command, f"--{name}={count}"], check=True, stdout=subprocess.PIPE)
    return json.loads(output.stdout)


def sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hashes", default="100000,1000000", help="numbers of hashes")
    parser.add_argument("--features", default="50000,200000", help="numbers of features")
    parser.add_argument("--here", action="store_true", help="measure in this process")
    groups = {"meter": meter, "hashes": hashes, "logo": logo, "features": features}
    print_rows(parser, groups)


if __name__ == "__main__":
    main()
