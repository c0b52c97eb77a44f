import csv
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from conftest import HEED_CTRL_C, LEAF_COLOURS, colour_embedder, eventually, write_leaf, write_leaves

from fewshot.datasets import class_folders
from fewshot.errors import (
    ComparisonError,
    EmptyIndexError,
    NeighbourCountError,
    OutputFolderError,
    TooFewPointsError,
)
from fewshot.gallery import Gallery
from fewshot.projection import tables
from fewshot.projection.comparison import shared_photos
from fewshot.projection.folder import OutputFolder
from fewshot.projection.page import page
from fewshot.projection.project import Plan, Source, n_steps, project
from fewshot.projection.spaces import Point, Space

PCA = Plan(methods=("pca",))
here = pytest.mark.usefixtures("painted_here")  # without it: in processes of their own


def draw(gallery, out, plan=PCA, **more):
    return project(OutputFolder(out), [Source(gallery, "leaves")], plan, **more)


def read_csv(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def running(group):
    """Whether a process of the group still runs; one that has ended and was not waited for does not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended meanwhile
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False


@pytest.fixture
def enrolled(gallery, leaves):
    folder = leaves(n=6)
    write_leaf(folder / "healthy" / "wrong.png", LEAF_COLOURS["rust"], 77)
    list(gallery.enroll(class_folders(folder)))
    return gallery


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The index that `enrolled` gives, drawn once: the folder, what was found, and how many steps were told."""
    root = tmp_path_factory.mktemp("drawn")
    write_leaves(root / "photos", n=6)
    write_leaf(root / "photos" / "healthy" / "wrong.png", LEAF_COLOURS["rust"], 77)
    steps = []
    with Gallery(root / "index", create=True, embedder=colour_embedder()) as gallery:
        list(gallery.enroll(class_folders(root / "photos")))
        announced = n_steps([Source(gallery, "leaves")], PCA)
        result = draw(gallery, root / "out", on_step=lambda: steps.append(1))
    return root / "out", result, (len(steps), announced)


def test_everything_is_written(drawn):
    out, _, _ = drawn
    files = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert files == {
        ".fewshot-project",
        "index.html",
        "space.html",
        "numbers.json",
        "coordinates.csv",
        "coordinates.parquet",
        "suspicious.csv",
        "confusable.csv",
        "classes.csv",
        *(f"figures/{name}.{kind}" for name in ("pca-2d", "pca-3d", "confusion") for kind in ("png", "svg")),
        *(f"projector/{name}" for name in ("tensors.bytes", "metadata.tsv", "sprite.png", "projector_config.pbtxt")),
    }


def test_the_planted_photo_is_named_first_everywhere(drawn):
    out, result, _ = drawn
    assert [(each.label, each.file, each.looks_like) for each in result.doubts] == [("healthy", "wrong.png", "rust")]
    (row,) = read_csv(out / "suspicious.csv")
    assert (row["label"], row["file"], row["looks_like"]) == ("healthy", "wrong.png", "rust")
    report = (out / "index.html").read_text()
    assert "wrong.png" in report
    assert "1 of 25 enrolled photos" in report


def test_csv_and_parquet_hold_the_same_points_and_places(drawn):
    out, result, _ = drawn
    table = pyarrow.parquet.read_table(out / "coordinates.parquet")
    rows = read_csv(out / "coordinates.csv")
    places = ["pca_2d_x", "pca_2d_y", "pca_3d_x", "pca_3d_y", "pca_3d_z"]
    told = ["space", "label", "file", "role", "nearest", "similarity", "agrees", "suspicious"]
    assert table.column_names == told + places == list(rows[0])
    assert len(rows) == table.num_rows == len(result.spaces[0].points)
    flat = next(picture for picture in result.pictures if picture.n_dims == 2)
    assert np.array_equal(table["pca_2d_y"].to_numpy(), flat.points[:, 1])
    assert np.allclose([float(row["pca_2d_y"]) for row in rows], flat.points[:, 1], atol=1e-5)
    assert [row["file"] for row in rows] == table["file"].to_pylist()


def test_the_same_index_gives_the_same_files(enrolled, tmp_path):
    for name in ("one", "two"):
        draw(enrolled, tmp_path / name)
    for file in (tmp_path / "one").rglob("*"):
        # numbers.json names its folder; Parquet and the rest must agree to the byte.
        if file.is_file() and file.name != "numbers.json":
            assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes(), file


def test_numbers_fit_what_was_planted(drawn):
    out, _, _ = drawn
    facts = json.loads((out / "numbers.json").read_text())
    (space,) = facts["spaces"]
    assert space["drawn"] == "25 enrolled photos, 4 classes"
    assert space["class_agreement"] == 24 / 25
    assert space["confused"] == [{"label": "healthy", "nearest": "rust", "photos": 1}]
    assert -1 <= space["class_silhouette"]["healthy"] < space["class_silhouette"]["blight"] <= 1
    assert set(space["trustworthiness"]) == {"pca_2d", "pca_3d"}
    assert (facts["n_neighbours"], facts["seed"], facts["metric"]) == (15, 0, "cosine")


def test_steps_are_as_many_as_announced(drawn):
    _, _, (told, announced) = drawn
    assert told == announced > 0


@here
def test_thinning_is_said_on_the_page_and_in_the_numbers(enrolled, tmp_path):
    result = draw(enrolled, tmp_path / "out", Plan(methods=("pca",), max_photos=12))
    said = "12 of 25 enrolled photos, 4 classes, chosen at random in proportion to the classes"
    assert said in result.notes[0]
    for name in ("index.html", "space.html", "numbers.json"):
        assert said in (tmp_path / "out" / name).read_text()
    assert "12 of 25 enrolled photos" in (tmp_path / "out" / "figures" / "pca-2d.svg").read_text()


@here
def test_doubtful_photos_are_found_even_where_they_are_not_drawn(enrolled, tmp_path):
    for seed in range(3):
        plan = Plan(methods=("pca",), max_photos=5, seed=seed)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert [each.file for each in draw(enrolled, tmp_path / "out", plan).doubts] == ["wrong.png"]


@here
def test_a_class_removed_while_it_is_drawn_does_not_end_the_drawing(enrolled, tmp_path):
    todo = [lambda: None, lambda: None, lambda: enrolled.remove("blight")]  # when the space is read, and inspected
    result = draw(enrolled, tmp_path / "out", on_step=lambda: todo and todo.pop(0)())
    assert not todo
    assert [pair.pictures[0] is None for pair in result.confusable] == [
        pair.first == "blight" for pair in result.confusable
    ]
    assert "blight" in {pair.first for pair in result.confusable}


# ---- what cannot be drawn, or only in part


@here
def test_an_index_of_one_class_is_drawn_without_what_takes_two(gallery, leaves, tmp_path):
    list(gallery.enroll(class_folders(leaves(n=6, labels=["rust"]))))
    result = draw(gallery, tmp_path / "out")
    assert result.numbers[0].silhouette is None
    assert result.numbers[0].class_silhouette == {"rust": None}
    assert (result.doubts, result.confusable) == ((), ())
    assert "there is only one class" in (tmp_path / "out" / "index.html").read_text()


@here
def test_an_index_of_one_photo_is_told_how_many_it_takes(gallery, leaves, tmp_path):
    list(gallery.enroll(class_folders(leaves(n=1, labels=["rust"]))))
    with pytest.raises(TooFewPointsError, match="'leaves' has 1 photo to draw; wanted at least 4"):
        draw(gallery, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@here
def test_classes_of_one_photo_each_can_be_drawn(gallery, leaves, tmp_path):
    list(gallery.enroll(class_folders(leaves(n=1))))
    result = draw(gallery, tmp_path / "out")
    assert result.numbers[0].silhouette is None
    assert result.numbers[0].class_agreement is None


@here
def test_more_neighbours_than_photos_are_refused_before_anything_is_written(enrolled, tmp_path):
    with pytest.raises(NeighbourCountError, match="25 neighbours were asked for and there are 25 points"):
        draw(enrolled, tmp_path / "out", Plan(methods=("pca",), n_neighbours=25))
    assert list((tmp_path / "out").iterdir()) == []


def test_an_empty_index_is_refused(gallery, tmp_path):
    with pytest.raises(EmptyIndexError):
        draw(gallery, tmp_path / "out")


# ---- the folder


def test_a_folder_that_cannot_be_made_is_refused_with_its_name(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputFolderError, match="is a file"):
        OutputFolder(tmp_path / "file")
    with pytest.raises(OutputFolderError, match=r"file/out cannot be written: Not a directory") as caught:
        OutputFolder(tmp_path / "file" / "out")
    assert "--out" in caught.value.hint
    with pytest.raises(OutputFolderError, match="cannot be written"):
        OutputFolder(tmp_path / ("n" * 300))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    (tmp_path / "barred").mkdir(mode=0o500)
    with pytest.raises(OutputFolderError, match="Permission denied"):
        OutputFolder(tmp_path / "barred")


def test_a_folder_that_the_system_keeps_is_refused_even_for_root():
    with pytest.raises(OutputFolderError, match="cannot be written"):
        OutputFolder(Path("/proc/fewshot-out"))


@here
def test_results_are_never_mixed_with_other_files_but_may_replace_themselves(enrolled, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(OutputFolderError, match="other things in it"):
        OutputFolder(tmp_path / "mine")
    draw(enrolled, tmp_path / "out")
    draw(enrolled, tmp_path / "out")


@here
def test_a_folder_whose_name_is_no_utf8_is_written_whole(enrolled, tmp_path):
    out = tmp_path / os.fsdecode(b"caf\xe9")
    draw(enrolled, out)
    assert json.loads((out / "numbers.json").read_text())["folder"] == f"{tmp_path}/caf\\xe9"


def test_a_run_that_failed_leaves_a_folder_that_the_next_one_may_use(tmp_path):
    OutputFolder(tmp_path / "out").write("figures/pca-2d.svg", "<svg/>")
    OutputFolder(tmp_path / "out").write("figures/pca-2d.svg", "<svg/>")


def test_the_largest_classes_have_a_name_on_the_page_and_the_others_share_one(monkeypatch):
    monkeypatch.setattr("fewshot.projection.page.MOST_CLASSES", 2)
    labels = ["blight"] * 2 + ["mildew"] + ["rust"] * 3
    points = tuple(Point("support", label, f"{i}.png") for i, label in enumerate(labels))
    space = Space("leaves", "colours", np.eye(6, dtype=np.float32), points, 6, 0, 3)
    written = page("leaves", [space], [], [[None] * 6])
    data = json.loads(written.partition('<script id="data" type="application/json">')[2].partition("</script>")[0])
    assert [each["label"] for each in data["classes"]] == ["blight", "rust", "the other 1 classes"]
    assert data["spaces"][0]["rows"] == [[0, 1], [3, 4, 5], [2]]


def test_a_full_disk_is_told_as_one_and_leaves_no_half_file(tmp_path, monkeypatch):
    folder = OutputFolder(tmp_path / "out")
    folder.write("page.html", "before")

    def half(file, content):
        with file.open("wb") as stream:
            stream.write(content[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OutputFolderError, match="no space left"):
        folder.write("page.html", "after, and longer")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {".fewshot-project", "page.html"}
    assert (tmp_path / "out" / "page.html").read_text() == "before"


def test_interrupting_ends_every_process_and_leaves_whole_files_only(enrolled, tmp_path):
    """Ctrl-C goes to the whole process group; nothing may run on, and no half file may stay."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom fewshot.gallery import Gallery\n"
        "from fewshot.projection.folder import OutputFolder\n"
        "from fewshot.projection.project import Plan, Source, project\n"
        "if __name__ == '__main__':\n"
        "    gallery = Gallery(Path(sys.argv[1]))\n"
        "    print('begun', flush=True)\n"
        "    project(OutputFolder(Path(sys.argv[2])), [Source(gallery, 'leaves')], Plan())\n"
    )
    (tmp_path / "script.py").write_text(HEED_CTRL_C + script)
    words = [sys.executable, str(tmp_path / "script.py"), str(enrolled.folder), str(tmp_path / "out")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"begun\n"
    time.sleep(2)
    eventually((tmp_path / "out" / ".fewshot-project").exists, 60)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.count(b"KeyboardInterrupt") == 1, errors.decode()
    give_up_at = time.monotonic() + 30
    while running(process.pid):
        assert time.monotonic() < give_up_at, "a process runs on"
        time.sleep(0.2)
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert not (tmp_path / "out" / "numbers.json").exists()
    draw(enrolled, tmp_path / "out")


# ---- two spaces


@pytest.fixture
def second(enrolled, tmp_path):
    """The same photos and one class more, enrolled in another order with another embedder."""
    write_leaf(tmp_path / "photos" / "zz-other" / "a.png", (10, 20, 200), 5)
    with Gallery(tmp_path / "second", create=True, embedder=colour_embedder("others", 32)) as opened:
        list(opened.enroll(class_folders(tmp_path / "photos")[::-1]))
        yield opened


def compare(first, second, out, plan=PCA):
    return project(OutputFolder(out), [Source(first, "first"), Source(second, "second")], plan)


@here
def test_two_indexes_are_drawn_with_the_same_photos_in_the_same_rows(enrolled, second, tmp_path):
    result = compare(enrolled, second, tmp_path / "out")
    first, other = ([(p.label, p.file) for p in space.points if p.role == "support"] for space in result.spaces)
    assert first == other
    assert len(first) == 25
    assert "25 photos are in both under the same label and are compared; 1 are in one only" in result.notes[0]
    said = [space.stated for space in result.spaces]
    assert said == ["25 enrolled photos, 4 classes", "25 enrolled photos that both hold, 4 of 5 classes"]


def test_a_column_that_is_empty_in_one_space_only_stands_in_the_table_of_both():
    def space(name, similarity, agrees):
        point = Point("support", "rust", "a.png", "rust", similarity, agrees)
        return Space(name, "colours@1", np.zeros((1, 4), np.float32), (point,), 1, 0, 1)

    files = tables.coordinates([space("first", None, None), space("second", 0.5, True)], [])
    table = pyarrow.parquet.read_table(io.BytesIO(files["parquet"]))
    assert table["similarity"].to_pylist() == [None, 0.5]
    assert table["agrees"].to_pylist() == [None, True]


@here
def test_of_two_indexes_only_what_both_hold_is_said_to_be_chosen_at_random(enrolled, second, tmp_path):
    result = compare(enrolled, second, tmp_path / "out", Plan(methods=("pca",), max_photos=12))
    assert [space.stated for space in result.spaces] == [
        "12 of 25 enrolled photos, 4 classes, chosen at random in proportion to the classes",
        "12 of 25 enrolled photos that both hold, 4 of 5 classes, chosen at random in proportion to the classes",
    ]


@here
def test_a_comparison_that_loses_a_photo_meanwhile_says_so(enrolled, second, tmp_path, monkeypatch):
    def shared_then_removed(*args):
        found = shared_photos(*args)
        second.remove_support(found.second["rust"][0])
        return found

    monkeypatch.setattr("fewshot.projection.project.shared_photos", shared_then_removed)
    with pytest.raises(ComparisonError, match="removed from one of the two"):
        compare(enrolled, second, tmp_path / "out")


@here
def test_a_comparison_has_silhouettes_agreement_and_confusion_of_both(enrolled, second, tmp_path):
    result = compare(enrolled, second, tmp_path / "out")
    for numbers in result.numbers:
        assert numbers.silhouette is not None
        assert numbers.neighbour_agreement is not None
        assert numbers.confusion.sum() == 25
    k, share = result.shared
    assert k == 15
    assert 0.5 < share <= 1
    report = (tmp_path / "out" / "index.html").read_text()
    assert "<th>first</th>" in report.replace(' class="n"', "")
    assert f"{share:.0%} in common" in report


@here
def test_a_space_compared_with_itself_shares_every_neighbour(enrolled, tmp_path):
    enrolled.copy_to(tmp_path / "copy")
    with Gallery(tmp_path / "copy", embedder=colour_embedder()) as copy:
        result = compare(enrolled, copy, tmp_path / "out")
    assert result.shared == (15, 1.0)
    assert np.array_equal(result.pictures[0].points, result.pictures[2].points)
    assert result.numbers[0].as_dict() == result.numbers[1].as_dict()


@here
def test_the_projector_offers_both_spaces(enrolled, second, tmp_path):
    compare(enrolled, second, tmp_path / "out")
    config = (tmp_path / "out" / "projector" / "projector_config.pbtxt").read_text()
    assert config.count("embeddings {") == 2
    for name in ("tensors-1.bytes", "metadata-2.tsv", "sprite-2.png"):
        assert (tmp_path / "out" / "projector" / name).is_file()


@here
def test_indexes_without_a_photo_in_common_cannot_be_compared(enrolled, leaves, tmp_path):
    folder = leaves(n=5, first_seed=900, name="strangers")
    with Gallery(tmp_path / "strange", create=True, embedder=colour_embedder()) as strange:
        list(strange.enroll(class_folders(folder)))
        with pytest.raises(ComparisonError, match="no photo in common"):
            compare(enrolled, strange, tmp_path / "out")
