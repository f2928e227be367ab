"""Queries as continuous codes: texts, images, or mixtures of both.

Shape suffixes: Q queries, K hash bits.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from cmfah_hf.errors import QueryError
from cmfah_hf.models import CMFAHProcessor


class Encoder(Protocol):
    """The part of `CrossMediaRetriever` that queries need."""

    processor: CMFAHProcessor

    def expand(self, texts: Sequence[str]) -> list[str]: ...

    def encode_texts(self, texts: Iterable[str]) -> np.ndarray: ...

    def encode_images(self, images: Iterable[Any]) -> np.ndarray: ...


def query_values(retriever: Encoder, text: str | Sequence[str] | None, image: Any, image_weight: float) -> np.ndarray:
    """The continuous codes `(Q, K)` of queries; the arguments are those of `CrossMediaRetriever.search`.

    Raises:
        QueryError: If there is neither text nor image, their numbers differ, the weight is not in 0..1, or the model
            knows no word of a text.
        ImageError: If an image cannot be read.
    """
    if text is None and image is None:
        raise QueryError("Give a text or an image to search with, or both.")
    if not 0 <= image_weight <= 1:
        raise QueryError(f"image_weight is {image_weight:g}; give a share from 0 (text only) to 1 (image only).")
    sides = []
    if text is not None:
        texts = [text] if isinstance(text, str) else list(text)
        _require_known_tokens(texts, retriever)
        sides.append((1 - image_weight, retriever.encode_texts(texts)))
    if image is not None:
        images = list(image) if isinstance(image, (list, tuple)) else [image]
        sides.append((image_weight, retriever.encode_images(images)))
    if len(sides) == 1:
        return sides[0][1]
    (text_weight, text_QK), (_, image_QK) = sides
    if len(text_QK) != len(image_QK) and 1 not in (len(text_QK), len(image_QK)):
        raise QueryError(
            f"A mixed query of {len(text_QK)} texts and {len(image_QK)} images does not pair up; give the same number "
            "of each, or one of either."
        )
    return text_weight * text_QK + image_weight * image_QK


def checked_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list.

    Raises:
        QueryError: If one is not a string, or contains a lone surrogate, as undecodable command-line bytes do.
    """
    texts = list(texts)
    for text in texts:
        if not isinstance(text, str):
            raise QueryError(f"A text was expected, not a {type(text).__name__}; give a string.")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise QueryError(f"The text {text[:80]!r} contains a lone surrogate, not a character; give it as UTF-8.")
    return texts


def _require_known_tokens(texts: Sequence[str], retriever: Encoder) -> None:
    for text, expanded in zip(texts, retriever.expand(texts), strict=True):
        if not retriever.processor.has_known_tokens(expanded):
            raise QueryError(f"No word of {text!r} is known to the model; use other words.")
