"""Captions of clips: by a server, by a function, or from the files of their videos.

A result names its clip; the order of results says nothing. One that failed says why, so that the
caller can store it and ask again in a later run.
"""

import concurrent.futures
import dataclasses
import hashlib
import importlib
import inspect
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from xgen_jax.curation.caption_endpoint import Answer, ChatEndpoint
from xgen_jax.curation.caption_text import clean_caption, why_no_caption
from xgen_jax.curation.config import (
    CaptionsConfig,
    EndpointCaptions,
    FileCaptions,
    FunctionCaptions,
    NoCaptions,
)
from xgen_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class CaptionRequest:
    """A clip without a caption.

    Attributes:
      clip_id: unique in a curation.
      frames: uint8 (T, H, W, 3), T of 1 or more; any array for a captioner that needs no frames.
      times_s: (T,) seconds since the start of the clip.
      source: name of the video, as captions of files name it.
    """

    clip_id: str
    frames: np.ndarray
    times_s: Sequence[float] | np.ndarray
    source: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionResult:
    """What came of a request; `dataclasses.asdict` of it is a row of plain values.

    Attributes:
      clip_id: of the request.
      caption: one line of plain text; None if there is none.
      reason: why there is none.
      stripped: what was taken out of the answer; see `clean_caption`.
      model: name of the model or function; None for files.
      prompt_hash: hex digest of the prompt; None where there is none.
      prompt_tokens, completion_tokens, finish_reason: as the server said.
      requests: sent to the server for this clip.
    """

    clip_id: str
    caption: str | None = None
    reason: str | None = None
    stripped: str = ""
    model: str | None = None
    prompt_hash: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    requests: int = 0


class Captioner(Protocol):
    """Makes captions.

    Attributes:
      needs_frames: whether it looks at frames; otherwise none need be decoded.
      requests: sent to a server so far, those of clips that failed among them.
      budget_spent: whether no request may be sent any more.
    """

    needs_frames: bool

    @property
    def requests(self) -> int: ...

    @property
    def budget_spent(self) -> bool: ...

    def caption(self, requests: Iterable[CaptionRequest]) -> Iterator[CaptionResult]:
        """Yield a result for each request that is taken from the iterable, in any order.

        Requests are taken when they are needed. Once the budget is spent no more are taken: clips
        without a result are left for a later run.

        Raises:
          UserError: a setting is wrong for every clip. The results of all clips that were answered
            before are yielded first.
        """
        ...


def make_captioner(
    config: CaptionsConfig,
    *,
    captions: Mapping[str, Sequence[str]] | None = None,
    budget: int | None = None,
) -> Captioner | None:
    """Return the captioner of a configuration; None for kind `none`.

    Args:
      config: kind and settings.
      captions: for kind `file`, those of each video by its name; see `data.captions`.
      budget: for kind `endpoint`, what is left of `config.budget`; None for no bound.

    Raises:
      UserError: a function that cannot be imported, a URL or a key that cannot be used.
    """
    match config:
        case EndpointCaptions():
            return EndpointCaptioner(config, budget)
        case FunctionCaptions():
            return FunctionCaptioner(config)
        case FileCaptions():
            return FileCaptioner(captions or {})
        case NoCaptions():
            return None


class EndpointCaptioner:
    """Captions by a server that speaks OpenAI's chat completions; see `ChatEndpoint`.

    Args:
      config: of kind `endpoint`.
      budget: requests that may be sent; None for no bound. Those sent again count.
      backoff_s: seconds before a request is sent again, doubled each time.
    """

    needs_frames = True

    def __init__(self, config: EndpointCaptions, budget: int | None = None, backoff_s: float = 1.0):
        self._config = config
        self._endpoint = ChatEndpoint(config, budget, backoff_s)
        self._prompt_hash = hashlib.sha256(config.prompt.encode()).hexdigest()[:12]

    @property
    def requests(self) -> int:
        """See `Captioner`."""
        return self._endpoint.requests

    @property
    def budget_spent(self) -> bool:
        """See `Captioner`."""
        return self._endpoint.budget_spent

    def caption(self, requests: Iterable[CaptionRequest]) -> Iterator[CaptionResult]:
        """See `Captioner`. At most twice `concurrency` clips are held in memory."""
        stop, waiting = threading.Event(), iter(_checked(requests))
        clip_of: dict[concurrent.futures.Future[Answer], str] = {}
        mistake: UserError | None = None
        pool = concurrent.futures.ThreadPoolExecutor(self._config.concurrency)
        try:
            while True:
                # Twice as many, so that no thread waits for the next clip's frames.
                while len(clip_of) < 2 * self._config.concurrency:
                    if stop.is_set() or self.budget_spent:
                        break
                    request = next(waiting, None)
                    if request is None:
                        break
                    clip_of[pool.submit(self._ask, request, stop)] = request.clip_id
                if not clip_of:
                    break
                first = concurrent.futures.FIRST_COMPLETED
                for done in concurrent.futures.wait(clip_of, return_when=first).done:
                    clip_id = clip_of.pop(done)
                    try:
                        answer = done.result()
                    except UserError as error:
                        mistake = mistake or error
                        answer = Answer(reason=str(error))
                    yield self._result(clip_id, answer)
        finally:
            stop.set()
            self._endpoint.interrupt()  # for a caller that does not want the rest
            pool.shutdown(cancel_futures=True)
        if mistake is not None:
            raise mistake

    def _ask(self, request: CaptionRequest, stop: threading.Event) -> Answer:
        try:
            return self._endpoint.ask(request.clip_id, request.frames, request.times_s, stop)
        except UserError:
            stop.set()  # for those that wait; what is on its way is paid for, and waited for
            raise

    def _result(self, clip_id: str, answer: Answer) -> CaptionResult:
        return dataclasses.replace(
            _result_of(clip_id, answer.text, answer.reason),
            model=answer.model or self._config.model,
            prompt_hash=self._prompt_hash,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            finish_reason=answer.finish_reason,
            requests=answer.requests,
        )


class FunctionCaptioner:
    """Captions by a Python function on this machine, called for one clip after another.

    An exception of the function fails that clip alone.

    Args:
      config: with `function`, "module:name" of f(frames uint8 (T, H, W, 3), times_s (T,)) ->
        caption.

    Raises:
      UserError: there is no such function, or it does not take two arguments.
    """

    needs_frames = True
    requests = 0
    budget_spent = False

    def __init__(self, config: FunctionCaptions):
        self._name = config.function
        self._function = _import_function(self._name)
        self._key = os.environ.get(config.key_variable, "").strip()

    def caption(self, requests: Iterable[CaptionRequest]) -> Iterator[CaptionResult]:
        """See `Captioner`."""
        for request in _checked(requests):
            text, reason = None, None
            try:
                given = self._function(request.frames, np.asarray(request.times_s, np.float64))
                if isinstance(given, str):
                    text = given
                else:
                    reason = f"{self._name} returned {type(given).__name__}, not str"
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                if self._key:  # the function may call a server, and repeat what it sent
                    reason = reason.replace(self._key, "[key]")
                reason = " ".join(reason.split())[:300]
            yield dataclasses.replace(_result_of(request.clip_id, text, reason), model=self._name)


class FileCaptioner:
    """Captions that the videos came with.

    Args:
      captions: of each video, by its name. Of several each clip is given one, by its id.
    """

    needs_frames = False
    requests = 0
    budget_spent = False

    def __init__(self, captions: Mapping[str, Sequence[str]]):
        self._captions = captions

    def caption(self, requests: Iterable[CaptionRequest]) -> Iterator[CaptionResult]:
        """See `Captioner`."""
        for request in requests:
            texts = [text for text in self._captions.get(request.source, ()) if text]
            digest = hashlib.sha256(request.clip_id.encode(errors="surrogatepass")).hexdigest()
            text = texts[int(digest, 16) % len(texts)] if texts else None
            yield _result_of(request.clip_id, text, None if texts else "video without a caption")


def _result_of(clip_id: str, text: str | None, reason: str | None) -> CaptionResult:
    """A result with a clean caption, or with the reason why there is none."""
    if text is None:
        return CaptionResult(clip_id=clip_id, reason=reason)
    text, stripped = clean_caption(text)
    reason = why_no_caption(text)
    return CaptionResult(
        clip_id=clip_id,
        caption=text if reason is None else None,
        reason=reason,
        stripped=", ".join(stripped),
    )


def _checked(requests: Iterable[CaptionRequest]) -> Iterator[CaptionRequest]:
    """Requests that can be sent. Raises ValueError for one that its maker got wrong."""
    seen: set[str] = set()
    for request in requests:
        shape, dtype = np.shape(request.frames), np.asarray(request.frames).dtype
        if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
            raise ValueError(f"frames of {request.clip_id} are {dtype} {shape}, not (T, H, W, 3)")
        if len(request.times_s) != shape[0]:
            raise ValueError(f"{request.clip_id} has {len(request.times_s)} times for {shape[0]}")
        if request.clip_id in seen:
            raise ValueError(f"{request.clip_id} is asked for twice")
        seen.add(request.clip_id)
        yield request


def _import_function(name: str) -> Callable[..., object]:
    """Raises UserError."""
    module, _, attribute = name.partition(":")
    wanted = f"captions.function={name}"
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{wanted} cannot be imported ({error}); is it on PYTHONPATH?") from error
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError) as error:
        raise UserError(f"{wanted} must take (frames, times_s): {error}") from error
    return function
