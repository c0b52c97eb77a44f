"""Bytes or a path -> an upright RGB image, or a clear refusal."""

import hashlib
import importlib
import io
import math
import os
import stat
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fewshot.errors import (
    DamagedImageError,
    EmptyFileError,
    ImageError,
    ImageStoppedError,
    ImageTooLargeError,
    ImageTooSmallError,
    NotAnImageError,
    TruncatedImageError,
    UnreadableFileError,
    UsageError,
)
from fewshot.records import Pixels

# Only raster formats that cameras and collections use: fewer decoders see a stranger's bytes.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
MAX_MEGAPIXELS = 100
MEGAPIXELS_VARIABLE = "FEWSHOT_MAX_MEGAPIXELS"
MAX_FILE_BYTES = 500_000_000  # an uncompressed photo at the pixel limit still fits
MIN_SIDE_PX = 32
THUMBNAIL_SIDE_PX = 256
THUMBNAIL_LONG_SIDE_PX = 1024
THUMBNAIL_QUALITY = 90
MAX_EXIF_BYTES = 65_536
# So many times the wanted size is left to the resampling filter, that scaling while decoding costs no sharpness: the
# least at which embeddings stay what they are (docs/log.md has the figures).
DRAFT_MARGIN = 1.65

# A part of a picture in its own pixels: left, top, right, bottom.
Box = tuple[float, float, float, float]

# Of an EXIF block: the orientation, and where its parts lie in the original file.
_NOT_KEPT = {ExifTags.Base.Orientation, *(int(part) for part in ExifTags.IFD)}

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# The same filters as fast_image_resize calls them; Pillow's bicubic is that of Catmull and Rom.
_FAST_FILTERS = {"bilinear": "bilinear", "bicubic": "catmull_rom", "lanczos": "lanczos3"}

# Pillow warns of odd metadata; the pixels decide. Set once: a filter changed around each decode would leak between
# the threads that decode.
warnings.filterwarnings("ignore", module=r"PIL\.")

# The limit is ours, checked from the header before a pixel is decoded; Pillow's own would fire first and vaguely.
Image.MAX_IMAGE_PIXELS = None


def max_pixels() -> int:
    """The largest picture that is decoded, in pixels; `FEWSHOT_MAX_MEGAPIXELS` overrides the 100 megapixels.

    Raises:
        UsageError: the variable is not a positive number.
    """
    text = os.environ.get(MEGAPIXELS_VARIABLE, "")
    if not text:
        return MAX_MEGAPIXELS * 1_000_000
    try:
        megapixels = float(text)
    except ValueError:
        megapixels = 0.0
    if not 0 < megapixels < 1e6:
        raise UsageError(f"{MEGAPIXELS_VARIABLE} is {text!r}; wanted a number of megapixels above 0, such as 100.")
    return int(megapixels * 1_000_000)


def read_bytes(path: Path) -> bytes:
    """The bytes of a photo's file.

    Raises:
        UnreadableFileError: no such file, not a regular file, or not permitted.
        EmptyFileError: 0 bytes.
        ImageTooLargeError: over `MAX_FILE_BYTES`.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device would block for ever
            raise UnreadableFileError(f"{path.name} is not a regular file.")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageTooLargeError(
                f"{path.name} has {status.st_size / 1e6:.0f} MB; at most {MAX_FILE_BYTES / 1e6:.0f} MB are read.",
                hint="Is it a photo? Scale it down, or leave it out.",
            )
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableFileError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    if not data:
        raise EmptyFileError(f"{path.name} is empty.")
    return data


def content_hash(data: bytes) -> str:
    """SHA-256 of a photo's bytes, in hexadecimal: what makes two files the same photo.

    >>> content_hash(b"leaf")[:12]
    '9f91161f4343'
    """
    return hashlib.sha256(data).hexdigest()


def decode(
    data: bytes, name: str, short_side_px: int, most_pixels: int | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """As `decode_with_box`, without the box: for whom half a pixel at the edge does not matter."""
    image, size, _ = decode_with_box(data, name, short_side_px, most_pixels)
    return image, size


def decode_with_box(
    data: bytes, name: str, short_side_px: int, most_pixels: int | None = None
) -> tuple[Image.Image, tuple[int, int], Box]:
    """Decode a photo, upright and in RGB, no smaller than it must be.

    JPEG is scaled by a power of two while decoding, leaving the short side at least `DRAFT_MARGIN` times
    `short_side_px`. Grey, 16-bit, CMYK and palette pictures become 8-bit RGB; transparency is laid over white; of an
    animation the first frame counts.

    Args:
        data: the file's bytes; the format is read from them, never from the name.
        name: how messages call the photo.
        short_side_px: what the caller will scale the short side to.
        most_pixels: a limit below that of `max_pixels`.

    Returns:
        The picture, the (width, height) in pixels that the upright original has, and the box of the picture that the
        original fills. A side of 1,003 pixels at an eighth is 126 pixels, of which the last is filled by three eighths.

    Raises:
        NotAnImageError, TruncatedImageError, DamagedImageError, ImageTooLargeError, ImageTooSmallError.
    """
    image = _open(data, name)
    _check_size(image, name, most_pixels)
    width, height = image.size
    try:
        least = math.ceil(short_side_px * DRAFT_MARGIN)
        drafted = image.draft(None, (least, least))
        image.load()
        filled = image.size if drafted is None else (drafted[1][2], drafted[1][3])
        orientation = _orientation(image)
        upright = _upright(_to_rgb(image, _transparent_colour(image, data)), orientation)
    except Exception as error:  # a decoder may raise anything on bytes from a stranger
        raise _refusal(name, error) from error
    if orientation in (5, 6, 7, 8):
        width, height, filled = height, width, (filled[1], filled[0])
    # What is not filled is at the end of the rows and columns as they are stored.
    left = upright.width - filled[0] if orientation in (2, 3, 6, 7) else 0.0
    top = upright.height - filled[1] if orientation in (3, 4, 7, 8) else 0.0
    return upright, (width, height), (left, top, left + filled[0], top + filled[1])


def fit_to_input(
    image: Image.Image,
    *,
    image_size_px: int,
    crop_pct: float,
    interpolation: str,
    squash: bool = False,
    filled: Box | None = None,
) -> Pixels:
    """Scale and centre-crop a picture to a backbone's square input.

    The crop is cut while resampling, so that a picture of extreme proportions never becomes a huge one on the way.

    Args:
        image: RGB.
        image_size_px: side of the result.
        crop_pct: the part of the short side that stays; 0.875 is scaling to 256 and cropping to 224.
        interpolation: nearest, bilinear, bicubic or lanczos.
        squash: scale both sides to the square instead of cropping.
        filled: the part of the picture that counts; None: all of it. See `decode_with_box`.

    Returns:
        (image_size_px, image_size_px, 3) uint8.
    """
    x, y, end_x, end_y = filled or (0.0, 0.0, float(image.width), float(image.height))
    width, height = end_x - x, end_y - y
    box = (0.0, 0.0, width, height) if squash else _crop_box(width, height, image_size_px, crop_pct)
    # Pillow refuses a box that rounding put outside.
    left, top = max(0.0, box[0] + x), max(0.0, box[1] + y)
    right, bottom = min(float(image.width), box[2] + x), min(float(image.height), box[3] + y)
    if (right - left, bottom - top) == (image_size_px, image_size_px) and left.is_integer() and top.is_integer():
        # Nothing is scaled: every filter gives each pixel back as it is, but takes four times as long as decoding.
        return np.asarray(image.crop((int(left), int(top), int(right), int(bottom))))
    return np.asarray(_resampled(image, image_size_px, interpolation, (left, top, right, bottom)))


def _resampled(image: Image.Image, side_px: int, interpolation: str, box: Box) -> Image.Image:
    """A part of an RGB picture, scaled to a square.

    By fast_image_resize, in a fifth of Pillow's time, where its wheel is; by Pillow where it is not (Linux on ARM) and
    for `nearest`. Both filter alike: up to a quarter of the pixels differ, nearly all of these by one grey level.
    """
    fast = _fast_resizer() if interpolation in _FAST_FILTERS else None
    if fast is None:
        return image.resize((side_px, side_px), _RESAMPLING[interpolation], box=box)
    left, top, right, bottom = box
    scaled = Image.new("RGB", (side_px, side_px))
    options = fast.ResizeOptions(
        resize_alg=fast.ResizeAlg.convolution(fast.FilterType[_FAST_FILTERS[interpolation]]),
        crop_box=fast.CropBox(left, top, right - left, bottom - top),
        use_alpha=False,
    )
    fast.Resizer().resize_pil(image, scaled, options)
    return scaled


@lru_cache(maxsize=1)
def _fast_resizer() -> Any:
    """The module; None where it is not installed."""
    try:
        return importlib.import_module("cykooz_resizer")
    except ModuleNotFoundError:
        return None


def scaled_short_side_px(image_size_px: int, crop_pct: float) -> int:
    """The short side to which a photo is scaled so that a centre crop of `crop_pct` of it has the wanted size.

    Rounded down, as timm does.

    >>> scaled_short_side_px(224, 0.875), scaled_short_side_px(224, 0.95)
    (256, 235)
    """
    return math.floor(image_size_px / crop_pct)


def _crop_box(width: float, height: float, image_size_px: int, crop_pct: float) -> Box:
    """The part of a picture that becomes the input, in its own pixels.

    It lies where scaling the whole picture, rounding its size, and cropping at a whole pixel would put it, which is
    what timm does: half a pixel beside it, a picture that needs no scaling would be blurred by it.
    """
    short = scaled_short_side_px(image_size_px, crop_pct)
    scaled_width = short if width <= height else int(short * width / height)
    scaled_height = short if height <= width else int(short * height / width)
    left, top = round((scaled_width - image_size_px) / 2), round((scaled_height - image_size_px) / 2)
    x, y = width / scaled_width, height / scaled_height
    return left * x, top * y, (left + image_size_px) * x, (top + image_size_px) * y


def thumbnail(image: Image.Image, exif: bytes = b"") -> bytes:
    """The photo kept in an index: WebP, short side at most 256 px, long side at most 1024 px.

    It says nothing of where, when and by which camera it was taken, except what is given as `exif`.
    """
    scale = min(1.0, THUMBNAIL_SIDE_PX / min(image.size), THUMBNAIL_LONG_SIDE_PX / max(image.size))
    if scale < 1.0:
        # A strip keeps the side that a photo must have, so that an index can be embedded anew from what it keeps.
        size = (max(MIN_SIDE_PX, round(image.width * scale)), max(MIN_SIDE_PX, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=THUMBNAIL_QUALITY, method=1, exif=exif)
    return buffer.getvalue()


def tile(data: bytes, name: str, side_px: int) -> bytes:
    """The middle of a photo as a small square picture: a WebP file of `side_px` x `side_px`.

    Raises:
        ImageError: the bytes are no photo; the subclass says why.
    """
    image, _ = decode(data, name, side_px)
    buffer = io.BytesIO()
    ImageOps.fit(image, (side_px, side_px), Image.Resampling.BILINEAR).save(buffer, "WEBP", quality=75, method=1)
    return buffer.getvalue()


def sheet(tiles: Sequence[bytes | None], side_px: int) -> bytes:
    """Small square pictures side by side, row by row, on a square sheet with as few places as hold them: a PNG file.

    Args:
        tiles: files that `tile` made; None leaves its place grey.
        side_px: of a place; the sheet has ceil(sqrt(n)) of them each way.
    """
    n_across = max(1, math.ceil(math.sqrt(len(tiles))))
    whole = Image.new("RGB", (n_across * side_px, n_across * side_px), "#bbbbbb")
    for place, data in enumerate(tiles):
        if data is not None:
            with Image.open(io.BytesIO(data)) as picture:
                small = picture.convert("RGB").resize((side_px, side_px), Image.Resampling.BILINEAR)
            whole.paste(small, (place % n_across * side_px, place // n_across * side_px))
    buffer = io.BytesIO()
    whole.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def difference_hash(image: Image.Image) -> bytes:
    """128 bits that stay nearly the same when a photo is saved again, scaled or brightened: 16 bytes.

    Each bit says whether one of 8 x 8 fields is brighter than its neighbour, to the right and below.

    Source:
        The dHash of Neal Krawetz (Hacker Factor, 2013) in both directions, bit for bit as the package imagehash
        computes it, which would bring SciPy and wavelets for these lines.
    """
    grey = image.convert("L")
    across, down = (np.asarray(grey.resize(size, Image.Resampling.LANCZOS)) for size in ((9, 8), (8, 9)))
    bits = np.concatenate([(across[:, 1:] > across[:, :-1]).ravel(), (down[1:] > down[:-1]).ravel()])
    return np.packbits(bits).tobytes()


def upright_exif(data: bytes) -> bytes:
    """A photo's EXIF block, for a picture of it that is upright already; empty if it has none that can be read.

    Left out are the orientation, the preview that cameras put there, and all of a block above `MAX_EXIF_BYTES`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, "")
            exif = image.getexif()
        whole = Image.Exif()
        whole.update({tag: value for tag, value in exif.items() if tag not in _NOT_KEPT})
        for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if found := exif.get_ifd(ifd):
                whole.get_ifd(ifd).update(found)
        kept = whole.tobytes() if len(whole) else b""
    except Exception:  # broken metadata is no metadata
        return b""
    return kept if len(kept) <= MAX_EXIF_BYTES else b""


def gps_tags(data: bytes) -> dict[int, Any]:
    """The GPS tags of a photo's EXIF block, by number, as text, floats and tuples of floats (NaN: a division by 0).

    Empty if it has none that can be read.

    Source:
        EXIF 2.32 (CIPA DC-008), section 4.6.6: 1 and 3 are the hemispheres, 2 and 4 degrees, minutes and seconds, 9 is
        whether the receiver had a fix.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, "")  # in a PNG they may stand behind the pixels, which are then decoded on the way
            return {int(tag): _plain(value) for tag, value in image.getexif().get_ifd(ExifTags.IFD.GPSInfo).items()}
    except Exception:  # broken metadata is no metadata; whether the pixels are sound, decoding says
        return {}


def _plain(value: Any) -> Any:
    """An EXIF value as text, a float or a tuple of them: what can be told to another process."""
    if isinstance(value, tuple):
        return tuple(_plain(each) for each in value)
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else float(value)


def _open(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"mif1", b"avif", b"msf1"):
            raise NotAnImageError(
                f"{name} is a HEIC or AVIF photo, which is not read here.",
                hint="Export it as JPEG, or set the phone's camera to 'most compatible'.",
            ) from error
        raise NotAnImageError(f"{name} is not a picture in a format that is read here.") from error
    except Exception as error:
        raise _refusal(name, error) from error


def _check_size(image: Image.Image, name: str, most_pixels: int | None = None) -> None:
    width, height = image.size
    whole = max_pixels()
    most = min(whole, most_pixels or whole)
    if width * height > most:
        raise ImageTooLargeError(
            f"{name} has {width} x {height} pixels ({width * height / 1e6:.0f} megapixels); "
            f"at most {most / 1e6:g} megapixels are read.",
            hint=None if most == whole else "Scale the photo down.",  # the variable would not raise the caller's limit
        )
    if min(width, height) < MIN_SIDE_PX:
        raise ImageTooSmallError(
            f"{name} has {width} x {height} pixels; wanted at least {MIN_SIDE_PX} on the short side."
        )


def _refusal(name: str, error: Exception) -> ImageError:
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text:
        return ImageStoppedError(f"{name} needs more memory to decode than there is for one photo.")
    if "truncated" in text or "unexpected end" in text or "unexpected eof" in text or isinstance(error, EOFError):
        return TruncatedImageError(f"{name} is cut short: its header is a picture's, but its pixels end too early.")
    return DamagedImageError(f"{name} cannot be decoded: {str(error) or type(error).__name__}.")


def _transparent_colour(image: Image.Image, data: bytes) -> Any:
    """The grey or colour of a PNG that is transparent wherever it stands, as the pixels have it now; None: none.

    Pillow gives it as the file does, but has brought the pixels from fewer or more bits to 8 (not those of grey of 16).

    Source:
        PNG (W3C, third edition), 11.2.1: byte 24 of a file says the bits of a value; 11.3.1.1: only so many count.
    """
    given = image.info.get("transparency")
    if given is None or image.format != "PNG" or image.mode not in ("L", "RGB", "I;16"):
        return given
    most = 2 ** data[24] - 1
    if image.mode == "RGB":
        return tuple((value & most) * 255 // most if most < 256 else value >> 8 for value in given)
    return (given & most) * 255 // most if most < 256 else given


def _to_rgb(image: Image.Image, transparent: Any) -> Image.Image:
    if image.mode == "RGB" and transparent is None:
        return image
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        # 16 bits a pixel: the upper eight are the picture. Mode I is what some 16-bit PNG and TIFF files open as.
        values = np.asarray(image)
        if image.mode == "I":
            values = np.clip(values, 0, 65535)
        grey = (values >> 8).astype(np.uint8)
        if transparent is not None:
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode == "F":
        floats = np.asarray(image, dtype=np.float32)
        scale = 255.0 if float(floats.max(initial=0.0, where=np.isfinite(floats))) <= 1.0 else 1.0
        levels = np.nan_to_num(floats * scale, nan=0.0, posinf=255.0, neginf=0.0)
        return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).convert("RGB")
    if "A" in image.mode or "a" in image.mode or transparent is not None:
        if transparent is not None:
            image.info["transparency"] = transparent
        rgba = image.convert("RGBA")
        paper = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, rgba).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # broken metadata in front of sound pixels is no reason to refuse a photo
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    turn = turns.get(orientation)
    return image if turn is None else image.transpose(turn)
