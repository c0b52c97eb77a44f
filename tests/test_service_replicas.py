"""Ray Serve answers as `fewshot serve` does, from replicas that are made from the configuration in deploy/."""

import os
import socket
from pathlib import Path

import httpx
import pytest
from conftest import LEAF_COLOURS, write_leaf

from fewshot.datasets import class_folders
from fewshot.errors import UsageError
from fewshot.gallery import Gallery
from fewshot.recipes import read_yaml
from fewshot.service.tokens import TokenFile

ROOT = Path(__file__).parents[1]


@pytest.fixture
def ray_here(monkeypatch):
    """A small Ray on this machine, gone after the test."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    import ray
    from ray import serve

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)
    yield
    serve.shutdown()
    ray.shutdown()


@pytest.mark.weights
def test_a_replica_answers_one_photo_as_the_index_does(tmp_path, leaves, ray_here):
    from ray import serve
    from ray.serve.schema import ServeDeploySchema

    from fewshot.service.replicas import app

    config = ServeDeploySchema.model_validate(read_yaml(ROOT / "deploy" / "serve.yaml"))
    photo = write_leaf(tmp_path / "new.png", LEAF_COLOURS["rust"], 5)
    with Gallery(tmp_path / "index", create=True) as gallery:
        list(gallery.enroll(class_folders(leaves(n=2))))
        (expected,) = gallery.query([photo])
        _, word = TokenFile(gallery.folder).create("reader", ("read",))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (application,) = config.applications
    arguments = {**application.args, "index": str(tmp_path / "index"), "threads": 1}
    (deployment,) = application.deployments
    served = app(arguments)
    serve.start(http_options={"host": config.http_options.host, "port": port}, proxy_location="HeadOnly")
    serve.run(served, name=application.name, route_prefix=application.route_prefix)
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/v1/health/ready").json()["supports"] == 8
        assert client.post("/v1/query", files={"photos": photo.read_bytes()}).status_code == 401
        answer = client.post(
            "/v1/query", files={"photos": ("new.png", photo.read_bytes())}, headers={"Authorization": f"Bearer {word}"}
        )
        assert answer.status_code == 200, answer.text
        (said,) = answer.json()["predictions"]
    assert said["answer"] == expected.answer
    assert [each["label"] for each in said["matches"]] == [each.label for each in expected.matches]
    assert deployment.name in serve.status().applications[application.name].deployments
    assert os.environ.get("FEWSHOT_THREADS") is None  # set in the replica, not here


def test_an_argument_that_is_none_suggests_the_nearest():
    pytest.importorskip("ray")
    from fewshot.service.replicas import app

    with pytest.raises(UsageError) as caught:
        app({"index": "x", "read_tokens": True})
    assert "Did you mean 'read_token'?" in caught.value.hint
    with pytest.raises(UsageError, match="name no index"):
        app({})
