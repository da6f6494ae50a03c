"""Questions to a server that speaks OpenAI's chat completions, and what is made of its answers.

An answer is bound to its clip by the connection it comes on, and by the id that the request carries
where the server repeats it; nothing is matched by order. Pictures are sent as bytes, so no server
needs to reach a data set.
"""

import base64
import dataclasses
import hashlib
import itertools
import json
import re
import secrets
import threading
import time
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from xgen_jax.curation.caption_transport import Failed, Response, Transport
from xgen_jax.curation.config import EndpointCaptions
from xgen_jax.curation.measure import to_jpeg
from xgen_jax.errors import UserError

BUDGET_SPENT = "the budget of requests is spent"
STOPPED = "stopped"
_JPEG_QUALITY = 90
_MAX_WAIT_S = 600.0  # a server that asks for more is not waited for
_MAX_BACKOFF_S = 60.0
# An answer that ended otherwise ("length", "content_filter") is not whole.
_WHOLE = ("stop", "stop_sequence", "end_turn", "eos_token")
_TRY_AGAIN = (408, 409, 425, 429)  # and 500 and above
_STOP = {
    401: "does not accept the key",
    402: "asks for a payment",
    404: "does not know this URL or model",
    405: "takes no questions at this URL",
}
_ID = re.compile("xgen-[0-9a-f]{32}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of one clip's question.

    Attributes:
      text: as the server gave it; None if there is none.
      reason: why there is none.
      model: name that the server gives itself.
      finish_reason, prompt_tokens, completion_tokens: as the server says, if it does.
      requests: that were sent.
    """

    text: str | None = None
    reason: str | None = None
    model: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    requests: int = 0


class _Refused(Exception):
    """A request that the server does not take, because of the clip or of the settings."""


class ChatEndpoint:
    """A server's chat completions; safe for threads.

    Attributes:
      requests: that were sent so far.

    Args:
      config: of kind `endpoint`.
      budget: requests that may be sent; None for no bound. Those sent again count.
      backoff_s: seconds before a request is sent again, doubled each time.

    Raises:
      UserError: the URL or the key cannot be used.
    """

    def __init__(self, config: EndpointCaptions, budget: int | None = None, backoff_s: float = 1.0):
        self._config, self._budget, self._backoff_s = config, budget, backoff_s
        self._transport = Transport(config.url, config.key_variable, config.timeout_s)
        self.requests = 0
        self._lock, self._settings_lock = threading.Lock(), threading.Lock()
        self._not_before = 0.0  # of time.monotonic(), as a server that is busy asked
        self._settings_work = False
        self._failures = 0  # clips in a row without an answer
        # Newer models of OpenAI take the other name alone, most servers this one.
        self._limit_name = "max_tokens"

    @property
    def budget_spent(self) -> bool:
        """Whether no further request may be sent."""
        return self._budget is not None and self.requests >= self._budget

    def interrupt(self) -> None:
        """End the requests on their way; their `stop` must be set before."""
        self._transport.interrupt()

    def ask(
        self,
        clip_id: str,
        frames: np.ndarray,
        times_s: Sequence[float] | np.ndarray,
        stop: threading.Event,
    ) -> Answer:
        """Ask for a clip's caption, again where it may help.

        Args:
          clip_id: of the clip.
          frames: uint8 (T, H, W, 3).
          times_s: seconds since the start of the clip, one a frame.
          stop: once it is set, nothing is sent any more.

        Raises:
          UserError: the URL, the key, the model or a setting is wrong, or the server does not work.
        """
        content = self._content(frames, times_s)
        for attempt in itertools.count():
            while (busy_s := self._not_before - time.monotonic()) > 0 and not stop.wait(busy_s):
                continue  # another clip may have been asked to wait longer meanwhile
            if stop.is_set():
                return Answer(reason=STOPPED, requests=attempt)
            if not self._spend():
                return Answer(reason=BUDGET_SPENT, requests=attempt)
            try:
                answer = self._request(clip_id, content, stop)
            except _Refused as refusal:
                # The same question about gray pictures shows whether a setting is wrong or a clip.
                gray = self._content(np.full_like(frames, 127), times_s)
                checks = self._check_settings(gray, stop)
                return Answer(reason=str(refusal), requests=attempt + 1 + checks)
            except Failed as failure:
                if attempt < self._config.retries and (failure.wait_s or 0) <= _MAX_WAIT_S:
                    stop.wait(self._pause_s(clip_id, attempt, failure))
                    continue
                if not stop.is_set():
                    self._count_failure(failure)
                return Answer(reason=str(failure), requests=attempt + 1)
            self._failures, self._settings_work = 0, True
            return dataclasses.replace(answer, requests=attempt + 1)
        raise AssertionError("the loop ends by returning")

    def _spend(self) -> bool:
        with self._lock:
            if self.budget_spent:
                return False
            self.requests += 1
            return True

    def _pause_s(self, clip_id: str, attempt: int, failure: Failed) -> float:
        """Seconds to wait; what a server asks for is waited for by all clips."""
        if failure.wait_s is not None:
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + failure.wait_s)
        # By the clip's id, so that clips that failed at the same time do not come back together.
        jitter = int(_digest(f"{clip_id} {attempt}")[:8], 16) / 2**32
        return min(_MAX_BACKOFF_S, self._backoff_s * 2**attempt) * (0.5 + 0.5 * jitter)

    def _count_failure(self, failure: Failed) -> None:
        """Raise UserError if it is the server that fails rather than a clip."""
        with self._lock:
            self._failures = 0 if failure.answered else self._failures + 1
            failures = self._failures
        if not self._transport.reached:
            raise UserError(f"captions.url={self._transport.shown} cannot be reached ({failure})")
        if failures >= 3 * self._config.concurrency:
            raise UserError(
                f"{self._transport.shown} gave no answer for {failures} clips in a row (last: "
                f"{failure}); run the same command again when it works"
            )

    def _check_settings(self, content: list[dict[str, Any]], stop: threading.Event) -> int:
        """Raise UserError if the server refuses every picture; return the requests sent for it.

        One refusal after an answer is taken for the clip's own, so that only clips that are refused
        one after another cost a request more.
        """
        with self._settings_lock:
            self._failures = 0
            if self._settings_work:
                self._settings_work = False
                return 0
            if not self._spend():
                return 0
            try:
                self._request("", content, stop)
            except _Refused as refusal:
                raise UserError(
                    f"{self._transport.shown} refuses plain gray pictures too ({refusal}): check "
                    f"captions.model={self._config.model!r}, captions.frames, captions.side, "
                    f"captions.max_tokens and {self._key_words()}"
                ) from refusal
            except Failed:
                return 1  # says nothing about the settings: the next refusal asks again
            self._settings_work = True
            return 1

    def _key_words(self) -> str:
        missing = "" if self._transport.has_key else ", which is not set"
        return f"the key in the environment variable {self._config.key_variable}{missing}"

    def _content(
        self, frames: np.ndarray, times_s: Sequence[float] | np.ndarray
    ) -> list[dict[str, Any]]:
        """The parts of a question."""
        times = ", ".join(f"{time_s:.2f}" for time_s in times_s)
        shown = f"Frames of one video clip, in order, at seconds {times}:"
        parts: list[dict[str, Any]] = [
            {"type": "text", "text": f"{self._config.prompt}\n\n{shown}"}
        ]
        for frame in frames:
            data = base64.b64encode(encode_jpeg(frame, self._config.side)).decode()
            url = f"data:image/jpeg;base64,{data}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
        return parts

    def _request(
        self, clip_id: str, content: list[dict[str, Any]], stop: threading.Event
    ) -> Answer:
        """Send one request. Raises Failed, _Refused or UserError."""
        # As a header, because some servers refuse the fields "user" and "metadata"; vLLM gives it
        # back as the answer's id. Partly random: a server may refuse an id that is still at work.
        request_id = f"xgen-{_digest(clip_id)[:24]}{secrets.token_hex(4)}"
        limit_name = self._limit_name
        body = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": content}],
            limit_name: self._config.max_tokens,
        }
        response = self._transport.send(request_id, json.dumps(body).encode(), stop)
        try:
            payload = json.loads(response.body)
        except (ValueError, RecursionError):
            payload = None
        if 200 <= response.status < 300:
            return self._read_answer(response, payload, request_id)
        error = payload.get("error") if isinstance(payload, dict) else None
        error = error if isinstance(error, dict) else {"message": error}
        said = self._transport.printable(error.get("message") or "")
        what = f"HTTP {response.status}" + (f": {said}" if said else "")
        self._stop_run(response, error.get("code"), what)
        if response.status in _TRY_AGAIN or response.status >= 500:
            raise Failed(what, wait_s=response.retry_after_s())
        if limit_name == "max_tokens" and "max_completion_tokens" in said:
            self._limit_name = "max_completion_tokens"
            raise Failed(what, answered=True)
        raise _Refused(what)

    def _stop_run(self, response: Response, code: Any, what: str) -> None:
        """Raise UserError for an answer that every clip would get."""
        shown, status = self._transport.shown, response.status
        if 300 <= status < 400:
            to = self._transport.printable(response.headers.get("Location", "another URL"))
            raise UserError(f"{shown} redirects to {to}; give captions.url as it is there")
        if status in _STOP or (status == 429 and code == "insufficient_quota"):
            raise UserError(
                f"{shown} {_STOP.get(status, 'says that the quota is used up')} ({what}): check "
                f"captions.url, captions.model={self._config.model!r} and {self._key_words()}"
            )

    def _read_answer(self, response: Response, payload: Any, request_id: str) -> Answer:
        """Read what a server answered with success. Raises Failed."""
        if not isinstance(payload, dict):
            raise Failed("garbage: no JSON object", answered=True)
        echoes = [payload.get(name) for name in ("id", "user", "metadata")]
        echoes.append(response.headers.get("X-Request-Id"))
        if any(each != request_id for each in _ID.findall(json.dumps(echoes))):
            raise Failed("another clip's answer", answered=True)
        choices = payload.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(choice, dict) or not isinstance(message, dict):
            raise Failed("garbage: no choices", answered=True)
        usage = payload.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        answer = Answer(
            model=self._transport.printable(payload.get("model") or "") or None,
            finish_reason=self._transport.printable(choice.get("finish_reason")),
            prompt_tokens=_count(usage.get("prompt_tokens")),
            completion_tokens=_count(usage.get("completion_tokens")),
        )
        if answer.finish_reason not in _WHOLE:
            return dataclasses.replace(answer, reason=f"finish_reason={answer.finish_reason}")
        if message.get("refusal"):
            return dataclasses.replace(answer, reason="the model declined")
        text = _text(message.get("content"))
        if not text.strip():
            raise Failed("empty answer", answered=True)
        return dataclasses.replace(answer, text=self._transport.without_key(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _text(content: Any) -> str:
    """A message's text, which some servers give in parts."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return "".join(text for text in texts if isinstance(text, str))


def _count(value: Any) -> int | None:
    """A number of tokens that a table's 64 bits hold."""
    usable = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return value if usable else None


def encode_jpeg(frame: np.ndarray, side: int) -> bytes:
    """Return a frame, uint8 (H, W, 3), as JPEG of at most `side` pixels on its longer side."""
    height, width = frame.shape[:2]
    scale = side / max(height, width)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return to_jpeg(frame, _JPEG_QUALITY)
