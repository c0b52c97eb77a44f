"""The web page in a real browser: each error that a person can meet, tokens, and what else can be fetched."""

from pathlib import Path

import pytest
from page_steps import (  # noqa: F401 (fixtures)
    alert,
    ask,
    blue,
    choose,
    chromium,
    filled_gallery,
    give_token,
    rust_photo,
    served,
    watched_page,
    writing_word,
)
from service_client import listening, slow_embedder
from test_service_limits import raw, wait_until, waiting

from fewshot.errors import BusyError
from fewshot.gallery import Gallery
from fewshot.service.settings import Settings
from fewshot.service.tokens import TokenFile

pytestmark = pytest.mark.browser


# ---- errors that a person can meet


def test_an_empty_index_says_what_to_do_on_every_page(page, gallery):
    with listening(gallery) as url:
        page.goto(url)
        page.get_by_role("heading", name="Nothing is enrolled yet").wait_for()
        page.goto(f"{url}/classes")
        page.get_by_role("link", name="Create the first class").wait_for()
        page.goto(f"{url}/map")
        page.get_by_role("heading", name="Too few photos for a map").wait_for()


def test_a_question_to_an_empty_index_is_told(page, gallery, rust):
    with listening(gallery) as url:
        page.goto(url)
        choose(page, rust)
        assert "holds no class yet" in alert(page)


def test_a_wrong_token_is_told_and_asked_for_again(page, url, word):
    page.goto(f"{url}/classes/rust")
    page.get_by_role("button", name="Remove the class").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove the class").click()
    give_token(page, "fewshot_00000000_" + "x" * 43)
    page.get_by_text("the token is none of this index").wait_for()
    page.get_by_role("button", name="Cancel").click()
    assert "the token is none of this index" in alert(page)


def test_a_refused_token_is_not_kept_and_locks_nobody_out(page, url):
    page.goto(f"{url}/classes")
    page.get_by_role("button", name="Token").click()
    give_token(page, "wrong")
    assert "refused, and is not kept" in alert(page)
    assert page.locator("#token").inner_text() == "Token"
    page.evaluate("sessionStorage.setItem('fewshot-token', 'revoked')")  # as it stands after a revocation
    page.goto(f"{url}/classes")
    page.get_by_role("link", name="rust").first.wait_for()
    assert page.locator("dialog").count() == 0
    assert page.locator("#token").inner_text() == "Token"


def test_a_token_that_may_only_read_is_told_so(page, url, filled):
    reading = TokenFile(filled.folder).create("reader", ("read",))[1]
    page.goto(f"{url}/classes/rust")
    page.get_by_role("button", name="Token").click()
    give_token(page, reading)
    assert "may read" in alert(page)
    page.get_by_label("Remove rust-00.png").click()
    page.get_by_role("button", name="Remove", exact=True).click()
    wait_until(lambda: "wanted 'write'" in alert(page))
    page.get_by_role("button", name="Token set").click()
    page.get_by_role("button", name="Forget it").click()
    wait_until(lambda: page.locator("#token").inner_text() == "Token")


def test_where_reading_needs_a_token_it_is_asked_for_and_thumbnails_show(page, filled, rust):
    reading = TokenFile(filled.folder).create("reader", ("read",))[1]
    with listening(filled, Settings(require_read_token=True)) as url:
        page.goto(f"{url}/classes")
        give_token(page, reading)
        image = page.locator(".tile img").first
        image.wait_for()
        wait_until(lambda: image.evaluate("image => image.complete && image.naturalWidth > 0"))
        page.goto(url)
        card = ask(page, rust).first
        assert card.get_by_role("heading", level=2).inner_text().startswith("rust")


def test_where_reading_needs_a_token_only_photos_near_the_view_are_fetched_and_a_refused_one_again(
    page, filled, tmp_path
):
    from fewshot.datasets import ClassFolder

    list(filled.enroll([ClassFolder("many", tuple(blue(tmp_path, 60)))]))
    reading = TokenFile(filled.folder).create("reader", ("read",))[1]
    asked, sessions = [], []
    page.on("request", lambda request: sessions.append(request.url) if "/v1/session" in request.url else None)

    def busy_at_first(route):
        asked.append(route.request.url)
        if len(asked) == 1:
            route.fulfill(status=429, headers={"Retry-After": "1"}, body="")
        else:
            route.continue_()

    def is_shown(image):
        return image.evaluate("image => image.complete && image.naturalWidth > 0")

    page.route("**/thumbnail", busy_at_first)
    with listening(filled, Settings(require_read_token=True)) as url:
        page.goto(f"{url}/classes/many")
        give_token(page, reading)
        images = page.locator(".photos img")
        wait_until(lambda: is_shown(images.first) and asked.count(asked[0]) == 2)
        assert images.count() == 60
        assert 5 <= len(set(asked)) <= 40  # fewer than there are, and more than none
        images.last.scroll_into_view_if_needed()
        wait_until(lambda: is_shown(images.last))
    assert len(sessions) == 1


@pytest.mark.parametrize(
    ("label", "told"), [("blight", "already holds a class"), ("unknown", "names no class"), ("a/b", "slash")]
)
def test_a_label_that_cannot_be_is_told(page, url, word, label, told):
    page.goto(f"{url}/classes/rust")
    page.get_by_text("Rename").first.click()
    page.get_by_label("New label").fill(label)
    page.get_by_role("button", name="Rename").click()
    give_token(page, word)
    assert told in alert(page)


def test_the_last_photo_of_a_class_is_kept_and_the_reason_told(page, url, filled, word, tmp_path):
    from fewshot.datasets import ClassFolder

    list(filled.enroll([ClassFolder("lonely", (blue(tmp_path, 1)[0],))]))
    page.goto(f"{url}/classes/lonely")
    page.get_by_label("Remove blue-0.png").click()
    page.get_by_role("button", name="Remove", exact=True).click()
    give_token(page, word)
    assert "only photo of 'lonely'" in alert(page)


def test_a_class_that_is_gone_is_told(page, url):
    page.goto(f"{url}/classes/nothing")
    assert "holds no class 'nothing'" in alert(page)


def test_a_photo_of_another_class_is_told(page, url, word, tmp_path):
    page.goto(f"{url}/new?label=rust")
    choose(page, tmp_path / "photos" / "blight" / "blight-00.png")
    page.get_by_role("button", name="Enroll 1 photo").click()
    give_token(page, word)
    assert "already enrolled as 'blight'" in alert(page)


def test_a_file_too_large_is_told_before_it_is_sent(page, filled, tmp_path):
    large = tmp_path / "large.png"
    large.write_bytes(b"x" * 3_000_000)
    with listening(filled, Settings(max_body_bytes=1_000_000)) as url:
        page.goto(url)
        choose(page, large)
        assert "large.png has 3.0 MB; at most 1.0 MB are taken" in alert(page)
    assert page.locator(".answer").count() == 0


def test_photos_of_one_plant_that_do_not_fit_one_request_are_told_and_none_is_sent(page, filled, rust, tmp_path):
    heavy = [tmp_path / f"heavy-{i}.png" for i in range(2)]
    for path in heavy:
        path.write_bytes(rust.read_bytes() + bytes(600_000))
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/v1/query" in request.url else None)
    with listening(filled, Settings(max_body_bytes=1_000_000, max_files=2)) as url:
        page.goto(url)
        page.get_by_text("Know more, ask better").click()
        page.get_by_label("All photos show one plant").check()
        choose(page, *heavy)
        assert "At most 1.0 MB can be asked together; these photos have 1.2 MB." in alert(page)
        choose(page, *blue(tmp_path, 3))
        page.get_by_text("At most 2 photos can be asked together; these are 3.").wait_for()
        assert asked == []
        page.get_by_label("All photos show one plant").uncheck()
        ask(page, *heavy)  # each by itself, they are sent one after the other
    assert len(asked) == 2


def test_a_service_that_is_gone_is_told_and_nothing_is_lost(page, filled, rust):
    with listening(filled) as url:
        page.goto(url)
        ask(page, rust)
    choose(page, rust)
    assert "cannot be reached" in alert(page)
    assert page.locator(".answer").count() == 1


def test_a_busy_service_is_asked_again_until_it_answers(page, url, rust, monkeypatch):
    from fewshot.service.batching import Batcher

    submit, refused = Batcher.submit, []

    def busy_twice(self, photos, question):
        if len(refused) < 2:
            refused.append(photos)
            raise BusyError("300 photos are waiting.", retry_after_s=1)
        return submit(self, photos, question)

    monkeypatch.setattr(Batcher, "submit", busy_twice)
    page.goto(url)
    choose(page, rust)
    page.get_by_text("Asking again in 1 s").wait_for()
    page.locator(".answer").first.wait_for()
    assert len(refused) == 2


def test_a_long_wait_can_be_stopped_and_frees_its_place(page, filled, rust):
    embedder, engine = slow_embedder()
    with Gallery(filled.folder, embedder=embedder) as gallery, listening(gallery) as url:
        page.goto(url)
        choose(page, rust)
        page.get_by_text("Looking at the photos").wait_for()
        assert engine.entered.wait(20)
        page.get_by_role("button", name="Stop").click()
        wait_until(lambda: waiting(url) == 0)
        assert page.locator(".busy").inner_text() == ""
        engine.gate.set()


def test_the_page_s_files_are_all_that_can_be_had(url):
    for path in ("/static/../app.py", "/static/%2e%2e%2fapp.py", "/static/..%5capp.py", "/static/tokens.json"):
        answer = raw(url, f"GET {path} HTTP/1.1\nHost: 127.0.0.1\nConnection: close\n\n")
        assert answer.startswith(b"HTTP/1.1 404"), path


def test_the_page_is_small_but_for_plotly_and_asked_for_again_only_when_changed(url):
    from urllib.request import Request, urlopen

    pages = Path(__file__).parents[1] / "fewshot" / "service" / "pages"
    for path in pages.iterdir():
        with urlopen(Request(f"{url}/static/{path.name}", headers={"Accept-Encoding": "gzip"})) as answer:
            assert len(answer.read()) < 20_000
            assert answer.headers["ETag"]
    tag = answer.headers["ETag"]
    again = raw(url, f"GET /static/{path.name} HTTP/1.1\nHost: 127.0.0.1\nIf-None-Match: {tag}\nConnection: close\n\n")
    assert again.startswith(b"HTTP/1.1 304")


def test_a_write_token_s_word_is_never_in_the_page_s_address_or_storage_for_good(page, url, word):
    page.goto(f"{url}/classes/rust")
    page.get_by_role("button", name="Token").click()
    give_token(page, word)
    alert(page)
    assert word not in page.url
    assert page.evaluate("localStorage.length") == 0
