"""The benchmark on hard cases takes anyone's folders: two classes, strangers among them, files that are no photo."""

import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import LEAF_COLOURS, colour_embedder, write_leaf

from fewshot.datasets import class_folders

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import hard_cases
from page.parts import peer_tables
from peers import peers

# Importing its neighbours replaces faiss's search, for all tests that come after in this process.
NEIGHBOUR = "pytorch-metric-learning, nearest neighbour"


def test_an_enrolled_class_without_a_readable_photo_is_none(tmp_path, leaves, monkeypatch, capsys):
    enrolled = leaves(n=4, labels=["rust", "healthy"])
    (enrolled / "broken").mkdir()
    (enrolled / "broken" / "x.jpg").write_text("no photo")
    monkeypatch.setattr(hard_cases, "open_embedder", lambda choice: colour_embedder())
    monkeypatch.setattr(
        hard_cases, "peers", lambda: {name: peer for name, peer in peers().items() if name != NEIGHBOUR}
    )
    asked = leaves(n=2, labels=["rust", "healthy", "mildew"], first_seed=70, name="asked")
    found = hard_cases.measure(class_folders(enrolled), [], {"asked": class_folders(asked)}, ["colours"], [])
    assert [at["asked"]["top1"]["n"] for at in found["table"].values()] == [4] * len(found["table"])
    assert "x.jpg" in capsys.readouterr().out


def test_what_cannot_be_measured_is_said(leaves, monkeypatch):
    monkeypatch.setattr(hard_cases, "open_embedder", lambda choice: colour_embedder())
    one, two = (class_folders(leaves(n=3, labels=["rust", "healthy"][:n], name=f"{n}")) for n in (1, 2))
    strange = class_folders(leaves(n=2, labels=["mildew"], name="strange"))
    with pytest.raises(SystemExit, match="1 class is enrolled; wanted at least 2"):
        hard_cases.measure(one, [], {"asked": one}, ["colours"], [])
    with pytest.raises(SystemExit, match=r"no photo is asked of an enrolled class\. Enrolled: healthy, rust"):
        hard_cases.measure(two, [], {"asked": strange}, ["colours"], [])


def test_an_index_without_photos_to_ask_is_told_what_to_give(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hard_cases.py", "--index", "nope"])
    with pytest.raises(SystemExit):
        hard_cases.main()
    assert "give --asked DIR" in capsys.readouterr().err


def test_scores_that_are_no_numbers_win_nothing():
    asked = hard_cases.Photos(np.zeros((2, 1)), ["a-1", "a-2"], ["x0", "y0"])
    found = hard_cases.figures(np.full((2, 2), np.nan), asked, ["a-1", "a-2"])
    assert [found[key]["share"] for key in ("top1", "within")] == [0.0, 0.0]
    assert found["x"]["top1"]["share"] == 0.0


def test_two_classes_are_measured_beside_peers_and_what_is_left_out_is_told(tmp_path, leaves, monkeypatch, capsys):
    enrolled = leaves(n=6, labels=["rust", "healthy"])
    for label in ("rust", "healthy", "mildew"):
        for i, stratum in enumerate("xxyy"):
            write_leaf(tmp_path / "asked" / label / f"{stratum}{i}.png", LEAF_COLOURS[label], 900 + i)
    (tmp_path / "asked" / "rust" / "x9.jpg").write_text("no photo")
    monkeypatch.setattr(hard_cases, "open_embedder", lambda choice: colour_embedder())
    others = {name: peer for name, peer in peers().items() if name != NEIGHBOUR}
    assert len(others) < len(peers())
    monkeypatch.setattr(hard_cases, "peers", lambda: others)
    asked = {"asked": class_folders(tmp_path / "asked")}
    later = class_folders(leaves(n=3, labels=["rust"], first_seed=50, name="later"))
    found = hard_cases.measure(class_folders(enrolled), later, asked, ["colours"], [])
    told = capsys.readouterr().out
    assert "not enrolled, left out: mildew" in told
    assert "x9.jpg" in told
    assert "fewshot, colours" in found["table"]
    assert len(found["table"]) == 1 + len(others)
    for method, row in found["table"].items():
        assert set(row) == {"asked", "asked + more photos"}
        for at in row.values():
            assert (at["top1"]["n"], at["x"]["top1"]["n"], at["y"]["within"]["n"]) == (8, 4, 4)
            assert at["top1"]["share"] == 100.0, method
    shown = peer_tables(found["table"])
    assert shown.count("| method, backbone | asked | asked, x | asked, y | asked + more photos |") == 3
    assert "| fewshot, colours | 100.0 (68-100) | 100.0 (51-100) |" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--enrolled", "photos", "--asked", "photos/rust"], "3 files but no sub-folders"),
        (["--enrolled", "nosuch", "--asked", "photos"], "there is no folder nosuch."),
        (["--enrolled", "above", "--asked", "photos"], "support holds no photos but 2 folders"),
        (["--index", "nope", "--asked", "photos"], "there is no index at indexes/nope."),  # as `fewshot --index nope`
        (["--index", "./nope", "--asked", "photos"], "there is no index at nope."),
    ],
)
def test_a_wrong_folder_is_an_error_with_a_hint_and_no_traceback(words, message, leaves, monkeypatch, capsys):
    leaves(n=3, labels=["rust", "healthy"])
    leaves(n=1, labels=["rust", "healthy"], name="above/support")
    monkeypatch.setattr(sys, "argv", ["hard_cases.py", *words])
    with pytest.raises(SystemExit) as caught:
        hard_cases.main()
    assert caught.value.code == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert hint.startswith("hint: ")
