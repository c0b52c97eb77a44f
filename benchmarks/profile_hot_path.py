"""Where the time of answering photos goes: py-spy's samples of all threads, by what they were doing.

    python benchmarks/profile_hot_path.py [--data DIR] [--photos 300] [--rate 100]

py-spy stands in an environment of its own. Each sample is counted for the innermost frame that one of the rules below
knows; what waits is not counted.
"""

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from common import data_folder, environment, fewshot, keep, run

# In order: the first rule with a word that is in a frame's name or file, frames taken from the innermost outwards.
RULES = {
    "the network (OpenVINO)": (("openvino", "libtbb", "infer (", "_infer"), "the bare engine's own time, see above"),
    "decoding (libjpeg-turbo)": (
        ("jpeg", "ImageFile.py", "_imaging", "decode (fewshot"),
        "entropy decoding is one stream of bits; the scale is chosen while decoding already",
    ),
    "scaling to the input (fast_image_resize)": (
        ("fit_to_input", "resize"),
        "one pass over pixels that are there already",
    ),
    "hashing (SHA-256)": (("content_hash", "sha256"), "what makes a photo the same photo; hardware instructions"),
    "search (faiss)": (("faiss", "fewshot/search"), "see the section on search"),
    "the index (SQLite)": (("sqlite", "sqlalchemy", "fewshot/store"), "records and labels of what is shown"),
    "calibration, metric, scores": (
        ("fewshot/classifier", "left_out.py", "calibrations.py", "answering.py"),
        "numpy, once a chunk",
    ),
    "starting (imports, opening)": (("importlib", "<module>", "import_model", "read_sealed"), "once a process"),
    "other Python": (("",), "queues, records, iterators"),
}
WAITING = ("wait (", "acquire", "select", "futex", "pthread_cond", "epoll", "_worker (", "result (", "sleep", "poll")


def rule_of(stack: list[str]) -> str | None:
    """Which rule counts a stack (outermost first); None: it waits."""
    named = next((frame for frame in reversed(stack) if not frame.startswith("0x")), stack[-1])
    if any(word in named for word in WAITING):
        return None
    for frame in reversed(stack):
        for name, (words, _) in list(RULES.items())[:-1]:
            if any(word in frame for word in words):
                return name
    return list(RULES)[-1]


def child(index: Path, photos: Path) -> None:
    """Answer the photos, twice, in one process."""
    from fewshot.gallery import Gallery

    files = sorted(photos.rglob("*.jpg"))
    with Gallery(index) as gallery:
        for _ in range(2):
            assert sum(1 for _ in gallery.query(files)) == len(files)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--rate", type=int, default=100)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(Path(given.child[0]), Path(given.child[1]))
        return
    data = data_folder(given.data)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        work = Path(folder)
        index, photos = work / "index", work / "photos"
        fewshot("enroll", "--each", data / "novel" / "support", index=index)
        photos.mkdir()
        for number, photo in enumerate(sorted((data / "novel" / "query").rglob("*.jpg"))[: given.photos]):
            (photos / f"{number:04d}.jpg").symlink_to(photo.resolve())
        fewshot("query", next(photos.iterdir()), index=index)
        spy = environment("profile", "py-spy").with_name("py-spy")
        record = [spy, "record", "--native", "--threads", "--idle", "--format", "raw", "--rate", str(given.rate)]
        run(*record, "--output", work / "raw", "--", sys.executable, __file__, "--child", index, photos)
        counts: Counter[str] = Counter()
        others: Counter[str] = Counter()
        for line in (work / "raw").read_text().splitlines():
            stack, _, n = line.rpartition(" ")
            rule = rule_of(stack.split(";"))
            if rule is not None:
                counts[rule] += int(n)
                if rule == list(RULES)[-1]:
                    others[stack.split(";")[-1]] += int(n)
    total = sum(counts.values())
    rows = [
        {"what": name, "percent": 100 * counts[name] / total, "why": why}
        for name, (_, why) in RULES.items()
        if counts[name]
    ]
    rows.sort(key=lambda row: -row["percent"])
    for row in rows:
        print(f"{row['what']:32}{row['percent']:6.1f} %")
    print("of other Python:", others.most_common(8))
    keep("profile", {"rows": rows, "rate": given.rate, "n_photos": 2 * given.photos, "n_samples": total})


if __name__ == "__main__":
    main()
