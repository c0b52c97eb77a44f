"""The program under faults: killed, refused or failing at any of the system calls with which it writes.

Commands run in forked children of a process that has imported everything, with the colour embedder in place of a
backbone. strace holds such a child, counts its writing system calls and, at the chosen one, kills it or lets the call
fail. Used by test_faults.py for a few points and by benchmarks/campaign_faults.py for all of them.
"""

import json
import mmap
import os
import pickle
import shutil
import signal
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conftest import LEAF_COLOURS, colour_embedder, write_leaf

import fewshot.cli.backup
import fewshot.cli.classes
import fewshot.cli.enroll
import fewshot.cli.query
import fewshot.cli.reindex
import fewshot.cli.serve
import fewshot.gallery.enrolling
import fewshot.gallery.pinning
import fewshot.gallery.repair
from fewshot.cli.main import main, show_error
from fewshot.datasets import class_folder
from fewshot.errors import FewshotError, IndexMissingError
from fewshot.gallery import Gallery

# Every call with which the program, SQLite and faiss change files; what is written through a mapping (SQLite's shared
# memory) does not outlast a process and is no step.
WRITES = "pwrite64,write,pwritev,writev"
STEPS = f"{WRITES},fsync,fdatasync,ftruncate,fallocate,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir"
LABELS = sorted(LEAF_COLOURS)
STDOUT_BYTES = 1 << 20
OPENING = (fewshot.gallery.pinning, fewshot.gallery.repair)  # the modules that open an index's embedder

Content = dict[str, Any]


@dataclass(frozen=True)
class Scenario:
    """A command, what there is before it, and which states of the index it may leave.

    Attributes:
        before: commands that make what there is before it.
        words: the command, with `{folder}` for the folder that all of it is in.
        by_class: it commits a class at a time and says so.
        again_is_refused: done a second time, it has nothing to do and says so with exit code 2.
        makes: a backup beside the index that it makes.
    """

    name: str
    before: tuple[tuple[str, ...], ...]
    words: tuple[str, ...]
    by_class: bool = False
    again_is_refused: bool = False
    makes: str | None = None


ENROLL = ("enroll", "--each", "{folder}/photos")
BACKUP = ("backup", "{folder}/kept/first.backup")
SCENARIOS = [
    Scenario("enroll into a new index", (), ENROLL, by_class=True),
    Scenario("enroll more", (ENROLL,), ("enroll", "--each", "{folder}/more"), by_class=True),
    Scenario("enroll --strict", (ENROLL,), ("enroll", "--strict", "--each", "{folder}/more")),
    Scenario("remove", (ENROLL,), ("remove", "rust"), again_is_refused=True),
    Scenario("rename", (ENROLL,), ("rename", "rust", "leaf rust"), again_is_refused=True),
    Scenario("replace (as PUT does)", (ENROLL,), ("replace", "rust", "{folder}/more/rust")),
    Scenario("remove one photo", (ENROLL,), ("remove-photo", "rust-0.png"), again_is_refused=True),
    Scenario("reindex", (ENROLL,), ("reindex", "--backbone", "colours-32")),
    Scenario("query (writes caches)", (ENROLL,), ("query", "{folder}/photos/rust")),
    Scenario("backup", (ENROLL,), BACKUP, makes="kept/first.backup"),
    Scenario(
        "restore", (ENROLL, BACKUP, ("forget",)), ("restore", "{folder}/kept/first.backup"), again_is_refused=True
    ),
    Scenario(
        "restore --replace",
        (ENROLL, BACKUP, ("remove", "rust")),
        ("restore", "{folder}/kept/first.backup", "--replace"),
    ),
    Scenario("token create", (ENROLL,), ("token", "create", "phone"), again_is_refused=True),
]


@dataclass
class Outcome:
    """How a run ended: its exit code (negative: a signal), what it said, and an exception that nothing caught."""

    code: int
    lines: list[dict[str, Any]] = field(default_factory=list)
    unhandled: str | None = None


def patch() -> None:
    """Put the colour embedder in place of backbones: in processes that tests start, never in the program."""

    def opened(choice: Any, *_: Any, source: Any = None, **__: Any) -> Any:
        name = choice.backbone or (source.name if source is not None else "colours")
        return colour_embedder(name, 32 if name.endswith("32") else 64)

    for module in OPENING:
        module.open_embedder = opened  # type: ignore[attr-defined]
        module.on_this_machine = lambda source: source  # type: ignore[attr-defined]


def write_photos(folder: Path) -> None:
    """Photos to enroll, and more of the same classes and of a new one."""
    for label in LABELS:
        for i in range(3):
            write_leaf(folder / "photos" / label / f"{label}-{i}.png", LEAF_COLOURS[label], i)
            write_leaf(folder / "more" / label / f"{label}-{i + 5}.png", LEAF_COLOURS[label], 50 + i)
    write_leaf(folder / "more" / "zebra" / "zebra-0.png", (10, 10, 220), 90)


# ---- children


def in_child(work: Callable[[], Any]) -> Any:
    """What a function gives, run in a fork."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            result = (True, work())
        except BaseException:
            result = (False, traceback.format_exc())
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(result, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    good, value = pickle.loads(answer)
    assert good, value
    return value


class _Sink:
    """stdout in memory shared with the parent: what is said there is known, but is no step."""

    encoding = "utf-8"

    def __init__(self, memory: mmap.mmap, also: int | None) -> None:
        self._memory, self._also = memory, also

    def write(self, text: str) -> int:
        self._memory.write(text.encode())
        if self._also is not None:
            os.write(self._also, b"said: " + text.encode())  # a call that a log of calls shows in its place
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def run(folder: Path, words: tuple[str, ...], strace: list[str] | None = None, *, log_said: bool = False) -> Outcome:
    """Run a command in a child, held by strace with these options, or by nothing."""
    memory = mmap.mmap(-1, STDOUT_BYTES)
    go_read, go_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(go_read, 1)
        said = os.open(os.devnull, os.O_WRONLY) if log_said else None
        _command(folder, words, memory, said)
    held = None
    if strace is not None:
        command = ["strace", "-f", "-p", str(child), *strace]
        held = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert held.stderr is not None
        line = held.stderr.readline()
        if "attached" not in line:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise RuntimeError(f"strace cannot hold a process here: {line}")
    os.write(go_write, b".")
    _, status = os.waitpid(child, 0)
    if held is not None:
        held.communicate()
    for end in (go_read, go_write):
        os.close(end)
    text = memory[:].rstrip(b"\0").decode()
    memory.close()
    lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    unhandled = next((line["unhandled"] for line in lines if "unhandled" in line), None)
    return Outcome(os.waitstatus_to_exitcode(status), lines, unhandled)


def _command(folder: Path, words: tuple[str, ...], memory: mmap.mmap, said: int | None) -> None:
    """The command, to the end of this process."""
    code = 0
    sys.stdout = sys.stderr = _Sink(memory, said)  # type: ignore[assignment]
    try:
        given = [word.replace("{folder}", str(folder)) for word in words]
        if given[0] == "forget":
            shutil.rmtree(folder / "index")
        elif given[0] in ("replace", "remove-photo"):
            _without_a_command(folder, given)
        else:
            # Not closed: what could not be written would be written once more.
            sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
            code = main([*given, "--index", str(folder / "index"), "--json"], standalone_mode=False) or 0
    except FewshotError as error:
        show_error(error, as_json=True)
        code = error.exit_code
    except BaseException:
        sys.stdout.write(json.dumps({"unhandled": traceback.format_exc()[-1500:]}) + "\n")
        code = 70
    os._exit(code if isinstance(code, int) else 1)


def _without_a_command(folder: Path, given: list[str]) -> None:
    """Changes that the service alone offers."""
    with Gallery(folder / "index") as gallery:
        if given[0] == "remove-photo":
            wanted = [each.support_id for each in gallery.supports("rust") if each.file == given[1]]
            gallery.remove_support(wanted[0] if wanted else 10**9)
        else:
            embedder = gallery.embedder()
            photos = class_folder(given[1], Path(given[2])).photos
            gallery.replace(given[1], list(embedder.embed_photos(photos, n_photos=len(photos), keep=True)), embedder)
    sys.stdout.write(json.dumps({"done": given[0]}) + "\n")


# ---- what an index holds


def looked_at(folder: Path) -> Content:
    """What there is after a run, in a child: classes, what is wrong, and whether a question is answered."""

    def look() -> Content:
        found: Content = {"classes": None, "fingerprint": None, "problems": []}
        try:
            with Gallery(folder / "index") as gallery:
                found["classes"] = {label: sorted(ids.values()) for label, ids in gallery.photo_hashes()}
                found["fingerprint"] = gallery.about().fingerprint
                found["problems"] = gallery.problems()
                if found["classes"]:
                    photo = sorted((folder / "photos").rglob("*.png"))[0]
                    (answer,) = gallery.query([photo])
                    if answer.answer not in (*found["classes"], "unknown"):
                        found["problems"].append(f"asked, it answers {answer.answer}")
                    ids = [each.support_id for label in found["classes"] for each in gallery.supports(label)]
                    if None in list(gallery.thumbnails(ids)):
                        found["problems"].append("a kept photo is missing")
        except IndexMissingError:
            pass
        return found

    return in_child(look)


def state(found: Content) -> tuple[Any, ...]:
    """What is compared: nothing there and nothing in it are one."""
    classes = found["classes"] or {}
    return json.dumps(classes, sort_keys=True), found["fingerprint"] if classes else None


def backup_problem(path: Path) -> str | None:
    """What is wrong with a backup that has its name; None where there is none or it is sound."""

    def look() -> str | None:
        from fewshot.backup import read_backup

        try:
            if path.exists():
                read_backup(path)
        except FewshotError as error:
            return error.message
        return None

    return in_child(look)


# ---- a scenario, made ready


@dataclass
class Ready:
    """A scenario with its folder before the command, the states that may follow, and its writing calls.

    strace counts each system call and each thread apart: a call is known by its name and its number among those.
    """

    scenario: Scenario
    template: Path
    states: list[tuple[Any, ...]]
    calls: list[tuple[str, int]]

    @property
    def n_steps(self) -> int:
        """How many writing calls the command makes."""
        return len(self.calls)


def made_ready(scenario: Scenario, work: Path, steps: str = STEPS) -> Ready:
    """Make what there is before a scenario, and run it once undisturbed."""
    template = work / "before"
    shutil.rmtree(work, ignore_errors=True)
    template.mkdir(parents=True)
    write_photos(template)
    for words in scenario.before:
        outcome = run(template, words)
        assert (outcome.code, outcome.unhandled) == (0, None), (words, outcome)
    before = looked_at(template)
    trial, log = work / "trial", work / "steps.log"
    shutil.copytree(template, trial)
    outcome = run(trial, scenario.words, ["-o", str(log), "-e", f"trace={steps}", "-e", "signal=none"])
    assert (outcome.code, outcome.unhandled) == (0, None), outcome
    calls = _calls(log.read_text().splitlines())
    after = looked_at(trial)
    assert before["problems"] == after["problems"] == [], (before, after)
    states = [state(before)]
    if scenario.by_class:
        so_far = dict(before["classes"] or {})
        for label in sorted(after["classes"]):
            if so_far.get(label) != after["classes"][label]:
                so_far[label] = after["classes"][label]
                states.append(state({"classes": so_far, "fingerprint": after["fingerprint"]}))
    else:
        states.append(state(after))
    shutil.rmtree(trial)
    return Ready(scenario, template, states, calls)


def _calls(lines: list[str]) -> list[tuple[str, int]]:
    """The calls in lines of strace (`PROCESS NAME(...`), each with its number among its thread's calls of that name."""
    counts: Counter[tuple[str, str]] = Counter()
    found = []
    for line in lines:
        thread, rest = line.split(maxsplit=1)
        name = rest.split("(", 1)[0]
        if name in STEPS.split(","):
            counts[thread, name] += 1
            found.append((name, counts[thread, name]))
    return found


def judged(ready: Ready, folder: Path, outcomes: list[Outcome], again: bool = True) -> list[str]:
    """What is wrong after runs that were disturbed: nothing lost, nothing half there, and it can be done again."""
    scenario, wrong = ready.scenario, []
    wrong += [f"unhandled: {outcome.unhandled}" for outcome in outcomes if outcome.unhandled is not None]
    found = looked_at(folder)
    wrong += [f"problem: {each}" for each in found["problems"]]
    if state(found) not in ready.states:
        wrong.append(f"half there: {found['classes']}")
    else:
        # Of equal states (a backup changes nothing) the last counts.
        place = len(ready.states) - 1 - ready.states[::-1].index(state(found))
        for outcome in outcomes:
            n_said = len([line for line in outcome.lines if "error" not in line and "unhandled" not in line])
            least = n_said if scenario.by_class else len(ready.states) - 1
            if n_said and place < min(least, len(ready.states) - 1):
                wrong.append(f"lost: {n_said} said, state {place}")
    if scenario.makes is not None:
        if (problem := backup_problem(folder / scenario.makes)) is not None:
            wrong.append(f"backup: {problem}")
        if any("verified" in line for outcome in outcomes for line in outcome.lines):
            wrong += [] if (folder / scenario.makes).exists() else ["lost: a backup that was verified"]
    if not again:
        return wrong
    last = run(folder, scenario.words)
    if last.unhandled is not None or (last.code != 0 and not (scenario.again_is_refused and last.code == 2)):
        wrong.append(f"again: {last}")
    after = looked_at(folder)
    if after["problems"] or state(after) != ready.states[-1]:
        wrong.append(f"done again: {after}")
    return wrong


def disturbed(ready: Ready, work: Path, *faults: str, again: bool = True) -> tuple[int, list[str]]:
    """Run a scenario with a fault, and with each further one again; how many struck, and what is wrong afterwards."""
    folder, log = work / "run", work / "calls.log"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ready.template, folder)
    outcomes, n_struck = [], 0
    for fault in faults:
        options = ["-o", str(log), "-e", f"trace={STEPS}"]
        options += [word for part in fault.split(";") for word in ("-e", part)]
        outcomes.append(run(folder, ready.scenario.words, options))
        n_struck += outcomes[-1].code == -signal.SIGKILL or "(INJECTED)" in log.read_text()
    return n_struck, [f"{ready.scenario.name}, {faults}: {each}" for each in judged(ready, folder, outcomes, again)]


def kill(ready: Ready, step: int) -> str:
    """SIGKILL in front of the writing call of this number, from 1."""
    name, number = ready.calls[step - 1]
    return f"inject={name}:signal=SIGKILL:when={number}"


def disk_full(ready: Ready, step: int) -> str:
    """No room from the writing call of this number on."""
    before = [name for name, _ in ready.calls[: step - 1]]
    return ";".join(f"inject={name}:error=ENOSPC:when={before.count(name) + 1}+" for name in WRITES.split(","))


def disk_error(ready: Ready, step: int) -> str:
    """The writing call of this number fails, whatever it is."""
    name, number = ready.calls[step - 1]
    return f"inject={name}:error=EIO:when={number}"
