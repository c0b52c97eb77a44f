"""A service under mixed load for an hour, killed every minute: is an acknowledged write ever lost, does memory grow?

    python benchmarks/soak_service.py [--minutes 60] [--kill-every 60] [--seed 0]

Two services hold the same index of rendered leaves. One is killed with SIGKILL at a random moment of every minute and
started again; the other runs all the time, and its memory is what is watched. Two writers, one a service, enroll,
replace, rename and remove photos of classes of their own and know what each class must hold; a change whose answer a
kill cut off may be there or not, anything else is a loss. Both also ask about photos that they have just enrolled: the
nearest photo must be that photo. Two more clients only ask. Every five minutes a backup is taken meanwhile and checked.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from common import FEWSHOT, keep, memory_mb, run

from fewshot.backup import chosen_backup, restore
from fewshot.gallery import Gallery
from fewshot.samples import write_samples

N_CLASSES, N_A_CLASS = 5, 10
PAUSE_S = 0.25  # between two requests of one client
BACKUP_EVERY_S = 300.0
UP_TIMEOUT_S = 120.0


class Server:
    """A `fewshot serve` that can be killed and started again."""

    def __init__(self, index: Path) -> None:
        self._index = index
        self.up = threading.Event()
        self.n_starts = 0
        self.start()

    def start(self) -> None:
        """Start, and wait until it answers."""
        command = [str(FEWSHOT), "serve", "--index", str(self._index), "--port", "0", "--json"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.url = json.loads(self.process.stdout.readline())["url"]
        self.n_starts += 1
        self.up.set()

    def kill(self) -> None:
        """SIGKILL."""
        self.up.clear()
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """As an administrator would."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def memory_mb(self) -> float:
        """What the process holds."""
        return memory_mb(self.process.pid)


@dataclass
class Seen:
    """What all clients saw."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    statuses: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    n_unanswered: int = 0
    n_checks: int = 0
    n_asked_back: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unforeseen: list[str] = field(default_factory=list)


class Client(threading.Thread):
    """One that talks to a service until it is told to stop; what its own code raises is kept."""

    def __init__(self, server: Server, seen: Seen, stop: threading.Event, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self.server, self.seen, self.stop_event, self.rng = server, seen, stop, rng
        self._http = httpx.Client(timeout=60)

    def run(self) -> None:
        """Go on until told to stop."""
        while not self.stop_event.is_set():
            try:
                self.step()
            except Exception as error:
                with self.seen.lock:
                    self.seen.unforeseen.append(f"{type(error).__name__}: {error}")
            time.sleep(PAUSE_S * self.rng.uniform(0.5, 1.5))

    def step(self) -> None:
        """One request or a few."""
        raise NotImplementedError

    def send(self, method: str, path: str, **what: Any) -> httpx.Response | None:
        """The answer; None where the service was killed before it answered."""
        if not self.server.up.wait(UP_TIMEOUT_S):
            raise TimeoutError("the service did not come back")
        try:
            answer = self._http.request(method, self.server.url + path, **what)
        except httpx.TransportError:
            with self.seen.lock:
                self.seen.n_unanswered += 1
            return None
        with self.seen.lock:
            self.seen.statuses[str(answer.status_code)] += 1
            if answer.status_code >= 500 and answer.status_code != 503:
                self.seen.unforeseen.append(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer


def upload(photos: list[Path]) -> list[tuple[str, tuple[str, bytes]]]:
    """The photos as a form."""
    return [("photos", (photo.name, photo.read_bytes())) for photo in photos]


class Asker(Client):
    """Asks about photos."""

    def __init__(self, *arguments: Any, photos: list[Path]) -> None:
        super().__init__(*arguments)
        self._photos = photos

    def step(self) -> None:
        """One question of one to four photos, or a look at the classes."""
        if self.rng.random() < 0.2:
            self.send("GET", self.rng.choice(["/v1/classes", "/v1/projection", "/v1/health/ready"]))
            return
        photos = self.rng.sample(self._photos, self.rng.randint(1, 4))
        answer = self.send("POST", "/v1/query", files=upload(photos))
        if answer is not None and answer.status_code == 200:
            told = [each["file"] for each in answer.json()["predictions"]]
            if told != [photo.name for photo in photos]:
                with self.seen.lock:
                    self.seen.wrong.append(f"asked {[photo.name for photo in photos]}, answered {told}")


class Writer(Client):
    """Changes classes of its own and knows what they must hold: label -> file name -> support id."""

    def __init__(self, *arguments: Any, name: str, word: str, photos: list[Path]) -> None:
        super().__init__(*arguments)
        self._owner = name
        self._headers = {"Authorization": f"Bearer {word}"}
        self._free = {photo.name: photo for photo in photos}
        self._used: dict[str, Path] = {}
        self.holds: dict[str, set[str]] = {}
        self.acknowledged: dict[int, str] = {}  # support id -> file, of what is there by its acknowledgement
        self.ever_removed: set[int] = set()
        self._n_starts = arguments[0].n_starts
        self._n_labels = 0

    def step(self) -> None:
        """A change, and now and then a look at everything; always a look behind a restart."""
        if self._n_starts != self.server.n_starts or self.rng.random() < 0.02:
            self._n_starts = self.server.n_starts
            self.check()
        if self.holds and self.rng.random() < 0.3:
            self._ask_back()
            return
        wanted = {label: set(files) for label, files in self.holds.items()}
        action, method, path, what = self._chosen(wanted)
        answer = self.send(method, path, headers=self._headers, **what)
        if answer is None or answer.status_code == 503:
            self._settle(wanted, action)
            return
        if answer.status_code not in (200, 201):
            with self.seen.lock:
                self.seen.unforeseen.append(f"{action}: {answer.status_code} {answer.text[:300]}")
            return
        with self.seen.lock:
            self.seen.changes[action] += 1
        self._became(wanted)

    def _chosen(self, wanted: dict[str, set[str]]) -> tuple[str, str, str, dict[str, Any]]:
        """A change: what it is called, its request, and in `wanted` what must follow from it."""
        label = self.rng.choice(sorted(wanted)) if wanted else ""
        kind = self.rng.choice(["enroll"] * 5 + ["replace", "rename", "remove photo", "remove photo", "remove"])
        photos = [self._free[name] for name in self.rng.sample(sorted(self._free), self.rng.randint(1, 3))]
        names = {photo.name for photo in photos}
        if kind == "remove" and len(wanted) == N_CLASSES:
            del wanted[label]
            return kind, "DELETE", f"/v1/classes/{label}", {}
        if kind == "rename" and wanted:
            self._n_labels += 1
            new = f"{self._owner}-{self._n_labels}"
            wanted[new] = wanted.pop(label)
            return kind, "PATCH", f"/v1/classes/{label}", {"json": {"label": new}}
        if kind == "replace" and wanted:
            wanted[label] = names
            return kind, "PUT", f"/v1/classes/{label}", {"files": upload(photos)}
        if label and (len(wanted[label]) >= N_A_CLASS or (kind == "remove photo" and len(wanted[label]) > 1)):
            name = self.rng.choice(sorted(wanted[label]))
            wanted[label].discard(name)
            support_id = next(i for i, file in self.acknowledged.items() if file == name)
            return "remove photo", "DELETE", f"/v1/supports/{support_id}", {}
        if (len(wanted) < N_CLASSES and self.rng.random() < 0.5) or not wanted:
            self._n_labels += 1
            label = f"{self._owner}-{self._n_labels}"
        wanted.setdefault(label, set()).update(names)
        return "enroll", "POST", f"/v1/classes/{label}/supports", {"files": upload(photos)}

    def _became(self, wanted: dict[str, set[str]]) -> None:
        """Take a change as made, and learn the ids of what is new."""
        everything = {**self._free, **self._used}
        self.holds = wanted
        names = set().union(*wanted.values()) if wanted else set()
        self._used = {name: everything[name] for name in names}
        self._free = {name: path for name, path in everything.items() if name not in names}
        there = self._listed()
        if there is not None:
            self._compare(there)
        else:  # killed just now: what went with this change is not asked back before the next look
            gone = {support_id for support_id, file in self.acknowledged.items() if file not in names}
            self.ever_removed |= gone
            self.acknowledged = {i: file for i, file in self.acknowledged.items() if i not in gone}

    def _settle(self, wanted: dict[str, set[str]], action: str) -> None:
        """A change without an answer: there as a whole or not at all."""
        there = None
        while there is None and not self.stop_event.is_set():
            there = self._listed()
        if there is None:
            return
        found = {label: set(photos) for label, photos in there.items()}
        if found == wanted:
            with self.seen.lock:
                self.seen.changes[f"{action}, unanswered but made"] += 1
            self._became(wanted)
        else:
            self._compare(there)

    def _listed(self) -> dict[str, dict[str, int]] | None:
        """What the service says of the writer's own classes: label -> file -> support id."""
        answer = self.send("GET", "/v1/classes")
        if answer is None or answer.status_code != 200:
            return None
        found = {}
        for label in [each["label"] for each in answer.json()["classes"]]:
            if label.startswith(f"{self._owner}-"):
                shown = self.send("GET", f"/v1/classes/{label}")
                if shown is None or shown.status_code != 200:
                    return None
                found[label] = {photo["file"]: photo["support_id"] for photo in shown.json()["photos"]}
        return found

    def _compare(self, there: dict[str, dict[str, int]]) -> None:
        found = {label: set(photos) for label, photos in there.items()}
        with self.seen.lock:
            self.seen.n_checks += 1
            if found != self.holds:
                self.seen.lost.append(f"wanted {self.holds}, found {found}")
        ids = {support_id: file for photos in there.values() for file, support_id in photos.items()}
        self.ever_removed |= set(self.acknowledged) - set(ids)
        self.acknowledged = ids
        if found != self.holds:  # told once, then taken as it is
            self.holds = found

    def check(self) -> None:
        """Hold everything against the service."""
        there = self._listed()
        if there is not None:
            self._compare(there)

    def _ask_back(self) -> None:
        support_id = self.rng.choice(sorted(self.acknowledged))
        name = self.acknowledged[support_id]
        answer = self.send("POST", "/v1/query", files=upload([self._used[name]]))
        if answer is None or answer.status_code != 200:
            return
        nearest = answer.json()["predictions"][0]["nearest"]
        with self.seen.lock:
            self.seen.n_asked_back += 1
            if not nearest or nearest[0]["support_id"] != support_id or nearest[0]["similarity"] < 0.999:
                self.seen.wrong.append(f"photo {name} ({support_id}) has nearest {nearest[:1]}")


def backed_up(index: Path, work: Path, writers: list[Writer]) -> str | None:
    """Take a backup while all go on and hold it against what was acknowledged before; what is wrong with it."""
    before = {i for writer in writers for i in list(writer.acknowledged)}
    run(FEWSHOT, "backup", work / "backups", "--index", index)
    time.sleep(2)  # what was removed meanwhile is known to its writer by then
    removed = {i for writer in writers for i in list(writer.ever_removed)}
    target = work / f"restored-{time.monotonic_ns()}"
    restore(chosen_backup(work / "backups"), target)
    with Gallery(target) as gallery:
        problems = gallery.problems()
        there = {each.support_id for row in gallery.classes() for each in gallery.supports(row.label)}
    lost = before - removed - there
    return f"backup: {problems}, lost {sorted(lost)}" if problems or lost else None


def main() -> None:
    """Load, kill, watch, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--kill-every", type=float, default=60, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        index = work / "index"
        photos = write_samples(work / "photos", n_support=60, n_query=20, seed=given.seed)
        run(FEWSHOT, "enroll", "--each", work / "photos" / "query", "--index", index)
        for photo in photos:  # the same leaf names stand in several classes
            photo.rename(photo.with_name(f"{photo.parent.name}-{photo.name}"))
        support = sorted((work / "photos" / "support").rglob("*.jpg"))
        word = json.loads(run(FEWSHOT, "token", "create", "soak", "--index", index, "--json").stdout)["token"]
        killed, steady = Server(index), Server(index)
        seen, stop = Seen(), threading.Event()
        writers = []
        for number, (name, server) in enumerate((("killed", killed), ("steady", steady))):
            mine = support[number::2]
            client_rng = random.Random(rng.random())
            writers.append(Writer(server, seen, stop, client_rng, name=name, word=word, photos=mine))
        query = sorted((work / "photos" / "query").rglob("*.jpg"))
        askers = [Asker(each, seen, stop, random.Random(rng.random()), photos=query) for each in (killed, steady)]
        for client in (*writers, *askers):
            client.start()
        memory, n_kills, n_backups, load = _driven(given, rng, killed, steady, index, work, writers, seen)
        stop.set()
        for client in (*writers, *askers):
            client.join(90)
        for writer in writers:
            writer.check()
        steady.stop()
        killed.stop()
        with Gallery(index) as gallery:
            problems = gallery.problems()
    result = {
        "minutes": given.minutes,
        "kills": n_kills,
        "statuses": dict(seen.statuses),
        "changes": dict(sorted(seen.changes.items())),
        "requests_cut_off": seen.n_unanswered,
        "checks_of_everything": seen.n_checks,
        "photos_asked_back": seen.n_asked_back,
        "backups": n_backups,
        "lost": seen.lost,
        "wrong_answers": seen.wrong,
        "unforeseen": seen.unforeseen,
        "problems_at_the_end": problems,
        "memory": _memory(memory),
        "load_average": load,
    }
    print(json.dumps({name: value for name, value in result.items() if name != "memory"}, indent=1))
    print(json.dumps({name: value for name, value in result["memory"].items() if name != "every_minute_mb"}))
    keep("soak-service", result)


def _driven(
    given: argparse.Namespace,
    rng: random.Random,
    killed: Server,
    steady: Server,
    index: Path,
    work: Path,
    writers: list[Writer],
    seen: Seen,
) -> tuple[list[tuple[float, float]], int, int, list[float]]:
    """The hour: memory of the steady service by second, kills and backups done, and how loaded the machine was."""
    started = time.monotonic()
    memory: list[tuple[float, float]] = []
    load: list[float] = []
    n_kills = n_backups = 0
    kill_at, backup_at, told_at = rng.uniform(0.2, 0.9) * given.kill_every, 30.0, 0.0
    while (now := time.monotonic() - started) < 60 * given.minutes:
        memory.append((now, steady.memory_mb()))
        if now >= kill_at:
            killed.kill()
            n_kills += 1
            killed.start()
            minute = int(kill_at // given.kill_every) + 1
            kill_at = (minute + rng.uniform(0.2, 0.9)) * given.kill_every
        if now >= backup_at:
            wrong = backed_up(index, work, writers)
            n_backups += 1
            backup_at += BACKUP_EVERY_S
            if wrong:
                seen.lost.append(wrong)
        if now >= told_at:
            load.append(round(os.getloadavg()[0], 1))
            n_changes = sum(seen.changes.values())
            print(
                f"{now / 60:5.1f} of {given.minutes:g} min: {n_kills} kills, {n_changes} changes, "
                f"{len(seen.lost)} lost, {len(seen.wrong)} wrong, {len(seen.unforeseen)} unforeseen, "
                f"{memory[-1][1]:.0f} MB",
                flush=True,
            )
            told_at += 60
        time.sleep(1)
    return memory, n_kills, n_backups, load


def _memory(samples: list[tuple[float, float]]) -> dict[str, Any]:
    """Medians a minute, and the slope of the second half, when everything is warm."""
    seconds, megabytes = np.array(samples).T
    late = seconds >= seconds[-1] / 2
    slope = float(np.polyfit(seconds[late] / 3600, megabytes[late], 1)[0])
    minutes = (seconds // 60).astype(int)
    return {
        "every_minute_mb": [round(float(np.median(megabytes[minutes == m])), 1) for m in np.unique(minutes)],
        "second_half_mb_an_hour": round(slope, 2),
        "most_mb": round(float(megabytes.max()), 1),
    }


if __name__ == "__main__":
    main()
