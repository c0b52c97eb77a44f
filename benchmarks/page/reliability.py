"""The sections of docs/reliability.md: what is promised, and what the campaigns found."""

from collections import Counter
from typing import Any

from page.parts import RESULTS, result, stamp, table

KINDS = {
    "kill": "killed in front of a writing call",
    "twice": "killed, run again, killed again",
    "full": "no room from a write on (ENOSPC)",
    "disk": "a small file system, full",
    "errors": "one writing call fails (EIO)",
    "power": "power cut",
}


def _there(name: str) -> bool:
    return (RESULTS / f"{name}.json").exists()


def oracle() -> str:
    """The section on the dictionary."""
    found = [result(path.stem) for path in sorted(RESULTS.glob("soak-[0-9]*.json"))]
    counts: Counter[str] = Counter()
    for each in found:
        counts.update(each["by_kind"])
    n, n_wrong = sum(each["operations"] for each in found), sum(len(each["wrong"]) for each in found)
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.most_common())
    figures = (
        f"So far: **{n:,} operations, {n_wrong} wrong** ({kinds}), {sum(each['kills'] for each in found)} of them "
        f"killed half-way.\n\n{stamp(found[-1])}"
        if found
        else "Not measured here yet."
    )
    return f"""## Against a plain dictionary

`make soak` (`make soak OPERATIONS=1000000`): every operation goes to an index and to a Python dictionary, and whatever
they disagree in stops the run. Enrolling, replacing, renaming and removing classes and photos, also such as must be
refused; the same by a second process, and by both at once; SIGKILL of the second process in a change, which must be
there as a whole or not at all; closing and opening; caches lost; reindexing; backups; restores over the open index and
into a new folder. A question about a photo counts as one operation: its nearest photos must be those that brute force
over the dictionary finds. Now and then every checksum is held against its bytes, every embedding against its photo, and
the answers against those of an index made anew from the dictionary. CI runs 200 sequences that hypothesis chooses.

{figures}
"""


def faults() -> str:
    """The section on kills, full disks, errors and power cuts."""
    text = """## Killed, full, failing, without power

`python benchmarks/campaign_faults.py`: every command that writes, and the two changes that the service alone offers.
strace holds the process and, at a chosen one of the system calls with which it writes, kills it or lets the call
fail. A power cut is played from the calls that a command made: a file's bytes are safe once `fsync` of the file has
returned, a name once `fsync` of its folder has; of anything later any part may be there, whole or in sectors of 512
bytes (tests/powercut.py). Behind each fault the index must open, hold one of the states that the command goes through
and none before what it had acknowledged, pass every check, and answer; behind some, the command is run again and must
finish.
"""
    if not _there("faults"):
        return f"{text}\nNot measured here yet.\n"
    facts = result("faults")
    headings = ["command", "writing calls", *(KINDS[kind] for kind in KINDS)]
    rows = [
        [name, str(row["steps"]), *(str(row.get(kind, 0)) for kind in KINDS)]
        for name, row in facts["by_command"].items()
    ]
    return f"""{text}
**{facts["kills"]:,} kills, {facts["disk_full"]} times a full disk, {facts["io_errors"]} errors of the disk,
{facts["power_cuts"]} power cuts: {facts["lost"]} acknowledged changes lost, {facts["half_there"]} half there,
{facts["unhandled"]} unhandled exceptions, {len(facts["wrong"])} of anything else that was looked for.** Faults that
struck, by command:

{table(headings, rows)}

{stamp(facts)}
"""


def damage() -> str:
    """The section on damaged files."""
    text = """## Damaged files

`python benchmarks/campaign_damage.py`: a bit turned, a page of 4 KB overwritten with noise, or the end cut off, at
random places of every file of an index as a killed process leaves it. *Harmless*: nothing that is stored was there.
*Noticed*: `fewshot doctor` names it. *Repaired*: `fewshot doctor --repair` made a sound index of it; photos that it
could not save are listed one by one. *Beyond repair*: the file ends before its tables do; it is left as it was.
"""
    if not _there("damage"):
        return f"{text}\nNot measured here yet.\n"
    facts = result("damage")
    rows = [
        [file, *what.split(": ", 1), str(count)]
        for file, each in facts["by_file"].items()
        for what, count in each.items()
    ]
    return f"""{text}
**{facts["files"]} damaged files: {len(facts["wrong"])} unnoticed, lost without a word, or wrong.**

{table(["file", "damage", "what became of it", "files"], rows)}

{stamp(facts)}
"""


def soak() -> str:
    """The section on the service."""
    text = """## A service for an hour

`python benchmarks/soak_service.py`: two services on one index, one killed every minute and started again; two writers
that know what their classes must hold, two that only ask; backups meanwhile.
"""
    if not _there("soak-service"):
        return f"{text}\nNot measured here yet.\n"
    facts = result("soak-service")
    changes: dict[str, int] = facts["changes"]
    memory: dict[str, Any] = facts["memory"]
    minutes = memory["every_minute_mb"]
    made = ", ".join(f"{count} {kind}" for kind, count in changes.items())
    early, half_way = minutes[min(5, len(minutes) - 1)], minutes[len(minutes) // 2]
    unforeseen = "".join(f" (`{each}`)" for each in facts["unforeseen"])
    if "about_unforeseen" in facts:
        unforeseen += f". {facts['about_unforeseen'].rstrip('.')}"
    lost, wrong = len(facts["lost"]), len(facts["wrong_answers"])
    return f"""{text}
{facts["minutes"]:g} minutes, **{facts["kills"]} kills, {sum(changes.values()):,} changes ({made}),
{lost} lost, {wrong} wrong answers, {len(facts["unforeseen"])} unforeseen errors**{unforeseen}.
{facts["checks_of_everything"]:,} comparisons of everything, {facts["photos_asked_back"]} photos asked for just after
they were enrolled, {facts["backups"]} backups restored and compared; {facts["requests_cut_off"]} requests were cut off
by a kill. Memory of the service that was not killed: {early:.0f} MB after five minutes, {half_way:.0f} MB half-way,
{minutes[-1]:.0f} MB at the end ({memory["second_half_mb_an_hour"]:+.1f} MB an hour in the second half). Load of the
machine meanwhile: up to {max(facts["load_average"]):.0f}.

{stamp(facts)}
"""
