"""Photos as a request carries them: what is no whole body of photos is refused, and no name of a client's is a path."""

import pytest
from conftest import LEAF_COLOURS, write_leaf
from service_client import PHOTO_ROUTES, error_of, files


def test_the_type_is_told_by_the_bytes_and_not_by_the_client(client, rust):
    photos = [("photos", ("leaf.exe", rust.read_bytes(), "application/x-msdownload"))]
    assert client.post("/v1/query", files=photos).json()["predictions"][0]["answer"] == "rust"
    lying = [("photos", ("leaf.png", b"MZ not a picture", "image/png"))]
    assert client.post("/v1/query", files=lying).json()["predictions"][0]["reason"] == "bad_image"


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..\\..\\boot.ini", "/etc/shadow", "a\x00b.png", "..", "", "x" * 3000]
)
def test_a_client_s_file_name_is_a_name_and_no_path(client, write, rust, name):
    body = client.post("/v1/classes/rust/supports", files=files(rust, names=[name or " "]), headers=write).json()
    (support_id,) = body["support_ids"]
    kept = client.get(f"/v1/supports/{support_id}").json()["file"]
    assert not set(kept) & set("/\\\x00")
    assert kept not in ("", ".", "..")
    assert len(kept) <= 200


def test_no_photo_is_an_error(client):
    error_of(client.post("/v1/query"), 422, "bad_request")
    error_of(client.post("/v1/query", json={"photos": []}), 422, "bad_request")
    error = error_of(client.post("/v1/query", files=[("photo", ("a.png", b"x", "image/png"))]), 422, "bad_request")
    assert "'photos'" in error["message"]
    assert "curl" in error["hint"]


@pytest.mark.parametrize("label", ["a%2Fb", "a%2fb%2Fc"])
def test_a_label_with_a_slash_is_told_by_every_route_that_has_one(client, rust, label):
    for method, path in [(client.post, f"{label}/supports"), (client.put, label), (client.get, label)]:
        answer = method(f"/v1/classes/{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_label")
        assert "slash" in answer.json()["error"]["message"]


def test_a_body_without_a_type_is_told_in_plain_words(client):
    answer = client.post("/v1/query", content=b"x")
    assert "the request's body is of no named type; wanted multipart/form-data" in answer.json()["error"]["message"]


def test_a_body_that_is_no_multipart_is_told_so(client):
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    error_of(client.post("/v1/query", content=b"rubbish", headers=headers), 422, "bad_request")
    error_of(client.post("/v1/query", content=b"", headers={"Content-Type": "multipart/form-data"}), 422, "bad_request")


@pytest.mark.parametrize("charset", ["undefined", "punycode", "idna", "rot13", "unicode_escape", "no-such"])
def test_a_body_in_a_charset_that_is_none_is_answered_or_refused(client, rust, charset):
    body = b'--b\r\nContent-Disposition: form-data; name="photos"; filename="\xff\\ud800.png"\r\n\r\n'
    headers = {"Content-Type": f"multipart/form-data; charset={charset}; boundary=b"}
    response = client.post("/v1/query", content=body + rust.read_bytes() + b"\r\n--b--\r\n", headers=headers)
    if response.status_code != 200:
        assert "charset" in error_of(response, 422, "bad_request")["message"]


@pytest.mark.parametrize(("method", "path"), PHOTO_ROUTES)
@pytest.mark.parametrize("lost", ["inside the third photo", "before the closing boundary", "one byte"])
def test_a_body_that_was_cut_off_is_refused_and_no_photo_is_lost(client, enrolled, write, tmp_path, method, path, lost):
    photos = [write_leaf(tmp_path / f"new-{i}.png", LEAF_COLOURS["rust"], 300 + i) for i in range(3)]
    head = b'--b\r\nContent-Disposition: form-data; name="photos"; filename="%s"\r\n\r\n'
    parts = [head % photo.name.encode() + photo.read_bytes() + b"\r\n" for photo in photos]
    whole = b"".join(parts) + b"--b--"
    cut = {"inside the third photo": len(parts[-1]) // 2, "before the closing boundary": 5, "one byte": 1}[lost]
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    before = enrolled.about().generation
    sent = getattr(client, method)(path, content=whole[:-cut], headers=write | kind)
    error = error_of(sent, 422, "bad_request")
    assert "ends before its closing boundary" in error["message"]
    assert enrolled.about().generation == before
    for tail in (b"", b"\r\n", b"\r\nand what a proxy wrote behind it"):
        assert getattr(client, method)(path, content=whole + tail, headers=write | kind).is_success


@pytest.mark.parametrize(("method", "path"), PHOTO_ROUTES)
def test_a_file_in_another_field_is_refused_and_not_left_out(client, enrolled, write, tmp_path, method, path):
    photos = [write_leaf(tmp_path / f"new-{i}.png", LEAF_COLOURS["rust"], 300 + i) for i in range(3)]
    before = enrolled.about().generation
    mistyped = [*files(*photos[:2]), ("photo", ("new-2.png", photos[2].read_bytes(), "image/png"))]
    error = error_of(getattr(client, method)(path, files=mistyped, headers=write), 422, "bad_request")
    assert "a file in its field 'photo'" in error["message"]
    assert "photos=@" in error["hint"]
    nameless = [*files(*photos[:2]), ("photos", (None, photos[2].read_bytes()))]
    error = error_of(getattr(client, method)(path, files=nameless, headers=write), 422, "bad_request")
    assert "without a file name, in its field 'photos'" in error["message"]
    assert enrolled.about().generation == before
    beside = [*files(*photos), ("note", (None, b"from the field"))]  # text in a field of another name says no photo
    assert getattr(client, method)(path, files=beside, headers=write).is_success
