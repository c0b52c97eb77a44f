"""Every route with every kind of token; who guesses waits; no secret reaches a log."""

import logging

import pytest
from conftest import LEAF_COLOURS, write_leaf
from fastapi.routing import APIRoute
from service_client import ELSEWHERE, HERE, error_of, files, serving, stop_the_clock
from starlette.testclient import TestClient

from fewshot.datasets import class_folders
from fewshot.errors import TooManyRequestsError
from fewshot.gallery import Gallery
from fewshot.service.app import create_app
from fewshot.service.limits import MAX_KNOWN_CALLERS, Backoff
from fewshot.service.settings import Settings
from fewshot.service.tokens import SCRYPT, TokenFile
from fewshot.service.web import PAGES, is_of_page

# method and path as the app has them: (the scope that it wants, the path to ask). "nothing": no data of the index, and
# open to all. A new route without an entry fails the first test.
ROUTES = {
    ("POST", "/v1/query"): ("read", "/v1/query"),
    ("GET", "/v1/classes"): ("read", "/v1/classes"),
    ("GET", "/v1/classes/{label}"): ("read", "/v1/classes/rust"),
    ("PUT", "/v1/classes/{label}"): ("write", "/v1/classes/rust"),
    ("PATCH", "/v1/classes/{label}"): ("write", "/v1/classes/rust"),
    ("DELETE", "/v1/classes/{label}"): ("write", "/v1/classes/rust"),
    ("POST", "/v1/classes/{label}/supports"): ("write", "/v1/classes/rust/supports"),
    ("GET", "/v1/supports/{support_id}"): ("read", "/v1/supports/1"),
    ("DELETE", "/v1/supports/{support_id}"): ("write", "/v1/supports/1"),
    ("GET", "/v1/supports/{support_id}/thumbnail"): ("read", "/v1/supports/1/thumbnail"),
    ("GET", "/v1/projection"): ("read", "/v1/projection"),
    ("GET", "/metrics"): ("read", "/metrics"),
    ("GET", "/v1/health"): ("nothing", "/v1/health"),
    ("GET", "/v1/health/live"): ("nothing", "/v1/health/live"),
    ("GET", "/v1/health/ready"): ("nothing", "/v1/health/ready"),
    ("GET", "/v1/session"): ("session", "/v1/session"),
    ("GET", "/v1/openapi.json"): ("nothing", "/v1/openapi.json"),
    ("GET", "/"): ("nothing", "/"),
    ("GET", "/classes"): ("nothing", "/classes"),
    ("GET", "/classes/{label}"): ("nothing", "/classes/rust"),
    ("GET", "/new"): ("nothing", "/new"),
    ("GET", "/map"): ("nothing", "/map"),
    ("GET", "/static/{name}"): ("nothing", "/static/main.js"),
}
TOKENS = ("none", "read", "write", "revoked", "wrong secret", "wrong id", "malformed", "other scheme", "other index")
CHANGES = {"PUT", "PATCH", "DELETE"}


@pytest.fixture
def filled(gallery, leaves):
    list(gallery.enroll(class_folders(leaves(n=3))))
    return gallery


@pytest.fixture
def headers(filled, tmp_path, embedder, monkeypatch):
    """A header for each of TOKENS."""
    monkeypatch.setitem(SCRYPT, "n", 2)  # what it costs is tested elsewhere
    tokens = TokenFile(filled.folder)
    words = {scope: tokens.create(scope, (scope,))[1] for scope in ("read", "write")}
    words["revoked"] = tokens.create("gone", ("write",))[1]
    tokens.revoke("gone")
    words["wrong secret"] = words["write"][:-4] + "AAAA"
    words["wrong id"] = "fewshot_00000000_" + words["write"].split("_", 2)[2]
    words["malformed"] = "fewshot_../../etc/passwd"
    with Gallery(tmp_path / "other", create=True, embedder=embedder) as other:
        words["other index"] = TokenFile(other.folder).create("w", ("write",))[1]
    found = {name: {"Authorization": f"Bearer {word}"} for name, word in words.items()}
    found["other scheme"] = {"Authorization": f"Basic {words['write']}"}
    return {"none": {}, **found}


def expected(wants, token, read_needs_token):
    """The status that a route gives a kind of token, or None: it lets it pass."""
    if wants == "nothing":
        return None
    if token in ("none", "other scheme"):
        return 401 if wants == "write" or (wants == "read" and read_needs_token) else None
    if token not in ("read", "write"):
        return 401  # also where no token would do: a client that sends a wrong one wants to know
    return 403 if wants == "write" and token == "read" else None


def routes_of(app):
    """What the app really answers, read from the app and not from its description."""
    found = set()
    for route in app.routes:
        inner = getattr(route, "original_router", None)
        for each in inner.routes if inner is not None else [route]:
            for method in each.methods - {"HEAD"}:
                found.add((method, each.path))
    return found


def test_every_route_of_the_app_has_its_entry(filled):
    app = create_app(filled)
    found = routes_of(app)
    assert sum(isinstance(route, APIRoute) or hasattr(route, "original_router") for route in app.routes) > 5
    assert found == set(ROUTES)


@pytest.mark.parametrize("read_needs_token", [False, True])
def test_every_route_with_every_kind_of_token(filled, headers, tmp_path, read_needs_token, monkeypatch):
    photo = files(write_leaf(tmp_path / "new.png", LEAF_COLOURS["rust"], 700))
    monkeypatch.setattr(Backoff, "check", lambda *_: None)  # so many wrong ones would have to wait: see below
    before = filled.about().generation
    n_tried = 0
    with serving(filled, Settings(require_read_token=read_needs_token, rate_per_minute=0)) as client:
        for (method, _), (wants, path) in ROUTES.items():
            body = (
                {"json": {"label": "rusty"}}
                if method == "PATCH"
                else {"files": photo}
                if method in ("POST", "PUT")
                else {}
            )
            for token in TOKENS:
                wanted = expected(wants, token, read_needs_token)
                if wanted is None and wants == "write":
                    continue  # what they do is tested elsewhere; here it would change what is asked next
                response = client.request(method, path, headers=headers[token], **body)
                n_tried += 1
                if wanted is None:
                    assert response.status_code == 200, (method, path, token, response.text)
                    continue
                error = error_of(response, wanted, "unauthorized" if wanted == 401 else "forbidden")
                assert error["hint"], (method, path, token)
                assert ("www-authenticate" in response.headers) == (wanted == 401)
                # Nothing of the index stands in a refusal but the token's own name.
                assert "rust" not in response.text, (method, path, token)
        assert n_tried > 180
        if read_needs_token:
            scopes = {
                token: client.get("/v1/session", headers=headers[token]).json().get("scopes")
                for token in ("none", "read", "write")
            }
            assert scopes == {"none": [], "read": ["read"], "write": ["read", "write"]}
    assert filled.about().generation == before


def test_what_a_write_token_may_do_it_can(filled, headers, tmp_path):
    photo = files(write_leaf(tmp_path / "new.png", LEAF_COLOURS["rust"], 700))
    writing = [(method, path) for (method, _), (wants, path) in ROUTES.items() if wants == "write"]
    assert len(writing) == 5
    with serving(filled) as client:
        asked = [("PATCH", "/v1/classes/blight", {"json": {"label": "blight-2"}})]
        asked += [("DELETE", "/v1/supports/1", {}), ("PUT", "/v1/classes/rust", {"files": photo})]
        asked += [("POST", "/v1/classes/rust/supports", {"files": photo}), ("DELETE", "/v1/classes/rust", {})]
        for method, path, body in asked:
            response = client.request(method, path, headers=headers["write"], **body)
            assert response.status_code in (200, 201), (method, path, response.text)


def test_other_methods_and_paths_beside_the_routes_reveal_nothing(filled):
    with serving(filled, Settings(require_read_token=True)) as client:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "PROPFIND"):
            for _, path in ROUTES.values():
                response = client.request(method, path)
                if "rust" in response.text.replace("/rust", ""):
                    assert path in ("/v1/openapi.json", "/static/main.js"), (method, path)  # examples, no data
        for path in (
            "/v1/classes/",
            "/v1//classes",
            "/v1/classes/%2e%2e",
            "/static/..%2f..%2ftokens.json",
            "/tokens.json",
        ):
            response = client.get(path, follow_redirects=True)
            assert response.status_code in (401, 404), path
            assert "digest" not in response.text


# ---- who asks much


ASK = ["/v1/classes", "/v1/session", "/v1/openapi.json", "/v1/nothing", "/nothing", "/metrics"]


@pytest.mark.parametrize("path", ASK)
@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer guessed"}, {"Authorization": "Basic x"}])
def test_whatever_a_stranger_asks_is_counted(filled, monkeypatch, path, header):
    stop_the_clock(monkeypatch)
    monkeypatch.setattr(Backoff, "check", lambda *_: None)
    with serving(filled, Settings(rate_per_minute=60), client=ELSEWHERE) as client:
        codes = [client.get(path, headers=header).status_code for _ in range(12)]
    assert 429 not in codes[:10]
    assert codes[10:] == [429] * 2


def test_a_known_token_s_requests_are_its_own_wherever_they_go(filled, headers, monkeypatch):
    stop_the_clock(monkeypatch)
    with serving(filled, Settings(rate_per_minute=60), client=ELSEWHERE) as client:
        codes = [client.get("/v1/classes", headers=headers["read"]).status_code for _ in range(2)]
        codes += [client.get("/v1/nothing", headers=headers["read"]).status_code for _ in range(9)]
        assert codes == [200] * 2 + [404] * 8 + [429]
        # Of its address there is one request less: the first, before the token was known.
        codes = [client.get("/v1/nothing").status_code for _ in range(10)]
        assert codes == [404] * 9 + [429]


def test_neither_the_page_nor_a_probe_is_kept_from_its_files_by_other_requests(filled, monkeypatch):
    stop_the_clock(monkeypatch)
    names = [path.name for path in PAGES.iterdir() if path.is_file()]
    assert len(names) > 10
    with serving(filled, Settings(rate_per_minute=60), client=ELSEWHERE) as client:
        while client.get("/v1/nothing").status_code != 429:
            pass
        for _ in range(3):  # three people open it at once
            assert all(client.get(path).status_code == 200 for path in ["/", *(f"/static/{name}" for name in names)])
        codes = [client.get("/v1/health/live").status_code for _ in range(12)]
        assert codes == [200] * 10 + [429] * 2
        codes = [client.get("/static/main.js").status_code for _ in range(60)]
        assert codes[0] == 200
        error_of(client.get("/"), 429, "too_many_requests")


def test_every_path_of_the_page_is_known_as_one():
    assert {path for (_, path), (wants, _) in ROUTES.items() if is_of_page(path)} == {
        path for (_, path) in ROUTES if not path.startswith("/v1/") and path != "/metrics"
    }


def test_requests_of_this_machine_without_a_token_are_not_counted(filled, monkeypatch):
    stop_the_clock(monkeypatch)
    with serving(filled, Settings(rate_per_minute=1), client=HERE) as client:
        for path in ("/v1/health", "/", "/v1/nothing", "/v1/classes"):
            assert 429 not in {client.get(path).status_code for _ in range(20)}


def test_a_network_of_ipv6_is_one_caller(filled, monkeypatch):
    stop_the_clock(monkeypatch)
    app = create_app(filled, Settings(rate_per_minute=60, guarded=False))
    with TestClient(app, base_url="http://localhost"):
        for path, n_allowed in (("/v1/classes", 10), ("/v1/health", 10), ("/static/main.js", 60)):
            codes = [
                TestClient(app, base_url="http://localhost", client=(f"2001:db8::{i:x}:1", 5)).get(path).status_code
                for i in range(n_allowed + 2)
            ]
            assert codes == [200] * n_allowed + [429] * 2
            neighbour = TestClient(app, base_url="http://localhost", client=("2001:db8:0:1::1", 5))
            assert neighbour.get(path).status_code == 200


# ---- who guesses


def test_wrong_tokens_make_their_address_wait_and_no_other(filled, headers, monkeypatch):
    stop_the_clock(monkeypatch)
    app = create_app(filled, Settings(require_read_token=True, guarded=False))
    with TestClient(app, base_url="http://localhost", client=ELSEWHERE) as there:
        for _ in range(2):
            assert there.get("/v1/classes", headers=headers["read"]).status_code == 200
        codes = [there.get("/v1/classes", headers=headers["wrong secret"]).status_code for _ in range(8)]
        assert codes == [401] * 5 + [429] * 3
        refused = there.get("/v1/classes", headers=headers["wrong id"])
        error_of(refused, 429, "too_many_requests")
        assert int(refused.headers["retry-after"]) >= 1
        # A new token is not even looked at meanwhile, a known one passes: a neighbour behind the same address.
        error_of(there.get("/v1/classes", headers=headers["write"]), 429, "too_many_requests")
        assert there.get("/v1/classes", headers=headers["read"]).status_code == 200
        other = TestClient(app, base_url="http://localhost", client=HERE)
        assert other.get("/v1/classes", headers=headers["write"]).status_code == 200


def test_the_wait_doubles_has_an_end_and_is_forgotten():
    now = [0.0]
    backoff = Backoff(clock=lambda: now[0])
    waits = []
    for _ in range(20):
        try:
            backoff.check("192.0.2.7")
        except TooManyRequestsError as refused:
            waits.append(refused.retry_after_s)
            now[0] += refused.retry_after_s
            backoff.check("192.0.2.7")
        backoff.mistake("192.0.2.7")
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == 900
    with pytest.raises(TooManyRequestsError, match="20 wrong tokens"):
        backoff.check("192.0.2.7")
    backoff.check("192.0.2.8")
    now[0] += 3601
    backoff.check("192.0.2.7")
    backoff.mistake("192.0.2.7")
    backoff.check("192.0.2.7")


def test_an_ipv6_network_is_one_caller_and_callers_are_not_remembered_without_end():
    backoff = Backoff(clock=lambda: 0.0)
    for i in range(5):
        backoff.mistake(f"2001:db8::{i}")
    with pytest.raises(TooManyRequestsError):
        backoff.check("2001:db8::ffff")
    backoff.check("2001:db8:0:1::1")
    for i in range(MAX_KNOWN_CALLERS + 5):
        backoff.mistake(f"caller {i}")
    assert len(backoff._callers) == MAX_KNOWN_CALLERS


# ---- secrets and logs


def test_no_secret_is_in_a_log_or_an_answer_whatever_is_asked(filled, headers, tmp_path, caplog, capfd, monkeypatch):
    photo = files(write_leaf(tmp_path / "new.png", LEAF_COLOURS["rust"], 700))
    monkeypatch.setattr(Backoff, "check", lambda *_: None)
    words = [header["Authorization"] for name, header in headers.items() if name not in ("none", "malformed")]
    secrets = {word.split("_", 2)[2] for word in words}
    assert len(secrets) == 5
    caplog.set_level(logging.DEBUG)
    texts = []
    with serving(filled, Settings(rate_per_minute=0)) as client:
        for (method, _), (_, path) in ROUTES.items():
            for header in headers.values():
                body = {"files": photo} if method in ("POST", "PUT") else {}
                response = client.request(method, path, headers=header, **body)
                texts.append(response.text + repr(dict(response.headers)))
        monkeypatch.setattr(filled, "classes", lambda: 1 / 0)
        texts.append(client.get("/v1/classes", headers=headers["write"]).text)
    assert "ZeroDivisionError" in caplog.text
    out, err = capfd.readouterr()
    for text in (*texts, caplog.text, out, err):
        for secret in secrets:
            assert secret not in text


def test_a_log_line_is_one_line_whatever_a_client_calls_things(filled, headers, caplog, monkeypatch):
    from fewshot.errors import IndexDamagedError

    def damaged(*_):
        raise IndexDamagedError("damaged\nWARNING forged: by a label")

    monkeypatch.setattr(filled, "describe", damaged)
    with serving(filled) as client:
        client.get("/v1/classes/a%0aERROR%20forged%1b[2J", headers=headers["read"])
    told = [record.getMessage() for record in caplog.records if record.name.startswith("fewshot")]
    assert told
    assert not any("\n" in message or "\x1b" in message for message in told), told
