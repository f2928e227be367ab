"""The parts of the page as HTML: answers, bits, attention. Images stand in it as `data:` addresses.

No file is ever written for a page, so none can be read by its address. Every text from outside goes through `escaped`.
"""

import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # the page stands before torch is loaded
    from cmfah_hf.space.engine import Answer, Attention, Engine, Ranking

_METRIC_NAMES = {"hamming": "Hamming distance", "aqd": "Asymmetric distance (AQD)"}
_METRIC_NOTES = {
    "hamming": "bits that differ; fewer is nearer",
    "aqd": "the query's real values against bits; more is nearer",
}
_TARGET_NAMES = {"images": "Images", "texts": "Texts"}


def escaped(text: str) -> str:
    """A text for a page: also what Gradio's own templates would read as theirs."""
    text = html.escape(text)
    for sign in "{}$`":
        text = text.replace(sign, f"&#{ord(sign)};")
    return text


def markdown(text: str) -> str:
    """A text as one line of Markdown: no sign of it means anything there."""
    return re.sub(r"[!-/:-@\[-`{-~]", lambda sign: f"&#{ord(sign[0])};", " ".join(text.split()))


def note(message: str) -> str:
    """A quiet line where there is nothing to show yet."""
    return f'<p class="cm-note">{escaped(message)}</p>'


def answer(engine: "Engine", found: "Answer") -> str:
    """Both rankings side by side, the images and, of an image as query, the texts."""
    sections = []
    for target, by_metric in found.rankings.items():
        title = f"<h3>{_TARGET_NAMES[target]}</h3>" if len(found.rankings) > 1 else ""
        columns = "".join(_ranking(engine, target, metric, ranking) for metric, ranking in by_metric.items())
        sections.append(f'{title}<div class="cm-columns">{columns}</div>')
    items = len(engine.images)
    line = (
        f"Encoded in {found.encoding:.1f} ms; {items:,} codes of {engine.bits} bits searched, "
        f"{items * engine.bits // 8:,} bytes."
    )
    told = f'<p class="cm-note" role="status">{line}</p>{ignored(found.ignored_words)}'
    return f'<div class="cm-answer">{told}{"".join(sections)}</div>'


def ignored(words: Sequence[str]) -> str:
    """A line that names words which change nothing about an answer; nothing without any."""
    return note(f"Not known to the model, and ignored: {', '.join(words)}.") if words else ""


def _ranking(engine: "Engine", target: str, metric: str, ranking: "Ranking") -> str:
    draw = _card if target == "images" else _line
    items = "".join(draw(engine, row, score, metric) for row, score in zip(ranking.rows, ranking.scores, strict=True))
    kind = "cm-cards" if target == "images" else "cm-lines"
    return (
        f'<section data-metric="{metric}" data-target="{target}"><h4>{_METRIC_NAMES[metric]} '
        f'<span class="cm-time">{ranking.milliseconds:.2f} ms</span></h4>'
        f'<p class="cm-note">{_METRIC_NOTES[metric]}</p><ol class="{kind}">{items}</ol></section>'
    )


def _score(score: float, metric: str) -> str:
    return f"{int(score)} bits" if metric == "hamming" else f"{score:.1f}"


def _card(engine: "Engine", row: int, score: float, metric: str) -> str:
    item_id, text = escaped(engine.images.ids[row]), escaped(engine.images.texts[row])
    return (
        f'<li><button type="button" class="cm-card" data-id="{item_id}" title="{text}" '
        f'aria-label="Why {item_id}: {text}">'
        f'<img src="{engine.images.address(row)}" alt="{text}">'
        f'<span class="cm-score">{_score(score, metric)}</span><span class="cm-text">{text}</span></button></li>'
    )


def _line(engine: "Engine", row: int, score: float, metric: str) -> str:
    return (
        f'<li><span class="cm-score">{_score(score, metric)}</span> '
        f"<span>{escaped(engine.images.texts[row])}</span></li>"
    )


def overlay(engine: "Engine", item_id: str, attention: "Attention", word: str, region: int | None) -> str:
    """The image under a grid of buttons, one a region; the more a word attends to it, the more it lights up.

    All words of a text share one scale, so a word that attends to nothing in particular looks so.
    """
    columns = attention.grid[1]
    weights_R = attention.weights[:, attention.words.index(word)]
    # The root lets weak attention be seen beside strong.
    light_R = np.sqrt(np.clip(weights_R, 0, None) / (float(attention.weights.max()) or 1.0))
    strongest = int(weights_R.argmax())
    # Arrow keys lead from one to the next, so that the page's order of keys has one stop here and not all regions.
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
    return (
        f'<figure class="cm-overlay"><div class="cm-image" style="aspect-ratio:{width}/{height}">'
        f'<img src="{engine.images.address(row)}" alt="{escaped(engine.images.texts[row])}">'
        f'<div class="cm-grid" role="group" aria-label="Regions" data-columns="{columns}" '
        f'style="grid-template-columns:repeat({columns},1fr)">{cells}</div></div>'
        f"<figcaption>Where <b>{escaped(word)}</b> looks: the strongest region is outlined. "
        f"Press a region for its words.</figcaption></figure>"
    )


def words_of_region(attention: "Attention", region: int) -> str:
    """The words of the text by what a region gives each of them."""
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
    """Two codes below each other, and where they differ."""
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


def labelled_lines(rows: Sequence[tuple[str, str, float]]) -> str:
    """Bars with a name on the left and a value on the right; the third of each is its share of the longest."""
    lines = "".join(
        f'<li><span>{escaped(name)}</span><span class="cm-bar">'
        f'<i style="width:{max(100 * share, 0.4):.1f}%"></i></span>'
        f"<span>{escaped(value)}</span></li>"
        for name, value, share in rows
    )
    return f'<ol class="cm-measures">{lines}</ol>'
