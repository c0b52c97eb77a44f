"""Three services over one PostgreSQL: one killed, the database killed, one cut off, all under load.

    python benchmarks/replicas.py [--seconds 15]

Two writers enroll rendered leaves one at a time and three readers ask, each through whichever replica it comes to; told
503, or refused a connection, a client goes to the next one. What was acknowledged is looked for at the end. The replica
that is cut off runs in a network namespace of its own, whose link to the database is taken down for 10 s: packets
vanish, nobody is told. That needs root; otherwise the part is left out, and the result says so.
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median

from common import FEWSHOT, ROOT, fewshot, keep, run
from service_clients import BOUNDARY, request_bytes

sys.path.insert(0, str(ROOT / "tests"))
from postgres_server import DATABASE, PostgresServer

from fewshot.samples import write_samples

NETWORK, SPACE, LINK = "10.77", "fewshot-bench", "fsdb0"
N_WRITERS, N_READERS = 2, 3
TIMEOUT_S = 20.0
CUT_S, DOWN_S = 10.0, 2.0
GIVE_UP_S = 120.0


class Replica:
    """A `fewshot serve`, here or in the namespace."""

    def __init__(self, name, index, host="127.0.0.1", before=()):
        self.name, self._host = name, host
        self._words = [*before, FEWSHOT, "serve", "--index", index, "--host", host, "--port", "0", "--json", "--rate"]
        self._words += ["0", "--no-read-token"]
        self.url = ""

    def start(self):
        """Start it, and wait until it can be asked."""
        self.process = subprocess.Popen(
            [str(word) for word in self._words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.url = json.loads(self.process.stdout.readline())["url"]

    def ask(self, path, photo=None, word=None, timeout_s=TIMEOUT_S):
        """Status and JSON of a request; a failed connection has the status 0."""
        headers = {"Authorization": f"Bearer {word}"} if word else {}
        body = None
        if photo is not None:
            headers["Content-Type"] = f"multipart/form-data; boundary={BOUNDARY}"
            body = request_bytes(self._host, photo).split(b"\r\n\r\n", 1)[1]
        try:
            asked = urllib.request.Request(self.url + path, body, headers)
            with urllib.request.urlopen(asked, timeout=timeout_s) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except (OSError, ValueError):
            return 0, None


class Load:
    """Writers and readers that note what they were told, and when."""

    def __init__(self, replicas, word, new, known):
        self._replicas, self._word, self._known = replicas, word, known
        self._new = iter(new)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.acknowledged = set()  # content hashes
        self.answered = []  # (when, kind, replica, status, seconds)
        self.operations = Counter()
        self._threads = [threading.Thread(target=self._write, args=[n]) for n in range(N_WRITERS)]
        self._threads += [threading.Thread(target=self._read, args=[n]) for n in range(N_READERS)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _until_done(self, kind, first, path, photo):
        """Go round the replicas until one has done it."""
        began, n = time.monotonic(), first
        while time.monotonic() - began < GIVE_UP_S:
            replica = self._replicas[n % len(self._replicas)]
            started = time.monotonic()
            status, _ = replica.ask(path, photo, self._word if kind == "enroll" else None)
            with self._lock:
                self.answered.append((time.monotonic(), kind, replica.name, status, time.monotonic() - started))
            if status in (200, 201):
                with self._lock:
                    self.operations[f"{kind}, {'at once' if n == first else 'retried'}"] += 1
                    if kind == "enroll":
                        self.acknowledged.add(hashlib.sha256(photo.read_bytes()).hexdigest())
                return
            n += 1
            if (n - first) % len(self._replicas) == 0:
                time.sleep(0.2)  # all have been asked
        with self._lock:
            self.operations[f"{kind}, given up"] += 1

    def _write(self, n):
        while not self._stop.is_set():
            with self._lock:
                photo = next(self._new, None)
            if photo is None:
                return
            self._until_done("enroll", n, f"/v1/classes/{photo.parent.name}/supports", photo)
            n += 1

    def _read(self, n):
        while not self._stop.is_set():
            self._until_done("query", n, "/v1/query", self._known[n % len(self._known)])
            n += 1

    def statuses(self, since, until):
        """How often each status was met by each kind of request in a span of time."""
        with self._lock:
            met = Counter((kind, status) for when, kind, _, status, _ in self.answered if since <= when < until)
        return {f"{kind} {status or 'no connection'}": n for (kind, status), n in sorted(met.items())}

    def longest_gap_s(self, kind, since, until, replicas=None):
        """The longest time without a success of this kind."""
        with self._lock:
            done = [
                when
                for when, each, name, status, _ in self.answered
                if each == kind and status in (200, 201) and since <= when < until and name in (replicas or {name})
            ]
        marks = [since, *sorted(done), until]
        return max(later - earlier for earlier, later in pairwise(marks))

    def slowest_s(self, since, until):
        """The longest that a request of any kind waited for its answer."""
        with self._lock:
            return max((seconds for when, *_, seconds in self.answered if since <= when < until), default=0.0)


def seconds_until(condition, timeout_s=90.0):
    """How long until it holds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            sys.exit("error: it did not come true in time.")
        time.sleep(0.02)
    return time.monotonic() - began


def spreading(replicas, word, photos):
    """Each photo enrolled through one replica: how soon the others find it, and whether the first question did."""
    seconds, n_at_once = [], 0
    for n, photo in enumerate(photos):
        status, body = replicas[n % len(replicas)].ask(f"/v1/classes/{photo.parent.name}/supports", photo, word)
        assert status == 201, (status, body)
        (support_id,) = body["support_ids"]
        for other in replicas[: n % len(replicas)] + replicas[n % len(replicas) + 1 :]:
            told, n_asked, found = time.monotonic(), 0, False
            while not found:
                status, body = other.ask("/v1/query", photo)
                assert status == 200, (status, body)
                n_asked += 1
                found = support_id in {near["support_id"] for near in body["predictions"][0]["nearest"]}
                assert time.monotonic() - told < 30, "it never arrived"
            n_at_once += n_asked == 1
            seconds.append(time.monotonic() - told)
    return {"n": len(seconds), "by_the_first_question": n_at_once, "median": median(seconds), "longest": max(seconds)}


@contextmanager
def namespace():
    """A network of its own with two links to this one: to the database, and for clients. None where not permitted."""
    if os.geteuid() != 0 or subprocess.run(["ip", "netns", "add", SPACE], capture_output=True, check=False).returncode:
        yield None
        return
    try:
        for number, link in enumerate((LINK, "fsweb0"), 1):
            here, there = f"{NETWORK}.{number}.1/30", f"{NETWORK}.{number}.2/30"
            inside = ["ip", "-n", SPACE]
            for words in (
                ["ip", "link", "add", link, "type", "veth", "peer", "name", f"{link}n", "netns", SPACE],
                ["ip", "addr", "add", here, "dev", link],
                ["ip", "link", "set", link, "up"],
                [*inside, "addr", "add", there, "dev", f"{link}n"],
                [*inside, "link", "set", f"{link}n", "up"],
                [*inside, "link", "set", "lo", "up"],
            ):
                subprocess.run(words, check=True)
        yield SPACE
    finally:
        subprocess.run(["ip", "netns", "del", SPACE], check=False)
        for link in (LINK, "fsweb0"):
            subprocess.run(["ip", "link", "del", link], capture_output=True, check=False)


def phase(load, replicas, seconds, act, others):
    """Let the load run, do something to it, let it run on; what clients met, and for how long."""
    time.sleep(seconds / 3)
    began = time.monotonic()
    result = act()
    time.sleep(seconds)
    ended = time.monotonic()
    return {
        **result,
        "answers": load.statuses(began, ended),
        "longest_without_an_enrolment_s": load.longest_gap_s("enroll", began, ended),
        "longest_without_an_answer_s": load.longest_gap_s("query", began, ended),
        "longest_without_an_answer_by_the_others_s": load.longest_gap_s("query", began, ended, others),
        "slowest_request_s": load.slowest_s(began, ended),
        "seconds": ended - began,
    }


def measure(server, folder, seconds, space):
    """All phases, with the same three replicas."""
    server.execute("SELECT 1")
    write_samples(folder / "leaves", n_support=10, n_query=2, seed=0)
    write_samples(folder / "new", n_support=80, n_query=1, seed=1)
    first = sorted((folder / "new" / "query").glob("*/*.jpg"))
    new = sorted((folder / "new" / "support").glob("*/*.jpg"), key=lambda path: path.name[-7:])
    known = sorted((folder / "leaves" / "query").glob("*/*.jpg"))
    index = server.url(DATABASE)
    fewshot("enroll", "--each", folder / "leaves" / "support", index=index)
    word = json.loads(run(FEWSHOT, "token", "create", "bench", "--index", index, "--json").stdout)["token"]
    replicas = [Replica("a", index), Replica("b", index)]
    if space:
        far = index.replace("127.0.0.1", f"{NETWORK}.1.1")
        replicas.append(Replica("c", far, f"{NETWORK}.2.2", ("ip", "netns", "exec", space)))
    else:
        replicas.append(Replica("c", index))
    result = {"cut": "network namespace, link down" if space else "left out: it needs root"}
    try:
        for replica in replicas:
            replica.start()
        for replica in replicas:
            seconds_until(lambda replica=replica: replica.ask("/v1/health/ready")[0] == 200)
            replica.ask("/v1/query", known[0])
        result["spread_s"] = spreading(replicas, word, first)
        print(json.dumps(result), flush=True)
        with Load(replicas, word, new, known) as load:

            def kill_replica():
                replicas[1].process.send_signal(signal.SIGKILL)
                replicas[1].process.wait()
                time.sleep(DOWN_S)
                began = time.monotonic()
                replicas[1].start()
                seconds_until(lambda: replicas[1].ask("/v1/query", known[0])[0] == 200)
                return {"down_s": DOWN_S, "from_start_to_first_answer_s": time.monotonic() - began}

            def kill_database():
                server.kill()
                down = time.monotonic()
                time.sleep(DOWN_S)
                server.start()
                up = time.monotonic()
                with ThreadPoolExecutor(len(replicas)) as threads:
                    seconds = list(threads.map(lambda replica: down_until(replica, up), replicas))
                back = {replica.name: each for replica, each in zip(replicas, seconds, strict=True)}
                return {"down_s": up - down, "from_start_to_first_answer_s": back}

            def down_until(replica, up):
                seconds_until(lambda: replica.ask("/v1/query", known[0])[0] == 200)
                return time.monotonic() - up

            def cut():
                subprocess.run(["ip", "link", "set", LINK, "down"], check=True)
                began = time.monotonic()
                refused = None
                while time.monotonic() - began < CUT_S:
                    status, _ = replicas[2].ask("/v1/query", known[0])
                    if status == 503 and refused is None:
                        refused = time.monotonic() - began
                    time.sleep(0.05)
                subprocess.run(["ip", "link", "set", LINK, "up"], check=True)
                linked = time.monotonic()
                seconds_until(lambda: replicas[2].ask("/v1/query", known[0])[0] == 200)
                return {
                    "cut_s": linked - began,
                    "until_it_says_503_s": refused,
                    "from_link_to_first_answer_s": time.monotonic() - linked,
                }

            result["replica killed"] = phase(load, replicas, seconds, kill_replica, {"a", "c"})
            print(json.dumps(result["replica killed"]), flush=True)
            result["database killed"] = phase(load, replicas, seconds, kill_database, {"a", "b", "c"})
            print(json.dumps(result["database killed"]), flush=True)
            if space:
                result["replica cut off"] = phase(load, replicas, seconds, cut, {"a", "b"})
                print(json.dumps(result["replica cut off"]), flush=True)
        result |= verdict(server, replicas, load, known)
        result["operations"] = dict(sorted(load.operations.items()))
    finally:
        for replica in replicas:
            if getattr(replica, "process", None) is not None and replica.process.poll() is None:
                replica.process.terminate()
                replica.process.wait(60)
    return result


def verdict(server, replicas, load, known):
    """What was lost, what was doubled, and whether all replicas say the same."""
    there = {row[0] for row in server.execute("SELECT sha256 FROM supports", database=DATABASE)}
    hashes = server.execute("SELECT count(*), count(DISTINCT sha256) FROM supports", database=DATABASE)[0]
    said = []
    for replica in replicas:
        rows = [replica.ask("/v1/query", photo)[1]["predictions"][0] for photo in known]
        said.append([(row["answer"], [match["label"] for match in row["matches"]]) for row in rows])
    unforeseen = sorted({status for *_, status, _ in load.answered} - {0, 200, 201, 503})
    problems = fewshot("doctor", index=server.url(DATABASE), check=False).stdout
    return {
        "acknowledged": len(load.acknowledged),
        "lost": len(load.acknowledged - there),
        "doubled": hashes[0] - hashes[1],
        "replicas_agree": all(each == said[0] for each in said),
        "other_statuses": unforeseen,
        "problems": json.loads(problems)["index"]["problems"],
    }


def main():
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0)
    given = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        space = stack.enter_context(namespace())
        server = PostgresServer("max_wal_size=256MB", trusted=(f"{NETWORK}.0.0/16",))
        stack.callback(server.stop)
        result = measure(server, folder, given.seconds, space)
    print(json.dumps(result, indent=1))
    keep("replicas", result)


if __name__ == "__main__":
    main()
