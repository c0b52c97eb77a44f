"""A parameter that a route does not know is refused, so that no answer is to another question than the one asked."""

import pytest
from conftest import LEAF_COLOURS, write_leaf
from service_client import PHOTO_ROUTES, error_of, files, serving, token

from fewshot.service.settings import Settings


def test_a_mistyped_parameter_is_refused_with_the_nearest(client, tmp_path):
    photo = files(write_leaf(tmp_path / "leaf.png", LEAF_COLOURS["rust"], 900))
    error = error_of(client.post("/v1/query?wihtin=mil*", files=photo), 422, "bad_request")
    assert error["message"] == "POST /v1/query knows no parameter 'wihtin'."
    assert error["hint"] == "Did you mean 'within'? It takes top, nearest, within, coverage, together."
    answered = client.post("/v1/query?within=mil*&within=rust&top=1", files=photo)
    assert answered.status_code == 200
    assert error_of(client.post("/v1/query?top=1&Within=rust", files=photo), 422, "bad_request")["hint"]


@pytest.mark.parametrize("parameter", ["photo=3", "x", "x=", "%00=1", "strict=true&strct=true"])
def test_every_route_of_the_api_refuses_it_and_changes_nothing(client, enrolled, parameter):
    write = token(enrolled)
    before = enrolled.about()
    routes = [
        (method.upper(), path)
        for path, methods in client.get("/v1/openapi.json").json()["paths"].items()
        for method in methods
        if path.startswith("/v1/")
    ]
    assert len(routes) == 15
    for method, path in [*routes, ("HEAD", "/v1/health/ready")]:
        place = path.replace("{label}", "rust").replace("{support_id}", "1")
        response = client.request(method, f"{place}?{parameter}", headers=write)
        assert response.status_code == 422, (method, path, response.text)
        if method != "HEAD":
            error = error_of(response, 422, "bad_request")
            assert "knows no parameter" in error["message"]
            assert "It takes " in error["hint"]
    assert enrolled.about() == before


def test_who_needs_a_token_and_has_none_is_told_that_first(enrolled):
    with serving(enrolled, Settings(require_read_token=True)) as client:
        for method, path in [*PHOTO_ROUTES, ("delete", "/v1/classes/rust"), ("get", "/v1/classes")]:
            assert error_of(client.request(method, f"{path}?wihtin=x"), 401, "unauthorized")["hint"]


def test_what_the_page_and_scrapers_put_behind_their_addresses_is_left_aside(client):
    for path in ("/", "/classes/rust?from=mail", "/static/main.js?v=2", "/metrics?name=x", "/v1/openapi.json?v=1"):
        assert client.get(path).status_code == 200, path


def test_a_parameter_with_a_long_name_is_not_told_back(client):
    error = error_of(client.get(f"/v1/classes?{'x' * 5000}=1"), 422, "bad_request")
    assert len(error["message"]) < 200


def test_the_description_does_not_speak_of_it(client):
    for methods in client.get("/v1/openapi.json").json()["paths"].values():
        for operation in methods.values():
            assert "request" not in {each["name"] for each in operation.get("parameters", [])}
