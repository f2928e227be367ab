"""Does expansion help? MAP with texts as they are, with words of the graph, and with words of an encyclopedia as well.

    python benchmarks/expansion_gain.py photographs --output runs/gain-photographs
    python benchmarks/expansion_gain.py scenes --output runs/gain-scenes --rows none graph:5

`photographs` are the COCO-derived pairs with each caption thinned to one or two of its words, `scenes` the drawn ones,
of whose tags every second is taken away and two come in that have nothing to do with the picture. A row is `none`, or
how many words the graph and the knowledge add: `graph:5`, `knowledge:5`, `graph:5+knowledge:5`. The words, their
vectors and the vocabulary are the same in all rows: they are learned once, from the texts, the walks on their graph and
the encyclopedia. A row is to be chosen on the validation pairs; the test queries stand beside them. Each run leaves its
figures below the output, and one that is there is not run again. Any argument of `cmfah train` can follow.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets.table import embed_table_storage
from gensim.parsing.preprocessing import STOPWORDS
from rich.console import Console
from rich.table import Table
from variants import mean_and_spread, measured

from cmfah_hf.data import load_image_text, load_scenes, resolve_data_path
from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding, WikipediaKnowledge
from cmfah_hf.models.tokenization_cmfah import split_words
from cmfah_hf.training import parse_run

CONFIG = Path(__file__).parents[1] / "hub_configs/cmfah-coco-pairs.yaml"
# Of both sets the pictures are what VGG19 sees of them, once for all runs.
SETTINGS = {"photographs": [], "scenes": ["--image_size", "128", "--num_train_epochs", "20"]}
ROWS = ["none", "graph:5", "graph:5+knowledge:5"]
ENCYCLOPEDIA = "text/wikipedia-vital-articles.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", choices=SETTINGS)
    parser.add_argument("--output", type=Path, required=True, help="The folder of all runs.")
    parser.add_argument("--rows", nargs="+", default=ROWS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--encyclopedia", default=ENCYCLOPEDIA, help="A corpus file or MediaWiki dump.")
    own, further = parser.parse_known_args()

    further = [*SETTINGS[own.pairs], *further]
    folder = own.output / "pairs"
    if not folder.is_dir():
        {"photographs": write_thinned, "scenes": write_noisy}[own.pairs](folder)
    vectors = own.output / "vectors"
    learn_words(folder, vectors, own.encyclopedia, further)

    figures: dict[str, dict[str, list[dict[str, float]]]] = {"validation": {}, "single": {}}
    for row in own.rows:
        words = write_row(row, vectors, own.output / f"words-{named(row)}")
        for seed in own.seeds:
            output = own.output / f"{named(row)}-seed-{seed}"
            arguments = ["--dataset", str(folder), "--words_from", str(words.absolute()), "--seed", str(seed)]
            arguments += ["--expand", str(row != "none"), "--refit", "false", "--output_dir", str(output), *further]
            for title, figure in measured(parse_run(CONFIG, arguments), output, "query").items():
                if title in figures:
                    figures[title].setdefault(row, []).append(figure)
    for title, rows in figures.items():
        which = "validation pairs" if title == "validation" else "the test queries"
        table = Table(title=f"MAP on {which}, one modality at a time; Hamming, ties in expectation")
        for column in ("expansion", "image -> text", "text -> image", "mean", "random"):
            table.add_column(column, justify="left" if column == "expansion" else "right")
        for row, found in rows.items():
            columns = ([figure[name] for figure in found] for name in ("i2t", "t2i", "mean", "random"))
            table.add_row(row, *(mean_and_spread(values) for values in columns))
        Console(width=120).print(table)


def named(row: str) -> str:
    return row.replace(":", "-").replace("+", "-")


def write_thinned(folder: Path) -> None:
    """The photographs as Parquet, each caption thinned to one or two of its words, drawn by its id."""
    for split, pairs in load_image_text("data/coco-pairs").items():
        write(pairs, split, folder, lambda words, rng: rng.permutation(words)[: rng.integers(1, 3)])


def write_noisy(folder: Path) -> None:
    """The scenes as Parquet: about every second tag gone, and two of other scenes beside those that are left."""
    for split, pairs in load_scenes().items():
        others = sorted({word for text in pairs["text"] for word in split_words(text)})

        def noisy(words, rng, others=others):
            kept = [word for word in words if rng.random() < 0.5]
            return rng.permutation([*kept, *rng.choice(others, 2)])

        write(pairs, split, folder, noisy)


def write(pairs, split: str, folder: Path, change) -> None:
    def text_of(row):
        words = [word for word in dict.fromkeys(split_words(row["text"])) if word not in STOPWORDS]
        return {"text": " ".join(change(words, np.random.default_rng(list(row["id"].encode()))))}

    folder.mkdir(parents=True, exist_ok=True)
    changed = pairs.select_columns(["id", "text"]).map(text_of)
    pairs = pairs.remove_columns("text").add_column("text", changed["text"])
    pairs.with_format("arrow").map(embed_table_storage, batched=True).to_parquet(folder / f"{split}.parquet")


def learn_words(pairs: Path, folder: Path, encyclopedia: str, further: list[str]) -> None:
    """The graph, the knowledge and the word vectors that all rows share."""
    if (folder / "skip_gram.json").is_file():
        return
    run = parse_run(CONFIG, further)
    data, article_file = run.data, resolve_data_path(encyclopedia)
    texts = load_image_text(pairs, split="train")
    expander = GraphExpander(top_k=data.top_k, min_probability=data.min_probability).fit(texts)
    expander.knowledge = WikipediaKnowledge().fit(article_file, expander.graph.vocabulary)
    SkipGramEmbedding(
        run.model["word_dim"], epochs=data.word_epochs, window=data.word_window, min_count=data.word_min_count
    ).fit(expander.corpus(texts, num_walks=data.word_walks), extra_corpus=[article_file]).save(folder)
    expander.save(folder)


def write_row(row: str, vectors: Path, folder: Path) -> Path:
    """The shared words, with an expander that adds as many words as the row says."""
    expander = GraphExpander.load(vectors)
    added = dict(part.split(":") for part in row.split("+")) if row != "none" else {}
    expander.top_k = int(added.get("graph", 0))
    expander.knowledge_top_k = int(added.get("knowledge", 0))
    expander.save(folder)
    SkipGramEmbedding.load(vectors).save(folder)
    return folder


if __name__ == "__main__":
    main()
