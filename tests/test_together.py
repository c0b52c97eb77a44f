"""One answer to several photos names each of them: the same for the command line, HTTP and Python."""

import pytest
from cli_steps import lines
from conftest import LEAF_COLOURS, colour_embedder, write_leaf
from service_client import files, serving

from fewshot.records import Question
from fewshot.service import shapes


@pytest.fixture
def photos(tmp_path):
    names = ["a.png", "b + c.png", "d.png"]  # a name may hold what stands between names
    return [write_leaf(tmp_path / name, LEAF_COLOURS["rust"], 900 + i) for i, name in enumerate(names)]


@pytest.fixture(autouse=True)
def colours(monkeypatch):
    monkeypatch.setattr("fewshot.embedder._open_openvino", lambda *_: colour_embedder())


def test_the_photos_of_one_answer_are_named_one_by_one_beside_the_one_string(enrolled, photos, tmp_path):
    (tmp_path / "note.png").write_text("no photo")
    bad, found = enrolled.query([*photos, tmp_path / "note.png"], Question(together=True))
    assert found.files == tuple(map(str, photos)), "not what could not be read"
    assert found.file == " + ".join(map(str, photos))
    assert list(found.as_dict())[:3] == ["file", "files", "answer"]
    assert "files" not in bad.as_dict()


def test_the_command_line_and_http_name_them_too(enrolled, photos):
    (printed,) = lines("query", *photos, "--together", "--index", enrolled.place)
    assert printed["files"] == [str(photo) for photo in photos]
    with serving(enrolled) as client:
        response = client.post("/v1/query?together=true", files=files(*photos))
    (answered,) = response.json()["predictions"]
    assert answered["files"] == [photo.name for photo in photos]
    assert shapes.Answers.model_validate_json(response.content, strict=True).predictions[0].files == answered["files"]
    assert {**printed, "file": "", "files": []} == {**answered, "file": "", "files": []}


def test_a_photo_asked_alone_has_its_one_name(enrolled, photos):
    (printed,) = lines("query", photos[1], "--index", enrolled.place)
    assert "files" not in printed
