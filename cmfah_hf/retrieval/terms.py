"""Terms of a query: weighted texts and images, and how a command line writes them. Without torch and NumPy."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from cmfah_hf.errors import QueryError

# The largest weight. Only ratios of weights matter, so more would be a mistake.
MOST_WEIGHT = 1000.0
# The weight of a term to avoid, if none is written; chosen on scenes (`[terms]` in docs/method.md).
WEIGHT_TO_AVOID = 0.5
# A weight at the end of a written term. NaN and infinity are read too, so that they are refused instead of searched.
_WEIGHTED = re.compile(
    r"(.+):([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|[+-]?inf(?:inity)?|nan)", re.ASCII | re.DOTALL | re.IGNORECASE
)


@dataclass(frozen=True)
class Term:
    """One part of a query: a text or an image, with a weight.

    Args:
        text: A text; or
        image: An image: a path, bytes, an open file or a Pillow image.
        weight: From -1000 to 1000; negative for what answers should not show. Only the ratios of the weights of a
            query matter.

    Raises:
        QueryError: If there is not exactly one of text and image, or the weight is out of range.
    """

    text: str | None = None
    image: Any = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if (self.text is None) == (self.image is None):
            raise QueryError("A term is either a text or an image; give one of them.")
        if self.text is not None:
            checked_texts([self.text])
        number = self.weight
        if isinstance(number, bool) or not isinstance(number, Real) or not -MOST_WEIGHT <= number <= MOST_WEIGHT:
            raise QueryError(
                f"The weight of {self.name!r:.80} is {number!r:.40}; "
                f"give a number from -{MOST_WEIGHT:g} to {MOST_WEIGHT:g}."
            )

    @property
    def name(self) -> str:
        """The text, the path of the image, or "image"."""
        if self.text is not None:
            return self.text
        return str(self.image) if isinstance(self.image, (str, Path)) else "image"


def read_terms(
    texts: Iterable[str] | None = None,
    images: Iterable[str] | None = None,
    avoided_texts: Iterable[str] | None = None,
    avoided_images: Iterable[str] | None = None,
) -> list[Term]:
    """The terms of a query as a command line writes them: texts and paths of images, each with or without `:WEIGHT`.

    Only a number behind the last colon is a weight. So a text that ends in such a number is followed by its weight, as
    in `at 12:30:1`. An image file of the whole name comes first.

    Args:
        texts: Such as `"beach"` and `"sunset:0.5"`.
        images: Paths, likewise.
        avoided_texts: Texts that answers should not match. Their weights are written without a minus sign, and are
            `WEIGHT_TO_AVOID` by default.
        avoided_images: Paths of images that answers should not resemble, likewise.

    Raises:
        QueryError: If there is no term, a weight is out of range, or that of a term to avoid is negative.
    """
    terms = [
        *(_term(*_split(text, False, 1.0), False) for text in texts or ()),
        *(_term(*_split(path, True, 1.0), True) for path in images or ()),
        *(_avoided(text, False) for text in avoided_texts or ()),
        *(_avoided(path, True) for path in avoided_images or ()),
    ]
    if not terms:
        raise QueryError("Give a text or an image to search with, or both.")
    return terms


def described(terms: Iterable[Term]) -> str:
    """Terms in one line, such as `beach + sunset:0.5 - people:0.5`."""
    line = ""
    for term in terms:
        sign = " - " if term.weight < 0 else " + " if line else ""
        line += sign + term.name + ("" if abs(term.weight) == 1 else f":{abs(term.weight):g}")
    return line.lstrip()


def _avoided(written: str, is_image: bool) -> Term:
    name, weight = _split(written, is_image, WEIGHT_TO_AVOID)
    if weight < 0:
        raise QueryError(f"{written!r:.80} is to be avoided already; write its weight without a minus sign.")
    return _term(name, -weight, is_image)


def _split(written: str, is_image: bool, weight: float) -> tuple[str, float]:
    """Name and weight of a term; the weight is the given one if none is written."""
    found = _WEIGHTED.fullmatch(written)
    if found is None or (is_image and Path(written).exists()):
        return written, weight
    return found[1], float(found[2])


def _term(name: str, weight: float, is_image: bool) -> Term:
    return Term(image=name, weight=weight) if is_image else Term(text=name, weight=weight)


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
