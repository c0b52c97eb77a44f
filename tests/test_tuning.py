"""The fastest settings for many photos are measured once a machine, and never by a small command."""

import shutil
import threading

import numpy as np
import pytest
from conftest import LEAF_COLOURS, write_leaf

from fewshot import engines, tuning
from fewshot.backbones import resolve, source_key
from fewshot.embedder import EmbedderChoice, cache_folder, open_embedder
from fewshot.engines import BulkSettings
from fewshot.errors import EngineError
from fewshot.records import NamedBytes
from fewshot.sealed import write_sealed

FEW = BulkSettings(8, 2)


class Timed:
    """An engine that answers at once, and for which `_seconds` says how long it took."""

    def __init__(self, ir, precision, bulk, *, keep):
        assert not keep, "a candidate that is dropped leaves nothing in the cache"
        self.settings = bulk


@pytest.fixture
def ir(tmp_path):
    """A prepared backbone, as far as its facts go."""
    backbone = {"name": "mine", "preprocessing": {"image_size_px": 32}}
    path = tmp_path / "cache" / "key" / "model.ir"
    write_sealed(path, lambda target: target.write_bytes(b"network"), {"backbone": backbone})
    return path


@pytest.fixture
def speeds(monkeypatch):
    """Photos a second by settings, told instead of measured; others run at 100."""
    known = {}
    monkeypatch.setattr(engines, "n_threads", lambda: 2)
    monkeypatch.setattr(tuning, "OpenVinoEngine", Timed)
    monkeypatch.setattr(tuning, "_seconds", lambda engine, pixels: len(pixels) / known.get(engine.settings, 100.0))
    return known


def test_the_fastest_settings_are_kept_for_this_machine(ir, speeds):
    speeds[FEW] = 130.0
    assert not tuning.is_measured(ir, "f32")
    assert tuning.chosen(ir, "f32") == BulkSettings()
    found = tuning.measure(ir, "f32")
    assert found["photos_per_s"][str(FEW)] == 130.0
    assert tuning.is_measured(ir, "f32")
    assert tuning.chosen(ir, "f32") == FEW
    (found,) = tuning.found_here(ir.parents[1])
    assert (found["backbone"], found["prepared"]) == ("mine", ir.parent.name)


def test_rounds_that_other_work_has_lengthened_do_not_decide(ir, speeds, monkeypatch):
    speeds[FEW] = 130.0
    quiet, calls = tuning._seconds, []

    def disturbed(engine, pixels):
        calls.append(engine.settings)
        return quiet(engine, pixels) * (3 if engine.settings == FEW and calls.count(FEW) % 3 else 1)

    monkeypatch.setattr(tuning, "_seconds", disturbed)
    tuning.measure(ir, "f32")
    assert tuning.chosen(ir, "f32") == FEW


def test_what_is_hardly_faster_changes_nothing(ir, speeds):
    speeds[FEW] = 102.0
    tuning.measure(ir, "f32")
    assert tuning.is_measured(ir, "f32")
    assert tuning.chosen(ir, "f32") == BulkSettings()


def test_each_precision_number_of_threads_and_machine_has_its_own(ir, speeds, monkeypatch):
    speeds[FEW] = 130.0
    tuning.measure(ir, "f32")
    assert not tuning.is_measured(ir, "bf16")
    monkeypatch.setattr(engines, "n_threads", lambda: 1)
    assert not tuning.is_measured(ir, "f32")
    monkeypatch.setattr(engines, "n_threads", lambda: 2)
    monkeypatch.setattr(engines, "n_cores", lambda: 64)
    assert tuning.chosen(ir, "f32") == BulkSettings()
    assert tuning.found_here(ir.parents[1]) == []


def test_a_damaged_finding_is_no_finding(ir, speeds):
    speeds[FEW] = 130.0
    tuning.measure(ir, "f32")
    (file,) = ir.parent.glob("bulk-*")
    file.write_bytes(file.read_bytes()[:-5])
    assert tuning.chosen(ir, "f32") == BulkSettings()
    assert tuning.found_here(ir.parents[1]) == []


def test_a_cache_that_cannot_be_written_is_no_error(ir, speeds, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tuning, "write_sealed", full)
    speeds[FEW] = 130.0
    assert tuning.measure(ir, "f32")["chosen"] == {"batch_size": 8, "n_streams": 2}
    assert not tuning.is_measured(ir, "f32")


def test_settings_that_the_backbone_cannot_take_are_passed_over(ir, speeds, monkeypatch):
    class OneACall(Timed):
        def __init__(self, ir, precision, bulk, **options):
            super().__init__(ir, precision, bulk, **options)
            if bulk.batch_size > 1:
                raise EngineError("one photo a call")

    monkeypatch.setattr(tuning, "OpenVinoEngine", OneACall)
    speeds[BulkSettings(1, 2)] = 150.0
    tuning.measure(ir, "f32")
    assert tuning.chosen(ir, "f32") == BulkSettings(1, 2)


def test_two_processes_at_once_leave_one_sound_finding(ir, speeds):
    speeds[FEW] = 130.0
    threads = [threading.Thread(target=tuning.measure, args=(ir, "f32")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tuning.chosen(ir, "f32") == FEW
    assert {path.name for path in ir.parent.iterdir()} == {"model.ir", "bulk-f32-2.chosen"}


# ---- with the engine itself


@pytest.fixture
def prepared(tmp_path, monkeypatch, backbone_cache):
    """The shipped backbone, prepared, in a cache folder of this test's own."""
    open_embedder(EmbedderChoice("plants-lite0", "f32"))
    key = source_key(resolve("plants-lite0"))
    target = tmp_path / "own" / "backbones" / key
    target.mkdir(parents=True)
    for file in (cache_folder() / "backbones" / key).iterdir():
        if not file.name.startswith(("compiled", "bulk")):
            shutil.copyfile(file, target / file.name)
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "own"))
    return target / "model.ir"


@pytest.mark.weights
def test_several_photos_a_call_give_the_vectors_of_one_a_call(prepared):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 224, 224, 3), dtype=np.uint8)
    alone = engines.OpenVinoEngine(prepared, "f32", BulkSettings())
    three = engines.OpenVinoEngine(prepared, "f32", BulkSettings(3, 1))
    again = engines.OpenVinoEngine(prepared, "f32", BulkSettings(3, 1))  # from the cache
    assert (three.batch_size, three.n_parallel) == (3, 1)
    wanted = alone.run(pixels)
    for engine in (three, again):
        found = np.concatenate([engine.run(pixels[i : i + 3]) for i in (0, 3, 6)])  # the last call has one photo
        assert np.allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.weights
def test_only_a_large_command_measures_and_the_next_ones_use_it(prepared, monkeypatch, tmp_path):
    measured = []

    def measure(ir, precision):
        measured.append(precision)
        facts = {"backbone": "", "precision": precision, "chosen": {"batch_size": 2, "n_streams": 1}}
        facts |= {"photos_per_s": {}, "made_for": tuning._made_for(ir)}
        write_sealed(tuning._file(ir, precision), lambda path: path.write_bytes(b""), facts)

    monkeypatch.setattr(tuning, "measure", measure)
    leaf = tmp_path / "leaf.jpg"
    write_leaf(leaf, next(iter(LEAF_COLOURS.values())), 1)
    photos = [NamedBytes(f"{i}.jpg", leaf.read_bytes()) for i in range(5)]

    def embedded(n_photos):
        embedder = open_embedder(EmbedderChoice("plants-lite0", "f32"))
        rows = np.stack([photo.embedding for photo in embedder.embed_photos(photos, n_photos=n_photos)])
        return rows, embedder.open_for_many().batch_size

    before, batch = embedded(tuning.MEASURED_FROM - 1)
    assert (measured, batch) == ([], 1)
    during, batch = embedded(tuning.MEASURED_FROM)
    assert (measured, batch) == (["f32"], 2)
    after, batch = embedded(len(photos))
    assert (measured, batch) == (["f32"], 2)
    assert np.allclose(before, during, atol=1e-4)
    assert np.allclose(before, after, atol=1e-4)
