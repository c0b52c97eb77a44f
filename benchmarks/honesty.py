"""Whether an index knows what it does not know: unknown photos, probabilities and conformal sets, by the protocol.

    python benchmarks/honesty.py [--data DIR] [--backbone NAME]

*Unknown*: only the base classes are enrolled; queries of the novel classes are strangers, those of the base classes are
not. *No plant*: all 50 classes are enrolled, and video frames of streets and fires are asked. *Probability* and *sets*:
all 50 classes are enrolled. Base queries are asked beside photos that the backbone was trained on, novel ones are not,
so the novel columns are what a user's own classes get.
"""

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from common import data_folder, keep
from hard_cases import embed
from protocol import N_BASE_SUPPORTS, link_first

from fewshot.classifier.scores import familiarity
from fewshot.datasets import class_folders
from fewshot.embedder import EmbedderChoice, open_embedder
from fewshot.evaluation.episodes import area_under_roc, expected_calibration_error, let_in
from fewshot.evaluation.metrics import wilson_interval
from fewshot.gallery import Gallery
from fewshot.records import UNKNOWN, Prediction, Question

COVERAGE = 0.9
QUESTION = Question(top=2, n_nearest=0, coverage=COVERAGE)


def familiar(answers: list[Prediction]) -> Any:
    """How familiar the index finds each query."""
    return familiarity(np.array([[match.similarity for match in answer.matches] for answer in answers], np.float32))


def rejection(known: list[Prediction], strange: list[Prediction]) -> dict[str, float]:
    """How well strangers are told apart, and what the index's own threshold does with both."""
    ours, theirs = familiar(known), familiar(strange)
    return {
        "auroc": area_under_roc(ours, theirs),
        "fpr95": let_in(ours, theirs),
        "known_rejected": float(np.mean([answer.answer == UNKNOWN for answer in known])),
        "strangers_rejected": float(np.mean([answer.answer == UNKNOWN for answer in strange])),
    }


def promises(answers: list[Prediction], labels: list[str]) -> dict[str, Any]:
    """How often what is said of probability and coverage is true."""
    right = np.array([answer.matches[0].label == label for answer, label in zip(answers, labels, strict=True)])
    said = np.array([answer.matches[0].probability for answer in answers], np.float32)
    sets = [answer.covering or () for answer in answers]
    inside = sum(label in each for each, label in zip(sets, labels, strict=True))
    covered = wilson_interval(inside, len(labels))
    return {
        "n": len(labels),
        "calibration_error": expected_calibration_error(said, right),
        "covered": {"share": covered.share, "low": covered.low, "high": covered.high},
        "set_size": float(np.mean([len(each) for each in sets])),
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--backbone", default="plants-lite0")
    given = parser.parse_args()
    data = data_folder(given.data)
    embedder = open_embedder(EmbedderChoice(given.backbone, "f32"))
    asked = {
        name: embed(embedder, class_folders(data / at))
        for name, at in (("base", "base/test"), ("novel", "novel/query"), ("no plant", "../scenes/test"))
    }
    with tempfile.TemporaryDirectory() as folder:
        base = class_folders(link_first(data / "base" / "train", Path(folder) / "base", N_BASE_SUPPORTS))
        with Gallery(Path(folder) / "index", create=True, embedder=embedder) as gallery:
            list(gallery.enroll(base))
            told = rejection(*(gallery.predict(asked[name].vectors, QUESTION) for name in ("base", "novel")))
            list(gallery.enroll(class_folders(data / "novel" / "support")))
            answers = {name: gallery.predict(photos.vectors, QUESTION) for name, photos in asked.items()}
    frames = answers.pop("no plant")
    called_unknown = wilson_interval(sum(answer.answer == UNKNOWN for answer in frames), len(frames))
    told_apart = area_under_roc(familiar(answers["novel"]), familiar(frames))
    no_plant = {"unknown": asdict(called_unknown), "auroc": told_apart}
    kept = {name: promises(answers[name], asked[name].labels) for name in answers}
    kept["both"] = promises(answers["base"] + answers["novel"], asked["base"].labels + asked["novel"].labels)
    print("unknown: " + ", ".join(f"{name} {value:.3f}" for name, value in told.items()))
    print(f"no plant: {called_unknown.share:.3f} of {called_unknown.n} called unknown, AUROC {told_apart:.3f}")
    for name, row in kept.items():
        print(
            f"{name}: calibration error {row['calibration_error']:.3f}, covered {row['covered']['share']:.3f} "
            f"of {COVERAGE}, {row['set_size']:.2f} labels a set"
        )
    result = {"backbone": embedder.fingerprint, "coverage": COVERAGE}
    keep("honesty", {**result, "rejection": told, "no_plant": no_plant, "promises": kept})


if __name__ == "__main__":
    main()
