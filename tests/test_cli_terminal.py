"""A stranger's names on the terminal: shown, never obeyed."""

import json
import os
import subprocess
import sys
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
