"""The answers to one query, as JSON or as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cmfah_hf.cli.output import print_json, print_table


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
    """

    query: str
    metric: str
    hits: Sequence[Mapping[str, Any]]
    columns: Sequence[str] = ()
    ignored_words: Sequence[str] = field(default_factory=list)
    folder: Mapping[str, Any] | None = None

    def print_json(self) -> None:
        """Prints the answers as one JSON document."""
        folder = {} if self.folder is None else {"folder": self.folder}
        results = [{"rank": rank, **hit} for rank, hit in enumerate(self.hits, 1)]
        ignored = list(self.ignored_words)
        print_json({"query": self.query, "metric": self.metric, "ignored_words": ignored, **folder, "results": results})

    def print_table(self) -> None:
        """Prints the answers as a table; in a pipe, as one line for each."""
        rows = [
            [rank, hit["id"], hit["score"], *(str(hit["metadata"][name]) for name in self.columns)]
            for rank, hit in enumerate(self.hits, 1)
        ]
        print_table(self.query, ["rank", "id", self.metric, *self.columns], rows)
