"""Photos of every kind, whole and broken: what goes in is upright RGB, what does not is refused with its reason."""

import io
import os
import resource
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

from fewshot import images
from fewshot.decoding.cutting import Cut, cut_photo
from fewshot.errors import (
    DamagedImageError,
    EmptyFileError,
    ImageError,
    ImageTooLargeError,
    ImageTooSmallError,
    NotAnImageError,
    TruncatedImageError,
    UnreadableFileError,
    UsageError,
)

ORIENTATION = 0x0112
FUZZ = settings(max_examples=60, deadline=None)


def scene(width=96, height=64):
    """A smooth picture without any symmetry: each corner has a colour of its own."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    pixels = np.stack([40 + 180 * x, 30 + 170 * y, 60 + 80 * x * (1 - y) + 60 * (x > 0.5)], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image, fmt, **options):
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def decoded(data, short_side_px=256):
    return images.decode(data, "photo", short_side_px)


def array(image):
    return np.asarray(image).astype(np.int64)


def worst_difference(one, other):
    return int(np.abs(array(one) - array(other)).max())


def mean_difference(one, other):
    return float(np.abs(array(one) - array(other)).mean())


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_claiming(width, height, colour_type=2):
    """A few hundred bytes whose header promises a huge picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    body = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def peak_memory(work):
    """The most bytes that Python objects took while `work` ran; numpy counts, Pillow's pixels do not."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# ---- reading a file


def test_a_regular_file_gives_its_bytes(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\x00leaf\xff")
    assert images.read_bytes(tmp_path / "a.jpg") == b"\x00leaf\xff"


def test_an_empty_file_is_refused_and_named(tmp_path):
    (tmp_path / "blank.jpg").touch()
    with pytest.raises(EmptyFileError, match=r"blank\.jpg is empty"):
        images.read_bytes(tmp_path / "blank.jpg")


def test_a_missing_file_is_unreadable(tmp_path):
    with pytest.raises(UnreadableFileError, match=r"gone\.jpg"):
        images.read_bytes(tmp_path / "gone.jpg")


def test_a_dangling_symlink_is_unreadable(tmp_path):
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(UnreadableFileError, match=r"link\.jpg"):
        images.read_bytes(tmp_path / "link.jpg")


def test_a_symlink_to_itself_is_unreadable(tmp_path):
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    with pytest.raises(UnreadableFileError, match=r"loop\.jpg"):
        images.read_bytes(tmp_path / "loop.jpg")


def test_a_symlink_to_a_photo_is_read(tmp_path):
    (tmp_path / "real.jpg").write_bytes(b"leaf")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "real.jpg")
    assert images.read_bytes(tmp_path / "link.jpg") == b"leaf"


def test_a_directory_named_like_a_photo_is_unreadable(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(UnreadableFileError, match=r"folder\.jpg is not a regular file"):
        images.read_bytes(tmp_path / "folder.jpg")


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    raised = []

    def read():
        try:
            images.read_bytes(tmp_path / "pipe.jpg")
        except ImageError as error:
            raised.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(timeout=5)
    assert not reader.is_alive()
    assert isinstance(raised[0], UnreadableFileError)


def test_a_name_too_long_for_the_file_system_is_unreadable(tmp_path):
    with pytest.raises(UnreadableFileError):
        images.read_bytes(tmp_path / ("a" * 300 + ".jpg"))


def test_a_file_that_may_not_be_read_is_unreadable(tmp_path, monkeypatch):
    (tmp_path / "secret.jpg").write_bytes(b"leaf")

    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", denied)  # whoever runs the tests may be root
    with pytest.raises(UnreadableFileError, match="Permission denied"):
        images.read_bytes(tmp_path / "secret.jpg")


def test_content_hash_differs_with_any_bit():
    hashes = {images.content_hash(bytes([value])) for value in (0, 1, 2, 128)}
    assert len(hashes) == 4
    assert all(len(each) == 64 for each in hashes)


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


# ---- orientation


def stored_for(orientation, upright):
    """What a camera stores so that a viewer who obeys the tag sees `upright`."""
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    return upright.transpose(inverse[orientation]) if orientation in inverse else upright


def with_orientation(image, fmt, orientation, **options):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image, fmt, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_every_orientation_comes_out_upright(fmt, orientation):
    upright = scene(96, 64)
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}}.get(fmt, {})
    data = with_orientation(stored_for(orientation, upright), fmt, orientation, **options)
    image, size = decoded(data)
    assert size == (96, 64)
    assert image.size == (96, 64)
    assert worst_difference(image, upright) <= (12 if fmt == "JPEG" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_scaled_while_decoding_is_turned_and_keeps_its_original_size(orientation):
    upright = scene(1600, 1200)
    data = with_orientation(stored_for(orientation, upright), "JPEG", orientation, quality=95)
    image, size = decoded(data, short_side_px=128)
    assert size == (1600, 1200)
    assert image.size == (400, 300)
    assert mean_difference(image, upright.resize((400, 300), Image.Resampling.BOX)) < 2


@pytest.mark.parametrize("orientation", [0, 9, 77, 65535])
def test_an_orientation_that_does_not_exist_leaves_the_pixels_as_stored(orientation):
    image, size = decoded(with_orientation(scene(), "PNG", orientation))
    assert size == (96, 64)
    assert worst_difference(image, scene()) == 0


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\x00\x00",
        b"Exif\x00\x00garbage that is no TIFF header at all",
        b"Exif\x00\x00II*\x00\xff\xff\xff\xff",  # the directory lies beyond the end
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff" + bytes(8),  # 65,535 entries, none there
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x02\x00\x00\x00\x04six\x00" + bytes(4),  # text
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x05\x00\x01\x00\x00\x00\x1a\x00\x00\x00"
        + bytes(12),  # 0/0
    ],
)
@pytest.mark.parametrize("fmt", ["JPEG", "WEBP", "PNG"])
def test_broken_metadata_is_no_reason_to_refuse_sound_pixels(fmt, exif):
    plain, _ = decoded(encoded(scene(), fmt))
    image, size = decoded(encoded(scene(), fmt, exif=exif))
    assert size == (96, 64)
    assert worst_difference(image, plain) == 0


# ---- every kind of picture becomes RGB


def test_a_cmyk_jpeg_looks_as_it_did():
    cmyk = scene().convert("CMYK")
    image, _ = decoded(encoded(cmyk, "JPEG", quality=98))
    assert image.mode == "RGB"
    assert mean_difference(image, scene()) < 4


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "TIFF", "BMP", "GIF"])
def test_a_grey_picture_has_three_equal_channels(fmt):
    grey = scene().convert("L")
    pixels = array(decoded(encoded(grey, fmt))[0])
    assert pixels.shape == (64, 96, 3)
    assert (pixels[:, :, 0] == pixels[:, :, 1]).all()
    assert (pixels[:, :, 0] == pixels[:, :, 2]).all()
    assert np.abs(pixels[:, :, 0] - array(grey)).max() <= (6 if fmt == "JPEG" else 0)


@pytest.mark.parametrize("fmt", ["PNG", "TIFF", "BMP"])
def test_a_1_bit_picture_is_black_and_white(fmt):
    mask = np.zeros((64, 96), bool)
    mask[:, 50:] = True
    pixels = array(decoded(encoded(Image.fromarray(mask), fmt))[0])
    assert (pixels[:, :50] == 0).all()
    assert (pixels[:, 50:] == 255).all()


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_a_16_bit_grey_picture_keeps_its_upper_eight_bits(fmt):
    values = np.linspace(0, 65535, 64 * 96).reshape(64, 96).astype(np.uint16)
    pixels = array(decoded(encoded(Image.fromarray(values), fmt))[0])
    assert np.abs(pixels - (values >> 8)[:, :, None]).max() == 0


def test_a_big_endian_16_bit_tiff_is_read_the_same():
    values = np.linspace(0, 65535, 64 * 96).reshape(64, 96).astype(">u2")
    header = b"MM\x00*\x00\x00\x00\x08"
    tags = [(256, 96), (257, 64), (258, 16), (259, 1), (262, 1), (273, 122), (277, 1), (278, 64), (279, 64 * 96 * 2)]
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    data = header + struct.pack(">H", len(tags)) + entries + bytes(4)
    data = data.ljust(122, b"\x00") + values.tobytes()
    pixels = array(decoded(data)[0])
    assert np.abs(pixels - (values.astype(np.int64) >> 8)[:, :, None]).max() == 0


def test_a_16_bit_rgb_png_keeps_its_upper_eight_bits():
    values = np.random.default_rng(1).integers(0, 65536, (40, 50, 3)).astype(">u2")
    rows = b"".join(b"\x00" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 50, 40, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows))
    pixels = array(decoded(data + png_chunk(b"IEND", b""))[0])
    assert np.abs(pixels - (values.astype(np.int64) >> 8)).max() <= 1


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_a_float_tiff_is_read_from_0_to_1_or_from_0_to_255(scale):
    values = np.linspace(0, 1, 64 * 96, dtype=np.float32).reshape(64, 96)
    pixels = array(decoded(encoded(Image.fromarray(values * np.float32(scale)), "TIFF"))[0])
    assert np.abs(pixels - (values * 255)[:, :, None]).max() <= 1


def test_nan_and_infinity_in_a_float_tiff_do_no_harm():
    values = np.full((64, 96), 0.5, np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    pixels = array(decoded(encoded(Image.fromarray(values), "TIFF"))[0])
    assert pixels[0, :3, 0].tolist() == [0, 255, 0]
    assert abs(int(pixels[30, 30, 0]) - 127) <= 1  # one infinite pixel must not make all others black


def test_a_lab_tiff_looks_as_it_did():
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    image, _ = decoded(encoded(ImageCms.applyTransform(scene(), to_lab), "TIFF"))
    assert image.mode == "RGB"
    assert mean_difference(image, scene()) < 4


def test_transparency_is_laid_over_white():
    pixels = np.zeros((64, 96, 4), np.uint8)
    pixels[:, :] = (200, 100, 0, 255)
    pixels[:, 30:60, 3] = 0
    pixels[:, 60:, 3] = 128
    for fmt, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        result = array(decoded(encoded(Image.fromarray(pixels), fmt, **options))[0])
        assert result[0, 0].tolist() == [200, 100, 0], fmt
        assert result[0, 40].tolist() == [255, 255, 255], fmt
        assert np.abs(result[0, 80] - [227, 177, 127]).max() <= 1, fmt


def test_grey_with_transparency_is_laid_over_white():
    pixels = np.full((64, 96, 2), 50, np.uint8)
    pixels[:, :48, 1], pixels[:, 48:, 1] = 255, 0
    result = array(decoded(encoded(Image.fromarray(pixels, "LA"), "PNG"))[0])
    assert result[0, 0].tolist() == [50, 50, 50]
    assert result[0, 80].tolist() == [255, 255, 255]


@pytest.mark.parametrize("fmt", ["PNG", "GIF"])
def test_a_palette_colour_marked_transparent_becomes_white(fmt):
    image = Image.new("P", (96, 64), 1)
    image.putpalette([0, 0, 0, 10, 160, 20, 250, 0, 0])
    image.paste(2, (0, 0, 30, 64))
    result = array(decoded(encoded(image, fmt, transparency=2))[0])
    assert result[5, 80].tolist() == [10, 160, 20]
    assert result[5, 5].tolist() == [255, 255, 255]


@pytest.mark.parametrize("fmt", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_counts(fmt):
    frames = [Image.new("RGB", (96, 64), colour) for colour in ((200, 30, 30), (30, 200, 30), (30, 30, 200))]
    options = {"lossless": True} if fmt == "WEBP" else {}
    data = encoded(frames[0], fmt, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.abs(array(decoded(data)[0])[10, 10] - [200, 30, 30]).max() <= 3


def test_of_a_multi_picture_photo_the_first_counts():
    second = Image.new("RGB", (96, 64), (0, 0, 255))
    data = encoded(scene(), "MPO", save_all=True, append_images=[second], quality=98)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    image, size = decoded(data)
    assert size == (96, 64)
    assert mean_difference(image, scene()) < 4


@pytest.mark.parametrize("fmt", ["JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_every_listed_format_is_read_as_rgb(fmt):
    image, size = decoded(encoded(scene(), fmt))
    assert (image.mode, image.size, size) == ("RGB", (96, 64), (96, 64))
    assert mean_difference(image, scene()) < 12


@pytest.mark.parametrize("name", ["photo.png", "photo.txt", "photo"])
def test_the_type_is_read_from_the_content_and_not_from_the_name(name, tmp_path):
    (tmp_path / name).write_bytes(encoded(scene(), "JPEG", quality=98))
    image, _ = images.decode(images.read_bytes(tmp_path / name), name, 256)
    assert mean_difference(image, scene()) < 4


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
    image, upright_size, filled = images.decode_whole(data, "photo", 256)
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


# ---- thumbnails


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1600, 1200), (341, 256)),
        ((1200, 1600), (256, 341)),
        ((4000, 500), (1024, 128)),
        ((60_000, 40), (1024, 1)),
        ((100, 80), (100, 80)),  # never enlarged
        ((256, 256), (256, 256)),
    ],
)
def test_a_thumbnail_keeps_to_its_limits(size, expected):
    thumbnail = Image.open(io.BytesIO(images.thumbnail(scene(*size))))
    assert thumbnail.format == "WEBP"
    assert thumbnail.size == expected


def test_a_thumbnail_looks_like_the_photo():
    thumbnail = Image.open(io.BytesIO(images.thumbnail(scene(800, 600)))).convert("RGB")
    assert mean_difference(thumbnail, scene(800, 600).resize(thumbnail.size)) < 3


def photo_with_metadata(fmt):
    """A photo that says where it was taken, in every place where a photo can."""
    exif = Image.Exif()
    exif[0x010F] = "SECRET-CAMERA"
    exif.get_ifd(0x8825)[1] = "N-SECRET"
    options = {"exif": exif, "icc_profile": b"SECRET-PROFILE" + bytes(200)}
    options |= {"JPEG": {"comment": b"SECRET"}, "PNG": {}, "WEBP": {}, "TIFF": {}}[fmt]
    if fmt in ("JPEG", "WEBP"):
        options["xmp"] = b"<x:xmpmeta>SECRET</x:xmpmeta>"
    return encoded(scene(800, 600), fmt, **options)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("scaled", [True, False])
def test_a_thumbnail_carries_nothing_of_the_photo_but_its_pixels(fmt, scaled):
    data = photo_with_metadata(fmt)
    assert b"SECRET" in data
    image, _ = decoded(data)
    if not scaled:
        image = image.crop((0, 0, 200, 100))
        image.info.update(Image.open(io.BytesIO(data)).info)
    kept = images.thumbnail(image)
    assert b"SECRET" not in kept
    assert not {"exif", "xmp", "icc_profile", "comment"} & set(Image.open(io.BytesIO(kept)).info)


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


# ---- many at once


def test_decoding_in_threads_gives_what_decoding_one_by_one_gives():
    photos = [with_orientation(scene(300 + i, 200), "JPEG", 1 + i % 8) for i in range(16)]
    alone = [decoded(data) for data in photos]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(decoded, photos))
    for (image, size), (other, other_size) in zip(alone, together, strict=True):
        assert size == other_size
        assert worst_difference(image, other) == 0


def test_decoding_in_threads_does_not_silence_the_warnings_of_the_program(monkeypatch):
    """Two decodes that overlap, the first to begin being the first to end."""
    real_open, entered, first_done = images._open, threading.Semaphore(0), threading.Event()
    go = {"first": threading.Event(), "second": first_done}

    def open_slowly(data, name):
        entered.release()
        go[name].wait(5)
        return real_open(data, name)

    monkeypatch.setattr(images, "_open", open_slowly)
    data = encoded(scene(), "PNG")
    filters = list(warnings.filters)
    threads = {}
    for name in ("first", "second"):
        threads[name] = threading.Thread(target=images.decode, args=(data, name, 64))
        threads[name].start()
        assert entered.acquire(timeout=5)
    go["first"].set()
    threads["first"].join(5)
    first_done.set()
    threads["second"].join(5)
    assert list(warnings.filters) == filters


def test_odd_metadata_raises_no_warning():
    odd = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff" + bytes(8)
    code = "import sys; from fewshot import images; images.decode(sys.stdin.buffer.read(), 'odd', 64)"
    data = encoded(scene(), "JPEG", exif=odd)
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], input=data, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_limit_is_ours_and_not_pillow_s():
    assert Image.MAX_IMAGE_PIXELS is None
    assert TiffImagePlugin.READ_LIBTIFF is False


# ---- small pictures for pages and sprites


def test_a_tile_is_square_and_shows_the_middle():
    wide = Image.new("RGB", (300, 100), (200, 0, 0))
    wide.paste((0, 0, 200), (100, 0, 200, 100))
    buffer = io.BytesIO()
    wide.save(buffer, "PNG")
    found = Image.open(io.BytesIO(images.tile(buffer.getvalue(), "wide.png", 48)))
    assert found.size == (48, 48)
    red, _, blue = np.asarray(found.convert("RGB")).reshape(-1, 3).mean(axis=0)
    assert blue > 180
    assert red < 25


def test_what_is_no_photo_has_no_tile():
    with pytest.raises(ImageError):
        images.tile(b"no picture", "x.jpg", 48)


@pytest.mark.parametrize(("n", "n_across"), [(0, 1), (1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (10, 4)])
def test_a_sheet_has_as_few_places_as_hold_all(n, n_across):
    found = Image.open(io.BytesIO(images.sheet([None] * n, 16)))
    assert found.size == (16 * n_across, 16 * n_across)
