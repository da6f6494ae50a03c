"""A server of chat completions that reads the pictures it is sent, and misbehaves where asked to.

A clip's number is the green of its frames; what the server does with it is a list, one entry for
each time that the clip comes, and "ok" after its end.
"""

import base64
import contextlib
import json
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np

from xgen_jax.curation.captions import CaptionRequest

GRAY = "gray"  # the number of plain gray pictures


def clip(number, frames=2, height=48, width=64):
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[..., 1] = 8 * number + 4
    times_s = 0.5 + np.arange(frames)
    return CaptionRequest(f"clip-{number}", video, times_s)


def sentence(number):
    return f"A green surface, number {number}, lies still."


class ChatServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, behaviour=None, **options):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour = behaviour or {}
        self.delay_s = options.get("delay_s", 0.0)
        self.lock = threading.Lock()
        self.seen, self.bodies, self.keys, self.arrived = [], [], [], []
        self.working = self.most_working = 0
        self.ids = {}
        self.ended = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """Clients that go away are part of the tests."""

    def times(self, number):
        return self.seen.count(number)


@contextlib.contextmanager
def serve(behaviour=None, context=None, **options):
    server = ChatServer(behaviour, **options)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.url = server.url.replace("http:", "https:").replace("127.0.0.1", "localhost")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def read_number(body):
    """The number that all pictures of a request show."""
    numbers = set()
    for part in body["messages"][0]["content"]:
        if part["type"] == "image_url":
            kind, data = part["image_url"]["url"].split(",")
            assert kind == "data:image/jpeg;base64"
            image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
            blue, green, _ = image.mean((0, 1))
            numbers.add(GRAY if blue > 64 else int(green // 8))
    (number,) = numbers
    return number


def completion(text, finish_reason="stop", **more):
    return {
        "id": "chatcmpl-1",
        "model": "seer-1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": finish_reason,
            }
        ],
        "usage": {"prompt_tokens": 300, "completion_tokens": 12},
        **more,
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Quiet."""

    def do_POST(self):
        server, self.left = self.server, False
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        number = read_number(body)
        with server.lock:
            server.working += 1
            server.most_working = max(server.most_working, server.working)
            time_of = server.seen.count(number)
            server.seen.append(number)
            server.arrived.append(time.monotonic())
            server.bodies.append(body)
            server.keys.append(self.headers.get("Authorization"))
            server.ids[number] = self.headers["X-Request-Id"]
            actions = server.behaviour.get(number, [])
            actions = actions if isinstance(actions, list) else [actions] * (time_of + 1)
        action = actions[time_of] if time_of < len(actions) else "ok"
        try:
            time.sleep(server.delay_s)
            if callable(action):
                action(self, number)
            else:
                getattr(self, f"do_{action}")(number)
        finally:
            self.leave()

    def leave(self):
        """Count the request as answered: before the client sends its next one."""
        with self.server.lock:
            self.server.working -= not self.left
            self.left = True

    def send(self, status, body, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.leave()
        self.send_response(status)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def send_chunked(self, *pieces):
        self.leave()
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.close_connection = True

    def do_ok(self, number):
        self.send(200, completion(sentence(number)))

    def do_slow(self, number):
        time.sleep(0.1)
        self.do_ok(number)

    def do_echo(self, number):
        """As vLLM does."""
        body = completion(sentence(number), id=f"chatcmpl-{self.headers['X-Request-Id']}")
        self.send(200, body)

    def do_parts(self, number):
        self.send(200, completion([{"type": "text", "text": sentence(number)}]))

    def do_hang(self, number):
        self.leave()  # the client goes away without a word
        self.server.ended.wait(30)
        self.close_connection = True

    def do_blanks(self, number):
        """Keeps the connection warm, and never answers."""
        self.leave()
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        while not self.server.ended.wait(0.05):
            self.wfile.write(b"\n")

    def do_garbage(self, number):
        self.send(200, b"<html>busy</html>")

    def do_truncated(self, number):
        body = json.dumps(completion(sentence(number))).encode()
        self.send(200, body[: len(body) // 2], Content_Length=str(len(body)))

    def do_chunked_truncated(self, number):
        self.send_chunked(json.dumps(completion(sentence(number))).encode())

    def do_chunked(self, number):
        body = json.dumps(completion(sentence(number))).encode()
        self.send_chunked(body[:7], body[7:], b"")

    def do_no_choices(self, number):
        self.send(200, {"id": "chatcmpl-1", "choices": []})

    def do_empty(self, number):
        self.send(200, completion(" \n"))

    def do_length(self, number):
        self.send(200, completion("A green surf", "length"))

    def do_filtered(self, number):
        self.send(200, completion("", "content_filter"))

    def do_reset(self, number):
        self.leave()
        linger = struct.pack("ii", 1, 0)  # a reset instead of an end
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def do_close(self, number):
        self.leave()
        self.close_connection = True

    def do_500(self, number):
        self.send(500, {"error": {"message": "out of memory"}})

    def do_busy(self, number):
        self.send(429, {"error": {"message": "slow down"}}, Retry_After="0.3")

    def do_400(self, number):
        self.send(400, {"error": {"message": "cannot read the picture"}})
