"""Queries as continuous codes: texts, images, mixtures of both, or several weighted terms (`[terms]`).

Shape suffixes: Q queries, T terms of one query, K hash bits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cmfah_hf.errors import QueryError
from cmfah_hf.retrieval.codes import shortened
from cmfah_hf.retrieval.encoder import ImageTextEncoder
from cmfah_hf.retrieval.terms import Term, described

# Terms cancel out if their sum is shorter than this share of its parts. Encodings of one text in batches of different
# lengths differ by less.
_LEAST_LEFT = 1e-3


def query_values(
    encoder: ImageTextEncoder,
    text: str | Sequence[str] | None,
    image: Any,
    image_weight: float,
    terms: Sequence[Term] | Sequence[Sequence[Term]] | None = None,
) -> np.ndarray:
    """The continuous codes `(Q, K)` of queries; the arguments are those of `CrossMediaRetriever.search`.

    Raises:
        QueryError: If there is nothing to search with, or both terms and something else; the numbers of texts and
            images differ; the weight is not in 0..1; the model knows no word of a text, or of all texts of terms;
            terms cancel out.
        ImageError: If an image cannot be read.
    """
    if not 0 <= image_weight <= 1:
        raise QueryError(f"image_weight is {image_weight:g}; give a share from 0 (text only) to 1 (image only).")
    if terms is not None:
        if text is not None or image is not None:
            raise QueryError("Give either terms, or a text and an image, not both.")
        return _values_of_terms(encoder, _as_queries(terms), image_weight)
    if text is None and image is None:
        raise QueryError("Give a text or an image to search with, or both.")
    sides = []
    if text is not None:
        texts = [text] if isinstance(text, str) else list(text)
        for own, known in zip(texts, _are_known(texts, encoder), strict=True):
            if not known:
                raise QueryError(f"No word of {own!r} is known to the model; use other words.")
        sides.append((1 - image_weight, encoder.encode_texts(texts)))
    if image is not None:
        images = list(image) if isinstance(image, (list, tuple)) else [image]
        sides.append((image_weight, encoder.encode_images(images)))
    if len(sides) == 1:
        return sides[0][1]
    (text_weight, text_QK), (_, image_QK) = sides
    if len(text_QK) != len(image_QK) and 1 not in (len(text_QK), len(image_QK)):
        raise QueryError(
            f"A mixed query of {len(text_QK)} texts and {len(image_QK)} images does not pair up; give the same number "
            "of each, or one of either."
        )
    return text_weight * text_QK + image_weight * image_QK


def have_text(text: Any, terms: Any) -> bool:
    """Whether a text is among what queries look for; otherwise they have images only."""
    if terms is None:
        return text is not None
    return any(term.text is not None and term.weight > 0 for query in _as_queries(terms) for term in query)


def _values_of_terms(encoder: ImageTextEncoder, queries: list[list[Term]], image_weight: float) -> np.ndarray:
    """The continuous codes `(Q, K)` of queries of several terms, all texts and all images encoded together."""
    queries = [_with_known_terms(terms, encoder) for terms in queries]
    texts = [term.text for terms in queries for term in terms if term.text is not None]
    images = [term.image for terms in queries for term in terms if term.text is None]
    text_values, image_values = iter(encoder.encode_texts(texts)), iter(encoder.encode_images(images))
    values = [[next(image_values if term.text is None else text_values) for term in terms] for terms in queries]
    return np.stack([combined_values(own, terms, image_weight) for own, terms in zip(values, queries, strict=True)])


def combined_values(values: Sequence[np.ndarray], terms: Sequence[Term], image_weight: float) -> np.ndarray:
    """The continuous code `(K,)` of a query, from those of its terms (`[terms]`).

    Raises:
        QueryError: If the terms cancel out.
    """
    weights = [term.weight for term in terms]
    if len({term.text is None for term in terms}) == 2:
        shares = [image_weight if term.text is None else 1 - image_weight for term in terms]
        weights = [weight * share for weight, share in zip(weights, shares, strict=True)]
    total = sum(map(abs, weights)) or 1.0
    parts_TK = [weight / total * values_K for weight, values_K in zip(weights, values, strict=True)]
    sum_K = np.sum(parts_TK, axis=0)
    if not np.linalg.norm(sum_K) > _LEAST_LEFT * sum(map(np.linalg.norm, parts_TK)):
        raise QueryError(f"The terms {described(terms)!r:.200} cancel out; change one of them, or a weight.")
    return sum_K


def _as_queries(terms: Any) -> list[list[Term]]:
    """One query, or several, as lists of terms."""
    given: list[Any] = [terms] if isinstance(terms, Term) else list(terms)
    queries: list[Any] = [given] if not given or isinstance(given[0], Term) else given
    for query in queries:
        if not isinstance(query, (list, tuple)):
            raise QueryError(f"A list of terms was expected, not {shortened(query)}.")
        if not query:
            raise QueryError("A query without terms finds nothing; give at least one.")
        for term in query:
            if not isinstance(term, Term):
                raise QueryError(f"A Term was expected, not {shortened(term)}.")
    return [list(query) for query in queries]


def _with_known_terms(terms: Sequence[Term], encoder: ImageTextEncoder) -> list[Term]:
    """The terms but those of whose text the model knows no word. A query must not lose all that it looks for."""
    are_known = iter(_are_known([term.text for term in terms if term.text is not None], encoder))
    known: list[Term] = []
    unknown: list[Term] = []
    for term in terms:
        (known if term.text is None or next(are_known) else unknown).append(term)
    sought = [term for term in unknown if term.weight > 0]
    if not known or (sought and all(term.weight <= 0 for term in known)):
        names = " or ".join(repr(term.text) for term in sought or unknown)
        raise QueryError(f"No word of {names} is known to the model; use other words.")
    return known


def _are_known(texts: Sequence[str], encoder: ImageTextEncoder) -> list[bool]:
    """Whether the model knows a word of each text."""
    return [encoder.reader.has_known_tokens(expanded) for expanded in encoder.expand(texts)]
