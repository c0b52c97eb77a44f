"""The OpenAPI description is complete, and whatever a client makes of it is answered as it says."""

import subprocess
import sys
import threading
from pathlib import Path

import fastapi.routing
import pytest
from conftest import LEAF_COLOURS, write_leaf
from service_client import files, listening, serving

from fewshot.cli.serve import serve
from fewshot.datasets import class_folders
from fewshot.records import ClassSummary, Prediction, Support
from fewshot.service import shapes
from fewshot.service.settings import Settings
from fewshot.service.tokens import TokenFile

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
ROUTES = {
    ("post", "/v1/query"),
    ("get", "/v1/classes"),
    ("get", "/v1/classes/{label}"),
    ("put", "/v1/classes/{label}"),
    ("patch", "/v1/classes/{label}"),
    ("delete", "/v1/classes/{label}"),
    ("post", "/v1/classes/{label}/supports"),
    ("get", "/v1/supports/{support_id}"),
    ("delete", "/v1/supports/{support_id}"),
    ("get", "/v1/supports/{support_id}/thumbnail"),
    ("get", "/v1/projection"),
    ("get", "/v1/health"),
    ("get", "/v1/health/live"),
    ("get", "/v1/health/ready"),
    ("get", "/v1/session"),
    ("get", "/metrics"),
}


@pytest.fixture
def filled(gallery, leaves):
    list(gallery.enroll(class_folders(leaves(n=3))))
    return gallery


@pytest.fixture
def described(filled):
    with serving(filled) as client:
        return client.get("/v1/openapi.json").json()


def operations(described):
    return {
        (method, path): operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }


def test_every_route_is_described_and_no_other(described):
    assert set(operations(described)) == ROUTES


def test_every_operation_says_what_it_does_and_how_it_fails(described):
    for name, operation in operations(described).items():
        assert operation["summary"], name
        assert operation["description"], name
        assert {"400", "422", "429", "500", "503"} <= set(operation["responses"]), name
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                shape = response["content"]["application/json"]["schema"]
                assert shape == {"$ref": "#/components/schemas/ErrorBody"}, (name, status)


def test_every_route_and_every_metric_is_in_the_documentation(described, filled):
    text = (Path(__file__).parents[1] / "docs" / "service.md").read_text()
    for _, path in operations(described):
        assert path.replace("{label}", "corn-rust").replace("{support_id}", "17") in text, path
    with serving(filled) as client:
        names = {line.split()[2] for line in client.get("/metrics").text.splitlines() if line.startswith("# TYPE")}
    for name in names:
        documented = name.startswith("process_") or name.removesuffix("_created") in text
        assert documented or name.removesuffix("_created") + "_total" in text, name


def test_every_option_of_serve_with_a_limit_is_in_the_documentation():
    text = (Path(__file__).parents[1] / "docs" / "service.md").read_text()
    for parameter in serve.params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            known_elsewhere = option in ("--json", "--backbone", "--precision", "--engine")
            assert known_elsewhere or option in text, option


def test_every_shape_has_an_example_that_fits_it(described):
    for name, shape in described["components"]["schemas"].items():
        getattr(shapes, name).model_validate(shape["example"], strict=True)


# The routes whose answers may be large: method, path, and the shape that they state.
LARGE = [
    ("POST", "/v1/query?top=4&nearest=12", shapes.Answers),
    ("POST", "/v1/query?coverage=0.8", shapes.Answers),
    ("POST", "/v1/query?together=true", shapes.Answers),
    ("GET", "/v1/classes", shapes.Classes),
    ("GET", "/v1/classes/rust", shapes.Class),
    ("GET", "/v1/classes/rust?order=suspicious", shapes.Class),
    ("GET", "/v1/projection?dims=2", shapes.Projection),
    ("GET", "/v1/projection?dims=3", shapes.Projection),
]


@pytest.mark.parametrize(("method", "path", "shape"), LARGE)
def test_a_large_answer_is_made_beside_the_loop_and_is_what_its_shape_says(
    filled, tmp_path, monkeypatch, method, path, shape
):
    photos = [write_leaf(tmp_path / "new-rüst.png", LEAF_COLOURS["rust"], 900), tmp_path / "note.txt"]
    photos[1].write_text("no photo")
    threads = set()

    def noting(as_dict):
        def noted(self):
            threads.add(threading.current_thread().name.partition("-")[0])
            return as_dict(self)

        return noted

    async def on_the_loop(**_):
        raise AssertionError("the framework serialises this answer on the loop")

    with serving(filled) as client:
        for record in (Prediction, Support, ClassSummary):
            monkeypatch.setattr(record, "as_dict", noting(record.as_dict))
        monkeypatch.setattr(fastapi.routing, "serialize_response", on_the_loop)
        response = client.request(method, path, files=files(*photos) if method == "POST" else None)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    assert threads <= {"read"}
    # Every name that the shape wants is there and no other, each value of the type that it states.
    found = shape.model_validate_json(response.content, strict=True)
    assert found.model_dump(mode="json", exclude_unset=True) == response.json()
    facts = response.json()
    assert sum(len(value) for value in facts.values() if isinstance(value, list)) >= 2


def test_routes_that_want_a_token_say_so(described):
    for (method, path), operation in operations(described).items():
        if method not in ("get",) and path != "/v1/query":
            assert operation["security"] == [{"token": []}], (method, path)


def test_whatever_is_sent_no_answer_is_a_500_or_outside_of_the_description(filled):
    """A short run; docs/benchmarks.md has a long one."""
    word = TokenFile(filled.folder).create("tester", ("write",))[1]
    with listening(filled, Settings(rate_per_minute=0)) as url:
        done = subprocess.run(
            [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/v1/openapi.json"]
            + ["--header", f"Authorization: Bearer {word}", "--checks", ",".join(CHECKS)]
            + ["--max-examples", "5", "--seed", "1", "--request-timeout", "120", "--continue-on-failure"],
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 selected / 16 total" in done.stdout
