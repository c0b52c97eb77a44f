"""Photos in, unit vectors out: in order, whatever lies between them, and leaving nothing running."""

import gc
import threading
import time

import numpy as np
import pytest
from conftest import GRID, LEAF_COLOURS, ColourEngine, colour_embedder, write_leaf
from PIL import Image

from fewshot.backbones import Backbone, Preprocessing, WeightsSource
from fewshot.embedder import Embedder, EmbedderChoice, cache_folder, open_embedder
from fewshot.errors import EngineError, UsageError
from fewshot.images import content_hash
from fewshot.records import EmbeddedPhoto, NamedBytes, Refused, SkippedPhoto
from fewshot.transforms import Transform


class Engine(ColourEngine):
    """The colour engine with a batch size, a number of parallel calls, and a note of each call's size."""

    def __init__(self, batch_size=4, n_parallel=2, spoil=None, slow=False):
        self.batch_size, self.n_parallel = batch_size, n_parallel
        self.sizes = []
        self.spoil, self.slow = spoil, slow

    def run(self, pixels):
        self.sizes.append(len(pixels))
        if self.slow:
            time.sleep(0.002 * (len(self.sizes) % 3))  # later calls may end before earlier ones
        rows = super().run(pixels)
        return rows if self.spoil is None else self.spoil(rows)


def embedder_around(engine):
    preprocessing = Preprocessing(64, 0.875, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    backbone = Backbone("colours", "colour_grid", GRID * GRID * 3, "0" * 64, preprocessing)
    return Embedder(backbone, WeightsSource("colours", "colour_grid", "package", ""), "f32", lambda bulk: engine)


@pytest.fixture
def mixed(tmp_path):
    """23 photos, every fourth not readable."""
    photos = []
    for i in range(23):
        path = tmp_path / "mixed" / f"{i:02d}.png"
        write_leaf(path, LEAF_COLOURS["rust"], i)
        if i % 4 == 1:
            path.write_text("words")
        photos.append(path)
    return photos


# ---- order and outcomes


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16, 64])
@pytest.mark.parametrize("n_parallel", [1, 3])
def test_every_photo_gets_its_own_outcome_in_order(mixed, batch_size, n_parallel):
    engine = Engine(batch_size, n_parallel, slow=True)
    photos = mixed * 5  # more than are in flight at once
    outcomes = list(embedder_around(engine).embed_photos(photos, n_photos=len(photos)))
    assert [outcome.file for outcome in outcomes] == [str(photo) for photo in photos]
    alone = embedder_around(Engine(1, 1))
    for number, (photo, outcome) in enumerate(zip(photos, outcomes, strict=True)):
        if number % len(mixed) % 4 == 1:
            assert (type(outcome), outcome.code) == (Refused, "not_an_image")
            continue
        wanted = alone.embed_pixels(alone.prepare(photo).pixels[None])[0]
        assert np.allclose(outcome.embedding, wanted, atol=1e-6), number
        assert outcome.sha256 == content_hash(photo.read_bytes())
        assert (outcome.width, outcome.height) == (80, 72)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_long_run_of_known_photos_keeps_back_nothing_that_came_before_it(mixed, batch_size):
    n_read = 0

    def is_known(sha256):
        nonlocal n_read
        n_read += 1
        time.sleep(0.001)
        return sha256 != new

    new = content_hash(mixed[0].read_bytes())
    photos = [mixed[0], *[mixed[2]] * 1000]
    found = embedder_around(Engine(batch_size)).embed_photos(photos, n_photos=1001, is_known=is_known)
    assert next(found).sha256 == new
    assert n_read < 200
    assert len(list(found)) == 1000


def test_all_calls_but_the_last_get_exactly_the_batch_size(mixed):
    engine = Engine(5, 1)
    list(embedder_around(engine).embed_photos(mixed, n_photos=len(mixed)))
    assert engine.sizes == [5, 5, 5, 2]  # 17 of the 23 are readable


def test_many_photos_are_whitened_together_and_the_last_ones_too(mixed):
    together = []

    class Noting(Transform):
        def __call__(self, embeddings):
            together.append(len(embeddings))
            return super().__call__(embeddings)

    plain = embedder_around(Engine(1, 2))
    eye = Noting(np.zeros(plain.dim, np.float32), np.eye(plain.dim, dtype=np.float32), 1.0)
    whitening = Embedder(plain.backbone, plain.source, "f32", lambda bulk: Engine(1, 2), lambda: eye)
    readable = [photo for number, photo in enumerate(mixed) if number % 4 != 1] * 4
    found = list(whitening.embed_photos(readable, n_photos=len(readable)))
    assert len(found) == len(readable) == 68
    assert together == [16, 16, 16, 16, 4]


def test_embeddings_are_float32_of_unit_length(mixed):
    for outcome in colour_embedder().embed_photos(mixed[:1], n_photos=1):
        assert outcome.embedding.dtype == np.float32
        assert outcome.embedding.shape == (colour_embedder().dim,)
        assert np.linalg.norm(outcome.embedding) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_embedding_pixels_in_batches_gives_what_one_at_a_time_gives(batch_size):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
    at_once = embedder_around(Engine(batch_size)).embed_pixels(pixels)
    one_by_one = [embedder_around(Engine(1)).embed_pixels(each[None])[0] for each in pixels]
    assert np.allclose(at_once, one_by_one, atol=1e-6)


def test_no_photos_give_no_outcomes():
    assert list(colour_embedder().embed_photos([], n_photos=0)) == []


def test_only_bad_photos_are_all_refused_without_the_engine(mixed):
    engine = Engine()
    outcomes = list(embedder_around(engine).embed_photos(mixed[1::4], n_photos=6))
    assert {type(outcome) for outcome in outcomes} == {Refused}
    assert engine.sizes == []


def test_known_photos_are_skipped_before_they_are_decoded(mixed):
    known = {content_hash(photo.read_bytes()) for photo in mixed[::2]} | {content_hash(b"words")}
    engine = Engine()
    outcomes = list(embedder_around(engine).embed_photos(mixed, n_photos=23, is_known=known.__contains__))
    for number, outcome in enumerate(outcomes):
        skipped = number % 2 == 0 or number % 4 == 1
        assert isinstance(outcome, SkippedPhoto if skipped else EmbeddedPhoto), number
        assert outcome.file == str(mixed[number])
    assert sum(engine.sizes) == sum(isinstance(outcome, EmbeddedPhoto) for outcome in outcomes)


def test_thumbnails_are_made_only_where_they_are_kept(mixed):
    (kept,) = colour_embedder().embed_photos(mixed[:1], n_photos=1, keep=True)
    (passing,) = colour_embedder().embed_photos(mixed[:1], n_photos=1)
    assert kept.thumbnail[8:12] == b"WEBP"
    assert passing.thumbnail is None
    assert np.allclose(kept.embedding, passing.embedding, atol=1e-6)


def test_named_bytes_are_called_by_their_name(mixed):
    photos = [NamedBytes("upload 1", mixed[0].read_bytes()), NamedBytes("upload 2", b"words")]
    good, bad = colour_embedder().embed_photos(photos, n_photos=2)
    assert (good.file, bad.file) == ("upload 1", "upload 2")
    assert "upload 2" in bad.message


def test_empty_upload_is_refused_as_empty():
    (refused,) = colour_embedder().embed_photos([NamedBytes("upload.jpg", b"")], n_photos=1)
    assert refused.code == "empty_file"


def test_a_photo_that_cannot_be_used_is_refused_by_name_and_no_exception(mixed):
    refused = colour_embedder().prepare(mixed[1])
    assert (type(refused), refused.file, refused.code) == (Refused, str(mixed[1]), "not_an_image")
    assert "01.png" in refused.message


# ---- what goes wrong


def test_photos_are_taken_only_a_bounded_number_ahead(mixed):
    taken = []

    def photos():
        for i in range(100_000):
            taken.append(i)
            yield mixed[0]

    outcomes = embedder_around(Engine(1, 1)).embed_photos(photos(), n_photos=100_000)
    next(outcomes)
    outcomes.close()
    assert len(taken) < 200


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_embedding_without_direction_is_an_engine_error(mixed, value):
    def spoil(rows):
        rows = rows.copy()
        rows[-1] = value
        return rows

    with pytest.raises(EngineError, match="'colours' gave an embedding without direction") as caught:
        list(embedder_around(Engine(spoil=spoil)).embed_photos(mixed, n_photos=23))
    assert caught.value.hint
    with pytest.raises(EngineError):
        embedder_around(Engine(spoil=spoil)).embed_pixels(np.ones((2, 64, 64, 3), np.uint8))


@pytest.fixture
def our_threads():
    """The threads of this test's embedders; what an earlier test dropped may run until garbage is collected."""
    before = set(threading.enumerate())
    names = ("decode", "compile", "engine")
    return lambda: [each.name for each in set(threading.enumerate()) - before if each.name.startswith(names)]


def test_a_decoder_that_breaks_is_told_and_leaves_nothing_running(mixed, monkeypatch, our_threads):
    monkeypatch.setattr("fewshot.embedder.images.fit_to_input", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(colour_embedder().embed_photos(mixed * 5, n_photos=115))
    assert our_threads() == []


def test_an_engine_that_cannot_be_opened_is_told_and_leaves_nothing_running(mixed, our_threads):
    embedder = embedder_around(None)
    embedder._open_engine = lambda bulk: (_ for _ in ()).throw(EngineError("no engine"))
    with pytest.raises(EngineError, match="no engine"):
        list(embedder.embed_photos(mixed * 5, n_photos=115))
    assert our_threads() == []


def test_an_engine_that_breaks_half_way_is_told_and_leaves_nothing_running(mixed, our_threads):
    calls = []

    def spoil(rows):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("broken")
        return rows

    with pytest.raises(RuntimeError, match="broken"):
        list(embedder_around(Engine(2, 2, spoil=spoil)).embed_photos(mixed * 5, n_photos=115))
    gc.collect()
    assert our_threads() == []


@pytest.mark.parametrize("n_taken", [0, 1, 10])
def test_closing_early_leaves_no_thread_running(mixed, n_taken, our_threads):
    outcomes = embedder_around(Engine(2, 2, slow=True)).embed_photos(mixed * 20, n_photos=460)
    for _ in range(n_taken):
        next(outcomes)
    assert not n_taken or our_threads()
    outcomes.close()
    assert our_threads() == []


def test_the_engine_is_opened_once_for_few_and_once_for_many(mixed):
    opened = []
    embedder = embedder_around(None)
    embedder._open_engine = lambda bulk: opened.append(bulk) or Engine()
    for n_photos in (1, 2, 23, 50, 1):
        list(embedder.embed_photos(mixed[:1], n_photos=n_photos))
    assert opened == [False, True]


def test_a_single_photo_after_the_first_is_embedded_without_threads_and_to_the_same_outcome(mixed, monkeypatch):
    embedder = embedder_around(Engine())
    first = [next(embedder.embed_photos([photo], n_photos=1)) for photo in mixed[:1]]
    wanted = list(embedder.embed_photos(mixed, n_photos=len(mixed)))
    monkeypatch.setattr("fewshot.embedder.ThreadPoolExecutor", None)
    found = first + [next(embedder.embed_photos([photo], n_photos=1)) for photo in mixed[1:]]
    for one, other in zip(found, wanted, strict=True):
        assert (type(one), one.file) == (type(other), other.file)
        if isinstance(one, Refused):
            assert one == other
        else:
            assert np.allclose(one.embedding, other.embedding, atol=1e-6)
    known = content_hash(mixed[0].read_bytes())
    (skipped,) = embedder.embed_photos(mixed[:1], n_photos=1, is_known=known.__eq__)
    assert skipped.sha256 == known
    assert not hasattr(skipped, "embedding")


# ---- names


def test_fingerprint_tells_precision_preprocessing_and_weights_apart_but_not_names():
    base = Preprocessing(64, 0.875, "bilinear", (0.0,) * 3, (1.0,) * 3)

    def digits(precision="f32", weights="0" * 64, name="a", architecture="net", **settings):
        prepared = Preprocessing(**{**{f: getattr(base, f) for f in base.__dataclass_fields__}, **settings})
        name, _, digits = Backbone(name, architecture, 8, weights, prepared).fingerprint(precision).rpartition("@")
        assert len(digits) == 12
        return digits

    same = digits()
    assert digits(name="another-file.safetensors") == same
    others = [
        digits(precision="bf16"),
        digits(weights="1" * 64),
        digits(architecture="other"),
        digits(image_size_px=96),
        digits(crop_pct=1.0),
        digits(interpolation="bicubic"),
        digits(mean=(0.5, 0.0, 0.0)),
        digits(std=(0.5, 1.0, 1.0)),
        digits(squash=True),
        digits(views=5),
    ]
    assert len({same, *others}) == len(others) + 1


def test_a_backbone_written_as_json_is_read_back_the_same():
    backbone = colour_embedder().backbone
    assert Backbone.from_dict(backbone.as_dict()) == backbone


@pytest.mark.parametrize(
    ("choice", "suggested"),
    [(EmbedderChoice(engine="opnvino"), "openvino"), (EmbedderChoice(precision="bf61"), "bf16")]
    + [(EmbedderChoice(quality="bset"), "best")],
)
def test_unknown_engine_precision_or_quality_is_misuse_and_suggests_the_nearest(choice, suggested):
    with pytest.raises(UsageError) as caught:
        open_embedder(choice)
    assert f"Did you mean {suggested!r}?" in caught.value.hint
    assert "Known:" in caught.value.hint


def test_prepared_backbones_are_kept_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSHOT_CACHE", str(tmp_path / "kept"))
    assert cache_folder() == tmp_path / "kept"
    monkeypatch.delenv("FEWSHOT_CACHE")
    assert cache_folder().is_relative_to(tmp_path)
    assert cache_folder().name == "fewshot"


def test_upright_and_turned_photos_of_one_leaf_embed_alike(tmp_path):
    path = write_leaf(tmp_path / "a.png", LEAF_COLOURS["rust"], 0)
    image = Image.open(path)
    image.paste((255, 255, 0), (0, 0, 30, 20))
    image.save(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright, turned = colour_embedder().embed_photos([path, tmp_path / "turned.png"], n_photos=2)
    assert upright.embedding @ turned.embedding == pytest.approx(1.0, abs=1e-6)
    assert (turned.width, turned.height) == (80, 72)
