"""HTTP to the server of captions: one connection a request, a deadline, and a key that stays here.

The key goes into one header, to one host, and into no message, table or log.
"""

import contextlib
import dataclasses
import datetime
import email.utils
import http.client
import math
import os
import socket
import ssl
import threading
import time
import urllib.parse
from typing import Any

from xgen_jax.errors import UserError

_SUFFIX = "/chat/completions"
_MAX_BYTES = 4 << 20  # of an answer


class Failed(Exception):
    """A request that may work when it is sent again.

    Args:
      reason: what happened.
      wait_s: seconds that the server asks to wait; None if it does not say.
      answered: whether the server works: it is this answer that cannot be used.
    """

    def __init__(self, reason: str, wait_s: float | None = None, answered: bool = False):
        super().__init__(reason)
        self.wait_s, self.answered = wait_s, answered


@dataclasses.dataclass(frozen=True)
class Response:
    """An answer with any status; `headers` ignores case."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def retry_after_s(self) -> float | None:
        """Return what Retry-After asks for, in seconds or as a date; None if it is not there."""
        value = self.headers.get("Retry-After", "")
        try:
            seconds = float(value)
        except ValueError:
            try:
                date = email.utils.parsedate_to_datetime(value)
            except ValueError:
                return None
            date = date if date.tzinfo else date.replace(tzinfo=datetime.UTC)
            seconds = date.timestamp() - time.time()
        return max(0.0, seconds) if math.isfinite(seconds) else None


class Transport:
    """Sends requests to one URL; safe for threads.

    Attributes:
      shown: the URL as messages show it, without its query, which may hold a secret.
      reached: whether a connection was ever made.
      has_key: whether requests carry a key.

    Args:
      url: up to "/chat/completions", http or https.
      key_variable: environment variable with the key; none is sent if it is not set.
      timeout_s: seconds from a request to the end of its answer.

    Raises:
      UserError: the URL or the key cannot be used; the message does not hold the key.
    """

    def __init__(self, url: str, key_variable: str, timeout_s: float):
        self._parse(url)
        self._key, self._timeout_s = _read_key(key_variable), timeout_s
        self.has_key, self.reached = bool(self._key), False
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()

    def _parse(self, url: str) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            self._port = parts.port
            (parts.hostname or "").encode("idna")
        except ValueError as error:
            raise UserError(f"captions.url is no URL ({error})") from error
        if "@" in parts.netloc:
            raise UserError(
                "captions.url holds a user or a password; give the key in the environment variable "
                "that captions.key_variable names"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"captions.url={url} must be like https://HOST/v1")
        path = parts.path.rstrip("/").removesuffix(_SUFFIX)
        self._host, self._secure = parts.hostname, parts.scheme == "https"
        self._target = urllib.parse.quote(path + _SUFFIX, safe="/%:@!$&'()*+,;=~")
        if parts.query:
            self._target += f"?{urllib.parse.quote(parts.query, safe='/%:@!$&()*+,;=~?')}"
        self.shown = f"{parts.scheme}://{parts.netloc}{path}"

    def send(self, request_id: str, body: bytes, stop: threading.Event) -> Response:
        """Return the answer to a request on a connection of its own.

        Redirects are not followed: the key would go elsewhere.

        Args:
          request_id: for the header X-Request-Id.
          body: JSON.
          stop: if it is set, nothing is sent.

        Raises:
          Failed: no answer, or none in time.
          UserError: the server's certificate cannot be verified.
        """
        deadline = time.monotonic() + self._timeout_s
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Connection": "close",
            "X-Request-Id": request_id,
        }
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout_s)
        opened: socket.socket | None = None
        try:
            connection.connect()
            self.reached, opened = True, connection.sock
            with self._lock:
                self._sockets.add(opened)
            if stop.is_set():  # set before `interrupt`, which may have come too early for this one
                raise Failed("stopped")
            with contextlib.suppress(BrokenPipeError):  # it may have answered before the end
                connection.request("POST", self._target, body, headers)
            response = connection.getresponse()
            return Response(response.status, response.headers, _read(response, opened, deadline))
        # Without their cause, whose text may be what the server repeats.
        except TimeoutError:
            raise Failed(f"no answer within {self._timeout_s:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise UserError(
                f"the certificate of {self.shown} cannot be verified ({error.verify_message})"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"connection failed ({type(error).__name__})") from None
        finally:
            with self._lock:
                self._sockets.discard(opened)
            connection.close()

    def interrupt(self) -> None:
        """End the requests on their way; each fails as one whose connection was closed."""
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            with contextlib.suppress(OSError):  # closed a moment ago
                # Not SSLSocket's own, which first takes the TLS object from its reader.
                socket.socket.shutdown(each, socket.SHUT_RDWR)

    def without_key(self, text: str) -> str:
        """Return a server's text without the key, which it may repeat."""
        return text.replace(self._key, "[key]") if self._key else text

    def printable(self, said: Any) -> str:
        """Return a server's words as one short line, without the key."""
        line = " ".join(self.without_key(str(said)).split())
        return "".join(filter(str.isprintable, line))[:300]


def _read(response: http.client.HTTPResponse, opened: socket.socket, deadline: float) -> bytes:
    """The body, within a time for the whole of it: some servers send a blank now and then."""
    parts, size = [], 0
    while part := response.read1(1 << 16):
        parts.append(part)
        size += len(part)
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        if size > _MAX_BYTES:
            raise Failed(f"answer above {_MAX_BYTES} bytes", answered=True)
        if not response.isclosed():
            opened.settimeout(left_s)
    if response.length:
        raise Failed("truncated answer")
    return b"".join(parts)


def _read_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"the key in the environment variable {variable} must be one ASCII word")
    return key
