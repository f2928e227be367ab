"""Writing a released data set as Parquet shards with a card: whole or resumable, never half.

The layout, which `load_image_text`, `datasets.load_dataset` and the Hub read:

    README.md                                the card; its `configs` say which files are which split
    data/train-00000-of-0000N.parquet        and query-, and rest-; `database` is train and rest
"""

import dataclasses
import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmfah_hf.atomic import write_text
from cmfah_hf.data.dataset_card import CARD_NAME
from cmfah_hf.data.folder_in_work import DATA, folder_in_work
from cmfah_hf.data.releases.card import Provenance, make_card
from cmfah_hf.data.releases.files import ReleaseFiles
from cmfah_hf.data.releases.pictures import Pictures, find_pictures_of, iterate_pictures
from cmfah_hf.data.releases.protocols import Split
from cmfah_hf.data.releases.shards import (
    PARTS,
    STATE_NAME,
    Shard,
    Writing,
    enter_folder,
    write_shard,
)
from cmfah_hf.data.releases.table import Corrections, ReleaseTable
from cmfah_hf.errors import DataError

# With pictures of 100 kB, a file has 200 MB.
_ROWS_PER_SHARD = {True: 2_000, False: 50_000}


@dataclass(frozen=True)
class PreparedReport:
    """What was checked and written.

    Args:
        dataset: `mirflickr25k` or `nus-wide`.
        out: The folder; None if it was only checked.
        pictures: Whether there is a column `image`.
        rows: Of `train`, `query` and `database`.
        ids_sha256: Of each split's ids, a line each.
        classes: How many there are.
        tag_ones: Tags over all rows that were selected.
        label_ones: Labels, likewise.
        empty_texts: Rows without a tag, of those selected.
        missing: Rows left out because their picture is not there.
        unreadable: Ids and reasons of the rows whose picture cannot be read.
        corrections: What was put right or differs.
        shards: Files written in all.
        shards_kept: Files of those that an interrupted run before had finished.
    """

    dataset: str
    out: str | None
    pictures: bool
    rows: dict[str, int]
    ids_sha256: dict[str, str]
    classes: int
    tag_ones: int
    label_ones: int
    empty_texts: int
    missing: int
    unreadable: list[tuple[str, str]]
    corrections: list[str]
    shards: int
    shards_kept: int

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def prepare(
    files: ReleaseFiles,
    table: ReleaseTable,
    rows: np.ndarray,
    parts: Split,
    out: str | os.PathLike | None,
    provenance: Provenance,
    settings: Mapping[str, Any],
    facts: Sequence[str],
    corrections: Corrections,
    writing: Writing | None = None,
) -> PreparedReport:
    """Write the chosen rows of a release, or go on where an interrupted run stopped.

    The split is made before pictures are looked at, so that a missing one changes no other row's side.

    Args:
        files: Where the pictures are.
        table: Of the release.
        rows: The numbers of the rows that are taken, in the release's order.
        parts: Their division; its numbers count within `rows`.
        out: The folder. None: everything is checked and nothing is written.
        provenance: For the card.
        settings: The arguments that decide what is written; for the card and to know a run again.
        facts: For the card.
        corrections: What was put right up to now; what is found here is added.
        writing: How.

    Raises:
        DataError: If pictures are missing, the folder holds something else, or it cannot be written to. Shards that are
            finished then stay, and the same call goes on after them.
    """
    writing = writing or Writing()
    if writing.rows_per_shard is not None and writing.rows_per_shard < 1:
        raise DataError(f"rows_per_shard={writing.rows_per_shard}: a file has a row at least.")
    keys, has_pictures, missing = find_pictures_of(files, table, rows, writing.skip_missing, corrections)
    split_rows = {name: rows[getattr(parts, name)] for name in PARTS}
    shards = _plan(split_rows, missing, writing.rows_per_shard or _ROWS_PER_SHARD[has_pictures])
    pictures = Pictures(files, keys, writing.verify) if has_pictures else None

    def report(unreadable: list[tuple[str, str]], kept_before: int) -> PreparedReport:
        if unreadable:
            done = "kept as they are" if writing.keep_broken else "their rows are left out"
            corrections.say(f"{len(unreadable):,} pictures cannot be decoded: {done}.")
        gone = {table.ids[row] for row in missing}
        gone |= set() if writing.keep_broken else {row_id for row_id, _ in unreadable}
        ids = _ids_of_splits(table, split_rows, gone)
        return PreparedReport(
            dataset=settings["dataset"],
            out=None if out is None else str(out),
            pictures=has_pictures,
            rows={name: len(part) for name, part in ids.items()},
            ids_sha256={name: hashlib.sha256("\n".join(part).encode()).hexdigest() for name, part in ids.items()},
            classes=len(table.class_names),
            tag_ones=int(table.tags.lengths[rows].sum()),
            label_ones=int(table.labels.lengths[rows].sum()),
            empty_texts=int((table.tags.lengths[rows] == 0).sum()),
            missing=len(missing),
            unreadable=unreadable,
            corrections=list(corrections.said),
            shards=len(shards),
            shards_kept=kept_before,
        )

    if out is None:
        return report(_check_pictures(table, shards, pictures, writing), 0)
    folder = Path(out).expanduser()
    digest = _digest(settings, table, missing, has_pictures, writing)
    with folder_in_work(folder):
        done = enter_folder(folder, digest, writing.overwrite)
        kept_before = len(done)
        with _bar(shards, sum(entry["rows_asked"] for entry in done.values()), writing) as bar:
            for shard in shards:
                if shard.name not in done:
                    done[shard.name] = write_shard(folder, table, shard, pictures, writing.keep_broken, bar)
                    write_text(folder / STATE_NAME, json.dumps({"digest": digest, "shards": done}), DataError)
        unreadable = [tuple(pair) for shard in shards for pair in done[shard.name]["unreadable"]]
        written = report(unreadable, kept_before)
        card = make_card(
            provenance,
            settings,
            facts,
            written.corrections,
            written.rows,
            written.ids_sha256,
            _data_files(shards),
            table.class_names,
            has_pictures,
            [] if writing.keep_broken else unreadable,
            _command(settings, writing),
            _version(),
        )
        write_text(folder / CARD_NAME, card, DataError)
        (folder / STATE_NAME).unlink()
    return written


def _plan(split_rows: Mapping[str, np.ndarray], missing: np.ndarray, rows_per_shard: int) -> list[Shard]:
    shards = []
    for part, rows in split_rows.items():
        rows = rows[~np.isin(rows, missing)]
        count = -(-len(rows) // rows_per_shard)
        if not count and part != "rest":
            raise DataError(f"no row of the split {part!r} has a picture; add the pictures, or choose another split.")
        # Files of nearly one size, rather than a last one with what is left.
        bounds = [len(rows) * number // count for number in range(count + 1)] if count else [0]
        shards += [
            Shard(f"{part}-{number:05d}-of-{count:05d}.parquet", rows[bounds[number] : bounds[number + 1]])
            for number in range(count)
        ]
    return shards


def _digest(
    settings: Mapping[str, Any], table: ReleaseTable, missing: np.ndarray, has_pictures: bool, writing: Writing
) -> str:
    import datasets
    import pyarrow as pa

    how = {k: v for k, v in dataclasses.asdict(writing).items() if k not in ("overwrite", "progress")}
    what = [dict(settings), how, table.digest(), missing.tolist(), has_pictures]
    versions = [_version(), pa.__version__, datasets.__version__]
    return hashlib.sha256(json.dumps([what, versions], sort_keys=True).encode()).hexdigest()


def _ids_of_splits(table: ReleaseTable, split_rows: Mapping[str, np.ndarray], gone: set[str]) -> dict[str, list[str]]:
    ids = {name: [i for i in (table.ids[row] for row in part) if i not in gone] for name, part in split_rows.items()}
    ids["database"] = ids["train"] + ids.pop("rest")
    for name in ("train", "query"):
        if not ids[name]:
            raise DataError(f"Not one picture of the split {name!r} can be read; see the warnings above.")
    return ids


def _check_pictures(
    table: ReleaseTable, shards: Sequence[Shard], pictures: Pictures | None, writing: Writing
) -> list[tuple[str, str]]:
    """Ids and reasons of the pictures that cannot be read."""
    unreadable = []
    with _bar(shards, 0, writing) as bar:
        for shard in shards if pictures is not None else ():
            for picture in iterate_pictures(pictures, table, shard.rows):
                if picture.reason is not None:
                    unreadable.append((table.ids[picture.row], picture.reason))
                bar.update()
    return unreadable


def _data_files(shards: Sequence[Shard]) -> dict[str, list[str]]:
    patterns = {part: f"{DATA}/{part}-*.parquet" for part in PARTS}
    # A pattern that fits no file is an error to `datasets`.
    has_rest = any(shard.name.startswith("rest-") for shard in shards)
    database = [patterns["train"], patterns["rest"]] if has_rest else [patterns["train"]]
    return {"train": [patterns["train"]], "query": [patterns["query"]], "database": database}


def _command(settings: Mapping[str, Any], writing: Writing) -> str:
    words = ["cmfah", "data", "prepare", str(settings["dataset"]), "--root", "RELEASE", "--out", "FOLDER"]
    for name, value in settings.items():
        if name != "dataset" and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    words += ["--skip-missing"] * writing.skip_missing + ["--keep-broken"] * writing.keep_broken
    words += ["--no-verify"] * (not writing.verify)
    if writing.rows_per_shard:
        words += ["--rows-per-shard", str(writing.rows_per_shard)]
    return shlex.join(words)


def _bar(shards: Sequence[Shard], done: int, writing: Writing) -> Any:
    from huggingface_hub.utils import tqdm

    total = sum(len(shard.rows) for shard in shards)
    # None: only where somebody looks.
    return tqdm(total=total, initial=done, unit="row", disable=None if writing.progress else True)


def _version() -> str:
    import cmfah_hf

    return cmfah_hf.__version__
