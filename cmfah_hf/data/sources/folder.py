"""The source of folders of images with metadata files, in the layout of `datasets`' own `imagefolder`.

The builder of `datasets` is not used: it reads a JSON column only if all its values have one type, while people write
some labels as a list and others as a string; and it takes the tags `null` and `NA` of a CSV file for missing values.
Rows become a data set through `from_generator`, so they are cached on disk, memory-mapped, and stream the same way.
"""

import logging
import os
import posixpath
from collections.abc import Iterator
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import datasets

from cmfah_hf.data.data_root import DataRoot
from cmfah_hf.data.dataset_card import check_split_name
from cmfah_hf.data.rows.columns import ColumnNames
from cmfah_hf.data.rows.errors import guarded
from cmfah_hf.data.rows.uniform import Loaded, own_values
from cmfah_hf.data.sources.metadata import EXAMPLE, CheckedMetadata, check_metadata, normal_name
from cmfah_hf.data.sources.metadata_rows import read_rows
from cmfah_hf.data.sources.request import (
    MAX_SHARDS,
    METADATA_NAMES,
    SPLIT_FOLDERS,
    LoadRequest,
    is_file,
    split_of_metadata,
    subfolders,
    usual_order,
)
from cmfah_hf.errors import DataError

logger = logging.getLogger(__name__)


def matches(request: LoadRequest) -> bool:
    return request.exists and request.path.is_dir() and bool(find_splits(request.path))


def load(request: LoadRequest) -> Loaded:
    """The rows of the metadata files, all checked first; `kwargs` of the request are those of `from_generator`."""
    path, columns = request.path, request.columns
    if columns.image not in (None, "file_name", "image"):
        raise DataError(f"{path}: a folder names its images in 'file_name', not in {columns.image!r}.")
    metadata = find_splits(path)
    _warn_of_closed_folders(path, metadata)
    root = request.allowed(DataRoot.of_folder(path))
    checked = {name: check_metadata(metadata[name], columns, root) for name in request.wanted(metadata)}
    parts = {
        name: guarded(partial(_rows, found, name, request.streaming, **request.kwargs), str(found.path))
        for name, found in checked.items()
    }
    return request.select(request.splits(parts))


def find_splits(folder: Path) -> dict[str, Path]:
    """The metadata file of each split, the usual splits first: those of the subfolders, or the folder's own as `train`.

    Further splits of the folder's own are in `metadata.query.jsonl` and the like.

    A subfolder that cannot be read holds no metadata.

    Raises a `DataError` if a split would be lost: metadata here and in a subfolder, or a split folder without any.
    """
    below = subfolders(folder)
    splits = {entry.name: path for entry in below if (path := _find_metadata(entry)) is not None}
    own = _own_splits(folder)
    if own:
        if splits:
            raise DataError(f"{folder}: has metadata of its own and in {next(iter(splits))}/; keep one of the two.")
        return own
    for name in splits:
        check_split_name(name, str(folder))
    bare = [entry for entry in below if entry.name in SPLIT_FOLDERS and entry.name not in splits]
    if splits and bare:
        reason = _reason_closed(bare[0])
        if reason is not None:
            raise DataError(f"{bare[0]}: this split cannot be read ({reason}); change its permissions.")
        raise DataError(f"{bare[0]}: this split has no metadata; {EXAMPLE}")
    return {name: splits[name] for name in sorted(splits, key=usual_order)}


def _warn_of_closed_folders(folder: Path, metadata: dict[str, Path]) -> None:
    """Names the subfolders that may be splits and cannot be read, if subfolders are splits."""
    if all(path.parent == folder for path in metadata.values()):
        return
    for entry in subfolders(folder):
        reason = _reason_closed(entry)
        if entry.name not in metadata and reason is not None:
            logger.warning("Left out: %s cannot be read (%s); if it is a split, change its permissions.", entry, reason)


def _reason_closed(folder: Path) -> str | None:
    """The system's reason why a folder cannot be read, or None if it can."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                os.lstat(entry.path)
                break
    except FileNotFoundError:  # deleted in the meantime
        return None
    except OSError as error:
        return error.strerror or str(error)
    return None


def _own_splits(folder: Path) -> dict[str, Path]:
    """The metadata files of a folder by split."""
    train = _find_metadata(folder)
    splits = {} if train is None else {"train": train}
    for path in sorted(folder.glob("metadata.*.jsonl")):
        name = split_of_metadata(path.name)
        if name is None or not is_file(path):
            continue
        check_split_name(name, str(path))
        if name in splits:
            raise DataError(f"{path}: {splits[name].name} holds this split too; keep one.")
        splits[name] = path
    return {name: splits[name] for name in sorted(splits, key=usual_order)}


def _find_metadata(folder: Path) -> Path | None:
    """The metadata file of a folder, if it has one; two are refused, because they might disagree."""
    found = [folder / name for name in METADATA_NAMES if is_file(folder / name)]
    if len(found) > 1:
        raise DataError(f"{folder}: holds both {found[0].name} and {found[1].name}; keep one.")
    return found[0] if found else None


def _rows(metadata: CheckedMetadata, split: str, streaming: bool, **kwargs: Any) -> Any:
    """The rows of a checked metadata file as a `Dataset` or `IterableDataset`."""
    num_ranges = min(MAX_SHARDS, metadata.num_rows) if streaming else 1
    bounds = [metadata.num_rows * i // num_ranges for i in range(num_ranges + 1)]
    gen_kwargs = {
        "path": str(metadata.path.absolute()),
        "columns": metadata.columns,
        # These arguments identify the data set in the cache, so a changed metadata file or image has to change them.
        "version": metadata.version,
        "spellings": metadata.spellings,
        "ranges": list(pairwise(bounds)),
    }
    kind = datasets.IterableDataset if streaming else datasets.Dataset
    return kind.from_generator(
        generate_rows,
        features=metadata.features,
        gen_kwargs=gen_kwargs,
        split=datasets.NamedSplit(split),
        **({} if streaming else kwargs),
    )


def generate_rows(
    path: str, columns: ColumnNames, version: str, spellings: tuple[tuple[str, str], ...], ranges: list[tuple[int, int]]
) -> Iterator[dict[str, Any]]:
    """The uniform rows in `ranges` (start, stop) of a metadata file; `version` only identifies its state."""
    folder, spelled = str(Path(path).parent), dict(spellings)
    for start, stop in ranges:
        for _, row in islice(read_rows(Path(path)), start, stop):
            name = normal_name(row["file_name"])
            values = own_values(row, columns, None, partial(str, name))
            values["image"] = posixpath.join(folder, spelled.get(name, name))
            yield values | {columns.kept_as(key): value for key, value in row.items() if key not in columns.chosen}
