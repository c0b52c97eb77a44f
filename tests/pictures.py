"""Pictures made up for the tests of reading them, whole and hostile, and how they are compared."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from fewshot import images

ORIENTATION = 0x0112


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


def with_orientation(image, fmt, orientation, **options):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image, fmt, exif=exif, **options)
