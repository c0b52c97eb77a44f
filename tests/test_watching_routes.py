"""Routes are read whole or refused with what is wrong in them."""

from pathlib import Path

import pytest

from fewshot.errors import RoutesError
from fewshot.records import Match, Prediction
from fewshot.watching.routes import Routes, read_routes

CONFIGS = Path(__file__).parent.parent / "configs"


def routes_of(tmp_path, text):
    file = tmp_path / "city.yaml"
    file.write_text(text)
    return read_routes(file)


def prediction(answer, reason="match"):
    return Prediction("a.jpg", answer, reason, "", (Match(answer, 0.7, 0.9),))


def test_a_label_sends_its_units(tmp_path):
    routes = routes_of(tmp_path, "routes:\n  fire: [Firefighters, Transit Police]\n  traffic: []\n")
    assert routes.units_for(prediction("fire")) == ("Firefighters", "Transit Police")
    assert routes.units_for(prediction("traffic")) == ()


def test_what_the_file_does_not_say_sends_nobody_but_an_ambiguous_label_its_units(tmp_path):
    routes = routes_of(tmp_path, "routes:\n  fire: [Firefighters]\n")
    assert routes.units_for(prediction("unknown", "unknown")) == ()
    assert routes.units_for(prediction("unknown", "bad_image")) == ()
    assert routes.units_for(prediction("flood")) == ()
    assert routes.units_for(prediction("fire", "ambiguous")) == ("Firefighters",)


def test_other_answers_have_routes_of_their_own(tmp_path):
    routes = routes_of(tmp_path, "routes: {fire: [F]}\nunknown: [U]\nambiguous: [A]\nunrouted: [N]\nbad_image: [B]\n")
    assert routes.units_for(prediction("unknown", "unknown")) == ("U",)
    assert routes.units_for(prediction("fire", "ambiguous")) == ("A",)
    assert routes.units_for(prediction("flood")) == ("N",)
    assert routes.units_for(prediction("unknown", "bad_image")) == ("B",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fire: [Firefighters]\n", "A label's route stands indented under `routes:`"),
        ("route:\n  fire: [F]\n", "Did you mean 'routes'?"),
        ("routes: {fire: [F]}\nambigous: [A]\n", "Did you mean 'ambiguous'?"),
        ("routes:\n", "no table of routes"),
        ("routes: [fire]\n", "no table of routes"),
        ("unknown: [A]\n", "no table of routes"),
        ("", "wanted one `key: value` a line"),
        ("routes: {fire: [F], fire: [G]}\n", "given twice"),
        ("routes: {fire: Firefighters}\n", "wanted a list of names"),
        ("routes: {fire: [1]}\n", "wanted a list of names"),
        ("routes: {fire: ['']}\n", "wanted a list of names"),
        ("routes: {fire: {a: [b]}}\n", "wanted a list of names"),
        ("routes: {fire: [F, F]}\n", "names a unit twice"),
        ("routes: {no: [F]}\n", "Put it into quotes"),
        ("routes: {2024: [F]}\n", "Put it into quotes"),
        ("routes: {unknown: [F]}\n", "stands beside `routes:`"),
        ("routes: {a/b: [F]}\n", "holds a slash"),
        ("routes: {'fire ': [F], fire: [G]}\n", "stands there twice"),
        ("routes: {fire: [F]}\nunknown: U\n", "wanted a list of names"),
        ("routes: {fire: [F}\n", "not valid YAML"),
    ],
)
def test_a_routes_file_with_a_slip_is_refused_and_says_what_is_wanted(tmp_path, text, words):
    with pytest.raises(RoutesError) as caught:
        routes_of(tmp_path, text)
    assert words in f"{caught.value.message} {caught.value.hint}"
    assert "recipe" not in caught.value.message


def test_a_routes_file_that_is_not_there_suggests_the_nearest(tmp_path):
    routes_of(tmp_path, "routes: {fire: [F]}\n")
    with pytest.raises(RoutesError) as caught:
        read_routes(tmp_path / "citty.yaml")
    assert "city.yaml" in caught.value.hint


def test_a_route_for_a_class_that_is_not_enrolled_names_the_nearest():
    routes = Routes("city", {"fires": ("F",), "normal-traffic": (), "flood": ("B",)})
    told = routes.doubts(["fire", "normal-traffic", "smoke"])
    assert any("'fires'" in sentence and "Did you mean 'fire'?" in sentence for sentence in told)
    assert "not enrolled, so nobody is sent for it yet: 'flood'." in told
    assert any("no route for 'fire', 'smoke': nobody" in sentence for sentence in told)
    assert Routes("city", {"fire": ()}).doubts(["fire"]) == []


def test_the_emergency_studys_routes_are_its_table_of_units():
    """Source: Predictions.py of the study, whose address is in the file."""
    routes = read_routes(CONFIGS / "routes-emergency.yaml")
    study = {
        "accident": ("Towing Unit", "Ambulance", "Transit Police"),
        "altercation": ("Police Department",),
        "fire": ("Firefighters", "Transit Police"),
        "infrastructure-damage": ("Repair Unit", "Transit Police"),
        "protest": ("Police Force", "Transit Police"),
        "robbery": ("Police Department",),
        "water": ("Drainage Department", "Transit Police"),
    }
    ours = {"smoke": ("Firefighters",), "normal-traffic": ()}
    assert routes.units == study | ours


def test_routes_that_wait_for_their_classes_are_told_of_in_one_sentence():
    told = read_routes(CONFIGS / "routes-emergency.yaml").doubts(["fire", "smoke", "normal-traffic", "accident"])
    (sentence,) = told
    assert all(f"'{label}'" in sentence for label in ("altercation", "protest", "robbery", "water"))
