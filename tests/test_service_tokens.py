"""Tokens: hashed, scoped, revoked at once; and the command that makes them."""

import json
import stat

import pytest
from click.testing import CliRunner
from conftest import LEAF_COLOURS, write_leaf
from service_client import ELSEWHERE, error_of, files, serving, token

from fewshot.cli import main
from fewshot.datasets import class_folders
from fewshot.errors import TokenError, UnauthorizedError
from fewshot.service.settings import Settings
from fewshot.service.tokens import FILE_NAME, TokenFile


@pytest.fixture
def filled(gallery, leaves):
    list(gallery.enroll(class_folders(leaves(n=3))))
    return gallery


@pytest.fixture
def tokens(gallery):
    return TokenFile(gallery.folder)


def test_a_token_is_known_by_its_word_and_by_no_other(tokens):
    made, word = tokens.create("phone", ("write",))
    assert tokens.check(word) == made
    for wrong in (
        "",
        "x",
        word[:-1],
        word + "x",
        word.replace("fewshot_", ""),
        word[:-1] + ("A" if word[-1] != "A" else "B"),
    ):
        with pytest.raises(UnauthorizedError):
            tokens.check(wrong)


def test_the_file_holds_no_secret_and_only_its_owner_may_read_it(tokens, gallery):
    _, word = tokens.create("phone", ("write",))
    path = gallery.folder / FILE_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert word.split("_", 2)[2] not in path.read_text()
    assert [entry.name for entry in gallery.folder.iterdir() if entry.name.startswith(".")] == []


def test_two_tokens_of_one_secret_would_not_look_alike(tokens):
    first, _ = tokens.create("a", ("read",))
    second, _ = tokens.create("b", ("read",))
    assert first.salt != second.salt
    assert first.digest != second.digest


def test_a_wrong_secret_is_compared_in_constant_time_as_is_a_wrong_id(tokens, monkeypatch):
    import hmac

    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or real(a, b))
    _, word = tokens.create("phone", ("write",))
    for wrong in (word[:-1] + "_", "fewshot_00000000_" + word.split("_", 2)[2], "rubbish"):
        with pytest.raises(UnauthorizedError):
            tokens.check(wrong)
    assert compared == [(64, 64)] * 3


def test_write_includes_read_and_read_does_not_include_write(tokens):
    assert tokens.create("w", ("write",))[0].may("read")
    assert not tokens.create("r", ("read",))[0].may("write")


def test_a_name_is_taken_once_and_free_again_when_revoked(tokens):
    made, word = tokens.create("phone", ("read",))
    with pytest.raises(TokenError, match="already"):
        tokens.create("phone", ("read",))
    assert tokens.revoke(made.token_id) == made
    with pytest.raises(UnauthorizedError):
        tokens.check(word)
    tokens.create("phone", ("read",))
    tokens.create("other", ("read",))
    assert tokens.revoke("other").name == "other"
    with pytest.raises(TokenError, match="no token 'fone'"):
        tokens.revoke("fone")


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 101])
def test_a_name_that_cannot_be_shown_is_refused(tokens, name):
    with pytest.raises(TokenError, match="cannot be a token's name"):
        tokens.create(name, ("read",))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"tokens": [{"name": 1}]}', '{"tokens": [7]}'])
def test_a_damaged_file_lets_nobody_in_and_says_so(tokens, gallery, content):
    _, word = tokens.create("phone", ("write",))
    (gallery.folder / FILE_NAME).write_text(content)
    with pytest.raises(TokenError, match="cannot be read"):
        TokenFile(gallery.folder).check(word)


def test_what_another_process_revokes_is_refused_at_once(filled):
    header = token(filled)
    with serving(filled) as client:
        assert client.get("/v1/session", headers=header).json()["scopes"] == ["read", "write"]
        TokenFile(filled.folder).revoke("tester")
        error_of(client.get("/v1/session", headers=header), 401, "unauthorized")


# ---- what a token lets a client do


def routes(tmp_path):
    photo = write_leaf(tmp_path / "new.png", LEAF_COLOURS["rust"], 700)
    return [
        ("put", "/v1/classes/rust", {"files": files(photo)}),
        ("patch", "/v1/classes/rust", {"json": {"label": "rusty"}}),
        ("delete", "/v1/classes/rust", {}),
        ("post", "/v1/classes/rust/supports", {"files": files(photo)}),
        ("delete", "/v1/supports/1", {}),
    ]


def test_every_route_that_changes_the_index_wants_a_write_token(filled, tmp_path):
    """Found from the routes themselves, so that a new one cannot be forgotten."""
    read = token(filled, "read")
    before = filled.about().generation
    with serving(filled) as client:
        paths = client.get("/v1/openapi.json").json()["paths"]
        changing = {
            (method, path)
            for path, methods in paths.items()
            for method in methods
            if method != "get" and path != "/v1/query"
        }
        tried = set()
        for method, path, options in routes(tmp_path):
            missing = error_of(client.request(method, path, **options), 401, "unauthorized")
            assert "token" in missing["message"]
            wrong = {"Authorization": "Bearer fewshot_00000000_" + "x" * 43}
            response = client.request(method, path, headers=wrong, **options)
            error_of(response, 401, "unauthorized")
            assert response.headers["www-authenticate"].startswith("Bearer")
            error = error_of(client.request(method, path, headers=read, **options), 403, "forbidden")
            assert "--scope write" in error["hint"]
            tried.add((method, path.replace("/rust", "/{label}").replace("/1", "/{support_id}")))
    assert tried == changing
    assert filled.about().generation == before


def test_reading_is_open_unless_the_service_says_otherwise(filled, tmp_path):
    photo = files(write_leaf(tmp_path / "new.png", LEAF_COLOURS["rust"], 700))
    asked = [("get", "/v1/classes"), ("get", "/v1/classes/rust"), ("get", "/v1/supports/1"), ("get", "/metrics")]
    asked += [("get", "/v1/supports/1/thumbnail"), ("get", "/v1/projection"), ("post", "/v1/query")]
    read = token(filled, "read")
    with serving(filled) as client:
        for method, path in asked:
            options = {"files": photo} if method == "post" else {}
            assert client.request(method, path, **options).status_code == 200, path
    with serving(filled, Settings(require_read_token=True)) as client:
        for method, path in asked:
            options = {"files": photo} if method == "post" else {}
            error_of(client.request(method, path, **options), 401, "unauthorized")
            assert client.request(method, path, headers=read, **options).status_code == 200, path
        for path in ("/v1/health", "/v1/session", "/", "/static/main.js"):  # what a stranger may see: no data
            assert client.get(path).status_code == 200


def test_a_token_is_asked_for_before_the_photos_are_read(filled):
    """A stranger's photos are not even parsed: the body is no multipart, and that is not what is complained of."""
    with serving(filled) as client:
        error_of(client.post("/v1/classes/rust/supports", content=b"x" * 100), 401, "unauthorized")


def test_each_token_has_its_own_rate(filled):
    first, second = token(filled, "read", "one"), token(filled, "read", "two")
    with serving(filled, Settings(rate_per_minute=60)) as client:
        answers = [client.get("/v1/classes", headers=first) for _ in range(12)]
        assert [answer.status_code for answer in answers].count(200) == 10
        refused = answers[-1]
        error_of(refused, 429, "too_many_requests")
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/v1/classes", headers=second).status_code == 200
        assert client.get("/v1/classes").status_code == 200  # from this machine, without a token


def test_a_stranger_s_address_has_a_rate_and_tokens_cannot_be_tried_by_the_million(filled):
    with serving(filled, Settings(rate_per_minute=60), client=ELSEWHERE) as client:
        codes = [client.get("/v1/classes").status_code for _ in range(12)]
    assert codes.count(200) == 10
    assert codes[-1] == 429
    wrong = {"Authorization": "Bearer fewshot_00000000_" + "x" * 43}
    with serving(filled, Settings(rate_per_minute=60)) as client:
        codes = [client.get("/v1/classes", headers=wrong).status_code for _ in range(12)]
    assert codes.count(401) == 10
    assert codes[-1] == 429


# ---- the command


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_command_creates_lists_and_revokes(filled):
    index = ["--index", filled.folder]
    made = run("token", "create", "phone", "--scope", "read", *index)
    assert made.exit_code == 0
    assert TokenFile(filled.folder).check(made.stdout.strip()).scopes == ("read",)
    assert "shown once" in made.stderr
    listed = run("token", "list", *index)
    assert "phone" in listed.stdout
    assert made.stdout.strip() not in listed.stdout
    (row,) = [json.loads(line) for line in run("token", "list", "--json", *index).stdout.splitlines()]
    assert set(row) == {"id", "name", "scopes", "created_at"}
    assert run("token", "revoke", "phone", *index).stdout == "phone: revoked\n"
    assert run("token", "list", "--json", *index).stdout == ""
    word = json.loads(run("token", "create", "app", "--json", *index).stdout)["token"]
    assert TokenFile(filled.folder).check(word).may("write")
    assert json.loads(run("token", "revoke", "app", "--json", *index).stdout)["revoked"] is True


@pytest.mark.parametrize("words", [["create"], ["revoke"], ["list", "phone"], ["make", "phone"]])
def test_a_command_that_contradicts_itself_is_misuse(filled, words):
    assert run("token", *words, "--index", filled.folder).exit_code == 2


def test_tokens_belong_to_an_index_that_there_is(tmp_path):
    done = run("token", "create", "phone", "--index", tmp_path / "none")
    assert done.exit_code == 2
    assert "no index" in done.stderr
