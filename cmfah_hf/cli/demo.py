"""`cmfah demo`."""

import shutil
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where everything goes.")] = Path("demo"),
    train_scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 2000,
    query_scenes: Annotated[int, typer.Option(help="Held-out scenes.")] = 300,
    text: Annotated[str, typer.Option(help="The words to search with.")] = "boat sun",
    epochs: Annotated[float | None, typer.Option(help="Passes over the scenes. Default: the configuration's.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """The whole road on scenes drawn by code: train, measure, save, load, index, search by text and by picture."""
    from cmfah_hf.cli.output import print_figures, print_json, print_table, say
    from cmfah_hf.data import load_scenes, write_imagefolder
    from cmfah_hf.data.images import decode_image
    from cmfah_hf.evaluation.attention import attention_of_words
    from cmfah_hf.evaluation.plots import plot_attention, plot_results
    from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex
    from cmfah_hf.training import bundled_configuration, parse_run, train
    from cmfah_hf.training.evaluate import pointing_accuracy

    # Absolute, because a data set that is called just "scenes" is the built-in one.
    scenes, folder, index_file = (output / "scenes").absolute(), output / "model", output / "pictures.index"
    for earlier in (scenes, folder):  # of a demo before this one; nothing else in the folder is touched
        shutil.rmtree(earlier, ignore_errors=True)
    say(f"Drawing {train_scenes:,} + {query_scenes:,} scenes into {scenes}", err=json)
    splits = load_scenes(train_scenes, query_scenes)
    write_imagefolder(splits, scenes)

    say(f"Training a model of 64 bits into {folder}", err=json)
    further = [] if epochs is None else ["--num_train_epochs", str(epochs)]
    config = bundled_configuration("cmfah-scenes.yaml")
    with redirect_stdout(sys.stderr) if json else nullcontext():  # the trainer prints its logs
        metrics = train(parse_run(config, ["--dataset", str(scenes), "--output_dir", str(folder), *further]))

    retriever = CrossMediaRetriever.from_pretrained(folder)
    retriever.add_source(scenes, split="train", progress=not json)
    retriever.images.save(index_file)
    retriever.images = HashIndex.load(index_file)
    by_text = retriever.search(text=text, k=6)
    query = splits["query"][0]
    by_image = retriever.search(image=query["image"], k=6)
    for name, results, asked in (("text", by_text, text), ("image", by_image, query["image"])):
        pictures = [decode_image(scenes / "train" / f"{item_id}.png") for item_id in results.ids[0]]
        titles = [f"{item_id}\n{score:.1f}" for item_id, score in zip(results.ids[0], results.scores[0], strict=True)]
        plot_results(asked, pictures, titles, output / f"search_by_{name}.png")

    pointing = pointing_accuracy(retriever.model, retriever.processor, splits["query"])
    named = [sum(bool(box["word"]) for box in boxes) for boxes in splits["query"]["boxes"]]
    words = [len(tags.split()) for tags in splits["query"]["text"]]
    # Two things or more that are named, and few tags beside them: a picture that can be taken in at a glance.
    shown = splits["query"][min(range(len(named)), key=lambda row: (named[row] < 2, words[row]))]
    words, weights, grid = attention_of_words(retriever.model, retriever.processor, shown["image"], shown["text"])
    boxes = {word: [box["box"] for box in shown["boxes"] if box["word"] == word] for word in words}
    plot_attention(shown["image"], weights, words, output / "attention.png", boxes=boxes, region_grid=grid)

    found = {"text": by_text.ids[0].tolist(), "image": by_image.ids[0].tolist()}
    if json:
        print_json({"metrics": metrics, "pointing": pointing, "found": found, "output": str(output)})
        return
    figures = metrics["query"]
    print_figures("Held-out scenes, one modality at a time, 64 bits", figures)
    rows = [
        [f"MAP {name}, in multiples of the random ranking's", figures[f"hamming/{way}/map"] / figures["random/map"]]
        for name, way in (("image -> text", "i2t"), ("text -> image", "t2i"))
    ]
    rows += [["A word's strongest region lies in its thing's box", pointing["accuracy"]]]
    rows += [["The same by chance", pointing["chance"]]]
    print_table("Hamming ranking, and the pointing game", ["", "value"], rows)
    for results, asked in ((by_text, f"the text {text!r}"), (by_image, f"the picture {query['id']}")):
        rows = list(zip(results.ids[0], results.scores[0].tolist(), strict=True))
        print_table(f"Found by {asked}", ["id", "score"], rows)
    say(
        f"Pictures of all this: {output}/search_by_text.png, search_by_image.png, attention.png, model/plots/", err=json
    )
    say(f'Go on: cmfah search {folder} {index_file} --text "house tree"')
