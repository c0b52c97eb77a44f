"""Several at one index, and whoever dies: processes that enroll at once, interrupted and killed ones."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import LEAF_COLOURS, both, colour_embedder
from gallery_steps import Interrupter, answers, ask_photos, counts, enroll

from fewshot.gallery import Gallery
from fewshot.records import Question

HERE = Path(__file__).parent

# ---- several at once


@both
def test_reopened_index_is_the_same(gallery, leaves, tmp_path):
    enroll(gallery, leaves(n=5))
    photos, _ = ask_photos(tmp_path)
    before = (gallery.about(), gallery.classes(), list(gallery.query(photos)), gallery.history())
    gallery.close()
    with Gallery(gallery.place, create=True, embedder=colour_embedder()) as again:
        assert (again.about(), again.classes(), list(again.query(photos)), again.history()) == before


@both
def test_a_second_gallery_sees_the_firsts_changes_without_reopening(gallery, leaves, tmp_path):
    folder = leaves(n=5)
    enroll(gallery, folder / "healthy", "healthy")
    photos, right = ask_photos(tmp_path)
    with Gallery(gallery.place, embedder=colour_embedder()) as second:
        assert answers(second, photos)[0] == "healthy"
        enroll(gallery, folder)
        assert answers(second, photos) == right
        gallery.rename("rust", "leaf rust")
        assert "leaf rust" in answers(second, photos)
        gallery.remove("leaf rust")
        assert counts(second) == dict.fromkeys(["blight", "healthy", "mildew"], 5)
        assert all("rust" not in match.label for p in second.query(photos, Question(top=9)) for match in p.matches)


SCRIPT = """
    import sys
    from pathlib import Path
    from conftest import colour_embedder
    from fewshot.datasets import class_folders
    from fewshot.gallery import Gallery
    print("ready", flush=True)
    sys.stdin.readline()
    with Gallery(sys.argv[1], create=True, embedder=colour_embedder()) as gallery:
        for report in gallery.enroll(class_folders(Path(sys.argv[2]))):
            print(report.label, report.enrolled, report.already_there, len(report.refused), flush=True)
"""


def start(script, *arguments, **settings):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **settings,
    )  # fmt: skip


def run_together(processes):
    """Let processes that wait at their start go at the same moment; (stdout, stderr) of each at its end."""
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate(timeout=60) for process in processes]


def test_two_processes_enrolling_at_once_lose_nothing_and_double_nothing(leaves, tmp_path, place):
    leaves(n=6, labels=["healthy", "rust"], name="left")
    leaves(n=6, labels=["rust", "mildew"], name="right")  # the same photos of rust, and others
    leaves(n=3, labels=["rust"], first_seed=70, name="extra")
    for photo in (tmp_path / "extra" / "rust").iterdir():
        shutil.copy(photo, tmp_path / "right" / "rust" / f"extra-{photo.name}")
    processes = [start(SCRIPT, place, tmp_path / name) for name in ("left", "right")]
    outcomes = run_together(processes)
    assert [process.returncode for process in processes] == [0, 0], outcomes
    rust = [list(map(int, line.split()[1:])) for out, _ in outcomes for line in out.splitlines() if "rust" in line]
    assert sum(enrolled for enrolled, _, _ in rust) == 9
    assert sum(already for _, already, _ in rust) == 6
    assert sum(refused for _, _, refused in rust) == 0
    with Gallery(place, embedder=colour_embedder()) as gallery:
        assert counts(gallery) == {"healthy": 6, "rust": 9, "mildew": 6}
        assert gallery.problems() == []
        assert len(gallery.history()) == gallery.about().generation


def test_an_index_can_be_made_by_several_processes_at_the_same_moment(leaves, tmp_path):
    folder = leaves(n=1, labels=["rust"])
    script = SCRIPT.replace(
        "with Gallery(sys.argv[1]", "for i in range(15):\n      with Gallery(Path(sys.argv[1]) / str(i)"
    )
    script = script.replace("        for report", "          for report").replace(
        "            print", "              print"
    )
    processes = [start(script, tmp_path / "indexes", folder) for _ in range(3)]
    outcomes = run_together(processes)
    assert [process.returncode for process in processes] == [0, 0, 0], [err[-600:] for _, err in outcomes]
    for i in range(15):
        with Gallery(tmp_path / "indexes" / str(i), embedder=colour_embedder()) as gallery:
            assert counts(gallery) == {"rust": 1}


# ---- interrupted


@pytest.mark.parametrize("at", [1, 5, 6, 9, 15])
def test_interrupt_keeps_the_complete_classes_and_nothing_of_the_interrupted(gallery, leaves, at):
    folder = leaves(n=5)
    with pytest.raises(KeyboardInterrupt):
        enroll(gallery, folder, on_photo=Interrupter(at))
    complete = sorted(LEAF_COLOURS)[: (at - 1) // 5]
    assert counts(gallery) == dict.fromkeys(complete, 5)
    assert gallery.problems() == []
    reports = enroll(gallery, folder)
    assert [each.label for each in reports if each.already_there] == complete
    assert counts(gallery) == dict.fromkeys(LEAF_COLOURS, 5)


@both
def test_interrupt_of_a_strict_enrolment_keeps_nothing(gallery, leaves):
    with pytest.raises(KeyboardInterrupt):
        enroll(gallery, leaves(n=3), strict=True, on_photo=Interrupter(11))
    assert gallery.classes() == []


# A parent that has imported everything forks a child an enrolment, so that a kill costs no start of Python.
KILLED = """
    import os, random, signal, sys, time
    from pathlib import Path
    from conftest import colour_embedder
    from fewshot.datasets import class_folders
    from fewshot.gallery import Gallery
    folders = class_folders(Path(sys.argv[2]))
    rng = random.Random(int(sys.argv[4]))
    for number in range(int(sys.argv[3])):
        n_done = rng.randrange(1, sum(len(each.photos) for each in folders) + 1)
        pause_s = rng.uniform(0, 0.012)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            with Gallery(Path(sys.argv[1]) / str(number), create=True, embedder=colour_embedder()) as gallery:
                list(gallery.enroll(folders, on_photo=lambda: os.write(write, b".")))
            os._exit(0)
        os.close(write)
        while n_done > 0 and (got := os.read(read, n_done)):
            n_done -= len(got)
        time.sleep(pause_s)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(read)
        print(number, os.WIFSIGNALED(status), flush=True)
"""


def test_killed_enrolments_leave_an_index_that_opens_with_every_class_whole_or_absent(leaves, tmp_path):
    folder, n_kills = leaves(n=6), 12
    process = start(KILLED, tmp_path / "killed", folder, n_kills, 7)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len(out.splitlines()) == n_kills
    assert out.count("True") >= n_kills // 2, "too few of the kills hit an enrolment at work"
    n_partial = 0
    for number in range(n_kills):
        with Gallery(tmp_path / "killed" / str(number), embedder=colour_embedder()) as gallery:
            found = counts(gallery)
            n_partial += 0 < len(found) < len(LEAF_COLOURS)
            assert set(found.values()) <= {6}
            assert list(found) == sorted(LEAF_COLOURS)[: len(found)]
            assert gallery.problems() == []
            enroll(gallery, folder)
            assert counts(gallery) == dict.fromkeys(LEAF_COLOURS, 6)
    assert n_partial >= 2, "the kills must have fallen between classes"
