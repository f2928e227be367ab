"""`cmfah expand`: text expansion without a model: fit, explain, plot."""

from pathlib import Path
from typing import Annotated

import typer

from cmfah_hf.cli.options import DoneAsJson

expand_app = typer.Typer(name="expand", no_args_is_help=True, help="Text expansion: fit, explain, plot.")


@expand_app.command()
def fit(
    source: Annotated[str, typer.Argument(help="Texts: a data set (folder, Parquet, Hub id), or a corpus file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder for the expander.")],
    knowledge: Annotated[
        list[str] | None,
        typer.Option(
            help="Articles: a MediaWiki dump, .jsonl, .parquet, .txt, or owner/name:configuration on the Hub."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="The split of the data set.")] = "train",
    text_column: Annotated[str | None, typer.Option(help="The column of texts. Default: found by name.")] = None,
    tokenizer: Annotated[str, typer.Option(help="'words', or 'chinese' or 'icu', cut by a dictionary.")] = "words",
    top_k: Annotated[int, typer.Option(help="Maximum number of words that the graph adds to a text.")] = 10,
    knowledge_top_k: Annotated[int, typer.Option(help="Maximum number of words that the knowledge adds.")] = 10,
    min_probability: Annotated[float, typer.Option(help="Minimum visit probability of an added word.")] = 0.01,
    min_count: Annotated[int, typer.Option(help="Minimum number of texts of a word in the graph.")] = 1,
    stop_words: Annotated[
        str | None, typer.Option(help="'english' excludes English stop words from the graph.")
    ] = None,
    window: Annotated[
        int, typer.Option(help="Maximum distance of two co-occurring words of an article, in words.")
    ] = 5,
    links: Annotated[
        bool, typer.Option("--links", help="Also relate an article of a dump to the articles it links to.")
    ] = False,
    json: DoneAsJson = False,
) -> None:
    """Fit the image-word graph on texts, and the knowledge on articles, and save both."""
    from cmfah_hf.cli.output import print_json, say
    from cmfah_hf.data import load_image_text, resolve_data_path
    from cmfah_hf.expansion import GraphExpander, WikipediaKnowledge
    from cmfah_hf.expansion.corpus import iterate_file

    path = resolve_data_path(source)
    if path.is_file() and path.name.removesuffix(".gz").endswith((".txt", ".jsonl", ".ndjson")):
        texts = (text for _, text, _ in iterate_file(path))
    else:
        texts = load_image_text(source, split, streaming=True, text_column=text_column, images=False)
    expander = GraphExpander(
        top_k=top_k, min_probability=min_probability, min_count=min_count, stop_words=stop_words, tokenizer=tokenizer,
        knowledge_top_k=knowledge_top_k,
    ).fit(texts)  # fmt: skip
    if knowledge:
        expander.knowledge = WikipediaKnowledge(window=window, links=links, tokenizer=tokenizer).fit(
            [resolve_data_path(name) for name in knowledge], expander.graph.vocabulary
        )
    expander.save(output)
    graph = expander.graph
    related = len({*expander.knowledge.scores.nonzero()[0].tolist()}) if expander.knowledge is not None else None
    done = {"folder": str(output), "texts": graph.num_images, "words": len(graph.vocabulary), "related_words": related}
    if json:
        print_json(done)
    else:
        known = f", {related:,} of them with related words" if related is not None else ""
        say(f"{output}: a graph of {graph.num_images:,} texts and {len(graph.vocabulary):,} words{known}.")


@expand_app.command()
def explain(
    folder: Annotated[Path, typer.Argument(help="A folder written by `cmfah expand fit` or `cmfah train`.")],
    text: Annotated[str, typer.Argument(help="A text or tags.")],
    json: Annotated[bool, typer.Option("--json", help="Print the explanation as JSON.")] = False,
) -> None:
    """Show the words that are added to a text, and the reason for each."""
    from cmfah_hf.cli.output import print_json, print_table, say
    from cmfah_hf.expansion import GraphExpander

    explanation = GraphExpander.load(folder).explain(text)
    if json:
        print_json(explanation.to_dict())
        return
    print_table(" ".join(explanation.own), ["word", "from", "score", "because of"], explanation.rows())
    if explanation.unknown:
        say(f"unknown: {' '.join(explanation.unknown)}")


@expand_app.command()
def plot(
    folder: Annotated[Path, typer.Argument(help="A folder written by `cmfah expand fit` or `cmfah train`.")],
    word: Annotated[str, typer.Argument(help="The word at the center.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The image to write: .png, .svg or .pdf.")],
    words: Annotated[int, typer.Option(help="Number of neighbors.")] = 12,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Plot the neighborhood of a word."""
    from cmfah_hf.cli.output import print_json, say
    from cmfah_hf.expansion import GraphExpander
    from cmfah_hf.expansion.plots import plot_neighborhood

    written = plot_neighborhood(GraphExpander.load(folder), word, output, words)
    if json:
        print_json({"word": word, "file": str(written)})
    else:
        say(str(written))
