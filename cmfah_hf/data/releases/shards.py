"""Parquet shards of a prepared data set, written atomically, and the state of an interrupted run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmfah_hf.atomic import atomic_file, write_text
from cmfah_hf.data.dataset_card import CARD_NAME
from cmfah_hf.data.folder_in_work import DATA
from cmfah_hf.data.releases.images import ReleasedImages, iterate_images
from cmfah_hf.data.releases.table import ReleaseTable
from cmfah_hf.documents import read_bytes, read_json
from cmfah_hf.errors import DataError

STATE_NAME = ".prepare.json"
PARTS = ("train", "query", "rest")
# A line that only cards of this package have.
_MARK = "\ncmfah data prepare "
# With images of 100 kB, a row group, which readers hold in memory, has 10 MB.
_ROWS_PER_GROUP = {True: 100, False: 2_000}


@dataclass(frozen=True)
class Writing:
    """Options of writing shards and checking images.

    Args:
        verify: Decode every image; rows whose image cannot be decoded are left out.
        keep_broken: Keep these rows, with the bytes as they are, even if empty.
        skip_missing: Leave out rows whose image is missing, instead of an error.
        overwrite: Replace the files of an earlier preparation.
        rows_per_shard: Rows per file. None: 2,000 with images, 50,000 without.
        progress: Show a progress bar.
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
    folder: Path, table: ReleaseTable, shard: Shard, images: ReleasedImages | None, keep_broken: bool, bar: Any
) -> dict[str, Any]:
    """Writes one file atomically; returns its entry in the state."""
    import pyarrow.parquet as pq

    path = folder / DATA / shard.name
    unreadable: list[tuple[str, str]] = []
    schema = features_of(table, images is not None).arrow_schema
    group = _ROWS_PER_GROUP[images is not None]
    with atomic_file(path, DataError) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for first in range(0, len(shard.rows), group):
            rows, values = shard.rows[first : first + group], None
            planned = len(rows)
            if images is not None:
                found = list(iterate_images(images, table, rows))
                unreadable += [(table.ids[image.row], image.reason) for image in found if image.reason is not None]
                kept = [image for image in found if image.reason is None or keep_broken]
                rows = np.array([image.row for image in kept], np.int64)
                values = [{"bytes": i.content, "path": table.images[i.row].rpartition("/")[2]} for i in kept]
            if len(rows):
                writer.write_table(_arrow_table(table, rows, values, schema), row_group_size=group)
            bar.update(planned)
    return {"rows_asked": len(shard.rows), "bytes": path.stat().st_size, "unreadable": unreadable}


def features_of(table: ReleaseTable, has_images: bool) -> Any:
    """The columns of a prepared data set."""
    import datasets

    columns = {
        "id": datasets.Value("string"),
        "image": datasets.Image(),
        "text": datasets.Value("string"),
        "tags": datasets.List(datasets.Value("string")),
        "labels": datasets.List(datasets.ClassLabel(names=list(table.class_names))),
    }
    columns |= {name: datasets.List(datasets.Value("float32")) for name in table.features}
    return datasets.Features({name: kind for name, kind in columns.items() if has_images or name != "image"})


def _arrow_table(table: ReleaseTable, rows: np.ndarray, images: list[dict[str, Any]] | None, schema: Any) -> Any:
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
    for name, values_ND in table.features.items():
        width = values_ND.shape[1]
        offsets = np.arange(len(rows) + 1, dtype=np.int32) * width
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values_ND[rows].ravel()))
    if images is not None:
        columns["image"] = pa.array(images, schema.field("image").type)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def enter_folder(folder: Path, digest: str, overwrite: bool) -> dict[str, dict[str, Any]]:
    """The finished shards of an interrupted run. Removes other prepared files, and refuses a folder with anything else.

    The caller has to hold the folder's lock (`folder_in_work`). The state is written before anything is removed, so
    that a run that is killed here can be resumed.
    """
    card, state = folder / CARD_NAME, folder / STATE_NAME
    shards = [path for part in PARTS for path in (folder / DATA).glob(f"{part}-*.parquet")]
    if card.exists() and _MARK not in read_bytes(card, DataError).decode("utf-8", "replace"):
        raise DataError(f"{card}: was not written by this command and is not overwritten; name another folder.")
    if shards and not card.exists() and not state.exists():
        raise DataError(
            f"{shards[0]}: was not written by this command and is not overwritten; name another folder, or remove it."
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
        raise DataError(f"{state}: damaged; start again with --overwrite (overwrite=True).")
    if content.get("digest") != digest:
        raise DataError(
            f"{folder}: was started with other arguments, another release or another version; finish it with those, "
            "name another folder, or start again with --overwrite (overwrite=True)."
        )
    return shards
