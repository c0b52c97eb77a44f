"""What a request may cost is kept before it costs it."""

import asyncio
import socket
import threading
import time

import pytest
from conftest import LEAF_COLOURS, write_leaf
from service_client import error_of, files, listening, serving, slow_embedder, token

from fewshot.datasets import class_folders
from fewshot.errors import BusyError, SlowClientError, TooManyRequestsError
from fewshot.gallery import Gallery
from fewshot.service.failures import error_response
from fewshot.service.limits import LEAST_BYTES_PER_S, MAX_KNOWN_CALLERS, BodyBudget, Limits, Patience, RateLimit
from fewshot.service.settings import Settings


@pytest.fixture
def filled(gallery, leaves):
    list(gallery.enroll(class_folders(leaves(n=3))))
    return gallery


@pytest.fixture
def rust(tmp_path):
    return write_leaf(tmp_path / "new-rust.png", LEAF_COLOURS["rust"], 900)


def test_a_body_that_announces_too_much_is_refused(filled, rust):
    with serving(filled, Settings(max_body_bytes=5000)) as client:
        error = error_of(client.post("/v1/query", files=files(rust)), 413, "body_too_large")
    assert "fewer photos" in error["hint"]


def test_a_body_that_announces_nothing_is_counted_as_it_comes(filled):
    sent = []

    def chunks():
        for _ in range(100):
            sent.append(1000)
            yield b"x" * 1000

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    with serving(filled, Settings(max_body_bytes=20_000)) as client:
        error_of(client.post("/v1/query", content=chunks(), headers=headers), 413, "body_too_large")


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_no_form_is_refused_before_it_is_read_whole(filled, announced):
    """The framework parses JSON before it looks at a token."""
    body = b"[" + b"[]," * 100_000 + b"[]]"

    def chunks():
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    headers = {"Content-Type": "application/json"}
    with serving(filled, Settings()) as client:
        asked = client.patch("/v1/classes/rust", content=body if announced else chunks(), headers=headers)
        error = error_of(asked, 413, "body_too_large")
        error_of(client.patch("/v1/classes/rust", json={"label": "leaf rust"}), 401, "unauthorized")
    assert "at most 64 kB" in error["message"]


def test_too_many_photos_are_refused(filled, rust):
    with serving(filled, Settings(max_files=3)) as client:
        assert client.post("/v1/query", files=files(*[rust] * 3)).status_code == 200
        error = error_of(client.post("/v1/query", files=files(*[rust] * 4)), 413, "too_many_files")
    assert "more than 3" in error["message"]


def test_a_photo_of_too_many_pixels_is_not_decoded(filled, rust):
    with serving(filled, Settings(max_pixels=5000)) as client:
        (found,) = client.post("/v1/query", files=files(rust)).json()["predictions"]
    assert found["reason"] == "bad_image"
    assert "at most 0.005 megapixels" in found["message"]


def test_bodies_beyond_what_may_be_held_at_once_are_told_to_come_again(filled, rust):
    with serving(filled, Settings(max_flying_bytes=5000)) as client:
        response = client.post("/v1/query", files=files(rust))
        error_of(response, 503, "busy")
        assert int(response.headers["retry-after"]) >= 1
        assert client.get("/v1/classes").status_code == 200


def test_the_budget_is_given_back():
    budget = BodyBudget(100)
    budget.take(60)
    with pytest.raises(BusyError):
        budget.take(60)
    budget.give_back(60)
    budget.take(100)


def test_what_a_request_held_is_free_when_it_is_answered(filled, rust):
    with serving(filled, Settings(max_flying_bytes=rust.stat().st_size + 2000)) as client:
        for _ in range(5):
            assert client.post("/v1/query", files=files(rust)).status_code == 200
        for _ in range(5):
            error_of(client.post("/v1/query", content=rust.read_bytes()), 422, "bad_request")
        assert client.post("/v1/query", files=files(rust)).status_code == 200


FORM = [(b"content-type", b"multipart/form-data; boundary=b")]


async def reading_app(scope, receive, send):
    """An app that reads a body to its end."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_who_announces_much_and_sends_little_keeps_nobody_out():
    """Three that announce all that may be held and send a byte; and one who really sends."""
    settings = Settings(max_body_bytes=1000, max_flying_bytes=3000)
    app = Limits(reading_app, settings, error_response, count=lambda _: None)
    scope = {"type": "http", "headers": [*FORM, (b"content-length", b"1000")]}

    async def statuses():
        waits, answers = asyncio.Event(), []

        async def ask(*bodies, more_to_come=False):
            left = list(bodies)

            async def receive():
                if not left:
                    await waits.wait()
                    return {"type": "http.disconnect"}
                return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or more_to_come}

            async def send(message):
                if message["type"] == "http.response.start":
                    answers.append(message["status"])

            await app(scope, receive, send)

        stalling = [asyncio.create_task(ask(b"x", more_to_come=True)) for _ in range(3)]
        await asyncio.sleep(0)  # they run until they wait
        await ask(b"x" * 500, b"x" * 500)
        # What was really sent counts: with 2,100 bytes of others held, no third thousand fits.
        stalling += [asyncio.create_task(ask(b"x" * 700, more_to_come=True)) for _ in range(3)]
        await asyncio.sleep(0)
        await ask(b"x" * 500, b"x" * 500)
        waits.set()
        await asyncio.gather(*stalling)
        return answers[:2]

    assert asyncio.run(statuses()) == [200, 503]


def all_read(parts):
    """Read parts, each (seconds that it takes to come, bytes); those that came before the patience was at an end."""
    read, now = [], [0.0]
    patience = Patience(30.0, clock=lambda: now[0])

    async def read_all():
        for seconds, n_bytes in parts:

            async def receive(seconds=seconds, n_bytes=n_bytes):
                now[0] += seconds
                return {"type": "http.request", "body": b"x" * n_bytes, "more_body": True}

            await patience.next(receive)
            read.append(n_bytes)

    try:
        asyncio.run(read_all())
    except SlowClientError:
        pass
    return read


def test_a_byte_now_and_then_is_waited_for_no_longer_than_silence():
    assert len(all_read([(22, 1)] * 9)) == 1
    assert len(all_read([(0.5, 1)] * 500)) == 60
    assert len(all_read([(0, 1_000_000)] + [(10, LEAST_BYTES_PER_S)] * 9)) == 4  # nothing is saved up


def test_a_slow_phone_is_waited_for_as_long_as_it_sends():
    second = (1, LEAST_BYTES_PER_S)
    assert len(all_read([second] * 5000)) == 5000
    assert len(all_read([(25, 8), *[(0.5, LEAST_BYTES_PER_S)] * 50] * 20)) == 20 * 51  # out of reach for a while


def test_a_body_that_nobody_asks_for_is_not_late():
    now = [0.0]
    patience = Patience(30.0, clock=lambda: now[0])

    async def receive():
        now[0] += 1
        return {"type": "http.request", "body": b"", "more_body": True}

    for _ in range(20):
        asyncio.run(patience.next(receive))
        now[0] += 100  # the service is busy


def test_a_body_that_trickles_in_is_refused(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("fewshot.service.limits.Patience", lambda most_s: Patience(most_s, clock=lambda: clock[0]))
    scope = {"type": "http", "headers": [*FORM, (b"content-length", b"90")]}
    answers, n_asked = [], [0]

    async def receive():
        n_asked[0] += 1
        clock[0] += 22 if n_asked[0] <= 5 else 0
        return {"type": "http.request", "body": b"x", "more_body": n_asked[0] < 90}

    async def send(message):
        answers.append(message)

    asyncio.run(Limits(reading_app, Settings(), error_response, lambda _: None)(scope, receive, send))
    assert answers[0]["status"] == 408
    assert b'"too_slow"' in answers[1]["body"]
    assert b"silent for 30 s, and brings at least 8 kB a second" in answers[1]["body"]


def test_a_host_that_is_none_of_ours_is_refused(filled):
    """What a page elsewhere makes a browser send, whose owner let its name point to this machine."""
    settings = Settings(hosts=frozenset({"localhost", "127.0.0.1", "::1"}))
    with serving(filled, settings) as client:
        for host in ("localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"):
            assert client.get("/v1/classes", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", ""):
            error_of(client.get("/v1/classes", headers={"Host": host}), 400, "wrong_host")
            error_of(client.get("/", headers={"Host": host}), 400, "wrong_host")


def test_the_rate_refills():
    now = [0.0]
    rate = RateLimit(120, clock=lambda: now[0])
    for _ in range(12):
        rate.count("a")
    with pytest.raises(TooManyRequestsError) as refused:
        rate.count("a")
    assert refused.value.retry_after_s == 1
    rate.count("b")
    now[0] = 0.51
    rate.count("a")
    with pytest.raises(TooManyRequestsError):
        rate.count("a")


def test_callers_are_not_remembered_without_end():
    rate = RateLimit(120)
    for number in range(MAX_KNOWN_CALLERS + 50):
        rate.count(str(number))
    assert len(rate._callers) == MAX_KNOWN_CALLERS


def raw(url, head, body=b"", *, wait=True):
    """Send bytes as they are; the answer's bytes."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(head.replace("\n", "\r\n").encode() + body)
    if not wait:
        return connection
    answer = b""
    with connection:
        while part := connection.recv(65536):
            answer += part
    return answer


def test_a_client_that_falls_silent_is_let_go(filled):
    head = (
        "POST /v1/query HTTP/1.1\nHost: 127.0.0.1\nContent-Type: multipart/form-data; boundary=b\nContent-Length: 999\n"
    )
    with listening(filled, Settings(body_timeout_s=0.3)) as url:
        started = time.monotonic()
        answer = raw(url, head + "Connection: close\n\n", b"--b\r\n")
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"too_slow"' in answer
        assert time.monotonic() - started < 15


def test_a_refused_upload_is_read_to_its_end_so_that_its_sender_hears_why(filled):
    body = b"x" * 8_000_000
    head = "POST /v1/classes/a/supports HTTP/1.1\nHost: 127.0.0.1\nContent-Type: multipart/form-data; boundary=b\n"
    with listening(filled) as url:
        answer = raw(url, f"{head}Content-Length: {len(body)}\nConnection: close\n\n", body)
    assert answer.startswith(b"HTTP/1.1 401")
    assert b'"unauthorized"' in answer


def held_up(folder):
    embedder, engine = slow_embedder()
    return Gallery(folder, embedder=embedder), engine


def multipart(path, photo):
    body = b'--b\r\nContent-Disposition: form-data; name="photos"; filename="a.png"\r\n\r\n'
    body += photo.read_bytes() + b"\r\n--b--\r\n"
    head = f"POST {path} HTTP/1.1\nHost: 127.0.0.1\nContent-Type: multipart/form-data; boundary=b\n"
    return head + f"Content-Length: {len(body)}\nConnection: close\n\n", body


def waiting(gallery_client_url):
    import json
    from urllib.request import urlopen

    with urlopen(f"{gallery_client_url}/v1/health") as response:
        return json.load(response)["waiting"]


def wait_until(condition):
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_full_queue_answers_503_and_a_client_that_leaves_frees_its_place(filled, rust):
    gallery, engine = held_up(filled.folder)
    with gallery, listening(gallery, Settings(max_waiting=2, max_files=2)) as url:
        head, body = multipart("/v1/query", rust)
        first = raw(url, head, body, wait=False)
        assert engine.entered.wait(20)
        second = raw(url, head, body, wait=False)
        wait_until(lambda: waiting(url) == 2)
        full = raw(url, head, body)
        assert full.startswith(b"HTTP/1.1 503")
        assert b'"busy"' in full
        assert b"retry-after: " in full.lower()
        second.close()
        wait_until(lambda: waiting(url) == 1)
        third = raw(url, head, body, wait=False)
        wait_until(lambda: waiting(url) == 2)
        engine.gate.set()
        for connection in (first, third):
            with connection:
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        wait_until(lambda: waiting(url) == 0)
    assert sum(engine.batches) == 2  # the photo of the client that left was not even looked at


def test_photos_of_concurrent_requests_share_an_engine_batch(filled, rust):
    gallery, engine = held_up(filled.folder)
    with gallery, listening(gallery) as url:
        head, body = multipart("/v1/query", rust)
        connections = [raw(url, head, body, wait=False)]
        assert engine.entered.wait(20)
        connections += [raw(url, head, body, wait=False) for _ in range(9)]
        wait_until(lambda: waiting(url) == 10)
        time.sleep(0.3)  # decoded, and waiting for the engine
        engine.gate.set()
        for connection in connections:
            with connection:
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert engine.batches == [1, 9]


def test_the_event_loop_answers_while_photos_are_decoded(filled, rust, monkeypatch):
    from fewshot import images

    decode, gate, entered = images.decode_with_box, threading.Event(), threading.Event()

    def slow(*arguments):
        entered.set()
        assert gate.wait(20)
        return decode(*arguments)

    with listening(filled, Settings(guarded=False)) as url:
        monkeypatch.setattr(images, "decode_with_box", slow)
        head, body = multipart("/v1/query", rust)
        asked = raw(url, head, body, wait=False)
        assert entered.wait(20)
        assert waiting(url) == 1
        gate.set()
        with asked:
            assert asked.recv(65536).startswith(b"HTTP/1.1 200")


def test_an_acknowledged_enrolment_is_on_disk(filled, rust):
    header = token(filled)
    with serving(filled) as client:
        body = client.post("/v1/classes/rust/supports", files=files(rust), headers=header).json()
        with Gallery(filled.folder) as other:
            assert other.support(body["support_ids"][0]).file == "new-rust.png"
