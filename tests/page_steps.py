"""Steps of the tests of the web page: a real browser on a service with photos of three classes."""

import os
import shutil

import pytest
from conftest import LEAF_COLOURS, write_leaf
from service_client import listening

from fewshot.datasets import class_folders
from fewshot.service.tokens import TokenFile

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# plotly tries to set a style that the page's policy forbids, and does without.
PLOTLY_STYLE = "Applying inline style violates"


@pytest.fixture(
    name="browser", scope="module"
)  # playwright's own loop must have ended before another module starts one
def chromium():
    if CHROMIUM is None:
        message = "no Chromium: install it (Debian: apt-get install chromium)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(name="page")
def watched_page(browser):
    context = browser.new_context(viewport={"width": 1100, "height": 800}, reduced_motion="reduce")
    context.set_default_timeout(60_000)
    opened = context.new_page()
    faults = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on(
        "console",
        lambda message: (
            faults.append(message.text)
            if message.type == "error" and "Failed to load resource" not in message.text
            else None
        ),
    )
    strangers = []
    opened.on("request", lambda request: strangers.append(request.url) if "127.0.0.1" not in request.url else None)
    yield opened
    context.close()
    assert [fault for fault in faults if PLOTLY_STYLE not in fault] == []
    assert [url for url in strangers if not url.startswith(("blob:", "data:"))] == []


@pytest.fixture(name="filled")
def filled_gallery(gallery, leaves):
    list(gallery.enroll(class_folders(leaves(n=6))))
    return gallery


@pytest.fixture(name="url")
def served(filled):
    with listening(filled) as found:
        yield found


@pytest.fixture(name="word")
def writing_word(filled):
    """A token that may write."""
    return TokenFile(filled.folder).create("pathologist", ("write",))[1]


@pytest.fixture(name="rust")
def rust_photo(tmp_path):
    return write_leaf(tmp_path / "new-rust.png", LEAF_COLOURS["rust"], 900)


def blue(tmp_path, n, first=0):
    return [write_leaf(tmp_path / f"blue-{i}.png", (30, 60, 220), i) for i in range(first, first + n)]


def choose(page, *paths):
    page.set_input_files("input[type=file][multiple]", [str(path) for path in paths])


def ask(page, *paths):
    """The answers' cards, once all are there."""
    page.get_by_role("heading", name="What is on this photo?").wait_for()  # not the file chooser of the page before
    n = page.locator(".answer").count()
    choose(page, *paths)
    page.locator(".answer").nth(n + len(paths) - 1).wait_for()
    return page.locator(".answer")


def give_token(page, word):
    page.get_by_label("Your token").fill(word)
    page.get_by_role("button", name="Use it").click()


def alert(page):
    """What the page tells, without the marks that isolate names in it."""
    page.locator("#notice:not([hidden])").wait_for()
    return page.locator("#notice").inner_text().replace("\u2068", "").replace("\u2069", "")
