"""Several services over one index in a database: what one enrolls all answer, and what the database's absence does."""

import threading

import pytest
from conftest import LEAF_COLOURS, colour_embedder, eventually, write_leaf
from service_client import error_of, files, serving

from fewshot.datasets import class_folders
from fewshot.errors import DatabaseUnreachableError, TokenError, UnauthorizedError
from fewshot.gallery import Gallery
from fewshot.service.shared_tokens import FRESH_S, TokenTable, tokens_of
from fewshot.service.tokens import TokenFile


@pytest.fixture
def place(postgres):
    return postgres.new_place()


@pytest.fixture
def filled(place, leaves):
    with Gallery(place, create=True, embedder=colour_embedder()) as gallery:
        list(gallery.enroll(class_folders(leaves(n=3))))
        yield gallery


@pytest.fixture
def other(filled, place):
    with Gallery(place, embedder=colour_embedder()) as gallery:
        yield gallery


def header(gallery, name="tester", scope="write"):
    _, word = tokens_of(gallery).create(name, (scope,))
    return {"Authorization": f"Bearer {word}"}


def test_what_one_service_enrolls_the_next_question_to_another_finds(filled, other, tmp_path):
    photo = write_leaf(tmp_path / "violet.png", (150, 40, 160), 1)
    with serving(filled) as first, serving(other) as second:
        assert second.post("/v1/query", files=files(photo)).json()["predictions"][0]["answer"] != "violet"
        word = header(filled)
        enrolled = first.post("/v1/classes/violet/supports", files=files(photo), headers=word)
        assert enrolled.status_code == 201, enrolled.text
        near = second.post("/v1/query", files=files(photo)).json()["predictions"][0]["nearest"][0]
        assert [near["support_id"]] == enrolled.json()["support_ids"]
        again = second.post("/v1/classes/violet/supports", files=files(photo), headers=word)
        assert (again.status_code, again.json()["enrolled"]) == (200, 0), "a retry adds nothing"


def test_services_give_equal_answers(filled, other, tmp_path):
    photos = [write_leaf(tmp_path / f"{label}.png", colour, 800) for label, colour in LEAF_COLOURS.items()]
    with serving(filled) as first, serving(other) as second:
        assert [client.post("/v1/query", files=files(*photos)).json() for client in (first, second)] == [
            first.post("/v1/query", files=files(*photos)).json()
        ] * 2


def test_a_service_brings_its_copies_up_to_a_change_made_elsewhere_without_being_asked(filled, other, tmp_path):
    photo = write_leaf(tmp_path / "violet.png", (150, 40, 160), 1)
    with serving(other):
        list(filled.enroll([class_folders(tmp_path / "photos")[0]]))
        filled.remove("rust")
        wanted = filled.about().generation
        eventually(lambda: other._calibrations._kept.newest == wanted)
        assert all(copy._generation == wanted for copy in other._neighbours._copies.values())
    assert photo.exists()


def test_tokens_are_those_of_the_index_wherever_they_were_made(filled, other):
    made, word = tokens_of(filled).create("phone", ("read",))
    assert tokens_of(other).check(word) == made
    assert [token.name for token in tokens_of(other).all()] == ["phone"]
    with pytest.raises(TokenError, match="'phone' already"):
        tokens_of(other).create("phone", ("write",))
    tokens_of(other).revoke("phone")
    with pytest.raises(UnauthorizedError):
        tokens_of(filled).check(word)


def test_two_machines_that_make_tokens_at_once_keep_both(filled, other):
    """Each has seen the tokens as they were before the other's."""
    first, second = TokenTable(filled, followed=True), TokenTable(other, followed=True)
    first.create("left", ("read",))
    second.create("right", ("read",))
    assert {token.name for token in tokens_of(filled).all()} == {"left", "right"}
    with pytest.raises(TokenError, match="already"):
        TokenTable(other, followed=True)._write([*second.all(), *_renamed(second, "left")])


def _renamed(tokens, name):
    from dataclasses import replace

    return [replace(tokens.all()[0], token_id="ffffffff", name=name)]


def test_the_table_holds_no_secret(filled):
    _, word = tokens_of(filled).create("phone", ("write",))
    secret = word.rsplit("_", 1)[1]
    assert secret not in str(filled.kept_tokens())
    assert filled.kept_tokens()[0]["name"] == "phone"


def test_a_revoked_token_is_refused_by_a_running_service(filled, other):
    word = header(filled, "phone")
    with serving(other) as client:
        assert client.get("/v1/session", headers=word).json()["token"] == "phone"
        tokens_of(filled).revoke("phone")
        eventually(lambda: client.get("/v1/session", headers=word).status_code == 401)


@pytest.mark.parametrize("facts", [{"kind": "argon2"}, {"scopes": None}, {"of a later version": 1}, ["no", "facts"]])
def test_a_row_that_is_no_token_lets_nobody_in_and_keeps_no_revoked_one_alive(filled, other, caplog, facts):
    word = header(filled, "phone")
    with serving(other) as client:
        assert client.get("/v1/session", headers=word).json()["token"] == "phone"
        odd = {**filled.kept_tokens()[0], "token_id": "0" * 8, "name": "odd", **facts} if type(facts) is dict else facts
        with filled._store.write() as writer:
            writer.keep_token("0" * 8, "odd", odd)
        later = header(filled, "later")
        assert client.get("/v1/session", headers=later).json()["token"] == "later"
        tokens_of(filled).revoke("phone")
        eventually(lambda: client.get("/v1/session", headers=word).status_code == 401)
        assert client.get("/v1/session", headers=later).status_code == 200
        service = client.app.state.access._tokens
    assert [each.name for each in service.all()] == ["later"]
    told = [record for record in caplog.records if "cannot be read" in record.message]
    assert sum("it lets nobody in" in record.message for record in told) == len(told) > 0
    caplog.clear()
    service.look()
    assert not caplog.records, "it is told once"


def test_what_follows_an_index_survives_whatever_goes_wrong(filled, monkeypatch, caplog):
    stop, looks, listens = threading.Event(), [], []
    changes = filled._store.changes

    def breaking(*words):
        listens.append(words)
        if len(listens) < 3:
            raise RuntimeError("nobody listens")
        return changes(*words)

    def look():
        looks.append(1)
        if len(looks) < 3:
            raise ZeroDivisionError

    monkeypatch.setattr(filled._store, "changes", breaking)
    thread = threading.Thread(target=filled.follow, args=(stop,), kwargs={"poll_s": 0.01, "on_look": look})
    thread.start()
    try:
        eventually(lambda: len(looks) > 3)
        assert thread.is_alive()
    finally:
        stop.set()
        thread.join(20)
    told = [record.message for record in caplog.records if record.name == "fewshot.gallery.keeping_up"]
    assert told == [
        "listening to the index: RuntimeError('nobody listens')",
        "following the index: ZeroDivisionError()",
    ]


def test_while_nobody_looks_a_token_is_known_only_after_another_look(filled, other, monkeypatch):
    now = [0.0]
    made, word = tokens_of(filled).create("phone", ("read",))
    tokens = TokenTable(other, followed=True, clock=lambda: now[0])
    assert tokens.check(word) == made
    assert tokens.known(word) == made
    now[0] += FRESH_S + 1
    assert tokens.known(word) is None
    assert tokens.check(word) == made
    assert tokens.known(word) == made
    now[0] += FRESH_S + 1
    monkeypatch.setattr(other, "kept_tokens", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tokens.check(word)
    assert tokens.known(word) is None

    def away():
        raise DatabaseUnreachableError("it is away.")

    monkeypatch.setattr(other, "kept_tokens", away)
    assert tokens.check(word) == made, "while the database is away, the tokens last seen hold"
    assert tokens.known(word) == made
    monkeypatch.undo()
    tokens_of(filled).revoke("phone")
    now[0] += FRESH_S + 1
    with pytest.raises(UnauthorizedError):
        tokens.check(word)


def test_an_index_in_a_folder_keeps_its_token_file(tmp_path):
    with Gallery(tmp_path / "index", create=True, embedder=colour_embedder()) as gallery:
        assert type(tokens_of(gallery)) is TokenFile


def test_without_its_database_a_service_says_503_stays_alive_and_comes_back_by_itself(postgres, leaves, tmp_path):
    server = type(postgres)()
    photo = write_leaf(tmp_path / "ask.png", LEAF_COLOURS["rust"], 800)
    try:
        with Gallery(server.new_place(), create=True, embedder=colour_embedder()) as gallery:
            list(gallery.enroll(class_folders(leaves(n=3))))
            word = header(gallery)
            with serving(gallery) as client:
                before = client.post("/v1/query", files=files(photo)).json()
                health = client.get("/v1/health").json()
                assert health["ready"]
                server.kill()
                for request in (
                    lambda: client.post("/v1/query", files=files(photo)),
                    lambda: client.post("/v1/classes/rust/supports", files=files(photo), headers=word),
                    lambda: client.get("/v1/classes"),
                ):
                    response = request()
                    error_of(response, 503, "database_unreachable")
                    assert int(response.headers["Retry-After"]) >= 1
                assert client.get("/v1/health").json() == {**health, "ready": False}
                assert "database" in error_of(client.get("/v1/health/ready"), 503, "busy")["message"]
                server.start()
                assert client.post("/v1/query", files=files(photo)).json() == before
                assert client.get("/v1/health").json()["ready"]
                assert client.post("/v1/classes/rust/supports", files=files(photo), headers=word).status_code == 201
    finally:
        server.stop()
