"""The service as a process of its own: where it listens, what it loads, and how it stops."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from click.testing import CliRunner
from conftest import LEAF_COLOURS, colour_embedder, write_leaf
from test_service_limits import multipart, raw, wait_until, waiting

from fewshot.cli import main
from fewshot.cli.serve import _starting
from fewshot.datasets import class_folders
from fewshot.errors import AddressError
from fewshot.service.tokens import TokenFile

TESTS = Path(__file__).parent
# The program itself, with the colour embedder in place of a backbone; HOLD keeps photos in the engine for so long.
# Where MAP names a file, a map makes that file when it is begun and never ends, and requests have no time to end.
PROGRAM = """
import os, sys, time
from pathlib import Path
import conftest
from conftest import ColourEngine, colour_embedder
import fewshot.gallery.pinning
run = ColourEngine.run
def slow(self, pixels):
    time.sleep(float(os.environ.get("HOLD", "0")))
    return run(self, pixels)
ColourEngine.run = slow
fewshot.gallery.pinning.open_embedder = lambda *_, **__: colour_embedder()
def endless(*_):
    Path(os.environ["MAP"]).touch()
    time.sleep(3600)
if "MAP" in os.environ:
    import fewshot.projection.coordinates, fewshot.service.server
    fewshot.projection.coordinates.coordinates = endless
    fewshot.service.server.GRACE_S = 0.1
sys.argv[0] = "fewshot"
from fewshot.cli import main
main()
"""


@pytest.fixture
def filled(gallery, leaves, monkeypatch):
    monkeypatch.setattr("fewshot.gallery.pinning.open_embedder", lambda *_, **__: colour_embedder())
    list(gallery.enroll(class_folders(leaves(n=3))))
    return gallery


def started(folder, *words, hold="0", **variables):
    """A running `fewshot serve` and its URL."""
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}", "HOLD": hold, **variables}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "serve", "--index", str(folder), "--port", "0", "--json", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return process, json.loads(line)["url"]


def stopped(process, sent=signal.SIGTERM):
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=30)
    assert "Traceback" not in stderr, stderr
    return process.returncode


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_finishes_what_was_accepted(filled, tmp_path, sent):
    photo = write_leaf(tmp_path / "new.png", LEAF_COLOURS["rust"], 5)
    process, url = started(filled.folder, hold="1.5")
    asked = raw(url, *multipart("/v1/query", photo), wait=False)
    wait_until(lambda: waiting(url) == 1)
    process.send_signal(sent)
    time.sleep(0.3)
    with pytest.raises(URLError):  # nothing new is accepted
        urlopen(f"{url}/v1/health", timeout=5)
    with asked:
        answer = b"".join(iter(lambda: asked.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"answer":"rust"' in answer
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_told_twice_to_stop_it_cuts_off_what_is_asked_and_prints_no_traceback(filled, tmp_path):
    photo = write_leaf(tmp_path / "new.png", LEAF_COLOURS["rust"], 5)
    process, url = started(filled.folder, hold="2")
    with raw(url, *multipart("/v1/query", photo), wait=False):
        wait_until(lambda: waiting(url) == 1)
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert stopped(process, signal.SIGINT) == 0


def test_a_stop_waits_for_no_map_and_who_asked_for_it_is_told(filled, tmp_path):
    begun = tmp_path / "begun"
    process, url = started(filled.folder, MAP=str(begun))
    try:
        asked = raw(url, "GET /v1/projection HTTP/1.1\nHost: 127.0.0.1\n\n", wait=False)
        wait_until(begun.exists)
        process.send_signal(signal.SIGTERM)
        with asked:
            answer = b"".join(iter(lambda: asked.recv(65536), b""))
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in head.lower()
    error = json.loads(body)["error"]
    assert error["code"] == "busy"
    assert "stopped before this was answered" in error["message"]


def test_a_port_that_is_taken_is_told_with_what_to_do(filled):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = CliRunner().invoke(main, ["serve", "--index", str(filled.folder), "--port", str(port)])
    assert done.exit_code == 2
    assert f"cannot listen at 127.0.0.1, port {port}" in done.stderr
    assert "--port" in done.stderr


def test_a_host_that_is_not_here_is_told(filled):
    words = ["--host", "192.0.2.1", "--port", "0", "--no-read-token"]
    done = CliRunner().invoke(main, ["serve", "--index", str(filled.folder), *words])
    assert done.exit_code == 2
    assert "cannot listen at 192.0.2.1" in done.stderr


def test_an_index_that_is_not_there_is_told_and_made_only_when_asked(tmp_path):
    done = CliRunner().invoke(main, ["serve", "--index", str(tmp_path / "none")])
    assert done.exit_code == 2
    assert not (tmp_path / "none").exists()
    process, url = started(tmp_path / "none", "--create")
    assert json.load(urlopen(f"{url}/v1/health"))["classes"] == 0
    assert stopped(process) == 0


def test_others_are_let_in_only_with_a_token_or_by_choice(filled):
    done = CliRunner().invoke(main, ["serve", "--index", str(filled.folder), "--host", "0.0.0.0", "--port", "0"])
    assert done.exit_code == 2
    assert "no token that would let anyone in" in done.stderr
    TokenFile(filled.folder).create("phone", ("read",))
    process, url = started(filled.folder, "--host", "0.0.0.0")
    url = url.replace("0.0.0.0", "127.0.0.1")
    assert json.load(urlopen(f"{url}/v1/session"))["read_needs_token"] is True
    process.send_signal(signal.SIGTERM)
    assert "TLS" in process.communicate(timeout=30)[1]
    process, url = started(filled.folder, "--host", "0.0.0.0", "--no-read-token")
    url = url.replace("0.0.0.0", "127.0.0.1")
    assert json.load(urlopen(f"{url}/v1/session"))["read_needs_token"] is False
    process.send_signal(signal.SIGTERM)
    assert "can ask and see every enrolled photo" in process.communicate(timeout=30)[1]


@pytest.mark.weights
def test_a_served_index_answers_without_torch(tmp_path, leaves):
    """The first answer comes in under two seconds only because torch, timm and plotly stay unloaded."""
    from fewshot.gallery import Gallery

    with Gallery(tmp_path / "real", create=True) as gallery:
        list(gallery.enroll(class_folders(leaves(n=2))))
        photo = write_leaf(tmp_path / "new.png", LEAF_COLOURS["rust"], 5)
    script = (
        "import json, sys; from pathlib import Path; from starlette.testclient import TestClient\n"
        "from fewshot.gallery import Gallery; from fewshot.service.app import create_app\n"
        "with Gallery(Path(sys.argv[1])) as gallery, TestClient(create_app(gallery)) as c:\n"
        "    answer = c.post('/v1/query', files={'photos': open(sys.argv[2], 'rb')})\n"
        "    assert answer.status_code == 200, answer.text\n"
        "    print(json.dumps(sorted(name for name in sys.modules if '.' not in name)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "real"), str(photo)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "openvino" in loaded
    assert not loaded & {"torch", "timm", "plotly", "sklearn", "umap", "matplotlib"}


def test_nothing_is_collected_until_the_service_has_started():
    with _starting() as all_is_loaded:
        assert not gc.isenabled()
        all_is_loaded()
        assert gc.isenabled()
    with pytest.raises(AddressError), _starting():
        raise AddressError("the port is taken.")
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
