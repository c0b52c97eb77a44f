"""One opened index, many threads: questions, enrolments and removals at once, and every answer of one view."""

import threading

from conftest import LEAF_COLOURS, write_leaf

from fewshot.datasets import ClassFolder, class_folders
from fewshot.embedder import EmbedderChoice
from fewshot.gallery.pinning import PinnedEmbedder
from fewshot.records import Question

N_THREADS = 4
N_CHANGES = 25


def test_questions_and_changes_at_once_agree_with_the_index_and_lose_nothing(gallery, leaves, tmp_path):
    list(gallery.enroll(class_folders(leaves(n=4))))
    asked = {label: write_leaf(tmp_path / f"{label}.png", colour, 900) for label, colour in LEAF_COLOURS.items()}
    extra = [write_leaf(tmp_path / "extra" / f"{i}.png", (20, 30, 200), i) for i in range(N_CHANGES)]
    embedder = gallery.embedder()
    vectors = {label: embedder.embed_pixels(embedder.prepare(photo).pixels[None]) for label, photo in asked.items()}
    stop, failures, n_answers = threading.Event(), [], []

    def ask(label):
        n = 0
        try:
            while not stop.is_set():
                question = Question(top=6, n_nearest=40)
                (found,) = gallery.predict(vectors[label], question)
                n += 1
                # The classes, and the photos' classes, are those of one moment.
                labels = {match.label for match in found.matches}
                assert labels >= {photo.label for photo in found.nearest}
                assert found.matches[0].label == label
                ids = [photo.support_id for photo in found.nearest]
                assert len(set(ids)) == len(ids)
                gallery.inspect(label)
        except BaseException as error:  # told by the thread that waits
            failures.append(error)
        n_answers.append(n)

    threads = [threading.Thread(target=ask, args=(label,)) for label in LEAF_COLOURS][:N_THREADS]
    for thread in threads:
        thread.start()
    try:
        for photo in extra:
            (report,) = gallery.enroll([ClassFolder("extra", (photo,))])
            assert report.enrolled == 1
        kept = gallery.supports("extra")
        for support in kept[: N_CHANGES // 2]:
            gallery.remove_support(support.support_id)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert failures == []
    assert min(n_answers) > 0
    assert len(gallery.supports("extra")) == N_CHANGES - N_CHANGES // 2
    assert gallery.problems() == []


def test_an_embedder_is_opened_once_however_many_ask_for_it(gallery, leaves, monkeypatch):
    list(gallery.enroll(class_folders(leaves(n=2))))
    opened = []
    embedder = gallery.embedder()
    gallery._pinned = PinnedEmbedder(EmbedderChoice())
    gate = threading.Barrier(N_THREADS)

    def open_slowly(*_, **__):
        opened.append(threading.current_thread())
        return embedder

    monkeypatch.setattr("fewshot.gallery.pinning.open_embedder", open_slowly)

    def ask():
        gate.wait()
        gallery.embedder()

    threads = [threading.Thread(target=ask) for _ in range(N_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(opened) == 1
