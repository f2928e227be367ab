"""The pointing game of trained models on drawn scenes: is the strongest region of a word in the box of its object?

    python benchmarks/pointing.py RUNS --output docs/results/pointing.json

RUNS is the output of `cmfah experiment run`, for example with hub_configs/experiments/scenes-minilm.yaml. Models whose
texts do not attend are left out. The scenes serve neither for training nor for choosing settings.
"""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cmfah_hf.atomic import write_text
from cmfah_hf.data.scenes import make_scenes
from cmfah_hf.errors import CMFAHError
from cmfah_hf.experiments.report import document_of, summarize
from cmfah_hf.experiments.results import RUNS_NAME, Result, read_record
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.training.evaluate import pointing_accuracy

# Number and seed of the scenes. Other benchmarks use the seeds below this one.
SCENES, SEED = 300, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="output of `cmfah experiment run`")
    parser.add_argument("--output", type=Path, help="a file for the figures, as JSON")
    parser.add_argument("--scenes", type=int, default=SCENES)
    own = parser.parse_args()
    scenes = make_scenes(own.scenes, seed=SEED)
    results = [result for folder in finished(own.runs) for result in results_of(folder, scenes)]
    if not results:
        raise SystemExit(f"{own.runs}: there are no finished runs whose texts attend.")
    print_table(results)
    if own.output is not None:
        write_text(own.output, document_of(summarize(results)), CMFAHError)


def finished(runs: Path) -> list[Path]:
    """The folders of the finished runs of a grid that trained a model."""
    folders = sorted((runs / RUNS_NAME).glob("*/*/*/*-bits/*/seed-*"))
    return [folder for folder in folders if (read_record(folder) or {}).get("figures") is not None]


def results_of(folder: Path, scenes: Any) -> Iterator[Result]:
    """The accuracy of a model, and that of random regions; nothing for a model whose texts do not attend."""
    retriever = CrossMediaRetriever.from_pretrained(folder)
    if not retriever.model.config.attends_text:
        return
    record: Mapping[str, Any] = read_record(folder) or {}
    found = pointing_accuracy(retriever.model, retriever.processor, scenes)
    for ranking, value in (("attention", found["accuracy"]), ("random", found["chance"])):
        yield Result(
            *(record[name] for name in ("run", "data", "method", "variant", "title", "bits", "protocol", "seed")),
            *("query", record["protocol"], "paired", ranking, "t2i", "pointing", value, 0.0, "{}", "{}"),
        )


def print_table(results: list[Result]) -> None:
    table = Table("model", "bits", "trained with", "region", "share of words", title="Pointing game on drawn scenes")
    for one in summarize(results):
        spread = "" if one.spread is None else f" ± {one.spread:.3f}"
        table.add_row(
            *(str(one.of["title"]), str(one.of["bits"]), f"a database that is {one.of['protocol']}"),
            *(str(one.of["ranking"]), f"{one.mean:.3f}{spread}"),
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
