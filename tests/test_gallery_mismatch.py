"""What is chosen against what an index is pinned to: refused before a backbone is prepared, naming what differs."""

from dataclasses import replace
from pathlib import Path

import pytest
from cli_steps import fails
from conftest import colour_embedder, write_leaf
from gallery_steps import enroll

from fewshot.backbones import read_backbone_facts, resolve, statistics_name
from fewshot.embedder import Embedder, EmbedderChoice, open_embedder
from fewshot.errors import MixedEmbeddingsError, UnknownBackboneError
from fewshot.gallery import Gallery
from fewshot.gallery.mismatch import check_choice, check_embedder
from fewshot.store import About


def about_of(embedder):
    return About(created_at="2026-01-01", generation=1, **embedder.facts())


def seen_as(embedder, precision="f32", **changes):
    """The same embedder with facts of its backbone changed."""
    backbone = replace(embedder.backbone, **changes)
    return Embedder(backbone, embedder.source, precision, lambda bulk: None)


@pytest.fixture
def plants():
    """What an index knows of plants-lite0, which is not opened for it."""
    source = resolve("plants-lite0")
    facts = read_backbone_facts(Path(source.location))
    opened = colour_embedder()
    return replace(
        about_of(opened),
        backbone={
            **opened.backbone.as_dict(),
            "name": source.name,
            "architecture": source.architecture,
            "weights_sha256": facts["weights_sha256"],
            "statistics_sha256": statistics_name(source),
        },
    )


@pytest.mark.parametrize(
    ("choice", "said", "left_out", "command"),
    [
        (EmbedderChoice(quality="best"), "quality best instead of fast", "--quality", "--quality best"),
        (EmbedderChoice(precision="bf16"), "precision bf16 instead of f32", "--precision", "--precision bf16"),
        (
            EmbedderChoice(quality="best", precision="bf16"),
            "quality best instead of fast, precision bf16 instead of f32",
            "--quality and --precision",
            "--quality best --precision bf16",
        ),
        (EmbedderChoice("lite0"), "backbone lite0 instead of plants-lite0", "--backbone", "--backbone lite0"),
        (EmbedderChoice("resnet18"), "backbone resnet18 instead of plants-lite0", "--backbone", "--backbone resnet18"),
        (
            EmbedderChoice("plants-lite0", quality="best"),
            "others: quality best instead of fast.",
            "--backbone and --quality",
            "--backbone plants-lite0 --quality best",
        ),
    ],
)
def test_a_choice_that_is_known_to_differ_is_refused_with_what_differs_and_what_changes_it(
    plants, choice, said, left_out, command
):
    with pytest.raises(MixedEmbeddingsError) as caught:
        check_choice("beans", plants, choice)
    assert "index 'beans' holds" in caught.value.message
    assert said in caught.value.message
    assert caught.value.hint == f"Leave {left_out} out; `fewshot reindex {command}` changes the index to it."


@pytest.mark.parametrize(
    "choice",
    [
        EmbedderChoice(),
        EmbedderChoice("plants-lite0", "f32", "openvino", "fast"),
        EmbedderChoice("no-such-backbone", quality="best"),
        EmbedderChoice(quality="bset", precision="f16"),
    ],
)
def test_what_fits_or_does_not_exist_is_left_to_the_opening(plants, choice):
    check_choice("beans", plants, choice)


def test_an_index_without_photos_takes_any_choice():
    empty = About("2026-01-01", 0, None, None, None, None, None)
    check_choice("beans", empty, EmbedderChoice("lite0", "bf16", "auto", "best"))
    check_embedder("beans", empty, colour_embedder(), EmbedderChoice())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "bf16"}, "others: precision bf16 instead of f32."),
        ({"preprocessing": colour_embedder().backbone.preprocessing.in_views(5)}, "quality best instead of fast."),
        ({"weights_sha256": "1" * 64}, "others: backbone colours with other weights or preprocessing."),
        ({"name": "reds", "weights_sha256": "1" * 64}, "others: backbone reds instead of colours."),
    ],
)
def test_an_opened_embedder_that_differs_is_refused_with_what_differs(changes, said):
    held = colour_embedder()
    other = seen_as(held, **changes)
    with pytest.raises(MixedEmbeddingsError) as caught:
        check_embedder("beans", about_of(held), other, EmbedderChoice())
    assert held.fingerprint in caught.value.message
    assert other.fingerprint in caught.value.message
    assert said in caught.value.message
    assert caught.value.hint.startswith("`fewshot reindex --backbone colours")


@pytest.mark.parametrize(
    ("kind", "named"),
    [("trained", "/weights/mine"), ("file", "colour_grid:/weights/mine"), ("package", "colours"), ("hub", "colours")],
)
def test_without_a_choice_the_command_names_the_backbone_that_is_open(kind, named):
    other = seen_as(colour_embedder(), weights_sha256="1" * 64)
    other.source = replace(other.source, kind=kind, location="/weights/mine")
    with pytest.raises(MixedEmbeddingsError) as caught:
        check_embedder("beans", about_of(colour_embedder()), other, EmbedderChoice())
    assert f"`fewshot reindex --backbone {named}`" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "views", "command"),
    [
        ("plants-lite0", 1, "fewshot reindex"),
        ("plants-lite0", 5, "fewshot reindex --quality best"),
        ("lite0", 5, "fewshot reindex --backbone lite0 --quality best"),
    ],
)
def test_without_a_choice_the_command_keeps_the_quality(name, views, command):
    other = seen_as(colour_embedder(), weights_sha256="1" * 64)
    other.source = replace(other.source, name=name, views=views)
    with pytest.raises(MixedEmbeddingsError) as caught:
        check_embedder("beans", about_of(colour_embedder()), other, EmbedderChoice())
    assert caught.value.hint == f"`{command}` changes the index to it."


def test_a_quality_of_a_later_release_is_called_by_its_number_of_views(plants):
    plants.backbone["preprocessing"]["views"] = 9
    with pytest.raises(MixedEmbeddingsError, match="quality best instead of 9 views"):
        check_choice("beans", plants, EmbedderChoice(quality="best"))


def test_a_gallery_refuses_such_a_choice_before_it_opens_a_backbone(gallery, leaves, tmp_path, monkeypatch):
    enroll(gallery, leaves(n=2))
    monkeypatch.setattr("fewshot.embedder._open_openvino", lambda *_: pytest.fail("a backbone was opened"))
    photo = write_leaf(tmp_path / "leaf.png", (40, 140, 50), 900)
    with (
        Gallery(gallery.place, choice=EmbedderChoice(quality="best")) as opened,
        pytest.raises(MixedEmbeddingsError, match="quality best instead of fast"),
    ):
        list(opened.query([photo]))


def test_a_backbone_that_does_not_exist_is_refused_before_it_is_said_to_be_prepared():
    said = []
    with pytest.raises(UnknownBackboneError, match="there is no backbone 'no-such-backbone'"):
        open_embedder(EmbedderChoice("no-such-backbone", engine="openvino"), on_notice=said.append)
    assert said == []


def test_the_command_line_says_so_for_people_and_programs(gallery, leaves, tmp_path):
    enroll(gallery, leaves(n=2))
    photo = write_leaf(tmp_path / "leaf.png", (40, 140, 50), 900)
    text = fails(2, "mixed_embeddings", "query", photo, "--quality", "best", "--index", gallery.place)
    assert "quality best instead of fast" in text
    assert "fewshot reindex --quality best" in text
