"""A stranger's names on the terminal: shown, never obeyed."""

import contextlib
import json
import os
import re
import subprocess
import sys
import termios
import unicodedata
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import LEAF_COLOURS, colour_embedder, write_leaf
from hypothesis import given
from hypothesis import strategies as st

from fewshot.cli import main
from fewshot.cli.terminal import json_safe, visible

OBEYED = ["\x1b", "\r", "\n", "\x07", "\x9b", "\u202e", "\u2066", "\u200f", "\u2028", "\ufeff", "\x00", "\U000e0041"]


@pytest.fixture
def colours(monkeypatch):
    monkeypatch.setattr("fewshot.gallery.pinning.open_embedder", lambda *_, **__: colour_embedder())


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text):
    for character in visible(text):
        assert unicodedata.category(character) not in ("Cc", "Cs", "Zl", "Zp")
        assert character not in OBEYED


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_means_what_it_meant(text):
    made = json_safe(json.dumps({"file": text}, ensure_ascii=False))
    assert json.loads(made) == {"file": text}
    assert not set(made) & set(OBEYED)


@pytest.mark.parametrize("text", ["Mehltau 🌿", "تبقع", "किसान", "a\u200db", "łodyga", "x" * 300])
def test_words_of_any_script_stay_as_they_are(text):
    assert visible(text) == text


@pytest.mark.parametrize(
    "name", ["a\x1b[2Jb.png", "a\x1b[31mb.png", "gpj.\u202epng.png", "a\nerror: b.png", "a\x9b2J.png"]
)
def test_every_command_shows_a_hostile_name_and_obeys_nothing(tmp_path, colours, name):
    for label in ("rust", "mildew"):
        for i in range(3):
            write_leaf(tmp_path / "photos" / label / f"{i}-{label}-{name}", LEAF_COLOURS[label], i)
    (tmp_path / "photos" / "rust" / f"bad {name}").write_bytes(b"no picture")
    hostile = write_leaf(tmp_path / "asked" / name, LEAF_COLOURS["rust"], 77)
    label = "x\u202eyz"
    index = ["--index", str(tmp_path / "index")]
    runs = [
        ["enroll", "--each", str(tmp_path / "photos"), *index],
        ["enroll", label, str(hostile.parent), *index],
        ["query", str(hostile), *index],
        ["query", str(tmp_path / "photos" / "rust" / f"bad {name}"), *index],
        ["query", str(tmp_path / f"none {name}"), *index],
        ["classes", *index],
        ["inspect", *index],
        ["inspect", label, *index],
        ["remove", f"none {name}".replace("\n", " "), *index],
        ["rename", label, "y\u2066z", *index],
    ]
    for words in runs:
        for more in ([], ["--json"]):
            done = CliRunner().invoke(main, [*words, *more])
            assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
            shown = done.stdout + done.stderr
            assert shown
            assert not set(shown) & (set(OBEYED) - {"\n"}), (words, shown)
            # No line begins with what a name would have put there.
            assert not any(line.startswith("error: b.png") for line in shown.splitlines()), shown


# ---- a terminal with a bar on it, and one that is narrow

COMMAND = """
import sys
from conftest import colour_embedder
import fewshot.gallery.pinning
from fewshot.cli import main
fewshot.gallery.pinning.open_embedder = lambda *_, **__: colour_embedder()
main(sys.argv[1:])
"""


def on_terminal(*words, columns=100, stdout=None):
    """What a command sends to a terminal of so many columns; its stdout goes elsewhere if `stdout` is given."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (50, columns))
    code = [sys.executable, "-c", COMMAND, *map(str, words)]
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "TERM": "xterm"}
    environment.pop("COLUMNS", None)
    with subprocess.Popen(
        code, stdin=subprocess.DEVNULL, stdout=stdout or theirs, stderr=theirs, env=environment
    ) as running:
        os.close(theirs)
        sent = b""
        with contextlib.suppress(OSError):  # the terminal is closed when the command ends
            while part := os.read(ours, 65536):
                sent += part
    os.close(ours)
    assert running.returncode == 0, sent.decode()
    return sent.decode()


def on_screen(sent):
    """The lines that a terminal shows at last, of the few control codes that rich uses."""
    rows, row, column = [""], 0, 0
    for token in re.findall("\x1b\\[[?0-9;]*[A-Za-z]|.", sent, re.DOTALL):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif match := re.fullmatch("\x1b\\[([0-9]*)A", token):
            row -= int(match[1] or 1)
        elif token == "\x1b[2K":
            rows[row] = ""
        elif not token.startswith("\x1b"):
            rows[row] = f"{rows[row][:column]:<{column}}{token}{rows[row][column + 1 :]}"
            column += 1
    return [line.rstrip() for line in rows if line.strip()]


@pytest.fixture
def photos(tmp_path):
    """Four classes of five photos, one of them with a file that is refused."""
    for label, colour in LEAF_COLOURS.items():
        for i in range(5):
            write_leaf(tmp_path / "photos" / label / f"{label}-{i}.png", colour, i)
    (tmp_path / "photos" / "rust" / "bad.jpg").write_bytes(b"no picture")
    return tmp_path / "photos"


SAID = ["blight: 5 enrolled", "healthy: 5 enrolled", "mildew: 5 enrolled", "rust: 5 enrolled, 1 refused"]


@pytest.mark.parametrize("columns", [100, 40])
def test_lines_come_above_the_bar_and_none_is_left_of_it(photos, tmp_path, columns):
    sent = on_terminal("enroll", "--each", photos, "--index", tmp_path / "index", columns=columns)
    assert "/21" in sent  # there was a bar
    assert on_screen(sent)[:4] == SAID
    assert [line[:16] for line in on_screen(sent)[4:]] == ["warning: refused"]


def test_a_bar_leaves_stdout_alone_where_that_is_a_file(photos, tmp_path):
    with (tmp_path / "out").open("wb") as out:
        sent = on_terminal("enroll", "--each", photos, "--index", tmp_path / "index", stdout=out)
    assert (tmp_path / "out").read_text().splitlines() == SAID
    assert "/21" in sent
    assert [line[:16] for line in on_screen(sent)] == ["warning: refused"]


def test_lines_fit_a_narrow_terminal_and_are_whole_elsewhere(photos, tmp_path):
    long = "x" * 190
    index = ["--index", tmp_path / "index"]
    on_terminal("enroll", "--each", photos, *index)
    on_terminal("enroll", long, write_leaf(tmp_path / "odd" / f"{'y' * 90}.png", (250, 250, 9), 5).parent, *index)
    odd = write_leaf(tmp_path / "ask" / f"{'z' * 60}.png", (250, 250, 9), 6)
    blue = write_leaf(tmp_path / "ask" / "blue.png", (0, 0, 255), 6)
    for words in (["classes"], ["inspect"], ["inspect", long, "--photos"], ["query", odd, blue]):
        lines = on_screen(on_terminal(*words, *index, columns=60))
        assert max(map(len, lines)) <= 60, lines
        assert "…" in "".join(lines)
        with (tmp_path / "out").open("wb") as out:
            on_terminal(*words, *index, columns=60, stdout=out)
        whole = (tmp_path / "out").read_text()
        assert (long if words[0] in ("classes", "query") else "y" * 90 if len(words) > 1 else long) in whole
    said = " ".join(" ".join(on_screen(on_terminal("query", blue, *index, columns=60))).split())
    assert "below the threshold" in said


def test_a_file_s_name_that_is_no_utf_8_is_shown_as_it_is_kept(tmp_path, colours):
    (tmp_path / "rust").mkdir()
    name = os.fsdecode(b"g\xfct.png")
    write_leaf(tmp_path / "rust" / "a.png", LEAF_COLOURS["rust"], 1).rename(tmp_path / "rust" / name)
    index = ["--index", str(tmp_path / "index")]
    CliRunner().invoke(main, ["enroll", "rust", str(tmp_path / "rust"), *index])
    for words in (["inspect", "rust", "--photos"], ["query", "--nearest", "0", str(tmp_path / "rust" / name)]):
        assert "g\\xfct.png" in CliRunner().invoke(main, [*words, *index]).stdout


# ---- a disk that is full where the output goes

FULL = Path("/dev/full")
full_disk = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full, which fails every write")
FEWSHOT = [sys.executable, "-m", "fewshot.cli"]


@full_disk
@pytest.mark.parametrize("words", [["backbones"], ["backbones", "--json"]])
def test_output_that_cannot_be_written_is_an_error_in_a_sentence(words):
    with FULL.open("w") as full:
        done = subprocess.run([*FEWSHOT, *words], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "the answer cannot be written: No space left on device." in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@full_disk
def test_warning_that_cannot_be_written_ends_no_work(tmp_path, colours, monkeypatch):
    for i in range(3):
        write_leaf(tmp_path / "rust" / f"{i}.jpg", LEAF_COLOURS["rust"], seed=i)
    (tmp_path / "rust" / "not-a-photo.jpg").write_bytes(b"no")
    full = os.fdopen(os.open(FULL, os.O_WRONLY), "w", closefd=False)
    monkeypatch.setattr(sys, "stderr", full)
    main(["enroll", "rust", str(tmp_path / "rust"), "--index", str(tmp_path / "index")], standalone_mode=False)
    monkeypatch.undo()
    with pytest.raises(OSError, match="No space"):
        full.flush()  # what it was told in vain
    os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    full.flush()


@full_disk
def test_error_that_can_be_told_nowhere_keeps_its_exit_code(tmp_path):
    with FULL.open("w") as full:
        words = [*FEWSHOT, "query", "a.jpg", "--json", "--index", str(tmp_path / "none")]
        found = subprocess.run(words, stdout=full, stderr=full)
    assert found.returncode in (1, 2)
