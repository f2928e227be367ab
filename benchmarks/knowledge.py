"""Cost and content of the knowledge from an encyclopedia, and its recall of words that are missing in a text.

    python benchmarks/knowledge.py text/wikipedia-vital-articles.jsonl data/coco-pairs
    python benchmarks/knowledge.py enwiki-pages-articles.xml.bz2 my-images --words dog beach --tune

The graph is fitted on every other text of the data set's `train` split, the knowledge for the graph's words. In each of
the other texts every word except stop words is hidden in turn, and the rest expanded: counted is how often the hidden
word is among the first ten added words. Paths may be below CMFAH_DATA. Memory is the peak of this process (Linux).
"""

import argparse
import re
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cmfah_hf import GraphExpander, WikipediaKnowledge
from cmfah_hf.data import load_image_text, resolve_data_path
from cmfah_hf.expansion.corpus import words_of

TAGS = [
    "dog", "beach", "sunset", "car", "guitar", "cat", "train", "pizza", "snow", "surfboard", "street", "kitchen",
    "horse", "boat", "clock", "tennis", "baseball", "elephant", "flowers", "computer", "fire",
]  # fmt: skip
VARIANTS = [{}, {"window": 2}, {"window": 10}, {"smoothing": 1.0}, {"smoothing": 0.5}, {"min_pair_count": 1},
            {"min_pair_count": 4}, {"opening_words": 0}, {"stop_words": None}]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("articles", help="a MediaWiki dump, a corpus file, or owner/name:configuration on the Hub")
    parser.add_argument("dataset")
    parser.add_argument("--words", nargs="+", default=TAGS)
    parser.add_argument("--tune", action="store_true", help="measure other settings too")
    own = parser.parse_args()
    console = Console()
    texts = [row["text"] for row in load_image_text(own.dataset, "train", streaming=True, images=False)]
    graph = GraphExpander(stop_words="english", top_k=20).fit(texts[::2])
    vocabulary = graph.graph.vocabulary
    hidden = [(rest, word) for text in texts[1::2] for rest, word in _hidden(text, set(vocabulary))]

    table = Table(title=f"{len(hidden):,} hidden words, {len(vocabulary):,} words to guess from")
    for column in ("", "seconds", "words with related ones", "among the first 10"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("chance", "", "", f"{10 / len(vocabulary):.3f}")
    of_graph = [graph.expand(rest)[len(rest) :] for rest, _ in hidden]
    first = [word in added[:10] for (_, word), added in zip(hidden, of_graph, strict=True)]
    table.add_row("graph", "", "", f"{np.mean(first):.3f}")
    before = _peak_mb()
    for settings in VARIANTS if own.tune else [{}]:
        start = time.perf_counter()
        knowledge = WikipediaKnowledge(**settings).fit(resolve_data_path(own.articles), vocabulary)
        seconds = time.perf_counter() - start
        found = [word in [b for b, _ in knowledge.related_to(rest)[:10]] for rest, word in hidden]
        name = ", ".join(f"{name}={value}" for name, value in settings.items())
        related = int(np.count_nonzero(np.diff(knowledge.scores.indptr)))
        table.add_row(f"knowledge {name}", f"{seconds:.1f}", f"{related:,}", f"{np.mean(found):.3f}")
        if not settings:
            default, added_ten = knowledge, found
    graph.knowledge, graph.top_k, graph.knowledge_top_k = default, 10, 10
    together = [word in graph.expand(rest) for rest, word in hidden]
    twenty = [word in added for (_, word), added in zip(hidden, of_graph, strict=True)]
    console.print(table)
    console.print(
        f"Among 20 words: the graph's first 20 {np.mean(twenty):.3f}, the graph's 10 and 10 of the knowledge "
        f"{np.mean(together):.3f}; the knowledge finds {np.mean(np.array(added_ten)[~np.array(first)]):.3f} of what "
        f"the graph's 10 lack. Peak of memory: {before:,.0f} MB before the knowledge, {_peak_mb():,.0f} MB after."
    )
    for word in own.words:
        if word in vocabulary:
            console.print(f"{word}: {' '.join(other for other, _ in default.related(word, 8))}", soft_wrap=True)


def _hidden(text: str, known: set[str]) -> list[tuple[list[str], str]]:
    words = [word for word in dict.fromkeys(words_of(text)) if word in known]
    return [([other for other in words if other != word], word) for word in words if len(words) > 1]


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


if __name__ == "__main__":
    main()
