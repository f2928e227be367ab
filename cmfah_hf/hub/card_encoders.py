"""The pretrained encoders of a model in its card: their names, commits and licenses, and where their weights are."""

import re
from collections.abc import Mapping
from typing import Any

from cmfah_hf.hub.card_figures import code, is_compressed
from cmfah_hf.hub.finished_run import FinishedRun, is_repo_id

_COMMIT = re.compile("[0-9a-f]{40}")
_MOST_LETTERS = 200


def encoders_of(run: FinishedRun) -> list[Mapping[str, Any]]:
    """The pretrained encoders of a model: `of`, what each encodes, `name`, `revision` and `license`.

    Models compressed by earlier versions record name and license among the figures of the compression.
    """
    found = run.metrics.get("encoders")
    if isinstance(found, list):
        return [each for each in found if isinstance(each, dict) and each.get("name")]
    figures = run.metrics.get("compression") or {}
    if not figures.get("encoder"):
        return []
    revision, license = run.config.get("encoder_revision"), figures.get("encoder_license")
    return [{"of": "images and texts", "name": figures["encoder"], "revision": revision, "license": license}]


def base_models(run: FinishedRun) -> str | list[str] | None:
    """The Hub ids of the encoders of a model, as `base_model` of a card's header; None if none is on the Hub."""
    names = [each["name"] for each in encoders_of(run) if is_repo_id(each["name"]) or each.get("revision")]
    return names[0] if len(names) == 1 else names or None


def encoder_rows(run: FinishedRun) -> dict[str, str]:
    """The rows of a card's table on the encoders, by title."""
    rows: dict[str, str] = {}
    several = len(encoders_of(run)) > 1
    for each in encoders_of(run):
        encoder = f"encoder of {each['of']}" if several and each.get("of") else "encoder"
        rows[encoder] = code(each["name"])
        if _COMMIT.fullmatch(str(each.get("revision"))):
            rows[f"commit of the {encoder}"] = each["revision"]
        if each.get("license"):
            rows[f"license of the {encoder}"] = _cell(each["license"])
    return rows


def place_of_weights(run: FinishedRun) -> list[str]:
    """The paragraph on the weights of a frozen dual encoder; none of other models."""
    config = run.config
    if config.get("encoder_source"):
        return ["The weights of the encoder are not here: they are fetched from the commit above, and checked."]
    is_frozen = config.get("freeze_backbone", True) and config.get("freeze_text_backbone", True)
    if is_compressed(run) or (config.get("dual_encoder_config") and is_frozen):
        return ["The weights of the encoder are in this repository, unchanged."]
    return []


def _cell(text: str) -> str:
    """An untrusted text as a cell of a table."""
    return re.sub(r"([\\|<>`\[\]*])", r"\\\1", " ".join(str(text).split())[:_MOST_LETTERS])
