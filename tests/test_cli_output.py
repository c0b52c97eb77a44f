"""How an answer looks to people: what is certain is not said of what is unknown."""

from dataclasses import replace

import click
from conftest import LEAF_COLOURS, write_leaf

from fewshot.cli.output import IF_NOT_UNKNOWN, NO_LABEL, prediction_lines
from fewshot.records import Match, Prediction

MATCHES = (Match("apple-scab", 0.09, 0.99), Match("corn-rust", 0.02, 0.01))


def shown(prediction):
    return list(prediction_lines(prediction, prediction.file, file_width=10, label_width=12))


def test_beside_unknown_the_percentages_are_said_to_be_of_the_enrolled_classes_and_none_is_bright():
    lines = shown(Prediction("odd.jpg", "unknown", "unknown", "similarity 0.09 to apple-scab", MATCHES))
    assert [click.unstyle(line).split()[0] for line in lines] == ["odd.jpg", "if", "apple-scab", "corn-rust"]
    assert IF_NOT_UNKNOWN in lines[1]
    assert "99%" not in lines[0]
    for line in lines[1:]:
        assert line == click.style(click.unstyle(line), dim=True)


def test_labels_that_cannot_be_ruled_out_are_listed_and_an_empty_list_says_what_it_means():
    answer = Prediction("leaf.jpg", "apple-scab", "match", "", MATCHES)
    left = [shown(replace(answer, covering=labels))[-1].strip() for labels in (("apple-scab", "corn-rust"), ())]
    assert left == ["cannot be ruled out: apple-scab, corn-rust", f"cannot be ruled out: {NO_LABEL}"]


def test_a_certain_answer_is_said_without_conditions():
    first, second = shown(Prediction("leaf.jpg", "apple-scab", "match", "", MATCHES))
    assert "99%" in first
    assert IF_NOT_UNKNOWN not in first + second


def test_the_question_of_a_photo_like_no_class_says_it_between_the_answer_and_the_classes(enrolled, tmp_path):
    odd = write_leaf(tmp_path / "odd.png", (0, 0, 255), 1)
    known = write_leaf(tmp_path / "known.png", LEAF_COLOURS["rust"], 900)
    for prediction in enrolled.query([odd, known]):
        said = "\n".join(shown(prediction))
        assert (IF_NOT_UNKNOWN in said) == (prediction.answer == "unknown") == (prediction.file == str(odd))
