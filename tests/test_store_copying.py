"""An index copied between folders and databases: the same to the last bit, resumable, and never a half one."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from test_store import add_class, change, content

from fewshot.errors import CopyError, IndexDamagedError, IndexMissingError, NotAnIndexError
from fewshot.store import copy_index, copying, open_store
from fewshot.store.schema import embeddings, supports


@pytest.fixture
def source(place):
    """An index with a removed class, so that ids are not what counting would give."""
    with closing(open_store(place, create=True)) as opened:
        add_class(opened, "gone", *(f"g{i}.png" for i in range(3)))
        add_class(opened, "rust", *(f"r{i}.png" for i in range(30)))
        add_class(opened, "Ähre", *(f"b{i}.png" for i in range(5)))
        with opened.write() as writer:
            writer.remove_class(writer.wanted_class_id("gone"))
            writer.note("remove", "gone")
        yield opened


@pytest.fixture
def target(place, tmp_path, postgres):
    """The other kind of place."""
    return tmp_path / "copies" / "plants" if isinstance(place, str) else postgres.new_place()


@pytest.mark.parametrize("again", ["folder", "database"])
def test_a_copy_of_a_copy_is_the_same_wherever_it_goes(source, target, again, tmp_path, postgres):
    first = copy_index(source, target)
    with closing(open_store(target)) as copy:
        second = copy_index(copy, tmp_path / "again" if again == "folder" else postgres.new_place())
    assert first.checksums == second.checksums


def test_a_copy_is_the_same_to_the_last_bit_and_goes_on_counting_where_the_source_does(source, target):
    steps, counted = [], []
    done = copy_index(source, target, on_begin=counted.append, on_row=lambda: steps.append(1))
    assert (done.n_rows * 3, done.n_before) == (len(steps), 0)
    assert counted == [len(steps)]
    with closing(open_store(target)) as copy:
        assert content(copy) == content(source)
        with copy.read() as reader, source.read() as original:
            assert reader.problems() == []
            assert reader.labels() == ["rust", "Ähre"] == original.labels()
            for kind in ("support", "prototype"):
                ids, vectors = reader.changed_vectors(kind, -1)
                assert vectors.tobytes() == original.changed_vectors(kind, -1)[1].tobytes()
                assert ids.tolist() == original.changed_vectors(kind, -1)[0].tolist()
        assert add_class(copy, "new", "n.png") == add_class(source, "new", "n.png")


class Stopped(Exception):
    pass


def stop_after(n):
    left = [n]

    def step():
        left[0] -= 1
        if left[0] == 0:
            raise Stopped

    return step


@pytest.mark.parametrize("n", [1, 60, 130, 340])
def test_an_interrupted_copy_is_no_index_and_goes_on(source, target, n, monkeypatch):
    monkeypatch.setattr(copying, "BATCH_ROWS", 7)
    with pytest.raises(Stopped):
        copy_index(source, target, on_row=stop_after(n))
    with pytest.raises(IndexMissingError) as caught:
        open_store(target)
    if isinstance(target, str):
        assert "never finished" in caught.value.message
        with pytest.raises(IndexMissingError):
            open_store(target, create=True)
    done = copy_index(source, target)
    assert done.n_before >= min(n, done.n_rows) - 7
    with closing(open_store(target)) as copy:
        assert content(copy) == content(source)


def test_a_copy_begins_again_when_the_source_has_changed_meanwhile(source, target, monkeypatch):
    monkeypatch.setattr(copying, "BATCH_ROWS", 7)
    with pytest.raises(Stopped):
        copy_index(source, target, on_row=stop_after(60))
    with source.write() as writer:
        writer.remove_class(writer.wanted_class_id("rust"))
        writer.note("remove", "rust")
    assert copy_index(source, target).n_before == 0
    with closing(open_store(target)) as copy:
        assert content(copy) == content(source)


def test_a_copy_never_overwrites_an_index(source, target):
    copy_index(source, target)
    with closing(open_store(target)) as copy:
        before = content(copy)
    with pytest.raises(CopyError, match="holds an index already"):
        copy_index(source, target)
    with closing(open_store(target)) as copy:
        assert content(copy) == before


def test_a_copy_leaves_other_things_alone(source, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    with pytest.raises(NotAnIndexError, match="is not empty"):
        copy_index(source, tmp_path / "thesis")
    assert [file.name for file in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_an_empty_folder_takes_the_copy(source, tmp_path):
    (tmp_path / "empty").mkdir()
    copy_index(source, tmp_path / "empty")
    with closing(open_store(tmp_path / "empty")) as copy:
        assert content(copy) == content(source)
    assert not (tmp_path / ".empty.copying").exists()


def test_a_disk_of_its_own_takes_the_copy(source, tmp_path, mounted):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted(folder)
    with pytest.raises(Stopped):
        copy_index(source, folder, on_row=stop_after(60))
    with pytest.raises(IndexMissingError):
        open_store(folder)
    assert copy_index(source, folder).n_before
    assert [path.name for path in folder.iterdir()] == ["index.sqlite"]
    with closing(open_store(folder)) as copy:
        assert content(copy) == content(source)


@pytest.mark.parametrize("left", [b"", b'{"created_at": "20', b"\xff\x00"])
def test_half_a_state_is_none(source, tmp_path, left):
    folder = tmp_path / "new"
    with pytest.raises(Stopped):
        copy_index(source, folder, on_row=stop_after(60))
    (tmp_path / ".new.copying" / copying.STATE_FILE).write_bytes(left)
    assert copy_index(source, folder).n_before == 0
    with closing(open_store(folder)) as copy:
        assert content(copy) == content(source)


def test_a_kill_while_the_state_is_written_leaves_none(source, tmp_path, monkeypatch):
    def killed(path, text):
        path.write_bytes(text[:7].encode())
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", killed)
        with pytest.raises(Stopped):
            copy_index(source, tmp_path / "new")
    assert not (tmp_path / ".new.copying" / copying.STATE_FILE).exists()
    copy_index(source, tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["index.sqlite"]


def test_damage_is_not_carried_on(source, target):
    with source.read() as reader:
        zeros = np.zeros(reader.about().dim, "<f4").tobytes()
    damaged = content(source)["supports"][4][0]
    change(source, embeddings.update().where(embeddings.c.support_id == damaged).values(vector=zeros))
    with pytest.raises(IndexDamagedError, match=f"row {damaged} of 'embeddings'"):
        copy_index(source, target)


def test_what_arrives_changed_is_noticed_and_is_no_index(source, target, monkeypatch):
    real = copying._compared

    def meddled(reader, arrived, step):
        change(arrived, supports.update().where(supports.c.file == "r3.png").values(file="r4.png"))
        return real(reader, arrived, step)

    monkeypatch.setattr(copying, "_compared", meddled)
    with pytest.raises(CopyError, match="'supports'"):
        copy_index(source, target)
    with pytest.raises(IndexMissingError):
        open_store(target)


def test_a_reader_of_the_source_state_can_be_kept_as_json(source):
    """It is written into the target while a copy is under way."""
    with source.read() as reader:
        state = copying._state(reader)
        assert json.loads(json.dumps(state)) == state
        rows = reader.connection.execute(sa.select(supports.c.support_id)).scalars().all()
    assert len(rows) == 35
