"""What every interface shows of an error: one shape, one code a kind, exit codes and statuses that mean something."""

from http import HTTPStatus

import pytest

from fewshot import errors
from fewshot.errors import FewshotError, ImageError, UnknownLabelError, did_you_mean, nearest_name


def family(error=FewshotError):
    return [error, *(below for child in error.__subclasses__() for below in family(child))]


# `fewshot.errors` holds all of them: what another test module derives is none of ours.
KINDS = [kind for kind in family() if kind.__module__ == errors.__name__]


def made(kind):
    return kind("a", "plants", ["b"]) if kind is UnknownLabelError else kind("what was found")


def test_every_error_is_of_the_one_family():
    ours = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, BaseException)]
    assert set(ours) == set(KINDS)
    assert len(KINDS) > 30


def test_no_two_kinds_share_a_code():
    by_code = {}
    for kind in KINDS:
        by_code.setdefault(kind.code, []).append(kind.__name__)
    assert {code: kinds for code, kinds in by_code.items() if len(kinds) > 1} == {}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_code_of_its_own_in_small_letters(kind):
    assert "code" in vars(kind)
    assert kind.code.replace("_", "").isalpha()
    assert kind.code == kind.code.lower()


@pytest.mark.parametrize("kind", KINDS)
def test_the_exit_code_says_failed_or_misused(kind):
    """1 and 2 alone are promised to scripts."""
    assert kind.exit_code in {1, 2}


@pytest.mark.parametrize("kind", KINDS)
def test_the_status_is_an_http_error(kind):
    assert HTTPStatus(kind.status) >= 400


@pytest.mark.parametrize("kind", KINDS)
def test_misuse_is_the_client_s_fault_over_http_too(kind):
    if kind.exit_code == 2:
        assert 400 <= kind.status < 500


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_the_one_shape(kind):
    shape = made(kind).as_dict()
    assert list(shape) == ["code", "message", "hint"]
    assert shape["code"] == kind.code
    assert all(isinstance(value, str) for value in shape.values())
    assert shape["message"]


def test_the_shape_is_pinned():
    assert ImageError("x.jpg is odd.", hint="Look at it.").as_dict() == {
        "code": "bad_image",
        "message": "x.jpg is odd.",
        "hint": "Look at it.",
    }


@pytest.mark.parametrize(
    ("name", "code", "exit_code", "status"),
    [
        ("UsageError", "usage", 2, 400),
        ("OutputError", "output", 1, 500),
        ("NotAnImageError", "not_an_image", 1, 422),
        ("EmptyFileError", "empty_file", 1, 422),
        ("TruncatedImageError", "truncated", 1, 422),
        ("DamagedImageError", "damaged", 1, 422),
        ("ImageTooSmallError", "too_small", 1, 422),
        ("ImageTooLargeError", "too_large", 1, 413),
        ("UnreadableFileError", "unreadable", 1, 422),
        ("OtherLabelError", "other_label", 1, 409),
        ("MissingFolderError", "missing_folder", 2, 400),
        ("EmptyFolderError", "empty_folder", 2, 400),
        ("NestedFolderError", "nested_folder", 2, 400),
        ("LabelError", "bad_label", 2, 400),
        ("UnknownLabelError", "unknown_label", 2, 404),
        ("NoFittingClassError", "no_class_fits", 2, 404),
        ("LabelTakenError", "label_taken", 2, 409),
        ("IndexMissingError", "index_missing", 2, 404),
        ("NotAnIndexError", "not_an_index", 2, 400),
        ("NewerFormatError", "newer_format", 1, 500),
        ("IndexDamagedError", "index_damaged", 1, 500),
        ("IndexLockedError", "index_locked", 1, 503),
        ("DiskFullError", "disk_full", 1, 507),
        ("MixedEmbeddingsError", "mixed_embeddings", 2, 409),
    ],
)
def test_what_programs_rely_on_stays(name, code, exit_code, status):
    kind = getattr(errors, name)
    assert (kind.code, kind.exit_code, kind.status) == (code, exit_code, status)


def test_a_hint_belongs_to_one_error_and_not_to_its_kind():
    before = errors.NotAnImageError.hint
    assert errors.NotAnImageError("x", hint="Another.").hint == "Another."
    assert errors.NotAnImageError("x").hint == errors.NotAnImageError.hint == before
    assert errors.NotAnImageError("x", hint="").hint == ""


def test_an_error_reads_as_its_message():
    assert str(FewshotError("leaf.jpg is empty.")) == "leaf.jpg is empty."


# ---- names


def test_an_unknown_label_suggests_the_nearest_and_names_the_index():
    error = UnknownLabelError("corn-rusty", "plants", iter(["corn-rust", "apple-scab"]))
    assert error.message == "index 'plants' holds no class 'corn-rusty' (it holds 2)."
    assert error.hint == "Did you mean 'corn-rust'?"


@pytest.mark.parametrize("known", [[], ["apple-scab"]])
def test_an_unknown_label_that_is_near_to_none_is_told_where_to_look(known):
    assert "fewshot classes" in UnknownLabelError("zzz", "plants", known).hint


@pytest.mark.parametrize(
    ("wanted", "nearest"),
    [
        ("corn-rust", "Corn-Rust"),
        ("CORN-RUST", "Corn-Rust"),
        ("corn rust", "Corn-Rust"),
        ("aple-scab", "apple-scab"),
        ("apple", "apple-scab"),
        ("", None),
        ("xyzzy", None),
    ],
)
def test_the_nearest_name_is_near_or_none(wanted, nearest):
    assert nearest_name(wanted, ["Corn-Rust", "apple-scab", "grape-black-rot"]) == nearest


def test_of_several_near_names_the_nearest_is_given():
    assert nearest_name("rust-3", ["rust-1", "rust-33", "rust-3a", "dust-3", "rust-3"]) == "rust-3"


def test_among_no_names_there_is_none_near():
    assert nearest_name("rust", []) is None
    assert did_you_mean("rust", iter([])) == ""


def test_a_suggestion_is_one_of_the_known_names():
    assert did_you_mean("Aple", ("apple", "corn")) == "Did you mean 'apple'?"
