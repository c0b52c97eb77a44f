"""`fewshot copy` and `search-index`, and every other command with a database where an index's name goes."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import LEAF_COLOURS, ColourEngine, colour_embedder, write_leaf

from fewshot.cli import main
from fewshot.datasets import class_folders
from fewshot.embedder import Embedder
from fewshot.gallery import Gallery

SECRET = "s3cret-w0rd"


@pytest.fixture
def plants(tmp_path, leaves, monkeypatch):
    """The folder of an index with four classes."""
    monkeypatch.setattr("fewshot.gallery.pinning.open_embedder", lambda *_, **__: colour_embedder())
    with Gallery(tmp_path / "plants", create=True, embedder=colour_embedder()) as gallery:
        list(gallery.enroll(class_folders(leaves(n=4))))
    return str(tmp_path / "plants")


@pytest.fixture
def database(postgres):
    return postgres.new_place()


def run(*words, index=None, exit_code=0):
    options = ["--index", index] if index else []
    result = CliRunner().invoke(main, [*map(str, words), *options, "--json"])
    assert result.exit_code == exit_code, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_an_index_goes_into_a_database_and_back_with_every_answer(plants, database, tmp_path):
    photos = [write_leaf(tmp_path / "ask" / f"{label}.png", colour, 700) for label, colour in LEAF_COLOURS.items()]
    (there,) = run("copy", plants, database)
    (back,) = run("copy", database, tmp_path / "back")
    assert there["checksums"] == back["checksums"]
    assert there["rows"] == back["rows"] > 40
    places = (plants, database, str(tmp_path / "back"))
    for words in (["classes"], ["inspect"], ["query", *photos], ["query", *photos, "--within", "r*"]):
        first, *others = [run(*words, index=place) for place in places]
        assert others == [first, first], words


def test_an_index_in_a_folder_whose_name_is_no_utf_8_goes_into_a_database(leaves, database, tmp_path, monkeypatch):
    monkeypatch.setattr("fewshot.gallery.pinning.open_embedder", lambda *_, **__: colour_embedder())
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    with Gallery(folder, create=True, embedder=colour_embedder()) as gallery:
        list(gallery.enroll(class_folders(leaves(n=3))))
    run("copy", folder, database)
    assert [each["label"] for each in run("classes", index=database)] == sorted(LEAF_COLOURS)


def test_commands_take_a_database_where_an_index_s_name_goes(database, leaves, monkeypatch):
    monkeypatch.setattr("fewshot.gallery.pinning.open_embedder", lambda *_, **__: colour_embedder())
    folder = leaves(n=3)
    (doctor,) = run("doctor", index=database)
    assert doctor["index"] is None, "none yet is no fault"
    assert {row["enrolled"] for row in run("enroll", "--each", folder, index=database)} == {3}
    run("rename", "rust", "leaf rust", index=database)
    run("remove", "healthy", index=database)
    assert [row["label"] for row in run("classes", index=database)] == ["blight", "leaf rust", "mildew"]
    (doctor,) = run("doctor", index=database)
    assert doctor["index"]["problems"] == []
    assert doctor["index"]["classes"] == 3
    (reindexed,) = run("reindex", index=database)
    assert reindexed["photos"] == 9
    (made,) = run("token", "create", "phone", index=database)
    assert made["token"].startswith("fewshot_")
    assert [row["name"] for row in run("token", "list", index=database)] == ["phone"]
    run("token", "revoke", "phone", index=database)
    assert run("token", "list", index=database) == []


def test_a_database_s_search_index_is_measured_and_answers_the_same(plants, database, tmp_path, monkeypatch):
    photo = write_leaf(tmp_path / "ask.png", LEAF_COLOURS["rust"], 700)
    run("copy", plants, database)
    in_memory = run("query", photo, "--nearest", "5", index=database)
    monkeypatch.setenv("FEWSHOT_SUPPORTS_IN_MEMORY", "3")
    scanned = run("query", photo, "--nearest", "5", index=database)
    (measured,) = run("search-index", "--recall", "0.95", "--asked", "16", index=database)
    assert measured["reached"]
    assert measured["measured"][-1]["recall"] >= 0.95
    indexed = run("query", photo, "--nearest", "5", index=database)
    within = run("query", photo, "--nearest", "9", "--within", "mildew", index=database)
    shown = CliRunner().invoke(main, ["search-index", "--drop", "--index", database])
    assert "exact scan" in shown.output
    assert run("search-index", "--drop", index=database) == [{"search_index": False}]
    for found in (scanned, indexed):
        assert [near["file"] for near in found[0]["nearest"]] == [near["file"] for near in in_memory[0]["nearest"]]
        assert found[0]["matches"] == in_memory[0]["matches"]
    assert [near["label"] for near in within[0]["nearest"]] == ["mildew"] * 4


class ShortEngine(ColourEngine):
    """The first half of the numbers."""

    def run(self, pixels):
        return super().run(pixels)[:, :24]


def short_embedder():
    whole = colour_embedder()
    backbone = replace(whole.backbone, name="short", dim=24)
    return Embedder(backbone, replace(whole.source, name="short"), "f32", lambda bulk: ShortEngine())


def test_reindexing_to_another_length_drops_the_search_index_and_says_that_it_is_to_be_built_again(
    plants, database, tmp_path, monkeypatch
):
    run("copy", plants, database)
    run("search-index", "--asked", "8", index=database)
    same = CliRunner().invoke(main, ["reindex", "--index", database])
    assert "search-index" not in same.output
    monkeypatch.setattr("fewshot.gallery.pinning.open_embedder", lambda *_, **__: short_embedder())
    shown = CliRunner().invoke(main, ["reindex", "--index", database])
    assert shown.exit_code == 0, shown.output
    assert "`fewshot search-index` builds it anew" in " ".join(shown.stderr.split())
    monkeypatch.setenv("FEWSHOT_SUPPORTS_IN_MEMORY", "3")
    photo = write_leaf(tmp_path / "ask.png", LEAF_COLOURS["rust"], 700)
    (answer,) = run("query", photo, "--nearest", "3", index=database)
    assert len(answer["nearest"]) == 3
    run("search-index", "--asked", "8", index=database)
    assert run("query", photo, "--nearest", "3", index=database)[0]["nearest"] == answer["nearest"]


def test_a_folder_has_no_search_index(plants):
    (said,) = run("search-index", index=plants, exit_code=2)
    assert "folder" in said["error"]["message"]


def test_a_number_that_is_none_is_refused(plants, monkeypatch):
    monkeypatch.setenv("FEWSHOT_SUPPORTS_IN_MEMORY", "many")
    (said,) = run("classes", index=plants, exit_code=2)
    assert "'many'" in said["error"]["message"]


def test_copying_onto_an_index_is_refused_and_tells_what_to_do(plants, tmp_path):
    run("copy", plants, tmp_path / "second")
    (said,) = run("copy", plants, tmp_path / "second", exit_code=1)
    assert said["error"]["code"] == "copy"
    shown = CliRunner().invoke(main, ["copy", plants, str(tmp_path / "third")])
    assert "rows copied and compared" in shown.output


@pytest.mark.parametrize("words", [["classes"], ["doctor"], ["copy", "plants"], ["watch", ".", "--routes", "x"]])
def test_no_command_shows_the_password_of_a_database_that_is_not_there(words, tmp_path):
    Path("x").write_text("routes: []\n")
    where = f"postgresql://ada:{SECRET}@127.0.0.1:1/plants?password={SECRET}"
    place = [where] if words[0] == "copy" else ["--index", where]
    if words[0] == "copy":
        place, words = [], ["copy", where, "plants"]
    for style in ([], ["--json"]):
        result = CliRunner().invoke(main, [*words, *place, *style])
        assert result.exit_code != 0
        assert SECRET not in result.output
        assert SECRET not in str(result.exception.__cause__ if result.exception else "")
