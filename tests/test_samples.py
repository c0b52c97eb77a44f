import errno
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshot import samples
from fewshot.errors import FolderError, UsageError
from fewshot.samples import CLASSES, render_leaf, write_samples

SMALL_PX = 64


def write_small(folder, **settings):
    return write_samples(folder, **{"n_support": 1, "n_query": 1, "size_px": SMALL_PX, **settings})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What `write_small` writes; nobody changes it."""
    folder = tmp_path_factory.mktemp("written")
    write_small(folder)
    return folder


def bytes_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- one picture


@pytest.mark.parametrize("label", CLASSES)
@pytest.mark.parametrize("size_px", [64, 97, 160])
def test_every_class_renders_as_rgb_at_every_size(label, size_px):
    picture = render_leaf(label, np.random.default_rng(1), size_px=size_px)
    assert (picture.mode, picture.size) == ("RGB", (size_px, size_px))


def test_default_size_is_288_px():
    assert render_leaf("healthy", np.random.default_rng(0)).size == (288, 288)


def test_same_generator_gives_the_same_pixels_and_another_gives_others():
    first, again, other = (
        np.asarray(render_leaf("rust", np.random.default_rng(seed), size_px=SMALL_PX)) for seed in (3, 3, 4)
    )
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 5


def test_every_background_is_light_of_the_pictures_size():
    rng = np.random.default_rng(0)
    light = samples._light(rng)
    for paint in samples.BACKGROUNDS:
        background = paint(rng, SMALL_PX, light)
        assert background.shape == (3, SMALL_PX, SMALL_PX)
        assert background.dtype == np.float32
        assert background.min() >= 0


def test_a_leaf_looks_alike_at_every_size():
    small, large = (
        np.asarray(render_leaf("blight", np.random.default_rng(6), size_px=size_px).resize((32, 32)), float)
        for size_px in (128, 256)
    )
    assert np.abs(small - large).mean() < 20


# ---- what a symptom is, measured on the blade alone: leaf, light and green are drawn before the symptom, so that two
# classes share them under one seed, and before a magenta wall the healthy leaf tells where the blade is


@pytest.fixture(scope="module")
def blades():
    """For each class (n_leaves, size_px, size_px, 3) float, and the healthy leaves' mask, before a magenta wall."""
    wall = np.float32([0.8, 0.0, 0.8]).reshape(3, 1, 1) * np.ones((1, 160, 160), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "BACKGROUNDS", (lambda rng, size_px, light: wall,))
        pictures = {
            label: np.stack(
                [np.asarray(render_leaf(label, np.random.default_rng(seed), size_px=160)) for seed in range(6)]
            )
            for label in CLASSES
        }
    as_float = {label: stack.astype(float) for label, stack in pictures.items()}
    return as_float, ~is_wall(as_float["healthy"])


def is_wall(picture):
    return np.minimum(picture[..., 0], picture[..., 2]) > 1.5 * picture[..., 1]


def is_brown(picture):
    return (picture[..., 0] > 1.1 * picture[..., 1]) & ~is_wall(picture)


def is_white(picture):
    return picture.min(axis=-1) > 0.72 * picture.max(axis=-1)


def is_large(mask):
    """Where nearly all of the neighbourhood, a sixteenth of the frame, belongs to `mask`."""
    n, side, _ = mask.shape
    return mask.reshape(n, side // 10, 10, side // 10, 10).mean(axis=(2, 4)) > 0.9


def contrast(picture, blade):
    """How much the green varies over the blade, relative to its mean."""
    return np.mean(
        [green[inside].std() / green[inside].mean() for green, inside in zip(picture[..., 1], blade, strict=True)]
    )


def test_healthy_blade_is_green_and_whole(blades):
    pictures, blade = blades
    healthy = pictures["healthy"][blade]
    assert blade.mean() > 0.2
    assert (healthy.argmax(axis=-1) == 1).mean() > 0.93  # the rest is stalk
    assert is_brown(healthy).mean() < 0.03
    assert is_white(healthy).mean() < 0.03


def test_rust_has_orange_spots_and_no_large_dead_area(blades):
    pictures, blade = blades
    assert is_brown(pictures["rust"])[blade].mean() > 0.08
    assert is_large(is_brown(pictures["rust"])).mean() < 0.01


def test_powdery_mildew_is_white(blades):
    pictures, blade = blades
    assert is_white(pictures["powdery-mildew"])[blade].mean() > 0.15


def test_blight_has_large_brown_areas(blades):
    pictures, blade = blades
    assert is_brown(pictures["blight"])[blade].mean() > 0.15
    assert is_large(is_brown(pictures["blight"])).mean() > 0.03


def test_mosaic_stays_green_but_varies_more_than_healthy(blades):
    pictures, blade = blades
    assert (pictures["mosaic"][blade].argmax(axis=-1) == 1).mean() > 0.9
    assert contrast(pictures["mosaic"], blade) > 1.3 * contrast(pictures["healthy"], blade)


@pytest.mark.parametrize("label", CLASSES)
def test_background_shows_through_shot_holes_only(blades, label):
    pictures, blade = blades
    through = is_wall(pictures[label])[blade].mean()
    assert through > 0.04 if label == "shot-hole" else through < 0.01


# ---- the folder


def test_layout_is_split_then_label_and_paths_come_back_in_order(tmp_path):
    seen = []
    paths = write_small(tmp_path / "new" / "samples", n_support=2, on_photo=seen.append)
    assert paths == seen
    assert len(paths) == len(CLASSES) * 3
    assert set(paths) == {path for path in (tmp_path / "new" / "samples").rglob("*") if path.is_file()}
    assert paths[:2] == [tmp_path / "new/samples/support/healthy" / f"healthy-{i:02d}.jpg" for i in range(2)]
    with Image.open(paths[-1]) as photo:
        assert (photo.format, photo.mode, photo.size) == ("JPEG", "RGB", (SMALL_PX, SMALL_PX))


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, written):
    write_small(tmp_path / "again", seed=0)
    write_small(tmp_path / "other", seed=1)
    assert bytes_of(tmp_path / "again") == bytes_of(written)
    assert all(bytes_of(written)[name] != content for name, content in bytes_of(tmp_path / "other").items())


def test_a_larger_set_contains_the_smaller_one_and_no_two_are_equal(tmp_path, written):
    paths = write_small(tmp_path, n_support=2, n_query=2)
    assert bytes_of(written).items() < bytes_of(tmp_path).items()
    pixels = {hashlib.sha256(Image.open(path).tobytes()).digest() for path in paths}
    assert len(pixels) == len(paths)


def test_another_number_and_order_of_classes_leaves_photos_unchanged(tmp_path, written, monkeypatch):
    monkeypatch.setattr(samples, "CLASSES", ("shot-hole", "rust"))
    write_small(tmp_path)
    assert bytes_of(tmp_path).items() < bytes_of(written).items()


def test_running_again_over_its_own_output_changes_nothing_and_may_only_add(tmp_path):
    write_small(tmp_path)
    before = bytes_of(tmp_path)
    (tmp_path / "support" / ".DS_Store").write_bytes(b"left by a file manager")
    write_small(tmp_path)
    assert before.items() < bytes_of(tmp_path).items()  # the litter is the one thing more
    write_small(tmp_path, n_query=2)
    with pytest.raises(UsageError, match=r"-01\.jpg"):  # fewer again: what is left over would be mixed in
        write_small(tmp_path)


# ---- refusals


def test_unknown_label_suggests_the_nearest():
    with pytest.raises(UsageError, match="'rusty'") as caught:
        render_leaf("rusty", np.random.default_rng(0))
    assert caught.value.hint == "Did you mean 'rust'?"
    with pytest.raises(UsageError) as caught:
        render_leaf("xylophone", np.random.default_rng(0))
    assert "powdery-mildew" in caught.value.hint


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"n_support": 0}, "n_support is 0; wanted 1 or more"),
        ({"n_query": -3}, "n_query is -3; wanted 1 or more"),
        ({"seed": -1}, "seed is -1; wanted 0 or more"),
        ({"size_px": 63}, "size_px is 63; wanted 64 to 2048"),
        ({"size_px": 2049}, "size_px is 2049; wanted 64 to 2048"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_written(tmp_path, settings, found):
    with pytest.raises(UsageError, match=found) as caught:
        write_small(tmp_path / "samples", **settings)
    assert caught.value.hint
    assert not (tmp_path / "samples").exists()


def test_render_leaf_refuses_a_size_below_64_px():
    with pytest.raises(UsageError, match="size_px is 63"):
        render_leaf("rust", np.random.default_rng(0), size_px=63)


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_file_in_the_folders_place_is_refused(tmp_path, below):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UsageError, match="notes is a file"):
        write_small(tmp_path / "notes" / below)
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["holiday.jpg", "support/rust/rust-00.jpg", "support/rust/rust-01.jpg", "query", "support/.hidden.part"]
)
def test_a_foreign_file_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(tmp_path / name, "JPEG")
    before = bytes_of(tmp_path)
    with pytest.raises(UsageError, match=name):
        write_small(tmp_path)
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize("settings", [{"seed": 1}, {"size_px": 65}])
def test_samples_of_other_settings_are_not_overwritten(written, settings):
    before = bytes_of(written)
    with pytest.raises(UsageError, match="already holds"):
        write_small(written, **settings)
    assert bytes_of(written) == before


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "support").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="support"):
        write_small(tmp_path / "samples")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_interrupting_leaves_whole_photos_only_and_the_next_run_completes_them(tmp_path, written, monkeypatch):
    replace, calls = Path.replace, []

    def interrupted(part, path):
        calls.append(path)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return replace(part, path)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_small(tmp_path / "cut")
    left = bytes_of(tmp_path / "cut")
    assert len(left) == 3
    assert left.items() < bytes_of(written).items()
    (calls[-1].parent / f".{calls[-1].name}.part").write_bytes(b"left by a killed run")
    write_small(tmp_path / "cut")
    assert bytes_of(tmp_path / "cut") == bytes_of(written)


def test_a_full_disk_is_our_error_and_leaves_no_part(tmp_path, monkeypatch):
    def full(part, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(FolderError, match=r"healthy-00\.jpg: No space left on device") as caught:
        write_small(tmp_path)
    assert caught.value.hint
    assert bytes_of(tmp_path) == {}
