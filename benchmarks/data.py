"""Time and memory of each stage from a released data set to expanded texts, at full size.

    python benchmarks/data.py
    python benchmarks/data.py --rows 20000 --json

Makes a synthetic NUS-WIDE release without images (269,648 rows, 195,834 of them with one of the 21 classes, 5,018
tags with a long tail, 81 concepts) in a temporary folder, prepares it with either list of tags, streams the second one,
fits a `GraphExpander` on the stream and expands some of its texts. Each stage runs in its own process; its seconds
include imports on first use, its memory is the largest resident set of that process.
"""

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from cmfah_hf.data.releases.nus_wide import NUS_WIDE, prepare_nus_wide
from cmfah_hf.data.releases.nus_wide_files import MOST_FREQUENT

STAGES = ("prepare 1k", "prepare 5018", "stream", "fit", "expand")
_USABLE_SHARE = 195_834 / 269_648
_CONCEPTS = [*MOST_FREQUENT[21], *(f"concept{number}" for number in range(60))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=269_648)
    parser.add_argument("--expand-rows", type=int, default=5_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    own = parser.parse_args()
    if own.stage:
        _run_stage(own)
        return
    with tempfile.TemporaryDirectory() as folder:
        sizes = _make_release(Path(folder) / "release", own.rows)
        results = []
        for stage in STAGES:
            command = [sys.executable, __file__, "--stage", stage, "--folder", folder]
            command += ["--rows", str(own.rows), "--expand-rows", str(own.expand_rows)]
            run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            results.append({"stage": stage, **json.loads(run.stdout)})
    if own.json:
        print(json.dumps(results))  # noqa: T201
        return
    table = Table(title=f"{own.rows:,} rows, a release of {sizes / 1e6:,.0f} MB")
    for column in ("stage", "rows", "seconds", "rows/s", "MB"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for result in results:
        rate = result["rows"] / result["seconds"]
        table.add_row(
            result["stage"],
            f"{result['rows']:,}",
            f"{result['seconds']:.1f}",
            f"{rate:,.0f}",
            f"{result['peak_bytes'] / 1e6:,.0f}",
        )
    Console(width=100).print(table)


def _run_stage(own: argparse.Namespace) -> None:
    logging.disable(logging.WARNING)
    prepared, fitted = own.folder / "prepared", own.folder / "fitted"
    kind, _, tags = own.stage.partition(" ")
    if kind == "prepare":
        start = time.perf_counter()
        release = json.loads((own.folder / "release" / "counts.json").read_text())
        usable = release.pop("usable")
        expected = replace(
            NUS_WIDE,
            **release,
            label_ones={21: None},
            variants={21: {usable: False}},
            class_names={21: MOST_FREQUENT[21]},
        )
        queries, train = (max(1, round(size * own.rows / 269_648)) for size in (2_100, 10_500))
        out = prepared if tags == "5018" else own.folder / "prepared-1k"
        report = prepare_nus_wide(
            own.folder / "release", out, tags=tags, queries=queries, train=train, release=expected
        )
        rows = report.rows["query"] + report.rows["database"]
    else:
        from cmfah_hf.data import load_image_text
        from cmfah_hf.expansion import GraphExpander

        start = time.perf_counter()
        stream = load_image_text(prepared, split="database", streaming=True, images=False)
        rows = 0
        if own.stage == "fit":
            expander = GraphExpander().fit(stream, text_column="text")
            expander.save(fitted)
            rows = expander.graph.num_images
        else:
            if own.stage == "expand":
                stream = stream.take(own.expand_rows).map(GraphExpander.load(fitted), batched=True, batch_size=1_000)
            for row in stream:
                rows += 1
                if own.stage == "expand" and not row["expanded_text"] and row["text"]:
                    raise AssertionError(f"{row['id']} lost its words")
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps({"rows": rows, "seconds": seconds, "peak_bytes": peak}))  # noqa: T201


def _make_release(root: Path, num_rows: int) -> int:
    """Writes a release and returns its size in bytes."""
    rng = np.random.default_rng(0)
    for folder in ("ImageList", "ConceptsList", "Groundtruth/AllLabels", "NUS_WID_Tags"):
        (root / folder).mkdir(parents=True)
    photos = np.arange(num_rows) + 10_000_000
    paths = [f"folder{row // 400:04d}\\{row % 400:04d}_{photo}.jpg" for row, photo in enumerate(photos)]
    (root / "ImageList/Imagelist.txt").write_text("\r\n".join(paths) + "\r\n")
    (root / "ConceptsList/Concepts81.txt").write_text("\n".join(sorted(_CONCEPTS)) + "\n")

    usable = rng.permutation(num_rows)[: round(_USABLE_SHARE * num_rows)]
    first = np.zeros(num_rows, np.int64) - 1
    weights = 1 / np.arange(1, 22)
    first[usable] = rng.choice(21, len(usable), p=weights / weights.sum())
    for number, concept in enumerate(_CONCEPTS):
        ones = first == number
        ones |= (first >= 0) & (rng.random(num_rows) < 0.05) if number < 21 else rng.random(num_rows) < 0.005
        text = (ones + ord("0")).astype(np.uint8)
        lines = np.stack([text, np.full(num_rows, ord("\n"), np.uint8)], 1)
        (root / f"Groundtruth/AllLabels/Labels_{concept}.txt").write_bytes(lines.tobytes())

    names = [f"tag{number}" for number in range(5_018)]
    shares = 1 / (np.arange(5_018) + 10) ** 0.9  # the long tail
    lengths = rng.geometric(1 / 12, num_rows) - 1
    drawn = rng.choice(5_018, lengths.sum(), p=shares / shares.sum())
    (root / "NUS_WID_Tags/Final_Tag_List.txt").write_text("\n".join(names) + "\n")
    (root / "NUS_WID_Tags/TagList1k.txt").write_text("\n".join(names[:1000]) + "\n")
    ends, ones = np.cumsum(lengths), 0
    with (
        (root / "NUS_WID_Tags/All_Tags.txt").open("w") as every,
        (root / "NUS_WID_Tags/AllTags1k.txt").open("wb") as kept,
    ):
        for begin in range(0, num_rows, 4_000):
            rows = range(begin, min(begin + 4_000, num_rows))
            matrix = np.full((len(rows), 2_000), ord("\t"), np.uint8)
            matrix[:, ::2] = ord("0")
            for row in rows:
                own = drawn[ends[row] - lengths[row] : ends[row]]
                every.write(f"{photos[row]} {' '.join([names[number] for number in own])}\n")
                matrix[row - begin, 2 * own[own < 1_000]] = ord("1")
            matrix[:, -1] = ord("\n")
            ones += int((matrix == ord("1")).sum())
            kept.write(matrix.tobytes())
    counts = {"num_rows": num_rows, "tag_ones": ones, "repeated_photos": 0, "usable": len(usable)}
    (root / "counts.json").write_text(json.dumps(counts))
    return sum(file.stat().st_size for file in root.rglob("*.txt"))


if __name__ == "__main__":
    main()
