"""A configuration's MAP at several code lengths, mean and spread over seeds, beside the random ranking's.

    python benchmarks/bits_and_seeds.py hub_configs/cmfah-coco-pairs.yaml --output runs/coco

Every run leaves its model and its figures in a folder of its own below the output, and one that is there already is
not run again; so this resumes, and prints the table anew. Any argument of `cmfah train` can follow.
"""

import argparse
import json
import statistics
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cmfah_hf.training import parse_run, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="The folder of all runs.")
    parser.add_argument("--bits", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    own, further = parser.parse_known_args()

    table = Table(title="MAP on the test queries: Hamming, ties in expectation, one modality at a time")
    for column in ("bits", "image -> text", "text -> image", "random", "validation", "seconds of training"):
        table.add_column(column, justify="right")
    words = None  # of the first run: they depend on neither bits nor seed
    for bits in own.bits:
        runs = []
        for seed in own.seeds:
            folder = own.output / f"{bits}-bits-seed-{seed}"
            if not (folder / "metrics.json").is_file():
                arguments = ["--output_dir", str(folder), "--hash_bits", str(bits), "--seed", str(seed)]
                reused = ["--words_from", str(words)] if words is not None else []
                train(parse_run(own.config, [*arguments, *reused, *further]))
            words = words or folder.absolute()
            runs.append(json.loads((folder / "metrics.json").read_text(encoding="utf-8")))
        columns = (
            [run["query"]["hamming/i2t/map"] for run in runs],
            [run["query"]["hamming/t2i/map"] for run in runs],
            [run["query"]["random/map"] for run in runs],
            [run["validation"] for run in runs],
        )
        seconds = statistics.mean(run["seconds"] for run in runs)
        table.add_row(str(bits), *(_mean_and_spread(values) for values in columns), f"{seconds:.0f}")
    Console(width=120).print(table)


def _mean_and_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(set(values)) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
