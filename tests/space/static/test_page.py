"""The exported page in Debian's Chromium: the same answers as Python, without a server, on bad input too.

`CMFAH_SCREENSHOTS` names a folder for screenshots; those of docs/images/ were made this way.
"""

import base64
import io
import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dual_encoders import write_dual_encoder
from PIL import Image
from static_host import serving, visitor

from cmfah_hf import CMFAHConfig, CMFAHModel, CMFAHProcessor
from cmfah_hf.data.scenes import FIRST_QUERY, draw_scene
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex
from cmfah_hf.space.settings import SpaceSettings
from cmfah_hf.space.static import export
from cmfah_hf.space.static.export import export_page

pytestmark = pytest.mark.slow

QUERIES = ("boat sun", "House MOON!", "ﬁsh sea zebra", "kite", "umbrella’s balloon flower", "stars 2021 car tree")
MANY = 100_000


@pytest.fixture(scope="module")
def retriever(exported_model):
    return CrossMediaRetriever.from_pretrained(exported_model, device="cpu")


@pytest.fixture
def page(scenes_tab):
    """The loaded page, as a visitor finds it, but for the query."""
    scenes_tab.set_viewport_size({"width": 1200, "height": 900})
    scenes_tab.emulate_media(color_scheme="light")
    scenes_tab.keyboard.press("Escape")
    scenes_tab.get_by_label("Asymmetric distance (AQD)").evaluate("one => one.checked = true")
    scenes_tab.get_by_label("Answers").evaluate("one => one.value = '12'")
    scenes_tab.locator("#settings").evaluate("one => one.open = false")
    scenes_tab.evaluate("document.activeElement.blur()")
    return scenes_tab


def loaded(page):
    page.wait_for_selector("html[data-ready]")
    page.wait_for_selector(".card")
    return page


def asked(page, act) -> dict:
    """The next answer that the page shows after an act."""
    before = page.evaluate("(window.answers ?? []).length")
    act()
    page.wait_for_function("before => (window.answers ?? []).length > before", arg=before)
    return page.evaluate("window.answers.at(-1)")


def search(page, text: str) -> dict:
    page.get_by_label("Words").fill(text)
    return asked(page, lambda: page.get_by_role("button", name="Search", exact=True).click())


def drop(page, content: bytes, name: str, kind: str) -> None:
    page.evaluate(
        """([content, name, type]) => {
          const bytes = Uint8Array.from(atob(content), character => character.charCodeAt());
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([bytes], name, {type}));
          for (const event of ['dragover', 'drop']) {
            document.body.dispatchEvent(new DragEvent(event, {dataTransfer, bubbles: true, cancelable: true}));
          }
        }""",
        [base64.b64encode(content).decode(), name, kind],
    )


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def problem(page) -> str:
    page.wait_for_selector("#problem:not([hidden])")
    return page.locator("#problem").inner_text()


def codes_of(folder: Path) -> np.ndarray:
    return np.frombuffer((folder / "data" / "codes.bin").read_bytes(), np.uint8).reshape(-1, 8)


def keep_screenshot(page, name: str) -> None:
    if folder := os.environ.get("CMFAH_SCREENSHOTS"):
        page.mouse.move(0, 0)
        page.wait_for_timeout(300)
        path = Path(folder) / f"{name}.png"
        page.screenshot(path=path)
        Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def test_texts_have_the_codes_and_answers_of_python(page, scenes_page, retriever):
    index = HashIndex(64)
    index.add(codes_of(scenes_page))
    for text in QUERIES:
        found = search(page, text)
        values = np.array(found["values"], np.float32)
        expected = retriever.encode_texts([text])[0]
        assert np.allclose(values, expected, atol=1e-4)
        sure = np.abs(expected) > 1e-4
        assert (sure.sum(), ((values >= 0) == (expected >= 0))[sure].all()) == (64, True)
        assert found["ignored"] == retriever.ignored_words(text)
        nearest = index.search(values, k=12, metric="aqd")
        assert (found["rows"], found["scores"]) == (nearest.ids[0].tolist(), nearest.scores[0].tolist())
        # Python's own scores of these items: the last digits of a code may differ.
        own = index.search(expected, k=12, metric="aqd").scores[0]
        assert np.allclose(found["scores"], own, atol=1e-3)
    page.locator("#settings summary").click()
    found = asked(page, lambda: page.get_by_label("Hamming distance", exact=True).check())
    nearest = index.search(retriever.encode_texts(QUERIES[-1:]), k=12)
    assert (found["rows"], found["scores"]) == (nearest.ids[0].tolist(), nearest.scores[0].tolist())
    assert len(asked(page, lambda: page.get_by_label("Answers").select_option("48"))["rows"]) == 48
    assert page.locator(".card img").evaluate_all("all => all.slice(0, 12).every(one => one.naturalWidth > 0)")


def test_the_codes_of_the_page_are_those_of_the_space(scenes_page, retriever):
    scenes = [draw_scene(FIRST_QUERY + number) for number in range(0, 320, 16)]
    retriever_codes = HashIndex(64)
    retriever_codes.add(retriever.encode_images([scene.image for scene in scenes]))
    assert np.array_equal(codes_of(scenes_page)[::16], retriever_codes.codes)
    items = json.loads((scenes_page / "data" / "items.json").read_text(encoding="utf-8"))
    assert items["texts"][16] == scenes[1].text
    sizes = items["sizes"]
    pack = (scenes_page / "data" / "thumbnails.bin").read_bytes()
    assert len(pack) == sum(sizes)
    assert Image.open(io.BytesIO(pack[: sizes[0]])).size == scenes[0].image.size


def test_images_have_the_codes_of_python(page, retriever, tmp_path, capsys):
    """Dropped, picked and pasted; as PNG to the last bit, as JPEG and with transparency but for rounding."""
    scene = draw_scene(FIRST_QUERY + 5).image
    photo = draw_scene(FIRST_QUERY + 7).image.resize((640, 427), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    layer = photo.convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").resize(layer.size))
    files = {
        "scene.png": (encoded(scene, "PNG"), "image/png", 0),
        "photo.png": (encoded(photo, "PNG"), "image/png", 0),
        "photo.jpg": (encoded(photo, "JPEG", quality=90), "image/jpeg", 1),
        "turned.jpg": (encoded(photo, "JPEG", quality=90, exif=exif), "image/jpeg", 1),
        "layer.png": (encoded(layer, "PNG"), "image/png", 1),
        "photo.webp": (encoded(photo, "WEBP"), "image/webp", 1),
        "gray.gif": (encoded(photo.convert("L"), "GIF"), "image/gif", 1),
        "photo.bmp": (encoded(photo, "BMP"), "image/bmp", 0),
    }
    differing = {}
    for name, (content, kind, most) in files.items():
        found = asked(page, lambda content=content, name=name, kind=kind: drop(page, content, name, kind))
        path = tmp_path / name
        path.write_bytes(content)
        expected = retriever.encode_images([path])[0]
        values = np.array(found["values"], np.float32)
        differing[name] = int(np.sum((values >= 0) != (expected >= 0)))
        assert differing[name] <= most, differing
        assert np.abs(values - expected).max() < (1e-3 if most == 0 else 0.2), name
    with capsys.disabled():
        print(f"\nDiffering bits of 64: {differing}")  # noqa: T201
    found = asked(page, lambda: page.set_input_files("#file", tmp_path / "scene.png"))
    assert found["ids"][0] == f"scene-{FIRST_QUERY + 5}"
    assert page.get_by_alt_text("The image of the query").evaluate("image => image.naturalWidth") > 0
    pasted = """content => {
      const bytes = Uint8Array.from(atob(content), character => character.charCodeAt());
      const clipboardData = new DataTransfer();
      clipboardData.items.add(new File([bytes], 'pasted.png', {type: 'image/png'}));
      document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData, bubbles: true, cancelable: true}));
    }"""
    again = asked(page, lambda: page.evaluate(pasted, base64.b64encode(files["scene.png"][0]).decode()))
    assert again["rows"] == found["rows"]


def test_it_works_without_the_network_and_after_it_was_moved(open_page, scenes_page, tmp_path):
    moved = tmp_path / "any" / "where"
    shutil.copytree(scenes_page, moved)
    with serving(tmp_path / "any") as root:
        page = loaded(open_page(f"{root}where/"))
        before = search(page, "moon star")
        page.wait_for_selector("html[data-kept]")
        page.context.set_offline(True)
        assert search(page, "house")["rows"] != before["rows"]
        assert page.locator(".card img").evaluate_all("all => all.every(one => one.naturalWidth > 0)")
        dropped = asked(page, lambda: drop(page, encoded(draw_scene(FIRST_QUERY).image, "PNG"), "a.png", "image/png"))
        assert dropped["ids"][0] == f"scene-{FIRST_QUERY}"
        page.context.set_offline(False)
    # Now nobody serves it: the page is loaded from what the browser kept.
    page.reload()
    loaded(page)
    assert search(page, "moon star")["rows"] == before["rows"]


def test_answers_open_and_find_similar_images(page):
    found = search(page, "house moon")
    page.set_viewport_size({"width": 1200, "height": 700})
    keep_screenshot(page, "browser-search")
    page.locator(".card").first.click()
    dialog = page.locator("dialog[open]")
    dialog.wait_for()
    assert dialog.locator("#view-name").inner_text() == found["ids"][0]
    assert dialog.locator("img").evaluate("image => image.naturalWidth") == draw_scene(0).image.width
    assert page.get_by_role("button", name="Previous").is_disabled()
    page.keyboard.press("ArrowRight")
    assert dialog.locator("#view-name").inner_text() == found["ids"][1]
    similar = asked(page, lambda: page.get_by_role("button", name="Images like this").click())
    assert similar["ids"][0] == found["ids"][1]
    assert dialog.count() == 0
    # Its own code: all 64 bits agree.
    assert similar["scores"][0] == 64


def test_keyboard_only(page):
    """Tab moves to the words, Enter searches and opens an answer; arrows go on; Escape returns to the answer."""

    def press_until(selector: str, most: int = 30) -> None:
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"no {selector} within {most} keys")

    press_until("#words")
    page.keyboard.press("Control+A")
    page.keyboard.type("kite")
    found = asked(page, lambda: page.keyboard.press("Enter"))
    press_until(".card")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # the focus is visible
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("ArrowRight")
    assert page.locator("#view-name").inner_text() == found["ids"][1]
    page.keyboard.press("Escape")
    page.wait_for_function("id => document.activeElement.dataset.id === id", arg=found["ids"][1])


def test_phones_and_accessibility(page, axe):
    page.set_viewport_size({"width": 390, "height": 844})
    search(page, "house moon zebra")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.locator(".card").first.bounding_box()
    assert box["y"] + box["height"] <= 844  # the first answer is in the first screen
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(part => part < 60)")
    keep_screenshot(page, "browser-phone")
    page.locator("#settings summary").click()
    page.evaluate(axe)
    for scheme, is_open in (("dark", False), ("light", False), ("light", True), ("dark", True)):
        page.emulate_media(color_scheme=scheme)
        if is_open and scheme == "light":
            page.locator(".card").first.click()
        # Contrast included; both states have it.
        result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        assert [(one["id"], one["nodes"][0]["html"]) for one in result["violations"]] == []
        assert len(result["passes"]) > 10


def test_unknown_words_and_wrong_files_are_told_and_nothing_freezes(page, tmp_path):
    found = search(page, "quixotic boat <b>zzq</b>")
    assert found["ignored"] == ["quixotic", "b", "zzq"]
    assert page.locator("#ignored").inner_text() == "Unknown to the model and ignored: quixotic, b, zzq."

    def told(act) -> str:
        page.evaluate("document.getElementById('problem').hidden = true")
        act()
        return problem(page)

    def clicked(text: str):
        page.get_by_label("Words").fill(text)
        page.get_by_role("button", name="Search", exact=True).click()

    assert "knows none of these words; try for example: boat sun" in told(lambda: clicked("zebra quixotic"))
    assert "The query is empty" in told(lambda: clicked("   "))
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><script>alert(1)</script></svg>"
    assert "not a readable image" in told(lambda: drop(page, svg, "a.svg", "image/svg+xml"))
    assert "not a readable image" in told(lambda: drop(page, svg, "a.png", "image/png"))
    assert "not a readable image" in told(lambda: drop(page, b"", "a.png", "image/png"))
    whole = encoded(draw_scene(3).image, "PNG")
    assert "damaged or cut short" in told(lambda: drop(page, whole[:60], "a.png", "image/png"))
    huge = encoded(Image.new("1", (10_000, 10_000)), "PNG")
    assert "10,000 x 10,000 pixels; take one of at most 50" in told(lambda: drop(page, huge, "a.png", "image/png"))
    empty = "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: new DataTransfer(), bubbles: true}))"
    page.evaluate(empty)  # a text that is dropped is no file
    # Forty megapixels are decoded and resized in the worker: the page keeps answering.
    large = encoded(draw_scene(FIRST_QUERY + 5).image.convert("P").resize((8_000, 5_000)), "PNG")
    page.evaluate("""() => {
      window.gap = 0;
      let last = performance.now();
      setInterval(() => { window.gap = Math.max(window.gap, performance.now() - last); last = performance.now(); }, 5);
    }""")
    found = asked(page, lambda: drop(page, large, "large.png", "image/png"))
    assert page.evaluate("window.gap") < 1_000
    assert f"scene-{FIRST_QUERY + 5}" in found["ids"]
    assert page.locator("#problem").is_hidden()


def test_damaged_and_missing_files_are_named(open_page, scenes_page, tmp_path):
    number = itertools.count()

    def changed(name: str, content: bytes | None) -> str:
        folder = tmp_path / str(next(number))
        shutil.copytree(scenes_page, folder)
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        with serving(folder) as root:
            return problem(open_page(root))

    codes = (scenes_page / "data" / "codes.bin").read_bytes()
    flipped = bytes([codes[0] ^ 1]) + codes[1:]
    assert "data/codes.bin is missing (HTTP 404); export the page again." in changed("data/codes.bin", None)
    assert "data/codes.bin has 2,559 bytes instead of 2,560" in changed("data/codes.bin", codes[:-1])
    assert "data/codes.bin is damaged (its checksum is another)" in changed("data/codes.bin", flipped)
    assert "page.json is damaged" in changed("page.json", b"{")
    assert "model/text_model.onnx is missing" in changed("model/text_model.onnx", None)


def test_without_simd_images_still_find_images(chromium, scenes_address):
    """A processor without SSE 4.1, on which the browser has no SIMD."""
    options = ["--no-sandbox", "--js-flags=--no-enable-sse4-1"]
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    browser = chromium.browser_type.launch(executable_path=path, args=options)
    try:
        page = visitor(browser, []).new_page()
        page.goto(scenes_address)
        assert "This browser runs WebAssembly without SIMD" in problem(page)
        page.locator(".card").nth(2).click()
        similar = asked(page, lambda: page.get_by_role("button", name="Images like this").click())
        assert (similar["rows"][0], similar["scores"][0]) == (2, 64)
        assert page.get_by_role("button", name="Search", exact=True).is_disabled()
    finally:
        browser.close()


def test_opened_from_disk_it_says_what_to_do(open_page, scenes_page):
    page = open_page(f"file://{scenes_page}/index.html")
    assert "run `python -m http.server` there" in problem(page)
    assert page.get_by_role("heading", level=1).is_visible()


def test_a_query_in_the_address_is_searched(open_page, scenes_address):
    page = loaded(open_page(f"{scenes_address}#q=moon%20star"))
    page.wait_for_function("window.answers?.length")
    assert page.get_by_label("Words").input_value() == "moon star"
    found = search(page, "fish & chips")
    assert page.url.endswith("#q=fish%20%26%20chips")
    assert found["ignored"] == ["chips"]


def test_a_hundred_thousand_codes_are_searched_in_milliseconds(
    open_page, exported_model, retriever, npm, tmp_path, capsys
):
    draw = np.random.default_rng(0)
    codes = draw.integers(0, 256, (MANY, 8), dtype=np.uint8)
    codes[MANY // 2 :] = codes[: MANY // 2]
    index = HashIndex(64, model=retriever.fingerprint)
    index.add(codes, ids=draw.permutation(MANY))
    index.save(tmp_path / "many.index")
    settings = SpaceSettings(model=str(exported_model), data=str(tmp_path / "many.index"), examples=("boat sun",))
    made = export_page(settings, tmp_path / "many")
    assert made.code_bytes == (tmp_path / "many" / "data" / "codes.bin").stat().st_size == 800_000
    with serving(tmp_path / "many") as root:
        page = loaded(open_page(root))
        first = page.evaluate("window.answers[0]")
        times = [first["total"]]
        for text in QUERIES[1:]:
            found = search(page, text)
            times.append(found["total"])
            nearest = index.search(np.array(found["values"], np.float32), k=12, metric="aqd")
            assert found["ids"] == [str(item_id) for item_id in nearest.ids[0]]
            assert found["scores"] == nearest.scores[0].tolist()
        page.locator("#settings summary").click()
        found = asked(page, lambda: page.get_by_label("Hamming distance", exact=True).check())
        nearest = index.search(np.array(found["values"], np.float32), k=12)
        assert found["ids"] == [str(item_id) for item_id in nearest.ids[0]]
        assert page.locator(".card.plain").count() == 12
    with capsys.disabled():
        print(f"\nMilliseconds until an answer is drawn: {', '.join(f'{one:.0f}' for one in times)}")  # noqa: T201
    assert min(times) < 100


def test_the_manifest_describes_every_file(scenes_page):
    """The page has no file that the manifest does not describe, but for itself, the card and the note for hosts."""
    manifest = json.loads((scenes_page / "page.json").read_text(encoding="utf-8"))
    files = {path.relative_to(scenes_page).as_posix() for path in scenes_page.rglob("*") if path.is_file()}
    assert files - set(manifest["files"]) == {"page.json", "README.md", ".nojekyll"}
    assert not any(path.suffix == ".mjs" for path in scenes_page.rglob("*"))


def test_a_model_of_a_pretrained_encoder_has_its_tokens_and_its_crop(open_page, npm, tmp_path, monkeypatch):
    """A CLIP of random weights: byte-level tokens that are cut off, the shortest edge resized, the center cropped."""
    encoder = write_dual_encoder("clip", tmp_path / "encoder")
    config = CMFAHConfig(dual_encoder=str(encoder), hidden_size=24, image_size=32, num_concepts=4)
    torch.manual_seed(0)
    model = CMFAHModel(config).eval()
    model.config.encoder_source = None
    model.save_pretrained(tmp_path / "model")
    CMFAHProcessor.from_backbones(config).save_pretrained(tmp_path / "model")
    retriever = CrossMediaRetriever.from_pretrained(tmp_path / "model", device="cpu")
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 9, 12, 3), dtype=np.uint8)
    for number, own in enumerate(pixels):
        size = [(90, 60), (50, 140), (33, 33)][number]
        Image.fromarray(own).resize(size, Image.Resampling.BICUBIC).save(tmp_path / "photos" / f"{number}.png")
    settings = SpaceSettings(model=str(tmp_path / "model"), data=str(tmp_path / "photos"))
    monkeypatch.setattr(export, "MOST_PACKED_BYTES", 100)  # so thumbnails are files of their own
    export_page(settings, tmp_path / "page", links="https://example.org/photos/")
    with serving(tmp_path / "page") as root:
        page = loaded(open_page(root))
        for text in ("A dog on the Beach!", "[EOS] of it", "two birds in the sky " * 5, "Ünïcödé 犬 👍"):
            found = search(page, text)
            assert np.abs(np.array(found["values"]) - retriever.encode_texts([text])[0]).max() < 1e-4, text
        for path in sorted((tmp_path / "photos").iterdir()):
            found = asked(page, lambda path=path: drop(page, path.read_bytes(), path.name, "image/png"))
            assert np.abs(np.array(found["values"]) - retriever.encode_images([path])[0]).max() < 1e-4, path.name
            assert path.name in found["ids"]
        loaded_images = "all => all.every(one => one.naturalWidth > 0) && all.length"
        page.wait_for_function(f"({loaded_images})([...document.querySelectorAll('.card img')]) === 3")
        page.locator(".card").first.click()
        link = page.get_by_role("link", name="Open the image")
        assert link.get_attribute("href") == f"https://example.org/photos/{found['ids'][0]}"
