"""Undocumented parts of `datasets`, in one place

`pyproject.toml` bounds `datasets` by the versions that these parts were tested with. All other files of `training/` use
its documented parts alone.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter
from datasets.features.features import _ArrayXDExtensionType
from datasets.fingerprint import Hasher
from datasets.iterable_dataset import ArrowExamplesIterable, _BaseExamplesIterable
from datasets.table import MemoryMappedTable

__all__ = [
    "ArrowWriter",
    "Hasher",
    "fingerprint",
    "is_array",
    "is_arrow",
    "open_arrow",
    "stream_arrow",
    "stream_fingerprint",
]


def is_arrow(dataset: datasets.IterableDataset) -> bool:
    """Whether a stream comes as tables, so that reading them as tables costs no conversion."""
    return dataset._ex_iterable.iter_arrow is not None


def is_array(kind: pa.DataType) -> bool:
    """Whether a column's type is that of `Array2D` and its like."""
    return isinstance(kind, _ArrayXDExtensionType)


def fingerprint(dataset: datasets.Dataset) -> str:
    """The name of a map-style data set's content: its source and everything done to it."""
    return dataset._fingerprint


def stream_fingerprint(dataset: datasets.IterableDataset) -> str:
    """The name of a stream's content, the same in every process: its files and stages, not how far it was read."""
    return Hasher.hash([_described(dataset._ex_iterable), dataset.split])


def _described(stage: Any) -> Any:
    if isinstance(stage, (list, tuple)):
        return [_described(part) for part in stage]
    owner = getattr(stage, "__self__", None)
    if isinstance(owner, datasets.DatasetBuilder):  # which also holds where its cache is
        return [type(owner).__name__, stage.__name__, getattr(owner.config, "generator", None)]
    if not isinstance(stage, _BaseExamplesIterable):
        return stage
    # Names with an underscore are state, and a pool of threads is no part of the content.
    values = {k: v for k, v in vars(stage).items() if not k.startswith("_") and k != "decoding_pool"}
    return [type(stage).__name__, {name: _described(value) for name, value in values.items()}]


def open_arrow(file: Path, features: datasets.Features, name: str) -> datasets.Dataset:
    """An Arrow file as a data set, mapped into memory, with `name` for its fingerprint."""
    table = MemoryMappedTable.from_file(str(file)).replace_schema_metadata(None)
    return datasets.Dataset(table, datasets.DatasetInfo(features=features), fingerprint=name)


def stream_arrow(
    files: list[str], features: datasets.Features, split: datasets.NamedSplit | None = None
) -> datasets.IterableDataset:
    """A stream over Arrow files, a shard a file."""
    iterable = ArrowExamplesIterable(_generate_tables, {"file": files})
    return datasets.IterableDataset(iterable, info=datasets.DatasetInfo(features=features), split=split)


def _generate_tables(file: list[str]) -> Iterator[tuple[str, pa.Table]]:
    for name in file:
        with pa.memory_map(name) as source, pa.ipc.open_stream(source) as reader:
            for number, batch in enumerate(reader):
                yield f"{name} {number}", pa.Table.from_batches([batch])
