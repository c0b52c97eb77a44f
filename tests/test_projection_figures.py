import html
import io
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from fewshot.projection import figures
from fewshot.projection.marks import marks
from fewshot.projection.numbers import measure
from fewshot.projection.pictures import Picture
from fewshot.projection.spaces import Point, Space


def made(labels, n_each=4, n_dims=2, name="made", queries=()):
    """A space whose classes lie apart, and a picture of it."""
    rng = np.random.default_rng(0)
    points, places = [], []
    for role, some in (("support", labels), ("query", queries), ("prototype", labels)):
        for i, label in enumerate(some):
            for j in range(1 if role == "prototype" else n_each):
                nearest = labels[0] if role == "support" and (i, j) == (len(labels) - 1, 0) else label
                agrees = None if role == "prototype" else nearest == label
                points.append(Point(role, label, f"{j}.jpg", nearest, 0.5, agrees))
                places.append(np.array([i % 8, i // 8, i % 3][:n_dims]) + 0.1 * rng.normal(size=n_dims))
    vectors = rng.normal(size=(len(points), 8)).astype(np.float32)
    space = Space(name, "x@1", vectors, tuple(points), n_each * len(labels), n_each * len(queries), len(labels))
    return space, Picture(0, "umap", n_dims, np.array(places, np.float32), 0.987, space.n_photos)


def texts(svg):
    """What a figure says, piece by piece."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg.decode())


def unescaped(pieces):
    return [html.unescape(piece) for piece in pieces]


@pytest.mark.parametrize("n_dims", [2, 3])
def test_sixty_classes_are_in_the_legend_and_named_at_their_places(n_dims):
    labels = [f"crop-{i // 7}-disease-{i}" for i in range(60)]
    space, picture = made(labels, n_dims=n_dims)
    files = figures.scatter([space], [picture])
    said = texts(files["svg"])
    for label in labels:
        assert said.count(label) == 1  # in the legend; the names at the classes have a halo, and so are outlines
    assert any("240 enrolled photos, 60 classes. x@1. Trustworthiness 0.987." in piece for piece in said)
    assert min(Image.open(io.BytesIO(files["png"])).size) > 900


@pytest.mark.parametrize("n_dims", [2, 3])
def test_every_class_is_named_beside_its_photos_and_no_name_covers_another(n_dims):
    labels = [f"crop-{i // 7}-disease-{i}" for i in range(40)]
    space, picture = made(labels, n_dims=n_dims)
    figure = Figure(figsize=(7, 7))
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(projection=None if n_dims == 2 else "3d")
    axes.scatter(*picture.points.T)
    figures._name_classes(figure, axes, space, picture, marks(labels))
    assert [text.get_text() for text in figure.texts] == labels
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in figure.texts]
    pixels = figures._pixels(axes, picture)
    for i, box in enumerate(boxes):
        middle = np.median(pixels[4 * i : 4 * i + 4], axis=0)
        assert np.hypot(*(middle - [box.x0 + box.width / 2, box.y0 + box.height / 2])) < 150
        for other in boxes[:i]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            along = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(across, along) < 3


def test_names_that_begin_at_one_place_part():
    rng = np.random.default_rng(0)
    half = np.column_stack([rng.uniform(20, 60, 60), np.full(60, 6)])
    low, high = np.zeros((60, 2)) + half, np.full((60, 2), 1000) - half
    for places in (rng.uniform(200, 800, (60, 2)), rng.uniform(300, 700, (60, 2))):
        moved = figures._parted(places, half, low, high)
        overlap = (half[:, None] + half[None] - np.abs(moved[:, None] - moved[None])).min(axis=2)
        np.fill_diagonal(overlap, -1)
        assert overlap.max() < 2
        assert (moved >= low).all()
        assert (moved <= high).all()


def test_more_classes_than_marks_have_no_legend_and_that_is_said():
    labels = [f"class-{i}" for i in range(80)]
    said = texts(figures.scatter(*([each] for each in made(labels)))["svg"])
    assert "80 classes: too many for a legend." in " ".join(said)
    assert not set(labels) & set(said)


def test_queries_prototypes_and_rings_are_explained_where_there_are_some():
    labels = ["a", "b"]
    with_queries = texts(figures.scatter(*([each] for each in made(labels, queries=labels)))["svg"])
    assert {"enrolled photo", "query photo", "prototype of a class", "nearer to another class"} <= set(with_queries)
    assert "query photo" not in texts(figures.scatter(*([each] for each in made(labels)))["svg"])


def test_two_spaces_stand_side_by_side_with_one_legend():
    labels = ["a-1", "b-2", "c-3"]
    first, second = made(labels, name="first"), made(labels, name="second")
    files = figures.scatter([first[0], second[0]], [first[1], second[1]])
    said = texts(files["svg"])
    assert {"first: UMAP", "second: UMAP"} <= set(said)
    assert all(said.count(label) == 1 for label in labels)
    wide, high = Image.open(io.BytesIO(files["png"])).size
    assert wide > 1.8 * high


@pytest.mark.parametrize("label", ["_hidden", "$x^$", "100 $ a kilo $", "<b>&amp;", "ほうれん草", "a" * 200])
def test_any_label_can_be_drawn(label):
    space, picture = made([label, "b"])
    said = unescaped(texts(figures.scatter([space], [picture])["svg"]))
    shown = label if len(label) <= figures.MOST_LETTERS else label[: figures.MOST_LETTERS - 1] + "…"
    assert said.count(shown) == 1
    assert shown in unescaped(texts(figures.confusion([space], [measure(space)])["svg"]))


def test_letters_that_the_font_lacks_are_told():
    assert figures.missing_letters(["rouille-brûlée", "ほうれん草", "rust"]) == ["ほうれん草"]


def test_the_confusion_matrix_shows_where_the_wrong_photo_went():
    labels = ["a", "b", "c", "d"]
    space, _ = made(labels)
    picture = np.asarray(Image.open(io.BytesIO(figures.confusion([space], [measure(space)])["png"])).convert("L"))
    assert {"a", "b", "c", "d", "own class"} <= set(texts(figures.confusion([space], [measure(space)])["svg"]))
    assert (picture < 80).sum() > 4000  # the dark diagonal


def test_of_many_classes_the_most_confused_are_shown():
    labels = [f"class-{i:03}" for i in range(80)]
    space, _ = made(labels)
    said = texts(figures.confusion([space], [measure(space)])["svg"])
    assert "made: nearest class, in % of a row; the 60 of 80 classes confused most" in said
    assert "class-079" in said  # the one with a photo that lies nearer to another


def test_figures_are_the_same_again():
    space, picture = made(["a", "b"])
    assert figures.scatter([space], [picture]) == figures.scatter([space], [picture])


def test_marks_and_names_use_the_same_hue():
    mark = marks(["a"])["a"]
    svg = figures.scatter(*([each] for each in made(["a", "b"])))["svg"].decode().lower()
    assert svg.count(mark.colour.lower()) >= 5  # four photos and a place in the legend
    assert figures._dark(mark.colour) in svg
