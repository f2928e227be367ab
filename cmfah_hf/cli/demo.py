"""`cmfah demo`."""

import shutil
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmfah_hf.atomic import write_text
from cmfah_hf.cli.options import FiguresAsJson
from cmfah_hf.errors import CMFAHError

if TYPE_CHECKING:
    from datasets import Dataset

    from cmfah_hf.retrieval import CrossMediaRetriever, SearchResults

_INDEX = "images.index"
# Marks the folder of a demo, whose scenes and model the next one replaces.
_MARK = ".cmfah-demo"


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="The output folder.")] = Path("demo"),
    train_scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 2000,
    query_scenes: Annotated[int, typer.Option(help="Held-out scenes.")] = 300,
    text: Annotated[str, typer.Option(help="The words to search with.")] = "boat sun",
    epochs: Annotated[float | None, typer.Option(help="Passes over the scenes. Default: the configuration's.")] = None,
    json: FiguresAsJson = False,
) -> None:
    """End-to-end demo on synthetic scenes: train, evaluate, save, load, index, search by text and by image."""
    from cmfah_hf.cli.output import print_json
    from cmfah_hf.retrieval import CrossMediaRetriever
    from cmfah_hf.training.evaluate import pointing_accuracy

    # Absolute, because the name "scenes" alone is the built-in data set.
    scenes, model = (output / "scenes").absolute(), output / "model"
    _remove_earlier(output, scenes, model)
    queries = _draw_scenes(scenes, train_scenes, query_scenes, json)
    metrics = _train(scenes, model, epochs, json)
    retriever = CrossMediaRetriever.from_pretrained(model)
    answers = _search(retriever, scenes, output, queries[0], text, json)
    pointing = pointing_accuracy(retriever.model, retriever.processor, queries)
    _plot_attention(retriever, queries, output)
    if json:
        found = {name: answer.ids[0].tolist() for name, answer in answers.items()}
        print_json({"metrics": metrics, "pointing": pointing, "found": found, "output": str(output)})
    else:
        titles = {"text": f"the text {text!r}", "image": f"the image {queries[0]['id']}"}
        _print(metrics["query"], pointing, {titles[name]: answer for name, answer in answers.items()}, output)


def _remove_earlier(output: Path, *folders: Path) -> None:
    """Removes folders of an earlier demo; the rest of the output is not touched."""
    mark = output / _MARK
    for folder in folders:
        if mark.exists():
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.exists():
            raise CMFAHError(f"{folder} is not from a demo and would be lost; remove it, or name another --output.")
    write_text(mark, "")


def _draw_scenes(folder: Path, train_scenes: int, query_scenes: int, json: bool) -> "Dataset":
    from cmfah_hf.cli.output import say
    from cmfah_hf.data import load_scenes, write_imagefolder

    say(f"Drawing {train_scenes:,} + {query_scenes:,} scenes into {folder}", err=json)
    splits = load_scenes(train_scenes, query_scenes)
    write_imagefolder(splits, folder)
    return splits["query"]


def _train(scenes: Path, model: Path, epochs: float | None, json: bool) -> dict[str, Any]:
    from cmfah_hf.cli.output import say
    from cmfah_hf.training import bundled_configuration, parse_run, train

    say(f"Training a model of 64 bits into {model}", err=json)
    options = ["--dataset", str(scenes), "--output_dir", str(model)]
    options += [] if epochs is None else ["--num_train_epochs", str(epochs)]
    with redirect_stdout(sys.stderr) if json else nullcontext():  # the trainer prints its logs
        return train(parse_run(bundled_configuration("cmfah-scenes.yaml"), options))


def _search(
    retriever: "CrossMediaRetriever", scenes: Path, output: Path, query: dict[str, Any], text: str, json: bool
) -> dict[str, "SearchResults"]:
    """Indexes the training scenes, saves and loads the index, and searches it by text and by image."""
    from cmfah_hf.data.images import decode_image
    from cmfah_hf.evaluation.plots import plot_results
    from cmfah_hf.retrieval import HashIndex

    retriever.add_source(scenes, split="train", progress=not json)
    retriever.images.save(output / _INDEX)
    retriever.images = HashIndex.load(output / _INDEX)
    answers = {}
    for name, asked in (("text", text), ("image", query["image"])):
        answers[name] = answer = retriever.search(**{name: asked}, k=6)
        images = [decode_image(scenes / "train" / f"{item_id}.png") for item_id in answer.ids[0]]
        titles = [f"{item_id}\n{score:.1f}" for item_id, score in zip(answer.ids[0], answer.scores[0], strict=True)]
        plot_results(asked, images, titles, output / f"search_by_{name}.png")
    return answers


def _plot_attention(retriever: "CrossMediaRetriever", queries: "Dataset", output: Path) -> None:
    """Plots the attention of a scene that is easy to read: at least two named things and few other tags."""
    from cmfah_hf.evaluation.attention import attention_of_words
    from cmfah_hf.evaluation.plots import plot_attention

    named = [sum(bool(box["word"]) for box in boxes) for boxes in queries["boxes"]]
    tags = [len(text.split()) for text in queries["text"]]
    shown = queries[min(range(len(named)), key=lambda row: (named[row] < 2, tags[row]))]
    image = shown["image"]
    words, weights_RW, grid, seen = attention_of_words(retriever.model, retriever.processor, image, shown["text"])
    boxes = {word: [box["box"] for box in shown["boxes"] if box["word"] == word] for word in words}
    plot_attention(image, weights_RW, words, output / "attention.png", boxes=boxes, region_grid=grid, seen=seen)


def _print(
    figures: dict[str, float], pointing: dict[str, float], answers: dict[str, "SearchResults"], output: Path
) -> None:
    from cmfah_hf.cli.output import print_figures, print_table, say

    print_figures("Held-out scenes, each modality encoded by itself, 64 bits", figures)
    rows: list[list[Any]] = [
        [f"MAP {name}, relative to a random ranking", figures[f"hamming/{way}/map"] / figures["random/map"]]
        for name, way in (("image -> text", "i2t"), ("text -> image", "t2i"))
    ]
    rows += [["Pointing game: the strongest region is in the box", pointing["accuracy"]]]
    rows += [["Pointing game by chance", pointing["chance"]]]
    print_table("Hamming ranking, and the pointing game", ["", "value"], rows)
    for title, answer in answers.items():
        hits = [list(hit) for hit in zip(answer.ids[0], answer.scores[0].tolist(), strict=True)]
        print_table(f"Found by {title}", ["id", "score"], hits)
    say(f"Plots: {output}/search_by_text.png, search_by_image.png, attention.png, model/plots/")
    say(f'Next: cmfah search {output / "model"} {output / _INDEX} --text "house tree"')
