"""Explanation of added words: contributions that sum to each word's score (see docs/method.md, [graph], [knowledge]).

Shapes: V words of the graph, A words of a text that are in the graph, H hops of a walk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import sparse

_COLUMNS = ("word", "from", "score", "because of")


@dataclass(frozen=True)
class Cause:
    """The contribution of one word of the text to an added word."""

    own: str  # the word of the text
    score: float  # its part of the added word's score
    ways: list[tuple[str | None, float]]  # by the previous word of the walk, largest first; None: directly


@dataclass(frozen=True)
class AddedWord:
    """An added word.

    The score of a word of the graph is its expected share of a walk's words, that of a word of the knowledge the sum of
    its positive pointwise mutual information with the words of the text.
    """

    word: str
    source: str  # `graph` or `knowledge`
    score: float
    causes: list[Cause]  # largest first; their scores sum to `score`


@dataclass(frozen=True)
class Explanation:
    """An expanded text with the causes of each added word; prints as a table.

    Attributes:
        own: The words of the text.
        unknown: Those that are neither in the graph nor in the knowledge.
        added: The added words, in order.
    """

    own: list[str]
    unknown: list[str]
    added: list[AddedWord]

    def to_dict(self) -> dict[str, Any]:
        """The explanation as dictionaries, lists, strings and numbers."""
        return asdict(self)

    def rows(self, causes: int = 2) -> list[tuple[str, str, float, str]]:
        """A row for each added word: the word, `"graph"` or `"knowledge"`, its score, and its largest `causes`."""
        return [(added.word, added.source, added.score, _because(added, causes)) for added in self.added]

    def to_table(self, causes: int = 2) -> str:
        """The rows as aligned text, below the words of the text."""
        rows = [(word, source, f"{score:.4f}", because) for word, source, score, because in self.rows(causes)]
        widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (_COLUMNS, *rows)]
        unknown = [f"not known: {' '.join(self.unknown)}"] if self.unknown else []
        return "\n".join([" ".join(self.own), *lines, *unknown])

    def __str__(self) -> str:
        return self.to_table()


def walk_causes(
    transitions_VV: sparse.csr_array,
    start: tuple[np.ndarray, np.ndarray],
    num_hops: int,
    target: int,
    words: Sequence[str],
    ways: int | None,
) -> list[Cause]:
    """The contribution of each word of the text to the expected share of one word on a walk, with `ways` ways to it.

    With `b` this word, `a` a word of the text of share `x_a`, and `c` the word before the last hop, the share of `b` is

        u_b / (H + 1) = sum over a of x_a M_ab / (H + 1) + sum over a, c of x_a (M + ... + M^(H-1))_ac M_cb / (H + 1)
    """
    numbers, shares = start
    into = transitions_VV[:, [target]].tocoo()
    before, hop = into.row, into.data
    hop_V = np.zeros(len(words))
    hop_V[before] = hop
    position_AV = sparse.csr_array((shares, (np.arange(len(numbers)), numbers)), shape=(len(numbers), len(words)))
    passed_AC = np.zeros((len(numbers), len(before)))
    for _ in range(num_hops - 1):
        position_AV = position_AV @ transitions_VV
        passed_AC += position_AV[:, before].toarray()
    parts_AC = passed_AC * hop / (num_hops + 1)
    causes: list[Cause] = []
    for number, share, parts_C in zip(numbers.tolist(), shares.tolist(), parts_AC, strict=True):
        found: list[tuple[str | None, float]] = [
            (words[c], part) for c, part in zip(before.tolist(), parts_C.tolist(), strict=True) if part > 0
        ]
        direct = share * float(hop_V[number]) / (num_hops + 1)
        if direct > 0:
            found.append((None, direct))
        if found:
            found.sort(key=lambda way: (-way[1], way[0] or ""))
            causes.append(Cause(words[number], float(sum(part for _, part in found)), found[:ways]))
    return sorted(causes, key=lambda cause: (-cause.score, cause.own))


def knowledge_causes(scores: Mapping[str, float]) -> list[Cause]:
    """The words of the text that a word is related to, by their scores."""
    related = sorted((-score, own) for own, score in scores.items() if score > 0)
    return [Cause(own, -score, []) for score, own in related]


def _because(added: AddedWord, causes: int) -> str:
    parts = []
    for cause in added.causes[:causes]:
        ways = []
        for through, score in cause.ways[:2] if added.source == "graph" else []:
            ways.append(f"{'directly' if through is None else f'by {through}'} {score / added.score:.0%}")
        parts.append(f"{cause.own} {cause.score / added.score:.0%}" + (f" ({', '.join(ways)})" if ways else ""))
    more = len(added.causes) - len(parts)
    return "; ".join(parts + ([f"{more} more"] if more else []))
