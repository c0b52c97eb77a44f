"""Files and folders from strangers: pictures, recipes, routes, links and pipes; nothing runs, nothing crashes."""

import ast
import io
import os
import re
import socket
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import LEAF_COLOURS, colour_embedder, write_leaf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import fewshot
from fewshot.cli import main
from fewshot.decoding.cutting import Cut
from fewshot.decoding.guard import Guard, GuardLimits
from fewshot.errors import ImageError, RecipeError, RoutesError
from fewshot.gallery import Gallery
from fewshot.projection.projector import _metadata
from fewshot.projection.spaces import Point
from fewshot.recipes import read_plan, read_yaml
from fewshot.watching.routes import read_routes

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from hostile_images import corpus

FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MODULES = sorted(Path(fewshot.__file__).parent.rglob("*.py"))


@pytest.fixture
def colours(monkeypatch):
    monkeypatch.setattr("fewshot.gallery.pinning.open_embedder", lambda *_, **__: colour_embedder())


def run(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


# ---- pictures: all of them by `python benchmarks/hostile.py`, of each kind some here


def refusal(guard, data, name):
    """The error that a picture is refused with, or None if it is decoded."""
    try:
        photo = guard.cut_photo(data, name, Cut(64, 0.875, "bilinear", keep=True))
    except ImageError as error:
        return error
    assert photo.pixels.shape == (64, 64, 3)
    return None


def test_hostile_pictures_are_refused_or_decoded_and_never_crash():
    """Those kinds that take seconds are left to the benchmark; test_decoding.py has one of each limit."""
    guard = Guard(1, GuardLimits.for_pixels(50_000_000))
    said: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    taken = 0
    try:
        for number, (name, data) in enumerate(corpus(slow_ones=False)):
            kind = name.split("-")[0]
            kinds[kind] += 1
            if number % 11 and kinds[kind] > 3:
                continue
            taken += 1
            refused = refusal(guard, data, name)
            said[refused.code if refused else "decoded"] += 1
            if refused:
                assert refused.message.startswith(name), refused.message
                assert len(refused.message) > len(name) + 10
                assert refused.hint
        assert guard.n_died == 0
    finally:
        guard.close()
    assert sum(kinds.values()) >= 2000
    assert taken > 300
    assert {"decoded", "not_an_image", "truncated", "damaged", "too_large", "too_small"} <= set(said)
    assert said["decoded"] < taken / 2


def test_the_corpus_is_the_same_every_time():
    first = dict(corpus(3, n_mutants=3, slow_ones=False))
    assert first == dict(corpus(3, n_mutants=3, slow_ones=False))
    assert first != dict(corpus(4, n_mutants=3, slow_ones=False))


# ---- what runs code


def test_no_module_opens_pickles_or_runs_text():
    """The one `torch.load` reads an installed package's weights, as plain tensors; see test_backbones.py.

    What goes over a Ray cluster is pickled by our own processes at both ends; Ray itself runs the code of whoever can
    reach it, which docs/cluster.md says.
    """
    found = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
                if names & {"marshal", "shelve", "dill", "cloudpickle", "joblib", "code", "imp"}:
                    found.append((path.name, names))
                if "pickle" in names:
                    found.append((path.name, "import pickle"))
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                last = name.rpartition(".")[2]
                risky = name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen")
                risky |= last in ("load", "loads", "Unpickler") and name.startswith(
                    ("pickle.", "torch.", "numpy.", "np.")
                )
                risky |= last in ("unsafe_load", "full_load", "load_all")
                risky |= any(keyword.arg == "shell" for keyword in node.keywords)
                risky |= any(
                    keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False" for keyword in node.keywords
                )
                if risky:
                    found.append((path.name, ast.unparse(node)[:200]))
    on_a_cluster = [each for each in found if each[0] in ("spreading.py", "workers.py")]
    assert {what for _, what in on_a_cluster} == {
        "import pickle",
        "pickle.loads(content)",
        "pickle.loads(row['refused'])",
    }
    pickle, load = (each for each in found if each not in on_a_cluster)
    assert pickle == ("networks.py", "import pickle")  # for the name of the error that torch raises
    assert load[0] == "networks.py"
    assert load[1].startswith("torch.load(")
    assert "weights_only=True" in load[1]


@pytest.mark.parametrize("name", ["w.pt", "w.bin", "w.ckpt"])
def test_weights_with_code_in_them_are_refused_and_nothing_runs(tmp_path, name):
    import pickle

    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    (tmp_path / name).write_bytes(pickle.dumps({"state_dict": Runs()}))
    write_leaf(tmp_path / "photos" / "a.png", LEAF_COLOURS["rust"], 1)
    place = f"mobilenetv2_100:{tmp_path / name}"
    done = run("enroll", "rust", tmp_path / "photos", "--backbone", place, "--index", tmp_path / "index")
    assert done.exit_code in (1, 2)
    assert "Traceback" not in done.output
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "index").exists()


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
HOSTILE_YAML = {
    "code": "a: !!python/object/apply:os.mkdir [owned]\n",
    "module": "!!python/module:os\n",
    "name": "a: !!python/name:os.system\n",
    "laughs": LAUGHS,
    "loop": "a: &a [*a]\n",
    "merge": "a: &a {b: 1}\nroutes: {<<: *a}\n",
    "deep": "a: " + "[" * 1_000,
    "deep mapping": "".join(f"{' ' * i}a:\n" for i in range(600)),
    "date": "a: 2024-99-99\n",
    "number": f"a: {'9' * 10_000}\n",
    "binary": "a: !!binary '@@@'\n",
    "key": "? [1, 2]\n: 3\n? {a: b}\n: 4\n",
    "no text": "\x00\x01",
    "large": "a: " + "x" * 1_100_000,
    "keys": "".join(f"k{i}: 1\n" for i in range(2_000)),
    "infinite": "epochs: .inf\nlr: .nan\n",
}


@pytest.mark.parametrize("text", HOSTILE_YAML.values(), ids=HOSTILE_YAML)
def test_a_hostile_recipe_or_routes_file_is_refused_and_runs_nothing(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as refused:
        read_plan(path)
    assert len(refused.value.message) < 200_000
    with pytest.raises(RoutesError):
        read_routes(path)
    assert not Path("owned").exists()


def test_a_pipe_as_a_recipe_is_not_waited_for_for_ever(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(RecipeError, match="regular file"):
        read_yaml(tmp_path / "pipe.yaml")


YAML_PARTS = [*"abk:-[]{}&*!|>'\"#%@,? \n\t01.~<", "routes:", "\n  ", "é", "\u2028", "epochs: ", "- "]
YAML = st.lists(st.sampled_from(YAML_PARTS), max_size=60).map("".join)


@given(YAML | st.binary(max_size=100))
@FUZZ
def test_whatever_a_recipe_or_routes_file_holds_it_is_read_or_refused(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    for read, error in ((read_plan, RecipeError), (read_routes, RoutesError)):
        with suppress(error):
            read(path)


# ---- projector files


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=1, max_size=5))
@FUZZ
def test_no_name_shifts_the_projectors_table(names):
    text = _metadata([Point("support", label, file, label, 0.5, True) for label, file in names])
    heading, *rows = text.removesuffix("\n").split("\n")
    assert len(rows) == len(names)
    assert {row.count("\t") for row in rows} == {heading.count("\t")}


# ---- folders


@pytest.fixture
def trap(tmp_path):
    """A folder of three photos, and of all that does not belong there."""
    folder, outside = tmp_path / "trap", tmp_path / "outside"
    for i in range(3):
        write_leaf(folder / f"leaf-{i}.png", LEAF_COLOURS["rust"], i)
    write_leaf(outside / "elsewhere.png", LEAF_COLOURS["rust"], 50)
    (outside / "secret.txt").write_text("the secret")
    (folder / "link-to-photo.png").symlink_to(outside / "elsewhere.png")
    (folder / "link-to-text.png").symlink_to(outside / "secret.txt")
    (folder / "link-to-passwords.png").symlink_to("/etc/passwd")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "nowhere.png").symlink_to(tmp_path / "none")
    (folder / "up.png").symlink_to("..")
    (folder / "random.png").symlink_to("/dev/urandom")
    (folder / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(folder / "socket.png"))
    (folder / "sub").mkdir()
    (folder / "sub" / "back.png").symlink_to(folder)
    (folder / "sub" / "round").symlink_to(folder)
    return folder


def test_a_folder_of_traps_gives_its_photos_and_refuses_the_rest(trap, tmp_path, colours):
    done = run("enroll", "rust", trap, "--index", tmp_path / "index")
    assert done.exit_code == 0, done.output
    # A link to a photo is that photo; links to folders are not followed; nothing blocks, nothing is endless.
    assert "rust: 4 enrolled, 8 refused" in done.stdout
    for name in ("link-to-text", "link-to-passwords", "loop", "nowhere", "random", "zero", "pipe", "socket"):
        assert f"{name}.png" in done.stderr, name
    assert "the secret" not in done.output
    assert "root:" not in done.output
    with Gallery(tmp_path / "index") as gallery:
        assert gallery.size() == (1, 4)
        assert not any("secret" in photo.file or "/etc" in photo.file for photo in gallery.supports("rust"))


def test_asking_a_folder_of_traps_ends_and_answers_its_photos(trap, tmp_path, colours):
    run("enroll", "rust", trap, "--index", tmp_path / "index")
    done = run("query", trap, "--index", tmp_path / "index")
    assert done.exit_code == 0, done.output
    assert sum("match" in line or re.search(r"rust +\d+%", line) is not None for line in done.stdout.splitlines()) >= 4
    assert "the secret" not in done.output


def test_a_folders_names_become_labels_and_no_paths(tmp_path, colours):
    """What zip archives try (`../`) cannot be a folder's name; what can be is a word."""
    names = ("r..", "a..b", "~", "$HOME", "C:", "-rf", "<b>bold<", "\u202etxt", "%2e%2e", "con")
    for seed, name in enumerate(names):
        write_leaf(tmp_path / "each" / name / "a.png", LEAF_COLOURS["rust"], seed)
    done = run("enroll", "--each", tmp_path / "each", "--index", tmp_path / "index")
    assert done.exit_code == 0, done.output
    before = {path.name for path in tmp_path.iterdir()}
    with Gallery(tmp_path / "index") as gallery:
        assert len(gallery.classes()) == 10
    done = run("project", "--out", tmp_path / "out", "--index", tmp_path / "index", "--method", "pca")
    assert "Traceback" not in done.output
    assert {path.name for path in tmp_path.iterdir()} - before <= {"out", "home"}
    if (tmp_path / "out" / "index.html").exists():
        assert "<b>bold</b>" not in (tmp_path / "out" / "index.html").read_text()


def test_a_name_that_is_no_text_is_kept_as_one_that_is(tmp_path, colours):
    """Linux lets a file be named by any bytes."""
    photo = write_leaf(tmp_path / "photos" / "a.png", LEAF_COLOURS["rust"], 1)
    Path(os.fsdecode(bytes(photo.parent) + b"/\xff\xfe.png")).write_bytes(photo.read_bytes() + b"other")
    for more in ([], ["--json"]):
        index = tmp_path / f"index{len(more)}"
        done = run("enroll", "rust", photo.parent, "--index", index, *more)
        assert done.exit_code == 0, done.output
        done = run("query", photo.parent, "--index", index, *more)
        assert done.exit_code == 0, done.output
        with Gallery(index) as gallery:
            assert sorted(each.file for each in gallery.supports("rust")) == ["\\xff\\xfe.png", "a.png"]


# ---- privacy


def test_where_and_when_and_by_whom_is_kept_only_if_asked(tmp_path, colours):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "SECRET-MAKER", 6
    exif.get_ifd(0x8769).update({0x9003: "2026:01:02 03:04:05", 0xA431: "SECRET-SERIAL"})
    exif.get_ifd(0x8825).update({1: "S", 2: (33.0, 51.0, 24.0), 3: "E", 4: (151.0, 12.0, 55.0)})
    photo = write_leaf(tmp_path / "plain.png", LEAF_COLOURS["rust"], 1, size=(400, 300))
    buffer = io.BytesIO()
    with Image.open(photo) as picture:
        picture.save(buffer, "JPEG", exif=exif, comment=b"SECRET-COMMENT")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(buffer.getvalue())
    assert b"SECRET-SERIAL" in buffer.getvalue()
    for options, is_kept in (([], False), (["--keep-metadata"], True), (["--keep-metadata", "--guarded"], True)):
        index = tmp_path / f"index{len(options)}"
        assert run("enroll", "rust", tmp_path / "photos", "--index", index, *options).exit_code == 0
        with Gallery(index) as gallery:
            kept = gallery.thumbnail(1)
        found = Image.open(io.BytesIO(kept))
        assert found.size == (256, 341)  # turned upright
        tags = found.getexif()
        assert (b"SECRET-SERIAL" in kept) == is_kept
        assert (b"SECRET-MAKER" in kept) == is_kept
        assert bool(tags.get_ifd(0x8825)) == is_kept
        assert 0x0112 not in tags  # it is upright already
        assert b"SECRET-COMMENT" not in kept
        everything = b"".join(path.read_bytes() for path in index.rglob("*") if path.is_file())
        assert (b"SECRET-SERIAL" in everything) == is_kept
