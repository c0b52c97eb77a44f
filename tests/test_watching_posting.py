"""Answers posted to a URL: each arrives at least once and in order, whatever the receiver does meanwhile."""

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from conftest import eventually

from fewshot.errors import DeliveryError, ReceiverRefusedError, UsageError
from fewshot.watching import posting
from fewshot.watching.answers import Answer
from fewshot.watching.memory import Finished, Memory
from fewshot.watching.posting import Post

URL = "http://127.0.0.1:9/answers"


def answer(i):
    return Answer(
        f"key-{i}", f"{i}.jpg", "2026-01-01T00:00:00+00:00", "fire", "match", "why", 0.9, ("F",), 1.0, 2.0, "name", ""
    )


@pytest.fixture
def memory(tmp_path):
    with Memory(tmp_path / "state", tmp_path / "inbox", tmp_path / "index") as opened:
        yield opened


def remember(memory, sink, *numbers):
    memory.finish([Finished(Path(f"/{i}.jpg"), (1, 1, 1), answer(i), (sink,)) for i in numbers])


class Receiver:
    """Says what it is told to say, in turn, then 200; keeps what it took."""

    def __init__(self, *says):
        self.says, self.seen, self.taken = list(says), [], []

    def __call__(self, request):
        self.seen.append(request)
        said = self.says.pop(0) if self.says else 200
        if isinstance(said, Exception):
            raise said
        response = said if isinstance(said, httpx.Response) else httpx.Response(said)
        if response.is_success:
            self.taken.append(json.loads(request.content))
        return response


def post_to(receiver, url=URL, **settings):
    return Post(url, transport=httpx.MockTransport(receiver), first_wait_s=0.01, **settings)


# ---- one attempt


def test_an_answer_is_posted_with_its_key_and_its_token():
    receiver = Receiver()
    post = post_to(receiver, token="secret")
    post.post(answer(7))
    (request,) = receiver.seen
    assert request.method == "POST"
    assert request.headers["Idempotency-Key"] == "key-7"
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.headers["Content-Type"] == "application/json"
    assert receiver.taken == [answer(7).as_dict()]
    post.close()


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_refusal_of_one_answer_is_told_from_a_receiver_that_is_out_of_order(status):
    post = post_to(Receiver(httpx.Response(status, text="no\x1b such field")))
    with pytest.raises(ReceiverRefusedError) as caught:
        post.post(answer(1))
    assert str(status) in caught.value.message
    assert "no such field" in caught.value.message
    post.close()


@pytest.mark.parametrize("status", [301, 308, 401, 403, 404, 408, 409, 429, 500, 502, 503])
def test_all_else_is_tried_again(status):
    post = post_to(Receiver(status))
    with pytest.raises(DeliveryError) as caught:
        post.post(answer(1))
    assert not isinstance(caught.value, ReceiverRefusedError)
    assert str(status) in caught.value.message
    post.close()


def test_a_redirect_is_not_followed_but_named():
    post = post_to(Receiver(httpx.Response(308, headers={"Location": "https://new.example/answers"})))
    with pytest.raises(DeliveryError) as caught:
        post.post(answer(1))
    assert "https://new.example/answers" in caught.value.hint
    post.close()


@pytest.mark.parametrize(
    ("said", "low", "high"),
    [("7", 7, 7), ("999999", 3600, 3600), (timedelta(seconds=600), 500, 600), (timedelta(hours=-1), 0, 0)],
    ids=str,
)
def test_retry_after_is_kept(said, low, high):
    text = said if isinstance(said, str) else format_datetime(datetime.now(UTC) + said, usegmt=True)
    post = post_to(Receiver(httpx.Response(503, headers={"Retry-After": text})))
    with pytest.raises(DeliveryError) as caught:
        post.post(answer(1))
    assert low <= caught.value.retry_after_s <= high
    assert post._pause_s(caught.value) >= low
    post.close()


def test_a_retry_after_that_is_nonsense_is_passed_over():
    post = post_to(Receiver(httpx.Response(503, headers={"Retry-After": "soon"})))
    with pytest.raises(DeliveryError) as caught:
        post.post(answer(1))
    assert caught.value.retry_after_s is None
    post.close()


def test_pauses_double_up_to_a_limit_and_differ():
    post = Post(URL)
    pauses = [post._pause_s(DeliveryError("down")) for _ in range(12)]
    for i, pause_s in enumerate(pauses):
        longest = min(posting.LONGEST_WAIT_S, 2.0**i)
        assert longest / 2 <= pause_s <= longest
    post.close()


@pytest.mark.parametrize("url", ["ftp://host/x", "http://", "host/path", "http://host:port/x"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(UsageError, match="no URL"):
        Post(url)


def test_secrets_in_a_url_are_sent_but_not_shown():
    receiver = Receiver()
    post = post_to(receiver, "http://me:pass@127.0.0.1:9/answers")
    assert post.name == URL
    post.post(answer(1))
    assert receiver.seen[0].headers["Authorization"].startswith("Basic ")
    post.close()


def test_a_token_is_sent_without_the_line_break_of_the_file_that_it_is_from():
    receiver = Receiver()
    post = post_to(receiver, token=" secret\r\n")
    post.post(answer(1))
    assert receiver.seen[0].headers["Authorization"] == "Bearer secret"
    post.close()


@pytest.mark.parametrize("token", ["sécret", "secret\nX-Other: 1", "sec\0ret", "secret\x7f", "secret\udce9"])
def test_a_token_that_http_cannot_send_is_refused_and_not_shown(token):
    with pytest.raises(UsageError, match="token") as caught:
        Post(URL, token=token)
    assert "ret" not in caught.value.said


def test_a_request_that_is_no_http_is_not_called_a_receiver_away_and_shows_no_header():
    post = post_to(Receiver(httpx.LocalProtocolError("Illegal header value b'Bearer secret'")))
    with pytest.raises(DeliveryError) as caught:
        post.post(answer(1))
    assert "cannot be reached" not in caught.value.said
    assert "secret" not in caught.value.said
    post.close()


# ---- the thread


def test_answers_arrive_in_order_once_the_receiver_is_back(memory):
    receiver = Receiver(httpx.ConnectError("refused"), 503, 500, 200, 502)
    post, warnings = post_to(receiver), []
    remember(memory, post.name, 1, 2, 3)
    post.start(memory, warnings.append)
    eventually(lambda: len(receiver.taken) == 3)
    remember(memory, post.name, 4)
    post.wake()
    eventually(lambda: memory.n_due() == {})
    post.close()
    assert [each["key"] for each in receiver.taken] == ["key-1", "key-2", "key-3", "key-4"]
    assert any("cannot be reached" in each for each in warnings)
    assert any("takes answers again" in each for each in warnings)


def test_a_receiver_that_stays_away_is_told_of_once(memory):
    post, warnings = post_to(Receiver(*[httpx.ConnectError("refused")] * 500)), []
    remember(memory, post.name, 1)
    post.start(memory, warnings.append)
    eventually(lambda: post._n_failures >= 4)
    post.close()
    assert len(warnings) == 1
    assert memory.n_due() == {post.name: 1}


def test_a_refused_answer_stands_in_nobodys_way_and_is_tried_at_the_next_start(memory):
    receiver = Receiver(200, 422)
    post, warnings = post_to(receiver), []
    remember(memory, post.name, 1, 2, 3)
    post.start(memory, warnings.append)
    eventually(lambda: len(receiver.taken) == 2)
    post.wait_until_done(memory, 5.0, threading.Event())
    post.close()
    assert [each["key"] for each in receiver.taken] == ["key-1", "key-3"]
    assert memory.n_due() == {post.name: 1}
    assert "refused the answer to 2.jpg" in warnings[0]
    again = post_to(receiver)
    again.start(memory, warnings.append)
    eventually(lambda: memory.n_due() == {})
    again.close()
    assert receiver.taken[-1]["key"] == "key-2"


def test_undelivered_answers_outlive_the_process(tmp_path):
    places = tmp_path / "state", tmp_path / "inbox", tmp_path / "index"
    with Memory(*places) as memory:
        post = post_to(Receiver(*[503] * 500))
        remember(memory, post.name, 1, 2)
        post.start(memory, lambda _: None)
        eventually(lambda: post._n_failures >= 2)
        post.close()
    receiver = Receiver()
    with Memory(*places) as memory:
        post = post_to(receiver)
        post.start(memory, lambda _: None)
        eventually(lambda: memory.n_due() == {})
        post.close()
    assert [each["key"] for each in receiver.taken] == ["key-1", "key-2"]


def test_a_kill_between_taking_and_noting_repeats_the_answer_under_the_same_key(memory, monkeypatch):
    receiver = Receiver()
    post = post_to(receiver)
    remember(memory, post.name, 1)

    def killed(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(memory, "handed_over", killed)
        with pytest.raises(KeyboardInterrupt):
            post.deliver(memory, lambda _: None)
    post.deliver(memory, lambda _: None)
    post.close()
    assert [request.headers["Idempotency-Key"] for request in receiver.seen] == ["key-1", "key-1"]
    assert memory.n_due() == {}


def test_a_memory_that_fails_in_the_thread_is_told_to_the_watch(memory, monkeypatch):
    post = post_to(Receiver())
    remember(memory, post.name, 1)
    memory.close()
    post._thread = threading.Thread(target=post._run, args=(memory, lambda _: None))
    post._thread.start()
    eventually(lambda: post.failure is not None)
    assert post.failure.code == "watch_state"
    post.close()


def test_what_nobody_foresaw_does_not_end_the_thread_in_silence(memory, monkeypatch):
    post = post_to(Receiver(ValueError("a receiver from hell")))
    remember(memory, post.name, 1)
    post.start(memory, lambda _: None)
    eventually(lambda: post.failure is not None)
    assert "from hell" in str(post.failure)
    assert memory.n_due() == {post.name: 1}
    post.close()


def test_a_real_server_that_is_slow_and_down_at_first_gets_every_answer(memory):
    taken = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(0.02)
            taken.append((self.headers["Idempotency-Key"], json.loads(body)["file"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.server_bind()  # a port that is ours, but nobody answers yet
    post = Post(f"http://127.0.0.1:{server.server_port}/answers", first_wait_s=0.05)
    remember(memory, post.name, *range(5))
    warnings = []
    post.start(memory, warnings.append)
    eventually(lambda: warnings)
    server.server_activate()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        eventually(lambda: memory.n_due() == {})
    finally:
        post.close()
        server.shutdown()
        server.server_close()
        thread.join()
    assert taken == [(f"key-{i}", f"{i}.jpg") for i in range(5)]
    assert "cannot be reached" in warnings[0]
