"""The HTTP API: what each route answers, that it answers as the command line does, and the one shape of its errors."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import LEAF_COLOURS, colour_embedder, eventually, write_leaf
from service_client import PHOTO_ROUTES, error_of, files, serving, shared_guard, token

from fewshot.cli import main
from fewshot.datasets import class_folders
from fewshot.gallery import Gallery
from fewshot.records import NamedBytes, Question, SkippedPhoto
from fewshot.service.batching import Batcher
from fewshot.service.settings import Settings
from fewshot.service.work import N_READERS


def first_support(client, label="rust"):
    return client.get(f"/v1/classes/{label}").json()["photos"][0]


# ---- query


def test_a_photo_is_recognised(client, rust):
    response = client.post("/v1/query", files=files(rust))
    assert response.status_code == 200
    (found,) = response.json()["predictions"]
    assert found["file"] == "new-rust.png"
    assert found["answer"] == "rust"
    assert found["matches"][0]["label"] == "rust"
    assert [photo["label"] for photo in found["nearest"]] == ["rust"] * 3
    assert "covering" not in found


def cli_answers(monkeypatch, index, *words):
    monkeypatch.setattr("fewshot.gallery.pinning.open_embedder", lambda *_, **__: colour_embedder())
    result = CliRunner().invoke(main, ["query", *map(str, words), "--index", str(index), "--json"])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ([], {}),
        (["--top", "1", "--nearest", "0"], {"top": 1, "nearest": 0}),
        (["--top", "9", "--nearest", "30"], {"top": 9, "nearest": 30}),
        (["--within", "r*", "--within", "bl*"], {"within": ["r*", "bl*"]}),
        (["--coverage", "0.8"], {"coverage": 0.8}),
        (["--together"], {"together": True}),
        (["--together", "--coverage", "0.5", "--within", "*"], {"together": True, "coverage": 0.5, "within": ["*"]}),
    ],
)
def test_answers_equal_those_of_the_command_line(enrolled, tmp_path, monkeypatch, options, parameters):
    """Every number and word; only the folder, which a client does not send, is missing from a photo's name."""
    photos = [write_leaf(tmp_path / f"{label}.png", colour, 800) for label, colour in LEAF_COLOURS.items()]
    photos += [write_leaf(tmp_path / "odd.png", (30, 60, 220), 1), tmp_path / "note.txt"]
    photos[-1].write_text("no photo")
    expected = cli_answers(monkeypatch, enrolled.folder, *photos, *options)
    with serving(enrolled) as client:
        response = client.post("/v1/query", files=files(*photos), params=parameters)
    assert response.status_code == 200, response.text
    found = response.json()["predictions"]
    for line in expected:
        line["file"] = line["file"].replace(f"{tmp_path}/", "")
        if "files" in line:
            line["files"] = [name.replace(f"{tmp_path}/", "") for name in line["files"]]
    assert found == expected
    assert {"bad_image"} < {line["reason"] for line in found}


@pytest.mark.weights
def test_answers_of_the_shipped_backbone_equal_those_of_the_command_line(tmp_path):
    from fewshot.samples import write_samples

    write_samples(tmp_path / "leaves", n_support=4, n_query=2)
    index = tmp_path / "index"
    photos = sorted((tmp_path / "leaves" / "query").rglob("*.jpg"))
    with Gallery(index, create=True) as gallery:
        list(gallery.enroll(class_folders(tmp_path / "leaves" / "support")))
        done = subprocess.run(
            [sys.executable, "-c", "from fewshot.cli import main; main()", "query", *map(str, photos)]
            + ["--json", "--index", str(index)],
            capture_output=True,
            text=True,
            check=True,
        )
        with serving(gallery) as client:
            found = client.post("/v1/query", files=files(*photos)).json()["predictions"]
    expected = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == 12
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours["answer"], ours["reason"]) == (theirs["answer"], theirs["reason"])
        for name in ("matches", "nearest"):
            assert [row["label"] for row in ours[name]] == [row["label"] for row in theirs[name]]
            for our_row, their_row in zip(ours[name], theirs[name], strict=True):
                assert our_row["similarity"] == pytest.approx(their_row["similarity"], abs=1e-3)


def test_a_photo_that_cannot_be_read_does_not_spoil_the_others(client, rust, tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("no photo")
    found = client.post("/v1/query", files=files(note, rust)).json()["predictions"]
    assert [row["reason"] for row in found] == ["bad_image", "match"]
    assert "not a picture" in found[0]["message"]


@pytest.mark.parametrize(
    "parameters",
    [{"top": 0}, {"top": "x"}, {"nearest": -1}, {"coverage": 1}, {"coverage": "nan"}, {"together": "maybe"}],
)
def test_a_wrong_parameter_is_named(client, rust, parameters):
    error = error_of(client.post("/v1/query", files=files(rust), params=parameters), 422, "bad_request")
    assert next(iter(parameters)) in error["message"]


def test_a_pattern_that_no_class_fits_fails_alone(client, rust):
    error = error_of(client.post("/v1/query", files=files(rust), params={"within": "russt"}), 404, "no_class_fits")
    assert "Did you mean 'rust'?" in error["hint"]
    assert client.post("/v1/query", files=files(rust)).status_code == 200


def test_an_empty_index_says_so(gallery, rust):
    with serving(gallery) as client:
        error = error_of(client.post("/v1/query", files=files(rust)), 409, "index_empty")
    assert "no class" in error["message"]


# ---- classes


def test_classes_are_listed_as_the_command_line_lists_them(client, enrolled):
    found = client.get("/v1/classes").json()["classes"]
    assert [row.pop("cover") for row in found] == [enrolled.supports(row["label"])[0].support_id for row in found]
    assert found == [each.as_dict() for each in enrolled.classes()]


def test_a_class_is_shown_from_inside(client, enrolled):
    found = client.get("/v1/classes/rust").json()
    (inspection,) = enrolled.inspect("rust")
    assert found["supports"] == 5
    assert found["similarity"] == round(inspection.similarity, 4)
    assert found["confusable"] == inspection.as_dict()["confusable"]
    assert [photo["file"] for photo in found["photos"]] == [f"rust-{i:02d}.png" for i in range(5)]


def test_suspicious_photos_come_first_when_asked_for(enrolled, client, write, tmp_path):
    wrong = write_leaf(tmp_path / "wrong.png", LEAF_COLOURS["mildew"], 77)
    client.post("/v1/classes/rust/supports", files=files(wrong), headers=write)
    usual = client.get("/v1/classes/rust").json()["photos"]
    assert usual[-1]["file"] == "wrong.png"
    found = client.get("/v1/classes/rust", params={"order": "suspicious"}).json()["photos"]
    assert found[0]["file"] == "wrong.png"
    assert found[0]["looks_like"]["label"] == "mildew"
    assert all(photo["looks_like"] is None for photo in found[1:])
    assert [photo["file"] for photo in found[1:]] == [photo["file"] for photo in usual[:-1]]


def test_an_unknown_class_suggests_the_nearest(client):
    error = error_of(client.get("/v1/classes/rusty"), 404, "unknown_label")
    assert error["hint"] == "Did you mean 'rust'?"


def test_photos_are_enrolled_and_recognised(client, write, tmp_path):
    new = [write_leaf(tmp_path / f"blue-{i}.png", (30, 60, 220), i) for i in range(6)]
    response = client.post("/v1/classes/blue%20leaf/supports", files=files(*new[:5]), headers=write)
    assert response.status_code == 201
    body = response.json()
    assert (body["label"], body["enrolled"], body["already_there"]) == ("blue leaf", 5, 0)
    assert len(body["support_ids"]) == 5
    (found,) = client.post("/v1/query", files=files(new[5])).json()["predictions"]
    assert found["answer"] == "blue leaf"
    again = client.post("/v1/classes/blue%20leaf/supports", files=files(*new[:5]), headers=write)
    assert again.status_code == 200
    assert (again.json()["enrolled"], again.json()["already_there"]) == (0, 5)


def test_enrolling_over_http_leaves_the_index_as_the_command_line_would(enrolled, client, write, leaves, tmp_path):
    folder = leaves(n=3, labels=["rust"], first_seed=50, name="more")
    client.post("/v1/classes/rust/supports", files=files(*sorted((folder / "rust").iterdir())), headers=write)
    with Gallery(tmp_path / "other", create=True, embedder=colour_embedder()) as other:
        list(other.enroll(class_folders(tmp_path / "photos")))
        list(other.enroll(class_folders(folder)))
        question = Question(top=4, n_nearest=20, coverage=0.9)
        photo = [write_leaf(tmp_path / "q.png", LEAF_COLOURS["blight"], 4)]
        assert [p.as_dict() for p in enrolled.query(photo, question)] == [
            p.as_dict() for p in other.query(photo, question)
        ]
        for label in LEAF_COLOURS:
            ours, theirs = enrolled.supports(label), other.supports(label)
            assert [(a.file, a.own_similarity) for a in ours] == [(b.file, b.own_similarity) for b in theirs]


def test_enroll_tells_what_a_careful_user_would_look_at(client, write, tmp_path):
    body = client.post(
        "/v1/classes/lonely/supports", files=files(write_leaf(tmp_path / "a.png", (0, 200, 200), 1)), headers=write
    ).json()
    assert any("wanted 5 to 20" in sentence for sentence in body["warnings"])


def test_refused_photos_are_named_and_the_others_go_in(client, write, rust, tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("no photo")
    body = client.post("/v1/classes/rust/supports", files=files(note, rust), headers=write).json()
    assert body["enrolled"] == 1
    assert [(row["file"], row["code"]) for row in body["refused"]] == [("note.txt", "not_an_image")]
    nothing = client.post("/v1/classes/rust/supports", files=files(note), headers=write)
    error = error_of(nothing, 422, "no_usable_photo")
    assert "note.txt" in error["message"]


def test_strict_is_all_or_nothing(client, enrolled, write, rust, tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("no photo")
    before = enrolled.about().generation
    for method, path in (("post", "/v1/classes/rust/supports"), ("put", "/v1/classes/rust")):
        response = getattr(client, method)(path, files=files(rust, note), headers=write, params={"strict": True})
        error_of(response, 422, "strict")
    assert enrolled.about().generation == before


def test_a_photo_of_another_class_is_refused(client, write, tmp_path):
    there = tmp_path / "photos" / "blight" / "blight-00.png"
    error = error_of(
        client.post("/v1/classes/rust/supports", files=files(there), headers=write), 422, "no_usable_photo"
    )
    assert "already enrolled as 'blight'" in error["message"]


def test_put_makes_a_class_of_exactly_these_photos(client, enrolled, write, tmp_path):
    kept = tmp_path / "photos" / "rust" / "rust-01.png"
    new = [write_leaf(tmp_path / f"new-{i}.png", LEAF_COLOURS["rust"], 300 + i) for i in range(2)]
    body = client.put("/v1/classes/rust", files=files(kept, *new), headers=write).json()
    assert (body["enrolled"], body["already_there"], body["removed"]) == (2, 1, 4)
    assert [photo.file for photo in enrolled.supports("rust")] == ["rust-01.png", "new-0.png", "new-1.png"]
    assert enrolled.problems() == []
    made = client.put(
        "/v1/classes/brand-new", files=files(write_leaf(tmp_path / "z.png", (9, 9, 200), 3)), headers=write
    )
    assert made.json()["enrolled"] == 1
    assert made.json()["removed"] == 0


def test_put_the_same_twice_changes_nothing_the_second_time(client, enrolled, write, tmp_path):
    photos = sorted((tmp_path / "photos" / "rust").iterdir())[:3]
    client.put("/v1/classes/rust", files=files(*photos), headers=write)
    before = enrolled.about().generation
    body = client.put("/v1/classes/rust", files=files(*photos), headers=write).json()
    assert (body["enrolled"], body["already_there"], body["removed"]) == (0, 3, 0)
    assert enrolled.about().generation == before


def test_put_of_unusable_photos_leaves_the_class_as_it_is(client, enrolled, write, tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("no photo")
    error_of(client.put("/v1/classes/rust", files=files(note), headers=write), 422, "no_usable_photo")
    assert len(enrolled.supports("rust")) == 5


def test_a_class_is_renamed(client, enrolled, write):
    body = client.patch("/v1/classes/rust", json={"label": "leaf-rust"}, headers=write).json()
    assert body == {"label": "leaf-rust", "was": "rust", "warnings": []}
    assert "leaf-rust" in [each.label for each in enrolled.classes()]
    error_of(client.patch("/v1/classes/blight", json={"label": "healthy"}, headers=write), 409, "label_taken")
    error_of(client.patch("/v1/classes/none", json={"label": "x"}, headers=write), 404, "unknown_label")
    error_of(client.patch("/v1/classes/blight", json={"label": ""}, headers=write), 422, "bad_request")
    error_of(client.patch("/v1/classes/blight", json={"label": "unknown"}, headers=write), 400, "bad_label")
    error_of(client.patch("/v1/classes/blight", content=b"{", headers=write), 422, "bad_request")


def test_a_removed_class_is_never_answered(client, write, rust):
    assert client.delete("/v1/classes/rust", headers=write).json() == {"label": "rust", "removed": 5}
    (found,) = client.post("/v1/query", files=files(rust), params={"top": 9, "nearest": 50}).json()["predictions"]
    assert "rust" not in [row["label"] for row in found["matches"] + found["nearest"]]
    error_of(client.delete("/v1/classes/rust", headers=write), 404, "unknown_label")


@pytest.mark.parametrize("label", ["unknown", "%20", "a%0Ab", ".hidden%00"])
def test_a_label_that_cannot_be_stored_is_refused_before_the_photos_are_looked_at(client, write, rust, label):
    response = client.post(f"/v1/classes/{label}/supports", files=files(rust), headers=write)
    error_of(response, 400, "bad_label")


def test_a_label_too_long_is_refused(client, write, rust):
    response = client.post(f"/v1/classes/{'x' * 201}/supports", files=files(rust), headers=write)
    error_of(response, 422, "bad_request")


# ---- supports


def test_a_support_is_shown_with_its_thumbnail(client):
    photo = first_support(client)
    assert client.get(f"/v1/supports/{photo['support_id']}").json() == {
        key: value for key, value in photo.items() if key != "looks_like"
    }
    picture = client.get(f"/v1/supports/{photo['support_id']}/thumbnail")
    assert picture.headers["content-type"] == "image/webp"
    assert picture.content[:4] == b"RIFF"
    assert picture.content[8:12] == b"WEBP"
    assert picture.headers["cache-control"] == "private, no-cache"
    tag = {"If-None-Match": picture.headers["etag"]}
    again = client.get(f"/v1/supports/{photo['support_id']}/thumbnail", headers=tag)
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(("first_seed", "status"), [(0, 304), (500, 200)])
def test_a_thumbnail_is_known_by_its_content_and_not_by_its_id(client, leaves, tmp_path, first_seed, status):
    """Another index, served later at the same address, has other photos under the same ids."""
    path = "/v1/supports/1/thumbnail"
    seen = client.get(path)
    with Gallery(tmp_path / "other", create=True, embedder=colour_embedder()) as other:
        list(other.enroll(class_folders(leaves(n=5, first_seed=first_seed, name="others"))))
        with serving(other) as others:
            found = others.get(path, headers={"If-None-Match": seen.headers["etag"]})
            assert (found.status_code, found.content) == (status, b"" if status == 304 else others.get(path).content)
    assert (found.headers["etag"] == seen.headers["etag"]) == (status == 304)
    assert found.content != seen.content


@pytest.mark.parametrize("path", ["/v1/supports/999", "/v1/supports/999/thumbnail"])
def test_a_support_that_is_not_there_is_told_so(client, path):
    error_of(client.get(path), 404, "unknown_support")


@pytest.mark.parametrize("support_id", ["0", "-1", "x", str(2**63), "1.5"])
def test_an_id_that_cannot_be_is_refused(client, support_id):
    error_of(client.get(f"/v1/supports/{support_id}"), 422, "bad_request")


def test_a_removed_support_is_as_if_it_had_never_been_enrolled(client, enrolled, write, tmp_path):
    photo = first_support(client)
    gone = client.delete(f"/v1/supports/{photo['support_id']}", headers=write)
    assert gone.json()["file"] == photo["file"]
    error_of(client.delete(f"/v1/supports/{photo['support_id']}", headers=write), 404, "unknown_support")
    with Gallery(tmp_path / "other", create=True, embedder=colour_embedder()) as other:
        folder = tmp_path / "photos"
        (folder / "rust" / photo["file"]).unlink()
        list(other.enroll(class_folders(folder)))
        asked = [write_leaf(tmp_path / "q.png", LEAF_COLOURS["rust"], 4)]
        question = Question(top=4, n_nearest=0, coverage=0.9)
        assert [p.as_dict() for p in enrolled.query(asked, question)] == [
            p.as_dict() for p in other.query(asked, question)
        ]
        mine, theirs = ([s.own_similarity for s in each.supports("rust")] for each in (enrolled, other))
        assert mine == theirs
    assert enrolled.problems() == []


def test_the_last_photo_of_a_class_goes_only_with_the_class(client, enrolled, write, rust):
    client.put("/v1/classes/rust", files=files(rust), headers=write)
    photo = first_support(client)
    error = error_of(client.delete(f"/v1/supports/{photo['support_id']}", headers=write), 409, "last_support")
    assert "Remove the class" in error["hint"]
    assert len(enrolled.supports("rust")) == 1


# ---- the map


@pytest.mark.parametrize("dims", [2, 3])
def test_the_map_shows_every_photo(client, dims):
    body = client.get("/v1/projection", params={"method": "pca", "dims": dims}).json()
    assert (body["method"], body["dims"], body["supports"], len(body["points"])) == ("pca", dims, 20, 20)
    assert all((point["z"] is None) == (dims == 2) for point in body["points"])
    assert {point["label"] for point in body["points"]} == set(LEAF_COLOURS)


def test_the_map_is_made_once_a_change(client, write, rust, monkeypatch):
    from fewshot.projection import coordinates

    calls = []
    make = coordinates.coordinates
    monkeypatch.setattr(coordinates, "coordinates", lambda *a, **k: calls.append(a[1:3]) or make(*a, **k))
    first = client.get("/v1/projection").json()
    assert client.get("/v1/projection").json() == first
    assert calls == [("pca", 2)]
    client.post("/v1/classes/rust/supports", files=files(rust), headers=write)
    second = client.get("/v1/projection").json()
    assert second["generation"] == first["generation"] + 1
    assert len(second["points"]) == 21
    assert len(calls) == 2


def test_a_map_without_what_draws_it_is_refused_with_the_extra_s_name(client, base_alone):
    for path in ("/v1/projection", "/static/plotly.min.js"):
        error = error_of(client.get(path), 501, "missing_extra")
        assert "fewshot[project]" in error["hint"]


def test_a_map_of_too_few_photos_says_so(gallery):
    with serving(gallery) as client:
        error_of(client.get("/v1/projection"), 422, "too_few_points")


@pytest.mark.parametrize("parameters", [{"method": "lda"}, {"dims": 4}, {"dims": "two"}])
def test_a_map_that_cannot_be_drawn_is_refused(client, parameters):
    error_of(client.get("/v1/projection", params=parameters), 422, "bad_request")


# ---- other processes


def test_enrolments_by_another_process_are_seen_without_a_restart(client, enrolled, tmp_path):
    new = [write_leaf(tmp_path / f"blue-{i}.png", (30, 60, 220), i) for i in range(5)]
    asked = write_leaf(tmp_path / "blue-asked.png", (30, 60, 220), 99)
    (before,) = client.post("/v1/query", files=files(asked)).json()["predictions"]
    assert before["answer"] != "blue"
    script = (
        "import sys; from pathlib import Path; from conftest import colour_embedder; from fewshot.gallery import "
        "Gallery; from fewshot.datasets import ClassFolder\n"
        "with Gallery(Path(sys.argv[1]), embedder=colour_embedder()) as gallery:\n"
        "    list(gallery.enroll([ClassFolder('blue', tuple(map(Path, sys.argv[2:])))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(enrolled.folder), *map(str, new)],
        env={"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}", "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (after,) = client.post("/v1/query", files=files(asked)).json()["predictions"]
    assert after["answer"] == "blue"
    assert client.get("/v1/health").json()["classes"] == 5


@pytest.mark.parametrize(("method", "path"), PHOTO_ROUTES)
def test_another_backbone_given_by_another_process_is_taken_up(leaves, tmp_path, monkeypatch, rust, method, path):
    """Whatever is asked first."""
    sizes = {"colours": 64, "others": 32}

    def open_colours(choice, *, source=None, on_notice=None):
        name = choice.backbone or (source.name if source else "colours")
        return colour_embedder(name, sizes[name])

    monkeypatch.setattr("fewshot.gallery.pinning.open_embedder", open_colours)
    monkeypatch.setattr("fewshot.gallery.pinning.on_this_machine", lambda source: source)
    from fewshot.embedder import EmbedderChoice

    with Gallery(tmp_path / "index", create=True) as gallery:
        list(gallery.enroll(class_folders(leaves(n=5))))
        with serving(gallery) as client:
            word = token(gallery)

            def asked():
                return getattr(client, method)(path, files=files(rust), headers=word)

            assert client.post("/v1/query", files=files(rust)).status_code == 200
            with Gallery(tmp_path / "index", choice=EmbedderChoice("others")) as other:
                other.reindex()
            batcher = client.app.state.work.batcher
            before = batcher._embedder
            assert before._runners is not None
            error = error_of(asked(), 503, "index_changed")
            assert error["hint"] == "Ask again."
            eventually(lambda: batcher.is_ready)  # without another photo: who is not ready may get none
            assert before._runners is None  # its threads have ended
            assert batcher._embedder is not before
            assert client.get("/v1/health/ready").status_code == 200
            assert asked().is_success
            (found,) = client.post("/v1/query", files=files(rust)).json()["predictions"]
            assert found["answer"] == "rust"
        assert gallery.problems() == []


# ---- errors and headers of every route


def test_what_is_not_there_is_told_in_the_one_shape(client):
    error_of(client.get("/v1/nothing"), 404, "no_such_page")
    error_of(client.get("/v1/classes/a/b"), 404, "no_such_page")
    wrong = client.put("/v1/query")
    error_of(wrong, 405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


def test_what_nobody_foresaw_is_an_opaque_500_with_an_id(enrolled, rust, monkeypatch, caplog):
    with serving(enrolled) as client:
        monkeypatch.setattr(enrolled, "classes", lambda: 1 / 0)
        response = client.get("/v1/classes")
    error = error_of(response, 500, "unforeseen")
    assert "division" not in response.text
    assert "X-Request-Id" in error["hint"]
    assert response.headers["x-content-type-options"] == "nosniff"
    logged = [record for record in caplog.records if response.headers["x-request-id"] in record.getMessage()]
    assert logged
    assert logged[0].exc_info


def test_a_failure_in_the_engine_reaches_the_client_and_the_next_photo_is_answered(enrolled, rust, monkeypatch):
    with serving(enrolled) as client:
        assert client.post("/v1/query", files=files(rust)).status_code == 200
        engine = enrolled.embedder().open_for_many()
        run = type(engine).run
        monkeypatch.setattr(type(engine), "run", lambda *_: 1 / 0)
        error_of(client.post("/v1/query", files=files(rust)), 500, "unforeseen")
        monkeypatch.setattr(type(engine), "run", run)
        assert client.post("/v1/query", files=files(rust)).status_code == 200


def test_what_needs_no_engine_waits_for_no_batch_and_does_not_fail_with_one(enrolled, tmp_path, rust, monkeypatch):
    """A photo that is enrolled already comes while the engine is at work; the batch after that fails."""
    batcher = Batcher(enrolled, Settings(guarded=False), lambda _: None)
    engine, gate, entered = enrolled.embedder().open_for_many(), threading.Event(), threading.Event()

    def run(*_):
        entered.set()
        assert gate.wait(20)
        gate.clear()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(engine), "run", run)
    asked, enrolling = NamedBytes("new.png", rust.read_bytes()), tmp_path / "photos" / "rust" / "rust-00.png"
    batcher.start()
    try:
        first = batcher.submit([asked], Question())
        assert entered.wait(20)
        known = batcher.submit([NamedBytes("known.png", enrolling.read_bytes())], None)
        second = batcher.submit([asked], Question())
        eventually(lambda: batcher._done and batcher._ready)
        entered.clear()
        gate.set()
        assert entered.wait(20), "the second batch is in the engine"
        (outcome,), _ = known.result(0)
        assert isinstance(outcome, SkippedPhoto)
        gate.set()
        for failed in (first, second):
            with pytest.raises(RuntimeError, match="out of memory"):
                failed.result(20)
    finally:
        gate.set()
        batcher.close(20)


@pytest.mark.parametrize("path", ["/v1/health", "/v1/nothing", "/v1/classes/none", "/metrics", "/v1/openapi.json"])
def test_every_response_has_its_headers(client, path):
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"
    assert len(headers["x-request-id"]) == 16
    assert headers["cache-control"] == "no-store"


# ---- health and metrics


def test_health_says_live_and_ready(client, enrolled):
    client.post("/v1/query")  # whatever comes first
    for path in ("/v1/health", "/v1/health/live"):
        body = client.get(path).json()
        assert (body["live"], body["index"], body["classes"], body["supports"]) == (True, enrolled.name, 4, 20)
    while not client.get("/v1/health").json()["ready"]:
        pass
    assert client.get("/v1/health/ready").status_code == 200


def test_liveness_is_told_while_every_read_waits_for_a_silent_database(enrolled, monkeypatch):
    gate, size = threading.Event(), enrolled.size

    def silent():
        assert gate.wait(20)
        return size()

    with serving(enrolled) as client:
        eventually(lambda: client.get("/v1/health").json()["ready"])
        monkeypatch.setattr(enrolled, "size", silent)
        with ThreadPoolExecutor(N_READERS + 1) as pool:
            asked = [pool.submit(client.get, "/v1/health/ready") for _ in range(N_READERS)]
            try:
                eventually(lambda: client.app.state.work._readers._n_unfinished == N_READERS)
                body = pool.submit(client.get, "/v1/health/live").result(5).json()
            finally:
                gate.set()
            assert [each.result(20).status_code for each in asked] == [200] * N_READERS
    assert (body["live"], body["ready"], body["supports"]) == (True, True, 20)


def test_a_backbone_that_cannot_be_opened_leaves_the_service_live_and_not_ready(enrolled, rust, monkeypatch):
    from fewshot.errors import EngineError

    def broken():
        raise EngineError("no engine here.")

    monkeypatch.setattr(enrolled, "embedder", broken)
    with serving(enrolled) as client:
        assert client.get("/v1/health/live").status_code == 200
        error = error_of(client.get("/v1/health/ready"), 503, "busy")
        assert error["message"].startswith("the service is not ready")
        assert error_of(client.post("/v1/query", files=files(rust)), 500, "engine")["message"] == "no engine here."


def metric(client, name):
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name)]
    assert lines, name
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def test_metrics_count_what_happened(client, write, rust, tmp_path):
    odd = write_leaf(tmp_path / "odd.png", (30, 60, 220), 1)
    client.post("/v1/query", files=files(rust, rust, odd))
    client.get("/v1/classes/rust")
    client.get("/v1/classes/blight")
    client.get("/nowhere/at/all")
    requests = metric(client, "fewshot_requests_total")
    assert requests['fewshot_requests_total{method="POST",route="/v1/query",status="200"}'] == 1
    assert requests['fewshot_requests_total{method="GET",route="/v1/classes/{label}",status="200"}'] == 2
    assert requests['fewshot_requests_total{method="GET",route="none",status="404"}'] == 1
    assert metric(client, "fewshot_request_seconds_count")
    assert metric(client, "fewshot_batch_photos_sum")["fewshot_batch_photos_sum"] == 3
    assert metric(client, "fewshot_classes")["fewshot_classes"] == 4
    assert metric(client, "fewshot_supports")["fewshot_supports"] == 20
    reasons = metric(client, "fewshot_photos_total")
    assert reasons['fewshot_photos_total{reason="unknown"}'] == 1
    assert metric(client, "fewshot_unknown_rate")["fewshot_unknown_rate"] == pytest.approx(1 / 3, abs=0.01)
    assert metric(client, "fewshot_waiting_photos")["fewshot_waiting_photos"] == 0


def test_decoders_that_died_are_counted(client, rust):
    client.post("/v1/query", files=files(rust))
    (before,) = metric(client, "fewshot_decoders_died_total").values()
    shared_guard()._free.queue[-1]._process.kill()
    assert client.post("/v1/query", files=files(rust)).json()["predictions"][0]["answer"] == "rust"
    (after,) = metric(client, "fewshot_decoders_died_total").values()
    assert after == before + 1


def test_the_photos_of_a_request_share_batches(gallery, leaves, tmp_path, monkeypatch):
    list(gallery.enroll(class_folders(leaves(n=5))))
    engine_type = type(gallery.embedder().open_for_many())
    run = engine_type.run

    def slow_run(*given):
        time.sleep(0.05)  # an engine that takes no time leaves nothing to share where decoders are slow
        return run(*given)

    monkeypatch.setattr(engine_type, "run", slow_run)
    photos = sorted((tmp_path / "photos").rglob("*.png"))
    with serving(gallery, Settings(n_decoders=2)) as client:
        assert client.post("/v1/query", files=files(*photos)).status_code == 200
        batches = metric(client, "fewshot_batch_photos_count")["fewshot_batch_photos_count"]
    assert batches < len(photos)
