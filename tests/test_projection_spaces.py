import os

import numpy as np
import pytest
from conftest import LEAF_COLOURS, write_leaf

from fewshot.datasets import class_folders
from fewshot.errors import EmptyFolderError, EmptyIndexError
from fewshot.projection.spaces import TILE_PX, chosen, read_queries, read_space, read_tiles


@pytest.fixture
def enrolled(gallery, leaves):
    """Four classes of five photos, and one photo of rust among the healthy ones."""
    folder = leaves(n=5)
    write_leaf(folder / "healthy" / "wrong.png", LEAF_COLOURS["rust"], 77)
    list(gallery.enroll(class_folders(folder)))
    return gallery


def everything(gallery):
    return {label: list(hashes) for label, hashes in gallery.photo_hashes()}


# ---- what is chosen


def test_all_photos_are_chosen_where_they_are_few_enough():
    photos = {"a": [3, 1, 2], "b": [9]}
    assert chosen(photos, 4, 0) == {"a": [1, 2, 3], "b": [9]}


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_thinned_in_proportion_and_none_is_lost(seed):
    sizes = {"large": 7000, "middle": 2000, "small": 990, "tiny": 10}
    photos, first = {}, 0
    for label, size in sizes.items():
        photos[label] = range(first, first + size)
        first += size
    picked = chosen(photos, 1000, seed)
    assert sum(map(len, picked.values())) == 1000
    for label, ids in picked.items():
        assert abs(len(ids) - sizes[label] / 10) <= 2
        assert len(set(ids)) == len(ids)
        assert set(ids) <= set(photos[label])


def test_where_classes_outnumber_the_photos_wanted_each_chosen_class_has_one():
    picked = chosen({f"c{i}": [2 * i, 2 * i + 1] for i in range(50)}, 20, 0)
    assert [len(ids) for ids in picked.values()] == [1] * 20


def test_the_seed_decides_what_is_chosen():
    photos = {"a": range(1000)}
    assert chosen(photos, 10, 0) == chosen(photos, 10, 0) != chosen(photos, 10, 1)
    assert max(chosen(photos, 10, 0)["a"]) > 500  # not simply the first


# ---- what a space says of its points


def test_a_space_holds_supports_then_queries_then_prototypes(enrolled, tmp_path):
    for i in range(3):
        write_leaf(tmp_path / "asked" / "rust" / f"{i}.png", LEAF_COLOURS["rust"], 500 + i)
    queries = read_queries(enrolled, tmp_path / "asked", 100, 0)
    space = read_space(enrolled, everything(enrolled), queries=queries)
    roles = [point.role for point in space.points]
    n_prototypes = sum(each.prototypes for each in enrolled.classes())
    assert roles == ["support"] * 21 + ["query"] * 3 + ["prototype"] * n_prototypes
    assert space.vectors.shape == (24 + n_prototypes, 48)
    assert np.allclose(np.linalg.norm(space.vectors, axis=1), 1, atol=1e-5)
    assert space.n_photos == 24
    assert space.stated == "21 enrolled photos and 3 query photos, 4 classes"


def test_a_mislabelled_photo_lies_nearer_another_class_and_the_others_their_own(enrolled):
    points = read_space(enrolled, everything(enrolled)).points
    supports = {(point.label, point.file): point for point in points if point.role == "support"}
    wrong = supports.pop(("healthy", "wrong.png"))
    assert (wrong.nearest, wrong.agrees, wrong.suspicious) == ("rust", False, True)
    assert all(point.agrees and point.nearest == point.label and not point.suspicious for point in supports.values())


def test_doubts_are_those_of_inspect(enrolled):
    points = read_space(enrolled, everything(enrolled)).points
    ours = {point.support_id for point in points if point.suspicious}
    assert ours == {photo.support_id for each in enrolled.inspect() for photo in each.suspicious}


def test_vectors_and_files_stand_in_the_same_rows(enrolled):
    space = read_space(enrolled, everything(enrolled))
    folder = enrolled.folder.parent / "photos"
    for row in (0, 7, 20):
        point = space.points[row]
        (embedded,) = enrolled.embedder().embed_photos([folder / point.label / point.file], n_photos=1)
        assert np.allclose(space.vectors[row], embedded.embedding, atol=1e-5)


def test_only_what_is_chosen_is_there_and_said(enrolled):
    space = read_space(enrolled, chosen(everything(enrolled), 8, 0))
    assert len(space.rows("support")) == 8
    assert space.stated == "8 of 21 enrolled photos, 4 classes, chosen at random in proportion to the classes"


def test_what_is_removed_after_it_was_chosen_is_left_out(enrolled):
    photos = everything(enrolled)
    enrolled.remove("rust")
    enrolled.remove_support(photos["mildew"][1])
    space, expected = read_space(enrolled, photos), read_space(enrolled, everything(enrolled))
    assert space.points == expected.points
    assert np.array_equal(space.vectors, expected.vectors)
    assert space.stated == "15 enrolled photos, 3 classes"


def test_a_photo_alone_in_its_class_neither_agrees_nor_disagrees(gallery, leaves):
    list(gallery.enroll(class_folders(leaves(n=1))))
    points = [point for point in read_space(gallery, everything(gallery)).points if point.role == "support"]
    assert {point.agrees for point in points} == {None}
    assert not any(point.suspicious for point in points)
    assert all(point.nearest not in ("", point.label) for point in points)


def test_in_an_index_of_one_class_every_photo_agrees(gallery, leaves):
    list(gallery.enroll(class_folders(leaves(n=5, labels=["rust"]))))
    points = [point for point in read_space(gallery, everything(gallery)).points if point.role == "support"]
    assert {(point.nearest, point.agrees) for point in points} == {("rust", True)}


def test_an_empty_index_has_no_space(gallery):
    with pytest.raises(EmptyIndexError):
        read_space(gallery, {})


# ---- queries


def test_a_query_carries_its_folder_s_label_or_none(enrolled, tmp_path):
    write_leaf(tmp_path / "asked" / "rust" / "a.png", LEAF_COLOURS["rust"], 500)
    write_leaf(tmp_path / "asked" / "mildew" / "b.png", LEAF_COLOURS["rust"], 501)
    write_leaf(tmp_path / "asked" / "loose.png", LEAF_COLOURS["blight"], 502)
    (tmp_path / "asked" / "broken.jpg").write_bytes(b"no picture")
    queries = read_queries(enrolled, tmp_path / "asked", 100, 0)
    found = {point.file: (point.label, point.nearest, point.agrees) for point in queries.points}
    assert found == {
        "a.png": ("rust", "rust", True),
        "b.png": ("mildew", "rust", False),
        "loose.png": ("", "blight", None),
    }
    assert [refused.code for refused in queries.refused] == ["not_an_image"]
    assert queries.n_all == 3


def test_a_single_photo_as_query_has_no_label(enrolled, tmp_path):
    photo = write_leaf(tmp_path / "mildew" / "a.png", LEAF_COLOURS["rust"], 500)
    (point,) = read_queries(enrolled, photo, 100, 0).points
    assert (point.label, point.nearest, point.agrees) == ("", "rust", None)


def test_a_query_s_label_is_compared_in_the_form_that_labels_have(gallery, leaves, tmp_path):
    folder = leaves(n=2)
    (folder / "rust").rename(folder / "roya del cafe\u0301")  # as macOS writes it
    list(gallery.enroll(class_folders(folder)))
    write_leaf(tmp_path / "asked" / "roya del cafe\u0301 " / "a.png", LEAF_COLOURS["rust"], 500)
    write_leaf(tmp_path / "asked" / "roya del caf\u00e9" / "b.png", LEAF_COLOURS["rust"], 501)
    points = read_queries(gallery, tmp_path / "asked", 100, 0).points
    assert [(point.label, point.agrees) for point in points] == [("roya del caf\u00e9", True)] * 2


def test_names_of_queries_that_are_no_unicode_can_be_written(enrolled, tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    photo = write_leaf(tmp_path / "a.png", LEAF_COLOURS["rust"], 500)
    for name in (b"caf\xe9.png", b"caf\xe9.jpg"):
        file = tmp_path / "asked" / folder.name / os.fsdecode(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(photo.read_bytes() if name.endswith(b"png") else b"no picture")
    queries = read_queries(enrolled, tmp_path / "asked", 100, 0)
    assert [(point.label, point.file) for point in queries.points] == [("caf\\xe9", "caf\\xe9.png")]
    (refused,) = queries.refused
    assert refused.file.endswith("asked/caf\\xe9/caf\\xe9.jpg")
    assert refused.message.startswith("caf\\xe9.jpg is not a picture")


def test_queries_are_thinned_and_counted(enrolled, leaves):
    folder = leaves(n=5, first_seed=300, name="asked")
    queries = read_queries(enrolled, folder, 8, 0)
    assert (len(queries.points), queries.n_all) == (8, 20)
    assert {point.label for point in queries.points} == set(LEAF_COLOURS)


def test_an_empty_folder_of_queries_is_refused(enrolled, tmp_path):
    (tmp_path / "asked").mkdir()
    with pytest.raises(EmptyFolderError):
        read_queries(enrolled, tmp_path / "asked", 8, 0)


# ---- thumbnails


def test_every_photo_has_a_small_picture_of_itself_and_prototypes_have_none(enrolled, tmp_path):
    import io

    from PIL import Image

    write_leaf(tmp_path / "asked" / "rust" / "a.png", LEAF_COLOURS["rust"], 500)
    queries = read_queries(enrolled, tmp_path / "asked", 100, 0)
    space = read_space(enrolled, everything(enrolled), queries=queries)
    tiles = read_tiles(enrolled, space, queries)
    assert len(tiles) == len(space.points)
    for point, tile in zip(space.points, tiles, strict=True):
        if point.role == "prototype":
            assert tile is None
            continue
        picture = Image.open(io.BytesIO(tile))
        assert picture.size == (TILE_PX, TILE_PX)
        colour = np.asarray(picture.convert("RGB")).mean(axis=(0, 1))
        label = "rust" if point.file == "wrong.png" else point.label
        nearest = min(LEAF_COLOURS, key=lambda name: np.abs(np.array(LEAF_COLOURS[name]) - colour).sum())
        assert nearest == label
