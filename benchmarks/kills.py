"""SIGKILL at random moments of an enrolment: is the index sound, and is every class whole or absent?

    python benchmarks/kills.py [--kills 200] [--seed 0]

Each round starts `fewshot enroll --each` on rendered leaves into the same, growing index, kills the process at a random
moment of its life, and then checks the index: it opens, SQLite's own check and all checksums hold, and each class has
all of its photos or is not there. When all classes are in, they are removed again and the rounds go on.
"""

import argparse
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from common import FEWSHOT, fewshot, json_lines, keep

from fewshot.gallery import Gallery
from fewshot.samples import write_samples

N_PHOTOS = 6


def main() -> None:
    """Kill, check, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    n_killed = n_finished = n_damaged = n_half = n_between = 0
    with tempfile.TemporaryDirectory() as folder:
        photos, index = Path(folder) / "photos", Path(folder) / "index"
        write_samples(photos, n_support=N_PHOTOS, n_query=1, seed=given.seed)
        fewshot("enroll", "--each", photos / "support", index=index)
        lifetime_s = _lifetime(photos, index)
        while n_killed < given.kills:
            process = subprocess.Popen(
                [FEWSHOT, "enroll", "--each", photos / "support", "--index", index],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            # Half of the kills fall anywhere in a run, half into its last part, where classes are written.
            start = rng.choice((0.0, 0.6))
            time.sleep(rng.uniform(start, 1.1) * lifetime_s)
            process.send_signal(signal.SIGKILL)
            if process.wait() == -signal.SIGKILL:
                n_killed += 1
            else:
                n_finished += 1
            with Gallery(index) as gallery:
                n_damaged += bool(gallery.problems())
                counts = {each.label: each.supports for each in gallery.classes()}
                n_half += sum(count != N_PHOTOS for count in counts.values())
                n_between += 0 < len(counts) < 6
                if len(counts) == 6:
                    for label in counts:
                        gallery.remove(label)
        fewshot("enroll", "--each", photos / "support", index=index)
        whole = json_lines(fewshot("classes", index=index).stdout)
    assert [each["supports"] for each in whole] == [N_PHOTOS] * 6, whole
    result = {
        "kills": n_killed,
        "runs_that_ended_first": n_finished,
        "indexes_damaged": n_damaged,
        "half_classes": n_half,
        "kills_between_two_classes": n_between,
    }
    print("\n".join(f"{name:28} {value}" for name, value in result.items()))
    keep("kills", result)


def _lifetime(photos: Path, index: Path) -> float:
    """How long an enrolment of all classes takes, in seconds."""
    with Gallery(index) as gallery:
        for each in gallery.classes():
            gallery.remove(each.label)
    return fewshot("enroll", "--each", photos / "support", index=index).wall_s


if __name__ == "__main__":
    main()
