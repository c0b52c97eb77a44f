"""From a photo's bytes to the backbone's input: scaled while decoding, cut, resampled as timm does."""

import io
import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import ORIENTATION, array, decoded, encoded, scene
from PIL import Image, ImageOps

from fewshot import images
from fewshot.decoding.cutting import Cut, cut_photo

FUZZ = settings(max_examples=60, deadline=None)


# ---- scaling while decoding


@pytest.mark.parametrize("size", [(1600, 1200), (1201, 1777), (4000, 600), (516, 515)])
def test_a_jpeg_is_never_scaled_below_twice_the_wanted_side(size):
    image, original = decoded(encoded(scene(*size), "JPEG"), short_side_px=128)
    assert original == size
    assert min(image.size) >= 256
    assert image.width / image.height == pytest.approx(size[0] / size[1], rel=0.01)


def test_a_large_jpeg_is_scaled_while_decoding():
    image, _ = decoded(encoded(scene(2400, 2400), "JPEG"), short_side_px=128)
    assert image.size == (300, 300)


# The turned ones are stored with their last rows and columns, which are filled in part, on each of the four sides.
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("size", [(1600, 1200), (1202, 1778), (1201, 1777)])
def test_scaling_while_decoding_gives_what_scaling_afterwards_gives(size, orientation):
    rng = np.random.default_rng(5)
    detail = Image.fromarray(rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8))
    photo = Image.blend(scene(*size), detail.resize(size, Image.Resampling.BICUBIC), 0.4)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(photo, "JPEG", quality=92, exif=exif)
    settings_ = {"image_size_px": 224, "crop_pct": 0.875, "interpolation": "bicubic"}
    image, upright_size, filled = images.decode_with_box(data, "photo", 256)
    quick = images.fit_to_input(image, **settings_, filled=filled)
    whole = ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB"))
    difference = np.abs(quick.astype(int) - images.fit_to_input(whole, **settings_).astype(int))
    assert image.size != upright_size == whole.size
    assert difference.mean() < 1
    assert np.percentile(difference, 99) <= 4


def test_a_photo_is_cut_alike_when_it_is_enrolled_and_when_it_is_asked():
    """The thumbnail asks for a larger picture than the input; the input must not notice."""
    for short in (225, 430, 800, 1700, 2000, 3000):
        data = encoded(scene(short + 7, short), "JPEG")
        kept, asked = (cut_photo(data, "photo", Cut(224, 1.0, "bicubic", keep=keep)) for keep in (True, False))
        assert (kept.pixels == asked.pixels).all(), short


# ---- the backbone's input


@cache
def timm_transform():
    """What timm says of the default backbone's input, and its own evaluation transform."""
    import timm
    import timm.data

    config = timm.data.resolve_model_data_config(timm.create_model("tf_efficientnet_lite0", pretrained=False))
    return config, timm.data.create_transform(**config, is_training=False)


def timm_input(image):
    """The picture as timm prepares it, before normalisation."""
    config, transform = timm_transform()
    tensor = transform(image).numpy()
    mean, std = np.array(config["mean"])[:, None, None], np.array(config["std"])[:, None, None]
    return config, ((tensor * std + mean) * 255).transpose(1, 2, 0)


@pytest.mark.parametrize("size", [(224, 224), (256, 256), (300, 200), (640, 481), (257, 511), (100, 90), (1200, 900)])
def test_the_input_is_what_timm_would_prepare(size):
    rng = np.random.default_rng(7)
    detail = Image.fromarray(rng.integers(0, 256, (size[1] // 3, size[0] // 3, 3), dtype=np.uint8))
    photo = Image.blend(scene(*size), detail.resize(size, Image.Resampling.BILINEAR), 0.5)
    config, wanted = timm_input(photo)
    ours = images.fit_to_input(
        photo,
        image_size_px=config["input_size"][1],
        crop_pct=config["crop_pct"],
        interpolation=config["interpolation"],
    )
    assert ours.shape == wanted.shape
    assert np.abs(ours - wanted.round()).max() <= 2  # timm's are whole numbers but for float32's rounding


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(
    ("size", "crop_pct"), [((256, 256), 1.0), ((341, 256), 1.0), ((500, 375), 0.875), ((90, 60), 1.0)]
)
def test_where_the_fast_resampling_is_not_installed_pillows_gives_nearly_the_same(
    interpolation, size, crop_pct, monkeypatch
):
    noise = np.random.default_rng(3).integers(0, 256, (size[1] // 2, size[0] // 2, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    settings_ = {"image_size_px": 224, "crop_pct": crop_pct, "interpolation": interpolation}
    assert images._fast_resizer() is not None
    fast = images.fit_to_input(photo, **settings_)
    monkeypatch.setattr(images, "_fast_resizer", lambda: None)
    difference = np.abs(fast.astype(int) - images.fit_to_input(photo, **settings_))
    assert difference.mean() < 0.5
    assert np.percentile(difference, 99) <= 2


def test_pillow_scales_where_no_module_is_found(monkeypatch):
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)
    assert images._fast_resizer.__wrapped__() is None


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_a_picture_that_already_fits_is_cropped_and_not_resampled(interpolation):
    photo = Image.fromarray(np.random.default_rng(2).integers(0, 256, (256, 300, 3), dtype=np.uint8))
    ours = images.fit_to_input(photo, image_size_px=224, crop_pct=0.875, interpolation=interpolation)
    assert np.abs(ours.astype(int) - array(photo)[16:240, 38:262]).max() <= 1


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(256, 256), (256, 341), (400, 256), (257, 256)])
def test_what_needs_no_scaling_is_cut_to_the_very_pixels_that_scaling_gives(interpolation, size, monkeypatch):
    noise = np.random.default_rng(7).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    photo = Image.fromarray(noise)
    box = images._crop_box(*size, 224, 0.875)
    wanted = np.asarray(photo.resize((224, 224), images._RESAMPLING[interpolation], box=box))
    monkeypatch.setattr(Image.Image, "resize", None)  # it is not even asked
    ours = images.fit_to_input(photo, image_size_px=224, crop_pct=0.875, interpolation=interpolation)
    np.testing.assert_array_equal(ours, wanted)


def test_the_middle_of_the_picture_is_what_stays():
    photo = Image.new("RGB", (600, 200), (255, 0, 0))
    photo.paste((0, 0, 255), (200, 0, 400, 200))
    ours = images.fit_to_input(photo, image_size_px=64, crop_pct=0.875, interpolation="bilinear")
    assert (ours == [0, 0, 255]).all()


def test_squashing_keeps_the_whole_picture():
    photo = Image.new("RGB", (600, 200), (255, 0, 0))
    photo.paste((0, 0, 255), (300, 0, 600, 200))
    ours = images.fit_to_input(photo, image_size_px=64, crop_pct=0.875, interpolation="nearest", squash=True)
    assert (ours[:, :32] == [255, 0, 0]).all()
    assert (ours[:, 32:] == [0, 0, 255]).all()


@given(
    width=st.integers(32, 900),
    height=st.integers(32, 900),
    size=st.integers(16, 300),
    crop_pct=st.floats(0.5, 1.0),
)
@FUZZ
def test_the_input_is_square_whatever_the_proportions(width, height, size, crop_pct):
    photo = Image.new("RGB", (width, height), (7, 77, 177))
    ours = images.fit_to_input(photo, image_size_px=size, crop_pct=crop_pct, interpolation="bilinear")
    assert ours.shape == (size, size, 3)
    assert ours.dtype == np.uint8
    assert (ours == [7, 77, 177]).all()
