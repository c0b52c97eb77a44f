"""The base install does the main job; what needs an extra says which. All commands run once where no extra is."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import LEAF_COLOURS, write_leaf, write_leaves

from fewshot import extras
from fewshot.errors import MissingExtraError
from fewshot.extras import EXTRAS, missing, need

ROOT = Path(__file__).parents[1]
LIBRARIES = sorted({*(name for names in EXTRAS.values() for name in names), "scipy", "pandas", "numba", "imagehash"})
PHOTO = "photos/rust/rust-00.png"

# What runs, in this order, in one process in which no library of an extra can be imported.
BASE = {
    "enroll": "enroll --each photos --json",
    "enroll more": "enroll rust more --json",
    "query": f"query {PHOTO} --json",
    "query a folder": "query photos",
    "classes": "classes",
    "inspect": "inspect",
    "rename": "rename mildew powdery-mildew",
    "remove": "remove powdery-mildew",
    "evaluate": "evaluate photos --n-way 2 --n-shot 3 --n-query 2 --n-episode 5",
    "backbones": "backbones",
    "doctor": "doctor",
    "watch": "watch more --routes routes.yaml --once --state state",
    "token": "token create me",
    "sample-data": "sample-data samples --support 1 --query 1",
    "serve help": "serve --help",
}
# words: the extra that they need.
NEEDY = {
    "train recipe.yaml --data photos": "train",
    "project --out space": "project",
    "project --out space --images photos --method pca": "project",
    f"query {PHOTO} --engine torch": "train",
    "enroll rust photos/rust --index other --backbone lite0": "train",
    "enroll rust photos/rust --index other --backbone resnet18.a1_in1k": "train",
    "enroll rust photos/rust --index other --backbone tf_efficientnet_lite0:w.safetensors": "train",
    "reindex --backbone lite0": "train",
    "evaluate photos --backbone lite0 --n-way 2 --n-query 2": "train",
    "watch more --routes routes.yaml --once --state state --engine torch": "train",
    "serve --engine torch": "train",
    "backbones resnet*": "train",
    "enroll --each photos --index other --ray auto": "ray",
    f"query {PHOTO} --ray auto": "ray",
}

SCRIPT = """
import json, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in set(LIBRARIES):
            raise ModuleNotFoundError(f"No module named {name!r} (hidden by the test)", name=name)

sys.meta_path.insert(0, Hidden())
from click.testing import CliRunner
from fewshot.cli import main

for words in json.load(sys.stdin):
    done = CliRunner().invoke(main, words.split())
    unforeseen = repr(done.exception) if done.exception and not isinstance(done.exception, SystemExit) else None
    print(json.dumps([words, done.exit_code, done.stdout, done.stderr, unforeseen]), flush=True)
print(json.dumps(sorted(set(name.split(".")[0] for name in sys.modules) & set(LIBRARIES))))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Words -> exit code, stdout, stderr and unforeseen exception of every command above, run where no extra is."""
    home = tmp_path_factory.mktemp("base")
    write_leaves(home / "photos", n=6)
    for i in range(2):
        write_leaf(home / "more" / f"more-{i}.png", LEAF_COLOURS["rust"], 50 + i)
    (home / "w.safetensors").write_bytes(b"weights")
    (home / "routes.yaml").write_text((ROOT / "configs" / "routes-emergency.yaml").read_text())
    (home / "recipe.yaml").write_text("train_folder: .\n")
    environment = {
        **{key: value for key, value in os.environ.items() if key != "FEWSHOT_INDEX"},
        "FEWSHOT_CACHE": str(home / "cache"),
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "own-state"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("LIBRARIES", repr(LIBRARIES))],
        input=json.dumps([*BASE.values(), *NEEDY]),
        capture_output=True, text=True, cwd=home, env=environment, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *lines, loaded = done.stdout.splitlines()
    assert json.loads(loaded) == []
    return {words: rest for words, *rest in map(json.loads, lines)}


@pytest.mark.weights
@pytest.mark.parametrize("words", BASE.values(), ids=BASE)
def test_the_base_alone_does_the_main_job(ran, words):
    exit_code, _, stderr, unforeseen = ran[words]
    assert (exit_code, unforeseen) == (0, None), stderr


@pytest.mark.weights
def test_the_base_alone_recognises_photos(ran):
    answer = json.loads(ran[BASE["query"]][1])
    assert answer["matches"][0]["label"] == "rust"


@pytest.mark.weights
@pytest.mark.parametrize("words", NEEDY)
def test_a_command_whose_extra_is_missing_says_which(ran, words):
    exit_code, _, stderr, unforeseen = ran[words]
    assert (exit_code, unforeseen) == (MissingExtraError.exit_code, None), stderr
    extra = NEEDY[words]
    assert f"needs the extra '{extra}'" in stderr
    assert f"pip install 'fewshot[{extra}]'" in stderr
    assert EXTRAS[extra][0] in stderr, "the message names the libraries that were not found"


@pytest.mark.weights
def test_doctor_lists_the_extras_that_are_missing(ran):
    stdout = ran[BASE["doctor"]][1]
    for extra in EXTRAS:
        assert re.search(rf"{extra}, without .*pip install 'fewshot\[{extra}\]'", stdout)


def test_a_name_that_is_none_is_still_guessed_at(monkeypatch):
    from fewshot.embedder import EmbedderChoice, open_embedder

    monkeypatch.setattr(extras, "_is_installed", lambda library: False)
    with pytest.raises(MissingExtraError) as caught:
        open_embedder(EmbedderChoice("plant-lite0"))
    assert "Did you mean 'plants-lite0'?" in caught.value.hint


def test_what_is_installed_is_not_asked_for(monkeypatch):
    monkeypatch.setattr(extras, "_is_installed", lambda library: library != "umap")
    need("train", "this")
    assert missing("project") == ["umap"]
    with pytest.raises(MissingExtraError, match=r"the map needs the extra 'project': umap is not installed"):
        need("project", "the map")
    need("project", "this", ("plotly",))


# ---- what the extras are


def requirements():
    """Extra (or "base") -> the projects that it names in pyproject.toml, without the extras it takes in."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = {"base": project["dependencies"], **project["optional-dependencies"]}
    return {
        name: {canonical(re.match(r"[A-Za-z0-9._-]+", each)[0]) for each in listed} - {"fewshot"}
        for name, listed in lists.items()
    }


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_libraries_of_an_extra_are_those_that_its_installation_brings(extra):
    projects = importlib.metadata.packages_distributions()
    for library in EXTRAS[extra]:
        named = {canonical(name) for name in projects[library]}
        assert named & requirements()[extra], f"{library} comes from {named}"
        assert not named & requirements()["base"], f"{library} is part of the base"


def test_all_takes_in_every_extra_but_the_gpu_s():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (everything,) = project["all"]
    taken = set(re.search(r"\[(.*)\]", everything)[1].split(","))
    assert taken == set(project) - {"all", "dev", "gpu"}
    assert "fewshot[all]" in project["dev"]
