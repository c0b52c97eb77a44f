"""Folders and labels as people have them: what is a class, what is a photo, and what is refused with a way out."""

import errno
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot.datasets import ClassFolder, checked_label, class_folder, class_folders, query_photos
from fewshot.errors import EmptyFolderError, FolderError, LabelError, MissingFolderError, NestedFolderError


def fill(folder, *names):
    """Make files (or, with a slash at the end, folders) below `folder`; files hold their own name."""
    for name in names:
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
    return folder


def names(paths):
    return [path.name for path in paths]


# ---- labels


@pytest.mark.parametrize("label", ["", " ", "\t", "   \n ", "\u00a0\u2003"])
def test_a_blank_label_is_refused(label):
    with pytest.raises(LabelError, match="empty"):
        checked_label(label)


@pytest.mark.parametrize("label", ["\u200b", "\ufeff\u2060", " \u200b "])
def test_a_label_of_invisible_characters_is_blank(label):
    with pytest.raises(LabelError):
        checked_label(label)


def test_200_characters_are_kept_and_201_refused():
    assert checked_label("x" * 200) == "x" * 200
    assert checked_label("  " + "x" * 200 + "  ") == "x" * 200  # what is stored counts
    with pytest.raises(LabelError, match="201 characters; at most 200"):
        checked_label("x" * 201)


def test_an_accent_coded_as_two_characters_counts_once():
    decomposed = "e\u0301" * 200
    assert len(decomposed) == 400
    assert checked_label(decomposed) == "\u00e9" * 200


@pytest.mark.parametrize("label", ["corn/rust", "corn\\rust", "/", "../rust", "\\"])
def test_a_label_with_a_slash_is_refused(label):
    with pytest.raises(LabelError, match="slash"):
        checked_label(label)


@pytest.mark.parametrize("label", ["corn/rust", "corn\\rust", "a/b/c", "a/b\\c"])
def test_the_label_suggested_instead_of_one_with_slashes_is_accepted(label):
    with pytest.raises(LabelError) as caught:
        checked_label(label)
    suggested = caught.value.hint.split("'")[1].replace("\\\\", "\\")
    assert checked_label(suggested) == suggested


@pytest.mark.parametrize(
    "character",
    ["\n", "\r", "\t", "\x00", "\x07", "\x1b", "\x7f", "\x85", "\u2028", "\u2029"],
)
def test_a_label_with_a_line_break_or_control_character_is_refused(character):
    with pytest.raises(LabelError, match=rf"U\+{ord(character):04X}"):
        checked_label(f"corn{character}rust")


@pytest.mark.parametrize(
    ("label", "shown"), [("g\udcfct", r"'g\xfct' is not UTF-8"), ("g\ud800", r"'g\ud800' is not UTF-8")]
)
def test_a_label_that_is_no_text_is_told_as_that(label, shown):
    with pytest.raises(LabelError) as caught:
        checked_label(label)
    assert shown in caught.value.message
    caught.value.message.encode()  # can be sent


@pytest.mark.parametrize("label", [".", "..", " .. "])
def test_a_folder_s_name_for_itself_is_no_label(label):
    with pytest.raises(LabelError, match="folder's name for itself"):
        checked_label(label)


@pytest.mark.parametrize("label", ["unknown", "Unknown", "UNKNOWN", " unKnown "])
def test_the_answer_that_names_no_class_is_no_label(label):
    with pytest.raises(LabelError, match="names no class"):
        checked_label(label)


@pytest.mark.parametrize(
    "label",
    [
        "rust",
        "corn rust",
        "unknown-1",
        "not unknown",
        "...",
        ".rust",
        "Kräuselkrankheit",
        "さび病",
        "🍂",
        "50 % damaged",
        "a'b\"c",
    ],
)
def test_an_ordinary_label_is_kept_as_it_is(label):
    assert checked_label(label) == label


def test_one_name_in_two_codings_is_one_label():
    assert checked_label(unicodedata.normalize("NFD", "Kräusel")) == checked_label("Kräusel") == "Kräusel"


@given(st.text(max_size=210))
@settings(max_examples=150, deadline=None)
def test_a_checked_label_is_stable_one_line_and_short(label):
    try:
        clean = checked_label(label)
    except LabelError:
        return
    assert checked_label(clean) == clean
    assert clean == clean.strip()
    assert unicodedata.is_normalized("NFC", clean)
    assert 1 <= len(clean) <= 200
    assert len(clean.splitlines()) == 1
    assert not set(clean) & {"/", "\\", "\0"}
    clean.encode()  # can be stored


# ---- one class, one folder


def test_a_folder_gives_its_files_in_name_order(tmp_path):
    found = class_folder("rust", fill(tmp_path / "f", "c.jpg", "a.png", "b.jpg"))
    assert found == ClassFolder("rust", tuple(tmp_path / "f" / name for name in ("a.png", "b.jpg", "c.jpg")), 0)


def test_the_label_is_checked_before_the_folder_is_looked_at(tmp_path):
    with pytest.raises(LabelError):
        class_folder("a/b", tmp_path / "missing")


def test_the_label_comes_out_as_it_is_stored(tmp_path):
    assert class_folder(" corn rust ", fill(tmp_path, "a.jpg")).label == "corn rust"


@pytest.mark.parametrize("each", [False, True])
def test_files_that_do_not_end_like_photos_are_passed_over_by_name_as_where_they_are_asked(each, tmp_path):
    folder = fill(tmp_path / "rust", "a.jpg", "IMG_1", "b.heic", "notes.txt", "raw.CR2")
    told, warned = [], []
    if each:
        (found,) = class_folders(tmp_path, on_passed_over=told.append, on_warning=warned.append)
    else:
        found = class_folder("rust", folder, on_passed_over=told.append)
    assert names(found.photos) == names(query_photos([folder])) == ["IMG_1", "a.jpg", "b.heic"]
    assert (told, warned) == (["2 files that do not end like a photo were passed over: notes.txt, raw.CR2."], [])
    class_folders(tmp_path, on_warning=warned.append)
    assert warned == told


def test_a_folder_of_other_files_alone_names_them(tmp_path):
    with pytest.raises(EmptyFolderError, match=r"2 files that do not end like one \(a\.txt, b\.CR2\)"):
        class_folder("rust", fill(tmp_path, "b.CR2", "a.txt"))


def test_a_file_that_is_named_is_enrolled_whatever_it_is(tmp_path):
    assert names(class_folder("rust", fill(tmp_path, "notes.txt") / "notes.txt").photos) == ["notes.txt"]


def test_a_single_photo_may_be_named_instead_of_a_folder(tmp_path):
    fill(tmp_path, "a.jpg", "b.jpg")
    assert class_folder("rust", tmp_path / "a.jpg") == ClassFolder("rust", (tmp_path / "a.jpg",))


def test_a_folder_with_one_photo_is_a_class(tmp_path):
    assert len(class_folder("rust", fill(tmp_path, "a.jpg")).photos) == 1


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(MissingFolderError, match="no-such-folder"):
        class_folder("rust", tmp_path / "no-such-folder")


def test_a_dangling_link_is_a_missing_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(MissingFolderError, match="link"):
        class_folder("rust", tmp_path / "link")


@pytest.mark.parametrize(
    "look", [lambda path: class_folder("rust", path), class_folders, lambda path: query_photos([path])]
)
def test_a_name_too_long_for_the_file_system_is_a_missing_folder(look, tmp_path):
    with pytest.raises(FolderError):
        look(tmp_path / ("a" * 300))


@pytest.mark.parametrize("look", [lambda path: class_folder("rust", path), class_folders])
def test_an_unreadable_folder_is_refused(look, tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", denied)  # whoever runs the tests may be root
    with pytest.raises(MissingFolderError, match=r"cannot be read: Permission denied"):
        look(tmp_path)


def test_an_entry_that_cannot_be_looked_at_does_not_crash_the_folder(tmp_path):
    """A link whose target's name is too long stands for every entry whose type the system will not tell."""
    fill(tmp_path, "a.jpg")
    (tmp_path / "odd.jpg").symlink_to("b" * 300)
    assert names(class_folder("rust", tmp_path).photos) == ["a.jpg", "odd.jpg"]


def test_an_empty_folder_holds_no_photos(tmp_path):
    with pytest.raises(EmptyFolderError, match="holds no photos") as caught:
        class_folder("rust", tmp_path)
    assert "5 to 20" in caught.value.hint


LITTER = [".DS_Store", "._a.jpg", "Thumbs.db", "thumbs.db", "desktop.ini", "Desktop.INI", "Icon\r", ".hidden.jpg"]


@pytest.mark.parametrize("litter", LITTER)
def test_hidden_files_and_litter_are_not_enrolled(litter, tmp_path):
    with pytest.raises(EmptyFolderError):
        class_folder("rust", fill(tmp_path / "only-litter", litter))
    assert names(class_folder("rust", fill(tmp_path / "f", litter, "a.jpg")).photos) == ["a.jpg"]


def test_hidden_folders_are_no_sub_folders(tmp_path):
    with pytest.raises(EmptyFolderError):
        class_folder("rust", fill(tmp_path, ".git/config"))
    assert class_folder("rust", fill(tmp_path, "a.jpg")).n_sub_folders == 0


def test_a_folder_of_folders_is_told_of_each(tmp_path):
    fill(tmp_path, "blight/a.jpg", "mildew/", "rust/b.jpg", "scab/c.jpg")
    with pytest.raises(NestedFolderError, match=r"4 folders \(blight, mildew, rust, \.\.\.\)") as caught:
        class_folder("rust", tmp_path)
    assert f"enroll --each {tmp_path}" in caught.value.hint


def test_photos_beside_sub_folders_are_enrolled_and_the_folders_counted(tmp_path):
    found = class_folder("rust", fill(tmp_path, "a.jpg", "more/b.jpg", "others/deep/c.jpg"))
    assert (names(found.photos), found.n_sub_folders) == (["a.jpg"], 2)


# ---- --each


def test_each_sub_folder_is_a_class_in_name_order(tmp_path):
    fill(tmp_path, "scab/b.jpg", "scab/a.jpg", "rust/c.jpg", "readme.txt", ".git/config")
    found = class_folders(tmp_path)
    assert [(each.label, names(each.photos)) for each in found] == [("rust", ["c.jpg"]), ("scab", ["a.jpg", "b.jpg"])]


def test_an_empty_sub_folder_is_a_class_without_photos(tmp_path):
    found = class_folders(fill(tmp_path, "rust/a.jpg", "scab/", "blight/.DS_Store"))
    assert [(each.label, len(each.photos)) for each in found] == [("blight", 0), ("rust", 1), ("scab", 0)]


def test_folders_inside_a_class_s_folder_are_counted_and_not_entered(tmp_path):
    (found,) = class_folders(fill(tmp_path, "rust/a.jpg", "rust/more/b.jpg"))
    assert (names(found.photos), found.n_sub_folders) == (["a.jpg"], 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [("rust", " rust"), ("rust", "rust "), (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é"))],
)
def test_two_folders_whose_names_are_one_label_are_refused(one, other, tmp_path):
    fill(tmp_path, f"{one}/a.jpg", f"{other}/b.jpg")
    with pytest.raises(LabelError, match="two sub-folders"):
        class_folders(tmp_path)


def test_a_folder_in_decomposed_form_gives_the_label_that_is_typed(tmp_path):
    (found,) = class_folders(fill(tmp_path, unicodedata.normalize("NFD", "Kräusel") + "/a.jpg"))
    assert found.label == unicodedata.normalize("NFC", "Kräusel")


@pytest.mark.parametrize("name", ["unknown", "corn\nrust", "back\\slash"])
def test_a_sub_folder_whose_name_is_no_label_is_refused(name, tmp_path):
    with pytest.raises(LabelError):
        class_folders(fill(tmp_path, "rust/a.jpg", f"{name}/b.jpg"))


def test_each_on_a_folder_of_photos_says_how_to_enroll_one_class(tmp_path):
    with pytest.raises(EmptyFolderError, match="2 files but no sub-folders") as caught:
        class_folders(fill(tmp_path, "a.jpg", "b.jpg"), enrolling=True)
    assert "fewshot enroll LABEL" in caught.value.hint


@pytest.mark.parametrize(("named", "above"), [("sup/rust", "sup"), ("sup", "."), (".", "..")])
def test_a_folder_of_photos_given_for_classes_is_told_of_the_folder_above(named, above, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fill(Path(named), "a.jpg")
    with pytest.raises(EmptyFolderError, match="no sub-folders") as caught:
        class_folders(Path(named))
    assert caught.value.hint == f"If it is one class, name the folder above, {above}."


def test_a_folder_a_level_too_high_names_the_one_below_that_was_meant(tmp_path):
    fill(tmp_path, "novel/support/rust/a.jpg", "novel/support/scab/b.jpg", "novel/support/README.md", "novel/notes/")
    with pytest.raises(NestedFolderError) as caught:
        class_folders(tmp_path / "novel")
    support = tmp_path / "novel" / "support"
    assert caught.value.message.startswith(f"{support} holds no photos but 2 folders (rust, scab).")
    assert caught.value.hint == f"Did you mean {support}?"


def test_a_folder_too_high_above_several_names_a_few_of_them(tmp_path):
    fill(tmp_path, *(f"{name}/rust/a.jpg" for name in "abcde"))
    with pytest.raises(NestedFolderError, match="and so do 2 more") as caught:
        class_folders(tmp_path)
    assert caught.value.hint == f"Did you mean {tmp_path / 'a'} or {tmp_path / 'b'} or {tmp_path / 'c'}?"


@pytest.mark.parametrize("photo", ["a.jpg", "IMG_0001", "a.heic"])
def test_one_class_with_a_photo_is_enough_for_the_right_level(photo, tmp_path):
    found = class_folders(fill(tmp_path, f"rust/{photo}", "scab/field/b.jpg"))
    assert [(each.label, len(each.photos), each.n_sub_folders) for each in found] == [("rust", 1, 0), ("scab", 0, 1)]


def test_photos_beside_the_class_folders_are_told_and_notes_are_not(tmp_path):
    fill(tmp_path, "rust/a.jpg", "one.jpg", "two.HEIC", "readme.txt", ".hidden.jpg")
    told = []
    assert len(class_folders(tmp_path, on_warning=told.append)) == 1
    assert told == [f"2 photos lie in {tmp_path} itself, in no class; they are not read."]
    (tmp_path / "two.HEIC").unlink()
    class_folders(tmp_path, on_warning=told.append)
    assert told[1:] == [f"1 photo lies in {tmp_path} itself, in no class; it is not read."]
    (tmp_path / "one.jpg").unlink()
    class_folders(tmp_path, on_warning=told.append)
    assert len(told) == 2


def test_each_on_an_empty_missing_or_plain_file_is_refused(tmp_path):
    fill(tmp_path, "empty/", "file.jpg")
    with pytest.raises(EmptyFolderError, match="holds nothing"):
        class_folders(tmp_path / "empty")
    with pytest.raises(MissingFolderError, match="there is no folder"):
        class_folders(tmp_path / "missing")
    with pytest.raises(MissingFolderError, match="is a file, not a folder"):
        class_folders(tmp_path / "file.jpg")


# ---- photos to ask about


def test_a_folder_is_asked_with_everything_below_it_in_name_order(tmp_path):
    fill(tmp_path, "b.jpg", "a/z.PNG", "a/y.jpeg", "c/d/e.tif", "c/a.webp", "notes.txt", "table.csv")
    found = [str(path.relative_to(tmp_path)) for path in query_photos([tmp_path])]
    assert found == ["a/y.jpeg", "a/z.PNG", "b.jpg", "c/a.webp", "c/d/e.tif"]


def test_photos_of_any_ending_are_asked_also_those_that_are_refused_with_a_word(tmp_path):
    fill(tmp_path, "a.jpg", "b.jfif", "c.JPE", "d.JPG", "e.HEIC", "f.heif", "g.avif", "notes.txt")
    assert names(query_photos([tmp_path])) == ["a.jpg", "b.jfif", "c.JPE", "d.JPG", "e.HEIC", "f.heif", "g.avif"]


def test_files_passed_over_for_their_endings_are_told_by_name(tmp_path):
    fill(tmp_path, "a.jpg", "raw.CR2", "more/notes.txt", ".hidden.txt", "Thumbs.db")
    told = []
    assert names(query_photos([tmp_path], on_warning=told.append)) == ["a.jpg"]
    assert told == ["2 files that do not end like a photo were passed over: notes.txt, raw.CR2."]
    query_photos([tmp_path / "raw.CR2", fill(tmp_path / "other", "b.jpg")], on_warning=told.append)
    assert len(told) == 1  # what is named is asked, whatever it is
    (tmp_path / "raw.CR2").unlink()
    query_photos([tmp_path], on_warning=told.append)
    assert told[1:] == ["1 file that does not end like a photo was passed over: notes.txt."]


def test_files_passed_over_in_several_folders_are_told_in_one_sentence(tmp_path):
    fill(tmp_path, *(f"{folder}/{name}" for folder in "ab" for name in ("a.jpg", "r1.NEF", "r2.NEF")))
    told = []
    query_photos([tmp_path / "a", tmp_path / "b"], on_warning=told.append)
    assert told == ["4 files that do not end like a photo were passed over: r1.NEF, r2.NEF, r1.NEF, ..."]


@pytest.fixture
def barred(tmp_path, monkeypatch):
    """A folder that its owner may not read; tests may run as root, whom nothing is barred to."""
    folder = fill(tmp_path, "a.jpg", "barred/b.jpg") / "barred"
    listed, scanned = os.listdir, os.scandir

    def refusing(look):
        def looked(path="."):
            if Path(path) == folder:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return look(path)

        return looked

    monkeypatch.setattr(os, "listdir", refusing(listed))
    monkeypatch.setattr(os, "scandir", refusing(scanned))
    return folder


def test_a_named_folder_that_cannot_be_read_is_no_empty_one(barred):
    with pytest.raises(MissingFolderError, match=r"barred cannot be read: Permission denied\."):
        query_photos([barred])


def test_a_folder_below_that_cannot_be_read_is_warned_of_and_the_rest_is_asked(barred):
    warnings = []
    assert names(query_photos([barred.parent], on_warning=warnings.append)) == ["a.jpg"]
    assert warnings == [f"the folder {barred} cannot be read: Permission denied. What is in it is left out."]


def test_named_files_come_in_the_order_in_which_they_are_named(tmp_path):
    fill(tmp_path, "b.jpg", "a.jpg", "folder/d.jpg", "folder/c.jpg")
    found = query_photos([tmp_path / "b.jpg", tmp_path / "folder", tmp_path / "a.jpg"])
    assert names(found) == ["b.jpg", "c.jpg", "d.jpg", "a.jpg"]


def test_a_named_file_is_asked_whatever_it_is(tmp_path):
    fill(tmp_path, "notes.txt", ".hidden")
    assert names(query_photos([tmp_path / "notes.txt", tmp_path / ".hidden"])) == ["notes.txt", ".hidden"]


def test_a_dangling_link_that_is_named_is_asked_so_that_it_is_refused_as_a_photo(tmp_path):
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone")
    assert names(query_photos([tmp_path / "link.jpg"])) == ["link.jpg"]


def test_hidden_files_and_folders_named_like_photos_are_not_asked(tmp_path):
    fill(tmp_path, "a.jpg", "._a.jpg", ".hidden.png", "b.jpg/inner.txt")
    assert names(query_photos([tmp_path])) == ["a.jpg"]


def test_photos_in_hidden_folders_are_not_asked(tmp_path):
    fill(tmp_path, "a.jpg", ".thumbnails/a.jpg", "trip/.trash/deep/b.jpg")
    assert [str(path.relative_to(tmp_path)) for path in query_photos([tmp_path])] == ["a.jpg"]


def test_a_folder_that_lies_in_a_hidden_one_can_be_named(tmp_path):
    fill(tmp_path, ".cache/photos/a.jpg")
    assert names(query_photos([tmp_path / ".cache" / "photos"])) == ["a.jpg"]


@pytest.mark.parametrize("content", [["notes.txt"], [], ["deep/er/"], [".hidden.jpg"]])
def test_a_folder_without_photos_is_refused_with_the_endings_that_count(content, tmp_path):
    with pytest.raises(EmptyFolderError, match="holds no photos") as caught:
        query_photos([fill(tmp_path / "f", "x/", *content)])
    assert ".jpeg, .jpg, .png" in caught.value.hint


def test_a_missing_target_is_named(tmp_path):
    fill(tmp_path, "a.jpg")
    with pytest.raises(MissingFolderError, match=r"no file or folder .*gone\.jpg"):
        query_photos([tmp_path / "a.jpg", tmp_path / "gone.jpg"])


def test_a_link_that_leads_in_a_circle_ends(tmp_path):
    fill(tmp_path, "a/b.jpg")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert "b.jpg" in names(query_photos([tmp_path]))


def test_a_linked_folder_is_a_class_to_enroll_and_is_not_followed_where_all_below_is_asked(tmp_path):
    fill(tmp_path, "elsewhere/b.jpg", "photos/rust/a.jpg")
    (tmp_path / "photos" / "scab").symlink_to(tmp_path / "elsewhere")
    assert {each.label: names(each.photos) for each in class_folders(tmp_path / "photos")} == {
        "rust": ["a.jpg"],
        "scab": ["b.jpg"],
    }
    assert names(query_photos([tmp_path / "photos"])) == ["a.jpg"]
    assert names(query_photos([tmp_path / "photos" / "scab"])) == ["b.jpg"]


def test_nothing_named_is_nothing_asked():
    assert query_photos([]) == []
