"""Tokens: hashed, scoped, revoked at once; and the command that makes them."""

import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner
from conftest import LEAF_COLOURS, write_leaf
from service_client import ELSEWHERE, error_of, files, serving, stop_the_clock, token

from fewshot.cli import main
from fewshot.datasets import class_folders
from fewshot.errors import TokenError, UnauthorizedError
from fewshot.service.settings import Settings
from fewshot.service.tokens import TokenFile
from fewshot.store.schema import TOKENS_FILE


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
    path = gallery.folder / TOKENS_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert word.split("_", 2)[2] not in path.read_text()
    assert [entry.name for entry in gallery.folder.iterdir() if entry.name.startswith(".")] == []


def test_what_a_killed_change_of_the_tokens_left_goes_with_the_next_one(tokens, gallery):
    left = gallery.folder / f".{TOKENS_FILE}.71.0a1b2c3d"
    left.write_text('{"tok')
    os.utime(left, (0, 0))
    tokens.create("phone", ("write",))
    assert not left.exists()


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
    wrong = word[:-1] + ("A" if word[-1] != "A" else "B")
    for each in (wrong, "fewshot_00000000_" + word.split("_", 2)[2], "rubbish"):
        with pytest.raises(UnauthorizedError):
            tokens.check(each)
    assert compared == [(64, 64)] * 2  # what has not even a token's shape is compared with nothing


def test_secrets_are_kept_as_scrypt_hashes_and_hashed_once(tokens, gallery, monkeypatch):
    made, word = tokens.create("phone", ("write",))
    (row,) = json.loads((gallery.folder / TOKENS_FILE).read_text())["tokens"]
    assert row["kind"] == "scrypt"
    secret = word.split("_", 2)[2]
    assert (
        row["digest"] == hashlib.scrypt(secret.encode(), salt=row["salt"].encode(), n=16384, r=8, p=1, dklen=32).hex()
    )
    hashed = []
    real = hashlib.scrypt
    monkeypatch.setattr(hashlib, "scrypt", lambda *words, **more: hashed.append(1) or real(*words, **more))
    assert tokens.known(word) is None
    for _ in range(5):
        assert tokens.check(word) == made
    assert len(hashed) == 1
    assert tokens.known(word) == made
    assert tokens.known(word + "x") is None
    # The words that are remembered are not: a look into memory finds keyed hashes.
    assert secret not in repr(vars(tokens))
    tokens.create("other", ("read",))
    assert tokens.known(word) is None  # the file has changed: it is proved anew
    assert tokens.check(word) == made


def test_a_file_of_before_keeps_working_and_is_migrated_at_first_use(gallery):
    secret, salt = "s" * 43, "0" * 32
    digest = hashlib.sha256(f"{salt}:{secret}".encode()).hexdigest()
    old = {"token_id": "0123abcd", "name": "old", "scopes": ["read"], "created_at": "2026-01-01T00:00:00+00:00"}
    other = {**old, "token_id": "0123abce", "name": "older"}
    rows = [{**each, "salt": salt, "digest": digest} for each in (old, other)]
    (gallery.folder / TOKENS_FILE).write_text(json.dumps({"tokens": rows}))
    tokens = TokenFile(gallery.folder)
    with pytest.raises(UnauthorizedError):
        tokens.check("fewshot_0123abcd_" + "t" * 43)
    assert tokens.check(f"fewshot_0123abcd_{secret}").name == "old"
    kept = {row["name"]: row for row in json.loads((gallery.folder / TOKENS_FILE).read_text())["tokens"]}
    assert [kept["old"]["kind"], kept["older"]["kind"]] == ["scrypt", "sha256"]
    assert kept["old"]["digest"] != digest
    assert {key: kept["old"][key] for key in old} == old
    assert TokenFile(gallery.folder).check(f"fewshot_0123abcd_{secret}").may("read")
    with pytest.raises(UnauthorizedError):
        tokens.check("fewshot_0123abcd_" + "t" * 43)


def test_a_file_of_before_that_cannot_be_written_keeps_working(gallery, monkeypatch, caplog):
    secret, salt = "s" * 43, "0" * 32
    digest = hashlib.sha256(f"{salt}:{secret}".encode()).hexdigest()
    row = {"token_id": "0123abcd", "name": "old", "scopes": ["read"], "created_at": "", "salt": salt, "digest": digest}
    (gallery.folder / TOKENS_FILE).write_text(json.dumps({"tokens": [row]}))
    tokens = TokenFile(gallery.folder)

    def refuse(_tokens):
        raise tokens._unwritable(OSError(30, "Read-only file system"))

    monkeypatch.setattr(tokens, "_write", refuse)
    assert tokens.check(f"fewshot_0123abcd_{secret}").name == "old"
    assert "keeps its older hash" in caplog.text
    assert secret not in caplog.text


def test_an_unknown_hash_lets_nobody_in(tokens, gallery):
    _, word = tokens.create("phone", ("write",))
    path = gallery.folder / TOKENS_FILE
    path.write_text(path.read_text().replace('"scrypt"', '"plain"'))
    with pytest.raises(TokenError, match="'plain' is no hash"):
        tokens.check(word)


def test_of_changes_at_once_none_undoes_the_other(gallery):
    def change(number):
        mine = TokenFile(gallery.folder)
        mine.create(f"kept-{number}", ("read",))
        mine.create(f"gone-{number}", ("read",))
        mine.revoke(f"gone-{number}")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(change, range(8)))
    assert {token.name for token in TokenFile(gallery.folder).all()} == {f"kept-{number}" for number in range(8)}


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
    (gallery.folder / TOKENS_FILE).write_text(content)
    with pytest.raises(TokenError, match="cannot be read"):
        TokenFile(gallery.folder).check(word)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_file_that_is_damaged_while_it_is_served_is_told_to_the_log_alone(filled, caplog, is_known):
    header = token(filled)
    with serving(filled) as client:
        if is_known:
            assert client.get("/v1/classes", headers=header).status_code == 200
        (filled.folder / TOKENS_FILE).write_text('{"tokens": [7]}')
        response = client.get("/v1/classes", headers=header)
        error_of(response, 500, "unforeseen")
        assert str(filled.folder) not in response.text
        assert TOKENS_FILE not in response.text
        assert client.get("/v1/classes").status_code == 200  # who needs no token is answered
        (filled.folder / TOKENS_FILE).unlink()
        error_of(client.get("/v1/classes", headers=header), 401, "unauthorized")
    (told,) = [record for record in caplog.records if TOKENS_FILE in record.getMessage()]
    assert response.headers["X-Request-Id"] in told.getMessage()
    assert "Restore the file from a copy" in told.getMessage()
    assert told.levelname == "ERROR"


def test_what_another_process_revokes_is_refused_at_once(filled):
    header = token(filled)
    with serving(filled) as client:
        assert client.get("/v1/session", headers=header).json()["scopes"] == ["read", "write"]
        TokenFile(filled.folder).revoke("tester")
        error_of(client.get("/v1/session", headers=header), 401, "unauthorized")


# ---- what a token lets a client do: every route in test_service_access.py


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


def test_each_token_has_its_own_rate(filled, monkeypatch):
    stop_the_clock(monkeypatch)
    first, second = token(filled, "read", "one"), token(filled, "read", "two")
    with serving(filled, Settings(rate_per_minute=60)) as client:
        answers = [client.get("/v1/classes", headers=first) for _ in range(12)]
        assert [answer.status_code for answer in answers].count(200) == 10
        refused = answers[-1]
        error_of(refused, 429, "too_many_requests")
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/v1/classes", headers=second).status_code == 200
        assert client.get("/v1/classes").status_code == 200  # from this machine, without a token


def test_a_stranger_s_address_has_a_rate(filled, monkeypatch):
    stop_the_clock(monkeypatch)
    with serving(filled, Settings(rate_per_minute=1), client=ELSEWHERE) as client:
        codes = [client.get("/v1/classes").status_code for _ in range(12)]
    assert codes.count(200) == 10
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
