"""The files of a prepared data set: each written whole or not at all, and what an interrupted run has finished."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmfah_hf.atomic import atomic_file, write_text
from cmfah_hf.data.dataset_card import CARD_NAME
from cmfah_hf.data.folder_in_work import DATA
from cmfah_hf.data.releases.pictures import Pictures, iterate_pictures
from cmfah_hf.data.releases.table import ReleaseTable
from cmfah_hf.documents import read_bytes, read_json
from cmfah_hf.errors import DataError

STATE_NAME = ".prepare.json"
PARTS = ("train", "query", "rest")
# What a card that was written here has and others have not.
_MARK = "\ncmfah data prepare "
# With pictures of 100 kB, a row group, what a reader holds, has 10 MB.
_ROWS_PER_GROUP = {True: 100, False: 2_000}


@dataclass(frozen=True)
class Writing:
    """How pictures are checked, and shards are written.

    Args:
        verify: Decode every picture; rows whose picture cannot be decoded are left out.
        keep_broken: Keep these rows, with the bytes as they are, even none.
        skip_missing: Leave out rows whose picture is not there, instead of an error.
        overwrite: Replace what an earlier preparation left in the folder.
        rows_per_shard: Of a file; 2,000 with pictures and 50,000 without, if not given.
        progress: Show a bar.
    """

    verify: bool = True
    keep_broken: bool = False
    skip_missing: bool = False
    overwrite: bool = False
    rows_per_shard: int | None = None
    progress: bool = False


@dataclass(frozen=True)
class Shard:
    """One file: its name and the numbers of its rows."""

    name: str
    rows: np.ndarray


def write_shard(
    folder: Path, table: ReleaseTable, shard: Shard, pictures: Pictures | None, keep_broken: bool, bar: Any
) -> dict[str, Any]:
    """Write one file, whole or not at all.

    Returns:
        What the state keeps of it: how many rows were asked for, its size, and ids and reasons of the pictures that
        cannot be read.
    """
    import pyarrow.parquet as pq

    path = folder / DATA / shard.name
    unreadable: list[tuple[str, str]] = []
    schema = _features(table, pictures is not None).arrow_schema
    group = _ROWS_PER_GROUP[pictures is not None]
    with atomic_file(path, DataError) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for first in range(0, len(shard.rows), group):
            rows, images = shard.rows[first : first + group], None
            asked = len(rows)
            if pictures is not None:
                found = list(iterate_pictures(pictures, table, rows))
                unreadable += [(table.ids[p.row], p.reason) for p in found if p.reason is not None]
                kept = [p for p in found if p.reason is None or keep_broken]
                rows = np.array([p.row for p in kept], np.int64)
                images = [{"bytes": p.content, "path": table.pictures[p.row].rpartition("/")[2]} for p in kept]
            if len(rows):
                writer.write_table(_arrow_table(table, rows, images, schema), row_group_size=group)
            bar.update(asked)
    return {"rows_asked": len(shard.rows), "bytes": path.stat().st_size, "unreadable": unreadable}


def _features(table: ReleaseTable, has_pictures: bool) -> Any:
    import datasets

    columns = {
        "id": datasets.Value("string"),
        "image": datasets.Image(),
        "text": datasets.Value("string"),
        "tags": datasets.List(datasets.Value("string")),
        "labels": datasets.List(datasets.ClassLabel(names=list(table.class_names))),
    }
    return datasets.Features({name: kind for name, kind in columns.items() if has_pictures or name != "image"})


def _arrow_table(table: ReleaseTable, rows: np.ndarray, pictures: list[dict[str, Any]] | None, schema: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    def lists(of_rows: Any, values: Any) -> Any:
        offsets = np.concatenate([[0], of_rows.ends]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), values)

    tags, labels = table.tags.take(rows), table.labels.take(rows)
    tag_lists = lists(tags, pa.array([table.tag_names[number] for number in tags.numbers], pa.string()))
    columns = {
        "id": pa.array([table.ids[row] for row in rows], pa.string()),
        "text": pc.binary_join(tag_lists, " "),
        "tags": tag_lists,
        "labels": lists(labels, pa.array(labels.numbers.astype(np.int64))),
    }
    if pictures is not None:
        columns["image"] = pa.array(pictures, schema.field("image").type)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def enter_folder(folder: Path, digest: str, overwrite: bool) -> dict[str, dict[str, Any]]:
    """The shards that are finished already; a folder with anything else is refused, or cleared of what was prepared.

    The folder has to be held (`folder_in_work`). The state is written before anything is removed, so that a run that
    is killed here can go on.
    """
    card, state = folder / CARD_NAME, folder / STATE_NAME
    shards = [path for part in PARTS for path in (folder / DATA).glob(f"{part}-*.parquet")]
    if card.exists() and _MARK not in read_bytes(card, DataError).decode("utf-8", "replace"):
        raise DataError(
            f"{card}: is not the card of a data set prepared before, so it is left alone; name another folder."
        )
    if shards and not card.exists() and not state.exists():
        raise DataError(
            f"{shards[0]}: was not prepared here, so it is left alone; name another folder, or take it away."
        )
    if not overwrite and not state.exists() and card.exists():
        raise DataError(
            f"{folder}: holds a data set already; name another folder, or replace it with --overwrite (overwrite=True)."
        )
    if overwrite or not state.exists():
        write_text(state, json.dumps({"digest": digest, "shards": {}}), DataError)
        done: dict[str, dict[str, Any]] = {}
    else:
        done = _finished(folder, state, digest)
    card.unlink(missing_ok=True)
    sizes = {path.name: path.stat().st_size for path in shards}
    done = {name: entry for name, entry in done.items() if sizes.get(name) == entry["bytes"]}
    for path in shards:
        if path.name not in done:
            path.unlink()
    return done


def _finished(folder: Path, state: Path, digest: str) -> dict[str, dict[str, Any]]:
    content = read_json(state, DataError)
    shards = content.get("shards") if isinstance(content, dict) else None
    keys = ("rows_asked", "bytes", "unreadable")
    if not isinstance(shards, dict) or not all(
        isinstance(entry, dict) and all(key in entry for key in keys) for entry in shards.values()
    ):
        raise DataError(f"{state}: damaged; begin anew with --overwrite (overwrite=True).")
    if content.get("digest") != digest:
        raise DataError(
            f"{folder}: was begun with other arguments, another release or another version; finish it with those, "
            "name another folder, or begin anew with --overwrite (overwrite=True)."
        )
    return shards
