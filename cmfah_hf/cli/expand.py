"""`cmfah expand`: the words that a graph and an encyclopedia add to texts, looked at without a model."""

from pathlib import Path
from typing import Annotated

import typer

expand_app = typer.Typer(
    name="expand", no_args_is_help=True, help="The words that are added to texts: fit, explain, plot."
)


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
    tokenizer: Annotated[str, typer.Option(help="'words', or 'chinese', cut by a dictionary.")] = "words",
    top_k: Annotated[int, typer.Option(help="Most words that the graph adds to a text.")] = 10,
    knowledge_top_k: Annotated[int, typer.Option(help="Most words that the knowledge adds.")] = 10,
    min_probability: Annotated[float, typer.Option(help="Least expected share of a walk for an added word.")] = 0.01,
    min_count: Annotated[int, typer.Option(help="Words of fewer texts are left out of the graph.")] = 1,
    stop_words: Annotated[str | None, typer.Option(help="'english' leaves its stop words out of the graph.")] = None,
    window: Annotated[int, typer.Option(help="How many words apart two words of an article may be.")] = 5,
    links: Annotated[bool, typer.Option("--links", help="Relate a dump's article to those that it links to.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
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
        texts = load_image_text(source, split, streaming=True, text_column=text_column, pictures=False)
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
    related = len({*expander.knowledge.scores.nonzero()[0].tolist()}) if knowledge else None
    done = {"folder": str(output), "texts": graph.num_images, "words": len(graph.vocabulary), "related_words": related}
    if json:
        print_json(done)
    else:
        known = f", {related:,} of them with related words" if knowledge else ""
        say(f"{output}: a graph of {graph.num_images:,} texts and {len(graph.vocabulary):,} words{known}.")


@expand_app.command()
def explain(
    folder: Annotated[Path, typer.Argument(help="What `cmfah expand fit` or `cmfah train` left.")],
    text: Annotated[str, typer.Argument(help="A text or tags.")],
    json: Annotated[bool, typer.Option("--json", help="Print the explanation as JSON.")] = False,
) -> None:
    """Say which words are added to a text, and why each of them."""
    from cmfah_hf.cli.output import print_json, print_table, say
    from cmfah_hf.expansion import GraphExpander

    explanation = GraphExpander.load(folder).explain(text)
    if json:
        print_json(explanation.to_dict())
        return
    print_table(" ".join(explanation.own), ["word", "from", "score", "because of"], explanation.rows())
    if explanation.unknown:
        say(f"not known: {' '.join(explanation.unknown)}")


@expand_app.command()
def plot(
    folder: Annotated[Path, typer.Argument(help="What `cmfah expand fit` or `cmfah train` left.")],
    word: Annotated[str, typer.Argument(help="The word in the middle.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write: .png, .svg or .pdf.")],
    words: Annotated[int, typer.Option(help="Words of the graph around it.")] = 12,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Draw the words around a word."""
    from cmfah_hf.cli.output import print_json, say
    from cmfah_hf.expansion import GraphExpander
    from cmfah_hf.expansion.plots import plot_neighborhood

    written = plot_neighborhood(GraphExpander.load(folder), word, output, words)
    if json:
        print_json({"word": word, "file": str(written)})
    else:
        say(str(written))
