"""The protocol's answers from a folder and from PostgreSQL, label for label; what a question and a copy cost.

    python benchmarks/shared_store.py [--data DIR] [--searched 10000] [--only answers,search]

The protocol's gallery is enrolled into a folder, copied into a PostgreSQL with pgvector and back. Every query photo is
embedded once and asked of both; then the field photos go into both, and the hard cases are asked again. Search: made-up
embeddings, many, are searched in the database by exact scan and by HNSW, to see what `hnsw.ef_search` finds of the
truth: once those of classes far apart, once those of photos hardly nearer to each other than to all others.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from common import ROOT, data_folder, keep_part
from protocol import N_BASE_SUPPORTS, link_first

sys.path.insert(0, str(ROOT / "tests"))
from postgres_server import DATABASE, PostgresServer

from fewshot.datasets import class_folders
from fewshot.embedder import EmbedderChoice
from fewshot.gallery import Gallery
from fewshot.records import EmbeddedPhoto, Question
from fewshot.store import copy_index, open_store
from fewshot.store.schema import embeddings, metadata

QUERIES = ("base/test", "novel/query", "hard")
ASKED = Question(top=5, n_nearest=5, coverage=0.9)
N_TIMED = 60
DIM = 1280
SPREADS = (1.0, 30.0)  # photos around their class; as good as without classes


def embedded(gallery, folder):
    """The photos below a folder, embedded: (n, dim)."""
    photos = sorted(path for path in folder.rglob("*") if path.is_file())
    outcomes = gallery.embedder().embed_photos(photos, n_photos=len(photos))
    return np.stack([each.embedding for each in outcomes if isinstance(each, EmbeddedPhoto)])


def compared(galleries, vectors):
    """How many answers of two indexes are the same in label, in every match, and in every number and nearest photo."""
    first, second = (gallery.predict(vectors, ASKED) for gallery in galleries)
    pairs = list(zip(first, second, strict=True))
    return {
        "asked": len(pairs),
        "same_label": sum(a.answer == b.answer for a, b in pairs),
        "same_matches": sum([m.label for m in a.matches] == [m.label for m in b.matches] for a, b in pairs),
        "identical": sum(a == b for a, b in pairs),
    }


def cost_ms(gallery, vectors):
    """What one question alone costs beyond its embedding, median."""
    seconds = []
    for vector in vectors[:N_TIMED]:
        started = time.perf_counter()
        gallery.predict(vector[None], ASKED)
        seconds.append(time.perf_counter() - started)
    return 1000 * median(seconds)


def answers(data, folder, server):
    """The protocol on both sides."""
    place, back = folder / "plants", folder / "back"
    result = {"sets": {}}
    with Gallery(place, create=True, choice=EmbedderChoice(precision="f32")) as gallery:
        base = link_first(data / "base" / "train", folder / "base", N_BASE_SUPPORTS)
        for each in (base, data / "novel" / "support"):
            for _ in gallery.enroll(class_folders(each)):
                pass
        asked = {name: embedded(gallery, data / name) for name in QUERIES}
        result["supports"] = gallery.size()[1]
    address = server.url(DATABASE)
    started = time.perf_counter()
    with_store = open_store(place)
    sent = copy_index(with_store, address)
    result["copy_rows"], result["copy_there_s"] = sent.n_rows, time.perf_counter() - started
    with_store.close()
    started = time.perf_counter()
    with_store = open_store(address)
    result["back_is_the_same"] = copy_index(with_store, back).checksums == sent.checksums
    result["copy_back_s"] = time.perf_counter() - started
    with_store.close()
    with Gallery(place) as first, Gallery(address) as second:
        for name, vectors in asked.items():
            result["sets"][name] = compared((first, second), vectors)
            print(name, result["sets"][name], flush=True)
        before = server.cpu_s()
        for vector in np.concatenate([asked["hard"]] * 3):
            second.predict(vector[None], ASKED)
        result["database_cpu_ms_a_question"] = 1000 * (server.cpu_s() - before) / (3 * len(asked["hard"]))
        result["question_ms"] = {"folder": cost_ms(first, asked["hard"]), "postgresql": cost_ms(second, asked["hard"])}
        for gallery in (first, second):
            for _ in gallery.enroll(class_folders(data / "field-support")):
                pass
        result["sets"]["hard + field"] = compared((first, second), asked["hard"])
        result["problems"] = first.problems() + second.problems()
    print(json.dumps(result), flush=True)
    return result


def search(server, n, spread):
    """Exact scan and HNSW over `n` made-up embeddings; `spread` of a photo around its class's mean."""
    rng = np.random.default_rng(0)
    server.execute("DROP SCHEMA IF EXISTS many CASCADE", database=DATABASE)
    server.execute("CREATE SCHEMA many", database=DATABASE)
    store = open_store(f"{server.url(DATABASE)}?options=-csearch_path%3Dmany,public", create=True)
    means = rng.normal(size=(max(2, n // 20), DIM)).astype(np.float32)
    try:
        with store.write() as writer:
            facts = {"fingerprint": "made-up@0", "precision": "f32", "dim": DIM, "source": {}, "backbone": {}}
            writer.pin_embedder(facts)
            class_id = writer.add_class("made-up")
            supports = metadata.tables["supports"]
            for start in range(0, n, 1000):
                size = min(1000, n - start)
                rows = means[rng.integers(0, len(means), size)] + spread * rng.normal(size=(size, DIM))
                rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("<f4")
                facts = {"class_id": class_id, "file": "", "width": 1, "height": 1, "added_at": "", "generation": 1}
                ids = range(start + 1, start + size + 1)
                writer.connection.execute(
                    supports.insert(), [{**facts, "support_id": i, "sha256": f"{i:064}"} for i in ids]
                )
                writer.connection.execute(
                    embeddings.insert(),
                    [{"support_id": i, "vector": row.tobytes(), "xxh3": 0} for i, row in zip(ids, rows, strict=True)],
                )
        server.execute("ANALYZE many.embeddings", database=DATABASE)
        asked = rows[:20]
        exact_ms = timed_ms(store, asked)
        started = time.perf_counter()
        steps = []
        with store.write() as writer:
            found = writer.build_search_index(0.99, 5, 100, lambda step: steps.append((step, time.perf_counter())))
        build_s = steps[1][1] - started
        result = {
            "vectors": n,
            "spread": spread,
            "exact_ms": exact_ms,
            "build_s": build_s,
            "hnsw_ms": timed_ms(store, asked),
            "recall": {str(each.ef_search): each.recall for each in found},
            "table_bytes": server.execute("SELECT pg_total_relation_size('many.embeddings')", database=DATABASE)[0][0],
            "index_bytes": server.execute("SELECT pg_relation_size('many.embeddings_hnsw')", database=DATABASE)[0][0],
        }
    finally:
        store.close()
    print(json.dumps(result), flush=True)
    return result


def timed_ms(store, asked):
    """One search in the database, median."""
    seconds = []
    for vector in asked:
        with store.read() as reader:
            started = time.perf_counter()
            reader.nearest_supports(vector[None], 5, None)
            seconds.append(time.perf_counter() - started)
    return 1000 * median(seconds)


def main():
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--searched", type=int, default=10_000)
    parser.add_argument("--only", default="answers,search")
    given = parser.parse_args()
    server = PostgresServer("max_wal_size=4GB", "maintenance_work_mem=512MB", "shared_buffers=512MB")
    only = given.only.split(",")
    try:
        if "answers" in only:
            with tempfile.TemporaryDirectory() as folder:
                part = answers(data_folder(given.data), Path(folder), server)
            keep_part("shared-store", "answers", part)
        if "search" in only:
            rows = [search(server, given.searched, spread) for spread in SPREADS]
            keep_part("shared-store", "search", {"rows": rows})
    finally:
        server.stop()


if __name__ == "__main__":
    main()
