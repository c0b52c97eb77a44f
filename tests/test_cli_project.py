"""`fewshot project`: what it says, what it refuses, and TensorBoard until Ctrl-C."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from cli_steps import fails, lines, ok, run
from conftest import HEED_CTRL_C, LEAF_COLOURS, write_leaf
from test_cli import INDEX, colours  # noqa: F401 (a fixture is used by its name)

from fewshot.gallery import Gallery

PCA = ("--method", "pca")


@pytest.fixture(autouse=True)
def most_painted_here(request):
    """In processes of their own where all methods are asked for, and in `--serve`, which is a program of its own."""
    if "by_default" not in request.node.name:
        request.getfixturevalue("painted_here")


@pytest.fixture
def enrolled(leaves):
    folder = leaves(n=5)
    write_leaf(folder / "healthy" / "wrong.png", LEAF_COLOURS["rust"], 77)
    ok("enroll", "--each", folder)
    return folder


def test_it_says_what_is_drawn_how_far_to_trust_it_and_where_to_begin(enrolled):
    said = ok("project", "--out", "out", *PCA)
    assert said.startswith("default: 21 enrolled photos, 4 classes; colours@")
    assert "trustworthiness, PCA 2-D" in said
    assert "1 photo to check for a wrong label\nbegin with out/index.html\n" in said
    assert Path("out/index.html").is_file()


def test_json_is_what_numbers_json_holds(enrolled):
    (said,) = lines("project", "--out", "out", *PCA)
    assert said == json.loads(Path("out/numbers.json").read_text())
    assert [each["file"] for each in said["suspicious"]] == ["wrong.png"]


def test_queries_are_drawn_too(enrolled, leaves):
    (said,) = lines("project", "--out", "out", "--query", leaves(n=2, first_seed=400, name="asked"), *PCA)
    assert said["spaces"][0]["drawn"] == "21 enrolled photos and 8 query photos, 4 classes"
    assert said["spaces"][0]["query_agreement"] == 1.0


def test_a_folder_of_folders_is_drawn_without_leaving_an_index(enrolled, tmp_path):
    (enrolled / "rust" / "broken.jpg").write_bytes(b"x")
    before = INDEX.stat().st_mtime
    (said,) = lines("project", "--images", enrolled, "--out", "out", *PCA)
    assert said["spaces"][0]["name"] == "photos"
    assert said["spaces"][0]["supports"] == 21
    assert INDEX.stat().st_mtime == before
    assert not any("fewshot-" in path.name for path in tmp_path.iterdir())


def test_all_three_projections_are_drawn_by_default(leaves):
    ok("enroll", "--each", leaves(n=3))
    (said,) = lines("project", "--out", "out")
    wanted = {f"{method}_{n_dims}d" for method in ("pca", "tsne", "umap") for n_dims in (2, 3)}
    assert set(said["spaces"][0]["trustworthiness"]) == wanted
    for name in wanted:
        assert Path(f"out/figures/{name.replace('_', '-')}.svg").is_file()


# ---- two spaces


def test_two_indexes_are_compared(enrolled):
    ok("enroll", "--each", enrolled, "--index", "other", "--backbone", "small")
    (said,) = lines("project", "--compare", "default", "other", "--out", "out", *PCA)
    assert [space["name"] for space in said["spaces"]] == ["default", "other"]
    assert [space["embedder"].partition("@")[0] for space in said["spaces"]] == ["colours", "small"]
    assert said["shared_neighbours"]["k"] == 15


def test_two_backbones_embed_the_photos_that_the_index_keeps_and_leave_it_alone(enrolled):
    with Gallery(INDEX) as gallery:
        before = gallery.about()
    (said,) = lines("project", "--compare", "one", "two", "--out", "out", *PCA)
    assert [space["name"] for space in said["spaces"]] == ["one", "two"]
    assert [space["photos"] for space in said["spaces"]] == [21, 21]
    with Gallery(INDEX) as gallery:
        assert gallery.about() == before


def test_two_backbones_of_one_name_in_two_folders_are_told_apart(enrolled):
    (said,) = lines("project", "--compare", "exp1/tswv", "exp2/tswv", "--out", "out", *PCA)
    assert [space["name"] for space in said["spaces"]] == ["exp1/tswv", "exp2/tswv"]


def test_two_backbones_embed_a_folder_of_folders(enrolled):
    said = ok("project", "--images", enrolled, "--compare", "one", "two", "--out", "out", *PCA)
    assert "in common" in said
    assert said.splitlines()[0].startswith("one: 21 enrolled photos, 4 classes; one@")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--compare", "default", "nothing-there"], "'default' is an index and 'nothing-there' is not"),
        (["--compare", "nothing-there", "default"], "'default' is an index and 'nothing-there' is not"),
        (["--compare", "default", "default", "--images", "photos"], "leave --images out"),
        (["--compare", "one", "two", "--backbone", "three"], "leave --backbone out"),
    ],
)
def test_what_contradicts_itself_is_misuse(enrolled, words, message):
    result = run("project", "--out", "out", *PCA, *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("out").exists()


# ---- what is refused


def test_an_index_of_one_photo_is_refused(leaves):
    ok("enroll", "--each", leaves(n=1, labels=["rust"]))
    assert "1 photo to draw; wanted at least 4" in fails(1, "too_few_points", "project", "--out", "out", *PCA)


def test_more_neighbours_than_photos_are_refused(enrolled):
    message = fails(2, "bad_neighbours", "project", "--out", "out", "--neighbours", 21, *PCA)
    assert "21 neighbours were asked for and there are 21 points" in message


def test_an_unwritable_folder_is_refused(enrolled):
    Path("file").write_text("x")
    assert "file/out cannot be written" in fails(2, "bad_output", "project", "--out", "file/out", *PCA)


def test_a_missing_index_or_folder_is_refused():
    fails(2, "index_missing", "project", "--out", "out", *PCA)
    fails(2, "missing_folder", "project", "--images", "nowhere", "--out", "out", *PCA)


def test_a_port_in_use_is_refused_before_any_work(enrolled):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = fails(1, "port_in_use", "project", "--out", "out", "--serve", "--port", port, *PCA)
    assert f"port {port} of 127.0.0.1 is in use" in message
    assert not Path("out").exists()


def test_serve_shows_tensorboard_until_ctrl_c(enrolled):
    words = [
        sys.executable,
        "-c",
        f"{HEED_CTRL_C}from fewshot.cli import main; main()",
        "project",
        "--out",
        "out",
        *PCA,
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    served = subprocess.Popen(
        [*words, "--serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        line = next(line for line in served.stderr if "projector: http://127.0.0.1:" in line)
        address = line.split("projector: ")[1].split("#")[0]
        with urllib.request.urlopen(f"{address}data/plugin/projector/info?run=.", timeout=30) as answer:
            (tensor,) = json.load(answer)["embeddings"]
    finally:
        served.send_signal(signal.SIGINT)
        _, rest = served.communicate(timeout=30)
    assert served.returncode == 0, rest
    assert tensor["tensorShape"][0] > 21
    assert "Traceback" not in rest
