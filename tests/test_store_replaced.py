"""An index file that is moved, removed or replaced while it is open."""

import sqlite3
from contextlib import closing

import pytest
from test_store import add_class, content

from fewshot.errors import IndexMissingError, NotAnIndexError
from fewshot.store import FILE_NAME, Store
from fewshot.store.schema import APPLICATION_ID, FORMAT_VERSION


@pytest.mark.parametrize("what", ["file", "folder"])
def test_an_index_that_goes_away_while_it_is_open_is_missed_and_nothing_is_made_in_its_place(tmp_path, what):
    file = tmp_path / "plants" / FILE_NAME
    store = Store(file.parent, create=True)
    add_class(store, "rust", "a.jpg")
    gone = file if what == "file" else file.parent
    gone.rename(tmp_path / "elsewhere")
    for ask in (lambda: content(store), lambda: add_class(store, "mildew", "b.jpg")):
        with pytest.raises(IndexMissingError, match="moved or removed while it was open"):
            ask()
    assert not gone.exists()

    (tmp_path / "elsewhere").rename(gone)
    add_class(store, "mildew", "b.jpg")
    store.close()
    with closing(Store(file.parent)) as again, again.read() as reader:
        assert reader.labels() == ["mildew", "rust"]


def test_an_index_that_is_replaced_while_it_is_open_is_the_new_one_for_every_reader_and_writer(tmp_path):
    file = tmp_path / "plants" / FILE_NAME
    with closing(Store(file.parent, create=True)) as store:
        add_class(store, "rust", "a.jpg")
        store.copy_to(tmp_path / "other")
        with closing(Store(tmp_path / "other")) as other:
            add_class(other, "scab", "c.jpg")
        with store.read() as before:
            for each in file.parent.glob(f"{FILE_NAME}*"):
                each.rename(tmp_path / each.name)
            (tmp_path / "other" / FILE_NAME).rename(file)
            with store.read() as after:
                assert after.labels() == ["rust", "scab"]
            assert before.labels() == ["rust"], "a view that was begun stays what it was"
        add_class(store, "mildew", "b.jpg")
    with closing(Store(file.parent)) as again, again.read() as reader:
        assert reader.labels() == ["mildew", "rust", "scab"]
        assert not reader.problems()


@pytest.mark.parametrize("version", [FORMAT_VERSION - 1, FORMAT_VERSION + 1, None])
def test_what_is_no_index_of_this_format_is_not_taken_for_the_one_that_was_open(tmp_path, version):
    file = tmp_path / "plants" / FILE_NAME
    with closing(Store(file.parent, create=True)) as store:
        add_class(store, "rust", "a.jpg")
        other = file.with_name("other.sqlite")
        with closing(sqlite3.connect(other)) as connection:
            connection.execute("CREATE TABLE notes (text)")
            if version is not None:
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {version}")
            connection.commit()
        found = other.read_bytes()
        for each in file.parent.glob(f"{FILE_NAME}*"):
            each.unlink()
        other.rename(file)
        for _ in range(2):
            with pytest.raises(NotAnIndexError, match="replaced while it was open"):
                content(store)
        assert file.read_bytes() == found
