"""What the demo computes: samples and reconstructions, one at a time, and latents kept to look at.

It knows nothing of the page. What a visitor asks for waits for its turn on the device, and may be
stopped by its owner.
"""

import collections
import contextlib
import dataclasses
import math
import pathlib
import secrets
import statistics
import threading
import time
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from xgen_jax.commands.demo.gallery import Gallery, Result, thumbnail
from xgen_jax.commands.demo.latent_view import LatentView
from xgen_jax.commands.sample import default_scale
from xgen_jax.data.video import VideoReader, probe
from xgen_jax.data.video_writer import write_video
from xgen_jax.errors import UserError
from xgen_jax.evaluation.reconstruction import compare, side_by_side
from xgen_jax.inference.reconstruct import Reconstructor
from xgen_jax.inference.request import VideoRequest
from xgen_jax.inference.resample_time import moments
from xgen_jax.inference.sampling import BatchRow
from xgen_jax.inference.text_to_video import TextToVideo
from xgen_jax.inference.video_generator import VideoGenerator


class Owner(NamedTuple):
    """Whose computation it is.

    Attributes:
      visitor: a page that is open in a browser.
      tab: of that page.
    """

    visitor: str
    tab: str


# (done, total) and what is being done; a total of 0 is unknown.
Report = Callable[[int, int, str], None]
_KEPT = 16  # visitors whose latents and reconstruction are kept
_COMPILE_PER_TRACE = 8  # XLA's time for a sampling step over that of tracing it, about


class Interrupted(Exception):
    """The owner, or the server's end, has stopped the computation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """A reconstructed video.

    Attributes:
      video: path of an mp4, original and reconstruction side by side, at the speed asked for.
      figures: `compare` of all frames at the speed of the original.
      facts: what was reconstructed, name -> value, for people.
    """

    video: pathlib.Path
    figures: Mapping[str, Any]
    facts: Mapping[str, str]


class Studio:
    """Models of the demo.

    Args:
      reconstructor: of the embedder.
      model: a text-to-video model on its latents, if there is one.
      gallery: where samples go; needed with a model.
      folder: for files that end with the server.
      source: flags that name the model, for the settings of results: "model", "lora" and the like.
      max_seconds: of a video that is reconstructed, at most.
      max_side: pixels of its longer side; a larger video is made smaller.
      max_waiting: computations that may wait for the device.
    """

    def __init__(
        self,
        *,
        reconstructor: Reconstructor,
        model: TextToVideo | None,
        gallery: Gallery | None,
        folder: pathlib.Path,
        source: Mapping[str, str],
        max_seconds: float,
        max_side: int,
        max_waiting: int,
    ):
        self.reconstructor, self.model, self.gallery = reconstructor, model, gallery
        self.source, self.max_seconds, self.max_side = source, max_seconds, max_side
        self._folder = folder
        self._device = threading.Lock()
        self._closed = threading.Event()
        self._max_waiting = max_waiting
        self._waiting: set[Owner] = set()
        self._stopped: set[Owner] = set()
        self._views: collections.OrderedDict[str, LatentView] = collections.OrderedDict()
        self._written: collections.OrderedDict[str, pathlib.Path] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._compiled: set[Hashable] = set()

    @property
    def decode_steps(self) -> int | None:
        """Evaluations of a generative decoder by default; None for any other, which has one
        result and one speed."""
        return self.reconstructor.embedder.settings.get("decode_steps")

    def sample(
        self, prompt: str, seed: int, request: VideoRequest, owner: Owner, report: Report
    ) -> Result:
        """Sample a video and add it to the gallery; the file has the bytes that launch/sample.py
        writes with the same settings.

        Args:
          prompt: the text.
          seed: of the noise, 0 .. 2^32 - 1.
          request: the other settings.
          owner: who may stop it, and will look at the latents.
          report: called as it goes on.

        Raises:
          UserError: whatever the model cannot do.
          Interrupted: it was stopped.
        """
        model, gallery = self.model, self.gallery
        assert model is not None and gallery is not None
        if not 0 <= seed < 2**32:
            raise UserError(f"seed={seed} must be 0 or more, and below 2^32")
        plan = model.plan(request)
        text = model.networks.text
        with self._turn(owner):
            started = time.monotonic()
            negative = [] if plan.negative_prompt is None else [plan.negative_prompt]
            report(0, 0, "Reading the prompt")
            text.prepare([prompt, *negative])
            generator = model.generator(plan, 1)
            total = generator.sampler.steps_per_batch
            compile_s = self._expected_compile_s(generator)
            report(0, total, "Sampling" if compile_s is None else _compiling(compile_s))
            times = [time.monotonic()]

            def progress():
                self._check(owner)
                times.append(time.monotonic())
                report(len(times) - 1, total, "Sampling")

            rows = [BatchRow(prompt, seed)]
            latents = [np.asarray(part) for part in generator.latents(rows, None, progress)]
            report(total, total, "Decoding")
            parts = []
            for part in generator.decode(rows, latents):
                self._check(owner)
                parts.append(part[0])
            video = np.concatenate(parts)
            self._compiled.add(_program(generator))
            first, *others = np.diff(times)
            settings: dict[str, Any] = {
                "prompt": prompt,
                "seed": seed,
                **self.source,
                "step": model.step,
                **generator.settings,
                "scale": default_scale(plan.height, plan.width),
                "wall_s": round(time.monotonic() - started, 2),
            }
            if compile_s is not None:
                settings["compile_s"] = round(
                    float(first - (statistics.median(others) if others else 0.0)), 2
                )
            result = gallery.add(_repeated(video, settings["scale"]), plan.fps, settings)
        self._keep(owner, np.concatenate(latents, axis=1)[0], video, f"the sample “{prompt}”")
        return result

    def reconstruct(
        self,
        path: str,
        owner: Owner,
        report: Report,
        *,
        start_s: float = 0.0,
        seconds: float | None = None,
        steps: int | None = None,
        speed: float = 1.0,
    ) -> Reconstruction:
        """Reconstruct a video file.

        Args:
          path: of the file.
          owner, report: as of `sample`.
          start_s: seconds from which it is taken.
          seconds: taken from there; at most, and by default, `max_seconds`.
          steps: evaluations of a REGEN's decoder.
          speed: 0.5 is twice as slow; for a REGEN.

        Raises:
          UserError: a file that is no video, or what the embedder cannot do.
          Interrupted: it was stopped.
        """
        name = pathlib.Path(path).name
        seconds = self.max_seconds if seconds is None else min(seconds, self.max_seconds)
        if not seconds > 0:
            raise UserError(f"{seconds:g} seconds of video are none; ask for more than 0")
        reconstructor = self.reconstructor
        if steps is not None and steps != self.decode_steps:
            embedder = reconstructor.embedder.with_steps(steps)
            reconstructor = dataclasses.replace(reconstructor, embedder=embedder)
        reconstructor.embedder.check_speed(speed)
        moments(1, speed)  # refuses what is out of range
        with self._turn(owner):
            report(0, 0, "Reading the file")
            try:
                video, fps, facts = self._read(path, start_s, seconds)
            except UserError as error:  # the visitor knows the file by its name
                raise UserError(str(error).replace(path, name)) from error
            program = reconstructor.embedder, video.shape, speed
            compiling = "" if program in self._compiled else "Compiling for this size, and encoding"
            report(0, len(video), compiling or "Encoding")
            started = time.monotonic()
            latents = reconstructor.encode(video)

            def decoded(speed: float) -> np.ndarray:
                parts, done, total = [], 0, len(moments(len(video), speed))
                for part in reconstructor.decode(latents, video.shape, speed):
                    self._check(owner)
                    parts.append(part)
                    done += len(part)
                    slowly = "" if speed == 1.0 else f" at {speed:g} times the speed"
                    report(done, total, f"Decoding{slowly}")
                return np.concatenate(parts)

            self._check(owner)
            report(0, len(video), "Decoding")
            same = decoded(1.0)
            figures = compare(video, same, patch=reconstructor.embedder.patch)
            shown, made = video, same
            if speed != 1.0:
                made = decoded(speed)
                shown = video[np.floor(moments(len(video), speed)).astype(int)]
            self._compiled.add(program)
            out = self._write(owner, side_by_side(shown, made), fps)
            t, h, w, c = latents.shape[1:]
            facts |= {
                "latents": f"{t} x {h} x {w}, {c} channels; "
                f"{video.size / latents.size:.3g} times fewer values than pixels have",
                "time": f"{time.monotonic() - started:.1f} s",
            }
        self._keep(owner, latents[0], same, f"the reconstruction of {name}")
        return Reconstruction(video=out, figures=figures, facts=facts)

    def latents(self, visitor: str) -> LatentView | None:
        """Return the latents of a visitor's last sample or reconstruction."""
        with self._lock:
            return self._views.get(visitor)

    def thumbnail(self, result: Result) -> pathlib.Path:
        """Return a picture of a result of the gallery."""
        return thumbnail(result, self._folder / "thumbnails")

    def admit(self, owner: Owner) -> None:
        """Let an owner wait for a computation; forget that an earlier one was stopped.

        Raises:
          UserError: too many wait already.
        """
        with self._lock:
            if len(self._waiting - {owner}) >= self._max_waiting:
                raise UserError("Too many requests are waiting; try again in a moment.")
            self._waiting.add(owner)
        self._stopped.discard(owner)

    def release(self, owner: Owner) -> None:
        """Let an owner wait no longer, also one whose request was refused before its turn."""
        with self._lock:
            self._waiting.discard(owner)

    def stop(self, owner: Owner) -> None:
        """Stop what the owner computes, or waits for, at the next step."""
        self._stopped.add(owner)

    def leave(self, visitor: str, tabs: Iterable[str]) -> None:
        """Stop what a visitor computes in some tabs, and forget what is kept for the visitor."""
        owners = {Owner(visitor, tab) for tab in tabs}
        for owner in owners:
            self.stop(owner)
        with self._lock:
            self._waiting -= owners
            self._views.pop(visitor, None)
            if file := self._written.pop(visitor, None):
                file.unlink(missing_ok=True)

    def close(self, timeout_s: float) -> bool:
        """Stop everything; return whether the device is idle, after `timeout_s` at most."""
        self._closed.set()
        return self._device.acquire(timeout=timeout_s)

    @contextlib.contextmanager
    def _turn(self, owner: Owner) -> Generator[None]:
        with self._device:
            self.release(owner)
            self._check(owner)
            yield

    def _check(self, owner: Owner) -> None:
        if self._closed.is_set() or owner in self._stopped:
            raise Interrupted

    def _keep(self, owner: Owner, latents: np.ndarray, video: np.ndarray, title: str) -> None:
        embedder = self.reconstructor.embedder
        latents = latents.astype(np.float32)
        view = LatentView(embedder=embedder, latents=latents, video=video, title=title)
        with self._lock:
            self._views.pop(owner.visitor, None)
            self._views[owner.visitor] = view
            while len(self._views) > _KEPT:
                self._views.popitem(last=False)

    def _read(
        self, path: str, start_s: float, seconds: float
    ) -> tuple[np.ndarray, float, dict[str, str]]:
        """Return video, its rate, and facts about it."""
        info = probe(path)
        if not 0 <= start_s < info.duration_s:
            raise UserError(
                f"the start, {start_s:g} s, must be 0 or more and before the end of {path}, which "
                f"lasts {info.duration_s:.3g} s"
            )
        scale = min(1.0, self.max_side / max(info.height, info.width))
        cover = None
        if scale < 1:
            cover = round(info.height * scale), round(info.width * scale)
        count = max(1, math.ceil(seconds * info.fps - 1e-3))
        with VideoReader(path, start_s=start_s, frames=count, cover=cover) as reader:
            video, fps = reader.read(), reader.fps
        size = f"{video.shape[1]}x{video.shape[2]}"
        smaller = f", made smaller from {info.height}x{info.width}" if cover else ""
        of = (
            f" of {info.duration_s:.3g} s" if len(video) / fps < info.duration_s - 0.5 / fps else ""
        )
        facts = {
            "frames": f"{len(video)} at {fps:.4g} per second, {len(video) / fps:.3g} s{of}",
            "size": f"{size} (height x width){smaller}",
        }
        return video, fps, facts

    def _write(self, owner: Owner, video: np.ndarray, fps: float) -> pathlib.Path:
        """Write a video in place of the visitor's last one."""
        path = self._folder / f"reconstruction-{secrets.token_hex(8)}.mp4"
        write_video(path, _repeated(video, default_scale(video.shape[1], video.shape[1])), fps)
        with self._lock:
            old = [self._written.pop(owner.visitor, None)]
            self._written[owner.visitor] = path
            while len(self._written) > _KEPT:
                old.append(self._written.popitem(last=False)[1])
        for file in filter(None, old):
            file.unlink(missing_ok=True)
        return path

    def _expected_compile_s(self, generator: VideoGenerator) -> float | None:
        """Return how long the first sampling step may take to compile; None if it is compiled.

        It is the time that it took for an earlier result of this model, or else a guess from that
        of tracing.
        """
        if _program(generator) in self._compiled:
            return None
        assert self.model is not None and self.gallery is not None
        for result in self.gallery.results(20):
            alike = all(result.settings.get(name) == value for name, value in self.source.items())
            if alike and "compile_s" in result.settings:
                return result.settings["compile_s"]
        params = {name: p for name, p in self.model.networks.params.items() if name != "embedder"}
        started = time.monotonic()
        generator.sampler.lower_step(params)
        return (time.monotonic() - started) * _COMPILE_PER_TRACE


def _program(generator: VideoGenerator) -> Hashable:
    """What a generator compiles for; two of the same compile once."""
    plan = generator.plan
    return generator.sampler.program, plan.latent_frames, plan.segments > 1


def _compiling(seconds: float) -> str:
    return f"Compiling for this size, about {max(1, round(seconds))} s"


def _repeated(video: np.ndarray, times: int) -> np.ndarray:
    return video.repeat(times, axis=1).repeat(times, axis=2)
