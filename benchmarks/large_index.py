"""Opening, asking and enrolling into large indexes, and bulk enrolling, against the same in an empty one.

    python benchmarks/large_index.py [--sizes 10000,100000,1000000] [--dim 256] [--n-bulk 100000] [--runs 5]

Photos' embeddings are made up (`made_up.py`), ten a class. *Opening* is what a new process does from the import on
until the index has answered once, its caches being there. *Enrolling* is a new process that enrolls 20 photos with a
stand-in for the embedder, of 100 photos a second, and lists what looks doubtful, as `fewshot enroll` does; in turn with
the same into an empty index. *Bulk* gives the index embedded photos with thumbnails of 8 kB, 20 a class: what enrolling
costs beside embedding; and, for a truth check, the command with the 980 real photos of the protocol's gallery, 50
classes, against the embedder alone.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import data_folder, fewshot, json_lines, keep, memory_mb, run
from made_up import MadeUp, fill, steady_embedder
from protocol import N_BASE_SUPPORTS, link_first

N_EACH, N_NEW, NEW_LABEL, IMAGES_PER_S = 10, 20, "new-class", 100.0


def child_open(index: Path, dim: int) -> dict[str, Any]:
    """In a process of its own: open, answer once, answer more."""
    from fewshot.gallery import Gallery

    embedder = steady_embedder(dim)
    queries = MadeUp(1000, N_EACH, dim).queries(120)
    started = time.perf_counter()
    with Gallery(index, embedder=embedder) as gallery:
        opened = time.perf_counter()
        gallery.predict(queries[:1])
        first = time.perf_counter()
        seconds = []
        for i in range(20, 120):
            before = time.perf_counter()
            gallery.predict(queries[i : i + 1])
            seconds.append(time.perf_counter() - before)
    return {
        "open_s": opened - started,
        "first_answer_s": first - started,
        "answer_p50_ms": 1e3 * median(seconds),
        "rss_mb": memory_mb(),
    }


def child_enroll(index: Path, dim: int, photos: Path) -> dict[str, Any]:
    """In a process of its own: enroll a class, and take it out again."""
    from fewshot.datasets import class_folder
    from fewshot.gallery import Gallery

    started = time.perf_counter()
    with Gallery(index, create=True, embedder=steady_embedder(dim, IMAGES_PER_S)) as gallery:
        (report,) = gallery.enroll([class_folder(NEW_LABEL, photos)])
        assert report.enrolled == N_NEW, report
        stored = time.perf_counter()
        gallery.doubts(report.support_ids)
        done = time.perf_counter()
        gallery.remove(NEW_LABEL)
    return {"enroll_s": stored - started, "all_s": done - started}


def child(words: list[Any]) -> dict[str, Any]:
    """Run this script as a child and read what it prints."""
    done = run(sys.executable, __file__, "--child", *[str(word) for word in words])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"process_s": done.wall_s}


def large(n: int, dim: int, photos: Path, work: Path, n_runs: int) -> dict[str, Any]:
    """One size."""
    index, empty = work / f"index-{n}", work / f"empty-{n}"
    started = time.perf_counter()
    fill(index, MadeUp(n, N_EACH, dim), steady_embedder(dim).facts())
    row: dict[str, Any] = {"n": n, "dim": dim, "fill_s": time.perf_counter() - started}
    first = child(["open", index, dim])
    row["first_use_s"] = first["first_answer_s"]
    opened = [child(["open", index, dim]) for _ in range(n_runs)]
    for name in ("open_s", "first_answer_s", "answer_p50_ms", "rss_mb", "process_s"):
        row[name] = median(one[name] for one in opened)
    row["file_mb"] = (index / "index.sqlite").stat().st_size / 1e6
    row["cache_mb"] = sum(path.stat().st_size for path in (index / "cache").iterdir()) / 1e6
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for _ in range(n_runs + 1):
        shutil.rmtree(empty, ignore_errors=True)
        pairs.append((child(["enroll", index, dim, photos]), child(["enroll", empty, dim, photos])))
    for name in ("enroll_s", "all_s", "process_s"):
        ours, theirs = (median(pair[i][name] for pair in pairs[1:]) for i in (0, 1))
        row[f"into_large_{name}"], row[f"into_empty_{name}"], row[f"ratio_{name}"] = ours, theirs, ours / theirs
    shutil.rmtree(index)
    return row


def bulk(n: int, dim: int, work: Path) -> dict[str, Any]:
    """Embedded photos into an index, 20 a class; the speed at the beginning and at the end."""
    from fewshot.gallery import Gallery
    from fewshot.records import EmbeddedPhoto

    rng = np.random.default_rng(0)
    thumbnail = rng.bytes(8000)
    made, embedder, seconds = MadeUp(n, 20, dim), steady_embedder(dim), []
    cpu = time.process_time()
    with Gallery(work / "bulk", create=True, embedder=embedder) as gallery:
        for ids, vectors in made.parts(20):
            photos = [
                EmbeddedPhoto(f"{i}.jpg", f"{i:064x}", 256, 256, vector, thumbnail, rng.bytes(16))
                for i, vector in zip(ids.tolist(), vectors, strict=True)
            ]
            started = time.perf_counter()
            gallery.add(f"class-{ids[0] // 20:06d}", photos, embedder)
            seconds.append(time.perf_counter() - started)
    tenth = max(1, len(seconds) // 10)
    return {
        "n": n,
        "dim": dim,
        "photos_per_s": n / sum(seconds),
        "photos_per_s_first_tenth": 20 / float(np.mean(seconds[:tenth])),
        "photos_per_s_last_tenth": 20 / float(np.mean(seconds[-tenth:])),
        "cpu_ms_a_photo": 1e3 * (time.process_time() - cpu) / n,
    }


def real(data: Path, work: Path, n_runs: int) -> dict[str, Any]:
    """`fewshot enroll --each` of real photos against the embedder alone on them, in turn."""
    folder = work / "real"
    for part in ("base/train", "novel/support"):
        link_first(data / part, folder, N_BASE_SUPPORTS)
    chosen = sorted(folder.rglob("*.jpg"))
    one = work / "one" / "class"
    one.mkdir(parents=True)
    (one / chosen[0].name).symlink_to(chosen[0].resolve())
    rows = []
    for number in range(n_runs + 1):
        whole = fewshot("enroll", "--each", folder, index=work / f"real-{number}")
        assert sum(line["enrolled"] for line in json_lines(whole.stdout)) == len(chosen)
        start = fewshot("enroll", "--each", one.parent, index=work / f"one-{number}")
        rows.append((whole.wall_s - start.wall_s, child(["embed", folder])["seconds"]))
    ours, alone = median(row[0] for row in rows[1:]), median(row[1] for row in rows[1:])
    return {"n": len(chosen), "enroll_s": ours, "embedder_alone_s": alone, "speed_ratio": alone / ours}


def child_embed(folder: Path) -> dict[str, Any]:
    """In a process of its own: embed photos as enrolling does, without an index."""
    from fewshot.embedder import EmbedderChoice, open_embedder

    embedder = open_embedder(EmbedderChoice())
    photos = sorted(folder.rglob("*.jpg"))
    list(embedder.embed_photos(photos[:8], n_photos=8, keep=True))
    started = time.perf_counter()
    n = sum(1 for _ in embedder.embed_photos(photos, n_photos=len(photos), keep=True))
    assert n == len(photos)
    return {"seconds": time.perf_counter() - started}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--sizes", default="10000,100000,1000000")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--n-bulk", default="10000,30000,100000")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        what, *words = given.child
        if what == "open":
            found = child_open(Path(words[0]), int(words[1]))
        elif what == "embed":
            found = child_embed(Path(words[0]))
        else:
            found = child_enroll(Path(words[0]), int(words[1]), Path(words[2]))
        print(json.dumps(found))
        return
    result: dict[str, Any] = {"large": [], "bulk": [], "n_runs": given.runs, "stand_in_images_per_s": IMAGES_PER_S}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        work = Path(folder)
        run(Path(sys.executable).with_name("fewshot"), "sample-data", work / "leaves")
        photos = work / "photos"
        photos.mkdir()
        for photo in sorted((work / "leaves").rglob("*.jpg"))[:N_NEW]:
            (photos / f"{photo.parent.name}-{photo.name}").symlink_to(photo)
        for n in map(int, given.n_bulk.split(",")):
            result["bulk"].append(bulk(n, given.dim, work))
            shutil.rmtree(work / "bulk")
            print(json.dumps(result["bulk"][-1]), flush=True)
        result["real"] = real(data_folder(given.data), work, given.runs)
        print(json.dumps(result["real"]), flush=True)
        for n in map(int, given.sizes.split(",")):
            result["large"].append(large(n, given.dim, photos, work, given.runs))
            print(json.dumps(result["large"][-1]), flush=True)
            keep("large-index", result)


if __name__ == "__main__":
    main()
