"""The frozen records that cross borders: what is enrolled, what is asked, what is answered."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32s = NDArray[np.float32]
Int64s = NDArray[np.int64]
Pixels = NDArray[np.uint8]

NO_ID = -1  # where a search finds fewer than were asked for

UNKNOWN = "unknown"  # the answer that names no class; therefore no class may carry it as its label


@dataclass(frozen=True, slots=True)
class NamedBytes:
    """A photo that is not a file here: an upload, or one kept in an index. `file` is what messages call it."""

    file: str
    data: bytes


@dataclass(frozen=True, slots=True)
class LoadedPhoto:
    """One photo, decoded and cut to what a backbone takes.

    `pixels` is (image_size_px, image_size_px, 3) uint8 RGB; `thumbnail` is a WebP file and
    `dhash` the 16 bytes of `images.difference_hash`, both None where not wanted;
    `width` and `height` are those of the original, upright, in pixels.
    """

    file: str
    sha256: str
    width: int
    height: int
    pixels: Pixels
    thumbnail: bytes | None
    dhash: bytes | None = None


@dataclass(frozen=True, slots=True)
class EmbeddedPhoto:
    """One photo and its embedding: (dim,) float32 of unit length."""

    file: str
    sha256: str
    width: int
    height: int
    embedding: Float32s
    thumbnail: bytes | None
    dhash: bytes | None = None


@dataclass(frozen=True, slots=True)
class SkippedPhoto:
    """A photo that was not embedded because its content hash is known already."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A photo that cannot be used, and why."""

    file: str
    code: str
    message: str

    def as_dict(self) -> dict[str, str]:
        """The JSON shape."""
        return {"file": self.file, "code": self.code, "message": self.message}


@dataclass(frozen=True, slots=True)
class Support:
    """One enrolled photo.

    `own_similarity` is its cosine to the nearest prototype of its class, made without it and without other shots of
    what it shows; None where nothing else is left of the class.
    """

    support_id: int
    label: str
    file: str
    width: int
    height: int
    own_similarity: float | None
    added_at: str

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        own = None if self.own_similarity is None else round(self.own_similarity, 4)
        return {
            "support_id": self.support_id,
            "label": self.label,
            "file": self.file,
            "width": self.width,
            "height": self.height,
            "own_similarity": own,
            "added_at": self.added_at,
        }


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """A class as `fewshot classes` lists it."""

    label: str
    supports: int
    prototypes: int

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        return {"label": self.label, "supports": self.supports, "prototypes": self.prototypes}


@dataclass(frozen=True, slots=True)
class Match:
    """A class that a query resembles: similarity to its nearest prototype, and the probability that follows from it.

    The similarity is a cosine, corrected upwards for a prototype of few photos (`metric.Metric.gains`), and at most 1.
    """

    label: str
    similarity: float
    probability: float

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        return {
            "label": self.label,
            "similarity": round(self.similarity, 4),
            "probability": round(self.probability, 4),
        }


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An enrolled photo near a query, by cosine."""

    support_id: int
    label: str
    similarity: float
    file: str

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        return {
            "support_id": self.support_id,
            "label": self.label,
            "similarity": round(self.similarity, 4),
            "file": self.file,
        }


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one query photo.

    `answer` is a label or "unknown". `reason` says which kind of answer it is: "match", "ambiguous" (the answer is the
    likeliest label, but less likely than all others together), "unknown" (no enrolled class is near enough) or
    "bad_image" (the photo could not be read; `message` says why). `covering` holds the labels that cannot be ruled out
    at the coverage asked for, likeliest first (none, if it leads the next class by less than enrolled
    photos of its class do); None: no coverage was
    asked for. `files` holds the names of the photos that were answered together; None: it was one, which `file` names.
    """

    file: str
    answer: str
    reason: str
    message: str
    matches: tuple[Match, ...] = ()
    nearest: tuple[Neighbour, ...] = ()
    covering: tuple[str, ...] | None = None
    files: tuple[str, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape; `covering` is in it only if a coverage was asked for, `files` only of photos together."""
        return {
            "file": self.file,
            **({} if self.files is None else {"files": list(self.files)}),
            "answer": self.answer,
            "reason": self.reason,
            "message": self.message,
            "matches": [match.as_dict() for match in self.matches],
            "nearest": [neighbour.as_dict() for neighbour in self.nearest],
            **({} if self.covering is None else {"covering": list(self.covering)}),
        }


@dataclass(frozen=True, slots=True)
class Question:
    """How photos are to be answered.

    Attributes:
        top: how many classes an answer lists.
        n_nearest: how many enrolled photos an answer lists.
        within: patterns such as `corn-*`; only classes whose label fits one are asked. None: all.
        coverage: in (0, 1), the share of queries whose true label shall be in `Prediction.covering`; None: not asked.
        together: all photos show one plant, and get one answer.
    """

    top: int = 3
    n_nearest: int = 3
    within: tuple[str, ...] | None = None
    coverage: float | None = None
    together: bool = False


@dataclass(frozen=True, slots=True)
class EnrollReport:
    """What one enrolment did. Counts are photos; `support_ids` are those of the photos that are new."""

    label: str
    enrolled: int
    already_there: int
    refused: tuple[Refused, ...] = ()
    support_ids: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        return {
            "label": self.label,
            "enrolled": self.enrolled,
            "already_there": self.already_there,
            "refused": [refused.as_dict() for refused in self.refused],
            "support_ids": list(self.support_ids),
        }


@dataclass(frozen=True, slots=True)
class ClassView:
    """Photos of a class with their embeddings: what a picture of the space is drawn from.

    `vectors` is (n_supports, dim) float32 and `prototypes` (n_prototypes, dim), rows of unit length.
    `nearest_other` holds for each support the nearest other class and the cosine to its nearest prototype, None where
    there is no other class. The photo's own side of that is `Support.own_similarity`.
    """

    label: str
    supports: tuple[Support, ...]
    vectors: Float32s
    prototypes: Float32s
    nearest_other: tuple[tuple[str, float] | None, ...]


@dataclass(frozen=True, slots=True)
class Suspicious:
    """An enrolled photo that lies nearer to another class than to the rest of its own."""

    support_id: int
    file: str
    own_similarity: float
    looks_like: str
    similarity: float

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        return {
            "support_id": self.support_id,
            "file": self.file,
            "own_similarity": round(self.own_similarity, 4),
            "looks_like": self.looks_like,
            "similarity": round(self.similarity, 4),
        }


@dataclass(frozen=True, slots=True)
class ClassInspection:
    """What `fewshot inspect` tells of a class.

    `similarity` is the mean of its supports' `own_similarity` and `spread` the standard deviation of that, both None
    for a class of one photo. `confusable` holds (label, cosine between prototypes) pairs, nearest first.
    """

    label: str
    supports: int
    similarity: float | None
    spread: float | None
    confusable: tuple[tuple[str, float], ...] = ()
    suspicious: tuple[Suspicious, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        return {
            "label": self.label,
            "supports": self.supports,
            "similarity": None if self.similarity is None else round(self.similarity, 4),
            "spread": None if self.spread is None else round(self.spread, 4),
            "confusable": [{"label": label, "similarity": round(value, 4)} for label, value in self.confusable],
            "suspicious": [photo.as_dict() for photo in self.suspicious],
        }
