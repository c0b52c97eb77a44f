"""Embedding on a Ray cluster: how it scales, what it costs beside one process, and a machine lost on the way.

    python benchmarks/ray_scale.py [--stand-in 6400] [--real 600] [--rounds 3]

1. Stand-in work that sleeps as an embedding would (25 ms a photo), by 1, 2 and 4 workers: this machine's few cores
   cannot show what more machines would do, but they can show what spreading costs.
2. The shipped backbone, one process against the cluster with a worker a core, in turn on the same photos. Both are
   timed twice: the whole call, and from the first outcome on, when everything has started.
3. Two machines (processes of their own), one killed in the middle: are all photos enrolled, each once?

Photos are rendered. Nothing is taken off the whole times: a cluster's workers start anew with each command.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import ROOT, keep

from fewshot.backbones import Backbone, Preprocessing, WeightsSource
from fewshot.cluster.spreading import Cluster
from fewshot.cluster.workers import open_as
from fewshot.datasets import class_folders
from fewshot.embedder import Embedder, EmbedderChoice, open_embedder
from fewshot.gallery import Gallery
from fewshot.records import EmbeddedPhoto, Float32s, NamedBytes, Pixels
from fewshot.samples import write_samples

SLEEP_S = 0.025
WORKERS = (1, 2, 4)
LEAST_SHARE = 0.85  # of linear, that four workers shall reach
STORE_BYTES = 300_000_000


class SleepingEngine:
    """Sleeps as long as a core would take for an embedding; what it gives follows from the pixels."""

    batch_size = 1
    n_parallel = 1

    def run(self, pixels: Pixels) -> Float32s:
        """(n, size, size, 3) uint8 -> (n, 12) float32: mean colours of the photo's quarters."""
        time.sleep(SLEEP_S * len(pixels))
        n, size = pixels.shape[:2]
        quarters = pixels.reshape(n, 2, size // 2, 2, size // 2, 3).astype(np.float32).mean(axis=(2, 4))
        return quarters.reshape(n, 12) - 110.0


def sleeping(choice: EmbedderChoice, source: WeightsSource) -> Embedder:
    """The stand-in's embedder, as workers open it."""
    backbone = Backbone("stand-in", "stand_in", 12, "0" * 64, Preprocessing(32, 1.0, "bilinear", (0,) * 3, (1,) * 3))
    return Embedder(backbone, source, "f32", lambda bulk: SleepingEngine())


STAND_IN = WeightsSource("stand-in", "stand_in", "file", "")


def main() -> None:
    """Measure all three, print them, keep them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stand-in", type=int, default=6400, help="photos of the stand-in work")
    parser.add_argument("--real", type=int, default=600, help="photos for the shipped backbone")
    parser.add_argument("--rounds", type=int, default=3, help="of the shipped backbone")
    given = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # The machines of these clusters are processes that have to find this script, whose stand-in they open.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        write_samples(photos, n_support=50, n_query=1, seed=0)
        files = [file for each in class_folders(photos / "support") for file in each.photos]
        result = {
            "sleep_s": SLEEP_S,
            "load_before": round(os.getloadavg()[0], 1),
            "stand_in": stand_in(files, given.stand_in),
            "real": real(files, given.real, given.rounds),
            "killed": killed(photos / "support", Path(folder) / "index"),
        }
    keep("ray-scale", result)
    four = result["stand_in"]["workers"][-1]
    print(f"4 workers: {four['share']:.2f} of linear over the whole call, {four['steady_share']:.2f} once started")
    if not result["killed"]["complete"]:
        sys.exit("error: photos were lost with the machine")


def stand_in(files: list[Path], n_photos: int) -> dict[str, Any]:
    """Sleeping workers: seconds by their number, and the share of linear scaling."""
    small = [NamedBytes(f"{i}.jpg", files[i % len(files)].read_bytes()) for i in range(n_photos)]
    rows: list[dict[str, Any]] = []
    with machines(num_cpus=max(WORKERS)) as (address, _):
        for n_workers in WORKERS:
            with Cluster(address, opener=sleeping, n_workers=n_workers) as cluster:
                embedder = sleeping(EmbedderChoice(), STAND_IN)
                whole, steady = timed(cluster.embed_photos(embedder, small))
            rows.append({"n": n_workers, "whole_s": whole, "steady_photos_per_s": steady})
            first = rows[0]
            rows[-1]["share"] = first["whole_s"] / whole / n_workers
            rows[-1]["steady_share"] = steady / first["steady_photos_per_s"] / n_workers
            print(f"stand-in, {n_workers} workers: {whole:.1f} s, {steady:.1f} photos/s once started", flush=True)
    return {"n_photos": n_photos, "workers": rows}


def real(files: list[Path], n_photos: int, rounds: int) -> dict[str, Any]:
    """The shipped backbone: one process and the cluster in turn, on the same files."""
    asked = [files[i % len(files)] for i in range(n_photos)]
    embedder = open_embedder(EmbedderChoice())
    n_cores = len(os.sched_getaffinity(0))
    alone, spread = [], []
    with machines(num_cpus=n_cores) as (address, _), Cluster(address, opener=open_as) as cluster:
        list(cluster.embed_photos(embedder, asked[:64]))  # what a machine prepares once is not counted, for either
        for number in range(rounds):
            alone.append(timed(embedder.embed_photos(asked, n_photos=n_photos)))
            spread.append(timed(cluster.embed_photos(embedder, asked)))
            print(
                f"shipped backbone, round {number + 1}: {alone[-1][1]:.1f} photos/s alone, {spread[-1][1]:.1f} spread"
            )
    whole = [median(each[0] for each in runs) for runs in (alone, spread)]
    steady = [median(each[1] for each in runs) for runs in (alone, spread)]
    return {
        "n_photos": n_photos,
        "rounds": rounds,
        "n_cores": n_cores,
        "alone_s": whole[0],
        "cluster_s": whole[1],
        "alone_photos_per_s": steady[0],
        "cluster_photos_per_s": steady[1],
        "ratio": whole[0] / whole[1],
        "steady_ratio": steady[1] / steady[0],
    }


def killed(support: Path, folder: Path) -> dict[str, Any]:
    """Enroll with two machines and kill one when the first class is in."""
    folders = class_folders(support)
    expected = {each.label: len(each.photos) for each in folders}
    n_at_kill = 0
    with machines(num_cpus=1) as (address, made), Cluster(address, opener=sleeping) as cluster:
        second = made.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        until = time.monotonic() + 60
        while cluster.n_cores() < 2 and time.monotonic() < until:
            time.sleep(0.1)
        n_seen = 0

        def count() -> None:
            nonlocal n_seen, second, n_at_kill
            n_seen += 1
            if second is not None and n_seen == 20:
                made.remove_node(second, allow_graceful=False)
                second, n_at_kill = None, n_seen

        with Gallery(folder, create=True, embedder=sleeping(EmbedderChoice(), STAND_IN)) as gallery:
            list(gallery.enroll(folders, cluster=cluster, on_photo=count))
            found = {each.label: each.supports for each in gallery.classes()}
            hashes = Counter(sha256 for _, photos in gallery.photo_hashes() for sha256 in photos.values())
            sound = not gallery.problems()
    complete = found == expected and sound and max(hashes.values()) == 1
    print(f"killed after {n_at_kill} of {sum(expected.values())} photos: {'complete' if complete else 'INCOMPLETE'}")
    return {"n_photos": sum(expected.values()), "n_at_kill": n_at_kill, "complete": complete}


def timed(outcomes: Iterable[object]) -> tuple[float, float]:
    """Seconds of the whole, and outcomes a second from the first on."""
    started = time.perf_counter()
    first, n = 0.0, 0
    for outcome in outcomes:
        assert isinstance(outcome, EmbeddedPhoto), outcome
        n += 1
        first = first or time.perf_counter()
    ended = time.perf_counter()
    return ended - started, (n - 1) / (ended - first)


@contextmanager
def machines(num_cpus: int) -> Iterator[tuple[str, Any]]:
    """A cluster of one machine, which may get more: its address, and what adds them."""
    from ray.cluster_utils import Cluster as Machines

    settings = {"num_cpus": num_cpus, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    made = Machines(initialize_head=True, head_node_args=settings)
    try:
        yield made.address, made
    finally:
        made.shutdown()


if __name__ == "__main__":
    # Workers find the stand-in's opener by the name of its module, not as part of a script.
    import ray_scale

    ray_scale.main()
