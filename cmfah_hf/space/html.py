"""HTML of the page: answers, bits, attention. Images are embedded as `data:` URLs.

No file is ever written for a page, so none can be read by its address. Every text from outside goes through `escaped`.
"""

import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # the page is served before torch is loaded
    from cmfah_hf.space.engine import Answer, Attention, Engine, Ranking

_METRIC_NAMES = {"aqd": "Asymmetric distance (AQD)", "hamming": "Hamming distance"}
_METRIC_NOTES = {
    "aqd": "the query's continuous code against bits; more is nearer",
    "hamming": "bits that differ; fewer is nearer",
}
_VIEW_BUTTONS = {"previous": "Previous", "next": "Next", "why": "Why is it here?", "close": "Close"}
_TARGET_NAMES = {"images": "Images", "texts": "Texts"}


def escaped(text: str) -> str:
    """Text escaped for HTML and for Gradio's templates."""
    text = html.escape(text)
    for sign in "{}$`":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text


def markdown(text: str) -> str:
    """Text as one line of Markdown with every special character escaped."""
    return re.sub(r"[!-/:-@\[-`{-~]", lambda sign: f"&#{ord(sign[0])};", " ".join(text.split()))


def note(message: str) -> str:
    """A muted line, such as a placeholder."""
    return f'<p class="cm-note">{escaped(message)}</p>'


def answer(engine: "Engine", found: "Answer", compare: bool = False, image: str = "") -> str:
    """The ranking by AQD, on demand with that by Hamming distance beside it; for an image query also of texts.

    Args:
        engine: The images.
        found: Their rankings.
        compare: Also show the ranking by Hamming distance.
        image: The query's image as a URL, or empty.
    """
    sections = []
    for target, by_metric in found.rankings.items():
        title = f"<h3>{_TARGET_NAMES[target]}</h3>" if len(found.rankings) > 1 else ""
        columns = "".join(
            _ranking(engine, target, metric, by_metric[metric]) for metric in (_METRIC_NAMES if compare else ("aqd",))
        )
        sections.append(f'{title}<div class="cm-columns">{columns}</div>')
    items = len(engine.images)
    line = f"Encoded in {found.query.encoding:.1f} ms; searched {items:,} codes, {items * engine.bits // 8:,} bytes."
    asked = f'<img src="{image}" alt="The image of the query">' if image else ""
    status = f'<div class="cm-asked">{asked}<p class="cm-note" role="status">{line}</p></div>'
    return f'<div class="cm-answer">{status}{ignored(found.ignored_words)}{"".join(sections)}</div>'


def ignored(words: Sequence[str]) -> str:
    """A line that lists the ignored words of a query; empty if there are none."""
    return note(f"Unknown to the model and ignored: {', '.join(words)}.") if words else ""


def _ranking(engine: "Engine", target: str, metric: str, ranking: "Ranking") -> str:
    draw = _card if target == "images" else _line
    probabilities: Sequence[float | None] = ranking.probabilities or [None] * len(ranking.rows)
    items = "".join(
        draw(engine, row, _score(score, metric, probability))
        for row, score, probability in zip(ranking.rows, ranking.scores, probabilities, strict=True)
    )
    nothing = "" if items else note("Nothing found: no answer has this probability.")
    kind = "cm-cards" if target == "images" else "cm-lines"
    return (
        f'<section data-metric="{metric}" data-target="{target}"><h4>{_METRIC_NAMES[metric]} '
        f'<span class="cm-time" title="Median of several searches">{ranking.milliseconds:.2f} ms</span></h4>'
        f'<p class="cm-note">{_METRIC_NOTES[metric]}</p><ol class="{kind}">{items}</ol>{nothing}</section>'
    )


def _score(score: float, metric: str, probability: float | None) -> str:
    shown = f"{int(score)} bits" if metric == "hamming" else f"{score:.1f}"
    return shown if probability is None else f'{shown} · <span title="Probability">{probability:.0%}</span>'


def _card(engine: "Engine", row: int, score: str) -> str:
    item_id, text = escaped(engine.images.ids[row]), escaped(engine.images.texts[row])
    return (
        f'<li><button type="button" class="cm-card" data-id="{item_id}" title="{text}" '
        f'aria-label="Open {item_id}: {text}">'
        f'<img src="{engine.images.address(row)}" alt="{text}">'
        f'<span class="cm-score">{score}</span><span class="cm-text">{text}</span></button></li>'
    )


def _line(engine: "Engine", row: int, score: str) -> str:
    return f'<li><span class="cm-score">{score}</span> <span>{escaped(engine.images.texts[row])}</span></li>'


def view(engine: "Engine", item_id: str, stamp: int) -> str:
    """A dialog with one image in full, its id, its place below the folder of images if that is another, and its text.

    Args:
        engine: The images.
        item_id: The image.
        stamp: A number that differs between two openings, so that the browser sees a change.

    Raises:
        QueryError: If the id is unknown.
        ImageError: If the image's file is gone or damaged.
    """
    row = engine.row(item_id)
    name, text = escaped(item_id), escaped(engine.images.texts[row])
    place = engine.images.places[row]
    path = f'<p class="cm-note cm-place">{escaped(place)}</p>' if place not in (None, item_id) else ""
    buttons = "".join(
        f'<button type="button" data-do="{action}">{label}</button>' for action, label in _VIEW_BUTTONS.items()
    )
    return (
        f'<dialog class="cm-view" data-id="{name}" data-stamp="{stamp}" aria-label="{name}">'
        f'<img src="{engine.images.view(row)}" alt="{text or name}">'
        f'<p class="cm-path">{name}</p>{path}<p class="cm-note">{text}</p>'
        f'<div class="cm-buttons">{buttons}</div></dialog>'
    )


def overlay(engine: "Engine", item_id: str, attention: "Attention", word: str, region: int | None) -> str:
    """The image under a grid of buttons, one per region, whose brightness is a word's attention.

    All words of a text share one scale, so diffuse attention looks diffuse.
    """
    columns = attention.grid[1]
    weights_R = attention.weights[:, attention.words.index(word)]
    # The square root makes weak attention visible.
    light_R = np.sqrt(np.clip(weights_R, 0, None) / (float(attention.weights.max()) or 1.0))
    strongest = int(weights_R.argmax())
    # Arrow keys move between regions, so the page's tab order has one stop here instead of one per region.
    stop = strongest if region is None else region
    cells = "".join(
        f'<button type="button" data-region="{index}" style="--light:{light:.3f}" '
        f'tabindex="{0 if index == stop else -1}" aria-pressed="{"true" if index == region else "false"}" '
        f'aria-label="Row {index // columns + 1}, column {index % columns + 1}: weight {weights_R[index]:.3f}"'
        f"{' class=cm-strongest' if index == strongest else ''}></button>"
        for index, light in enumerate(light_R)
    )
    row = engine.row(item_id)
    width, height = engine.images.image(row).size
    left, top, right, bottom = attention.seen
    inset = " ".join(f"{100 * share:.3f}%" for share in (top, 1 - right, 1 - bottom, left))
    return (
        f'<figure class="cm-overlay"><div class="cm-image" style="aspect-ratio:{width}/{height}">'
        f'<img src="{engine.images.address(row)}" alt="{escaped(engine.images.texts[row] or engine.images.ids[row])}">'
        f'<div class="cm-grid" role="group" aria-label="Regions" data-columns="{columns}" '
        f'style="inset:{inset};grid-template-columns:repeat({columns},1fr)">{cells}</div></div>'
        f"<figcaption>Attention of <b>{escaped(word)}</b>: the strongest region is outlined. "
        f"Press a region for its words.</figcaption></figure>"
    )


def words_of_region(attention: "Attention", region: int) -> str:
    """The words of the text with a region's attention to each."""
    columns = attention.grid[1]
    weights_W = attention.weights[region]
    largest = float(attention.weights.max()) or 1.0
    bars = "".join(
        f'<li><span>{escaped(attention.words[index])}</span><span class="cm-bar">'
        f'<i style="width:{100 * max(float(weights_W[index]), 0.0) / largest:.1f}%"></i></span>'
        f"<span>{weights_W[index]:.3f}</span></li>"
        for index in np.argsort(-weights_W, kind="stable")
    )
    place = f"Row {region // columns + 1}, column {region % columns + 1}"
    return f'<div class="cm-words"><h4>{place}: its words</h4><ol>{bars}</ol></div>'


def bits(query: np.ndarray, item: np.ndarray, query_name: str, item_name: str) -> str:
    """Two codes, one below the other, with their differing bits marked."""
    differ = query != item
    rows = "".join(
        f'<div class="cm-code"><span>{escaped(name)}</span><span class="cm-bits" aria-hidden="true">'
        + "".join(
            f'<i class="{"on" if bit > 0 else "off"}{" cm-differs" if other else ""}"></i>'
            for bit, other in zip(code, differ, strict=True)
        )
        + "</span></div>"
        for name, code in ((query_name, query), (item_name, item))
    )
    numbers = ", ".join(str(number) for number in np.flatnonzero(differ))
    which = f" Bits {numbers}." if numbers else ""
    return (
        f'<div class="cm-codes"><h4>{int(differ.sum())} of {len(query)} bits differ</h4>{rows}'
        f'<p class="cm-note">Filled: 1. Empty: 0. Framed: they differ.{which}</p></div>'
    )


def labeled_lines(rows: Sequence[tuple[str, str, float]]) -> str:
    """Bars from tuples of name, value text, and relative length in 0..1."""
    lines = "".join(
        f'<li><span>{escaped(name)}</span><span class="cm-bar">'
        f'<i style="width:{max(100 * share, 0.4):.1f}%"></i></span>'
        f"<span>{escaped(value)}</span></li>"
        for name, value, share in rows
    )
    return f'<ol class="cm-measures">{lines}</ol>'
