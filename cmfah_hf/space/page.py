"""Event handlers of the page, a few lines each over the engine, with errors as Gradio shows them."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar

import gradio as gr
from PIL import Image

from cmfah_hf.errors import CheckpointError, CMFAHError, ImageError, QueryError
from cmfah_hf.space import html
from cmfah_hf.space.images import small_address
from cmfah_hf.space.loading import EngineLoader
from cmfah_hf.space.uploads import Uploads, decode_base64, is_upload_name, read_upload

if TYPE_CHECKING:  # the page is served before torch is loaded
    from cmfah_hf.space.engine import Query

logger = logging.getLogger(__name__)

Handler = TypeVar("Handler", bound=Callable[..., Any])

# Fills rows of two, three, four and six.
DEFAULT_K = 12
# Images that can be chosen from a list to be explained; others by their id, or from an answer.
_MOST_CHOICES = 1000
_NO_REGION = "Press a region of the image to see the words that it attends to."


def _with_errors(to_text: Callable[[str], str], handler: Handler) -> Handler:
    """Reports user errors as Gradio does; for other errors Gradio reports only that one occurred."""

    @wraps(handler)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return handler(*arguments, **named)
        except CMFAHError as error:
            raise gr.Error(to_text(str(error)), duration=8, print_exception=False) from error

    return call  # type: ignore[return-value]


# On the page as HTML, to programs as plain text.
_shown, _reported = partial(_with_errors, html.escaped), partial(_with_errors, str)


@dataclass(frozen=True, eq=False)
class Asked:
    """The last query of a session, with its image as a URL, if it was one."""

    query: "Query"
    image: str = ""


class Page:
    """The event handlers of one app; the first events wait for the engine."""

    def __init__(self, loader: EngineLoader, uploads: Uploads):
        self._loader, self._uploads = loader, uploads

    def begin(self) -> tuple[Any, ...]:
        """Content of a newly opened page: status, a first answer, its query, examples, metrics."""
        from cmfah_hf.space import charts

        try:
            engine = self._loader.get()
        except CMFAHError as error:
            line = f"**This Space cannot search yet.** {html.markdown(str(error))}"
            nothing = html.note("There is nothing to show without a model and images.")
            return (
                gr.Markdown(line),
                nothing,
                None,
                "",
                gr.Dataset(visible=False),
                gr.Slider(),
                gr.Dropdown(),
                "",
                nothing,
            )
        examples = engine.examples()
        try:
            answer = engine.search(examples[0], k=DEFAULT_K) if examples else None
        except QueryError as error:  # an invalid example in the settings
            logger.warning("The first example cannot be shown: %s", error)
            answer = None
        try:
            figures = charts.quality(engine.metrics)
        except CheckpointError as error:
            logger.warning("No figures are shown: %s", error)
            figures = html.note("The metrics of this model (metrics.json) are damaged.")
        line = f"{len(engine.images):,} images, each {engine.bits} bits. Press one to open it."
        first = engine.images.ids[answer.rankings["images"]["aqd"].rows[0] if answer else 0]
        return (
            gr.Markdown(line),
            html.answer(engine, answer) if answer else html.note("Type words, or send an image."),
            Asked(answer.query) if answer else None,
            examples[0],
            gr.Dataset(samples=[[query] for query in examples], visible=True),
            gr.Slider(visible=engine.is_calibrated),
            gr.Dropdown(choices=engine.images.ids[:_MOST_CHOICES], value=first),
            examples[0],
            figures,
        )

    @_shown
    def choose_example(self, number: int | None) -> str:
        """The text of an example."""
        examples = self._loader.get().examples()
        if number is None or number >= len(examples):
            raise QueryError("Unknown example; choose one of the list.")
        return examples[number]

    @_shown
    def answer_words(self, text: str | None, *how: Any) -> tuple[str, Asked]:
        """The answer to a text as HTML, and the query for further answers; `how` as for `answer_again`."""
        asked = Asked(self._loader.get().query(text or ""))
        return self._answer(asked, *how), asked

    @_shown
    def answer_image(self, image: Image.Image | None, *how: Any) -> tuple[str, Asked, Any]:
        """As `answer_words` for an image; closes its panel, so that the answer is below the words."""
        if image is None:
            raise QueryError("The query has no image; send one.")
        asked = Asked(self._loader.get().query(image=image), small_address(image))
        return self._answer(asked, *how), asked, gr.Accordion(open=False)

    @_shown
    def answer_again(self, asked: Asked | None, *how: Any) -> str:
        """The answer to the last query with other settings: those of `_answer`."""
        if asked is None:  # the server has forgotten the session
            raise QueryError("There is no query yet; search again.")
        return self._answer(asked, *how)

    def _answer(self, asked: Asked, avoid: str | None, k: int, least: float, compare: bool) -> str:
        engine = self._loader.get()
        return html.answer(engine, engine.answer(asked.query, k, avoid, least), compare, asked.image)

    @_shown
    def open_image(self, event: gr.EventData) -> str:
        """The dialog of an answer."""
        return html.view(self._loader.get(), str(_carried(event, "id")), time.time_ns())

    @_shown
    def open_why(self, asked: Asked | None, event: gr.EventData) -> tuple[Any, str, str]:
        """Opens the explanation of an answer; an image query is explained by the answer's own text."""
        engine = self._loader.get()
        item_id = str(_carried(event, "id"))
        text = (asked.query.text if asked else "") or engine.images.texts[engine.row(item_id)]
        return gr.Tabs(selected="why"), item_id, text

    @_shown
    def look(self, item_id: str | None, text: str | None) -> tuple[Any, str, str, str]:
        """Selectable words, the image with the first word's attention, an empty word list, and both codes."""
        engine = self._loader.get()
        text, item_id = (text or "").strip(), item_id or ""
        codes = html.bits(engine.code(text), engine.code_of_image(item_id), text, item_id)
        codes += html.ignored(engine.ignored_words(text))
        try:
            attention = engine.attention(text, item_id)
        except QueryError as error:
            return gr.Radio(choices=[], value=None), html.note(str(error)), "", codes
        word = attention.words[int(attention.weights.max(axis=0).argmax())]
        choices = list(dict.fromkeys(attention.words))
        image = html.overlay(engine, item_id, attention, word, None)
        return gr.Radio(choices=choices, value=word), image, html.note(_NO_REGION), codes

    @_shown
    def choose_word(self, item_id: str | None, text: str | None, word: str | None) -> str:
        """The image with a word's attention."""
        return self._overlay(item_id, text, word, None)[0]

    @_shown
    def choose_region(
        self, item_id: str | None, text: str | None, word: str | None, event: gr.EventData
    ) -> tuple[str, str]:
        """The image with a selected region, and the words of that region."""
        region = _carried(event, "region")
        if not isinstance(region, int):
            raise QueryError("Unknown region; press one of the image.")
        return self._overlay(item_id, text, word, region)

    def _overlay(self, item_id: str | None, text: str | None, word: str | None, region: int | None) -> tuple[str, str]:
        engine, item_id = self._loader.get(), item_id or ""
        attention = engine.attention((text or "").strip(), item_id)
        if word not in attention.words:  # the text has changed
            word = attention.words[0]
        if region is not None and not 0 <= region < len(attention.weights):
            raise QueryError("Unknown region; press one of the image.")
        words = "" if region is None else html.words_of_region(attention, region)
        return html.overlay(engine, item_id, attention, word, region), words

    @_shown
    def draw_codes(self, text: str | None) -> tuple[str, str]:
        """The map, with the position of a text if given, and the memory chart."""
        from cmfah_hf.space import charts

        engine = self._loader.get()
        drawing = charts.code_map(engine, (text or "").strip() or None)
        return drawing + html.ignored(engine.ignored_words(text)), charts.memory(engine)

    # For programs

    @_reported
    def api_search_text(self, text: str, k: int = DEFAULT_K, avoid: str = "", min_score: float = 0.0) -> dict:
        """Finds the images nearest to a text, by AQD (larger scores are nearer) and by Hamming distance (smaller ones).

        Each has the median time of a search in ms, and the id, score and text of each image, nearest first.

        Args:
            text: The words, at most 300 characters.
            k: How many images, 1 to 24.
            avoid: Words for what they should not show.
            min_score: Their smallest probability, 0 to 1, if the model has a calibration.
        """
        engine = self._loader.get()
        return engine.document(engine.search(text=text, k=k, avoid=avoid, least=min_score))

    @_reported
    def api_search_image(self, image: Image.Image | None, k: int = DEFAULT_K) -> dict:
        """The images and texts nearest to an image, as `api_search_text` gives them."""
        if image is None:
            raise QueryError("The query has no image; send one.")
        return self._search_image(image, k)

    @_reported
    def api_search_encoded_image(self, image_base64: str, k: int = DEFAULT_K) -> dict:
        """Finds the images and texts nearest to an image, with answers as a search by text has them.

        Args:
            image_base64: Its file as base64: JPEG, PNG, WEBP, GIF or BMP of at most 8 MB. Paths and URLs are refused.
            k: How many, 1 to 24.
        """
        if not isinstance(image_base64, str):
            raise QueryError("The image is not a text; send its file as base64.")
        if not is_upload_name(image_base64):
            return self._search_image(read_upload(decode_base64(image_base64)), k)
        path = self._uploads.path_of(image_base64)
        try:
            image = read_upload(self._uploads.read(path))
        except ImageError:
            self._uploads.discard(path)
            raise
        return self._search_image(image, k)

    def _search_image(self, image: Image.Image, k: int) -> dict:
        engine = self._loader.get()
        return engine.document(engine.search(image=image, k=k))

    @_reported
    def api_index_info(self) -> dict:
        """Describes what is searched here: the numbers of images and texts, example queries, and what the model can."""
        return self._loader.get().info()

    @_reported
    def api_explain(self, text: str, image: str) -> dict:
        """Explains why an image is an answer to a text.

        `distance` is the number of bits in which both codes differ. `weights` has a row for each region of the image,
        row by row of `grid`, and a column for each of `words`: the attention between them.

        Args:
            text: The words.
            image: The id of an image, as a search gives it.
        """
        engine = self._loader.get()
        query, item = engine.code(text), engine.code_of_image(image)
        document: dict[str, Any] = {
            "query_bits": (query > 0).astype(int).tolist(),
            "image_bits": (item > 0).astype(int).tolist(),
            "distance": int((query != item).sum()),
            "ignored_words": engine.ignored_words(text),
        }
        try:
            attention = engine.attention(text, image)
        except QueryError as error:
            return document | {"words": [], "grid": [], "weights": [], "note": str(error)}
        weights = [[round(weight, 6) for weight in row] for row in attention.weights.tolist()]
        return document | {"words": attention.words, "grid": list(attention.grid), "weights": weights}


def _carried(event: gr.EventData, key: str) -> Any:
    """A named value in the data of an event, or None; `gr.EventData` offers it only as an attribute."""
    return (event._data or {}).get(key)
