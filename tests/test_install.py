"""The base alone, installed from this source and a package index into its own environment, does the main job."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from conftest import HEED_CTRL_C

from fewshot.extras import EXTRAS
from fewshot.samples import write_samples

ROOT = Path(__file__).parents[1]
OWN_CACHE = Path.home() / ".cache"  # read before a test gets a home of its own: pip's downloads are kept there
pytestmark = [pytest.mark.network, pytest.mark.weights]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The `bin` folder of a new environment with the base alone in it."""
    folder = tmp_path_factory.mktemp("base") / "venv"
    # Nothing of it is shared with this environment but the pip that fills it: unpacking another takes long.
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], check=True)
    environment = {**os.environ, "XDG_CACHE_HOME": str(OWN_CACHE), "PYTHONPATH": ""}
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    pip += ["--disable-pip-version-check", "--no-input"]
    if not os.environ.get("CI"):
        reached = subprocess.run([*pip, "download", "--no-deps", "--dest", str(folder / "seen"), "click"],
                                 capture_output=True, text=True, env=environment)  # fmt: skip
        if reached.returncode:
            pytest.skip(f"no package index can be reached from here: {reached.stderr.strip().splitlines()[-1]}")
    done = subprocess.run(
        [*pip, "install", "--quiet", "--no-compile", str(ROOT)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return folder / "bin"


@pytest.fixture
def run(installed, tmp_path):
    """Runs a program of that environment in the test's folder; gives its stdout."""
    environment = {**os.environ, "PYTHONPATH": "", "FEWSHOT_CACHE": str(tmp_path / "cache")}

    def run(*words):
        done = subprocess.run(
            [str(installed / words[0]), *map(str, words[1:])],
            capture_output=True, text=True, env=environment, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_base_alone_enrolls_recognises_evaluates_and_serves(installed, run, tmp_path):
    write_samples(tmp_path / "leaves", n_support=5, n_query=2)
    assert json.loads(run("python", "-c", _IMPORTABLE, json.dumps(EXTRAS))) == []
    reports = [json.loads(line) for line in run("fewshot", "enroll", "--each", "leaves/support", "--json").splitlines()]
    assert {report["enrolled"] for report in reports} == {5}
    answers = [json.loads(line) for line in run("fewshot", "query", "leaves/query", "--json").splitlines()]
    right = sum(Path(answer["file"]).parent.name == answer["matches"][0]["label"] for answer in answers)
    assert right >= 9, "of 12 drawn leaves"
    assert "accuracy" in run("fewshot", "evaluate", "leaves/support", "--n-way", "3", "--n-shot", "3",
                             "--n-query", "2", "--n-episode", "5")  # fmt: skip
    photo = tmp_path / answers[0]["file"]
    assert _asked_over_http(installed, tmp_path, photo)["matches"] == answers[0]["matches"]


_IMPORTABLE = """
import importlib.util, json, sys
names = {name for names in json.loads(sys.argv[1]).values() for name in names} | {"scipy", "pandas", "numba"}
print(json.dumps(sorted(name for name in names if importlib.util.find_spec(name) is not None)))
"""


def _asked_over_http(installed, folder, photo):
    """The answer of `fewshot serve` in that environment to one photo; the page has a map that says what it lacks."""
    code = HEED_CTRL_C + "import sys\nfrom fewshot.cli import main\nsys.argv[0] = 'fewshot'\nmain()"
    served = subprocess.Popen(
        [str(installed / "python"), "-c", code, "serve", "--port", "0", "--json"],
        cwd=folder, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": "", "FEWSHOT_CACHE": str(folder / "cache")},
    )  # fmt: skip
    try:
        url = json.loads(served.stdout.readline())["url"]
        with httpx.Client(base_url=url, timeout=60) as client:
            assert client.get("/map").status_code == 200
            lacking = client.get("/v1/projection")
            assert (lacking.status_code, lacking.json()["error"]["code"]) == (501, "missing_extra")
            assert "pip install 'fewshot[project]'" in lacking.json()["error"]["hint"]
            asked = client.post("/v1/query", files=[("photos", (photo.name, photo.read_bytes()))])
            return asked.json()["predictions"][0]
    finally:
        served.send_signal(signal.SIGINT)
        served.wait(timeout=30)
        served.stdout.close()
