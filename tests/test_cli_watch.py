"""`fewshot watch`: words in; a table or JSON lines out; what is wrong on stderr, and an exit code."""

import json

import pytest
from click.testing import CliRunner
from conftest import LEAF_COLOURS, colour_embedder, write_leaf

from fewshot.cli import main
from fewshot.cli.watch import Table
from fewshot.datasets import class_folders
from fewshot.gallery import Gallery
from fewshot.watching.answers import Answer


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    """Every command embeds with the colour embedder."""
    monkeypatch.setattr("fewshot.gallery.pinning.open_embedder", lambda *_args, **_kwargs: colour_embedder())


@pytest.fixture
def inbox(tmp_path, leaves):
    """A folder with one new photo a class, an index that knows them, and routes."""
    with Gallery(tmp_path / "indexes" / "default", create=True, embedder=colour_embedder()) as gallery:
        list(gallery.enroll(class_folders(leaves(n=5))))
    for i, label in enumerate(LEAF_COLOURS):
        write_leaf(tmp_path / "inbox" / f"-33.8568_151.215{i}.png", LEAF_COLOURS[label], 900)
    (tmp_path / "farm.yaml").write_text(
        "routes:\n  rust: [Sprayer, Adviser]\n  healthy: []\n  mildew: [Sprayer]\n  blight: [Adviser]\n"
    )
    return tmp_path / "inbox"


def run(*words):
    return CliRunner().invoke(main, ["watch", *map(str, words)])


def once(*words):
    return run("inbox", "--routes", "farm.yaml", "--once", "--settle", 0.05, *words)


def fails(exit_code, *words):
    result = run(*words)
    assert result.exit_code == exit_code, (result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return result.stderr


def test_the_table_shows_what_where_and_who(inbox):
    result = once()
    assert result.exit_code == 0, result.stderr
    heading, *rows = result.stdout.splitlines()
    assert heading.split()[:5] == ["time", "photo", "answer", "sure", "where"]
    rust = next(row for row in rows if " rust " in row)
    assert "-33.85680 151.2151" in rust
    assert rust.endswith("Sprayer, Adviser")
    assert len(rows) == 4
    assert "4 answered, 0 could not be read" in result.stderr


def test_a_second_look_at_the_same_folder_says_what_the_first_dealt_with(inbox):
    assert "earlier run" not in once().stderr
    assert "0 answered, 0 could not be read; 4 were dealt with by an earlier run" in once().stderr
    for photo in sorted(inbox.iterdir())[1:]:
        photo.unlink()
    assert "0 answered, 0 could not be read; 1 was dealt with by an earlier run" in once().stderr
    write_leaf(next(inbox.iterdir()), LEAF_COLOURS["blight"], 901)  # another photo under its name
    assert once().stderr.splitlines()[-1] == "1 answered, 0 could not be read"


def test_a_strangers_file_name_moves_no_cursor(inbox):
    write_leaf(inbox / "a\x1b[2J\rb.png", LEAF_COLOURS["rust"], 950)
    assert "a<U+001B>[2J<U+000D>b.png" in once().stdout


@pytest.mark.parametrize(
    ("answer", "reason", "shown"),
    [("fire", "match", "fire"), ("fire", "ambiguous", "fire?"), ("unknown", "bad_image", "not readable")],
)
def test_the_table_marks_what_is_doubtful_or_could_not_be_read(capsys, answer, reason, shown):
    at = "2026-01-01T00:00:00+00:00"
    Table()([Answer("key", "a.jpg", at, answer, reason, "", None, (), None, None, None, "")])
    assert f"  {shown}  " in capsys.readouterr().out.splitlines()[1]


def test_json_is_one_answer_a_line_and_what_the_file_gets(inbox, tmp_path):
    result = once("--json", "--to", "answers.jsonl")
    shown = [json.loads(line) for line in result.stdout.splitlines()]
    assert list(shown[0]) == [
        *("key", "file", "at", "answer", "reason", "message", "probability", "units"),
        *("latitude", "longitude", "place_from", "note", "matches"),
    ]
    assert result.stdout == (tmp_path / "answers.jsonl").read_text()
    assert {each["answer"] for each in shown} == set(LEAF_COLOURS)


def test_a_second_run_has_nothing_to_answer(inbox):
    once()
    result = once()
    assert (result.exit_code, result.stdout) == (0, "")
    assert "0 answered" in result.stderr


def test_bad_photos_are_in_the_report_whose_place_is_told(inbox, tmp_path):
    (inbox / "words.jpg").write_text("no picture")
    result = once("--state", "here")
    assert result.exit_code == 0, result.stderr
    assert "words.jpg is not a picture" in result.stderr
    assert f"1 could not be read (listed in {tmp_path / 'here' / 'bad-photos.jsonl'})" in result.stderr
    assert once("--state", "there", "--report", "bad.csv").exit_code == 0
    assert "words.jpg" in (tmp_path / "bad.csv").read_text()


def test_answers_that_cannot_be_delivered_are_kept_and_the_exit_code_says_so(inbox, monkeypatch):
    monkeypatch.setattr("fewshot.watching.watcher.ONCE_WAIT_S", 0.2)
    result = once("--to", "http://127.0.0.1:9/answers")
    assert result.exit_code == 1
    assert "cannot be reached" in result.stderr
    assert "4 answers are still due to http://127.0.0.1:9/answers" in result.stderr
    assert "4 answers of an earlier run" in once("--to", "http://127.0.0.1:9/answers").stderr


def test_answers_to_a_target_that_is_not_given_wait_for_it_and_are_no_failure(inbox, monkeypatch):
    monkeypatch.setattr("fewshot.watching.watcher.ONCE_WAIT_S", 0.1)
    assert once("--to", "http://127.0.0.1:9/answers").exit_code == 1
    result = once("--to", "answers.jsonl")
    assert result.exit_code == 0, result.stderr
    assert "4 answers to http://127.0.0.1:9/answers are kept until it is given again" in result.stderr
    assert "still" not in result.stderr
    assert once("--to", "http://127.0.0.1:9/answers").exit_code == 1


def test_routes_and_classes_that_do_not_meet_are_warned_of_at_the_start(inbox, tmp_path):
    (tmp_path / "farm.yaml").write_text("routes:\n  rusty: [Sprayer]\n")
    result = once()
    assert "'rusty' has a route and is not enrolled. Did you mean 'rust'?" in result.stderr
    assert "no route for 'blight', 'healthy', 'mildew', 'rust'" in result.stderr
    assert result.stderr.count("no route") == 1, "told at the start, not again with each photo"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing", "--routes", "farm.yaml"], "there is no folder nothing"),
        (["farm.yaml", "--routes", "farm.yaml"], "is a file, not a folder"),
        (["inbox"], "Missing option '--routes'"),
        (["inbox", "--routes", "fram.yaml"], "Did you mean 'farm.yaml'?"),
        (["inbox", "--routes", "farm.yaml", "--to", "answers.txt"], "neither a file of answers nor a URL"),
        (["inbox", "--routes", "farm.yaml", "--to", "ftp://host/x"], "no URL to post to"),
        (["inbox", "--routes", "farm.yaml", "--to", "a.csv", "--to", "./a.csv"], "twice"),
        (["inbox", "--routes", "farm.yaml", "--index", "none"], "there is no index"),
        (["inbox", "--routes", "farm.yaml", "--poll", "0"], "--poll"),
    ],
)
def test_misuse_says_what_is_wanted_and_answers_nothing(inbox, words, told):
    assert told in fails(2, *words)


def test_a_file_that_cannot_be_written_is_told_before_anything_is_answered(inbox):
    assert "cannot be written" in fails(1, "inbox", "--routes", "farm.yaml", "--once", "--to", "no/folder/a.csv")


def test_an_empty_index_is_told_at_the_start(inbox):
    for label in LEAF_COLOURS:
        CliRunner().invoke(main, ["remove", label])
    assert "holds no class yet" in fails(1, "inbox", "--routes", "farm.yaml", "--once")


def test_the_token_stays_out_of_what_is_said(inbox, monkeypatch):
    monkeypatch.setattr("fewshot.watching.watcher.ONCE_WAIT_S", 0.1)
    monkeypatch.setenv("FEWSHOT_POST_TOKEN", "very-secret")
    assert "very-secret" not in once("--to", "http://me:pass-word@127.0.0.1:9/x").output
    assert "pass-word" not in once("--to", "http://me:pass-word@127.0.0.1:9/x").output
    assert "very-secret" not in run("--help").output
