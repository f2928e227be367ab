"""The answers to one query, as JSON or as a table."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cmfah_hf.cli.output import print_json, print_table, say


@dataclass(frozen=True)
class Answers:
    """The answers to one query, wherever they were found.

    Attributes:
        query: The query as a text.
        metric: The ranking.
        hits: Rows of `QueryResults.hits`, nearest first.
        columns: The names of the metadata columns.
        ignored_words: The words of the query that the model does not know.
        folder: The counts of the update of a folder before the search, or None without one.
        min_score: The least probability that was asked for, or None.
        similar_words: Words that the model does not know, and those that it reads instead.
    """

    query: str
    metric: str
    hits: Sequence[Mapping[str, Any]]
    columns: Sequence[str] = ()
    ignored_words: Sequence[str] = ()
    folder: Mapping[str, Any] | None = None
    min_score: float | None = None
    similar_words: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def paths(self) -> list[str | None]:
        """The absolute paths of the images; None where they are unknown."""
        paths = (hit.get("path") for hit in self.hits)
        return [path if isinstance(path, str) and os.path.isabs(path) else None for path in paths]  # noqa: PTH117

    def print_json(self) -> None:
        """Prints the answers as one JSON document."""
        folder = {} if self.folder is None else {"folder": self.folder}
        places = zip(self.hits, self.paths, strict=True)
        results = [{"rank": rank, **hit, "path": path} for rank, (hit, path) in enumerate(places, 1)]
        words: dict[str, Any] = {"ignored_words": list(self.ignored_words)}
        if self.similar_words:
            words["similar_words"] = self.similar_words
        print_json({"query": self.query, "metric": self.metric, **words, **folder, "results": results})

    def print_table(self) -> None:
        """Prints the answers as a table; in a pipe, as one line for each."""
        if not self.hits:
            least = "" if self.min_score is None else f" with a probability of {self.min_score:g} or more"
            say(f"{self.query}: nothing found{least}.")
            return
        print_table(self.query, self.header, list(self.rows()))

    @property
    def header(self) -> list[str]:
        """The names of the columns of `rows`. There is one of probabilities and one of paths if any is known."""
        path = ["path"] if any(self.paths) else []
        return ["rank", "id", self.metric, *self._probability, *self.columns, *path]

    @property
    def _probability(self) -> list[str]:
        return ["probability"] if any("probability" in hit for hit in self.hits) else []

    def rows(self) -> Iterator[list[Any]]:
        """The cells of each answer."""
        paths = self.paths
        for rank, (hit, path) in enumerate(zip(self.hits, paths, strict=True), 1):
            metadata = [_shown(hit["metadata"][name]) for name in self.columns]
            probability = map(hit.get, self._probability)
            yield [rank, hit["id"], hit["score"], *probability, *metadata, *([path or "-"] if any(paths) else [])]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return "-" if value is None else str(value)
