"""Sparse and noisy texts, and words with and without expansion, for `hub_configs/experiments/expansion.yaml`.

    python benchmarks/sparse_texts.py photographs scenes --output sparse
    cmfah experiment run experiments/expansion --output runs/expansion

`photographs` are the COCO-derived pairs with each caption thinned to one or two of its words. `scenes` are the drawn
ones: every second tag is removed, and two that do not describe the image are added. The words, their vectors and the
vocabulary are the same for all variants: they are learned once, from the texts, the walks on their graph and the
encyclopedia. The variants differ in the number of words that the graph and the knowledge add. A folder that is complete
is not made again.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from datasets.table import embed_table_storage
from gensim.parsing.preprocessing import STOPWORDS

from cmfah_hf.atomic import atomic_folder
from cmfah_hf.data import load_image_text, load_scenes, resolve_data_path
from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding, WikipediaKnowledge
from cmfah_hf.models.tokenization_cmfah import split_words
from cmfah_hf.training import bundled_configuration, parse_run

CONFIG = bundled_configuration("cmfah-coco-pairs.yaml")
# By variant: words that the graph and the knowledge add to a text.
VARIANTS = {"none": (0, 0), "graph": (5, 0), "knowledge": (5, 5)}
ENCYCLOPEDIA = "text/wikipedia-vital-articles.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="+", choices=("photographs", "scenes"))
    parser.add_argument("--output", type=Path, default=Path("sparse"), help="A folder for the texts and the words.")
    parser.add_argument("--encyclopedia", default=ENCYCLOPEDIA, help="A corpus file or MediaWiki dump.")
    own, further = parser.parse_known_args()
    for name in own.pairs:
        folder = own.output / name
        if not (folder / "pairs").is_dir():
            with atomic_folder(folder / "pairs") as made:
                {"photographs": write_thinned, "scenes": write_noisy}[name](made)
        for variant in VARIANTS:
            if not (folder / f"words-{variant}").is_dir():
                write_words(folder, own.encyclopedia, further)
                break


def write_thinned(folder: Path) -> None:
    """The photographs as Parquet, each caption thinned to one or two of its words, drawn by its id."""
    for split, pairs in load_image_text("data/coco-pairs").items():
        write_pairs(pairs, split, folder, lambda words, rng: rng.permutation(words)[: rng.integers(1, 3)])


def write_noisy(folder: Path) -> None:
    """The scenes as Parquet: about every second tag removed, and two of other scenes added."""
    for split, pairs in load_scenes().items():
        others = sorted({word for text in pairs["text"] for word in split_words(text)})

        def noisy(words: list[str], rng: np.random.Generator, others: list[str] = others) -> Iterable[str]:
            kept = [word for word in words if rng.random() < 0.5]
            return rng.permutation([*kept, *rng.choice(others, 2)])

        write_pairs(pairs, split, folder, noisy)


def write_pairs(
    pairs: Any, split: str, folder: Path, change: Callable[[list[str], np.random.Generator], Iterable[str]]
) -> None:
    """A split as Parquet with its texts changed, at random by the id of the row."""

    def text_of(row: dict[str, Any]) -> dict[str, str]:
        words = [word for word in dict.fromkeys(split_words(row["text"])) if word not in STOPWORDS]
        return {"text": " ".join(change(words, np.random.default_rng(list(row["id"].encode()))))}

    changed = pairs.select_columns(["id", "text"]).map(text_of)
    pairs = pairs.remove_columns("text").add_column("text", changed["text"])
    pairs.with_format("arrow").map(embed_table_storage, batched=True).to_parquet(folder / f"{split}.parquet")


def write_words(folder: Path, encyclopedia: str, further: list[str]) -> None:
    """The graph, the knowledge and the word vectors, once for all variants."""
    run = parse_run(CONFIG, further)
    data, article_file = run.data, resolve_data_path(encyclopedia)
    texts = load_image_text(folder / "pairs", split="train")
    expander = GraphExpander(top_k=data.top_k, min_probability=data.min_probability).fit(texts)
    expander.knowledge = WikipediaKnowledge().fit(article_file, expander.graph.vocabulary)
    embedding = SkipGramEmbedding(
        run.model["word_dim"], epochs=data.word_epochs, window=data.word_window, min_count=data.word_min_count
    ).fit(expander.corpus(texts, num_walks=data.word_walks), extra_corpus=[article_file])
    for variant, (of_graph, of_knowledge) in VARIANTS.items():
        expander.top_k, expander.knowledge_top_k = of_graph, of_knowledge
        with atomic_folder(folder / f"words-{variant}") as made:
            expander.save(made)
            embedding.save(made)


if __name__ == "__main__":
    main()
