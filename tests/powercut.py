"""A power cut at any moment of a command: what was written but not synced is lost, kept or torn.

A command runs once, with strace writing down every call that changes a file. A disk is then played from these calls
up to some moment, by the rules of POSIX and no better: a file's bytes are safe once `fsync` of the file has returned; a
name (created, renamed, removed) once `fsync` of its folder has; of anything later, whole or in sectors of 512 bytes,
any part may be there. Names of one folder survive in their order. What is played stands for a machine that loses power,
with a disk that keeps what it said it synced; it does not stand for a disk that lies about that.
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from faults import STEPS, Outcome, Ready, judged, run

SECTOR = 512
CALLS = f"{STEPS},openat"
_LINE = re.compile(r"^\d+ +(?P<call>\w+)\((?P<arguments>.*)\) = (?P<result>-?\d+)")
_UNFINISHED = re.compile(r"^(?P<process>\d+) +(?P<start>.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(?P<process>\d+) +<\.\.\. \w+ resumed>(?P<rest>.*)$")


@dataclass
class Call:
    """One change: `what` is create, write, truncate, sync, rename, remove, folder or said."""

    what: str
    path: str = ""
    offset: int = 0
    data: bytes = b""
    to: str = ""


@dataclass
class _File:
    synced: bytes = b""
    pending: list[Call] = field(default_factory=list)

    def survivor(self, rng: Random, part: float) -> bytes:
        """What is left of the file; `part` of what was not synced stays."""
        content = bytearray(self.synced)
        for call in self.pending:
            if call.what == "truncate":
                if rng.random() < part:
                    _resize(content, call.offset)
                continue
            for start in range(0, len(call.data), SECTOR):
                if rng.random() < part:
                    at, piece = call.offset + start, call.data[start : start + SECTOR]
                    _resize(content, max(len(content), at + len(piece)))
                    content[at : at + len(piece)] = piece
        return bytes(content)


def _resize(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))


def recorded(ready: Ready, work: Path) -> tuple[Path, list[Call]]:
    """Run a scenario undisturbed and write down what it did to files; the folder it ran in, and the calls."""
    folder, log = work / "recorded", work / "calls.log"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ready.template, folder)
    options = ["-o", str(log), "-y", "-xx", "-s", "100000000", "-e", f"trace={CALLS}", "-e", "signal=none"]
    outcome = run(folder, ready.scenario.words, options, log_said=True)
    assert (outcome.code, outcome.unhandled) == (0, None), outcome
    calls = _read(log, str(folder))
    shutil.rmtree(folder)
    return folder, calls


def _read(log: Path, folder: str) -> list[Call]:
    calls: list[Call] = []
    started: dict[str, str] = {}
    places: dict[str, int] = {}  # descriptors' positions, for `write`
    for raw in log.read_text().splitlines():
        line = raw
        if cut := _UNFINISHED.match(line):
            started[cut["process"]] = cut["start"]
            continue
        if cut := _RESUMED.match(line):
            line = f"{cut['process']} {started.pop(cut['process'])}{cut['rest']}"
        found = _LINE.match(line)
        if found is None or int(found["result"]) < 0:
            continue
        call = _call(found["call"], found["arguments"], int(found["result"]), places)
        if call is not None and (call.what == "said" or call.path.startswith(folder)):
            calls.append(call)
    return calls


def _text(argument: str) -> str:
    return _bytes(argument).decode()


def _bytes(argument: str) -> bytes:
    return bytes.fromhex(argument.strip().strip('"').replace("\\x", ""))


def _call(name: str, arguments: str, result: int, places: dict[str, int]) -> Call | None:
    parts = arguments.split(", ")
    descriptor = re.match(r"(\d+|AT_FDCWD)<([^>]*)>", parts[0])
    path = _unescaped(descriptor[2]) if descriptor else ""
    if name == "openat":
        opened = re.match(r".*?, (\"[^\"]*\"), (\S+)", arguments)
        if opened is None:
            return None
        places[str(result)] = 0
        target = _text(opened[1])
        flags = opened[2]
        if "O_TRUNC" in flags and "O_CREAT" in flags:
            return Call("create", target, offset=1)
        return Call("create", target) if "O_CREAT" in flags else None
    if name == "pwrite64":
        return Call("write", path, int(parts[-1]), _bytes(parts[1]))
    if name == "write":
        data = _bytes(parts[1])
        if path == "/dev/null":
            return Call("said", data=data.removeprefix(b"said: "))
        assert descriptor is not None
        number = descriptor[1]
        places[number] = places.get(number, 0) + result
        return Call("write", path, -1, data)  # at the end: what this program writes so, it writes from the start
    if name in ("fsync", "fdatasync"):
        return Call("sync", path)
    if name == "ftruncate":
        return Call("truncate", path, int(parts[-1]))
    if name == "fallocate":
        return Call("truncate", path, int(parts[-1]) + int(parts[-2]), to="grow")
    strings = [_text(each) for each in re.findall(r"\"[^\"]*\"", arguments)]
    if name.startswith("rename"):
        return Call("rename", strings[0], to=strings[1])
    if name in ("unlink", "rmdir"):
        return Call("remove", strings[0])
    if name == "unlinkat":  # of a name in an opened folder
        return Call("remove", strings[0] if strings[0].startswith("/") else f"{path}/{strings[0]}")
    assert name in ("mkdir", "mkdirat"), name
    return Call("folder", strings[0] if strings[0].startswith("/") else f"{path}/{strings[0]}")


def _unescaped(path: str) -> str:
    return bytes.fromhex(path.replace("\\x", "")).decode() if path.startswith("\\x") else path


class Disk:
    """A disk on which calls are played, and which can lose its power."""

    def __init__(self, template: Path, folder: Path) -> None:
        self._names: dict[str, _File | None] = {str(folder): None}  # None: a folder
        for path in sorted(template.rglob("*")):
            there = str(folder / path.relative_to(template))
            self._names[there] = None if path.is_dir() else _File(path.read_bytes())
        self._safe = dict(self._names)
        self._log: list[tuple[str, Call, _File | None]] = []  # changes of names: folder, call, file
        self.said = b""

    def play(self, call: Call) -> None:
        """Do what a call did."""
        parent = str(Path(call.to or call.path).parent)
        file = self._names.get(call.path)
        if call.what == "said":
            self.said += call.data
        elif call.what == "create":
            if call.path not in self._names:
                self._names[call.path] = made = _File()
                self._log.append((parent, call, made))
            elif call.offset and file is not None:
                file.pending.append(Call("truncate", call.path, 0))
        elif call.what == "folder":
            self._names[call.path] = None
            self._log.append((parent, call, None))
        elif call.what == "remove":
            self._names.pop(call.path, None)
            self._log.append((parent, call, None))
        elif call.what == "rename":
            _renamed(self._names, call)
            self._log.append((parent, call, None))
        elif call.what == "sync" and call.path in self._names and file is None:
            self._keep_names(call.path)
        elif file is not None and call.what == "sync":
            file.synced, file.pending = file.survivor(Random(0), 1.0), []
        elif file is not None and call.what == "write":
            offset = call.offset if call.offset >= 0 else len(file.survivor(Random(0), 1.0))
            file.pending.append(Call("write", call.path, offset, call.data))
        elif file is not None and call.what == "truncate":
            size = max(call.offset, len(file.survivor(Random(0), 1.0))) if call.to == "grow" else call.offset
            file.pending.append(Call("truncate", call.path, size))

    def _keep_names(self, folder: str) -> None:
        for entry in [each for each in self._log if each[0] == folder]:
            _apply(self._safe, entry)
            self._log.remove(entry)

    def power_cut(self, target: Path, folder: Path, rng: Random, part: float) -> None:
        """Write what is left into `target`; `part` of what was not safe survives."""
        names = dict(self._safe)
        for place in dict.fromkeys(entry[0] for entry in self._log):
            ours = [entry for entry in self._log if entry[0] == place]
            n_kept = sum(rng.random() < part for _ in ours)
            for entry in ours[:n_kept]:
                _apply(names, entry)
        target.mkdir(parents=True)
        for path, file in sorted(names.items()):
            if not all(str(parent) in names for parent in Path(path).parents if str(parent).startswith(str(folder))):
                continue  # its folder's own name is lost
            there = target / Path(path).relative_to(folder)
            if file is None:
                there.mkdir(exist_ok=True)
            else:
                there.write_bytes(file.survivor(rng, part))


def _renamed(names: dict[str, _File | None], call: Call) -> None:
    """A name changed, with all that is in it if it is a folder."""
    for path in [each for each in names if each == call.path or each.startswith(f"{call.path}/")]:
        names[call.to + path[len(call.path) :]] = names.pop(path)


def _apply(names: dict[str, _File | None], entry: tuple[str, Call, _File | None]) -> None:
    _, call, file = entry
    if call.what in ("create", "folder"):
        names[call.path] = file
    elif call.what == "remove":
        names.pop(call.path, None)
    else:
        _renamed(names, call)


def cut(
    ready: Ready, work: Path, folder: Path, calls: list[Call], n_played: int, part: float, again: bool
) -> list[str]:
    """Cut the power behind so many calls; what is wrong afterwards. A damaged cache is not: it is made anew."""
    disk = Disk(ready.template, folder)
    for call in calls[:n_played]:
        disk.play(call)
    target = work / "after"
    shutil.rmtree(target, ignore_errors=True)
    disk.power_cut(target, folder, Random(n_played), part)
    said = [line for line in disk.said.decode().splitlines() if line.endswith("}")]
    wrong = judged(ready, target, [Outcome(-9, [json.loads(line) for line in said])], again)
    return [
        f"{ready.scenario.name}, power cut behind call {n_played} of {len(calls)}, {part:.0%} kept: {each}"
        for each in wrong
        if not each.startswith("problem: cache:")
    ]
