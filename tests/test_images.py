"""Photos of every kind: what goes in comes out as upright RGB, and as small pictures of it."""

import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pictures import array, decoded, encoded, mean_difference, png_chunk, scene, with_orientation, worst_difference
from PIL import Image, ImageCms, TiffImagePlugin

from fewshot import images
from fewshot.errors import EmptyFileError, ImageError, UnreadableFileError

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


def png_with_a_transparent_colour(colour_type, bits, row, key):
    """A PNG of 96 x 64 pixels, each row the same bytes, one of whose colours is marked transparent."""
    header = struct.pack(">IIBBBBB", 96, 64, bits, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"tRNS", key), (b"IDAT", zlib.compress((b"\x00" + row) * 64)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in chunks)


@pytest.mark.parametrize(
    ("colour_type", "bits", "kept", "key", "seen"),
    [
        (2, 8, bytes([10, 160, 20]), bytes([0, 0, 0]), [10, 160, 20]),
        (2, 16, bytes([10, 9, 160, 9, 20, 9]), bytes([1, 2, 3, 4, 5, 6]), [10, 160, 20]),
        (0, 16, bytes([77, 9]), bytes([77, 8]), [77, 77, 77]),  # alike in what is kept of them
        (0, 8, bytes([90]), bytes([91]), [90, 90, 90]),
        (0, 4, bytes([0x55]), bytes([0x33]), [85, 85, 85]),
        (0, 2, bytes([0x55]), bytes([0xAA]), [85, 85, 85]),
        (0, 1, bytes([0x00]), bytes([0xFF]), [0, 0, 0]),
    ],
)
def test_a_colour_of_a_png_marked_transparent_becomes_white(colour_type, bits, kept, key, seen):
    half = 48 * bits * (3 if colour_type == 2 else 1) // 8
    if bits < 8:
        told = struct.pack(">H", key[0] >> (8 - bits))
    else:
        told = key if bits == 16 else b"".join(bytes([0, value]) for value in key)
    row = kept * (half // len(kept)) + key * (half // len(key))
    result = array(decoded(png_with_a_transparent_colour(colour_type, bits, row, told))[0])
    assert result[5, 5].tolist() == seen
    assert result[5, 80].tolist() == [255, 255, 255]


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


# ---- thumbnails


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1600, 1200), (341, 256)),
        ((1200, 1600), (256, 341)),
        ((4000, 500), (1024, 128)),
        ((60_000, 40), (1024, 32)),  # as thin as a photo may be
        ((100, 80), (100, 80)),  # never enlarged
        ((256, 256), (256, 256)),
    ],
)
def test_a_thumbnail_keeps_to_its_limits(size, expected):
    thumbnail = Image.open(io.BytesIO(images.thumbnail(scene(*size))))
    assert thumbnail.format == "WEBP"
    assert thumbnail.size == expected


def test_a_strip_that_is_accepted_can_be_embedded_again_from_its_thumbnail():
    kept = images.thumbnail(scene(1200, 33))
    assert Image.open(io.BytesIO(kept)).size == (1024, 32)
    images.decode(kept, "kept", 224)


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
