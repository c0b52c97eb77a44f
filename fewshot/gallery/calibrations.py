"""The calibrations of an index: made once a content, kept in memory and in a file for the next start."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from fewshot.classifier.calibration import Calibration, calibrate
from fewshot.classifier.metric import Metric
from fewshot.errors import CacheDamagedError
from fewshot.gallery.left_out import asked_enrolled
from fewshot.gallery.neighbours import Neighbours
from fewshot.sealed import read_sealed, write_sealed
from fewshot.store import OfContents, Reader

# So many calibrations of narrowed questions are kept, each a few kilobytes.
MOST_CHOICES_KEPT = 100
# Of the cached file: another number than the file's, and it is made anew.
VERSION = 8


class Calibrations:
    """The calibrations of one index: in memory for the content it has, on disk for the next start.

    Several threads may ask at once, each in a view of its own.

    Args:
        neighbours: lookups in that index.
        cache: where the file is; it can be deleted at any time.
    """

    def __init__(self, neighbours: Neighbours, cache: Path) -> None:
        self._neighbours, self._cache = neighbours, cache
        self._kept: OfContents[tuple[Calibration, dict[tuple[int, ...], Calibration]]] = OfContents()
        self._narrowing = threading.Lock()

    def of(self, reader: Reader, within: Sequence[int] | None = None) -> Calibration:
        """What the index's own photos say of its answers, or of those among some classes; made once a content."""
        known, known_within = self._kept.of(reader, lambda: (self._made(reader), {}))
        if within is None:
            return known
        with self._narrowing:
            narrowed = known_within.get(tuple(within))
            if narrowed is None:
                if len(known_within) >= MOST_CHOICES_KEPT:
                    known_within.clear()
                narrowed = calibrated_within(reader, self._neighbours, known, within)
                known_within[tuple(within)] = narrowed
            return narrowed

    def _made(self, reader: Reader) -> Calibration:
        if reader.about().generation < self._kept.newest:  # for a thread that still asks in a view before a change
            return calibrated_anew(reader, self._neighbours)
        return calibrated(reader, self._neighbours, self._cache)


def calibrated(reader: Reader, neighbours: Neighbours, cache: Path) -> Calibration:
    """The calibration of an index in a reader's view: the cached one of this generation, or made now and cached."""
    about = reader.about()
    made_for = {
        "kind": "calibration",
        "version": VERSION,
        "fingerprint": about.fingerprint,
        "generation": about.generation,
        "token": reader.token(about.generation),
    }
    try:
        payload, facts = read_sealed(cache)
        if all(facts.get(name) == value for name, value in made_for.items()):
            return _unpacked(payload, facts)
    except (CacheDamagedError, KeyError):
        pass  # missing, damaged, or written by an earlier version: made anew from the store
    found = calibrated_anew(reader, neighbours)
    payload, facts = _packed(found)
    try:
        write_sealed(cache, lambda target: target.write_bytes(payload), {**made_for, **facts})
    except OSError:
        pass  # a folder that cannot be written costs the next start a fraction of a second, nothing else
    return found


def calibrated_anew(reader: Reader, neighbours: Neighbours) -> Calibration:
    """The calibration of an index in a reader's view, from its photos."""
    asked, metric = asked_enrolled(reader, neighbours)
    return replace(calibrate(asked, reader.n_classes()), metric=metric)


def calibrated_within(reader: Reader, neighbours: Neighbours, known: Calibration, within: Sequence[int]) -> Calibration:
    """The calibration of a question that only some classes can answer: their photos, asked among these classes alone.

    With other rivals the leads are others, and so are what is unknown, how sure an answer is and what is ruled out.

    Args:
        reader: the view to answer in.
        neighbours: lookups in that index.
        known: the calibration of this generation; its metric stays.
        within: class ids.
    """
    asked, _ = asked_enrolled(reader, neighbours, within, known.metric)
    found = calibrate(asked, len(within), otherwise=known.scale)
    if found.threshold is None:  # too few photos: those of the whole index say more than nothing
        return replace(found, metric=known.metric, threshold=known.threshold)
    return replace(found, metric=known.metric, whose="the classes asked")


def _packed(found: Calibration) -> tuple[bytes, dict[str, Any]]:
    arrays: dict[str, np.ndarray] = {"class_ids": found.class_ids, "margins": found.margins}
    facts: dict[str, Any] = {"scale": found.scale, "threshold": found.threshold, "metric": None}
    metric = found.metric
    if metric is not None:
        arrays |= {"directions": metric.directions, "factors": metric.factors, "counts": metric.counts}
        prior = metric.prior if np.isfinite(metric.prior) else None
        facts["metric"] = {"prior": prior, "agreement": metric.agreement}
    return save(arrays), facts


def _unpacked(payload: bytes, facts: dict[str, Any]) -> Calibration:
    arrays = load(payload)
    about, metric = facts["metric"], None
    if about is not None:
        prior = np.inf if about["prior"] is None else about["prior"]
        metric = Metric(arrays["directions"], arrays["factors"], prior, about["agreement"], arrays["counts"])
    return Calibration(facts["scale"], facts["threshold"], arrays["class_ids"], arrays["margins"], metric)
