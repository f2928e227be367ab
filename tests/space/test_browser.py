"""The page in Debian's Chromium: with mouse, keyboard, a phone and dark mode.

`CMFAH_SCREENSHOTS` names a folder for screenshots of the tabs; docs/images/ was made this way.
"""

import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from cmfah_hf.data.scenes import FIRST_QUERY, draw_scene
from cmfah_hf.errors import CMFAHError
from cmfah_hf.space import SpaceSettings, serve
from cmfah_hf.space.settings import bundled_space

pytestmark = pytest.mark.slow

WAIT = 60_000


@pytest.fixture
def open_page(chromium, served):
    """A function that opens the page as a new user; any error in the browser fails the test."""
    contexts, wrong = [], []

    def opened(url: str = served.url, **settings):
        context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if _is_external(request.url) else None)
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def page(open_page):
    page = open_page()
    page.wait_for_selector(".cm-card")
    return page


def _is_external(address: str) -> bool:
    return not re.match(r"http://(127\.0\.0\.1|localhost):|data:|blob:", address)


def ids(page, metric: str = "aqd", target: str = "images") -> list[str]:
    cards = page.locator(f"section[data-metric={metric}][data-target={target}] .cm-card")
    return cards.evaluate_all("cards => cards.map(card => card.dataset.id)")


def tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def search(page, words: str) -> None:
    if words == "boat sun":  # the page begins with their answer, which may come again with the same times
        search(page, "star")
    page.get_by_label("Words", exact=True).first.fill(words)
    # Only the answer: the elapsed seconds next to it change.
    shown = "[...document.querySelectorAll('#answer section')].map(each => each.outerHTML).join()"
    before = page.evaluate(shown)
    page.locator("#search-words").click()
    page.wait_for_function(f"before => !['', before].includes({shown})", arg=before)


def compare(page) -> None:
    """Shows the ranking by Hamming distance too."""
    page.locator("#settings-panel > button").click()
    page.get_by_label("Also by Hamming distance").check()
    page.wait_for_selector("section[data-metric=hamming]")


def keep_screenshot(page, name: str) -> None:
    if folder := os.environ.get("CMFAH_SCREENSHOTS"):
        page.mouse.move(0, 0)
        page.set_viewport_size({"width": 1200, "height": 500})  # no taller than the content
        page.wait_for_timeout(700)  # wait for fade-in animations
        path = Path(folder) / f"{name}.png"
        page.screenshot(path=path, full_page=True)
        Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def test_text_query_finds_images_by_aqd_and_on_demand_by_hamming_distance(page, served):
    # The page shows results before a query is entered.
    assert len(ids(page)) == 12
    search(page, "house moon")
    assert len(ids(page)) == 12
    assert ids(page, "hamming") == []
    by_aqd = ids(page)
    compare(page)
    assert ids(page) == by_aqd  # the same query, although the text box was not sent again
    assert len(ids(page, "hamming")) == 12
    scores = page.locator("section[data-metric=hamming] .cm-score").all_inner_texts()
    distances = [int(score.split()[0]) for score in scores]
    assert distances == sorted(distances)
    times = page.locator(".cm-time").all_inner_texts()
    assert len(times) == 2
    assert all(re.fullmatch(r"\d+\.\d\d ms", time) for time in times)
    # Every image is loaded.
    assert page.locator(".cm-card img").evaluate_all("all => all.every(image => image.naturalWidth > 0)")
    keep_screenshot(page, "space-search")


def test_an_image_opens_in_full_with_its_path(page):
    search(page, "house moon")
    found = ids(page)
    page.locator(".cm-card").first.click()
    dialog = page.locator("dialog[open]")
    dialog.wait_for()
    assert dialog.locator(".cm-path").inner_text() == found[0]
    assert dialog.locator("img").evaluate("image => image.naturalWidth") == draw_scene(0).image.width
    assert page.get_by_role("button", name="Previous").is_disabled()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(f"dialog[open][data-id='{found[1]}']")
    page.get_by_role("button", name="Next").click()
    page.wait_for_selector(f"dialog[open][data-id='{found[2]}']")
    assert page.evaluate("document.activeElement.dataset.do") == "next"
    page.keyboard.press("Escape")
    # The focus is on the answer, from which the user goes on.
    page.wait_for_function("id => document.activeElement.dataset.id === id", arg=found[2])
    page.keyboard.press("Enter")
    page.wait_for_selector(f"dialog[open][data-id='{found[2]}']")


def test_words_to_avoid_and_a_threshold_change_the_answer_at_once(page):
    search(page, "boat sun")
    before = ids(page)
    page.locator("#settings-panel > button").click()
    page.get_by_label("Not", exact=True).fill("sun zebra")
    page.get_by_label("Not", exact=True).press("Enter")
    page.get_by_text("Unknown to the model and ignored: zebra.").wait_for()
    assert ids(page) != before
    probabilities = [int(one.rstrip("%")) for one in page.locator(".cm-score [title=Probability]").all_inner_texts()]
    assert probabilities == sorted(probabilities, reverse=True)
    # By keys: a slider is not only for a mouse.
    slider = page.locator("#least input[type=range]")
    for steps, least in ((14, 70), (5, 95)):
        for _ in range(steps):
            slider.press("ArrowRight")
        reached = [one for one in probabilities if one >= least]
        page.wait_for_function("count => document.querySelectorAll('.cm-card').length === count", arg=len(reached))
    assert reached == []
    assert "Nothing found: no answer has this probability." in page.locator("#answer").inner_text()


def test_an_example_is_searched_on_click(page):
    from playwright.sync_api import expect

    before = ids(page)
    page.get_by_role("button", name="car road").click()
    page.wait_for_function("id => document.querySelector('.cm-card').dataset.id != id", arg=before[0])
    expect(page.get_by_label("Words", exact=True).first).to_have_value("car road")


def test_an_uploaded_image_finds_images_and_texts(page, tmp_path):
    path = tmp_path / "scene.png"
    draw_scene(FIRST_QUERY + 5).image.save(path)
    page.locator("#image-panel > button").click()
    page.set_input_files("#image input[type=file]", path)
    page.wait_for_selector("section[data-target=texts]")
    assert f"scene-{FIRST_QUERY + 5}" in ids(page)
    assert len(page.locator("section[data-target=texts][data-metric=aqd] li").all()) == 12
    # The panel closes, so that the answer is below the words, and the query's image is next to the answer.
    page.locator("#image").wait_for(state="hidden")
    assert page.get_by_alt_text("The image of the query").evaluate("image => image.naturalWidth") > 0
    compare(page)
    assert f"scene-{FIRST_QUERY + 5}" in ids(page, "hamming")


def test_an_invalid_file_is_reported_in_one_line_and_the_page_still_works(page, tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("no image at all")
    page.locator("#image-panel > button").click()
    page.set_input_files("#image input[type=file]", path)
    message = page.get_by_test_id("toast-body")
    message.wait_for()
    assert "not a readable image" in message.inner_text()
    assert str(tmp_path) not in page.content()
    search(page, "star")
    assert len(ids(page)) == 12


def test_unknown_words_are_named_and_input_is_escaped(page):
    search(page, "quixotic boat <b>zzq</b>")
    assert "ignored: quixotic, b, zzq." in page.locator("#answer").inner_text()
    tab(page, "Why")
    page.locator("#why-image input").fill("<b id=typed>x</b>")
    page.locator("#why-image input").press("Enter")
    page.locator("#look").click()
    message = page.get_by_test_id("toast-body")
    message.wait_for()
    assert "Unknown image '<b id=typed>x</b>';" in message.inner_text()
    assert page.locator("#typed").count() == 0


def test_a_result_is_explained_by_words_regions_and_bits(page):
    from playwright.sync_api import expect

    search(page, "boat sun")
    compare(page)
    first = page.locator("section[data-metric=hamming] .cm-card").first
    distance = int(first.locator(".cm-score").inner_text().split()[0])
    first.click()
    page.get_by_role("button", name="Why is it here?").click()
    page.wait_for_selector("#overlay [data-region]")
    # The tab first shows the explanation of an example.
    expect(page.locator("#why-codes")).to_contain_text(f"{distance} of 64 bits differ", timeout=WAIT)
    assert page.get_by_role("tab", name="Why").get_attribute("aria-selected") == "true"
    assert len(page.locator("#why-codes .cm-differs").all()) == 2 * distance
    assert len(page.locator("#overlay [data-region]").all()) == 64

    # Another word attends to another region.
    def strongest() -> str:
        return page.locator(".cm-strongest").get_attribute("data-region")

    places = {}
    for word in ("boat", "sun"):
        page.locator("#why-word").get_by_label(word, exact=True).check()
        page.wait_for_function("word => document.querySelector('figcaption b').innerText == word", arg=word)
        places[word] = strongest()
    assert places["boat"] != places["sun"]
    page.locator(f"[data-region='{places['sun']}']").click()
    page.wait_for_selector(".cm-words")
    words = page.locator(".cm-words li span:first-child").all_inner_texts()
    assert words == ["sun", "boat"]
    keep_screenshot(page, "space-why")


def test_codes_are_mapped_and_words_are_placed_on_the_map(page):
    tab(page, "Codes")
    page.wait_for_selector(".cm-plane img")
    assert page.locator(".cm-plane img, .cm-plane i").count() == 320
    page.get_by_label("Words to place on the map").fill("boat")
    page.locator("#place").click()
    page.wait_for_selector(".cm-plane b")
    assert page.locator(".cm-plane b").inner_text() == "boat"
    assert "8 bytes per image" in page.locator("#memory").inner_text()
    keep_screenshot(page, "space-codes")


def test_quality_tab_shows_the_metrics_of_the_run(page):
    tab(page, "Quality")
    table = page.locator(".cm-table")
    table.wait_for()
    metrics = json.loads((bundled_space() / "model" / "metrics.json").read_text(encoding="utf-8"))
    for direction in ("i2t", "t2i"):
        assert f"{metrics['query'][f'hamming/{direction}/map']:.3f}" in table.inner_text()
    assert page.locator(".cm-chart polyline").count() == 4
    keep_screenshot(page, "space-quality")


def test_users_do_not_see_each_others_results(open_page):
    one, other = open_page(), open_page()
    for page in (one, other):
        page.wait_for_selector(".cm-card")
    search(one, "tree")
    search(other, "fish")
    own_results = ids(one), ids(other)
    assert own_results[0] != own_results[1]
    # Simultaneous queries each get their own result.
    for page, words in ((one, "fish"), (other, "tree")):
        page.get_by_label("Words", exact=True).first.fill(words)
        page.locator("#search-words").click()
    for page, expected in ((one, own_results[1]), (other, own_results[0])):
        page.wait_for_function("id => document.querySelector('[data-metric=aqd] .cm-card').dataset.id == id",
                               arg=expected[0])  # fmt: skip
        assert ids(page) == expected


def test_keyboard_only(page):
    """Tab moves to the words, Enter searches, opens a result and its explanation; arrows move over its regions."""

    def press_until(selector: str, most: int = 30) -> None:
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"no {selector} within {most} keys")

    press_until("#words textarea, #words input")
    page.keyboard.press("Control+A")
    page.keyboard.type("kite")
    before = page.locator("#answer").inner_html()
    page.keyboard.press("Enter")
    page.wait_for_function("before => document.querySelector('#answer').innerHTML != before", arg=before)
    press_until(".cm-card", 40)
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"  # the focus is visible
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    press_until("[data-do=why]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#overlay [data-region]")
    page.locator("#overlay [tabindex='0']").focus()
    region = int(page.evaluate("document.activeElement.dataset.region"))
    key, step = ("ArrowRight", 1) if region % 8 < 7 else ("ArrowLeft", -1)
    page.keyboard.press(key)
    assert int(page.evaluate("document.activeElement.dataset.region")) == region + step
    page.keyboard.press("Enter")
    page.wait_for_selector(".cm-words")
    assert f"column {(region + step) % 8 + 1}" in page.locator(".cm-words h4").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_layout_is_not_clipped_and_is_readable(open_page, scheme):
    page = open_page(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True, color_scheme=scheme)
    page.wait_for_selector(".cm-card")
    search(page, "house moon")
    assert page.evaluate("scrollY") == 0
    box = page.locator(".cm-card").first.bounding_box()
    assert box["y"] + box["height"] <= 844  # the first answer is in the first screen
    page.locator(".cm-card").first.tap()
    page.wait_for_selector("dialog[open]")
    assert min(ratio for ratio, _ in page.evaluate(CONTRASTS)) >= 4.5
    page.get_by_role("button", name="Close").tap()
    for name in ("Search", "Why", "Codes", "Quality"):
        tab(page, name)
        page.wait_for_selector({"Search": ".cm-card", "Why": "[data-region]", "Codes": ".cm-plane img",
                                "Quality": ".cm-table"}[name])  # fmt: skip
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        ratios = page.evaluate(CONTRASTS)
        assert ratios
        # WCAG AA for text of this size
        assert min(ratio for ratio, _ in ratios) >= 4.5, sorted(ratios)[:3]
    if scheme == "dark":
        tab(page, "Search")
        page.wait_for_selector(".cm-card >> visible=true")
        assert page.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(c => c < 60)"
        )
        if folder := os.environ.get("CMFAH_SCREENSHOTS"):
            page.wait_for_timeout(700)
            page.screenshot(path=Path(folder) / "space-phone.png")


# The contrast of every visible text with the nearest opaque background, both as computed by the browser.
CONTRASTS = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  for (const element of document.querySelectorAll('.cm-note, .cm-text, .cm-time, h4, figcaption, .cm-table td, ' +
      '.cm-table th, caption, button.primary, dialog button:enabled, .cm-path, .label-wrap span, ' +
      '.gallery-item span, .cm-score, .cm-score span, .cm-status p, label span, .cm-measures span')) {
    if (!element.innerText?.trim() || !element.checkVisibility()) continue;
    let ground = element;
    while (ground && rgba(getComputedStyle(ground).backgroundColor)[3] < 255) ground = ground.parentElement;
    const back = ground ? rgba(getComputedStyle(ground).backgroundColor) : [255, 255, 255];
    const [high, low] = [light(rgba(getComputedStyle(element).color)), light(back)].sort((a, b) => b - a);
    found.push([(high + 0.05) / (low + 0.05), element.innerText.slice(0, 40)]);
  }
  return found;
}"""


def test_a_space_without_its_model_reports_it(open_page, tmp_path):
    problem = CMFAHError(f"{tmp_path}/space.json: there is no such file; a Space needs it beside its app.py.")
    app = serve(SpaceSettings(), tmp_path, keep_on_error=True, problem=problem, block=False)
    try:
        page = open_page(app.local_url)
        page.get_by_text("This Space cannot search yet.").wait_for()
        assert "space.json: there is no such file" in page.locator(".prose.cm-status").inner_text()
        assert str(tmp_path) not in page.content()
    finally:
        app.close(verbose=False)
