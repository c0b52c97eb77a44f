"""What the tests of the service share: an app over an index of coloured leaves, and how photos are sent to it."""

import atexit
import threading
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from conftest import ColourEngine, colour_embedder
from starlette.testclient import TestClient

from fewshot.decoding.guard import Guard, GuardLimits
from fewshot.embedder import Embedder
from fewshot.gallery import Gallery
from fewshot.service.app import create_app
from fewshot.service.limits import Backoff, RateLimit
from fewshot.service.server import address_of, listening_socket, made_server
from fewshot.service.settings import Settings
from fewshot.service.tokens import TokenFile

# What the test client calls the service, and from where it says to come.
HERE = ("127.0.0.1", 50000)
ELSEWHERE = ("192.0.2.7", 50000)
# The routes that take photos.
PHOTO_ROUTES = [("put", "/v1/classes/rust"), ("post", "/v1/classes/rust/supports"), ("post", "/v1/query")]


@cache
def shared_guard() -> Guard:
    """The processes that decode for all apps of a test run: starting them anew for each would take minutes."""
    guard = Guard(2, GuardLimits.for_pixels(Settings.__dataclass_fields__["max_pixels"].default))
    atexit.register(guard.close)
    return guard


def stop_the_clock(monkeypatch):
    """Let no second pass for who waits or is limited: no slow moment of the machine ends a wait or allows one more."""
    monkeypatch.setattr("fewshot.service.access.Backoff", lambda: Backoff(clock=lambda: 0.0))
    monkeypatch.setattr("fewshot.service.access.RateLimit", lambda n: RateLimit(n, clock=lambda: 0.0))


@contextmanager
def serving(gallery: Gallery, settings: Settings | None = None, client=HERE):
    """A client of a running app."""
    app = create_app(gallery, settings or Settings(), shared_guard())
    with TestClient(app, base_url="http://localhost", client=client, raise_server_exceptions=False) as opened:
        yield opened


def token(gallery: Gallery, scope: str = "write", name: str = "tester") -> dict[str, str]:
    """The header that a client with this scope sends."""
    _, word = TokenFile(gallery.folder).create(name, (scope,))
    return {"Authorization": f"Bearer {word}"}


def files(*paths: Path, names: list[str] | None = None):
    """Photos as a multipart request carries them."""
    return [
        ("photos", (names[i] if names else path.name, path.read_bytes(), "application/octet-stream"))
        for i, path in enumerate(paths)
    ]


def error_of(response, status: int, code: str) -> dict[str, str]:
    """The error of a response, checked to have the one shape."""
    assert response.status_code == status, (response.status_code, response.text)
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["code", "message", "hint"]
    assert body["error"]["code"] == code, body
    assert body["error"]["message"]
    return body["error"]


@contextmanager
def listening(gallery: Gallery, settings: Settings | None = None, **options):
    """The URL of a service that really listens, in a thread of this process; options as of `made_server`."""
    app = create_app(gallery, settings or Settings(), shared_guard())
    with listening_socket("127.0.0.1", 0) as bound:
        started = threading.Event()
        server = made_server(app, started.set, **options)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        assert started.wait(20)
        try:
            yield address_of(bound, "127.0.0.1", options.get("tls"))
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


class SlowEngine(ColourEngine):
    """An engine that waits at a gate, and notes the size of each batch that it is given."""

    batch_size = 1000
    n_parallel = 1

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[int] = []

    def run(self, pixels):
        self.batches.append(len(pixels))
        self.entered.set()
        assert self.gate.wait(20)
        return super().run(pixels)


def slow_embedder() -> tuple[Embedder, SlowEngine]:
    """The colour embedder, held up by its engine; the same fingerprint."""
    engine = SlowEngine()
    embedder = colour_embedder()
    return Embedder(embedder.backbone, embedder.source, "f32", lambda bulk: engine), engine
