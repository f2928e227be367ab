"""Data set folders in the Hub's layout: checked, or written from any other source.

README.md                              the card; its `configs` map splits to files
data/train-00000-of-00002.parquet      the shards of the splits
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cmfah_hf.data.dataset_card import CARD_NAME, card_splits, size_category
from cmfah_hf.documents import file_of
from cmfah_hf.errors import DataError
from cmfah_hf.hub.cards import card_of

logger = logging.getLogger(__name__)

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")
# Rows per row group, the unit of reading; 10 MB with images of 100 kB.
_ROWS_OF_GROUP = 100
_BYTES_OF_SHARD = 500 * 10**6


@dataclass(frozen=True)
class DatasetFolder:
    """The files of a folder by path in the repository, and the rows per split; splits may share shards."""

    files: dict[str, Path]
    splits: dict[str, int]


def is_prepared(folder: Path) -> bool:
    """True for a folder that is pushed unchanged: its card names Parquet files, or it has shards without a card."""
    return folder.is_dir() and (card_splits(folder) is not None or any(folder.glob("data/*-of-*.parquet")))


def check_folder(folder: Path) -> DatasetFolder:
    """Checks a prepared folder before a push, reading only the footers of Parquet files."""
    splits = card_splits(folder)
    if splits is None:
        what = "has no card" if not (folder / CARD_NAME).is_file() else "has a card that names no splits in `configs`"
        raise DataError(
            f"{folder}: {what} ({CARD_NAME}); an interrupted preparation leaves a folder like this: run it again, or "
            "write the card."
        )
    found = [
        path for path in sorted(folder.rglob("*")) if not _is_hidden(path.relative_to(folder)) and _is_own(path, folder)
    ]
    files = {path.relative_to(folder).as_posix(): path for path in found}
    named = {Path(file) for shards in splits.values() for file in shards}
    for path in found:
        if path.suffix == ".parquet" and path not in named:
            raise DataError(
                f"{path}: this file is in no split of the card {folder / CARD_NAME}; add it there, or remove it."
            )
    for path in sorted(named - set(found)):
        raise DataError(f"{path} leads out of the folder, or is not a regular file; put a copy of the shard there.")
    _check_numbers(named)
    rows = {name: _check_shards(shards) for name, shards in splits.items()}
    return DatasetFolder(files, rows)


def write_folder(streams: Mapping[str, Iterable[Any]], folder: Path, title: str) -> None:
    """Writes the splits of a source, `IterableDataset`s with the uniform columns, in the layout above, the card last.

    Output is deterministic, so a repeated push finds its earlier uploads on the Hub.
    """
    (folder / "data").mkdir(parents=True)
    classes = _classes(streams.values())
    counts = {name: _write_split(name, stream, folder / "data", classes) for name, stream in streams.items()}
    (folder / CARD_NAME).write_text(_card(title, counts, classes), encoding="utf-8")


def _is_own(path: Path, folder: Path) -> bool:
    """True for a regular file whose real path is below the folder; nothing else is published."""
    if path.is_dir() or (file_of(path) is not None and path.resolve().is_relative_to(folder.resolve())):
        return not path.is_dir()
    logger.warning("Left out: %s leads out of the folder, or is not a regular file.", path)
    return False


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _check_numbers(shards: Iterable[Path]) -> None:
    for path in sorted(shards):
        if match := _SHARD.fullmatch(path.name):
            for number in range(int(match["count"])):
                expected = path.with_name(f"{match['stem']}-{number:05d}-of-{match['count']}.parquet")
                if not expected.is_file():
                    raise DataError(f"{expected}: this shard is missing; prepare the data set again, or fetch it.")


def _check_shards(files: list[str]) -> int:
    """The number of rows of a split."""
    import pyarrow as pa

    from cmfah_hf.data.parquet_files import read_footers

    rows, schema = 0, pa.schema([])
    for file in files:
        footers = read_footers([file])
        if file == files[0]:
            schema = footers.schema
        if not footers.schema.equals(schema):
            raise DataError(
                f"{file}: has different columns than {files[0]}; the shards of a split need the same columns."
            )
        rows += footers.num_rows
    for column in ("id", "text"):
        if column not in schema.names:
            raise DataError(f"{files[0]}: has no column {column!r}; present are: {', '.join(schema.names)}.")
    if not rows:
        raise DataError(f"{files[0]}: this split has no rows.")
    return rows


def _classes(streams: Iterable[Any]) -> list[str]:
    """All label names, sorted; empty if no split has labels."""
    from cmfah_hf.data.images import decoding_off

    names: set[str] = set()
    for stream in streams:
        if "labels" in stream.column_names:
            for row in decoding_off(stream).select_columns(["labels"]):
                names.update(row["labels"])
    return sorted(names)


def _write_split(split: str, stream: Any, folder: Path, classes: list[str]) -> int:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets.table import embed_table_storage

    from cmfah_hf.data.images import decoding_off

    features = datasets.Features(stream.features)
    number_of = {name: number for number, name in enumerate(classes)}
    if "labels" in features and classes:
        features["labels"] = datasets.List(datasets.ClassLabel(names=classes))
    schema = features.arrow_schema
    rows = _checked(decoding_off(stream), split)
    written = 0
    parts: list[Path] = []
    writer = None
    while group := list(islice(rows, _ROWS_OF_GROUP)):
        for row in group:
            if "labels" in row and classes:
                row["labels"] = [number_of[name] for name in row["labels"]]
        if writer is None:
            parts.append(folder / f"{split}-{len(parts):05d}")
            writer = pq.ParquetWriter(parts[-1], schema)
        # Reads image files next to the source's table, byte for byte.
        writer.write_table(embed_table_storage(pa.Table.from_pylist(group, schema=schema)))
        written += len(group)
        if parts[-1].stat().st_size >= _BYTES_OF_SHARD:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    for part in parts:  # their number is known now
        part.rename(part.with_name(f"{part.name}-of-{len(parts):05d}.parquet"))
    return written


def _checked(rows: Iterable[dict[str, Any]], split: str) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for number, row in enumerate(rows):
        if row["id"] in seen:
            raise DataError(f"Split {split}, row {number} (from 0): the id {row['id']!r} occurs twice; make it unique.")
        seen.add(row["id"])
        yield row


def _card(title: str, counts: Mapping[str, int], classes: list[str]) -> str:
    import yaml

    data_files = [{"split": name, "path": f"data/{name}-*.parquet"} for name in counts]
    head = {
        "pretty_name": title,
        "task_categories": ["feature-extraction"],
        "size_categories": [size_category(sum(counts.values()))],
        "tags": ["cross-modal-retrieval", "image", "text"],
        "configs": [{"config_name": "default", "data_files": data_files}],
    }
    rows = "\n".join(f"| `{name}` | {count:,} |" for name, count in counts.items())
    labels = "the class names" if not classes else f"one or more of {len(classes)} classes"
    body = f"""# {title}

Pairs of image and text for cross-media retrieval.

| split | pairs |
|---|---|
{rows}

`id` is unique within a split, `image` the original image file, `text` a caption or tags, `captions`, if present, the
captions that it joins, and `labels`, if present, {labels}.
"""
    return card_of(yaml.safe_dump(head, sort_keys=False, allow_unicode=True), body)
