"""Leaves cut out of a plain ground and put in front of other photos' surroundings."""

import cv2
import numpy as np
import pytest
from PIL import Image

from fewshot.errors import RecipeError
from fewshot.recipes import resolve
from fewshot.training.grounds import Grounds, NewGround, find_grounds, leaf_mask, replaced
from fewshot.training.photos import Photos, read_split

GREEN, BROWN, GREY, BLACK, WHITE = (60, 130, 50), (120, 80, 40), (150, 145, 155), (0, 0, 0), (235, 238, 245)
HERE = NewGround(1, 1.0, 0.0, (0.0, 0.0), 1.0, (0.0, 0.0), 0, False, 0.0, 1.0)


def leaf_photo(ground=GREY, leaf=GREEN, noise=3, seed=0):
    """A leaf in the middle of 160 x 200 pixels, and where it is."""
    rng = np.random.default_rng(seed)
    shape = cv2.ellipse(np.zeros((160, 200), np.uint8), (100, 80), (70, 45), 20, 0, 360, 1, -1)
    pixels = np.where(shape[..., None] == 1, leaf, ground) + rng.normal(0, noise, (160, 200, 3))
    return pixels.clip(0, 255).astype(np.uint8), shape == 1


def meadow(seed=0):
    """Green and uneven all over."""
    rng = np.random.default_rng(seed)
    patches = cv2.resize(rng.uniform(0.4, 1.6, (20, 25, 1)).astype(np.float32), (200, 160))[..., None]
    return (np.array((70, 120, 50)) * patches).clip(0, 255).astype(np.uint8)


def overlap(mask, shape):
    found = mask > 127
    return (found & shape).sum() / (found | shape).sum()


@pytest.mark.parametrize("ground", [GREY, BLACK, WHITE])
@pytest.mark.parametrize("leaf", [GREEN, BROWN])
def test_a_leaf_on_a_plain_ground_is_found(ground, leaf):
    pixels, shape = leaf_photo(ground, leaf)
    mask = leaf_mask(pixels)
    assert mask is not None
    assert mask.shape == (160, 200)
    assert mask.dtype == np.uint8
    assert overlap(mask, shape) > 0.93


@pytest.mark.parametrize(
    ("at", "radius_px", "colour", "is_leaf"), [((100, 80), 15, GREY, True), ((12, 12), 6, BROWN, False)]
)
def test_a_bleached_spot_belongs_to_its_leaf_and_dirt_on_the_ground_does_not(at, radius_px, colour, is_leaf):
    pixels, shape = leaf_photo()
    cv2.circle(pixels, at, radius_px, colour, -1)
    mask = leaf_mask(pixels)
    assert mask is not None
    assert (mask[at[1], at[0]] == 255) == is_leaf
    assert overlap(mask, shape) > 0.93


@pytest.mark.parametrize(
    "pixels",
    [
        meadow(),
        np.full((160, 200, 3), GREEN, np.uint8),
        np.full((160, 200, 3), GREY, np.uint8),
        np.zeros((160, 200, 3), np.uint8),
        np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8),
        leaf_photo(GREY, noise=40)[0],
        leaf_photo((90, 140, 60), (60, 130, 50))[0],
    ],
    ids=["meadow", "leaf all over", "no leaf", "dark", "noise", "gravel", "lawn"],
)
def test_what_has_no_plain_ground_stays_whole(pixels):
    assert leaf_mask(pixels) is None


def test_the_leaf_stays_and_the_ground_is_the_lenders():
    pixels, shape = leaf_photo()
    lender = np.full((120, 90, 3), (200, 30, 30), np.uint8)
    mask = leaf_mask(pixels)
    assert mask is not None
    put = replaced(pixels, mask, lender, HERE)
    assert put.shape == pixels.shape
    assert put.dtype == np.uint8
    inside = cv2.erode(shape.astype(np.uint8), np.ones((15, 15), np.uint8)) == 1
    outside = cv2.dilate(shape.astype(np.uint8), np.ones((15, 15), np.uint8)) == 0
    assert np.array_equal(put[inside], pixels[inside])
    assert (put[outside] == (200, 30, 30)).all()


def test_the_leaf_is_placed_anew_and_the_ground_is_darkened():
    pixels, _ = leaf_photo()
    mask = leaf_mask(pixels)
    assert mask is not None
    smaller = NewGround(1, 0.7, 25.0, (0.1, -0.1), 0.3, (0.5, 1.0), 3, True, 3.0, 0.5)
    put = replaced(pixels, mask, np.full((120, 90, 3), (200, 30, 30), np.uint8), smaller)
    red = (np.abs(put.astype(int) - (100, 15, 15)) <= 1).all(axis=2)
    assert red.mean() > 1 - 0.6 * (mask > 127).mean()


def photos():
    """Three photos of leaves on grey and two of meadows, which lend."""
    pixels = [leaf_photo(seed=i)[0] for i in range(3)] + [meadow(i) for i in range(2)]
    named = Photos((), np.array([0, 0, 0, 1, 1]), ("corn-rust", "field-scab"))
    return named, pixels


def test_chance_decides_which_photos_get_another_ground():
    named, pixels = photos()
    recipe = resolve({"new_ground": 0.5, "ground_classes": ["field-scab"]})
    grounds = find_grounds(recipe, named, pixels)
    assert grounds is not None
    assert grounds.n_cut_out == 3
    assert grounds.lenders.tolist() == [3, 4]
    rows = np.array([0, 1, 2, 3, 4] * 40)
    drawn = grounds.drawn(rows, 0.5, np.random.default_rng(0))
    assert drawn == grounds.drawn(rows, 0.5, np.random.default_rng(0))
    assert drawn != grounds.drawn(rows, 0.5, np.random.default_rng(1))
    new = [n for n in drawn if n is not None]
    assert {rows[i] for i, n in enumerate(drawn) if n is not None} == {0, 1, 2}
    assert 40 < len(new) < 80
    assert {n.lender for n in new} == {3, 4}
    assert grounds.behind(pixels[0], 0, None, pixels) is pixels[0]
    assert not np.array_equal(grounds.behind(pixels[0], 0, new[0], pixels), pixels[0])


def test_without_a_share_no_leaf_is_looked_for():
    named, pixels = photos()
    assert find_grounds(resolve({}), named, pixels) is None


def test_ground_classes_that_are_not_there_and_photos_without_a_leaf_are_told(tmp_path):
    named, pixels = photos()
    for number, (label, photo) in enumerate(zip(named.class_index, pixels, strict=True)):
        folder = tmp_path / "train" / named.labels[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(folder / f"{number}.png")
    with pytest.raises(RecipeError, match="no class 'field-scap'") as caught:
        read_split(resolve({"new_ground": 0.5, "ground_classes": ["field-scap"]}), tmp_path)
    assert "field-scab" in caught.value.hint
    with pytest.raises(RecipeError, match="no photo shows a leaf on a plain ground"):
        find_grounds(resolve({"new_ground": 0.5, "ground_classes": ["corn-rust"]}), named, pixels)


@pytest.mark.parametrize("settings", [{"new_ground": 0.5}, {"ground_classes": ["a"]}])
def test_a_share_and_lenders_need_each_other(settings):
    with pytest.raises(RecipeError, match="need each other"):
        resolve(settings)


@pytest.mark.parametrize("grey", [{"grey": True}, {"backbone": "cnn-basic", "weights": "random"}])
def test_grey_photos_have_no_colour_to_tell_a_leaf_by(grey):
    with pytest.raises(RecipeError, match="the photos are grey"):
        resolve({"new_ground": 0.5, "ground_classes": ["a"], **grey})


def test_masks_need_not_be_there():
    assert Grounds((None, None), np.array([0])).drawn(np.array([0, 1]), 1.0, np.random.default_rng(0)) == [None, None]
