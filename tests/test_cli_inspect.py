"""`fewshot inspect LABEL --photos`: every photo of a class with the number by which it can be removed."""

from cli_steps import fails, lines, ok, run
from conftest import LEAF_COLOURS, write_leaf
from gallery_steps import enroll


def test_every_photo_of_a_class_is_listed_with_its_number_name_and_own_similarity(enrolled):
    own = ["--index", enrolled.place]
    heading, *rows = ok("inspect", "rust", "--photos", *own).splitlines()
    assert heading.split() == ["number", "file", "own", "nearer", "to"]
    photos = enrolled.supports("rust")
    assert [row.split() for row in rows] == [
        [str(photo.support_id), photo.file, f"{photo.own_similarity:.2f}"] for photo in photos
    ]
    (found,) = lines("inspect", "rust", "--photos", *own)
    (plain,) = lines("inspect", "rust", *own)
    assert found == {**plain, "photos": [photo.as_dict() for photo in photos]}


def test_what_lies_nearer_to_another_class_is_told_beside_the_photo(enrolled, tmp_path):
    write_leaf(tmp_path / "odd" / "mistaken.png", LEAF_COLOURS["rust"], 77)
    enroll(enrolled, tmp_path / "odd", "healthy")
    (row,) = [
        line for line in ok("inspect", "healthy", "--photos", "--index", enrolled.place).splitlines() if "mist" in line
    ]
    assert row.split()[-2] == "rust"


def test_a_photo_alone_in_its_class_has_no_own_similarity(gallery, leaves):
    enroll(gallery, leaves(n=1) / "rust", "rust")
    assert ok("inspect", "rust", "--photos", "--index", gallery.place).splitlines()[1].split() == [
        "1",
        "rust-00.png",
        "-",
    ]


def test_a_number_that_is_listed_removes_that_photo_and_a_wrong_one_says_where_numbers_are(enrolled):
    own = ["--index", enrolled.place]
    number, file = ok("inspect", "rust", "--photos", *own).splitlines()[3].split()[:2]
    assert "fewshot inspect healthy --photos" in fails(2, "usage", "remove", "healthy", "--photo", number, *own)
    ok("remove", "rust", "--photo", number, *own)
    assert file not in ok("inspect", "rust", "--photos", *own)
    assert "`fewshot inspect LABEL --photos`" in fails(2, "unknown_support", "remove", "rust", "--photo", 9999, *own)


def test_photos_are_listed_of_one_class_that_there_is(enrolled):
    own = ["--index", enrolled.place]
    result = run("inspect", "--photos", *own)
    assert result.exit_code == 2
    assert "give its LABEL" in result.stderr
    assert "Did you mean 'rust'?" in fails(2, "unknown_label", "inspect", "rusty", "--photos", *own)
