"""The content of an index file: its description, and the removal of items and folders."""

import datetime
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.folders.update import updating
from cmfah_hf.retrieval.index import HashIndex
from cmfah_hf.retrieval.storage.folder_records import Files, FolderRecords, Root, table_of


def recorded_roots(path: str | Path) -> tuple[Root, ...]:
    """The folders that an index file follows; none if there is no such file.

    Raises:
        HashIndexError: If the file is not an index, or damaged.
    """
    if not os.path.lexists(path):
        return ()
    folders = HashIndex.load(path, mmap=True).folders
    return () if folders is None else folders.roots


def describe_index(path: str | Path) -> dict[str, Any]:
    """A summary of an index file: model, folders, counts, bytes, date.

    Raises:
        HashIndexError: If the file is not an index, or damaged.
    """
    index = HashIndex.load(path, mmap=True)
    folders = index.folders or FolderRecords()
    files = folders.files()
    roots, followed = [], 0
    for root in folders.roots:
        records = files[root.name].values()
        images = sum(record.has_code for record in records)
        followed += images
        roots.append(
            {
                "name": root.name,
                "path": root.path,
                "is_there": os.path.isdir(root.path),  # noqa: PTH112 - a path of any length
                "images": images,
                "unreadable": sum(record.problem is not None for record in records),
                "left_out": sum(record.left_out for record in records),
                "hidden": root.hidden,
                "split": root.split,
                "keep": list(root.keep),
            }
        )
    found = Path(path).stat()
    written = datetime.datetime.fromtimestamp(found.st_mtime, datetime.timezone.utc).isoformat(timespec="seconds")
    return {
        "index": str(path),
        "items": len(index),
        "bits": index.bits,
        "id_type": index.id_type,
        "metadata": [] if index.metadata is None else index.metadata.column_names,
        "bytes": found.st_size,
        "code_bytes": len(index) * index.bits // 8,
        "fingerprint": index.model,
        "model": folders.model,
        "revision": folders.revision,
        "updated": folders.updated or written,
        "roots": roots,
        "other_items": len(index) - followed,
    }


def remove_items(path: str | Path, ids: Sequence[str] = (), roots: Sequence[str] = ()) -> int:
    """Removes items and whole folders from an index file, and returns the number of removed items.

    An image of a folder that the index follows stays out until an update restores it. A removed folder is not followed
    any more.

    Raises:
        HashIndexError: If the file is not an index, or lacks an id or a folder; nothing is removed then.
    """
    with updating(path):
        index = HashIndex.load(path)
        removed = remove_from(index, str(path), ids, roots)
        index.save(path)
        return removed


def remove_from(index: HashIndex, name: str, ids: Sequence[str], roots: Sequence[str] = ()) -> int:
    """Removes items and whole folders from an index, as `remove_items` does from its file; `name` is for errors.

    Raises:
        HashIndexError: If it lacks an id or a folder; nothing is removed then.
    """
    before, records = len(index), index.folders or FolderRecords()
    files = records.files()
    for root_name in roots:
        if root_name not in files:
            known = f"it follows {', '.join(files)}" if files else "it follows no folder"
            raise HashIndexError(f"{name}: follows no folder named {root_name!r}; {known}.")
    index.remove(_ids_of_type(index, ids, name))
    _leave_out(records, files, ids)
    for root in records.roots:
        if root.name in roots:
            own = [root.id_of(file) for file, record in files.pop(root.name).items() if record.has_code]
            index.remove([item_id for item_id in own if item_id in index])
    if index.folders is not None:
        kept = tuple(root for root in records.roots if root.name not in roots)
        index.folders = replace(records, roots=kept, table=table_of(kept, files))
    return before - len(index)


def remove_others(index: HashIndex) -> None:
    """Removes the items that belong to no folder that the index follows."""
    records = index.folders or FolderRecords()
    files = records.files()
    followed = {root.id_of(name) for root in records.roots for name in files[root.name]}
    index.remove([item_id for item_id in index.ids.tolist() if item_id not in followed])


def _leave_out(records: FolderRecords, files: Files, ids: Sequence[str]) -> None:
    wanted = set(ids)
    for root in records.roots:
        for name, record in files[root.name].items():
            if root.id_of(name) in wanted and record.has_code:
                files[root.name][name] = record._replace(left_out=True)


def _ids_of_type(index: HashIndex, ids: Sequence[str], path: str) -> list[int] | list[str]:
    if index.id_type != "int":
        return list(ids)
    try:
        return [int(item_id) for item_id in ids]
    except ValueError:
        raise HashIndexError(f"{path}: the ids of this index are integers; give some of them.") from None
