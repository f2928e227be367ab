"""`cmfah search`."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def search(
    model: Annotated[str, typer.Argument(help="The model that the index was made with: a folder or a Hub id.")],
    index: Annotated[Path, typer.Argument(help="An index file, as `cmfah index` writes it.")],
    text: Annotated[str | None, typer.Option("--text", "-t", help="Words to search with.")] = None,
    image: Annotated[str | None, typer.Option("--image", "-i", help="A picture to search with, or '-'.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many items to show.")] = 10,
    metric: Annotated[str, typer.Option(help="'aqd': by real hash values; 'hamming': by bits.")] = "aqd",
    json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> None:
    """Search an index by words or by a picture; `--image -` reads the picture from standard input."""
    from cmfah_hf.cli.output import print_json, print_table
    from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex

    retriever = CrossMediaRetriever.from_pretrained(model)
    retriever.images = HashIndex.load(index, bits=retriever.model.config.hash_bits)
    results = retriever.search(text=text, image=sys.stdin.buffer if image == "-" else image, k=k, metric=metric)
    found = [
        {"rank": rank, "id": item_id, "score": score}
        for rank, (item_id, score) in enumerate(
            zip(results.ids[0].tolist(), results.scores[0].tolist(), strict=True), 1
        )
    ]
    if json:
        print_json({"query": text if text is not None else image, "metric": metric, "results": found})
    else:
        print_table(
            f"{text or image}", ["rank", "id", metric], [[hit["rank"], hit["id"], hit["score"]] for hit in found]
        )
