"""`fewshot doctor`: the machine, and whether the index is sound."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from cli_steps import lines, ok, run
from conftest import colour_embedder

from fewshot.errors import IndexLockedError
from fewshot.store import FILE_NAME

INDEX = Path("indexes") / "default"


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    monkeypatch.setattr("fewshot.gallery.pinning.open_embedder", lambda *_, **__: colour_embedder())


@pytest.fixture
def enrolled(leaves):
    """The four classes, five photos each, in the default index."""
    ok("enroll", "--each", leaves(n=5))


def test_doctor_shows_the_machine_and_a_sound_index(enrolled):
    (facts,) = lines("doctor")
    assert facts["index"]["problems"] == []
    assert (facts["index"]["classes"], facts["index"]["supports"]) == (4, 20)
    assert facts["index"]["backbone"] == colour_embedder().fingerprint
    for name in ("engine", "precision", "cpu", "cpu_features", "gpu", "python", "versions", "weights", "cache"):
        assert name in facts
    assert facts["index"]["whitened"] is False
    assert facts["index"]["quality"] == "fast"
    out = ok("doctor")
    assert "plain L2" in out
    assert "index health" in out
    assert "sound" in out


def test_doctor_without_an_index_is_no_failure():
    (facts,) = lines("doctor")
    assert facts["index"] is None
    assert "none at indexes/default yet" in ok("doctor")


def test_doctor_names_damage_and_fails(enrolled):
    with closing(sqlite3.connect(INDEX / FILE_NAME)) as connection, connection:
        connection.execute("UPDATE embeddings SET vector = zeroblob(length(vector)) WHERE support_id = 2")
    result = run("doctor")
    assert result.exit_code == 1
    assert "problem: the vector of support 2 does not fit its checksum" in result.stdout
    result = run("doctor", "--json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)["index"]["problems"]) == 1


def test_doctor_shows_the_machine_beside_an_error_that_is_no_damage(enrolled, monkeypatch):
    monkeypatch.setattr("fewshot.cli.system.index_facts", raising(IndexLockedError("index 'default' is in use.")))
    result = run("doctor")
    assert result.exit_code == IndexLockedError.exit_code
    assert "index 'default' is in use." in result.stderr
    assert "cannot be used now" in result.stdout
    assert "versions" in result.stdout
    assert list(json.loads(run("doctor", "--json").stdout)) == ["error"]


def raising(error):
    def raises(*_):
        raise error

    return raises


def test_doctor_shows_the_machine_even_where_the_index_cannot_be_opened(enrolled):
    path = INDEX / FILE_NAME
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    result = run("doctor", "--json")
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    assert facts["engine"]
    assert "is damaged" in facts["index"]["problems"][0]
