"""`fewshot backup` and `restore` as typed: what is said, in words and as JSON, and the exit codes."""

import json
import os

import pytest
from cli_steps import run

from fewshot.datasets import class_folders


def json_of(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def index(gallery, leaves):
    list(gallery.enroll(class_folders(leaves(n=2, labels=["rust", "blight"]))))
    return gallery


def test_a_backup_says_where_it_is_and_what_it_holds(index, tmp_path):
    told = run("backup", tmp_path / "kept", "--index", index.folder)
    (path,) = (tmp_path / "kept").iterdir()
    assert told.exit_code == 0, told.output
    assert told.stdout.startswith(f"{path}: 2 classes, 4 photos, to change 2 of ")
    assert told.stdout.rstrip().endswith("verified")
    (row,) = json_of(run("backup", tmp_path / "one.backup", "--index", index.folder, "--json"))
    assert (row["classes"], row["supports"], row["event"], row["verified"]) == (2, 4, 2, True)


def test_the_points_are_listed_and_a_damaged_one_is_told(index, tmp_path):
    run("backup", tmp_path / "kept", "--index", index.folder)
    index.remove("rust")
    run("backup", tmp_path / "kept", "--index", index.folder)
    (tmp_path / "kept" / "cut.backup").write_bytes(b"cut")
    (tmp_path / "none").mkdir()
    assert run("restore", tmp_path / "none", "--list").stdout.endswith("none holds no backup that can be restored\n")
    told = run("restore", tmp_path / "kept", "--list", "--json")
    assert [(row["event"], row["supports"]) for row in json_of(told)] == [(2, 4), (3, 2)]
    assert "damaged:" in told.stderr
    table = run("restore", tmp_path / "kept", "--list").stdout.splitlines()
    assert table[0].split() == ["change", "of", "classes", "photos", "backup"]
    assert len(table) == 3


def test_an_index_whose_folder_is_named_in_other_bytes_than_utf8_can_be_taken_back(index, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9 100%?")
    index.copy_to(folder)
    run("backup", tmp_path / "kept", "--index", folder)
    run("remove", "rust", "--index", folder)
    told = run("restore", tmp_path / "kept", "--index", folder, "--replace")
    assert told.exit_code == 0, told.output
    assert [row["label"] for row in json_of(run("classes", "--index", folder, "--json"))] == ["blight", "rust"]


def test_a_restore_says_what_was_undone_and_what_is_kept(index, tmp_path):
    run("backup", tmp_path / "kept", "--index", index.folder)
    index.remove("rust")
    refused = run("restore", tmp_path / "kept", "--index", index.folder)
    assert refused.exit_code == 2
    assert "--replace" in refused.stderr
    told = run("restore", tmp_path / "kept", "--index", index.folder, "--replace", "--at", "2")
    assert told.exit_code == 0, told.output
    assert "remove rust" in told.stdout
    assert "before-restore" in told.stdout
    assert {row.label for row in index.classes()} == {"rust", "blight"}
    (row,) = json_of(run("restore", tmp_path / "kept", "--index", tmp_path / "new", "--json"))
    assert (row["kept"], row["undone"], row["backup"]["event"]) == (None, [], 2)


def test_what_cannot_be_restored_has_the_errors_of_every_command(index, tmp_path):
    run("backup", tmp_path / "one.backup", "--index", index.folder)
    (tmp_path / "bad.backup").write_bytes((tmp_path / "one.backup").read_bytes()[:-9])
    for words, code, exit_code in (
        ([tmp_path / "nowhere"], "backup_missing", 2),
        ([tmp_path / "bad.backup"], "backup_damaged", 1),
        ([tmp_path / "one.backup", "--at", "soon"], "usage", 2),
    ):
        told = run("restore", *words, "--index", tmp_path / "new", "--json")
        assert (told.exit_code, json_of(told)[0]["error"]["code"]) == (exit_code, code)
    assert not (tmp_path / "new").exists()
