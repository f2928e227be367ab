"""Items counted by their cosine to each query, in all directions of a search: the input of calibration.

A cosine is that of the query's continuous code and the item's binary code, or by Hamming distance of both binary codes
(`cosines_of`). It orders the items of a query as its score does, and compares between queries.

Shapes: `Q` queries, `N` items, `K` bits, `S` cosines.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cmfah_hf.evaluation.labels import encode_labels
from cmfah_hf.evaluation.levels import hamming_distances, relevance
from cmfah_hf.retrieval.base import METRICS
from cmfah_hf.retrieval.calibration import WAYS, cosines_of
from cmfah_hf.retrieval.codes import pack, round_for_aqd, sign

# A calibration needs no more; the work grows with their product.
MOST_QUERIES, MOST_ITEMS = 500, 5_000
# Pairs whose labels are compared for the share of relevant ones.
MOST_LABELS = 2_000
# AQD's cosines are counted in bins of 1/500.
_BINS = 1_000


@dataclass(frozen=True, eq=False)
class CodedPairs:
    """The continuous codes of pairs.

    Attributes:
        images, texts: `(N, K)` each.
        labels: The label names of each pair. None, or no name at all: relevance is that of partners.
    """

    images: np.ndarray
    texts: np.ndarray
    labels: Sequence[Sequence[str]] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> "CodedPairs":
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        return CodedPairs(self.images[rows], self.texts[rows], labels)

    def codes(self, side: str) -> np.ndarray:
        """The codes of one side, `i` or `t`."""
        return self.texts if side == "t" else self.images

    @property
    def labeled(self) -> np.ndarray:
        """The rows with a label."""
        return np.flatnonzero([bool(len(names)) for names in self.labels or ()])


@dataclass(frozen=True, eq=False)
class CosineCounts:
    """Items of each query by cosine.

    Attributes:
        cosines: `(S,)`, ascending.
        counts: `(Q, S)` float64, the number of items.
        relevant: `(Q, S)` float64, the number of relevant ones.
        items: `N`, the number of items that were searched.
    """

    cosines: np.ndarray
    counts: np.ndarray
    relevant: np.ndarray
    items: int

    def top(self, k: int) -> "CosineCounts":
        """The first `k` items of each query; of a tie at the cut, the expected number of relevant ones."""
        nearer_QS = np.cumsum(self.counts[:, ::-1], axis=1)[:, ::-1] - self.counts
        taken_QS = np.clip(k - nearer_QS, 0, self.counts)
        share_QS = np.divide(taken_QS, self.counts, out=np.zeros_like(taken_QS), where=self.counts > 0)
        return replace(self, counts=taken_QS, relevant=self.relevant * share_QS)

    def with_share(self, share: float) -> "CosineCounts":
        """The counts in a collection with this share of relevant items, otherwise alike (`[calibration]`)."""
        own = self.relevant.sum() / self.counts.sum()
        relevant = self.relevant * (share / own)
        others = (self.counts - self.relevant) * ((1 - share) / (1 - own))
        return replace(self, counts=relevant + others, relevant=relevant)

    def pooled(self, groups: int) -> "CosineCounts":
        """The counts of the queries `g`, `g + groups`, `g + 2 groups`, ... together, in one row for each group `g`."""
        rows = [np.s_[group::groups] for group in range(groups)]
        counts, relevant = (
            np.stack([values_QS[own].sum(axis=0) for own in rows]) for values_QS in (self.counts, self.relevant)
        )
        return replace(self, counts=counts, relevant=relevant)


def share_of_relevant(labels: Sequence[Sequence[str]]) -> float | None:
    """The share of relevant items of a pair, on average over 2,000 of the labeled ones. None below two of them."""
    labeled = [names for names in labels if len(names)]
    chosen = [labeled[row] for row in spread(len(labeled), MOST_LABELS)]
    if len(chosen) < 2:
        return None
    relevant = np.count_nonzero(relevance(*encode_labels(chosen, chosen))) - len(chosen)
    return relevant / (len(chosen) * (len(chosen) - 1))


def relevance_kind(queries: CodedPairs, database: CodedPairs | None = None) -> str:
    """`"labels"` if both sides have some, else `"pairs"`."""
    return "labels" if all(len(side.labeled) for side in (queries, database) if side is not None) else "pairs"


def iterate_counts(
    kind: str, queries: CodedPairs, database: CodedPairs | None = None
) -> Iterator[tuple[str, CosineCounts]]:
    """The counts of each metric and direction, by names such as `"aqd/t2i"`.

    Args:
        kind: `"labels"`: an item is relevant if it shares a label with the query. Pairs without a label are left out,
            and so is the query's own pair, which a search by new words or images does not have. `"pairs"`: if it is
            the query's partner, among all pairs of `queries`, from text to image and back.
        queries: The pairs whose images and texts are the queries; of many, 500 at equal distances.
        database: The pairs that are searched; of many, 5,000. None, or by pairs: those of `queries`.
    """
    database = None if kind == "pairs" else database
    if kind == "labels":
        queries = queries[queries.labeled]
        database = None if database is None else database[database.labeled]
    asked = spread(len(queries), MOST_QUERIES)
    searched, own_Q = database, None
    if searched is None:
        others = np.setdiff1d(np.arange(len(queries)), asked)
        rows = np.concatenate([asked, others[spread(len(others), MOST_ITEMS - len(asked))]])
        searched, own_Q = queries[rows], np.arange(len(asked))
    else:
        searched = searched[spread(len(searched), MOST_ITEMS)]
    queries = queries[asked]
    if kind == "labels":
        relevant_QN = relevance(*encode_labels(queries.labels, searched.labels))
    else:
        relevant_QN = np.arange(len(queries))[:, None] == np.arange(len(searched))
    for metric in METRICS:
        for way in WAYS if kind == "labels" else WAYS[:2]:
            asking, found = queries.codes(way[0]), searched.codes(way[2])
            yield f"{metric}/{way}", _counted(metric, asking, found, relevant_QN, own_Q if kind == "labels" else None)


def _counted(
    metric: str, queries_QK: np.ndarray, items_NK: np.ndarray, relevant_QN: np.ndarray, own_Q: np.ndarray | None
) -> CosineCounts:
    """The counts of one direction, without the item `own_Q` of each query, if given."""
    if metric == "hamming":
        distances_QN = hamming_distances(pack(queries_QK), pack(items_NK)).astype(np.int64)
        bits = queries_QK.shape[1]
        cosines_S, places_QN = 1 - 2 * np.arange(bits, -1, -1) / bits, bits - distances_QN
    else:
        scores_QN = round_for_aqd(queries_QK) @ sign(items_NK).T.astype(np.float32)
        cosines_S = (np.arange(_BINS) + 0.5) * 2 / _BINS - 1
        places_QN = np.clip(
            ((cosines_of(scores_QN, queries_QK, metric) + 1) / 2 * _BINS).astype(np.int64), 0, _BINS - 1
        )
    size = len(cosines_S)
    counts_QS, relevant_QS = np.empty((2, len(queries_QK), size))
    for query, (places_N, relevant_N) in enumerate(zip(places_QN, relevant_QN, strict=True)):
        if own_Q is not None:
            places_N, relevant_N = np.delete(places_N, own_Q[query]), np.delete(relevant_N, own_Q[query])
        counts_QS[query] = np.bincount(places_N, minlength=size)
        relevant_QS[query] = np.bincount(places_N[relevant_N], minlength=size)
    return CosineCounts(cosines_S, counts_QS, relevant_QS, len(items_NK))


def spread(count: int, most: int) -> np.ndarray:
    """Up to `most` of `count` rows, at equal distances."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).round().astype(np.int64)
