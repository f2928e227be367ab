"""The Gradio page: four tabs over the engine, and API endpoints for programs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import gradio as gr

from cmfah_hf.errors import ImageError
from cmfah_hf.space import html
from cmfah_hf.space.loading import EngineLoader
from cmfah_hf.space.page import DEFAULT_K, Page
from cmfah_hf.space.settings import LONGEST_QUERY, MOST_RESULTS
from cmfah_hf.space.uploads import MAX_BYTES, MAX_PIXELS, Uploads, read_upload, upload_formats

# Events replace answers, dialogs and regions, so the listeners are on their containers.
_ANSWER_JS = """
element.addEventListener('click', event => {
  const card = event.target.closest('[data-id]');
  if (card) trigger('click', {id: card.dataset.id});
});
"""
_VIEW_JS = """
let pressed = null;
const shown = () => element.querySelector('dialog');
const cards = () => [...document.querySelectorAll('#answer section:first-of-type .cm-card')];
const act = action => {
  const id = shown().dataset.id;
  if (action === 'why') trigger('why', {id});
  if (action === 'why' || action === 'close') { pressed = null; shown().close(); return; }
  const place = cards().findIndex(card => card.dataset.id === id) + (action === 'next' ? 1 : -1);
  const card = cards()[place];
  if (!card) return;
  pressed = action;
  trigger('click', {id: card.dataset.id});
};
watch('value', () => {
  const dialog = shown();
  if (!dialog || dialog.open) return;
  const place = cards().findIndex(card => card.dataset.id === dialog.dataset.id);
  dialog.querySelector('[data-do=previous]').disabled = place <= 0;
  dialog.querySelector('[data-do=next]').disabled = place < 0 || place === cards().length - 1;
  dialog.showModal();
  const again = pressed && dialog.querySelector(`[data-do=${pressed}]:enabled`);
  (again || dialog.querySelector('[data-do=close]')).focus();
});
element.addEventListener('click', event => {
  const button = event.target.closest('[data-do]');
  if (button) act(button.dataset.do);
  else if (event.target === shown()) act('close');  // beside the image
});
element.addEventListener('keydown', event => {
  const action = {ArrowLeft: 'previous', ArrowRight: 'next'}[event.key];
  if (action && shown()?.open) act(action);
});
element.addEventListener('close', event => {
  const card = cards().find(card => card.dataset.id === event.target.dataset.id);
  if (card) card.focus();
}, true);
"""
_REGIONS_JS = """
element.addEventListener('click', event => {
  const cell = event.target.closest('[data-region]');
  if (cell) trigger('click', {region: Number(cell.dataset.region)});
});
element.addEventListener('keydown', event => {
  const cell = event.target.closest('[data-region]');
  const columns = cell ? Number(cell.parentElement.dataset.columns) : 0;
  const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[event.key];
  if (!cell || step === undefined) return;
  event.preventDefault();
  const next = cell.parentElement.querySelector(`[data-region="${Number(cell.dataset.region) + step}"]`);
  if (!next) return;
  cell.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
watch('value', () => {
  const pressed = element.querySelector('[aria-pressed="true"]');
  if (pressed) pressed.focus();
});
"""
_UPLOADS = f"{', '.join(upload_formats())}; at most {MAX_BYTES // 2**20} MB and {MAX_PIXELS // 10**6} megapixels."
_WAIT = "The model is being loaded; the page fills by itself in a few seconds."


def build_app(loader: EngineLoader, uploads: Uploads, has_agents: bool = False) -> gr.Blocks:
    """Builds the Gradio app over an engine that may still be loading.

    Args:
        loader: Loads the engine; the page shows its errors.
        uploads: The store of uploaded images.
        has_agents: Whether there is an endpoint for images in base64, which agents send.
    """
    page = Page(loader, uploads)
    title = loader.settings.title
    with gr.Blocks(title=title, analytics_enabled=False) as app:
        gr.Markdown(f"# {html.markdown(title)}", elem_classes="cm-title")
        status = gr.Markdown(_WAIT, elem_classes="cm-status")
        with gr.Tabs() as tabs:
            with gr.Tab("Search", id="search"):
                search = _search_tab(page, uploads)
            with gr.Tab("Why", id="why"):
                why = _why_tab(page)
            with gr.Tab("Codes", id="codes") as codes_tab:
                _codes_tab(page, codes_tab)
            with gr.Tab("Quality", id="quality"):
                figures = gr.HTML(html.note(_WAIT))
        image, why_words, looked = why
        search.view.why(
            page.open_why, search.asked, [tabs, image, why_words], api_visibility="private", show_progress="hidden"
        ).then(*looked, api_visibility="private")
        app.load(
            page.begin,
            None,
            [
                status,
                search.answer,
                search.asked,
                search.words,
                search.examples,
                search.least,
                image,
                why_words,
                figures,
            ],
            api_visibility="private",
            show_progress="hidden",
        ).success(*looked, api_visibility="private", show_progress="hidden")
        gr.api(page.api_search_text, api_name="search_text")
        gr.api(page.api_explain, api_name="explain")
        gr.api(page.api_index_info, api_name="index_info")
        if has_agents:
            gr.api(page.api_search_encoded_image, api_name="search_encoded_image")
    return app


@dataclass(frozen=True)
class _SearchTab:
    """The components of the search tab that other parts of the page use."""

    words: gr.Textbox
    examples: gr.Dataset
    least: gr.Slider
    answer: gr.HTML
    asked: gr.State
    view: gr.HTML


def _search_tab(page: Page, uploads: Uploads) -> _SearchTab:
    with gr.Row(equal_height=True, elem_id="query"):
        words = gr.Textbox(
            label="Words",
            placeholder="what the images show",
            max_length=LONGEST_QUERY,
            elem_id="words",
            scale=4,
            min_width=200,
        )
        button = gr.Button("Search", variant="primary", elem_id="search-words", scale=1, min_width=90)
    examples = gr.Dataset(
        components=[gr.Textbox(visible=False)],
        samples=[],
        label="Examples",
        show_label=False,
        visible=False,
        type="index",
        elem_id="examples",
    )
    with gr.Row(equal_height=False, elem_id="panels"):
        with gr.Accordion("By image", open=False, elem_id="image-panel") as panel:
            image = gr.Image(
                label="Image", sources=["upload", "clipboard"], type="pil", height=200, elem_id="image", buttons=[]
            )
            with_image = gr.Button("Search with the image", elem_id="search-image")
            gr.HTML(html.note(_UPLOADS))
        with gr.Accordion("Settings", open=False, elem_id="settings-panel"):
            avoid = gr.Textbox(
                label="Not", placeholder="what they should not show", max_length=LONGEST_QUERY, elem_id="avoid"
            )
            count = gr.Slider(1, MOST_RESULTS, value=DEFAULT_K, step=1, label="Answers", elem_id="count")
            least = gr.Slider(
                0, 0.95, value=0, step=0.05, label="Least probability of an answer", visible=False, elem_id="least"
            )
            compare = gr.Checkbox(label="Also by Hamming distance, side by side", elem_id="compare")
    _guard(image, uploads)
    answer = gr.HTML(html.note(_WAIT), js_on_load=_ANSWER_JS, elem_id="answer")
    view = gr.HTML(js_on_load=_VIEW_JS, elem_id="view")
    asked = gr.State(None)
    how = [avoid, count, least, compare]
    private: dict[str, Any] = {"api_visibility": "private"}
    quiet = private | {"show_progress": "hidden"}
    by_words = {"inputs": [words, *how], "outputs": [answer, asked], **private}
    gr.on([words.submit, button.click], page.answer_words, **by_words)
    examples.click(page.choose_example, examples, words, **quiet).then(page.answer_words, **by_words)
    gr.on([image.input, with_image.click], page.answer_image, [image, *how], [answer, asked, panel], **private)
    # Of the many changes of a slider that is moved, by mouse or keys, the last one counts.
    again = [avoid.submit, count.change, least.change, compare.input]
    gr.on(again, page.answer_again, [asked, *how], answer, trigger_mode="always_last", **quiet)
    gr.on([answer.click, view.click], page.open_image, None, view, **quiet)
    # The API endpoint: the same inputs, plain values as output.
    gr.Button(visible=False).click(
        page.api_search_image,
        [image, count],
        gr.JSON(visible=False),
        api_name="search_image",
        api_description="Find the images and texts nearest to an image, by both distances.",
    )
    return _SearchTab(words, examples, least, answer, asked, view)


def _why_tab(page: Page) -> tuple[gr.Dropdown, gr.Textbox, tuple[Callable, list[Any], list[Any]]]:
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            words = gr.Textbox(label="Words", max_length=LONGEST_QUERY, elem_id="why-words")
            image = gr.Dropdown(label="Image", choices=[], allow_custom_value=True, elem_id="why-image")
            button = gr.Button("Look", variant="primary", elem_id="look")
            word = gr.Radio(label="Word whose attention is shown", choices=[], elem_id="why-word")
            region = gr.HTML(elem_id="why-region")
        with gr.Column(scale=3, min_width=280):
            overlay = gr.HTML(html.note(_WAIT), js_on_load=_REGIONS_JS, elem_id="overlay")
    codes = gr.HTML(elem_id="why-codes")
    looked = (page.look, [image, words], [word, overlay, region, codes])
    gr.on([words.submit, button.click, image.select], *looked, api_visibility="private")
    # Not checked by Gradio, which would refuse the choices of the previous text.
    chosen: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False}
    word.input(page.choose_word, [image, words, word], overlay, **chosen)
    overlay.click(page.choose_region, [image, words, word], [overlay, region], **chosen)
    return image, words, looked


def _codes_tab(page: Page, tab: gr.Tab) -> None:
    with gr.Row(equal_height=False):
        words = gr.Textbox(
            label="Words to place on the map", max_length=LONGEST_QUERY, scale=4, min_width=240, elem_id="map-words"
        )
        button = gr.Button("Place", variant="primary", scale=1, min_width=120, elem_id="place")
    drawing = gr.HTML(html.note(_WAIT), elem_id="map")
    memory = gr.HTML(elem_id="memory")
    gr.on([tab.select, words.submit, button.click], page.draw_codes, words, [drawing, memory], api_visibility="private")


def _guard(image: gr.Image, uploads: Uploads) -> None:
    """Makes the component read only uploads, within limits, before Gradio would decode or copy them.

    Patches the object instead of subclassing, because Gradio writes a file next to the class of each component.
    """

    async def stay(address: str | Path | None) -> str | None:
        """Neither copies nor fetches anything: `read` accepts only uploads."""
        return None if address is None else str(address)

    def read(self: gr.Image, payload: Any) -> Any:
        if payload is None:
            return None
        path = Path(payload.path or "")
        try:
            return read_upload(uploads.read(path))
        except ImageError as error:
            uploads.discard(path)
            raise gr.Error(html.escaped(str(error)), duration=8, print_exception=False) from error

    image.async_move_resource_to_block_cache = stay  # type: ignore[method-assign, assignment]
    image.preprocess = MethodType(read, image)  # type: ignore[method-assign]
