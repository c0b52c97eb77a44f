"""The web page in a real browser: what a person does with it, whoever they are."""

import re
from urllib.parse import quote

import pytest
from conftest import LEAF_COLOURS, write_leaf
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
from test_service_limits import wait_until

pytestmark = pytest.mark.browser
VIEWS = ["/", "/classes", "/classes/rust", "/new", "/map"]


# ---- asking


def test_a_photo_is_answered_with_all_that_is_needed_to_judge(page, url, rust):
    page.goto(url)
    card = ask(page, rust).first
    assert card.get_by_role("heading", level=2).inner_text().startswith("rust")
    assert "Recognised" in card.inner_text()
    bars = card.get_by_role("meter")
    assert bars.count() == 3
    shares = [int(bars.nth(i).get_attribute("aria-valuenow")) for i in range(3)]
    assert shares == sorted(shares, reverse=True)
    assert bars.first.get_attribute("aria-label") == "Probability of rust"
    width = bars.first.locator("span").bounding_box()["width"] / bars.first.bounding_box()["width"]
    assert width == pytest.approx(shares[0] / 100, abs=0.02)
    strip = card.get_by_role("region", name="Nearest enrolled photos").locator("img")
    assert strip.count() == 6
    strip.last.scroll_into_view_if_needed()
    for i in range(6):
        wait_until(lambda i=i: strip.nth(i).evaluate("image => image.complete && image.naturalWidth > 0"))
    tops = {round(strip.nth(i).bounding_box()["y"]) for i in range(6)}
    assert len(tops) == 1  # side by side
    assert "rust" in page.get_by_role("status").first.inner_text()


def test_a_photo_like_no_class_is_unknown_with_its_reason(page, url, tmp_path):
    page.goto(url)
    card = ask(page, write_leaf(tmp_path / "odd.png", (30, 60, 220), 1)).first
    assert card.get_by_role("heading", level=2).inner_text().startswith("unknown")
    assert "less like one class" in card.inner_text()
    assert "threshold" in card.inner_text()
    assert card.locator(".nearest img").count() == 6
    assert "If it is one of the enrolled classes after all:" in card.inner_text()  # before percentages of these alone
    choose(page, write_leaf(tmp_path / "new-rust.png", LEAF_COLOURS["rust"], 900))
    page.locator(".answer[data-reason=match]").wait_for()
    assert "If it is one" not in page.locator(".answer[data-reason=match]").inner_text()


def test_a_file_that_is_no_photo_is_told_and_the_others_are_answered(page, url, rust, tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("no photo")
    page.goto(url)
    cards = ask(page, note, rust)
    assert "Not readable" in cards.nth(0).inner_text()
    assert "not a picture" in cards.nth(0).inner_text()
    assert cards.nth(1).get_by_role("heading", level=2).inner_text().startswith("rust")


def test_many_photos_are_all_answered_in_their_order(page, url, tmp_path):
    photos = [write_leaf(tmp_path / f"{i:02d}.png", LEAF_COLOURS["blight"], 50 + i) for i in range(14)]
    page.goto(url)
    cards = ask(page, *photos)
    names = [cards.nth(i).locator(".file").inner_text() for i in range(14)]
    assert sorted(names) == [photo.name for photo in photos]


def test_the_options_restrict_join_and_list_what_cannot_be_ruled_out(page, url, rust, tmp_path):
    page.goto(url)
    page.get_by_text("Know more, ask better").click()
    page.get_by_label("Only classes like").fill("bl*, hea*")
    page.get_by_label("Also list what cannot be ruled out").check()
    card = ask(page, rust).first
    assert not card.locator(".bars").inner_text().count("rust")
    assert "Cannot be ruled out" in card.inner_text()
    page.get_by_label("Only classes like").fill("")
    page.get_by_label("All photos show one plant").check()
    other = write_leaf(tmp_path / "other.png", LEAF_COLOURS["rust"], 901)
    choose(page, rust, other)
    page.get_by_text("new-rust.png + other.png", exact=True).wait_for()
    assert page.locator(".answer").count() == 2
    page.get_by_label("Only classes like").fill("nothing-like-it")
    choose(page, rust)
    assert "fits 'nothing-like-it'" in alert(page)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_photos_of_one_name_and_one_plant_are_answered_beside_one_that_can_be_read(page, url, tmp_path, bad):
    """Some phones call every photo the same."""
    photos = [write_leaf(tmp_path / str(i) / "image.png", LEAF_COLOURS["rust"], 900 + i) for i in range(3)]
    photos[bad].write_text("no photo")
    page.goto(url)
    page.get_by_text("Know more, ask better").click()
    page.get_by_label("All photos show one plant").check()
    choose(page, *photos)
    page.locator(".answer").nth(1).wait_for()
    told, answer = page.locator(".answer").nth(0), page.locator(".answer").nth(1)
    names = ["image.png", "image (2).png", "image (3).png"]
    assert told.locator(".file").inner_text() == names.pop(bad)
    assert "Not readable" in told.inner_text()
    assert answer.locator(".file").inner_text() == " + ".join(names)
    assert answer.get_by_role("heading", level=2).inner_text().startswith("rust")
    image = answer.locator(".asked img")
    wait_until(lambda: image.evaluate("image => image.complete && image.naturalWidth > 0"))


def test_a_dropped_photo_is_asked(page, url, rust):
    page.goto(url)
    page.locator(".drop").wait_for()
    transfer = page.evaluate_handle(
        """bytes => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
            return transfer;
        }""",
        list(rust.read_bytes()),
    )
    page.dispatch_event(".drop", "drop", {"dataTransfer": transfer})
    page.get_by_text("dropped.png").first.wait_for()
    assert page.locator(".answer h2").first.inner_text().startswith("rust")


def test_the_camera_is_offered_to_phones(page, url):
    page.goto(url)
    camera = page.get_by_label("Take a photo")
    assert camera.get_attribute("capture") == "environment"
    assert camera.get_attribute("accept") == "image/*"


# ---- changing


def test_a_wrong_answer_is_corrected_and_asked_again_at_once(page, url, filled, word, tmp_path):
    page.goto(url)
    card = ask(page, write_leaf(tmp_path / "odd.png", (30, 60, 220), 1)).first
    card.get_by_text("You know what it is?").click()
    card.get_by_label("What is it?").fill("magenta spot")
    card.get_by_role("button", name="Enroll it and ask again").click()
    give_token(page, word)
    card.get_by_text(re.compile("Enrolled as .magenta spot., and asked again")).wait_for()
    heading = card.get_by_role("heading", level=2)
    assert heading.inner_text().startswith("magenta spot")
    assert heading.evaluate("node => node === document.activeElement"), "the focus is not lost with the form"
    said = page.locator(".ask-view > [role=status]").inner_text()
    assert said.startswith("Enrolled as")
    assert said.endswith("The answer: \u2068magenta spot\u2069.")
    assert [photo.file for photo in filled.supports("magenta spot")] == ["odd.png"]
    assert page.locator("#token").inner_text() == "Token set"


def test_a_picture_that_cannot_be_had_leaves_its_name_and_no_fault(page, url, word, rust):
    page.goto(url)
    page.get_by_role("heading", name="What is on this photo?").wait_for()
    page.route("**/thumbnail", lambda route: route.abort())
    page.route("**/v1/session", lambda route: route.abort())
    page.locator("#token").click()
    give_token(page, word)
    assert "cannot be reached" in alert(page)
    strip = ask(page, rust).first.get_by_role("region", name="Nearest enrolled photos").locator("img")
    strip.last.scroll_into_view_if_needed()
    wait_until(lambda: strip.last.evaluate("image => image.complete && image.naturalWidth === 0"))
    assert strip.last.get_attribute("alt")


def test_a_class_is_created_from_photos_and_then_recognised(page, url, filled, word, tmp_path):
    page.goto(f"{url}/classes")
    page.get_by_role("link", name="Create a class").click()
    page.get_by_label("Label").fill("blue leaf")
    choose(page, *blue(tmp_path, 4))
    page.get_by_text("1 more would make answers that can be trusted").wait_for()
    choose(page, *blue(tmp_path, 3, first=4))
    page.get_by_label("Leave blue-6.png out").click()
    page.get_by_role("button", name="Enroll 6 photos").click()
    give_token(page, word)
    page.get_by_role("heading", name="blue leaf: 6 photos enrolled").wait_for()
    assert len(filled.supports("blue leaf")) == 6
    page.get_by_role("link", name="Ask about a photo").click()
    card = ask(page, *blue(tmp_path, 1, first=50)).first
    assert card.get_by_role("heading", level=2).inner_text().startswith("blue leaf")


def test_a_photo_chosen_while_others_are_sent_waits_for_its_turn(page, url, filled, word, tmp_path):
    held = []
    page.route("**/supports", lambda route: held.append(route))
    page.goto(f"{url}/new?label=rust")
    page.get_by_role("button", name="Token").click()
    give_token(page, word)
    choose(page, *blue(tmp_path, 2))
    page.get_by_role("button", name="Enroll 2 photos").click()
    page.get_by_role("progressbar").wait_for()
    choose(page, *blue(tmp_path, 1, first=2))
    later = page.get_by_label("Leave blue-2.png out")
    later.wait_for()
    assert later.is_enabled()
    assert page.get_by_label("Leave blue-0.png out").is_disabled()
    assert page.locator("form button.primary").is_disabled()
    wait_until(lambda: page.evaluate("true") and held)
    held.pop().continue_()
    page.get_by_role("heading", name="rust: 2 photos enrolled").wait_for()
    page.get_by_role("button", name="Enroll 1 photo").click()
    wait_until(lambda: page.evaluate("true") and held)
    held.pop().continue_()
    page.get_by_role("heading", name="rust: 1 photo enrolled").wait_for()
    assert page.locator(".tile").count() == 0
    assert len(filled.supports("rust")) == 9


def test_creating_a_class_shows_the_warnings_and_the_refused(page, url, word, tmp_path):
    note = tmp_path / "note.txt"
    note.write_text("no photo")
    page.goto(f"{url}/new")
    page.get_by_label("Label").fill("blue leaf")
    choose(page, note, *blue(tmp_path, 2))
    page.get_by_role("button", name="Enroll 3 photos").click()
    give_token(page, word)
    page.get_by_role("heading", name="1 photo could not be used").wait_for()
    text = page.locator(".report").inner_text()
    assert "note.txt is not a picture" in text
    assert "wanted 5 to 20" in text


def test_a_class_shows_suspicious_photos_first_and_loses_the_one_removed(page, url, filled, word, tmp_path):
    from fewshot.datasets import ClassFolder

    wrong = write_leaf(tmp_path / "wrong.png", LEAF_COLOURS["mildew"], 77)
    list(filled.enroll([ClassFolder("rust", (wrong,))]))
    page.goto(f"{url}/classes/rust")
    tiles = page.locator(".photos .tile")
    tiles.first.wait_for()
    assert "wrong.png" in tiles.first.inner_text()
    assert "looks like mildew" in tiles.first.inner_text()
    page.get_by_role("button", name="Remove wrong.png").click()
    page.get_by_role("button", name="Cancel").click()
    assert tiles.count() == 7
    page.get_by_role("button", name="Remove wrong.png").click()
    page.get_by_role("button", name="Remove", exact=True).click()
    give_token(page, word)
    assert "wrong.png is removed" in alert(page)
    assert tiles.count() == 6
    assert "wrong.png" not in [photo.file for photo in filled.supports("rust")]
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Remove ")


def test_a_class_is_renamed_and_removed(page, url, filled, word):
    page.goto(f"{url}/classes/rust")
    page.get_by_text("Rename").first.click()
    page.get_by_label("New label").fill("leaf-rust")
    page.get_by_role("button", name="Rename").click()
    give_token(page, word)
    page.get_by_role("heading", name="leaf-rust").wait_for()
    assert page.url.endswith("/classes/leaf-rust")
    page.get_by_role("button", name="Remove the class").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove the class").click()
    page.get_by_role("heading", name="Classes").wait_for()
    assert "leaf-rust is removed" in alert(page)
    assert [each.label for each in filled.classes()] == ["blight", "healthy", "mildew"]


# ---- the map


def test_the_map_says_what_is_not_installed_and_how_to_get_it(page, url, base_alone):
    page.goto(f"{url}/map")
    page.get_by_role("heading", name="No map on this service yet").wait_for()
    said = page.locator(".card.empty").inner_text()
    assert "the extra 'project'" in said
    assert "pip install 'fewshot[project]'" in said
    page.get_by_role("link", name="Classes").first.click()
    page.get_by_text("powdery").or_(page.get_by_text("mildew")).first.wait_for()


def test_the_map_shows_points_and_the_photo_under_the_pointer(page, url):
    page.goto(f"{url}/map")
    points = page.locator(".plot .point")
    points.first.wait_for()
    assert points.count() == 24
    box = points.nth(3).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator(".hover:not([hidden])").wait_for()
    image = page.locator(".hover img")
    wait_until(lambda: image.evaluate("image => image.complete && image.naturalWidth > 0"))
    assert page.locator(".hover strong").inner_text() in LEAF_COLOURS
    page.select_option("#dims", "3")
    page.locator(".plot canvas").first.wait_for(state="attached")
    assert "24 photos of 4 classes" in page.get_by_role("status").first.inner_text()
    page.select_option("#method", "tsne")
    page.get_by_text("24 photos of 4 classes").wait_for()


# ---- for everyone


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", VIEWS)
def test_it_fits_a_narrow_phone_in_light_and_dark(page, url, rust, path, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(f"{url}{path}")
    page.get_by_role("heading", level=1).wait_for()
    if path == "/":
        ask(page, rust)
    if path == "/map":
        page.locator(".plot .point").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    lightness = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number).reduce((a, b) => a + b) / 3"
    )
    assert (lightness > 200) == (scheme == "light")
    small = page.evaluate(
        """[...document.querySelectorAll("button, .button, nav a")].filter((node) => node.offsetParent)
            .filter((node) => node.getBoundingClientRect().height < 28).map((node) => node.textContent)"""
    )
    assert small == []  # large enough for a finger


@pytest.mark.parametrize("path", VIEWS)
def test_everything_that_can_be_used_has_a_name_for_a_screen_reader(page, url, rust, path):
    page.goto(f"{url}{path}")
    page.get_by_role("heading", level=1).wait_for()
    if path == "/":
        ask(page, rust)
    nameless = page.evaluate(
        """[...document.querySelectorAll("a, button, input, select, summary, img, [role=meter]")].filter((node) => {
            const labels = [...(node.labels ?? [])].map((label) => label.textContent).join("");
            const own = node.getAttribute("aria-label") || node.getAttribute("alt");
            const name = own || labels || node.textContent || "";
            return !name.trim() && !(node.matches("img") && node.hasAttribute("alt"));
        }).map((node) => node.outerHTML)"""
    )
    assert nameless == []
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.locator("h1").count() == 1
    assert page.locator("main").count() == 1


def test_a_photo_can_be_asked_and_corrected_by_keyboard_alone(page, url, filled, word, rust):
    choosers = []
    # From the start: the browser must be told of it before the key is pressed.
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    page.goto(url)
    page.get_by_role("heading", level=1).wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.multiple === true"):
            break
    outline = page.evaluate("getComputedStyle(document.activeElement.closest('label')).outlineStyle")
    assert outline == "solid"  # what has the focus is seen
    page.keyboard.press("Space")
    wait_until(lambda: page.wait_for_timeout(50) or choosers)
    choosers[0].set_files(str(rust))
    page.locator(".answer").first.wait_for()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Wrong?":
            break
    page.keyboard.press("Enter")
    wait_until(lambda: page.evaluate("document.activeElement.id").endswith("-label"))
    page.keyboard.type("healthy")
    page.keyboard.press("Enter")
    page.get_by_label("Your token").wait_for()
    page.keyboard.type(word)
    page.keyboard.press("Enter")
    page.locator(".answer").get_by_text(re.compile("Enrolled as .healthy., and asked again")).wait_for()
    assert "new-rust.png" in [photo.file for photo in filled.supports("healthy")]


def test_going_between_views_keeps_the_answers_and_moves_the_focus(page, url, rust):
    page.goto(url)
    ask(page, rust)
    page.get_by_role("link", name="Classes").click()
    page.get_by_role("heading", name="Classes").wait_for()
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.get_by_role("link", name="Classes").get_attribute("aria-current") == "page"
    page.go_back()
    page.get_by_role("heading", name="What is on this photo?").wait_for()
    assert page.locator(".answer").count() == 1


def test_a_name_that_is_markup_is_shown_as_text(page, url, filled, word, tmp_path):
    from fewshot.datasets import ClassFolder

    label = "<img src=x onerror=alert(1)>"
    folder = ClassFolder(label, tuple(blue(tmp_path, 5)))
    list(filled.enroll([folder]))
    page.goto(f"{url}/classes")
    page.get_by_text(label).wait_for()
    page.goto(url)
    card = ask(page, *blue(tmp_path, 1, first=9)).first
    assert card.locator("h2").inner_text().startswith(label)


@pytest.mark.parametrize(
    "label", ["<a href='javascript:alert(1)'>come", "gpj.\u202ereversed", "\u2067right to left", "\u2069\u202eout"]
)
def test_a_hostile_label_is_shown_safely_in_every_view(page, url, filled, word, tmp_path, label):
    """No link, no script, and no mark of it turns what stands beside it."""
    from fewshot.datasets import ClassFolder

    list(filled.enroll([ClassFolder(label, tuple(blue(tmp_path, 5)))]))
    page.goto(f"{url}/classes")
    tile = page.get_by_role("link", name=label).first
    tile.wait_for()
    assert tile.locator(".name").evaluate("node => getComputedStyle(node).unicodeBidi") == "isolate"
    page.goto(f"{url}/map")
    page.locator(".legendtext").first.wait_for(timeout=60_000)
    assert page.locator(".plot a").count() == 0
    legend = page.locator(".legendtext").all_text_contents()
    shown = "".join(letter for letter in label if letter not in "\u202e\u2067\u2069")
    assert shown in legend
    page.evaluate("token => sessionStorage.setItem('token', token)", word)
    page.goto(f"{url}/classes/{quote(label)}")
    assert page.locator("h1").inner_text() == label
    assert page.locator("h1").evaluate("node => getComputedStyle(node).unicodeBidi") == "isolate"
    assert page.evaluate("document.querySelectorAll('main a[href^=http]').length") == 0
