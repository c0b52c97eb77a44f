"""Folders that are not as a command wants them: what is left out is told, and nothing is made of a mistake."""

from pathlib import Path

import pytest
from cli_steps import fails, lines, ok, run
from conftest import LEAF_COLOURS, colour_embedder, write_leaf

INDEX = Path("indexes") / "default"


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    """Every command embeds with the colour embedder."""
    monkeypatch.setattr("fewshot.gallery.pinning.open_embedder", lambda *_args, **_kwargs: colour_embedder())
    monkeypatch.setattr("fewshot.embedder.open_embedder", lambda *_args, **_kwargs: colour_embedder())


@pytest.fixture
def mixed(leaves):
    """Class folders with two loose photos and a note beside them."""
    folder = leaves(n=5)
    for i in range(2):
        write_leaf(folder / f"loose-{i}.png", LEAF_COLOURS["rust"], 900 + i)
    (folder / "readme.txt").write_text("words")
    return folder


# ---- enroll


def test_photos_in_no_class_are_told_and_the_classes_are_enrolled(mixed):
    result = run("enroll", "--each", mixed)
    assert result.exit_code == 0
    assert f"warning: 2 photos lie in {mixed} itself, in no class; they are not read." in result.stderr
    assert len(lines("classes")) == 4


def spoil_loose(folder):
    write_leaf(folder / "loose.png", LEAF_COLOURS["rust"], 900)
    return f"1 photo lies in {folder} itself, in no class; it is not read."


def spoil_empty(folder):
    (folder / "scab").mkdir()
    return "the folder of class 'scab' holds no photos."


def spoil_deep(folder):
    write_leaf(folder / "rust" / "old" / "a.png", LEAF_COLOURS["rust"], 900)
    return "the folder of class 'rust' has 1 sub-folder, which is not read."


@pytest.mark.parametrize("spoil", [spoil_loose, spoil_empty, spoil_deep])
def test_strict_enrolls_nothing_where_something_would_be_left_out(spoil, leaves):
    folder = leaves(n=5)
    told = spoil(folder)
    text = fails(1, "strict", "enroll", "--each", folder, "--strict")
    assert f"nothing was enrolled: {told}" in text
    assert "leave --strict out" in text
    assert not INDEX.exists()


@pytest.mark.parametrize(("words", "code"), [(["enroll", "--each"], "nested_folder"), (["evaluate"], "nested_folder")])
def test_a_folder_a_level_too_high_is_refused_and_makes_no_index(words, code, leaves, tmp_path):
    leaves(n=5, name="novel/support")
    text = fails(2, code, *words, tmp_path / "novel")
    assert "support holds no photos but 4 folders (blight, healthy, mildew, ...)" in text
    assert text.endswith(f"Did you mean {tmp_path / 'novel' / 'support'}?")
    assert not INDEX.exists()


def test_class_folders_that_are_all_empty_make_no_index(tmp_path):
    (tmp_path / "photos" / "rust").mkdir(parents=True)
    (tmp_path / "photos" / "scab").mkdir()
    text = fails_with_warnings("enroll", "--each", tmp_path / "photos")
    assert f"none of the 2 folders in {tmp_path / 'photos'} holds a photo; nothing was enrolled." in text
    assert not INDEX.exists()


def fails_with_warnings(*words):
    result = run(*words)
    assert result.exit_code == 2, result.stderr
    return result.stderr


# ---- drawing and measuring


def test_drawing_tells_of_photos_in_no_class(mixed):
    result = run("project", "--images", mixed, "--out", "out", "--method", "pca")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count(f"2 photos lie in {mixed} itself, in no class") == 1


def test_measuring_tells_of_photos_in_no_class(mixed):
    result = run("evaluate", mixed, "--n-way", 3, "--n-shot", 3, "--n-query", 2, "--n-episode", 1)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count(f"2 photos lie in {mixed} itself, in no class") == 1


def test_drawing_a_folder_too_high_names_the_one_that_was_meant(leaves, tmp_path):
    leaves(n=5, name="novel/support")
    text = fails(2, "nested_folder", "project", "--images", tmp_path / "novel", "--out", "out")
    assert text.endswith(f"Did you mean {tmp_path / 'novel' / 'support'}?")
    assert not Path("out").exists()


def test_drawing_a_folder_of_which_no_photo_can_be_used_speaks_of_the_folder_and_not_of_an_index(tmp_path):
    (tmp_path / "novel" / "rust").mkdir(parents=True)
    (tmp_path / "novel" / "rust" / "a.jpg").write_text("words")
    result = run("project", "--images", tmp_path / "novel", "--out", "out")
    assert result.exit_code == 2
    assert f"no photo in the 1 folders of {tmp_path / 'novel'} can be used" in result.stderr
    assert "index" not in result.stderr


@pytest.mark.parametrize("words", [["evaluate", "photos/rust"], ["project", "--out", "out", "--images", "photos/rust"]])
def test_who_enrolls_nothing_is_not_told_how_to_enroll(words, leaves):
    leaves(n=3)
    text = fails(2, "empty_folder", *words)
    assert text.endswith("If it is one class, name the folder above, photos.")


def test_who_enrolls_is_told_how(leaves):
    leaves(n=3)
    assert "`fewshot enroll LABEL photos/rust`" in fails(2, "empty_folder", "enroll", "--each", "photos/rust")


def test_a_good_folder_is_enrolled_without_a_word_on_stderr(leaves):
    result = run("enroll", "--each", leaves(n=5), "--strict")
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(ok("classes").splitlines()) > 4


# ---- query


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_asking_a_folder_tells_what_was_passed_over(more, leaves):
    folder = leaves(n=5)
    ok("enroll", "--each", folder)
    (folder / "rust" / "raw.CR2").write_bytes(b"raw")
    result = run("query", folder / "rust", *more)
    assert result.exit_code == 0
    assert "warning: 1 file that does not end like a photo was passed over: raw.CR2." in result.stderr
    assert "raw.CR2" not in result.stdout


# ---- words forgotten or wrong


def test_enrolling_a_folder_without_a_label_proposes_the_folders_name(leaves):
    leaves(n=3, labels=["rust", "blight"])
    Path("photos/rust").rename("photos/bean rust")
    text = fails(2, "usage", "enroll", "photos/bean rust")
    assert text.startswith("give a LABEL and a FOLDER, or --each and a FOLDER.")
    assert text.endswith("Did you mean `fewshot enroll 'bean rust' 'photos/bean rust'`?")
    assert fails(2, "usage", "enroll", "photos").endswith("Did you mean `fewshot enroll --each photos`?")
    assert fails(2, "usage", "enroll", "elsewhere").endswith("See `fewshot enroll --help`.")


def test_copying_with_an_index_beside_source_and_target_is_refused():
    text = fails(2, "usage", "copy", "--index", "foo", "default", "other")
    assert "copy reads no --index ('foo' was given). | Name the index as SOURCE or as TARGET." in text


def test_copying_an_index_that_is_not_there_blames_the_source(tmp_path):
    text = fails(2, "index_missing", "copy", "nope", "target")
    assert "there is no index at indexes/nope" in text
    assert "SOURCE" in text
    assert "nroll" not in text
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("words")
    text = fails(2, "not_an_index", "copy", tmp_path / "photos", "target")
    assert "SOURCE" in text
    assert "--index" not in text
    assert not Path("indexes").exists()
