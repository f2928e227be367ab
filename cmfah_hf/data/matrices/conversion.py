"""Conversion of matrices to Parquet shards and a card, which `datasets` opens without this package."""

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from cmfah_hf.atomic import atomic_file, write_text
from cmfah_hf.data.dataset_card import CARD_NAME
from cmfah_hf.data.file_state import digest_of, file_states
from cmfah_hf.data.folder_in_work import DATA, folder_in_work
from cmfah_hf.data.images import decoding_off
from cmfah_hf.data.matrices.dataset import Matrices, dataset_of, features_of, research_split
from cmfah_hf.documents import read_json
from cmfah_hf.errors import DataError

# The database is the training pairs and the rest; no row is stored twice.
_FILES_OF_SPLIT = {"train": ["train"], "query": ["query"], "database": ["train", "rest"]}
_SETTINGS = "unfinished.json"


def convert_matrices(
    matrices: Matrices,
    out: str | os.PathLike,
    queries: Literal["first", "last"] | None = None,
    num_queries: int | None = None,
    num_train: int | None = None,
    images: bool = True,
    rows_per_shard: int = 5000,
    progress: Callable[[int], None] = lambda rows: None,
) -> dict[str, Any]:
    """Writes matrices as Parquet shards and a dataset card.

    Shards are written atomically, and the card last. An interrupted conversion that is called again for the same files
    and settings writes the missing shards only.

    Args:
        matrices: The result of `open_matrices`.
        out: The folder to write.
        queries, num_queries, num_train: The research split, see `Matrices.to_dataset`. None: one split `train`.
        images: Whether to write images or features.
        rows_per_shard: Rows per file.
        progress: Called with the number of rows of each finished shard.

    Returns:
        `{"output": ..., "splits": {name: rows}, "queries": ..., "matrices": [a line for each role]}`.

    Raises:
        DataError: If the folder holds a data set already, or an unfinished one with other settings.
    """
    out = Path(out)
    split = research_split(len(matrices), queries, num_queries, num_train)
    files = sorted({variable.file.absolute() for variable in matrices.variables.values()})
    settings = {
        "matrices": matrices.describe(),
        "files": [[state.path, digest_of([state])] for state in file_states(files)],
        "names": [matrices.tag_names, matrices.label_names],
        "split": {name: [list(bounds) for bounds in ranges] for name, ranges in split.items()},
        "pictures": images,  # the name in files of interrupted conversions
        "rows_per_shard": rows_per_shard,
    }
    with folder_in_work(out):
        _begin(out, settings)
        for name, ranges in split.items():
            ((start, stop),) = ranges
            count = -(-(stop - start) // rows_per_shard)
            bounds = [start + (stop - start) * shard // max(1, count) for shard in range(count + 1)]
            for shard, (first, last) in enumerate(pairwise(bounds)):
                path = out / DATA / f"{name}-{shard:05d}-of-{count:05d}.parquet"
                if not path.exists():
                    _write_shard(matrices, (first, last), path, images)
                progress(last - first)
        rows = {name: sum(stop - start for start, stop in ranges) for name, ranges in split.items()}
        present = {name for name, number in rows.items() if number}
        parts = {name: [part for part in sources if part in present] for name, sources in _FILES_OF_SPLIT.items()}
        if queries is None:
            parts = {"train": ["train"]}
        _write_card(out, matrices, parts, queries)
        (out / _SETTINGS).unlink()
    return {
        "output": str(out),
        "splits": {name: sum(rows[part] for part in sources) for name, sources in parts.items()},
        "queries": queries,
        "matrices": matrices.describe(),
    }


def _begin(out: Path, settings: dict[str, Any]) -> None:
    if (out / CARD_NAME).exists():
        raise DataError(f"{out}: holds a data set already; choose another folder or remove it.")
    note = out / _SETTINGS
    if note.exists() and read_json(note, DataError) != json.loads(json.dumps(settings)):
        raise DataError(f"{out}: holds an unfinished conversion of other files or settings; choose another folder.")
    if not note.exists() and any((out / DATA).iterdir()):
        raise DataError(f"{out / DATA}: holds files already; choose another folder or remove them.")
    write_text(note, json.dumps(settings), DataError)


def _write_shard(matrices: Matrices, rows: tuple[int, int], path: Path, images: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = features_of(matrices, images, class_labels=True).arrow_schema
    number_of = {name: number for number, name in enumerate(matrices.label_names)}
    stream = decoding_off(dataset_of(matrices, [rows], "train", streaming=True, images=images))
    with atomic_file(path, DataError) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for batch in stream.iter(100):
            if "labels" in batch:
                batch["labels"] = [[number_of[name] for name in labels] for labels in batch["labels"]]
            writer.write_table(
                pa.table({name: pa.array(batch[name], schema.field(name).type) for name in schema.names}, schema=schema)
            )


def _write_card(out: Path, matrices: Matrices, parts: dict[str, list[str]], queries: str | None) -> None:
    import yaml

    files = [{"split": name, "path": [f"data/{part}-*.parquet" for part in sources]} for name, sources in parts.items()]
    front = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]}, sort_keys=False)
    lines = ["---", front.rstrip(), "---", "", f"# {out.name}", "", "Image-text pairs, converted from matrices:", ""]
    lines += [f"- {line}" for line in matrices.describe()]
    if queries is not None:
        line = f"The query rows come {queries} in the matrices. The database is all other rows, training pairs first."
        lines += ["", line]
    write_text(out / CARD_NAME, "\n".join(lines) + "\n", DataError)
