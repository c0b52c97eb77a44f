"""Which photos are learned from, chosen by and measured on. The files are empty: nothing is decoded."""

import pytest

from fewshot.errors import RecipeError, TooFewPhotosError
from fewshot.recipes import resolve
from fewshot.training.photos import read_split


def write_photos(folder, names_by_label):
    for label, names in names_by_label.items():
        (folder / label).mkdir(parents=True)
        for name in names:
            (folder / label / f"{name}.jpg").touch()


def numbered(labels, n):
    return {label: [f"{i:02}" for i in range(n)] for label in labels}


def stems(photos):
    return [file.stem for file in photos.files]


def sources(photos):
    return {stem.rpartition("_")[0] for stem in stems(photos)}


def test_a_class_that_is_tested_and_not_trained_suggests_the_nearest(tmp_path):
    write_photos(tmp_path / "train", numbered(["corn-rust", "apple-scab"], 4))
    write_photos(tmp_path / "test", numbered(["corn-rusty", "apple-scab"], 2))
    with pytest.raises(
        RecipeError, match=r"'test' tests a class 'corn-rusty' of which 'train' has no photos"
    ) as caught:
        read_split(resolve({"test_folder": "test"}), tmp_path)
    assert caught.value.hint == "Did you mean 'corn-rust'?"


def test_held_out_classes_may_be_in_the_test_folder(tmp_path):
    for part in ("train", "test"):
        write_photos(tmp_path / part, numbered(["corn-rust", "apple-scab", "corn-healthy"], 4))
    split = read_split(resolve({"test_folder": "test", "held_out_classes": ["corn-rust"]}), tmp_path)
    assert split.train.labels == split.test.labels == ("apple-scab", "corn-healthy")
    assert len(split.test) == 8


def test_a_limit_of_photos_leaves_the_test_folder_whole(tmp_path):
    write_photos(tmp_path / "train", numbered(["corn-rust", "apple-scab"], 12))
    write_photos(tmp_path / "test", numbered(["corn-rust", "apple-scab"], 6))
    limited = {"photos_per_class_max": 4, "validation_share": 0.25}
    split = read_split(resolve({**limited, "test_folder": "test"}), tmp_path)
    assert (len(split.train), len(split.validation), len(split.test)) == (6, 2, 12)
    split = read_split(resolve({**limited, "test_share": 0.25, "validation_share": 0.0}), tmp_path)
    assert (len(split.train), len(split.test)) == (6, 2), "what is split off counts"


def test_four_samples_need_three_classes(tmp_path):
    write_photos(tmp_path / "train", numbered(["corn-rust", "apple-scab"], 8))
    settings = {"loss": "quadruplet", "test_share": 0.0}
    assert len(read_split(resolve(settings), tmp_path).train) == 16
    with pytest.raises(TooFewPhotosError, match=r"2 classes to learn in 'train'; the four-sample form .* compares 3"):
        read_split(resolve({**settings, "quadruplet_form": "four-sample"}), tmp_path)


PATCHES = {
    "train_folder": ".",
    "test_share": 0.2,
    "validation_share": 0.25,
    "source_pattern": "^(H[0-9]+_[0-9]+[a-z]*)_",
}


def test_the_split_of_the_published_figures_stays(tmp_path):
    """Names as DeFungi's, each source in one class. What is drawn here was drawn by the version that was measured."""
    for label in ("H1", "H2", "H5"):
        patches = [f"{label}_{source}a_{i}" for source in range(6) for i in range(2 + source)]
        write_photos(tmp_path, {label: patches})
    by_source = read_split(resolve({**PATCHES, "split_by": "source"}), tmp_path)
    assert sources(by_source.test) == {"H1_0a", "H1_1a", "H2_5a", "H5_3a"}
    assert sources(by_source.validation) == {"H1_4a", "H2_0a", "H2_1a", "H5_0a", "H5_1a"}
    assert (len(by_source.test), len(by_source.validation), len(by_source.train)) == (17, 16, 48)
    by_photo = read_split(resolve(PATCHES), tmp_path)
    assert stems(by_photo.test)[:5] == ["H1_3a_2", "H1_4a_2", "H1_4a_3", "H1_5a_2", "H1_5a_3"]
    assert stems(by_photo.validation)[-5:] == ["H5_2a_0", "H5_3a_3", "H5_3a_4", "H5_4a_1", "H5_5a_3"]
    assert (len(by_photo.test), len(by_photo.validation), len(by_photo.train)) == (15, 18, 48)


def test_a_group_that_a_name_leaves_out_is_no_source(tmp_path):
    """All such photos would else be of one source, and stay together."""
    write_photos(tmp_path, {label: [*(f"{label}_{i}" for i in range(4)), "other"] for label in ("H1", "H2")})
    recipe = resolve({**PATCHES, "split_by": "source", "source_pattern": "^(H[0-9]_[0-9])?"})
    with pytest.raises(RecipeError, match=r"finds no source \(group 1\) in 'other.jpg'"):
        read_split(recipe, tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_a_source_of_several_classes_is_on_one_side(tmp_path, seed):
    """Two classes share every second source, as where a leaf shows one disease on one half and another on the other."""
    shared = [f"H0_{source}_{i}" for source in range(6) for i in range(3)]
    for label in ("H1", "H2"):
        own = [f"{label}_{source}_{i}" for source in range(6) for i in range(3)]
        write_photos(tmp_path, {label: [*own, *(f"{name}{label}" for name in shared)]})
    split = read_split(resolve({**PATCHES, "split_by": "source", "seed": seed}), tmp_path)
    sides = [sources(photos) for photos in (split.train, split.validation, split.test)]
    assert sum(map(len, sides)) == len(set().union(*sides)) == 18
    for label in (0, 1):
        assert (split.test.class_index == label).sum() in (6, 9), "about a fifth of 36, by threes"
