"""Answers without near-duplicates: items close to a better answer are folded into it (`[unique]` in docs/method.md).

Shapes: `Q` queries, `D` items of the ranking of one query, `k` answers; codes of `K` bits, packed `(..., K / 8)` uint8.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from cmfah_hf.retrieval.radius import hamming_distances
from cmfah_hf.retrieval.results import QueryResults, SearchResults
from cmfah_hf.retrieval.storage.metadata import taken

# The first part of the ranking that is read: twice the answers and some more. Each further one is four times as long.
_MORE, _LONGER = 16, 4
# Items of rankings in memory at once.
_AT_ONCE = 2**20


def search_unique(
    nearest: Callable[[np.ndarray, int], SearchResults], values: np.ndarray, k: int, bits: int, items: int
) -> SearchResults:
    """Up to `k` answers to each query, none within `bits` of a better one.

    The ranking is read from the start. An item is folded into the best answer within `bits`, or is an answer itself.
    It ends before answer `k + 1`, or with the last item.

    Args:
        nearest: The first items of the rankings of some queries, with their codes.
        values: The queries, `(Q, ...)`, or one query.
        k: The number of answers.
        bits: The Hamming distance up to which items are near-duplicates.
        items: The number of items of the index.
    """
    values = values[None] if values.ndim == 1 else values
    if not values.ndim or not len(values):
        return nearest(values, k)  # which raises the error of a single number
    found: dict[int, QueryResults] = {}
    pending, depth = np.arange(len(values)), 2 * k + _MORE
    while len(pending):
        depth = max(1, min(depth, items))
        group, left = max(1, _AT_ONCE // depth), []
        for start in range(0, len(pending), group):
            asked = pending[start : start + group]
            results = nearest(values[asked], depth)
            is_all = depth >= items or results.ids.shape[1] < depth
            for query, result, codes in zip(asked.tolist(), results, results.codes, strict=True):  # type: ignore[arg-type]
                own = _folded(result, codes, k, bits, is_all)
                if own is None:
                    left.append(query)
                else:
                    found[query] = own
        pending, depth = np.array(left, np.int64), depth * _LONGER
    return _together(results, [found[query] for query in range(len(values))])


def _folded(ranking: QueryResults, codes: np.ndarray, k: int, bits: int, is_all: bool) -> QueryResults | None:
    """The first `k` answers of a ranking, with what is folded into them. None if the ranking is too short."""
    answer_of_D = np.full(len(ranking), -1)
    answers: list[int] = []
    while len(answers) <= k and (answer_of_D < 0).any():
        place = int((answer_of_D < 0).argmax())
        near_D = (answer_of_D < 0) & (hamming_distances(codes, codes[place]) <= bits)
        answer_of_D[near_D] = len(answers)
        answers.append(place)
    if len(answers) <= k and not is_all:
        return None
    end = answers[k] if len(answers) > k else len(ranking)
    shown = np.array(answers[:k], np.int64)
    folded = [ranking.ids[:end][answer_of_D[:end] == number][1:] for number in range(len(shown))]
    metadata = None if ranking.metadata is None else taken(ranking.metadata, shown)
    return replace(ranking, ids=ranking.ids[shown], scores=ranking.scores[shown], metadata=metadata, folded=folded)


def _together(any_results: SearchResults, found: Sequence[QueryResults]) -> SearchResults:
    """The answers of all queries; a query with fewer than others repeats its last one."""
    counts = np.array([len(result) for result in found])
    places = np.minimum(np.arange(counts.max()), counts[:, None] - 1) + (counts.cumsum() - counts)[:, None]
    ids, scores = (np.concatenate([getattr(result, name) for result in found])[places] for name in ("ids", "scores"))
    metadata = None
    if found[0].metadata is not None:
        tables = [result.metadata for result in found if result.metadata is not None]
        metadata = taken(pa.concat_tables(tables).unify_dictionaries(), places).combine_chunks()
    folded = [result.folded or [] for result in found]
    return replace(any_results, ids=ids, scores=scores, metadata=metadata, counts=counts, folded=folded, codes=None)
