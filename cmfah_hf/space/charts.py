"""Charts of the page in HTML and SVG: the map of codes, memory, curves of the run's metrics.

They use the page's own colors, so they are readable in light and dark mode.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from cmfah_hf.space.html import escaped, labeled_lines, note

if TYPE_CHECKING:
    from cmfah_hf.space.engine import Engine

# Distinguishable with any color vision and on light and dark backgrounds, and by dashes in grayscale.
_COLORS = {"hamming/i2t": "#0A84C6", "hamming/t2i": "#D9690F", "aqd/i2t": "#0A84C6", "aqd/t2i": "#D9690F"}
_DASHES = {"hamming": "none", "aqd": "7 4"}
_WAYS = {"i2t": "image to text", "t2i": "text to image"}
_METRICS = {"hamming": "Hamming", "aqd": "AQD"}
_OF_PAIRS = {
    **{f"recall@{k}": f"recall at {k}" for k in (1, 5, 10)},
    "median_rank": "median rank",
    "ndcg@10": "nDCG at 10",
}
# Layout of the map in image sides: maximum images per row, and their minimum distance.
_MOST_THUMBNAILS, _THUMBNAIL_SIDE = 110, 72
_ASPECT = 1.9
_APART = 0.047
_LARGEST_FIGURE = 1e12
# Size of the precision chart.
_DEPTH = re.compile("[1-9][0-9]{0,8}")


def code_map(engine: "Engine", text: str | None = None) -> str:
    """The images at the positions of their codes, optionally with the position of a text's code."""
    places = engine.map.coordinates
    asked = engine.map.places(engine.code(text)[None].astype(np.float64)) if text else None
    every = places if asked is None else np.vstack([places, asked])
    low, high = every.min(axis=0), every.max(axis=0)
    unit = (every - low) / np.where(high > low, high - low, 1.0)
    shown: list[str] = []
    dots: list[str] = []
    taken: list[tuple[float, float]] = []
    for row, (x, y) in zip(engine.map.rows.tolist(), unit, strict=False):  # without the text
        crowded = any(abs(x - a) < _APART and abs(y - b) < _APART * _ASPECT for a, b in taken)
        if crowded or len(shown) == _MOST_THUMBNAILS:
            dots.append(f'<i style="{_at(x, y)}"></i>')
            continue
        taken.append((x, y))
        name = escaped(engine.images.texts[row])
        address = engine.images.address(row, _THUMBNAIL_SIDE)
        shown.append(f'<img src="{address}" alt="{name}" title="{name}" style="{_at(x, y)}">')
    of_all = f" of {len(engine.images):,}" if len(engine.images) > len(places) else ""
    mark = "" if asked is None else f'<b style="{_at(*unit[-1])}"><span>{escaped(text or "")}</span></b>'
    return (
        f'<figure class="cm-map"><div class="cm-plane" role="img" aria-label="Map of {len(places)} codes">'
        f"{''.join(dots)}{''.join(shown)}{mark}</div><figcaption>{len(places):,}{of_all} codes by their Hamming "
        f"distances (classical scaling; these two directions hold {engine.map.shown_variance:.0%} of the squared "
        f"distances). A dot is an image with another before it.</figcaption></figure>"
    )


def _at(x: float, y: float) -> str:
    return f"left:{100 * x:.2f}%;top:{100 * (1 - y):.2f}%"


def memory(engine: "Engine") -> str:
    """Memory per image of its binary code, its continuous code, and its features."""
    width = engine.retriever.model.config.hidden_size
    sizes = [
        (f"code, {engine.bits} bits", engine.bits // 8),
        (f"continuous code, {engine.bits} float32", 4 * engine.bits),
        (f"features, {width} float32", 4 * width),
    ]
    largest = max(size for _, size in sizes)
    rows = [
        (name, f"{size:,} bytes per image, {_amount(size * 10**6)} per million", size / largest) for name, size in sizes
    ]
    here = len(engine.images) * engine.bits // 8
    line = f"The codes of all {len(engine.images):,} images here take {here:,} bytes."
    return f'<div class="cm-memory"><h3>Memory</h3>{labeled_lines(rows)}{note(line)}</div>'


def _amount(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def quality(metrics: Mapping[str, Any]) -> str:
    """The run's metrics: a table of MAP and a chart of precision at k, or a line that reports what is missing."""
    figures, pairs = _numbers(metrics.get("query")), _numbers(metrics.get("pairs"))
    tables = [_agreement(metrics["compression"])] if isinstance(metrics.get("compression"), Mapping) else []
    if any(name.endswith("/map") for name in figures):
        tables.append(_by_labels(figures, metrics))
    if any("/recall@" in name for name in pairs):
        tables.append(_of_pairs(pairs))
    if not tables:
        return note(
            "This model came without figures of test queries (metrics.json). Train it on data that has a query split, "
            "or measure it with `cmfah evaluate`."
        )
    return f'<div class="cm-quality"><div>{"".join(tables)}</div>{_curves(figures)}</div>'


def _by_labels(figures: Mapping[str, float], metrics: Mapping[str, Any]) -> str:
    """The table of MAP."""
    rows = "".join(
        f'<tr><th scope="row">{_METRICS[metric]}</th>'
        + "".join(f"<td>{_figure(figures.get(f'{metric}/{way}/map'))}</td>" for way in _WAYS)
        + "</tr>"
        for metric in _METRICS
    )
    chance = figures.get("random/map")
    rows += f'<tr><th scope="row">random ranking</th>{f"<td>{_figure(chance)}</td>" * len(_WAYS)}</tr>'
    facts = [
        f"{int(figures[name]):,} {what}" for name, what in (("queries", "queries"), ("database", "items searched"))
        if name in figures
    ]  # fmt: skip
    if (bits := _numbers(metrics).get("hash_bits")) is not None:
        facts.append(f"{int(bits)} bits")
    caption = f"Mean average precision: {', '.join(facts)}" if facts else "Mean average precision"
    plain = note("Each query is encoded without its other modality; metrics are expectations over the order of ties.")
    return _table(caption, ["ranking", *_WAYS.values()], rows) + plain


def _of_pairs(figures: Mapping[str, float]) -> str:
    """The table of instance retrieval."""
    rows = ""
    for metric, ranking in product(_OF_PAIRS, _METRICS):
        values = [figures.get(f"{ranking}/{way}/{metric}") for way in _WAYS]
        if values != [None] * len(_WAYS):
            shown = [f"{value:g}" if metric == "median_rank" and value else _figure(value) for value in values]
            head = f'<th scope="row">{_OF_PAIRS[metric]}, {_METRICS[ranking]}</th>'
            rows += f"<tr>{head}{''.join(f'<td>{cell}</td>' for cell in shown)}</tr>"
    counts = [f"{int(figures[name]):,} {name}" for name in ("images", "texts") if name in figures]
    caption = f"The other half of a query's pair{', among ' if counts else ''}{' and '.join(counts)}"
    return _table(caption, ["", *_WAYS.values()], rows)


def _table(caption: str, heads: Sequence[str], rows: str) -> str:
    cells = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return (
        f'<table class="cm-table"><caption>{escaped(caption)}</caption>'
        f"<thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _agreement(figures: Mapping[str, Any]) -> str:
    """The figures by which the candidates of a compression were compared."""
    given = figures.get("candidates")
    candidates = [each for each in given if isinstance(each, Mapping)] if isinstance(given, list) else []
    rows = "".join(
        f'<tr><th scope="row">{escaped(str(each.get("name"))[:60])}</th>'
        + "".join(f"<td>{_figure(_numbers(each).get(ranking))}</td>" for ranking in ("aqd", "hamming"))
        + "</tr>"
        for each in candidates[:20]
    )
    compared = (
        "Mean of 1 / log2(1 + rank) of an item's own partner"
        if figures.get("by_partner") is True
        else "Share of the encoder's ten nearest images among those of the code"
    )
    plain = note("A pretrained encoder, compressed and not trained. The first code was chosen on held-out images.")
    return _table(compared, ["code", "AQD", "Hamming"], rows) + plain


def _numbers(values: Any) -> dict[str, float]:
    """The finite numbers among a file's untrusted values."""
    if not isinstance(values, Mapping):
        return {}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST_FIGURE
    }


def _figure(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _curves(figures: Mapping[str, float]) -> str:
    """Precision over the number of retrieved items, on a logarithmic axis, as SVG."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for name, value in figures.items():
        curve, _, k = name.partition("/precision@")
        if _DEPTH.fullmatch(k) and curve in _COLORS and 0 <= value <= 1:
            curves.setdefault(curve, []).append((int(k), float(value)))
    if not curves:
        return ""
    width, height, left, bottom, top, right = 560, 340, 46, 46, 14, 14
    deepest = max(k for points in curves.values() for k, _ in points)

    def x(k: float) -> float:
        return left + (width - left - right) * math.log(k) / math.log(max(deepest, 2))

    def y(precision: float) -> float:
        return top + (height - top - bottom) * (1 - precision)

    grid = "".join(
        f'<line x1="{left}" x2="{width - right}" y1="{y(p):.1f}" y2="{y(p):.1f}" class="cm-rule"/>'
        f'<text x="{left - 8}" y="{y(p) + 4:.1f}" text-anchor="end">{p:.1f}</text>'
        for p in (0, 0.2, 0.4, 0.6, 0.8, 1)
    )
    ticks = sorted({k for points in curves.values() for k, _ in points})
    grid += "".join(f'<text x="{x(k):.1f}" y="{height - bottom + 18}" text-anchor="middle">{k}</text>' for k in ticks)
    lines = legend = ""
    for name, points in curves.items():
        metric, _, way = name.partition("/")
        path = " ".join(f"{x(k):.1f},{y(p):.1f}" for k, p in sorted(points))
        style = f'stroke="{_COLORS[name]}" stroke-dasharray="{_DASHES[metric]}"'
        lines += f'<polyline points="{path}" fill="none" stroke-width="2.5" {style}/>'
        lines += "".join(f'<circle cx="{x(k):.1f}" cy="{y(p):.1f}" r="3.2" fill="{_COLORS[name]}"/>' for k, p in points)
        legend += (
            f'<li><svg width="34" height="10" aria-hidden="true"><line x1="0" x2="34" y1="5" y2="5" stroke-width="3" '
            f"{style}/></svg>{_METRICS[metric]}, {_WAYS[way]}</li>"
        )
    return (
        f'<figure class="cm-chart"><svg viewBox="0 0 {width} {height}" role="img" aria-label="Precision at k">{grid}'
        f'{lines}<text x="{(left + width - right) / 2}" y="{height - 6}" text-anchor="middle">retrieved items k</text>'
        f"</svg><figcaption>Precision at k<ul>{legend}</ul></figcaption></figure>"
    )
