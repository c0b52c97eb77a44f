"""Several requests answered from one view are answered as each alone would be."""

import pytest
from conftest import LEAF_COLOURS, write_leaf

from fewshot.datasets import class_folders
from fewshot.errors import MixedEmbeddingsError, NoFittingClassError
from fewshot.records import NamedBytes, Question, Refused


@pytest.fixture
def filled(gallery, leaves):
    list(gallery.enroll(class_folders(leaves(n=5))))
    return gallery


@pytest.fixture
def requests(filled, tmp_path):
    """Three requests: two photos, one that cannot be read beside one that can, none that can."""
    embedder = filled.embedder()
    photos = [write_leaf(tmp_path / f"{label}.png", colour, 800) for label, colour in LEAF_COLOURS.items()]
    good = list(embedder.embed_photos(photos, n_photos=4))
    (bad,) = embedder.embed_photos([NamedBytes("note.txt", b"no photo")], n_photos=1)
    assert isinstance(bad, Refused)
    return [good[:2], [bad, good[2]], [bad]]


@pytest.mark.parametrize("together", [False, True])
def test_requests_answered_at_once_are_answered_as_each_alone(filled, requests, together):
    question = Question(top=4, n_nearest=5, coverage=0.8, together=together)
    embedder = filled.embedder()
    at_once = filled.answer(requests, question, embedder)
    alone = [filled.answer([request], question, embedder)[0] for request in requests]
    # As they are shown: products of more rows at once may differ in the last digit.
    assert [[a.as_dict() for a in answers] for answers in at_once] == [
        [a.as_dict() for a in answers] for answers in alone
    ]
    assert [len(answers) for answers in at_once] == ([1, 2, 1] if together else [2, 2, 1])
    assert [answers[0].reason == "bad_image" for answers in at_once] == [False, True, True]


def test_photos_asked_together_are_answered_as_by_query(filled, tmp_path):
    photos = [write_leaf(tmp_path / f"{i}.png", LEAF_COLOURS["rust"], 800 + i) for i in range(3)]
    question = Question(together=True)
    embedder = filled.embedder()
    outcomes = list(embedder.embed_photos(photos, n_photos=3))
    (found,) = filled.answer([outcomes], question, embedder)
    assert [a.as_dict() for a in found] == [a.as_dict() for a in filled.query(photos, question)]


def test_of_many_classes_each_photo_is_compared_with_what_the_others_are_near_to(filled, tmp_path, monkeypatch):
    photos = [write_leaf(tmp_path / f"{label}.png", LEAF_COLOURS[label], 800) for label in ("rust", "healthy")]
    (every,) = filled.query(photos, Question(top=4, together=True))
    monkeypatch.setattr("fewshot.classifier.scores.N_SCORED", 1)  # as if four classes were more than are scored
    (few,) = filled.query(photos, Question(top=1, together=True))
    exact = {match.label: match.similarity for match in every.matches}
    best = max(("rust", "healthy"), key=exact.__getitem__)  # the two that a photo is nearest to
    assert few.matches[0].label == best
    assert few.matches[0].similarity == pytest.approx(exact[best], abs=1e-5)


def test_no_class_that_fits_is_told_before_anything_is_compared(filled, requests):
    with pytest.raises(NoFittingClassError, match="fits 'nothing'"):
        filled.answer(requests, Question(within=("nothing",)), filled.embedder())


def test_embeddings_of_another_embedder_are_never_compared(filled, requests):
    from conftest import colour_embedder

    with pytest.raises(MixedEmbeddingsError):
        filled.answer(requests, Question(), colour_embedder("others", 32))
