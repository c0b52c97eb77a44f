"""At least 2,000 hostile pictures, made by a seed: malformed, huge, nested, polyglot and lying about themselves.

    python benchmarks/hostile_images.py FOLDER    # writes them there, to look at

Nothing is downloaded: all begin as rendered noise in the six formats that are read.
"""

import io
import os
import pickle
import random
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import Image

Made = tuple[str, bytes]  # a name whose part before the first "-" is its kind, and the file

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp", "GIF": "gif"}


def corpus(seed: int = 0, *, n_mutants: int = 110, slow_ones: bool = True) -> Iterator[Made]:
    """Every hostile picture: the same seed gives the same bytes.

    Args:
        seed: of all that is random.
        n_mutants: pictures damaged at random, a base picture each (there are 17).
        slow_ones: also those that take seconds to make or to decode.
    """
    quick = (cut_short, lying_sizes, chunks, metadata, tiffs, gifs, polyglots, nested, empty_and_text)
    for part in (*quick, *((bombs, slow) if slow_ones else ())):
        yield from part(random.Random(f"{seed} {part.__name__}"))
    yield from mutants(random.Random(f"{seed} mutants"), n_mutants)


class _Runs:
    """What a pickle looks like that runs a command when it is opened."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("id",)


# ---- what all begins with


@cache
def base(fmt: str, mode: str = "RGB", side_px: int = 96, **options: object) -> bytes:
    """A sound picture of noise."""
    rng = random.Random(f"{fmt} {mode} {side_px}")
    image = Image.frombytes("RGB", (side_px, side_px), rng.randbytes(side_px * side_px * 3)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


@cache
def bases() -> dict[str, bytes]:
    """Sound pictures of every format, in the variants that other decoders read."""
    return {
        "jpg": base("JPEG"),
        "progressive.jpg": base("JPEG", progressive=True),
        "grey.jpg": base("JPEG", "L"),
        "cmyk.jpg": base("JPEG", "CMYK"),
        "png": base("PNG"),
        "palette.png": base("PNG", "P"),
        "alpha.png": base("PNG", "RGBA"),
        "bits.png": base("PNG", "1"),
        "webp": base("WEBP"),
        "lossless.webp": base("WEBP", "RGBA", lossless=True),
        "tif": base("TIFF"),
        "lzw.tif": base("TIFF", compression="tiff_lzw"),
        "deflate.tif": base("TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": base("TIFF", compression="jpeg"),
        "float.tif": base("TIFF", "F"),
        "bmp": base("BMP"),
        "gif": base("GIF", "P"),
    }


def chunk(kind: bytes, data: bytes, *, length: int | None = None, crc: int | None = None) -> bytes:
    """A chunk of a PNG, honest or not about its length and checksum."""
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data) if length is None else length) + kind + data + struct.pack(">I", crc)


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 2, between: bytes = b"") -> bytes:
    """A PNG of what one likes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + header + between + body + chunk(b"IEND", b"")


# ---- the kinds


def mutants(rng: random.Random, n: int) -> Iterator[Made]:
    """Sound pictures with bits turned, bytes overwritten, parts repeated, moved, left out or grown."""
    for name, data in bases().items():
        for i in range(n):
            damaged = bytearray(data)
            for _ in range(rng.choice((1, 1, 2, 4, 16, 64))):
                at, kind = rng.randrange(len(damaged)), rng.randrange(6)
                if rng.random() < 0.5:
                    at %= min(len(damaged), 200)  # headers hold what decoders believe
                if kind == 0:
                    damaged[at] ^= 1 << rng.randrange(8)
                elif kind == 1:
                    damaged[at : at + 4] = rng.choice((b"\xff" * 4, b"\x00" * 4, b"\x7f\xff\xff\xff", rng.randbytes(4)))
                elif kind == 2:
                    damaged[at:at] = damaged[at : at + rng.randrange(1, 64)] * rng.randrange(1, 9)
                elif kind == 3 and len(damaged) > 100:
                    del damaged[at : at + rng.randrange(1, 40)]
                elif kind == 4:
                    damaged[at : at + 16] = rng.randbytes(16)
                else:
                    other = rng.randrange(len(damaged))
                    damaged[at : at + 32] = damaged[other : other + 32]
            yield f"mutant-{i:03d}-{name}", bytes(damaged)


def cut_short(rng: random.Random) -> Iterator[Made]:
    """Every base picture ending at many places."""
    for name, data in bases().items():
        for i, part in enumerate((0.01, 0.05, 0.2, 0.5, 0.8, 0.99)):
            yield f"cut-{i}-{name}", data[: max(1, int(len(data) * part) - rng.randrange(3))]
        yield f"tail-{name}", data + rng.randbytes(2000)
        yield f"twice-{name}", data + data


def lying_sizes(rng: random.Random) -> Iterator[Made]:
    """Headers that promise other pictures than those that follow."""
    sizes = (0, 1, 31, 33, 0x7FFF, 0xFFFF, 0x10000, 9999, 30_000, 2**31 - 1)
    for width in sizes:
        for height in (0, 1, 96, 0xFFFF, 7000):
            yield f"size-{width}x{height}.png", png(width, height, rng.randbytes(200))
            bmp, gif, jpg = (bytearray(bases()[name]) for name in ("bmp", "gif", "jpg"))
            bmp[18:26] = struct.pack("<ii", width if width < 2**31 else -1, rng.choice((height, -height)))
            yield f"size-{width}x{height}.bmp", bytes(bmp)
            gif[6:10] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
            yield f"size-{width}x{height}.gif", bytes(gif)
            at = jpg.index(b"\xff\xc0") + 5
            jpg[at : at + 4] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
            yield f"size-{width}x{height}.jpg", bytes(jpg)
    webp = bytearray(bases()["webp"])
    for width in (0, 1, 0x3FFF, 0x1FFF):
        at = webp.index(b"\x9d\x01\x2a") + 3
        webp[at : at + 4] = struct.pack("<HH", width, 0x3FFF)
        yield f"size-{width}.webp", bytes(webp)
    for depth in range(20):
        for colour in range(8):
            yield f"depth-{depth}-{colour}.png", png(64, 64, rng.randbytes(4000), depth=depth, colour=colour)


def bombs(_rng: random.Random) -> Iterator[Made]:
    """Small files that unpack to much, within and beyond what is allowed."""
    for side_px in (5_000, 7_000, 9_900, 12_000, 40_000):
        n_bytes = min(side_px, 12_000) * (side_px * 3 + 1)
        yield f"bomb-{side_px}.png", _zero_png(side_px, min(n_bytes, 450_000_000))
    yield "bomb-alpha.png", _zero_png(7_000, 7_000 * 28_001, colour=6)
    yield "bomb-deep.png", _zero_png(7_000, 7_000 * 42_001, depth=16)
    for i in range(4):
        text = zlib.compress(bytes(30_000_000), 9)
        kind, data = ((b"zTXt", b"a\0\0" + text), (b"iTXt", b"a\0\1\0\0\0" + text), (b"iCCP", b"a\0\0" + text))[i % 3]
        yield f"bomb-text-{i}.png", png(64, 64, bytes(64 * 193), between=chunk(kind, data) * (1 + i // 3 * 40))
    for mode in ("L", "RGB", "CMYK"):
        buffer = io.BytesIO()
        Image.new(mode, (6_900, 6_900)).save(buffer, "JPEG", quality=1)
        yield f"bomb-{mode}.jpg", buffer.getvalue()
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        for mode in ("RGB", "RGBA", "F"):
            buffer = io.BytesIO()
            Image.new(mode, (6_000, 6_000)).save(buffer, "TIFF", compression=compression)
            yield f"bomb-{compression}-{mode}.tif", buffer.getvalue()
    buffer = io.BytesIO()
    Image.new("RGBA", (7_000, 7_000)).save(buffer, "WEBP", lossless=True, method=0)
    yield "bomb-lossless.webp", buffer.getvalue()
    buffer = io.BytesIO()
    Image.new("P", (7_000, 7_000)).save(buffer, "GIF")
    yield "bomb-large.gif", buffer.getvalue()


@cache
def _zero_png(side_px: int, n_bytes: int, *, depth: int = 8, colour: int = 2) -> bytes:
    packer = zlib.compressobj(9)
    block = bytes(1_000_000)
    parts = [packer.compress(block[: n_bytes - start]) for start in range(0, n_bytes, len(block))]
    rows = b"".join([*parts, packer.flush()])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side_px, side_px, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def slow(_rng: random.Random) -> Iterator[Made]:
    """Small files that take long: one scan of a progressive JPEG again and again, pictures of a pixel's rows."""
    for side_px, n_scans in ((1_000, 3_000), (4_000, 300), (6_900, 1_500)):
        buffer = io.BytesIO()
        Image.new("L", (side_px, side_px), 128).save(buffer, "JPEG", progressive=True, quality=50)
        data = buffer.getvalue()
        at = data.rindex(b"\xff\xda")
        yield f"slow-scans-{side_px}.jpg", data[:at] + data[at:-2] * n_scans + b"\xff\xd9"
    for name, size in (("wide", (1_400_000, 32)), ("tall", (32, 1_400_000))):
        buffer = io.BytesIO()
        Image.new("RGB", size).save(buffer, "PNG", compress_level=9)
        yield f"slow-{name}.png", buffer.getvalue()
    frames = [Image.new("P", (600, 600), i % 256) for i in range(400)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    yield "slow-frames.gif", buffer.getvalue()


def chunks(rng: random.Random) -> Iterator[Made]:
    """PNG chunks in wrong places, wrong numbers, of wrong lengths and checksums."""
    rows = rng.randbytes(64 * 193)
    kinds = (b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"pHYs", b"tIME", b"eXIf", b"acTL", b"fcTL", b"fdAT")
    for kind in (*kinds, b"IHDR", b"IDAT", b"IEND", b"abcd", b"\x00\x00\x00\x00", b"CgBI"):
        for length in (0, 1, 3, 26, 255, 5000):
            yield f"chunk-{kind!r}-{length}.png", png(64, 64, rows, between=chunk(kind, rng.randbytes(length)))
        yield f"chunk-{kind!r}-liar.png", png(64, 64, rows, between=chunk(kind, b"abc", length=0x7FFFFFFF))
        yield f"chunk-{kind!r}-crc.png", png(64, 64, rows, between=chunk(kind, b"abcdef", crc=1))
    yield "chunk-many.png", png(64, 64, rows, between=chunk(b"tEXt", b"a\0b") * 20_000)


def metadata(rng: random.Random) -> Iterator[Made]:
    """EXIF, ICC and XMP blocks that loop, overrun, or hold what no camera wrote."""
    for i in range(60):
        entries = rng.choice((0, 1, 3, 12, 0xFFFF))
        ifd = struct.pack("<H", entries)
        for _ in range(min(entries, 12)):
            tag = rng.choice((0x0112, 0x8769, 0x8825, 0x927C, 0x010F, 0xA005, 0x0201, rng.randrange(65_536)))
            kind, count = rng.randrange(16), rng.choice((1, 2, 0xFFFFFFFF, rng.randrange(1000)))
            ifd += struct.pack("<HHII", tag, kind, count, rng.choice((8, 0, 26, 0xFFFFFFF0, rng.randrange(500))))
        block = b"Exif\0\0II*\0" + struct.pack("<I", 8) + ifd + struct.pack("<I", rng.choice((0, 8, 0xFFFFFFFF)))
        jpg = bases()["jpg"]
        app1 = b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block
        yield f"exif-{i:02d}.jpg", jpg[:2] + app1 + jpg[2:]
        yield f"exif-{i:02d}.png", png(64, 64, bytes(64 * 193), between=chunk(b"eXIf", block[6:]))
    for length in (2, 14, 16, 0xFFFF):
        for marker in (0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xDB, 0xC4, 0xDD, 0xC0, 0xC2, 0xC9, 0xCA, 0xDC, 0xFE):
            segment = bytes((0xFF, marker)) + struct.pack(">H", length) + rng.randbytes(min(length - 2, 300))
            yield f"marker-{marker:02x}-{length}.jpg", bases()["jpg"][:2] + segment + bases()["jpg"][2:]


def tiffs(rng: random.Random) -> Iterator[Made]:
    """TIFF directories that lie about strips, tiles, bits, compression and the next directory."""
    tags = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 273: 400, 277: 1, 278: 64, 279: 4096}
    values = (0, 1, 2, 7, 32, 65_535, 0x7FFFFFFF, 0xFFFFFFFF)
    for tag in (*tags, 284, 317, 320, 322, 323, 324, 325, 330, 338, 339, 347, 530):
        for value in values:
            wrong = {**tags, tag: value}
            yield f"tiff-{tag}-{value}.tif", _tiff(wrong, rng, next_ifd=rng.choice((0, 0, 8)))
    for compression in (2, 3, 4, 5, 6, 7, 8, 32_771, 32_773, 32_946, 34_676, 34_712, 34_925, 50_000, 50_001):
        yield f"tiff-compression-{compression}.tif", _tiff({**tags, 259: compression}, rng)
    yield "tiff-big.tif", b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + struct.pack("<Q", 2**60) + rng.randbytes(500)


def _tiff(tags: dict[int, int], rng: random.Random, next_ifd: int = 0) -> bytes:
    ifd = struct.pack("<H", len(tags))
    for tag, value in sorted(tags.items()):
        ifd += struct.pack("<HHII", tag, 4, 1, value)
    head = b"II*\0" + struct.pack("<I", 8) + ifd + struct.pack("<I", next_ifd)
    return head.ljust(400, b"\0") + rng.randbytes(4096)


def gifs(rng: random.Random) -> Iterator[Made]:
    """GIF blocks without end, frames outside of the picture, code sizes that cannot be."""
    head = b"GIF89a" + struct.pack("<HHBBB", 64, 64, 0xF7, 0, 0) + rng.randbytes(768)
    for bits in range(16):
        frame = b"," + struct.pack("<HHHHB", 0, 0, 64, 64, 0) + bytes((bits,))
        yield f"gif-bits-{bits}.gif", head + frame + b"\xff" + rng.randbytes(255) + b"\0;"
    for place in ((60, 60, 64, 64), (65_535, 65_535, 1, 1), (0, 0, 65_535, 65_535), (0, 0, 0, 0)):
        frame = b"," + struct.pack("<HHHHB", *place, 0) + b"\x08"
        yield f"gif-place-{place[0]}-{place[2]}.gif", head + frame + b"\xff" + rng.randbytes(255) + b"\0;"
    yield "gif-comments.gif", head + b"!\xfe" + (b"\xff" + bytes(255)) * 20_000
    yield "gif-nothing.gif", head + b"!\xf9\x04\0\0\0\0\0" * 5000


def polyglots(_rng: random.Random) -> Iterator[Made]:
    """Files that are a picture and something else, or something else under a picture's name."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr(zipfile.ZipInfo("../../escaped.txt"), "out")  # of a fixed date
        zipped.writestr(zipfile.ZipInfo("/etc/absolute"), "out")
    others = {
        "zip": archive.getvalue(),
        "html": b"<html><script>alert(1)</script></html>",
        "svg": b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
        "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj",
        "php": b"<?php system($_GET[0]); ?>",
        "pickle": pickle.dumps(_Runs(), 4),
        "elf": b"\x7fELF\x02\x01\x01" + bytes(200),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n(/etc/passwd) run",
        "script": b"#!/bin/sh\ntouch /tmp/owned\n",
        "shell-jpg": b"GIF89a=0;alert(1)//",
    }
    for name, content in others.items():
        yield f"other-{name}.jpg", content
        for kind in ("jpg", "png", "gif", "bmp", "webp", "tif"):
            yield f"polyglot-{name}-behind.{kind}", bases()[kind] + content
            yield f"polyglot-{name}-before.{kind}", content + bases()[kind]
    comment = b"\xff\xfe" + struct.pack(">H", len(others["html"]) + 2) + others["html"]
    yield "polyglot-comment.jpg", bases()["jpg"][:2] + comment + bases()["jpg"][2:]
    for first in bases().values():
        for second, data in bases().items():
            yield f"polyglot-head-{len(first)}-of-{second}", first[:12] + data[12:]


def nested(_rng: random.Random) -> Iterator[Made]:
    """Pictures in pictures in archives, and formats that Pillow knows and this program does not read."""
    data = bases()["png"]
    for depth in range(1, 6):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr(zipfile.ZipInfo("inner.png"), data)
        data = archive.getvalue()
        yield f"nested-{depth}.png", data
        yield f"nested-gz-{depth}.png", zlib.compress(data)
    inner = bases()["jpg"]
    for depth in range(4):
        app1 = b"\xff\xe1" + struct.pack(">H", min(65_000, len(inner)) + 2) + inner[:65_000]
        inner = bases()["jpg"][:2] + app1 + bases()["jpg"][2:]
        yield f"nested-thumbnail-{depth}.jpg", inner
    image = Image.new("RGB", (64, 64))
    for fmt in ("ICO", "PCX", "PPM", "SGI", "TGA", "EPS", "ICNS", "DDS", "JPEG2000", "IM", "MSP", "XBM"):
        buffer = io.BytesIO()
        (image.convert("1") if fmt in ("MSP", "XBM") else image).save(buffer, fmt)
        yield f"unread-{fmt}.jpg", buffer.getvalue()


def empty_and_text(rng: random.Random) -> Iterator[Made]:
    """Nothing, noise, text, and the first bytes of pictures before noise."""
    yield "empty.jpg", b""
    for length in (1, 2, 3, 8, 100, 70_000):
        yield f"noise-{length}.jpg", rng.randbytes(length)
        yield f"zeros-{length}.png", bytes(length)
    for name, data in bases().items():
        for n_kept in (2, 4, 8, 12, 30):
            yield f"noise-behind-{n_kept}-{name}", data[:n_kept] + rng.randbytes(3000)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, content) in enumerate(corpus()):
        (folder / f"{number:04d}-{name.replace('/', '_')}").write_bytes(content)
    print(f"{number + 1} files are in {folder}.")
