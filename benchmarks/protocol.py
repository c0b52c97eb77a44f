"""Accuracy by the protocol, through the command line alone.

The gallery has 50 classes: the first 20 photos of each base class, and all support photos of the novel classes. Every
query is answered among all 50. `+ field` asks the hard cases again after enrolling 10 field photos into each of six
classes; nothing is trained anywhere.

    python benchmarks/protocol.py [--data DIR] [--backbone NAME] [--precision f32|bf16] [--quality fast|best] [--plain]

With --plain a trained backbone is used without its class statistics: cosine between its embeddings as they are.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from common import data_folder, fewshot, json_lines, keep

from fewshot.backbones import DEFAULT_BACKBONE, STATISTICS_FILE, resolve
from fewshot.evaluation.metrics import crop_of

N_BASE_SUPPORTS = 20


def link_first(source: Path, target: Path, n: int) -> Path:
    """A folder of folders with links to the first n files of each class."""
    for label in sorted(source.iterdir()):
        (target / label.name).mkdir(parents=True)
        for photo in sorted(label.iterdir())[:n]:
            (target / label.name / photo.name).symlink_to(photo.resolve())
    return target


def score(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of right answers: top-1, top-3, top-1 within the query's crop, and how many were called unknown."""
    n = len(answers)
    top1 = top3 = within = unknown = 0
    for answer in answers:
        truth = Path(answer["file"]).parent.name
        ranked = [match["label"] for match in answer["matches"]]
        top1 += ranked[0] == truth
        top3 += truth in ranked[:3]
        within += next(label for label in ranked if crop_of(label) == crop_of(truth)) == truth
        unknown += answer["answer"] == "unknown"
    return {
        "n": n,
        **{
            k: 100 * v / n
            for k, v in zip(("top1", "top3", "within", "unknown"), (top1, top3, within, unknown), strict=True)
        },
    }


def measure(data: Path, index: Path, options: list[str], *, field: bool = True) -> dict[str, dict[str, Any]]:
    """Build the gallery and ask every query set; with `field`, the hard cases again after the field photos."""
    with tempfile.TemporaryDirectory() as folder:
        base = link_first(data / "base" / "train", Path(folder) / "base", N_BASE_SUPPORTS)
        fewshot("enroll", "--each", base, *options, index=index)
    fewshot("enroll", "--each", data / "novel" / "support", index=index)
    n_classes = len(json_lines(fewshot("classes", index=index).stdout))

    def ask(folder: str) -> list[dict[str, Any]]:
        words = ("query", data / folder, "--top", str(n_classes), "--nearest", "0")
        return json_lines(fewshot(*words, index=index).stdout)

    results = {"base": score(ask("base/test")), "novel": score(ask("novel/query"))}
    results |= strata("hard", ask("hard"))
    if not field:
        return results
    fewshot("enroll", "--each", data / "field-support", index=index)
    return results | strata("hard + field", ask("hard"))


def without_statistics(trained: Path, folder: Path) -> Path:
    """A trained backbone's folder, but for the class statistics: its embeddings are then compared as they are."""
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns(STATISTICS_FILE))
    return folder


def strata(name: str, answers: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The hard cases, all and by stratum: x from another source than any enrolled, y hardest in their class."""
    parts = {f"{name}, {s}": [a for a in answers if Path(a["file"]).name.startswith(s)] for s in ("x", "y")}
    return {name: score(answers), **{key: score(part) for key, part in parts.items() if part}}


def main() -> None:
    """Measure, print a table, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--quality", default="fast")
    parser.add_argument("--plain", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        backbone = given.backbone
        if given.plain:
            backbone = str(without_statistics(Path(resolve(backbone).location), Path(folder) / "plain"))
        options = ["--backbone", backbone, "--precision", given.precision, "--quality", given.quality]
        results = measure(data_folder(given.data), Path(folder) / "protocol", options)
    name = f"{Path(given.backbone).name}{'-plain' if given.plain else ''}"
    name += "-best" if given.quality == "best" else ""
    print(f"{name}, {given.precision}\n{'':16}{'n':>6}{'top-1':>8}{'top-3':>8}{'within crop':>13}{'unknown':>9}")
    for asked, row in results.items():
        print(f"{asked:16}{row['n']:6}{row['top1']:8.1f}{row['top3']:8.1f}{row['within']:13.1f}{row['unknown']:9.1f}")
    keep(f"protocol-{name}-{given.precision}", {"backbone": name, "sets": results})


if __name__ == "__main__":
    main()
