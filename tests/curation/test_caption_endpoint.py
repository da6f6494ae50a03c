"""Captions by a real server on this machine that misbehaves."""

import dataclasses
import email.utils
import json
import shutil
import ssl
import subprocess
import threading
import time

import cv2
import numpy as np
import pytest
from chat_server import GRAY, clip, completion, sentence, serve

from xgen_jax.curation.caption_endpoint import encode_jpeg
from xgen_jax.curation.caption_transport import Failed, Transport
from xgen_jax.curation.captions import (
    EndpointCaptioner,
)
from xgen_jax.curation.config import (
    EndpointCaptions,
)
from xgen_jax.errors import UserError

KEY = "sk-a-secret-2718281828"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_CAPTION_KEY", KEY)


def endpoint(server, budget=None, **options):
    url = server if isinstance(server, str) else server.url
    options = {"concurrency": 4, "timeout_s": 10, "retries": 3, **options}
    config = EndpointCaptions(url=url, model="seer", key_variable="TEST_CAPTION_KEY", **options)
    return EndpointCaptioner(config, budget, backoff_s=0.01)


def by_id(results):
    """Results by clip, none of them twice."""
    results = list(results)
    named = {result.clip_id: result for result in results}
    assert len(named) == len(results)
    return named


def run_into(captioner, requests):
    """The results before a UserError, and its text."""
    results = []
    with pytest.raises(UserError) as raised:
        for result in captioner.caption(requests):
            results.append(result)
    return by_id(results), str(raised.value)


def swapped(handler, number):
    """Another clip's answer: with the id that another request carried."""
    other = handler.server.ids[0]
    handler.send(200, completion(sentence(99), id=f"chatcmpl-{other}"))


RECOVERING = {
    1: ["slow"],
    2: ["hang"],
    3: ["500", "500"],
    4: ["busy"],
    5: ["garbage"],
    6: ["truncated", "chunked_truncated"],
    7: ["no_choices"],
    8: ["empty"],
    9: [swapped],
    10: ["close", "reset"],
    11: ["blanks"],
    12: ["parts"],
    13: ["echo"],
    14: ["chunked"],
}
FAILING = {
    15: ("length", "finish_reason=length", 1),
    16: ("filtered", "finish_reason=content_filter", 1),
    17: ("400", "HTTP 400: cannot read the picture", 1),
    18: ("500", "HTTP 500: out of memory", 4),
    19: (swapped, "another clip's answer", 4),
    20: ("garbage", "garbage: no JSON object", 4),
    21: ("truncated", "truncated answer", 4),
}


def test_each_clip_has_its_own_caption_whatever_the_server_does(tmp_path):
    behaviour = RECOVERING | {number: action for number, (action, *_) in FAILING.items()}
    with serve(behaviour) as server:
        captioner = endpoint(server, timeout_s=0.8)
        results = by_id(captioner.caption(map(clip, range(24))))
        assert results.keys() == {f"clip-{number}" for number in range(24)}
        for number in range(24):
            result = results[f"clip-{number}"]
            if number in FAILING:
                _, reason, requests = FAILING[number]
                assert (result.caption, result.reason) == (None, reason)
            else:
                assert (result.caption, result.reason) == (sentence(number), None)
                assert (result.model, result.prompt_tokens) == ("seer-1", 300)
                assert (result.completion_tokens, result.finish_reason) == (12, "stop")
                requests = 1 + sum(
                    action not in ("slow", "parts", "echo", "chunked")
                    for action in RECOVERING.get(number, [])
                )
            assert result.requests - server.times(number) in (0, 1)  # gray pictures after a 400
            assert server.times(number) == requests
        assert captioner.requests == len(server.seen)
        assert captioner.requests == sum(result.requests for result in results.values())
        assert 2 <= server.most_working <= 4
        # A later run asks for those that failed, and takes rows of a table.
        rows = [json.loads(json.dumps(dataclasses.asdict(each))) for each in results.values()]
        failed = {row["clip_id"] for row in rows if row["caption"] is None}
        assert failed == {f"clip-{number}" for number in FAILING}
        server.behaviour.clear()
        again = by_id(captioner.caption(clip(number) for number in FAILING))
        assert {result.caption for result in again.values()} == set(map(sentence, FAILING))


def test_answers_in_reverse_order_reach_their_clips():
    waiting = threading.Barrier(4)

    def late(handler, number):
        waiting.wait(5)
        time.sleep(0.03 * (4 - number % 4))
        handler.do_ok(number)

    with serve(dict.fromkeys(range(12), late)) as server:
        captioner = endpoint(server)
        results = list(captioner.caption(map(clip, range(12))))
    order = [int(result.clip_id.removeprefix("clip-")) for result in results]
    assert sorted(order) == list(range(12)) and order != sorted(order)
    assert [result.caption for result in results] == list(map(sentence, order))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_at_a_time_than_asked_for(concurrency):
    with serve(delay_s=0.02) as server:
        results = by_id(endpoint(server, concurrency=concurrency).caption(map(clip, range(9))))
    assert len(results) == 9 and server.most_working == concurrency


def test_what_is_sent():
    with serve() as server:
        list(endpoint(server, side=64, max_tokens=77).caption([clip(5, 3, 72, 128)]))
    (body,) = server.bodies
    assert (body["model"], body["max_tokens"]) == ("seer", 77)
    text, *images = body["messages"][0]["content"]
    assert (
        EndpointCaptions(url="http://a", model="b").prompt in text["text"]
        and "0.50, 1.50, 2.50" in text["text"]
    )
    assert len(images) == 3
    assert server.keys == [f"Bearer {KEY}"] and KEY not in json.dumps(body)
    assert "clip-5" not in json.dumps(body)


def test_jpegs_are_small_and_the_same_every_time():
    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3)).astype(np.uint8)
    image[:, :, 0] = 255
    data = encode_jpeg(image, 80)
    assert data == encode_jpeg(image.copy(), 80)
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (45, 80, 3) and decoded[..., 2].mean() > 230  # red is red
    assert cv2.imdecode(np.frombuffer(encode_jpeg(image, 512), np.uint8), 1).shape == (90, 160, 3)


def test_a_server_that_is_busy_is_left_alone_by_all_clips():
    with serve({0: ["busy"]}) as server:
        captioner = endpoint(server, concurrency=2)
        results = by_id(captioner.caption(map(clip, range(6))))
    assert all(result.caption for result in results.values())
    # Others may have been on their way; the next one comes when the time is over.
    after_s = np.array(server.arrived) - server.arrived[server.seen.index(0)]
    assert np.sum((after_s > 0) & (after_s < 0.28)) <= 2 and np.sum(after_s >= 0.28) >= 3


@pytest.mark.parametrize(
    ("value", "waited"),
    [
        (lambda: email.utils.formatdate(time.time() + 2, usegmt=True), 0.9),
        (lambda: "soon", 0.0),
        (lambda: "nan", 0.0),
    ],
    ids=["date", "words", "nan"],
)
def test_retry_after_may_be_a_date(value, waited):
    def busy(handler, number):
        handler.send(503, {}, Retry_After=value())

    with serve({0: [busy]}) as server:
        (result,) = endpoint(server).caption([clip(0)])
    assert result.caption and waited <= np.diff(server.arrived)[0] < waited + 3


def test_a_wait_of_hours_is_not_waited():
    def busy(handler, number):
        handler.send(429, {}, Retry_After="7200")

    with serve({0: busy}) as server:
        results = by_id(endpoint(server).caption([clip(0), clip(1)]))
    assert results["clip-0"].reason == "HTTP 429" and server.times(0) == 1
    assert results["clip-1"].caption


def test_the_budget_bounds_the_requests_of_all():
    taken = []

    def requests():
        for number in range(40):
            taken.append(number)
            yield clip(number)

    with serve({0: ["500", "500"]}) as server:
        captioner = endpoint(server, budget=7, concurrency=2)
        results = by_id(captioner.caption(requests()))
        assert len(server.seen) == captioner.requests == 7 and captioner.budget_spent
        assert len(results) == len(taken) < 40
        captioned = {name for name, result in results.items() if result.caption}
        assert len(captioned) == 7 - min(2, server.times(0))
        left = {results[f"clip-{number}"].reason for number in taken} - {None}
        assert left <= {"the budget of requests is spent"}
        # Nothing is sent, or taken, after that; a later run takes up the rest.
        assert list(captioner.caption(map(clip, range(40)))) == [] and len(server.seen) == 7
        rest = (clip(number) for number in range(20) if f"clip-{number}" not in captioned)
        captioned |= by_id(endpoint(server, budget=100).caption(rest)).keys()
    assert captioned >= {f"clip-{number}" for number in range(20)}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "does not accept the key"),
        (402, "asks for a payment"),
        (403, "refuses plain gray pictures too"),
        (404, "does not know this URL or model"),
        (400, "refuses plain gray pictures too"),
        (422, "refuses plain gray pictures too"),
    ],
)
def test_a_mistake_for_all_clips_stops_the_run(status, words):
    def refuse(handler, number):
        said = f"no such thing; you sent {handler.headers['Authorization']}"
        handler.send(status, {"error": {"message": said}})

    with serve(dict.fromkeys([*range(30), GRAY], refuse)) as server:
        results, text = run_into(endpoint(server, concurrency=1), map(clip, range(30)))
        assert len(server.seen) <= 2
    assert words in text and "TEST_CAPTION_KEY" in text and "'seer'" in text
    assert KEY not in text and KEY not in repr(results)


def test_a_stop_keeps_what_was_answered():
    def unknown(handler, number):
        time.sleep(0.05)
        handler.send(401, {})

    with serve({2: unknown, 3: ["slow"]}, delay_s=0.02) as server:
        results, _ = run_into(endpoint(server), map(clip, range(30)))
    assert results["clip-3"].caption == sentence(3)  # on its way when clip 2 stopped the run
    assert results["clip-2"].caption is None and len(results) < 30


def test_a_used_up_quota_is_no_busy_server():
    def refuse(handler, number):
        handler.send(429, {"error": {"message": "pay", "code": "insufficient_quota"}})

    with serve({0: refuse}) as server:
        _, text = run_into(endpoint(server), [clip(0)])
    assert "quota is used up (HTTP 429: pay)" in text and len(server.seen) == 1


def test_refused_clips_do_not_stop_the_run():
    with serve(dict.fromkeys(range(6), "400")) as server:
        results = by_id(endpoint(server, concurrency=1).caption(map(clip, range(8))))
    assert [results[f"clip-{number}"].caption for number in (6, 7)] == [sentence(6), sentence(7)]
    assert all(results[f"clip-{number}"].reason.startswith("HTTP 400") for number in range(6))
    assert server.times(GRAY) == 3  # every second one


def test_the_newer_name_of_the_limit():
    def newer(handler, number):
        if "max_tokens" in handler.server.bodies[-1]:
            said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            handler.send(400, {"error": {"message": said, "param": "max_tokens"}})
        else:
            handler.do_ok(number)

    with serve({0: newer, 1: newer}) as server:
        results = by_id(endpoint(server, concurrency=1).caption(map(clip, range(2))))
    assert all(result.caption for result in results.values())
    names = [body.keys() & {"max_tokens", "max_completion_tokens"} for body in server.bodies]
    assert names == [{"max_tokens"}, {"max_completion_tokens"}, {"max_completion_tokens"}]


def test_a_server_that_no_longer_answers_stops_the_run():
    with serve(dict.fromkeys(range(4, 40), "500")) as server:
        captioner = endpoint(server, concurrency=2, retries=0)
        results, text = run_into(captioner, map(clip, range(40)))
    assert "gave no answer for 6 clips in a row (last: HTTP 500: out of memory)" in text
    assert all(results[f"clip-{number}"].caption for number in range(4)) and len(results) < 20


def test_a_server_that_is_not_there():
    with serve() as server:
        url = server.url
    _, text = run_into(endpoint(url, retries=1), [clip(0)])
    assert f"captions.url={url} cannot be reached" in text


def test_redirects_are_not_followed():
    with serve() as other:

        def redirect(handler, number):
            handler.send(307, b"", Location=f"{other.url}/chat/completions")

        with serve({0: redirect}) as server:
            _, text = run_into(endpoint(server), [clip(0)])
    assert f"redirects to {other.url}/chat/completions" in text and other.seen == []


def test_the_key_is_in_no_row(capfd, caplog):
    def repeat(handler, number):
        answer = completion(f"A sign reads {KEY}.", "stop", model=f"m {KEY}")
        handler.send(200, answer)

    def complain(handler, number):
        handler.send(500, {"error": {"message": f"{handler.headers['Authorization']} \x1b[31m"}})

    def junk(handler, number):
        handler.wfile.write(f"{KEY}\r\n\r\n".encode())
        handler.close_connection = True

    with serve({0: repeat, 1: complain, 2: junk}) as server:
        captioner = endpoint(server, retries=0)
        results = by_id(captioner.caption(map(clip, range(3))))
    assert results["clip-0"].caption == "A sign reads [key]."
    assert results["clip-1"].reason == "HTTP 500: Bearer [key] [31m"
    assert results["clip-2"].reason == "connection failed (BadStatusLine)"
    said = capfd.readouterr()
    assert KEY not in repr((results, captioner)) + caplog.text + said.out + said.err


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("TEST_CAPTION_KEY")
    with serve({1: [lambda handler, number: handler.send(401, {})]}) as server:
        assert by_id(endpoint(server).caption([clip(0)]))["clip-0"].caption
        _, text = run_into(endpoint(server), [clip(1)])
    assert server.keys == [None, None] and "TEST_CAPTION_KEY, which is not set" in text


@pytest.mark.parametrize("broken", ["two words", "line\nbreak", "käy"])
def test_a_key_that_no_header_can_hold(monkeypatch, broken):
    monkeypatch.setenv("TEST_CAPTION_KEY", broken)
    with pytest.raises(UserError, match="TEST_CAPTION_KEY must be one ASCII word") as raised:
        endpoint("http://127.0.0.1:1/v1")
    assert broken not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    ["ftp://host/v1", "host/v1", "http://", "http://u:secret@host/v1", "http://host:port/v1"],
)
def test_urls_that_cannot_be_used(url):
    with pytest.raises(UserError, match="captions.url") as raised:
        endpoint(url)
    assert "secret" not in str(raised.value)


def test_the_whole_url_may_be_given():
    with serve() as server:
        for url in (server.url + "/", server.url + "/chat/completions?api-version=1"):
            (result,) = endpoint(url).caption([clip(1)])
            assert result.caption == sentence(1)


def test_a_caller_that_stops_does_not_wait_for_the_server():
    with serve(dict.fromkeys(range(1, 8), "hang")) as server:
        results = endpoint(server, timeout_s=30).caption(map(clip, range(8)))
        assert next(results).clip_id == "clip-0"
        start = time.monotonic()
        results.close()
        assert time.monotonic() - start < 2


def test_nothing_is_sent_after_a_stop():
    stopped = threading.Event()
    stopped.set()
    with serve() as server, pytest.raises(Failed, match="stopped"):
        Transport(server.url, "TEST_CAPTION_KEY", 5).send("xgen-1", b"{}", stopped)
    assert server.seen == []


def test_the_time_is_that_of_the_whole_answer():
    def drip(handler, number):
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        time.sleep(0.8)
        handler.wfile.write(b" ")
        handler.do_hang(number)

    with serve({0: drip}) as server:
        captioner = endpoint(server, timeout_s=1, retries=0)
        start = time.monotonic()
        (result,) = captioner.caption([clip(0)])
        assert time.monotonic() - start < 1.6
    assert result.reason == "no answer within 1 s"


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make a certificate")
def test_https_verifies_the_certificate(tmp_path, monkeypatch):
    certificate, private = tmp_path / "certificate.pem", tmp_path / "private.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        + ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext"]
        + ["subjectAltName=DNS:localhost", "-out", certificate, "-keyout", private],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)
    with serve({1: "hang"}, context) as server:
        _, text = run_into(endpoint(server), [clip(0)])
        assert "certificate" in text and "cannot be verified" in text and server.seen == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        results = endpoint(server, timeout_s=30).caption([clip(0), clip(1)])
        assert next(results).caption == sentence(0)
        start = time.monotonic()
        results.close()
        assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": np.zeros((2, 8, 8), np.uint8)}, r"not \(T, H, W, 3\)"),
        ({"frames": np.zeros((2, 8, 8, 3))}, "float64"),
        ({"times_s": [0.0]}, "has 1 times for 2"),
    ],
)
def test_requests_that_their_maker_got_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        list(endpoint("http://127.0.0.1:1/v1").caption([dataclasses.replace(clip(0), **change)]))


def test_a_clip_is_asked_for_once():
    with serve() as server, pytest.raises(ValueError, match="clip-1 is asked for twice"):
        list(endpoint(server).caption([clip(1), clip(1)]))
