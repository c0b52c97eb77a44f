"""What is no HTTP, who takes for ever to ask, TLS, and whose word is taken for where a request comes from."""

import asyncio
import json
import socket
import ssl
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
import uvicorn
from click.testing import CliRunner
from conftest import LEAF_COLOURS, colour_embedder, write_leaf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from service_client import files, listening, serving, stop_the_clock
from uvicorn.server import ServerState

from fewshot.cli import main
from fewshot.datasets import class_folders
from fewshot.errors import TlsError
from fewshot.gallery import Gallery
from fewshot.service.limits import PART_BYTES
from fewshot.service.protocol import Protocol
from fewshot.service.server import Tls
from fewshot.service.settings import Settings
from fewshot.service.tokens import TokenFile
from fewshot.service.web import FILES, _file

CERTIFICATES = Path(__file__).parent / "tls"
CERT, KEY = CERTIFICATES / "cert.pem", CERTIFICATES / "key.pem"


@pytest.fixture
def filled(gallery, leaves):
    list(gallery.enroll(class_folders(leaves(n=3))))
    return gallery


def sent(url, data, *, end=False, timeout=10):
    """What a service answers to bytes; with `end`, the client says that it sends no more."""
    host, port = url.split("//")[1].split(":")
    with socket.create_connection((host, int(port)), timeout=timeout) as connection:
        try:
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has hung up already
        found = b""
        try:
            while part := connection.recv(65536):
                found += part
        except ConnectionResetError:
            pass
    return found


MALFORMED = [
    b"rubbish\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS spoken to a plain port
    b"GET / HTTP/1.1\r\n\r\n",  # no Host
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    b"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    b"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: nothing\r\n\r\n",
]


def test_what_is_no_http_is_told_so_in_the_one_shape(filled):
    with listening(filled) as url:
        for data in MALFORMED:
            answer = sent(url, data)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400"), (data[:60], answer[:100])
            assert b"content-type: application/json" in head.lower()
            assert b"content-security-policy" in head.lower()
            error = json.loads(body)["error"]
            assert list(error) == ["code", "message", "hint"]
        assert json.load(urlopen(f"{url}/v1/health"))["live"]


def test_a_probe_that_asks_for_the_head_alone_gets_it(filled):
    with listening(filled) as url:
        for path in ("/v1/health", "/v1/health/live", "/v1/health/ready"):
            asked = f"{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
            head = sent(url, b"HEAD " + asked)
            assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 503") if path.endswith("ready") else b"HTTP/1.1 200")
            assert head.endswith(b"\r\n\r\n")  # and nothing behind it
            assert b"content-type: application/json" in head
            refused = sent(url, b"POST " + asked)
            assert refused.startswith(b"HTTP/1.1 405")
            assert b"allow: GET" in refused


def test_a_client_that_never_ends_its_head_is_hung_up(filled, monkeypatch):
    monkeypatch.setattr("fewshot.service.protocol.HEAD_S", 0.5)
    with listening(filled) as url:
        for data in (b"", b"GET / HTTP/1.1\r\nHost: local"):
            answer = sent(url, data)
            assert answer.startswith(b"HTTP/1.1 408"), (data, answer)
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_slow"
        # One request in time and half of another on the same connection: it does not stay open either.
        half = b"GET /v1/session HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v1/sess"
        assert sent(url, half).startswith(b"HTTP/1.1 200")


class Later:
    """A loop whose clock stands until it is moved."""

    def __init__(self):
        self.now, self._timers = 0.0, []

    def call_later(self, seconds, function):
        timer = SimpleNamespace(at=self.now + seconds, function=function)
        timer.cancel = lambda: self._timers.remove(timer)
        self._timers.append(timer)
        return timer

    def move(self, seconds):
        self.now += seconds
        for timer in [each for each in self._timers if each.at <= self.now]:
            self._timers.remove(timer)
            timer.function()


class Wire(asyncio.Transport):
    """A connection that notes whether it was cut."""

    is_cut = False

    def abort(self):
        self.is_cut = True

    def set_write_buffer_limits(self, high=None, low=None):
        """What a client has not taken is known only to a real one."""

    def is_closing(self):
        return self.is_cut


def connected():
    loop, wire = Later(), Wire()
    protocol = Protocol(uvicorn.Config(lambda: None, lifespan="off"), ServerState(), {}, _loop=loop)
    protocol.connection_made(wire)
    protocol._stop_waiting()  # it has asked
    return protocol, loop, wire


def test_a_client_that_does_not_take_its_answer_is_cut_off():
    protocol, loop, wire = connected()
    protocol.pause_writing()
    loop.move(29.9)
    assert not wire.is_cut
    loop.move(0.2)
    assert wire.is_cut


def test_a_client_that_takes_its_answer_slowly_gets_all_of_it():
    protocol, loop, wire = connected()
    for _ in range(100):
        protocol.pause_writing()
        loop.move(25)
        protocol.resume_writing()
    loop.move(1000)
    assert not wire.is_cut


def test_who_has_left_is_not_cut_off_again():
    protocol, loop, wire = connected()
    protocol.pause_writing()
    protocol.connection_lost(OSError("gone"))
    loop.move(31)
    assert not wire.is_cut


def test_what_a_client_does_not_read_is_not_kept_for_it(filled, monkeypatch):
    """An answer of megabytes, over a real connection whose client reads nothing until the service has given up."""
    monkeypatch.setattr("fewshot.service.protocol.TAKE_S", 0.3)
    cut_off, lost, buffered = threading.Event(), Protocol.connection_lost, []

    def noting(self, exc):
        lost(self, exc)
        cut_off.set()

    def noting_size(self):
        buffered.append(self.transport.get_write_buffer_size())
        paused(self)

    paused = Protocol.pause_writing
    monkeypatch.setattr(Protocol, "connection_lost", noting)
    monkeypatch.setattr(Protocol, "pause_writing", noting_size)
    monkeypatch.setitem(FILES, "main.js", SimpleNamespace(read_bytes=lambda: b"x" * 4_000_000))
    _file.cache_clear()
    asked = b"GET /static/main.js HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    try:
        with listening(filled) as url, socket.socket() as connection:
            assert len(sent(url, asked)) > 4_000_000  # who reads it gets it whole
            cut_off.clear()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, port = url.split("//")[1].split(":")
            connection.settimeout(20)
            connection.connect((host, int(port)))
            connection.sendall(asked)
            assert cut_off.wait(20)
            n_kept = 0
            try:
                while part := connection.recv(65536):
                    n_kept += len(part)
            except ConnectionResetError:
                pass
    finally:
        _file.cache_clear()
    assert max(buffered) <= PART_BYTES
    assert n_kept < 1_000_000


@given(st.lists(st.binary(max_size=60), max_size=4), st.sampled_from([b"", *MALFORMED[:6]]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_get_an_error_or_nothing_and_the_service_lives(plain_url, parts, start):
    answer = sent(plain_url, start[:80] + b"\r\n".join(parts), end=True)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 200"))
    assert b"HTTP/1.1 5" not in answer


@pytest.fixture(scope="module")
def plain_url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "index"
    with Gallery(folder, create=True, embedder=colour_embedder()) as gallery, listening(gallery) as url:
        yield url


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    with Gallery(folder / "index", create=True, embedder=colour_embedder()) as gallery:
        for label, colour in LEAF_COLOURS.items():
            for i in range(2):
                write_leaf(folder / "photos" / label / f"{i}.png", colour, i)
        list(gallery.enroll(class_folders(folder / "photos")))
        word = TokenFile(gallery.folder).create("w", ("write",))[1]
        with serving(gallery, Settings(rate_per_minute=0)) as opened:
            opened.headers["Authorization"] = f"Bearer {word}"
            yield opened


PARTS = st.tuples(
    st.sampled_from(["photos", "photo", "", "photos\r\nX: y"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.binary(max_size=80),
)


@given(st.lists(PARTS, max_size=3), st.sampled_from(["b", "", "b" * 200, 'b"; x="']), st.binary(max_size=20))
@settings(max_examples=60, deadline=None)
def test_whatever_a_multipart_body_is_it_is_answered_or_refused(client, parts, boundary, tail):
    body = b""
    for field, name, content in parts:
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
        body += content + b"\r\n"
    body += f"--{boundary}--".encode() + tail
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    for path in ("/v1/query", "/v1/classes/new/supports"):
        response = client.post(path, content=body, headers=kind)
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            assert list(response.json()["error"]) == ["code", "message", "hint"]


@given(JSON)
@settings(max_examples=60, deadline=None)
def test_whatever_a_renaming_is_it_is_done_or_refused(client, value):
    try:
        content = json.dumps(value).encode("utf-8", "surrogatepass")
    except ValueError:
        return
    for body in (content, b'{"label": ' + content + b"}"):
        response = client.patch("/v1/classes/none-such", content=body, headers={"Content-Type": "application/json"})
        assert 400 <= response.status_code < 500, response.text
        assert list(response.json()["error"]) == ["code", "message", "hint"]


# ---- TLS


def test_a_service_speaks_tls_and_nothing_older(filled):
    with listening(filled, tls=Tls(CERT, KEY)) as url:
        assert url.startswith("https://")
        trusting = ssl.create_default_context(cafile=str(CERT))
        assert json.load(urlopen(f"{url}/v1/health", context=trusting))["live"]
        host, port = url.removeprefix("https://").split(":")
        with (
            socket.create_connection((host, int(port))) as plain,
            trusting.wrap_socket(plain, server_hostname=host) as it,
        ):
            assert it.version() in ("TLSv1.2", "TLSv1.3")
        assert not sent(url.replace("https", "http"), b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(
            b"HTTP/1.1 200"
        )
        assert json.load(urlopen(f"{url}/v1/health", context=trusting))["live"]


@pytest.mark.parametrize(
    ("cert", "key", "told"),
    [
        (CERT, CERTIFICATES / "other-key.pem", "cannot be used together"),
        (CERT, CERTIFICATES / "locked-key.pem", "the key is encrypted"),
        (CERT, CERTIFICATES / "none.pem", "none.pem cannot be read"),
        (Path(__file__), KEY, "cannot be used together"),
        (KEY, KEY, "cannot be used together"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_told_before_anything_is_served(filled, cert, key, told):
    with pytest.raises(TlsError, match=told):
        Tls(cert, key).context()
    words = ["serve", "--index", str(filled.folder), "--port", "0", "--tls-cert", str(cert), "--tls-key", str(key)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert told in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tls-cert", str(CERT)], "go together"),
        (["--tls-key", str(KEY)], "go together"),
        (["--trust-proxy", "*"], "no address and no network"),
        (["--trust-proxy", "proxy.example.org"], "no address and no network"),
        (["--trust-proxy", "10.0.0.5/8"], "wanted 10.0.0.5 for that one proxy, or 10.0.0.0/8 for the network"),
        (["--trust-proxy", "127.0.0.1", "--trust-proxy", "2001:db8::1/32"], "or 2001:db8::/32 for the network"),
    ],
)
def test_options_that_cannot_be_are_misuse(filled, words, told):
    done = CliRunner().invoke(main, ["serve", "--index", str(filled.folder), *words])
    assert done.exit_code == 2
    assert told in done.stderr


# ---- whose word is taken


def test_a_forwarded_address_is_believed_only_from_a_proxy_that_was_named(filled, monkeypatch):
    stop_the_clock(monkeypatch)
    wrong = "Authorization: Bearer fewshot_00000000_" + "x" * 43

    def ask(url, forwarded, header=wrong):
        head = f"GET /v1/classes HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {forwarded}\r\n{header}\r\n"
        return int(sent(url, f"{head}Connection: close\r\n\r\n".encode()).split()[1])

    with listening(filled) as url:  # no proxy: all come from one address, whatever they say
        codes = [ask(url, f"192.0.2.{i}") for i in range(7)]
        assert codes == [401] * 5 + [429] * 2
    with listening(filled, proxies=["127.0.0.1"]) as url:
        assert [ask(url, f"192.0.2.{i}") for i in range(7)] == [401] * 7
        assert [ask(url, "192.0.2.99") for _ in range(7)] == [401] * 5 + [429] * 2
        # What a client itself wrote into the header stands left of what the proxy adds, and counts for nothing.
        assert ask(url, "203.0.113.1, 192.0.2.99") == 429
    with listening(filled, proxies=["10.0.0.0/8"]) as url:
        assert [ask(url, f"192.0.2.{i}") for i in range(6)] == [401] * 5 + [429]


def test_guessing_does_not_hold_up_others(filled, tmp_path):
    """The slow hash runs beside the loop that answers."""
    photo = write_leaf(tmp_path / "new.png", LEAF_COLOURS["rust"], 9)
    with serving(filled, Settings(rate_per_minute=0)) as client:
        stop = threading.Event()

        def guess():
            while not stop.is_set():
                client.get("/v1/classes", headers={"Authorization": "Bearer fewshot_00000000_" + "x" * 43})

        guessing = threading.Thread(target=guess)
        guessing.start()
        try:
            for _ in range(3):
                assert client.post("/v1/query", files=files(photo)).status_code == 200
        finally:
            stop.set()
            guessing.join()
