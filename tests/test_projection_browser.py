"""What a person sees: the page and TensorBoard's projector, opened in a real browser."""

import shutil

import numpy as np
import pytest
from conftest import LEAF_COLOURS, colour_embedder, paint_here, write_leaf
from PIL import Image

from fewshot.datasets import class_folders
from fewshot.gallery import Gallery
from fewshot.projection import coordinates
from fewshot.projection.folder import OutputFolder
from fewshot.projection.project import Plan, Source, project
from fewshot.projection.projector import serve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: install Debian's chromium, as .ci/run does"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # playwright's own pipes, at its end
]
N_EACH, N_QUERIES = 6, 3


def scattered(vectors, n_dims, seed, k):
    """Points that come without waiting."""
    return np.random.default_rng(seed).normal(size=(len(vectors), n_dims)).astype(np.float32)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Everything drawn of four classes with queries: the folder, and what was found."""
    root = tmp_path_factory.mktemp("drawn")
    for label, colour in LEAF_COLOURS.items():
        for i in range(N_EACH):
            write_leaf(root / "photos" / label / f"{label}-{i}.png", colour, i)
        for i in range(N_QUERIES):
            write_leaf(root / "asked" / label / f"asked-{i}.png", colour, 100 + i)
    write_leaf(root / "photos" / "healthy" / "<!--<script>&.png", LEAF_COLOURS["rust"], 77)
    with pytest.MonkeyPatch.context() as patch:
        # umap compiles itself for a minute; the page only shows the points that it is given.
        paint_here(patch)
        patch.setattr(coordinates, "_umap", scattered)
        with Gallery(root / "index", create=True, embedder=colour_embedder()) as gallery:
            list(gallery.enroll(class_folders(root / "photos")))
            plan = Plan(queries=root / "asked")
            result = project(OutputFolder(root / "out"), [Source(gallery, "leaves")], plan)
            both = [Source(gallery, "leaves"), Source(gallery, "the same again")]
            project(OutputFolder(root / "both"), both, Plan(methods=("pca",)))
    return root, result


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Drawing in three dimensions without a graphics card.
        words = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=words)
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """A page that fails the test if its scripts fail."""
    opened = browser.new_page(viewport={"width": 1400, "height": 900})
    opened.set_default_timeout(60_000)
    errors = []
    opened.on("pageerror", lambda error: errors.append(error))  # not append itself: playwright marks the function
    yield opened
    opened.close()
    assert errors == []


def opened_page(page, folder):
    """The interactive page, drawn; what it asked for from anywhere but its own file."""
    asked = []
    page.on("request", lambda request: asked.append(request.url) if not request.url.startswith("data:") else None)
    page.goto((folder / "space.html").as_uri())
    page.wait_for_selector("body[data-drawn]")
    return asked[1:]


def n_shown(page, plot=0):
    """How many points of a plot are to be seen, rings apart."""
    return page.evaluate(
        "n => plots[n].plot._fullData.filter(t => t.visible === true && t.hoverinfo !== 'skip' && t.mode === 'markers')"
        ".reduce((sum, t) => sum + t.x.length, 0)",
        plot,
    )


def show(page, button):
    page.get_by_role("button", name=button, exact=True).click()
    page.wait_for_function(
        "[...document.querySelectorAll('button[aria-pressed=true]')].every(b => "
        "document.body.dataset.drawn.split('-').includes(b.dataset.value))"
    )


def test_the_page_draws_every_point_and_asks_nothing_of_the_network(page, drawn):
    root, result = drawn
    asked = opened_page(page, root / "out")
    assert n_shown(page) == len(result.spaces[0].points) >= 25 + 12 + 4
    assert asked == []
    for button in ("t-SNE", "UMAP", "3-D", "PCA"):
        show(page, button)
        assert n_shown(page) == len(result.spaces[0].points)


def test_marks_in_the_page_are_where_the_coordinates_say(page, drawn):
    root, result = drawn
    opened_page(page, root / "out")
    show(page, "UMAP")
    flat = next(each for each in result.pictures if (each.method, each.n_dims) == ("umap", 2))
    shown = page.evaluate(
        "plots[0].plot._fullData.filter(t => t.hoverinfo !== 'skip')"
        ".flatMap(t => [...t.customdata].map((row, i) => [row, t.x[i], t.y[i]]))"
    )
    assert len(shown) == len(flat.points)
    for row, x, y in shown:
        assert (x, y) == pytest.approx(tuple(flat.points[row]), abs=1e-3)


def test_a_click_in_the_legend_shows_one_class_alone_and_again_all(page, drawn):
    root, result = drawn
    opened_page(page, root / "out")
    entries = page.locator(".legend .traces")
    assert entries.all_text_contents() == sorted(LEAF_COLOURS)
    entries.nth(3).locator(".legendtoggle").click()
    page.wait_for_function("document.body.dataset.drawn.endsWith('-3')")
    rust = sum(point.label == "rust" for point in result.spaces[0].points)
    assert n_shown(page) == rust == page.locator(".scatterlayer .points path").count()
    page.get_by_role("button", name="Show all classes").click()
    page.wait_for_function("document.body.dataset.drawn.endsWith('-null')")
    assert n_shown(page) == len(result.spaces[0].points)


def test_pointing_at_a_photo_shows_it_with_label_and_similarity(page, drawn):
    root, result = drawn
    opened_page(page, root / "out")
    row = next(i for i, point in enumerate(result.spaces[0].points) if point.suspicious)
    place = page.evaluate(
        "row => { const { plot } = plots[0], { xaxis, yaxis } = plot._fullLayout, box = plot.getBoundingClientRect();"
        " const [x, y] = data.spaces[0].views['pca-2'].xyz.map(axis => axis[row]);"
        " return [box.x + xaxis._offset + xaxis.l2p(x), box.y + yaxis._offset + yaxis.l2p(y)] }",
        row,
    )
    page.mouse.move(place[0] - 3, place[1])
    page.mouse.move(*place)
    page.wait_for_selector("#card", state="visible")
    text = page.locator("#card").inner_text()
    point = result.spaces[0].points[row]
    assert text.splitlines() == [
        "healthy",
        "<!--<script>&.png",
        f"nearest: rust, similarity {point.similarity:.2f}",
        "Right label?",
    ]
    image = page.locator("#card img")
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") == 96


def test_queries_prototypes_and_doubtful_photos_have_marks_of_their_own(page, drawn):
    root, result = drawn
    opened_page(page, root / "out")
    symbols = page.evaluate(
        "plots[0].plot._fullData.filter(t => t.hoverinfo !== 'skip')"
        ".flatMap(t => [...t.customdata].map((row, i) => [row, t.marker.symbol[i]]))"
    )
    points = result.spaces[0].points
    for row, symbol in symbols:
        wanted = {"support": "circle", "query": "circle-open", "prototype": "star"}[points[row].role]
        assert symbol == wanted
    ringed = page.evaluate(
        "plots[0].plot._fullData.filter(t => t.hoverinfo === 'skip').flatMap(t => t.customdata ?? t.x)"
    )
    assert len(ringed) == sum(point.agrees is False for point in points) >= 1


def test_two_spaces_stand_side_by_side_and_isolate_together(page, drawn):
    root, _ = drawn
    opened_page(page, root / "both")
    first, second = (page.locator(".plot").nth(i).bounding_box() for i in (0, 1))
    assert first["y"] == second["y"]
    assert first["x"] + first["width"] <= second["x"] + 1
    n_all = n_shown(page, 0)
    page.locator(".legend .traces").nth(0).locator(".legendtoggle").click()
    page.wait_for_function("document.body.dataset.drawn.endsWith('-0')")
    assert n_shown(page, 0) == n_shown(page, 1) < n_all


def test_the_report_shows_the_doubtful_photo_and_every_link_leads_somewhere(page, drawn):
    root, _ = drawn
    page.goto((root / "out" / "index.html").as_uri())
    row = page.locator("tr", has_text="<!--<script>&.png")
    assert row.count() == 1
    assert row.locator("img").count() == 3
    for image in page.locator("img").all():
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    for link in page.locator("a").all():
        assert (root / "out" / link.get_attribute("href")).is_file()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in TensorBoard's own imports
def test_tensorboard_s_projector_shows_the_points_and_their_labels(page, drawn):
    root, result = drawn
    page.goto(serve(root / "out", port=0))
    frame = page.frame_locator("iframe").frame_locator("iframe")
    points = result.spaces[0].points
    frame.locator(".numDataPoints", has_text=f"{len(points)}").wait_for()
    assert frame.locator(".numDataPoints").inner_text() == str(len(points))
    frame.get_by_text("Dimension: 48").wait_for()
    # The projector's own search, which looks in the column "label" of metadata.tsv.
    for label in LEAF_COLOURS:
        frame.locator("vz-projector-input input").last.fill(label)
        wanted = sum(point.label == label for point in points)
        frame.get_by_text(f"{wanted} matches.", exact=True).wait_for()
        assert set(frame.locator("vz-projector-inspector-panel .matches-list .label").all_inner_texts()) == {label}
    page.screenshot(path=str(root / "projector.png"))
    shown = np.asarray(Image.open(root / "projector.png").convert("RGB"))[150:, 320:1090]
    for colour in LEAF_COLOURS.values():  # the thumbnails of the sprite, each class in its colour
        assert (np.abs(shown.astype(int) - colour).max(axis=2) < 40).sum() > 50
