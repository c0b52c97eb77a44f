"""The command line: words in; a table or JSON out; what is wrong on stderr with what to do, and an exit code."""

import functools
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import click
import pytest
from cli_steps import fails, lines, ok, run
from click.testing import CliRunner
from conftest import LEAF_COLOURS, colour_embedder, write_leaf

from fewshot import __version__
from fewshot.cli import main
from fewshot.cli.main import COMMANDS
from fewshot.gallery import Gallery
from fewshot.records import Question
from fewshot.store import FILE_NAME, open_store
from fewshot.store.schema import FORMAT_VERSION

INDEX = Path("indexes") / "default"


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    """Every command embeds with the colour embedder; `--backbone NAME` gives it another fingerprint."""

    def open_colours(choice, *, source=None, on_notice=None):
        return colour_embedder(choice.backbone or (source.name if source else "colours"), 32 if choice.backbone else 64)

    monkeypatch.setattr("fewshot.gallery.pinning.open_embedder", open_colours)


@pytest.fixture
def enrolled(leaves):
    """The four classes, five photos each, in the default index; the folder they came from."""
    folder = leaves(n=5)
    ok("enroll", "--each", folder)
    return folder


@pytest.fixture
def photo(tmp_path):
    """A new photo of rust."""
    return write_leaf(tmp_path / "new" / "new-rust.png", LEAF_COLOURS["rust"], 900)


# ---- help


def test_help_lists_every_command_with_its_line():
    out = ok("--help")
    for name, (_, text) in COMMANDS.items():
        assert name in out
        assert text.split(":")[0] in " ".join(out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_documents_each_option(name):
    out = ok(name, "--help")
    assert "--index" in out
    assert "--json" in out
    command = main.get_command(click.Context(main), name)
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts[0]} is not explained"


@pytest.mark.parametrize(("typed", "meant"), [("enrol", "enroll"), ("quary", "query"), ("sampledata", "sample-data")])
def test_unknown_command_suggests_the_nearest(typed, meant):
    result = run(typed)
    assert result.exit_code == 2
    assert f"no command {typed!r}. Did you mean {meant!r}?" in result.stderr
    assert result.stdout == ""


def test_version_is_the_packages():
    assert ok("--version").strip().endswith(__version__)


def test_help_loads_neither_torch_nor_the_store():
    script = (
        "import sys\nfrom fewshot.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'timm', 'faiss', 'openvino', 'sqlalchemy', 'PIL'} & set(sys.modules)), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stderr.strip() == "[]"


# ---- enroll


def test_enroll_says_what_went_in(leaves):
    folder = leaves(n=5)
    assert ok("enroll", "leaf rust", folder / "rust") == "leaf rust: 5 enrolled\n"
    assert ok("enroll", "leaf rust", folder / "rust") == "leaf rust: 5 already there\n".replace("5", "0 enrolled, 5")


def test_enroll_json_is_one_report_a_class(leaves):
    folder = leaves(n=5)
    (folder / "rust" / "notes.jpg").write_text("words")
    found = lines("enroll", "--each", folder)
    assert [each["label"] for each in found] == sorted(LEAF_COLOURS)
    rust = found[-1]
    assert list(rust) == ["label", "enrolled", "already_there", "refused", "support_ids", "warnings"]
    assert (len(rust["support_ids"]), rust["warnings"]) == (5, [])
    assert (rust["enrolled"], rust["already_there"]) == (5, 0)
    (refused,) = rust["refused"]
    assert list(refused) == ["file", "code", "message"]
    assert refused["file"] == str(folder / "rust" / "notes.jpg")
    assert refused["code"] == "not_an_image"
    assert found[0]["refused"] == []
    (odd,) = lines("enroll", "rust 2", write_leaf(folder / "odd" / "1.png", LEAF_COLOURS["rust"], 55).parent)
    assert odd["warnings"] == ["class 'rust 2' has 1 photo; wanted 5 to 20 for answers to trust."]


def test_refused_photos_and_doubts_are_told_on_stderr(leaves):
    folder = leaves(n=3)
    (folder / "rust" / "notes.jpg").write_text("words")
    for words in ([], ["--json"]):
        shutil.rmtree("indexes", ignore_errors=True)
        result = run("enroll", "rust", folder / "rust", *words)
        assert result.exit_code == 0
        assert "warning: refused" in result.stderr
        assert "notes.jpg is not a picture" in result.stderr
        assert "warning: class 'rust' has 3 photos; wanted 5" in result.stderr
        assert "warning:" not in result.stdout


def test_enroll_where_no_photo_can_be_used_fails(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_text("words")
    result = run("enroll", "rust", tmp_path / "bad")
    assert result.exit_code == 1
    assert "no photo could be used; nothing was enrolled" in result.stderr


def test_enrolling_again_what_is_there_already_succeeds(enrolled):
    assert [each["already_there"] for each in lines("enroll", "--each", enrolled)] == [5, 5, 5, 5]


def test_each_warns_of_an_empty_sub_folder_and_of_sub_folders_that_are_not_read(leaves):
    folder = leaves(n=5)
    (folder / "scab").mkdir()
    (folder / "rust" / "old").mkdir()
    result = run("enroll", "--each", folder)
    assert result.exit_code == 0
    assert "folder of class 'scab' holds no photos" in result.stderr
    assert "folder of class 'rust' has 1 sub-folder, which is not read." in result.stderr


@pytest.mark.parametrize("words", [["--each"], ["--each", "rust", "photos"], [], ["rust"], ["rust", "photos", "more"]])
def test_enroll_with_the_wrong_number_of_words_is_misuse_and_says_what_is_wanted(leaves, words):
    leaves(n=1)
    result = run("enroll", *words)
    assert result.exit_code == 2
    assert "FOLDER" in result.stderr
    assert not INDEX.exists(), "misuse must not make an index"


def test_strict_refuses_all_and_says_which_photo(leaves):
    folder = leaves(n=5)
    (folder / "rust" / "notes.jpg").write_text("words")
    text = fails(1, "strict", "enroll", "--each", folder, "--strict")
    assert "notes.jpg" in text
    assert "--strict" in text
    assert lines("classes") == []


def test_strict_names_every_photo_of_every_class_with_its_reason_once(leaves):
    folder = leaves(n=2)
    for label, n in (("rust", 2), ("blight", 21)):
        for i in range(n):
            (folder / label / f"bad-{label}-{i:02d}.jpg").write_bytes(b"words" if i else b"")
    text = fails(1, "strict", "enroll", "--each", folder, "--strict")
    assert "23 of 31 photos were refused" in text
    assert "(1) blight: bad-blight-00.jpg is empty" in text
    assert "(20) blight: bad-blight-19.jpg is not a picture" in text
    assert text.count("bad-") == 20
    assert "And 3 more." in text
    for photo in (folder / "blight").glob("bad-*"):
        photo.unlink()
    text = fails(1, "strict", "enroll", "--each", folder, "--strict")
    assert [text.count(f"rust: bad-rust-0{i}.jpg") for i in range(2)] == [1, 1]


def test_notes_beside_the_photos_are_told_in_one_line_and_fail_nothing(leaves):
    folder = leaves(n=5)
    (folder / "rust" / "a.txt").write_text("")
    (folder / "blight" / "b.csv").write_text("")
    told = "warning: 2 files that do not end like a photo were passed over: b.csv, a.txt.\n"
    result = run("enroll", "--each", folder, "--strict")
    assert (result.exit_code, result.stderr) == (0, told)
    assert "refused" not in result.stdout
    result = run("enroll", "rust", folder / "rust" / "a.txt")
    assert (result.exit_code, "a.txt is empty" in result.stderr) == (1, True)


def test_photos_enrolled_under_another_label_are_told_in_one_line_and_one_by_one_in_json(enrolled):
    ok("rename", "rust", "leaf rust")
    stderr = run("enroll", "rust", enrolled / "rust").stderr
    assert stderr.count("already enrolled as 'leaf rust'") == 1
    assert "refused 5 photos (rust-00.png, rust-01.png, rust-02.png and 2 more): each is already enrolled as" in stderr
    result = run("enroll", "rust", enrolled / "rust", "--json")
    assert len(json.loads(result.stdout)["refused"]) == 5
    result = run("enroll", "rust", enrolled / "rust" / "rust-00.png")
    assert f"refused {enrolled / 'rust' / 'rust-00.png'}: rust-00.png is already enrolled" in result.stderr


@pytest.mark.parametrize(("n", "said"), [(0, "nothing new is enrolled yet"), (5, "5 photos are enrolled and kept")])
def test_interrupted_enrolling_says_what_is_kept(leaves, monkeypatch, n, said):
    one = Gallery.enroll

    def interrupted(*args, **kwargs):
        for _ in range(n // 5):
            yield next(one(*args, **kwargs))
        raise KeyboardInterrupt

    monkeypatch.setattr(Gallery, "enroll", interrupted)
    result = run("enroll", "--each", leaves(n=5))
    assert f"warning: interrupted; {said}. The same command goes on from here." in result.stderr


def test_strict_enrolls_several_classes_of_good_photos(leaves):
    assert [each["enrolled"] for each in lines("enroll", "--each", leaves(n=5), "--strict")] == [5, 5, 5, 5]


# ---- query


def test_query_json_is_one_answer_a_photo(enrolled, photo, tmp_path):
    (tmp_path / "new" / "words.jpg").write_text("words")
    result = run("query", tmp_path / "new", "--json")
    assert result.exit_code == 0
    rust, words = map(json.loads, result.stdout.splitlines())
    assert list(rust) == ["file", "answer", "reason", "message", "matches", "nearest"]
    assert (rust["file"], rust["answer"], rust["reason"]) == (str(photo), "rust", "match")
    assert len(rust["matches"]) == 3
    assert all(list(match) == ["label", "similarity", "probability"] for match in rust["matches"])
    assert len(rust["nearest"]) == 3
    assert all(list(near) == ["support_id", "label", "similarity", "file"] for near in rust["nearest"])
    assert (words["answer"], words["reason"], words["matches"], words["nearest"]) == ("unknown", "bad_image", [], [])
    assert "words.jpg" in result.stderr


def test_query_for_people_shows_bars_and_the_nearest_photos_names(enrolled, photo, tmp_path):
    (tmp_path / "new" / "words.jpg").write_text("words")
    out = ok("query", tmp_path / "new")
    heading, first, *rest = out.splitlines()
    assert heading.split() == ["photo", "answer", "probability", "similarity"]
    assert first.split()[:2] == ["new-rust.png", "rust"]
    assert "█" in first
    assert any("nearest: rust/rust-" in line for line in rest)
    assert "not readable" in rest[-1]


def test_query_takes_paths_from_the_root_and_from_here_together(enrolled, photo, tmp_path):
    write_leaf(tmp_path / "here.png", LEAF_COLOURS["rust"], 77)
    assert photo.is_absolute()
    out = ok("query", photo, "here.png")
    assert [line.split()[0] for line in out.splitlines() if " rust " in line][:2] == ["new/new-rust.png", "here.png"]


def test_query_says_unknown_and_why(enrolled, tmp_path):
    out = ok("query", write_leaf(tmp_path / "blue.png", (0, 0, 255), 1))
    assert "unknown" in out.splitlines()[1]
    assert "below the threshold" in out.splitlines()[1]


def test_top_and_nearest_bound_the_lists(enrolled, photo):
    (answer,) = lines("query", photo, "--top", 1, "--nearest", 0)
    assert (len(answer["matches"]), answer["nearest"]) == (1, [])
    (answer,) = lines("query", photo, "--top", 50, "--nearest", 50)
    assert (len(answer["matches"]), len(answer["nearest"])) == (4, 20)
    assert run("query", photo, "--top", 0).exit_code == 2


def test_together_within_and_coverage_reach_the_answer(enrolled, tmp_path):
    photos = [write_leaf(tmp_path / f"{i}.png", LEAF_COLOURS["rust"], 900 + i) for i in range(3)]
    (answer,) = lines("query", *photos, "--together", "--coverage", 0.9)
    assert answer["answer"] == "rust"
    assert answer["covering"][0] == "rust"
    out = ok("query", *photos, "--together", "--coverage", 0.9)
    assert "3 photos together" in out
    assert "cannot be ruled out: rust" in out
    (answer,) = lines("query", photos[0], "--within", "h*", "--within", "bl*")
    assert {match["label"] for match in answer["matches"]} == {"healthy", "blight"}
    refused = run("query", photos[0], "--within", "nothing*")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert run("query", photos[0], "--coverage", 1).exit_code == 2


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("rust,mildew", "Give each its own: `--within rust --within mildew`."),
        ("RU*", "Did you mean 'ru*'?"),
        ("leaf*", "Did you mean 'Leaf Spot'?"),
        ("rusty", "Did you mean 'rust'?"),
    ],
)
def test_a_pattern_that_fits_no_class_is_told_what_was_meant(enrolled, photo, given, meant):
    ok("rename", "blight", "Leaf Spot")
    assert fails(2, "no_class_fits", "query", photo, "--within", given).endswith(meant)


def test_query_and_gallery_give_equal_answers(enrolled, tmp_path):
    photos = [write_leaf(tmp_path / "ask" / f"{label}.png", LEAF_COLOURS[label], 700) for label in LEAF_COLOURS]
    found = lines("query", *photos, "--top", 4, "--nearest", 2)
    with Gallery(INDEX, embedder=colour_embedder()) as gallery:
        assert found == [each.as_dict() for each in gallery.query(photos, Question(top=4, n_nearest=2))]


def test_query_where_no_photo_can_be_read_fails(enrolled, tmp_path):
    (tmp_path / "words.jpg").write_text("words")
    result = run("query", tmp_path / "words.jpg", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["reason"] == "bad_image"
    assert "no photo could be read" in result.stderr


# ---- the other commands


def test_classes_lists_label_supports_and_prototypes(enrolled):
    assert lines("classes") == [{"label": label, "supports": 5, "prototypes": 1} for label in sorted(LEAF_COLOURS)]
    heading, *rows = ok("classes").splitlines()
    assert heading.split() == ["class", "photos", "prototypes"]
    assert [row.split() for row in rows] == [[label, "5", "1"] for label in sorted(LEAF_COLOURS)]


def test_classes_of_an_empty_index_say_what_to_do(enrolled):
    for label in LEAF_COLOURS:
        ok("remove", label)
    result = run("classes")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no class is enrolled. Enroll a class first: `fewshot enroll LABEL FOLDER`." in result.stderr


def test_remove_takes_the_class_out_and_leaves_the_photos(enrolled, photo):
    assert lines("remove", "rust") == [{"label": "rust", "removed": 5}]
    assert "rust" not in ok("classes")
    assert len(list((enrolled / "rust").iterdir())) == 5
    assert ok("remove", "blight") == "blight: removed, with 5 photos\n"


def test_rename_gives_the_class_another_label(enrolled, photo):
    assert lines("rename", "rust", "leaf rust") == [{"label": "leaf rust", "was": "rust"}]
    assert lines("query", photo)[0]["answer"] == "leaf rust"
    assert ok("rename", "leaf rust", "  rust ") == "leaf rust is now rust\n"


def test_inspect_shows_every_class_or_one(enrolled):
    found = lines("inspect")
    assert [each["label"] for each in found] == sorted(LEAF_COLOURS)
    assert list(found[0]) == ["label", "supports", "similarity", "spread", "confusable", "suspicious"]
    assert list(found[0]["confusable"][0]) == ["label", "similarity"]
    assert lines("inspect", "rust") == [found[-1]]
    assert ok("inspect").splitlines()[0].split()[0] == "class"
    assert ok("inspect", "rust").splitlines()[1].split()[:2] == ["rust", "5"]


def test_inspect_names_photos_to_check(enrolled, tmp_path):
    write_leaf(tmp_path / "odd" / "mistaken.png", LEAF_COLOURS["rust"], 333)
    ok("enroll", "healthy", tmp_path / "odd")
    assert "healthy/mistaken.png" in ok("inspect")
    (found,) = lines("inspect", "healthy")
    assert [each["looks_like"] for each in found["suspicious"]] == ["rust"]


def test_a_mistaken_photo_is_removed_by_the_number_that_inspect_shows(enrolled, tmp_path):
    mistaken = write_leaf(tmp_path / "odd" / "mistaken.png", LEAF_COLOURS["rust"], 333)
    ok("enroll", "healthy", mistaken.parent)
    number = ok("inspect").rstrip(")\n").rsplit("photo ", 1)[1]
    assert "is mistaken.png of 'healthy', not of 'rust'" in fails(2, "usage", "remove", "rust", "--photo", number)
    assert ok("remove", "healthy", "--photo", number) == "healthy: mistaken.png removed\n"
    fails(2, "unknown_support", "remove", "healthy", "--photo", number)
    assert lines("enroll", "rust", mistaken.parent)[0]["enrolled"] == 1


def test_no_color_is_honoured(enrolled, monkeypatch):
    def heading():
        return CliRunner().invoke(main, ["classes"], color=True).stdout

    assert "\x1b[" in heading()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in heading()


def test_a_backbone_that_no_name_fits_is_said(enrolled):
    fails(2, "usage", "backbones", "qqq*")


def test_reindex_says_how_many_photos_and_from_where(enrolled, photo):
    (found,) = lines("reindex", "--backbone", "others", "--photos", enrolled)
    assert list(found) == ["photos", "from_originals", "before", "after"]
    assert (found["photos"], found["from_originals"]) == (20, 20)
    assert found["before"].startswith("colours@")
    assert found["after"].startswith("others@")
    out = ok("reindex", "--backbone", "others")
    assert out.startswith("20 photos embedded anew (0 from originals): others@")


def test_an_index_without_a_class_is_reindexed_from_no_backbone(enrolled):
    for label in LEAF_COLOURS:
        ok("remove", label)
    assert ok("reindex", "--backbone", "others").startswith("0 photos embedded anew (0 from originals): ")


@pytest.mark.parametrize("given", ["./mine", "mine/"])
def test_an_index_is_shown_as_it_can_be_given_again(enrolled, tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    (told,) = lines("copy", INDEX, given)
    assert told["target"] == "./mine"
    shown = ok("doctor", "--index", told["target"])
    assert re.search(r"^index +\./mine: 4 classes", shown, re.MULTILINE)


def test_backbones_lists_the_default_first():
    found = lines("backbones")
    assert found[0] == {
        "name": "plants-lite0",
        "architecture": "tf_efficientnet_lite0",
        "weights": "shipped",
        "default": True,
    }
    assert "plants-lite0 (default)" in ok("backbones")


def test_sample_data_then_enroll_then_query_works(tmp_path):
    (made,) = lines("sample-data", tmp_path / "samples", "--support", 5, "--query", 1)
    assert list(made) == ["folder", "classes", "photos"]
    assert (len(made["classes"]), made["photos"]) == (6, 36)
    assert sum(each["enrolled"] for each in lines("enroll", "--each", tmp_path / "samples" / "support")) == 30
    answers = lines("query", tmp_path / "samples" / "query")
    assert len(answers) == 6
    assert {each["answer"] for each in answers} <= {*made["classes"], "unknown"}


@pytest.mark.parametrize("words", [("--query", 0), ("--support", 0), ("--seed", -1)])
def test_sample_data_names_the_option_that_is_out_of_range(tmp_path, words):
    result = run("sample-data", tmp_path / "samples", *words)
    assert result.exit_code == 2
    assert f"Invalid value for '{words[0]}': {words[1]} is not in the range" in result.stderr


def test_sample_data_ends_with_what_to_type_next(tmp_path):
    out = ok("sample-data", tmp_path / "samples", "--support", 1, "--query", 1)
    assert f"fewshot enroll --each {tmp_path / 'samples' / 'support'}" in out


# ---- which index


def test_index_is_a_name_under_indexes_or_a_path_or_the_variable(leaves, tmp_path, monkeypatch):
    folder = leaves(n=1, labels=["rust"]) / "rust"
    ok("enroll", "a", folder, "--index", "plants")
    ok("enroll", "b", folder, "--index", "./here")
    ok("enroll", "c", folder, "--index", tmp_path / "there" / "index")
    monkeypatch.setenv("FEWSHOT_INDEX", "from-variable")
    ok("enroll", "d", folder)
    places = {"a": "indexes/plants", "b": "here", "c": "there/index", "d": "indexes/from-variable"}
    for label, place in places.items():
        assert (tmp_path / place / FILE_NAME).is_file()
        assert [each["label"] for each in lines("classes", "--index", f"./{place}")] == [label]
    assert [each["label"] for each in lines("classes")] == ["d"]
    assert [each["label"] for each in lines("classes", "--index", "plants")] == ["a"], "the option outweighs it"
    assert not INDEX.exists()


# ---- bad input


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("x" * 201, "201 characters"),
        ("corn/rust", "slash"),
        ("corn\nrust", "line break"),
        ("corn\x07rust", "control character"),
        ("Unknown", "names no class"),
    ],
)
def test_label_that_cannot_be_stored_is_misuse(leaves, label, said):
    folder = leaves(n=1, labels=["rust"]) / "rust"
    assert said in fails(2, "bad_label", "enroll", label, folder)
    assert not INDEX.exists()


def test_folders_that_cannot_be_enrolled_are_misuse(leaves, tmp_path):
    folder = leaves(n=1)
    (tmp_path / "empty").mkdir()
    assert "nowhere" in fails(2, "missing_folder", "enroll", "rust", tmp_path / "nowhere")
    assert "5 to 20 photos" in fails(2, "empty_folder", "enroll", "rust", tmp_path / "empty")
    assert "--each" in fails(2, "nested_folder", "enroll", "rust", folder)
    assert "enroll LABEL" in fails(2, "empty_folder", "enroll", "--each", folder / "rust")
    assert "nowhere" in fails(2, "missing_folder", "enroll", "--each", tmp_path / "nowhere")
    assert not INDEX.exists()


def test_folder_with_one_photo_enrolls_and_warns(leaves):
    result = run("enroll", "rust", leaves(n=1, labels=["rust"]) / "rust")
    assert result.exit_code == 0
    assert "class 'rust' has 1 photo; wanted 5 to 20" in result.stderr


def test_the_same_photo_under_another_label_is_refused_and_the_label_named(enrolled):
    result = run("enroll", "other", enrolled / "rust", "--json")
    (report,) = map(json.loads, result.stdout.splitlines())
    assert {refused["code"] for refused in report["refused"]} == {"other_label"}
    assert "'rust'" in report["refused"][0]["message"]
    assert result.exit_code == 1
    assert len(lines("classes")) == 4


def test_photo_over_the_limit_of_pixels_is_refused(enrolled, photo, monkeypatch):
    monkeypatch.setenv("FEWSHOT_MAX_MEGAPIXELS", "0.001")
    result = run("query", photo, "--json")
    assert result.exit_code == 1
    assert "megapixels" in json.loads(result.stdout)["message"]
    monkeypatch.setenv("FEWSHOT_MAX_MEGAPIXELS", "many")
    assert "FEWSHOT_MAX_MEGAPIXELS" in fails(2, "usage", "query", photo)


def test_query_of_what_does_not_exist_is_misuse(enrolled, tmp_path):
    assert "gone.jpg" in fails(2, "missing_folder", "query", tmp_path / "gone.jpg")
    (tmp_path / "empty").mkdir()
    assert "empty" in fails(2, "empty_folder", "query", tmp_path / "empty")
    assert run("query").exit_code == 2


@pytest.mark.parametrize("words", [["remove", "rusty"], ["rename", "rusty", "scab"], ["inspect", "rusty"]])
def test_unknown_label_is_misuse_and_suggests_the_nearest(enrolled, words):
    text = fails(2, "unknown_label", *words)
    assert "no class 'rusty'" in text
    assert "Did you mean 'rust'?" in text


def test_rename_onto_an_existing_label_is_misuse(enrolled):
    assert "already holds a class 'healthy'" in fails(2, "label_taken", "rename", "rust", "healthy")
    assert len(lines("classes")) == 4


@pytest.mark.parametrize(
    "words", [["query", "PHOTO"], ["classes"], ["remove", "rust"], ["rename", "a", "b"], ["inspect"], ["reindex"]]
)
def test_missing_index_is_misuse_and_says_how_to_make_one(photo, words):
    text = fails(2, "index_missing", *[photo if word == "PHOTO" else word for word in words])
    assert "indexes/default" in text
    assert "fewshot enroll" in text
    assert not INDEX.exists()


def test_what_is_no_index_is_misuse_for_every_command_and_a_finding_of_doctor(leaves, photo, tmp_path):
    folder = leaves(n=1)
    (tmp_path / "random").mkdir()
    (tmp_path / "random" / FILE_NAME).write_bytes(os.urandom(5000))
    for index in (folder, photo, tmp_path / "random"):
        for words in (["classes"], ["query", photo], ["enroll", "rust", folder / "rust"]):
            assert index.name in fails(2, "not_an_index", *words, "--index", index)
        result = run("doctor", "--index", index, "--json")
        assert result.exit_code == 1
        assert index.name in json.loads(result.stdout)["index"]["problems"][0]


def test_newer_format_fails_with_both_numbers(enrolled):
    with closing(sqlite3.connect(INDEX / FILE_NAME)) as connection:
        connection.execute("PRAGMA user_version = 42")
    text = fails(1, "newer_format", "classes")
    assert "42" in text
    assert f"up to {FORMAT_VERSION}" in text


def test_locked_index_fails_after_its_timeout_and_can_still_be_asked(enrolled, photo, monkeypatch):
    monkeypatch.setattr("fewshot.gallery.gallery.open_store", functools.partial(open_store, timeout_s=0.05))
    with closing(sqlite3.connect(INDEX / FILE_NAME, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert "locked" in fails(1, "index_locked", "remove", "rust")
        assert lines("query", photo)[0]["answer"] == "rust"
        other.execute("ROLLBACK")
    assert len(lines("classes")) == 4


def test_empty_index_fails_and_says_what_to_do(enrolled, photo):
    for label in LEAF_COLOURS:
        ok("remove", label)
    assert "fewshot enroll" in fails(1, "index_empty", "query", photo)
    assert "fewshot enroll" in fails(1, "index_empty", "inspect")
    assert lines("classes") == []


def test_wrong_backbone_is_misuse_and_names_both(enrolled, photo):
    text = fails(2, "mixed_embeddings", "query", photo, "--backbone", "others")
    assert colour_embedder().fingerprint in text
    assert colour_embedder("others", 32).fingerprint in text
    assert "fewshot reindex" in text


def test_damaged_index_fails_and_says_what_to_do(enrolled):
    path = INDEX / FILE_NAME
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "restore index.sqlite from a copy" in fails(1, "index_damaged", "classes")


def test_full_disk_fails_and_keeps_what_was_there(enrolled, leaves, monkeypatch):
    def full(self, *_arguments):
        self._connection.exec_driver_sql("PRAGMA max_page_count = 1")  # no smaller than the file is
        self._connection.exec_driver_sql("CREATE TABLE large AS SELECT zeroblob(1000000) AS x")

    before = lines("classes")
    monkeypatch.setattr("fewshot.store.writing.Writer.add_supports", full)
    more = leaves(n=2, labels=["rust"], first_seed=40, name="more")
    assert "Free some space" in fails(1, "disk_full", "enroll", "scab", more / "rust")
    assert lines("classes") == before


@pytest.mark.parametrize("words", [["query", "PHOTO", "--top", "many"], ["classes", "--colour"], ["remove"]])
def test_words_that_click_refuses_are_misuse(enrolled, photo, words):
    result = run(*[photo if word == "PHOTO" else word for word in words])
    assert result.exit_code == 2
    assert "Error" in result.stderr
    assert result.stdout == ""


# ---- at work


def test_no_progress_where_stderr_is_no_terminal(leaves, tmp_path):
    result = run("enroll", "--each", leaves(n=8))
    assert result.exit_code == 0
    assert "enrolling" not in result.stderr
    assert "%" not in result.stderr


def interrupt_after(monkeypatch, n):
    """Ctrl-C at the n-th photo."""
    left = [n]

    def step():
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    class Steps:
        def __enter__(self):
            return step

        def __exit__(self, *_exc):
            return None

    for name in ("enroll", "query", "reindex"):
        monkeypatch.setattr(sys.modules[f"fewshot.cli.{name}"], "progress", lambda *_: Steps())


def test_ctrl_c_while_enrolling_says_what_is_kept_and_the_same_command_goes_on(leaves, monkeypatch):
    folder = leaves(n=5)
    main.get_command(click.Context(main), "enroll")
    main.get_command(click.Context(main), "query")
    main.get_command(click.Context(main), "reindex")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 12)
        result = run("enroll", "--each", folder)
    assert result.exit_code not in (0, 2)
    assert "interrupted; 10 photos are enrolled and kept. The same command goes on from here." in result.stderr
    assert "Traceback" not in result.output
    assert [each["label"] for each in lines("classes")] == ["blight", "healthy"]
    assert [each["already_there"] for each in lines("enroll", "--each", folder)] == [5, 5, 0, 0]


def test_ctrl_c_while_reindexing_leaves_the_index_as_it_was(enrolled, photo, monkeypatch):
    main.get_command(click.Context(main), "reindex")
    before = lines("query", photo)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 12)
        result = run("reindex", "--backbone", "others")
    assert result.exit_code not in (0, 2)
    assert "interrupted; the index is as it was" in result.stderr
    assert lines("query", photo) == before
