"""A data set as a folder that can go onto the Hub: checked as it stands, or written from any other source.

README.md                              the card; its `configs` say which files are which split
data/train-00000-of-00002.parquet      the shards of the splits
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cmfah_hf.data.dataset_card import CARD_NAME, card_splits
from cmfah_hf.documents import file_of
from cmfah_hf.errors import DataError
from cmfah_hf.hub.cards import card_of

logger = logging.getLogger(__name__)

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")
# Rows that are written, and later read, at once; with pictures of 100 kB each, 10 MB.
_ROWS_OF_GROUP = 100
_BYTES_OF_SHARD = 500 * 10**6


@dataclass(frozen=True)
class DatasetFolder:
    """What a folder holds.

    Args:
        files: All that goes onto the Hub, by the path there.
        splits: The rows of each split; two splits may share shards.
    """

    files: dict[str, Path]
    splits: dict[str, int]


def is_prepared(folder: Path) -> bool:
    """Whether a folder is taken as it is: it has a card that names Parquet files, or shards that lack one."""
    return folder.is_dir() and (card_splits(folder) is not None or any(folder.glob("data/*-of-*.parquet")))


def check_folder(folder: Path) -> DatasetFolder:
    """Check a prepared folder before anything of it is sent; of the Parquet files, only the footers are read.

    Raises:
        DataError: If there is no card, it names no splits, a shard is missing, is in no split or cannot be opened, or
            the shards of a split differ in their columns.
    """
    splits = card_splits(folder)
    if splits is None:
        what = "has no card" if not (folder / CARD_NAME).is_file() else "has a card that names no splits in `configs`"
        raise DataError(
            f"{folder}: {what} ({CARD_NAME}), as a preparation leaves it that was broken off; run that again to its "
            "end, or write the card."
        )
    found = [
        path for path in sorted(folder.rglob("*")) if not _is_hidden(path.relative_to(folder)) and _is_own(path, folder)
    ]
    files = {path.relative_to(folder).as_posix(): path for path in found}
    named = {Path(file) for shards in splits.values() for file in shards}
    for path in found:
        if path.suffix == ".parquet" and path not in named:
            raise DataError(
                f"{path}: no split of the card {folder / CARD_NAME} has this file; name it there, or remove it."
            )
    for path in sorted(named - set(found)):
        raise DataError(f"{path} leads out of the folder, or is no regular file; put a copy of the shard there.")
    _check_numbers(named)
    rows = {name: _check_shards(shards) for name, shards in splits.items()}
    return DatasetFolder(files, rows)


def write_folder(streams: Mapping[str, Iterable[Any]], folder: Path, title: str) -> None:
    """Write the splits of a source in the layout above, the card last.

    The same source gives the same bytes again, so that a push that is repeated finds on the Hub what it sent before.

    Args:
        streams: `IterableDataset`s with the uniform columns, by split.
        folder: An empty one.
        title: Of the card.

    Raises:
        DataError: If two rows of a split have the same id.
    """
    (folder / "data").mkdir(parents=True)
    classes = _classes(streams.values())
    counts = {name: _write_split(name, stream, folder / "data", classes) for name, stream in streams.items()}
    (folder / CARD_NAME).write_text(_card(title, counts, classes), encoding="utf-8")


def _is_own(path: Path, folder: Path) -> bool:
    """Whether it is a regular file that really is below the folder. What is not is never published."""
    if path.is_dir() or (file_of(path) is not None and path.resolve().is_relative_to(folder.resolve())):
        return not path.is_dir()
    logger.warning("Left out: %s leads out of the folder, or is no regular file.", path)
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
    """The rows of a split."""
    import pyarrow as pa

    from cmfah_hf.data.parquet_files import read_footers

    rows, schema = 0, None
    for file in files:
        try:
            footers = read_footers([file])
        except (pa.ArrowException, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DataError(f"{file}: cannot be opened as Parquet ({reason}); write it again.") from error
        schema = schema or footers.schema
        if not footers.schema.equals(schema):
            raise DataError(f"{file}: has other columns than {files[0]}; the shards of a split need the same.")
        rows += footers.num_rows
    for column in ("id", "text"):
        if column not in schema.names:
            raise DataError(f"{files[0]}: has no column {column!r}; present are: {', '.join(schema.names)}.")
    if not rows:
        raise DataError(f"{files[0]}: this split holds no rows.")
    return rows


def _classes(streams: Iterable[Any]) -> list[str]:
    """The names of all labels, sorted; empty where no split has any."""
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
    written, parts, writer = 0, [], None
    while group := list(islice(rows, _ROWS_OF_GROUP)):
        for row in group:
            if "labels" in row and classes:
                row["labels"] = [number_of[name] for name in row["labels"]]
        if writer is None:
            parts.append(folder / f"{split}-{len(parts):05d}")
            writer = pq.ParquetWriter(parts[-1], schema)
        # Pictures that stand beside the source's table are read here, byte for byte.
        writer.write_table(embed_table_storage(pa.Table.from_pylist(group, schema=schema)))
        written += len(group)
        if parts[-1].stat().st_size >= _BYTES_OF_SHARD:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    for part in parts:  # how many there are is known now
        part.rename(part.with_name(f"{part.name}-of-{len(parts):05d}.parquet"))
    return written


def _checked(rows: Iterable[dict[str, Any]], split: str) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    for number, row in enumerate(rows):
        if row["id"] in seen:
            raise DataError(
                f"Split {split}, row {number} (from 0): the id {row['id']!r} was there before; make it unique."
            )
        seen.add(row["id"])
        yield row


def _card(title: str, counts: Mapping[str, int], classes: list[str]) -> str:
    import yaml

    data_files = [{"split": name, "path": f"data/{name}-*.parquet"} for name in counts]
    head = {
        "pretty_name": title,
        "tags": ["cross-modal-retrieval", "image", "text"],
        "configs": [{"config_name": "default", "data_files": data_files}],
    }
    rows = "\n".join(f"| `{name}` | {count:,} |" for name, count in counts.items())
    labels = "names the classes" if not classes else f"is of {len(classes)} classes"
    body = f"""# {title}

Pairs of picture and text for cross-media retrieval.

| split | pairs |
|---|---|
{rows}

`id` is unique within a split, `image` is the picture's own file, `text` a caption or tags, and `labels`, where there
are any, {labels}.
"""
    return card_of(yaml.safe_dump(head, sort_keys=False, allow_unicode=True), body)
