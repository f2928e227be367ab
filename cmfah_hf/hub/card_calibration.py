"""The calibration in a model card: its errors, and the reliability curve of the first answers as a table."""

from collections.abc import Mapping
from typing import Any

from cmfah_hf.hub.card_figures import RANKINGS, figure
from cmfah_hf.hub.finished_run import FinishedRun
from cmfah_hf.retrieval.calibration import SHOWN_MAP

_WAYS = {
    "t2i": "text to image", "i2t": "image to text", "i2i": "image to image", "t2t": "text to text",
}  # fmt: skip
_MEANING = {
    "labels": "The probability is that of sharing a label with the query.",
    "pairs": "The data has no labels, so the probability is that of being *the* image of a text, or *the* text of an "
    "image, if the collection has it.",
}


def calibration_of(run: FinishedRun) -> list[str]:
    """The paragraphs of the section of the calibration; none without one."""
    calibration = run.calibration
    if calibration is None:
        return []
    measured = run.metrics.get("calibration")
    measured = measured if isinstance(measured, dict) else {}
    rows, curve = [], []
    for name, score_map in calibration.maps.items():
        metric, way = name.split("/")
        found = measured.get(name)
        held_out = {**score_map.figures, "bins": score_map.bins}
        figures: Mapping[str, Any] = found if isinstance(found, dict) else held_out
        if name == SHOWN_MAP:
            curve = _curve(figures.get("bins"))
        cells = [_cell(figures.get(key)) for key in ("ece", "ece@10", "precision", "recall")]
        rows.append(f"| {_WAYS[way]}, {RANKINGS[metric]} | {' | '.join(cells)} |")
    on = "the test queries" if measured else "held-out queries, five-fold"
    parts = [
        "## Calibration",
        "`calibration.json` gives each answer a probability, fitted to held-out pairs. "
        f"{_MEANING[calibration.relevance]} It suits collections like that data. Expected calibration error on {on}, "
        "of all items and of the first ten answers, in ten bins of equal width; precision and recall of answers with "
        "a probability of .5 or more:",
        "\n".join(["| | error, all | error, first ten | precision | recall |", "|---|---|---|---|---|", *rows]),
    ]
    if curve:
        parts.append("The first ten answers from text to image by AQD, by probability:")
        head = ["| answers | mean probability | relevant share |", "|---|---|---|"]
        parts.append("\n".join([*head, *curve]))
    return parts


def _curve(bins: Any) -> list[str]:
    rows = [row for row in bins if isinstance(row, list) and len(row) == 3] if isinstance(bins, list) else []
    return [
        f"| {count:,.0f} | {figure(predicted)} | {figure(observed)} |"
        for count, predicted, observed in rows
        if all(isinstance(value, (int, float)) for value in (count, predicted, observed))
    ]


def _cell(value: Any) -> str:
    return figure(value if isinstance(value, (int, float)) else None)
