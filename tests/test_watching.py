"""A watched folder: each photo at rest is answered once, whatever is done to the folder and the photos."""

import errno
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from conftest import LEAF_COLOURS, colour_embedder, eventually, write_leaf
from watch_steps import ROUTES, Watch, answered, lines, new_photo

from fewshot.datasets import class_folder, class_folders
from fewshot.errors import DatabaseUnreachableError, MissingFolderError, MixedEmbeddingsError, UnreadableFileError
from fewshot.gallery import Gallery
from fewshot.images import content_hash
from fewshot.records import UNKNOWN, Prediction
from fewshot.watching import arrivals as arrivals_module
from fewshot.watching.arrivals import Arrivals, changes, signature_of, watched_folder
from fewshot.watching.routes import Routes

# ---- arrivals


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_file_that_still_changes_is_not_at_rest(inbox):
    clock = Clock()
    found = Arrivals(inbox, 1.0, clock)
    (inbox / "a.jpg").write_bytes(b"half")
    found.look()
    clock.now += 0.9
    assert found.settled() == []
    (inbox / "a.jpg").write_bytes(b"half and half")
    clock.now += 0.9  # the pause is over, but the file has grown
    assert found.settled() == []
    clock.now += 0.9
    assert found.settled() == []
    clock.now += 0.2
    (arrival,) = found.settled()
    assert arrival.path == inbox / "a.jpg"
    assert arrival.quiet_s >= 1.0
    assert found.settled() == []
    assert found.n_waiting == 0


def test_the_files_own_times_are_not_compared_with_the_clock(inbox):
    """A file server's clock may be hours away from ours."""
    clock = Clock()
    found = Arrivals(inbox, 1.0, clock)
    (inbox / "a.jpg").write_bytes(b"old")
    os.utime(inbox / "a.jpg", (0, 0))
    (inbox / "b.jpg").write_bytes(b"from the future")
    os.utime(inbox / "b.jpg", (9e9, 9e9))
    found.look()
    assert found.settled() == []
    clock.now += 1.0
    assert [arrival.path.name for arrival in found.settled()] == ["a.jpg", "b.jpg"]


def test_what_is_done_is_told_again_only_when_it_changes(inbox):
    clock = Clock()
    found = Arrivals(inbox, 1.0, clock)
    photo = inbox / "a.jpg"
    photo.write_bytes(b"one")
    found.done(photo, signature_of(photo))
    found.look()
    clock.now += 2
    assert found.settled() == []
    photo.write_bytes(b"two!")
    found.look()
    clock.now += 2
    assert [arrival.path for arrival in found.settled()] == [photo]


def test_hidden_files_notes_and_linked_folders_are_passed_over(inbox):
    for name in (".hidden.jpg", "notes.txt", "Thumbs.db", "photo", "photo.jpg.part", ".trash/a.jpg"):
        (inbox / name).parent.mkdir(exist_ok=True)
        (inbox / name).write_bytes(b"x")
    (inbox / "circle").symlink_to(inbox, target_is_directory=True)
    os.mkfifo(inbox / "pipe.jpg")
    (inbox / "dead.jpg").symlink_to(inbox / "nothing")
    (inbox / "sub" / "deep").mkdir(parents=True)
    for name in ("a.JPG", "sub/b.png", "sub/deep/c.heic"):
        (inbox / name).write_bytes(b"x")
    found = Arrivals(inbox, 0.0, Clock())
    found.look()
    found.look(inbox / ".trash")
    found.look(inbox / ".trash" / "a.jpg")
    assert [str(arrival.path.relative_to(inbox)) for arrival in found.settled()] == [
        "a.JPG",
        "sub/b.png",
        "sub/deep/c.heic",
    ]


def test_what_the_system_tells_of_linked_folders_is_passed_over(inbox, tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    for name in ("a.jpg", "deep/b.jpg"):
        (tmp_path / "elsewhere" / name).write_bytes(b"x")
    (inbox / "sub").mkdir()
    (inbox / "sub" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (inbox / "sub" / "photo.jpg").symlink_to(tmp_path / "elsewhere" / "a.jpg")  # a linked photo is a photo
    found = Arrivals(inbox, 0.0, Clock())
    for name in ("link", "link/a.jpg", "link/deep", "link/deep/b.jpg", "photo.jpg", "."):
        found.look(inbox / "sub" / name)
    assert [arrival.path for arrival in found.settled()] == [inbox / "sub" / "photo.jpg"]


def test_a_folder_that_may_not_be_entered_any_more_is_passed_over(inbox, monkeypatch):
    (inbox / "barred").mkdir()
    (inbox / "a.jpg").write_bytes(b"x")
    found = Arrivals(inbox, 0.0, Clock())
    stat = os.stat

    def barred(path, **settings):  # root, as which tests may run, may enter everything
        if "barred" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **settings)

    monkeypatch.setattr(os, "stat", barred)
    for path in (inbox / "barred" / "b.jpg", inbox / "barred", inbox / "a.jpg"):
        found.look(path)
    assert [arrival.path.name for arrival in found.settled()] == ["a.jpg"]


def test_a_folder_that_cannot_be_watched_says_why(tmp_path):
    with pytest.raises(MissingFolderError, match="there is no folder"):
        watched_folder(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(MissingFolderError, match="is a file"):
        watched_folder(tmp_path / "file")


def test_the_system_tells_of_files_written_renamed_and_moved_in_with_their_folder(inbox, tmp_path):
    stop, told = threading.Event(), set()

    def listen():
        for paths in changes(inbox, None, 0.05, stop, lambda text: told.add(text)):
            told.update(str(path.relative_to(inbox)) for path in paths if path is not None)

    thread = threading.Thread(target=listen)
    thread.start()
    time.sleep(0.3)
    (inbox / "written.jpg").write_bytes(b"x")
    (tmp_path / "made.jpg").write_bytes(b"x")
    (tmp_path / "made.jpg").rename(inbox / "renamed.jpg")
    (tmp_path / "day").mkdir()
    (tmp_path / "day" / "moved.jpg").write_bytes(b"x")
    (tmp_path / "day").rename(inbox / "day")
    try:
        eventually(lambda: {"written.jpg", "renamed.jpg", "day"} <= told)
    finally:
        stop.set()
        thread.join()


def test_a_name_that_is_no_utf8_does_not_end_what_the_system_tells(enrolled, inbox, tmp_path, monkeypatch):
    monkeypatch.setattr(arrivals_module, "FALLBACK_POLL_S", 0.2)
    begun, watch = [], arrivals_module.watch
    monkeypatch.setattr(arrivals_module, "watch", lambda *args, **settings: begun.append(1) or watch(*args, **settings))
    with Watch(enrolled, inbox, poll_s=None) as live:
        eventually(lambda: begun)
        new_photo(tmp_path / "made.png").rename(os.fsdecode(os.fsencode(inbox) + b"/caf\xe9.png"))
        eventually(lambda: answered(inbox) == {"caf\\xe9.png": "rust"})
        eventually(lambda: len(begun) > 1)
        new_photo(inbox / "b.png", "mildew", seed=901)
        eventually(lambda: len(answered(inbox)) == 2)
    assert live.told == []


def test_where_the_system_does_not_tell_polling_takes_over_and_says_so(inbox, monkeypatch):
    def no_watches(*_args, **_kwargs):
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr(arrivals_module, "watch", no_watches)
    monkeypatch.setattr(arrivals_module, "FALLBACK_POLL_S", 0.01)
    stop, warnings = threading.Event(), []
    stream = changes(inbox, None, 0.01, stop, warnings.append)
    assert next(stream) == [None]
    assert any(list(next(stream)) == [None] for _ in range(20))
    assert "watch limit" in warnings[0]
    assert "looking every" in warnings[0]
    stop.set()
    assert list(stream) == []


# ---- the watch


def failing(gallery, monkeypatch, *errors):
    """Let an index meet these errors before it answers."""
    left, predict = list(errors), gallery.predict

    def failing_predict(*args, **settings):
        if left:
            raise left.pop(0)
        return predict(*args, **settings)

    monkeypatch.setattr(gallery, "predict", failing_predict)


def test_each_photo_is_answered_once_with_its_place_and_units(enrolled, inbox):
    new_photo(inbox / "33.8568_151.2153.png", "mildew")
    new_photo(inbox / "field" / "-10.5000_20.2500.png", "rust")
    watch = Watch(enrolled, inbox)
    tally = watch.once()
    by_file = {each["file"]: each for each in lines(watch.file.path)}
    mildew = by_file["33.8568_151.2153.png"]
    assert (mildew["answer"], mildew["reason"]) == ("mildew", "match")
    assert (mildew["latitude"], mildew["longitude"], mildew["place_from"]) == (33.8568, 151.2153, "name")
    assert mildew["units"] == ["Sprayer", "Adviser"]
    rust = by_file["field/-10.5000_20.2500.png"]
    assert (rust["answer"], rust["latitude"], rust["units"]) == ("rust", -10.5, ["Sprayer"])
    assert (tally.n_answered, tally.n_bad) == (2, 0)
    assert [each.as_dict() for each in watch.shown] == lines(watch.file.path)


def test_answers_are_those_of_a_query(enrolled, inbox):
    photos = [new_photo(inbox / f"{label}.png", label, 700) for label in LEAF_COLOURS]
    Watch(enrolled, inbox).once()
    expected = {each.file: each for each in enrolled.query(photos)}
    for each in lines(inbox.parent / "answers.jsonl"):
        same = expected[str(inbox / each["file"])]
        assert (each["answer"], each["reason"], each["message"]) == (same.answer, same.reason, same.message)
        assert each["matches"] == [match.as_dict() for match in same.matches]


def test_after_a_restart_only_what_is_new_is_answered(enrolled, inbox):
    new_photo(inbox / "a.png", seed=901)
    Watch(enrolled, inbox).once()
    os.utime(inbox / "a.png")  # touched, not changed
    new_photo(inbox / "b.png", seed=902)
    tally = Watch(enrolled, inbox).once()
    assert (tally.n_answered, tally.n_copies) == (1, 0)
    assert list(answered(inbox)) == ["a.png", "b.png"]


def test_a_copy_is_not_answered_again_unless_its_name_tells_another_place(enrolled, inbox):
    first = new_photo(inbox / "a.png")
    shutil.copy(first, inbox / "b.png")
    watch = Watch(enrolled, inbox)
    assert watch.once().n_copies == 1
    assert any("b.png is the same photo as a.png" in each for each in watch.told)
    first.rename(inbox / "c.png")
    shutil.copy(inbox / "c.png", inbox / "33.8568_151.2153.png")
    assert Watch(enrolled, inbox).once().n_answered == 1
    assert list(answered(inbox)) == ["a.png", "33.8568_151.2153.png"]


def test_another_photo_under_the_same_name_is_answered(enrolled, inbox):
    new_photo(inbox / "latest.png", "rust")
    Watch(enrolled, inbox).once()
    new_photo(inbox / "latest.png", "mildew")
    Watch(enrolled, inbox).once()
    assert [each["answer"] for each in lines(inbox.parent / "answers.jsonl")] == ["rust", "mildew"]


@pytest.mark.parametrize("poll_s", [None, 0.02])
def test_photos_that_come_while_it_watches_are_answered(enrolled, inbox, tmp_path, poll_s):
    data = new_photo(tmp_path / "made.png", seed=905).read_bytes()
    with Watch(enrolled, inbox, poll_s=poll_s) as watch:
        time.sleep(0.3)
        new_photo(inbox / "a.png", seed=901)
        (inbox / "sub").mkdir()
        new_photo(inbox / "sub" / "b.png", "mildew", seed=902)
        new_photo(tmp_path / "day" / "c.png", seed=903)
        (tmp_path / "day").rename(inbox / "day")
        new_photo(tmp_path / "elsewhere.png", seed=904).rename(inbox / "d.png")
        with (inbox / "slow.png").open("wb") as file:  # written in pieces, faster than it settles
            for start in range(0, len(data), 4000):
                file.write(data[start : start + 4000])
                file.flush()
                time.sleep(0.01)
        eventually(lambda: len(answered(inbox)) == 5)
    assert answered(inbox) == {
        "a.png": "rust",
        "sub/b.png": "mildew",
        "day/c.png": "rust",
        "d.png": "rust",
        "slow.png": "rust",
    }
    assert lines(watch.report.path) == []


def test_a_writer_that_pauses_longer_than_settling_is_not_called_bad(enrolled, inbox, tmp_path):
    data = new_photo(tmp_path / "whole.png").read_bytes()
    with Watch(enrolled, inbox) as watch:  # settles in 0.05 s, is patient for 0.5 s
        (inbox / "a.png").write_bytes(data[: len(data) // 2])
        time.sleep(0.25)
        (inbox / "a.png").write_bytes(data)
        eventually(lambda: answered(inbox) == {"a.png": "rust"})
    assert lines(watch.report.path) == []
    assert watch.told == []


def test_bad_photos_go_to_the_report_once_and_the_others_are_answered(enrolled, inbox):
    whole = new_photo(inbox / "good.png").read_bytes()
    (inbox / "cut.png").write_bytes(whole[: len(whole) // 2])
    (inbox / "empty.jpg").write_bytes(b"")
    (inbox / "words.jpg").write_text("no picture")
    (inbox / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (inbox / "notes.txt").write_text("not a photo, and none meant")
    watch = Watch(enrolled, inbox)
    tally = watch.once()
    assert (tally.n_answered, tally.n_bad) == (1, 4)
    reported = {each["file"]: each["message"] for each in lines(watch.report.path)}
    assert set(reported) == {"cut.png", "empty.jpg", "words.jpg", "phone.heic"}
    assert "empty" in reported["empty.jpg"]
    assert "HEIC" in reported["phone.heic"]
    assert answered(inbox) == {"good.png": "rust"}
    assert len([each for each in watch.told if "words.jpg" in each]) == 1
    again = Watch(enrolled, inbox)
    assert again.once().n_bad == 0
    assert len(lines(watch.report.path)) == 4


def test_a_bad_photo_that_was_mended_is_answered(enrolled, inbox):
    (inbox / "a.png").write_text("no picture")
    Watch(enrolled, inbox).once()
    new_photo(inbox / "a.png")
    Watch(enrolled, inbox).once()
    assert answered(inbox) == {"a.png": "rust"}


def refusing_all(gallery, monkeypatch):
    """Let an index not read the photos that it is asked, as on a machine without time for their decoding."""

    def refusing(photos, *_args, **_settings):
        return [Prediction("", UNKNOWN, "bad_image", "took too long to decode") for _ in photos]

    monkeypatch.setattr(gallery, "query", refusing)


def test_a_sound_photo_that_could_not_be_read_is_answered_when_it_is_sent_again(enrolled, inbox, monkeypatch):
    photo = new_photo(inbox / "a.png")
    with monkeypatch.context() as patch:
        refusing_all(enrolled, patch)
        watch = Watch(enrolled, inbox)
        assert watch.once().n_bad == 1
    assert (Watch(enrolled, inbox).once().n_bad, answered(inbox)) == (0, {})
    shutil.copy(photo, inbox / "b.png")
    os.utime(photo, (1e9, 1e9))
    tally = Watch(enrolled, inbox).once()
    assert (tally.n_answered, tally.n_copies) == (1, 1)
    assert list(answered(inbox).values()) == ["rust"]
    assert len(lines(watch.report.path)) == 1


def test_a_memory_that_holds_a_bad_photo_under_its_content_lets_it_be_answered(enrolled, inbox, monkeypatch):
    new_photo(inbox / "a.png")
    with monkeypatch.context() as patch:
        refusing_all(enrolled, patch)
        watch = Watch(enrolled, inbox)
        # The key that earlier versions gave: of the content alone.
        patch.setattr(
            watch.watcher,
            "_refused",
            lambda arrival, prediction, located: watch.watcher._finished(
                arrival, watch.watcher._key(content_hash(arrival.path.read_bytes()), located), prediction, located
            ),
        )
        assert watch.once().n_bad == 1
    os.utime(inbox / "a.png", (1e9, 1e9))
    assert Watch(enrolled, inbox).once().n_answered == 1
    assert answered(inbox) == {"a.png": "rust"}
    os.utime(inbox / "a.png", (1e9 + 1, 1e9))
    assert Watch(enrolled, inbox).once().n_answered == 0


def test_each_bad_photo_is_reported_though_another_had_the_same_content(enrolled, inbox):
    for name in ("a.jpg", "b.jpg"):
        (inbox / name).write_text("no picture")
    watch = Watch(enrolled, inbox)
    assert watch.once().n_bad == 2
    assert {each["file"] for each in lines(watch.report.path)} == {"a.jpg", "b.jpg"}


def test_bad_photos_have_units_if_the_routes_say_so(enrolled, inbox):
    (inbox / "words.jpg").write_text("no picture")
    routes = Routes("farm", dict(ROUTES.units), bad_image=("Camera crew",))
    watch = Watch(enrolled, inbox, routes=routes)
    watch.once()
    (answer,) = lines(watch.file.path)
    assert (answer["reason"], answer["units"]) == ("bad_image", ["Camera crew"])
    assert lines(watch.report.path) == [answer]


def test_a_file_that_is_deleted_before_it_is_read_is_no_news(enrolled, inbox, monkeypatch):
    new_photo(inbox / "a.png", seed=901)
    gone = new_photo(inbox / "b.png", seed=902)
    watch = Watch(enrolled, inbox)
    settled = watch.watcher._arrivals.settled

    def settled_then_deleted():
        found = settled()
        gone.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(watch.watcher._arrivals, "settled", settled_then_deleted)
    tally = watch.once()
    assert (tally.n_answered, tally.n_bad, watch.told) == (1, 0, [])


def test_a_file_that_may_not_be_read_is_reported_once_and_answered_when_it_may(enrolled, inbox, monkeypatch):
    photo = new_photo(inbox / "a.png")

    def barred(path):
        raise UnreadableFileError(f"{path.name} cannot be read: Permission denied.")

    with monkeypatch.context() as patch:  # root, as which tests may run, may read everything
        patch.setattr("fewshot.images.read_bytes", barred)
        watch = Watch(enrolled, inbox)
        assert watch.once().n_bad == 1
        assert Watch(enrolled, inbox).once().n_bad == 0
    (reported,) = lines(watch.report.path)
    assert "Permission denied" in reported["message"]
    photo.chmod(0o600)
    assert Watch(enrolled, inbox).once().n_answered == 1


def test_a_class_enrolled_by_another_process_answers_at_once(enrolled, inbox, tmp_path):
    for i in range(5):
        write_leaf(tmp_path / "flower" / f"{i}.png", (255, 0, 255), i)
    with Watch(enrolled, inbox) as watch:
        new_photo(inbox / "a.png")
        eventually(lambda: len(answered(inbox)) == 1)
        with Gallery(enrolled.folder, embedder=colour_embedder()) as other:
            list(other.enroll([class_folder("flower", tmp_path / "flower")]))
        write_leaf(inbox / "b.png", (255, 0, 255), 77)
        eventually(lambda: len(answered(inbox)) == 2)
    assert answered(inbox) == {"a.png": "rust", "b.png": "flower"}
    assert any("no route for 'flower'" in each for each in watch.told)


def test_unknown_has_no_probability_of_a_class_beside_it(enrolled, inbox):
    new_photo(inbox / "a.png")
    write_leaf(inbox / "b.png", (0, 0, 255), 1)
    watch = Watch(enrolled, inbox)
    watch.once()
    found = {each["file"]: each for each in lines(watch.file.path)}
    assert (found["b.png"]["answer"], found["b.png"]["probability"]) == ("unknown", None)
    assert found["b.png"]["matches"][0]["probability"] > 0
    assert found["a.png"]["probability"] == round(found["a.png"]["matches"][0]["probability"], 4)


def test_photos_wait_while_the_index_is_empty(enrolled, inbox, leaves, monkeypatch):
    monkeypatch.setattr("fewshot.watching.watcher.RETRY_S", 0.05)
    for label in LEAF_COLOURS:
        enrolled.remove(label)
    new_photo(inbox / "a.png")
    with Watch(enrolled, inbox) as watch:
        eventually(lambda: any("holds no class" in each for each in watch.told))
        with Gallery(enrolled.folder, embedder=colour_embedder()) as other:
            list(other.enroll(class_folders(leaves(n=5)), strict=True))  # all in one change
        eventually(lambda: answered(inbox) == {"a.png": "rust"})


def test_photos_wait_while_the_database_does_not_answer(enrolled, inbox, monkeypatch):
    monkeypatch.setattr("fewshot.watching.watcher.RETRY_S", 0.05)
    away = DatabaseUnreachableError("the database of index 'index' does not answer: Connection refused.")
    failing(enrolled, monkeypatch, away, away)
    new_photo(inbox / "a.png")
    watch = Watch(enrolled, inbox)
    watch.once()
    assert answered(inbox) == {"a.png": "rust"}
    assert watch.told == [f"{away.said} Photos wait."]


def test_a_database_that_is_away_a_second_time_is_told_a_second_time(enrolled, inbox, monkeypatch):
    monkeypatch.setattr("fewshot.watching.watcher.RETRY_S", 0.05)
    away = DatabaseUnreachableError("the database of index 'index' does not answer: Connection refused.")
    failing(enrolled, monkeypatch, away, away)
    with Watch(enrolled, inbox) as watch:
        new_photo(inbox / "a.png")
        eventually(lambda: len(answered(inbox)) == 1)
        failing(enrolled, monkeypatch, away, away)
        new_photo(inbox / "b.png", seed=901)
        eventually(lambda: len(answered(inbox)) == 2)
    assert watch.told == [f"{away.said} Photos wait."] * 2


def test_a_backbone_exchanged_while_photos_are_asked_is_asked_itself(enrolled, inbox, monkeypatch):
    failing(enrolled, monkeypatch, MixedEmbeddingsError("another backbone"))
    new_photo(inbox / "a.png")
    Watch(enrolled, inbox).once()
    assert answered(inbox) == {"a.png": "rust"}
    failing(enrolled, monkeypatch, *[MixedEmbeddingsError("the user's own backbone")] * 2)
    new_photo(inbox / "b.png", seed=901)
    with pytest.raises(MixedEmbeddingsError, match="own backbone"):
        Watch(enrolled, inbox).once()


@pytest.mark.parametrize("poll_s", [None, 0.02])
def test_a_folder_that_goes_and_comes_back_is_watched_again(enrolled, inbox, tmp_path, monkeypatch, poll_s):
    monkeypatch.setattr(arrivals_module, "FALLBACK_POLL_S", 0.05)
    with Watch(enrolled, inbox, poll_s=poll_s) as watch:
        time.sleep(0.2)
        inbox.rename(tmp_path / "away")
        eventually(lambda: any("there is no folder" in each for each in watch.told))
        new_photo(tmp_path / "away" / "a.png")
        (tmp_path / "away").rename(inbox)
        eventually(lambda: answered(inbox) == {"a.png": "rust"})


def test_names_that_are_no_unicode_and_that_move_cursors_are_answered(enrolled, inbox):
    photo = new_photo(inbox / "a.png")
    photo.rename(os.fsdecode(os.fsencode(inbox) + b"/caf\xe9.png"))
    new_photo(inbox / "b\x1b[2J\n.png", "mildew")
    broken = {b"caf\xe9.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"caf\xe9.jpg": b""}
    for name, data in broken.items():  # refused by a message that names them
        Path(os.fsdecode(os.fsencode(inbox) + b"/" + name)).write_bytes(data)
    watch = Watch(enrolled, inbox)
    assert watch.once().n_bad == 2
    reported = {each["file"]: each["message"] for each in lines(watch.report.path)}
    assert set(reported) == {"caf\\xe9.heic", "caf\\xe9.jpg"}
    assert all(message.startswith(file) for file, message in reported.items())
    assert set(answered(inbox).values()) == {"rust", "mildew"}
    assert "caf\\xe9.png" in answered(inbox)
    assert Watch(enrolled, inbox).once().n_answered == 0
