"""One decoded photo, cut to a backbone's input, with the small picture that an index keeps."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from fewshot import images
from fewshot.records import Pixels


@dataclass(frozen=True, slots=True)
class Cut:
    """What is to be made of a photo.

    `image_size_px`, `crop_pct`, `interpolation` and `squash` are those of `images.fit_to_input`; `keep` also makes what
    an index keeps, the thumbnail and the difference hash; `keep_metadata` leaves the photo's EXIF block in that
    thumbnail; `most_pixels` is a limit below that of `images.max_pixels`.
    """

    image_size_px: int
    crop_pct: float
    interpolation: str
    squash: bool = False
    keep: bool = False
    keep_metadata: bool = False
    most_pixels: int | None = None


@dataclass(frozen=True, slots=True)
class CutPhoto:
    """What was made of a photo.

    `width` and `height` are those of the upright original, in pixels; `pixels` is (image_size_px, image_size_px, 3)
    uint8 RGB; `thumbnail` is a WebP file and `dhash` 16 bytes, both None where not wanted.
    """

    width: int
    height: int
    pixels: Pixels
    thumbnail: bytes | None = None
    dhash: bytes | None = None


# (bytes, name, what is wanted) -> the photo; `cut_photo` itself, or the same in a process that it cannot leave.
Cutter = Callable[[bytes, str, Cut], CutPhoto]


def cut_photo(data: bytes, name: str, cut: Cut) -> CutPhoto:
    """Decode a photo and make of it what is wanted.

    Args:
        data: the file's bytes.
        name: how messages call the photo.
        cut: what is wanted.

    Raises:
        ImageError: the photo cannot be used; the subclass says why. See `images.decode`.
    """
    # The margin leaves enough for the thumbnail too where that is about as large: a photo is then decoded alike when it
    # is enrolled and when it is asked, and has the same embedding.
    short_side_px = images.scaled_short_side_px(cut.image_size_px, cut.crop_pct)
    if cut.keep:
        short_side_px = max(short_side_px, math.ceil(images.THUMBNAIL_SIDE_PX / images.DRAFT_MARGIN))
    image, (width, height), filled = images.decode_with_box(data, name, short_side_px, cut.most_pixels)
    pixels = images.fit_to_input(
        image,
        image_size_px=cut.image_size_px,
        crop_pct=cut.crop_pct,
        interpolation=cut.interpolation,
        squash=cut.squash,
        filled=filled,
    )
    if not cut.keep:
        return CutPhoto(width, height, pixels)
    exif = images.upright_exif(data) if cut.keep_metadata else b""
    return CutPhoto(width, height, pixels, images.thumbnail(image, exif), images.difference_hash(image))
