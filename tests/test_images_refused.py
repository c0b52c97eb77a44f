"""Pictures that are broken, hostile or too large: refused with their reason, and at no cost."""

import io
import resource
import sys
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import decoded, encoded, png_chunk, png_claiming, scene, with_orientation
from PIL import Image

from fewshot import images
from fewshot.errors import (
    DamagedImageError,
    ImageError,
    ImageTooLargeError,
    ImageTooSmallError,
    NotAnImageError,
    TruncatedImageError,
    UsageError,
)

FUZZ = settings(max_examples=60, deadline=None)


def peak_memory(work):
    """The most bytes that Python objects took while `work` ran; numpy counts, Pillow's pixels do not."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# ---- refusals


@pytest.mark.parametrize("data", [b"hello, I am a text\n" * 20, bytes(4096), b"%PDF-1.7\n" + bytes(200), b"\xff"])
def test_bytes_that_are_no_picture_are_refused_by_name(data):
    with pytest.raises(NotAnImageError, match=r"notes\.jpg"):
        images.decode(data, "notes.jpg", 256)


@pytest.mark.parametrize("fmt", ["PPM", "ICO", "TGA", "PCX", "JPEG2000"])
def test_formats_that_no_camera_writes_are_not_decoded(fmt):
    with pytest.raises(NotAnImageError):
        decoded(encoded(scene(64, 64), fmt))


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"avif", b"msf1"])
def test_a_heic_or_avif_photo_is_told_what_to_do(brand):
    with pytest.raises(NotAnImageError, match="HEIC or AVIF") as caught:
        decoded(b"\x00\x00\x00\x18ftyp" + brand + bytes(500))
    assert "JPEG" in caught.value.hint


def test_a_real_avif_photo_is_told_the_same():
    with pytest.raises(NotAnImageError, match="HEIC or AVIF"):
        decoded(encoded(scene(), "AVIF"))


@pytest.mark.parametrize("fmt", ["JPEG", "PNG"])
@pytest.mark.parametrize("part", [0.5, 0.7, 0.9])
def test_a_picture_cut_short_is_called_truncated(fmt, part):
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), fmt)
    with pytest.raises(TruncatedImageError, match="cut short"):
        decoded(data[: int(part * len(data))])


@pytest.mark.parametrize("fmt", ["WEBP", "GIF", "TIFF", "BMP"])
def test_a_cut_picture_of_any_format_is_refused(fmt):
    data = encoded(scene(200, 150), fmt)
    with pytest.raises(ImageError):
        decoded(data[: len(data) // 2])


def test_a_png_with_broken_pixel_data_is_damaged():
    data = png_claiming(64, 64)
    at = data.index(b"IDAT") + 4
    broken = b"\xde\xad\xbe\xef" + bytes(16)
    with pytest.raises(DamagedImageError, match="cannot be decoded"):
        decoded(data[: at - 8] + png_chunk(b"IDAT", broken) + png_chunk(b"IEND", b""))


def test_a_refusal_keeps_its_cause():
    data = encoded(scene(), "PNG")
    with pytest.raises(ImageError) as caught:
        decoded(data[: len(data) // 2])
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("size", [(31, 200), (200, 31), (1, 1)])
def test_a_picture_under_32_px_on_its_short_side_is_too_small(size):
    with pytest.raises(ImageTooSmallError, match=f"{size[0]} x {size[1]}"):
        decoded(encoded(scene(*size), "PNG"))


def test_a_picture_of_exactly_32_px_is_read():
    assert decoded(encoded(scene(32, 32), "PNG"))[1] == (32, 32)


# ---- the size limit


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_001, 10_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_over_100_megapixels_is_refused_before_it_is_decoded(size, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ImageTooLargeError, match=rf"{size[0]} x {size[1]} pixels .*; at most 100 megapixels"):
        decoded(png_claiming(*size))


def test_refusing_a_decompression_bomb_takes_no_memory():
    data = png_claiming(20_000, 20_000)  # 1.2 GB as RGB

    def refuse():
        with pytest.raises(ImageTooLargeError):
            decoded(data)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak_memory(refuse) < 5_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


def test_text_that_unpacks_to_gigabytes_is_refused_or_passed_over():
    bomb = png_chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(80_000_000)))
    data = encoded(scene(), "PNG")
    at = data.index(b"IDAT") - 4
    with pytest.raises(ImageError):
        decoded(data[:at] + bomb + data[at:])


def test_a_raised_limit_lets_a_larger_picture_in(monkeypatch):
    monkeypatch.setenv("FEWSHOT_MAX_MEGAPIXELS", "401")
    assert images.max_pixels() == 401_000_000

    def end_early(image):
        raise OSError("image file is truncated")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", end_early)  # 1.2 GB would be too much for a test
    with pytest.raises(TruncatedImageError):  # so the header was let in
        decoded(png_claiming(20_000, 20_000))


def test_a_lowered_limit_refuses_what_went_in_before(monkeypatch):
    data = encoded(scene(200, 100), "PNG")
    assert decoded(data)[1] == (200, 100)
    monkeypatch.setenv("FEWSHOT_MAX_MEGAPIXELS", "0.02")
    assert decoded(data)[1] == (200, 100)  # exactly at the limit
    monkeypatch.setenv("FEWSHOT_MAX_MEGAPIXELS", "0.0199")
    with pytest.raises(ImageTooLargeError, match=r"at most 0\.0199 megapixels"):
        decoded(data)


def test_a_refusal_names_the_variable_only_where_it_is_what_decides():
    data = encoded(scene(96, 64), "PNG")
    with pytest.raises(ImageTooLargeError, match=r"at most 0\.001 megapixels") as theirs:
        images.decode(data, "photo", 256, most_pixels=1000)
    assert theirs.value.hint == "Scale the photo down."
    with pytest.raises(ImageTooLargeError) as ours:
        images.decode(png_claiming(20_000, 20_000), "photo", 256, most_pixels=10**12)
    assert "FEWSHOT_MAX_MEGAPIXELS" in ours.value.hint


@pytest.mark.parametrize("value", ["many", "0", "-5", "nan", "inf", "1e9", "10,5", " "])
def test_a_limit_that_is_no_positive_number_is_refused(value, monkeypatch):
    monkeypatch.setenv("FEWSHOT_MAX_MEGAPIXELS", value)
    with pytest.raises(UsageError, match="FEWSHOT_MAX_MEGAPIXELS"):
        images.max_pixels()


def test_an_empty_limit_is_the_default(monkeypatch):
    monkeypatch.setenv("FEWSHOT_MAX_MEGAPIXELS", "")
    assert images.max_pixels() == 100_000_000


@pytest.mark.parametrize("size", [(60_000, 40), (40, 60_000)])
def test_extreme_proportions_stay_small_and_quick(size):
    data = encoded(scene(*size), "PNG")
    started = time.perf_counter()
    sizes = {}

    def work():
        image, sizes["original"] = decoded(data)
        sizes["input"] = images.fit_to_input(image, image_size_px=224, crop_pct=0.875, interpolation="bicubic").shape
        sizes["thumbnail"] = images.thumbnail(image)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak_memory(work) < 20_000_000
    # Scaled as a whole to a short side of 256 px it would be 384,000 px long and 295 MB large.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes
    assert time.perf_counter() - started < 3
    assert sizes["original"] == size
    assert sizes["input"] == (224, 224, 3)
    assert max(Image.open(io.BytesIO(sizes["thumbnail"])).size) == 1024


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is the kilobyte on Linux only")
def test_a_16_bit_picture_takes_no_more_memory_than_twice_an_rgb_one_of_its_size():
    """100 megapixels may then take 600 MB beside what Pillow itself holds, which is not counted."""
    n_pixels = 3000 * 2000
    data = encoded(Image.fromarray(np.zeros((2000, 3000), np.uint16)), "PNG")
    assert peak_memory(lambda: decoded(data)) < 6 * n_pixels


# ---- strangers' bytes


def try_to_decode(data):
    """Nothing but an `ImageError` may come out, and a picture that does must keep its promises."""
    try:
        image, (width, height) = decoded(data, short_side_px=32)
    except ImageError:
        return
    assert image.mode == "RGB"
    assert min(width, height) >= images.MIN_SIDE_PX
    assert width * height <= images.MAX_MEGAPIXELS * 1_000_000


@given(st.binary(max_size=400))
@FUZZ
def test_random_bytes_raise_nothing_but_image_errors(data):
    try_to_decode(data)


SIGNATURES = [b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\x00\x00\x00WEBPVP8 "]
SIGNATURES += [b"II*\x00\x08\x00\x00\x00", b"MM\x00*\x00\x00\x00\x08", b"GIF89a", b"BM"]


@given(st.sampled_from(SIGNATURES), st.binary(max_size=300))
@FUZZ
def test_a_picture_s_signature_before_random_bytes_raises_nothing_but_image_errors(signature, data):
    try_to_decode(signature + data)


WHOLE = {fmt: with_orientation(scene(80, 60), fmt, 6) for fmt in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")}


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
@given(data=st.data())
@FUZZ
def test_a_corrupted_picture_raises_nothing_but_image_errors(fmt, data):
    whole = bytearray(WHOLE[fmt])
    changes = st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255))
    for at, value in data.draw(st.lists(changes, min_size=1, max_size=12)):
        whole[at] = value
    end = data.draw(st.integers(0, len(whole)))
    try_to_decode(bytes(whole))
    try_to_decode(bytes(whole[:end]))


@pytest.mark.parametrize("fmt", ["GIF", "BMP"])
@given(data=st.data())
@FUZZ
def test_a_corrupted_picture_of_a_rarer_format_raises_nothing_but_image_errors(fmt, data):
    whole = bytearray(WHOLE[fmt])
    head = min(len(whole), 200)  # where the sizes and offsets are
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, head - 1), st.integers(0, 255)), min_size=1)):
        whole[at] = value
    try_to_decode(bytes(whole))
