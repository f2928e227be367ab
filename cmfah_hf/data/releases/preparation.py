"""Writing of a released data set as Parquet shards with a card; an interrupted run can be resumed.

The layout, which `load_image_text`, `datasets.load_dataset` and the Hub read:

    README.md                                the card; its `configs` map splits to files
    data/train-00000-of-0000N.parquet        and query-, and mostly rest-; `database` is then train and rest
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
from cmfah_hf.data.releases.images import ReleasedImages, find_images, iterate_images
from cmfah_hf.data.releases.protocols import Split
from cmfah_hf.data.releases.shards import PARTS, STATE_NAME, Shard, Writing, enter_folder, write_shard
from cmfah_hf.data.releases.table import Corrections, ReleaseTable
from cmfah_hf.errors import DataError

# With images of 100 kB, a file has 200 MB.
_ROWS_PER_SHARD = {True: 2_000, False: 50_000}


@dataclass(frozen=True)
class PreparedReport:
    """Result of a preparation."""

    dataset: str  # `mirflickr25k`, `nus-wide` or `wikipedia`
    out: str | None  # None if the release was only checked
    images: bool
    rows: dict[str, int]  # of `train`, `query` and, unless the release searches `train`, `database`
    ids_sha256: dict[str, str]  # of each split's ids, one per line
    classes: int
    tag_ones: int  # tags over all selected rows
    label_ones: int
    empty_texts: int
    missing: int  # rows left out because their image is missing
    unreadable: list[tuple[str, str]]  # ids and reasons
    corrections: list[str]
    shards: int
    shards_kept: int  # finished by an interrupted run before

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
    """Writes the selected rows of a release, or resumes an interrupted run.

    The split does not depend on the images, so that a missing one does not move other rows.

    Args:
        files, table: The release.
        rows: The numbers of the selected rows, in the release's order.
        parts: Their split; its numbers are positions in `rows`.
        out: The folder. None: everything is checked and nothing is written.
        settings: The arguments that decide what is written; for the card, and to recognize an interrupted run.
        provenance, facts: For the card.
        corrections: Those so far; more are added here.
        writing: Options of writing.
    """
    writing = writing or Writing()
    if writing.rows_per_shard is not None and writing.rows_per_shard < 1:
        raise DataError(f"rows_per_shard={writing.rows_per_shard}: a file needs at least one row.")
    keys, has_images, missing = find_images(files, table, rows, writing.skip_missing, corrections)
    split_rows = {name: rows[part] for name in PARTS if (part := getattr(parts, name)) is not None}
    shards = _plan(split_rows, missing, writing.rows_per_shard or _ROWS_PER_SHARD[has_images])
    images = ReleasedImages(files, keys, writing.verify) if has_images else None

    def report(unreadable: list[tuple[str, str]], kept_before: int) -> PreparedReport:
        if unreadable:
            done = "kept as they are" if writing.keep_broken else "their rows are left out"
            corrections.add(f"{len(unreadable):,} images cannot be decoded: {done}.")
        gone = {table.ids[row] for row in missing}
        gone |= set() if writing.keep_broken else {row_id for row_id, _ in unreadable}
        ids = _ids_of_splits(table, split_rows, gone)
        return PreparedReport(
            dataset=settings["dataset"],
            out=None if out is None else str(out),
            images=has_images,
            rows={name: len(part) for name, part in ids.items()},
            ids_sha256={name: hashlib.sha256("\n".join(part).encode()).hexdigest() for name, part in ids.items()},
            classes=len(table.class_names),
            tag_ones=int(table.tags.lengths[rows].sum()),
            label_ones=int(table.labels.lengths[rows].sum()),
            empty_texts=int((table.tags.lengths[rows] == 0).sum()),
            missing=len(missing),
            unreadable=unreadable,
            corrections=list(corrections.lines),
            shards=len(shards),
            shards_kept=kept_before,
        )

    if out is None:
        return report(_unreadable_images(table, shards, images, writing), 0)
    folder = Path(out).expanduser()
    digest = _digest(settings, table, missing, has_images, writing)
    with folder_in_work(folder):
        done = enter_folder(folder, digest, writing.overwrite)
        kept_before = len(done)
        with _bar(shards, sum(entry["rows_asked"] for entry in done.values()), writing) as bar:
            for shard in shards:
                if shard.name not in done:
                    done[shard.name] = write_shard(folder, table, shard, images, writing.keep_broken, bar)
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
            _data_files(shards, "rest" in split_rows),
            table.class_names,
            has_images,
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
            raise DataError(f"no row of the split {part!r} has an image; add the images, or choose another split.")
        # Files of nearly equal size, rather than a small last one.
        bounds = [len(rows) * number // count for number in range(count + 1)] if count else [0]
        shards += [
            Shard(f"{part}-{number:05d}-of-{count:05d}.parquet", rows[bounds[number] : bounds[number + 1]])
            for number in range(count)
        ]
    return shards


def _digest(
    settings: Mapping[str, Any], table: ReleaseTable, missing: np.ndarray, has_images: bool, writing: Writing
) -> str:
    import datasets
    import pyarrow as pa

    how = {k: v for k, v in dataclasses.asdict(writing).items() if k not in ("overwrite", "progress")}
    what = [dict(settings), how, table.digest(), missing.tolist(), has_images]
    versions = [_version(), pa.__version__, datasets.__version__]
    return hashlib.sha256(json.dumps([what, versions], sort_keys=True).encode()).hexdigest()


def _ids_of_splits(table: ReleaseTable, split_rows: Mapping[str, np.ndarray], gone: set[str]) -> dict[str, list[str]]:
    ids = {name: [i for i in (table.ids[row] for row in part) if i not in gone] for name, part in split_rows.items()}
    if "rest" in ids:
        ids["database"] = ids["train"] + ids.pop("rest")
    for name in ("train", "query"):
        if not ids[name]:
            raise DataError(f"no image of the split {name!r} can be read; see the warnings above.")
    return ids


def _unreadable_images(
    table: ReleaseTable, shards: Sequence[Shard], images: ReleasedImages | None, writing: Writing
) -> list[tuple[str, str]]:
    """Ids and reasons of the images that cannot be read."""
    unreadable: list[tuple[str, str]] = []
    if images is None:
        return unreadable
    with _bar(shards, 0, writing) as bar:
        for shard in shards:
            for image in iterate_images(images, table, shard.rows):
                if image.reason is not None:
                    unreadable.append((table.ids[image.row], image.reason))
                bar.update()
    return unreadable


def _data_files(shards: Sequence[Shard], has_database: bool) -> dict[str, list[str]]:
    patterns = {part: f"{DATA}/{part}-*.parquet" for part in PARTS}
    files = {"train": [patterns["train"]], "query": [patterns["query"]]}
    if not has_database:
        return files
    # `datasets` raises an error for a pattern without files.
    has_rest = any(shard.name.startswith("rest-") for shard in shards)
    return files | {"database": [patterns["train"], patterns["rest"]] if has_rest else [patterns["train"]]}


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
    # None: only in a terminal.
    return tqdm(total=total, initial=done, unit="row", disable=None if writing.progress else True)


def _version() -> str:
    import cmfah_hf

    return cmfah_hf.__version__
