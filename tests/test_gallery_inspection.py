"""What the enrolled photos and their labels tell about themselves."""

import pytest
from cli_steps import ok, run
from gallery_steps import enroll
from service_client import files, serving, token

from fewshot.datasets import class_folders


def twins(gallery, reports):
    sentences = gallery.doubts([support_id for report in reports for support_id in report.support_ids])
    return [sentence for sentence in sentences if "is another one" in sentence]


@pytest.mark.parametrize("label", ["Bean-Rust", "bean rust", "BEAN_RUST", "bean \N{EN DASH} rust"])
def test_a_new_label_that_is_spoken_as_another_is_doubted_and_says_how_to_make_the_two_one(gallery, leaves, label):
    assert twins(gallery, enroll(gallery, leaves(n=5) / "rust", "bean-rust")) == []
    (sentence,) = twins(gallery, enroll(gallery, leaves(n=5, name="more", first_seed=50) / "rust", label))
    assert sentence.startswith(f"there is a class 'bean-rust' already; {label!r} is another one.")
    quoted = label if " " not in label else f"'{label}'"
    assert f"`fewshot remove {quoted}`, and enroll its photos into 'bean-rust'." in sentence
    assert [each.label for each in gallery.classes()] == sorted(["bean-rust", label]), "it is no refusal"


@pytest.mark.parametrize("label", ["beanrust", "bean-rust-2", "bean+rust"])
def test_a_label_of_other_letters_is_not_doubted(gallery, leaves, label):
    enroll(gallery, leaves(n=5) / "rust", "bean-rust")
    assert twins(gallery, enroll(gallery, leaves(n=5, name="more", first_seed=50) / "rust", label)) == []


def test_marks_of_a_script_are_letters(gallery, leaves):
    enroll(gallery, leaves(n=5) / "rust", "\u0928\u093f")
    assert twins(gallery, enroll(gallery, leaves(n=5, name="more", first_seed=50) / "rust", "\u0928\u0940")) == []


def test_more_photos_of_a_class_that_was_kept_beside_another_are_not_doubted_again(gallery, leaves):
    enroll(gallery, leaves(n=5) / "rust", "bean-rust")
    enroll(gallery, leaves(n=5, name="more", first_seed=50) / "rust", "Bean-Rust")
    assert twins(gallery, enroll(gallery, leaves(n=5, name="yet-more", first_seed=90) / "rust", "Bean-Rust")) == []


def test_two_new_labels_that_are_spoken_alike_are_told_once(gallery, leaves):
    folder = leaves(n=5, labels=["rust", "mildew"])
    (folder / "mildew").rename(folder / "Rust")
    assert len(twins(gallery, list(gallery.enroll(class_folders(folder))))) == 1


@pytest.mark.weights
def test_the_command_line_warns_of_it_and_enrolls(leaves):
    folder = leaves(n=5)
    ok("enroll", "bean-rust", folder / "rust")
    again = run("enroll", "Bean-Rust", folder / "mildew")
    assert again.exit_code == 0
    assert "warning: there is a class 'bean-rust' already; 'Bean-Rust' is another one." in again.stderr


def test_renaming_warns_of_it_too(enrolled):
    with serving(enrolled) as client:
        found = client.patch("/v1/classes/rust", json={"label": "Mildew"}, headers=token(enrolled)).json()
    (sentence,) = found["warnings"]
    assert sentence.startswith("there is a class 'mildew' already; 'Mildew' is another one.")
    place = ["--index", enrolled.place]
    told = run("rename", "blight", "Healthy", *place).stderr
    assert told.startswith("warning: there is a class 'healthy' already; 'Healthy' is another one.")
    assert "warning" not in run("rename", "mildew", "leaf-mould", *place).stderr


def test_http_warns_of_it_and_enrolls(enrolled, leaves):
    photos = sorted((leaves(n=5, name="more", first_seed=50) / "rust").iterdir())
    with serving(enrolled) as client:
        response = client.post("/v1/classes/RUST/supports", files=files(*photos), headers=token(enrolled))
    assert response.status_code == 201
    assert response.json()["warnings"][0].startswith("there is a class 'rust' already; 'RUST' is another one.")
