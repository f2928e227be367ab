"""Why an item is an answer: bits, the score of each word alone, and the regions that words attend to.

Shape suffixes: R regions, W words, K hash bits.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from cmfah_hf.data.images import decode_image
from cmfah_hf.errors import CMFAHError, QueryError
from cmfah_hf.evaluation.attention import attention_of_words
from cmfah_hf.evaluation.pointing import region_weights
from cmfah_hf.models.image_modes import to_rgb
from cmfah_hf.retrieval.codes import round_for_aqd, sign, unpack
from cmfah_hf.retrieval.known_words import similar_words
from cmfah_hf.retrieval.probabilities import calibration_of
from cmfah_hf.retrieval.queries import query_values
from cmfah_hf.retrieval.retriever import Modality
from cmfah_hf.serving.served import ServedRetriever
from cmfah_hf.space.uploads import decode_upload

logger = logging.getLogger(__name__)


def explain_answer(
    served: ServedRetriever,
    item_id: int | str,
    text: str | None = None,
    image: Image.Image | None = None,
    target: Modality | None = None,
) -> dict[str, Any]:
    """Compares a query with an item of an index, as plain values (`ExplainReply`).

    Args:
        served: The retriever.
        item_id: The id of the item.
        text: The query; or
        image: The query, as `open_upload` returns it.
        target: The index that has the item. None: images if there are any, else texts.

    Raises:
        HashIndexError: If the index has no such item.
        QueryError: If there is not exactly one query, or the model knows no word of it.
        ImageError: If the image of the query is damaged.
    """
    if (text is None) == (image is None):
        raise QueryError("Give either a text or an image to compare the item with.")
    target = target or ("images" if len(served.index("images")) else "texts")
    index, retriever = served.index(target), served.retriever
    signs_K = unpack(index.codes_of([item_id]))[0]
    if text is None:
        assert image is not None
        values_1K = query_values(retriever, None, decode_upload(image), 1.0)
        found: dict[str, Any] = {"words": [], "ignored_words": [], "similar_words": {}, "note": None}
    else:
        with served.tokenizing:
            values_1K = query_values(retriever, text, None, 0.0)
            found = _of_words(served, text, signs_K)
            found["note"] = _add_regions(served, item_id, text, found["words"]) if target == "images" else None
    score = _aqd(values_1K, signs_K)[0]
    way = f"{'i' if text is None else 't'}2{target[0]}"
    return {
        "id": item_id,
        "target": target,
        "score": score,
        "distance": int((sign(values_1K)[0] != signs_K).sum()),
        "bits": len(signs_K),
        "probability": _probability(served, score, values_1K, way, len(index)),
        **found,
    }


def _of_words(served: ServedRetriever, text: str, signs_K: np.ndarray) -> dict[str, Any]:
    retriever = served.retriever
    words = list(dict.fromkeys(retriever.processor.known_words(text)))
    scores = _aqd(retriever.encode_texts(words), signs_K) if words else []
    return {
        "words": [
            {"word": word, "score": score, "region": None, "attention": None}
            for word, score in zip(words, scores, strict=True)
        ],
        "ignored_words": retriever.ignored_words(text),
        "similar_words": similar_words([text], retriever.processor),
    }


def _add_regions(served: ServedRetriever, item_id: int | str, text: str, words: list[dict[str, Any]]) -> str | None:
    """Adds to each word the region of the image that it attends to most; otherwise returns the reason."""
    folders = served.index("images").folders
    path = None if folders is None else folders.paths_of([item_id])[0]
    if path is None:
        return "The server has no file of this image, so there are no regions."
    if getattr(served.retriever.model.config, "attention", "none") == "none":
        return "The model has no attention, so there are no regions."
    try:
        image = to_rgb(decode_image(path, str(item_id)))
        found = attention_of_words(served.retriever.model, served.retriever.processor, image, text)
    except CMFAHError as error:  # the file is gone or damaged, or all words came from the graph
        logger.info("No regions of %s: %s", item_id, error)
        return "The image cannot be read, or no word is known, so there are no regions."
    weights_RW, grid = region_weights(found.weights, found.words, found.grid)
    of_word = {word: weights_RW[:, column] for column, word in enumerate(found.words)}
    for entry in words:
        weights_R = of_word.get(entry["word"])
        if weights_R is not None:
            best = int(weights_R.argmax())
            entry["attention"] = round(float(weights_R[best]), 6)
            entry["region"] = _box(best, grid, found.seen, image.size)
    return None


def _box(region: int, grid: tuple[int, int], seen: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Left, top, right and bottom of a region, as shares of the width and height of its image."""
    (left, top, right, bottom), (width, height) = seen, size
    row, column = divmod(region, grid[1])
    step_x, step_y = (right - left) / grid[1] / width, (bottom - top) / grid[0] / height
    x, y = left / width + column * step_x, top / height + row * step_y
    return [round(side, 4) for side in (x, y, x + step_x, y + step_y)]


def _aqd(values_WK: np.ndarray, signs_K: np.ndarray) -> list[float]:
    """The scores that a search gives."""
    return (round_for_aqd(values_WK) @ signs_K.astype(np.float32)).tolist()


def _probability(served: ServedRetriever, score: float, values_1K: np.ndarray, way: str, items: int) -> float | None:
    calibration = calibration_of(served.retriever)
    if calibration is None:
        return None
    found = calibration.probabilities(np.asarray([[score]]), values_1K, "aqd", way, items)
    return None if found is None else round(float(found[0, 0]), 4)
