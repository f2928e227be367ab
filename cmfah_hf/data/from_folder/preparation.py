"""A data set from a folder of images as it is: descriptions, splits, metadata."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cmfah_hf.data.from_folder.held_out import hold_out
from cmfah_hf.data.from_folder.images import DescribedImage, describe_images, digests_of_copies
from cmfah_hf.data.from_folder.layout import FOLDERS, Layout, find_layout
from cmfah_hf.data.from_folder.record import FolderRecord, Settings, read_record
from cmfah_hf.data.from_folder.report import FolderReport
from cmfah_hf.data.from_folder.shards import divide_shards
from cmfah_hf.data.from_folder.tables import TableRequest, TableRows, read_table
from cmfah_hf.data.from_folder.writing import check_in_place, check_output, write_folder, write_in_place
from cmfah_hf.data.images.files import describe_skipped, list_image_files
from cmfah_hf.data.rows.columns import LABELS_NAMES
from cmfah_hf.data.sources.folder import find_splits
from cmfah_hf.data.sources.request import is_metadata_name, usual_order
from cmfah_hf.data.sources.webdataset import shard_splits
from cmfah_hf.errors import DataError

_TRAIN, _QUERY = "train", "query"


def prepare_folder(
    folder: str | os.PathLike,
    output: str | os.PathLike | None = None,
    table: TableRequest | None = None,
    folders: str | None = None,
    queries: float | None = None,
    seed: int | None = None,
    copy: bool = False,
    hidden: bool | None = None,
    verify: bool = True,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> FolderReport:
    """Describes the images of a folder, and writes the metadata that `load_image_text` reads.

    The text of an image comes from the first of these that has one: the table, a `.txt` with its name, a `.json` (also
    that of Google Takeout), a `.xmp`, and XMP, IPTC, EXIF and PNG texts in the image; else its keywords are its text.
    Labels come from the table, a `.json`, or the folders. Keywords, dates and years become columns, and so do all
    further columns of the table, which precede those of the same name.

    Metadata that an earlier call wrote into the folder is brought up to date: each image keeps its split, queries are
    drawn among new images only, and images that are gone lose their row. The settings that are not given are those of
    the earlier call.

    WebDataset shards are left as they are. A file `cmfah-shards.json` beside them says which samples are the queries:
    by a hash of seed, shard and key.

    Args:
        folder: The folder.
        output: A folder to write, with a subfolder for each split and hard links to the images, or copies of them where
            the disk has no links. Default: metadata files in `folder`.
        table: A table with columns of any names.
        folders: Whether folders are classes: `auto`, the default, `classes` or `ignore`, see `find_layout`.
        queries: The share of images to hold out as the split `query`, unless the folders divide it off already.
            Default: 0.1.
        seed: The seed of their draw. Default: 0.
        copy: Copy the images to `output`.
        hidden: Include hidden files and folders.
        verify: Decode each image, to leave out those that are cut short.
        overwrite: Replace metadata, or an output, with other content. With `queries` or `seed`, all images are drawn
            anew.
        progress: Called with 1 for each image.

    Raises:
        DataError: If there is no image, the table lacks a column, or something else would be overwritten. Sidecars and
            images that cannot be read are counted instead.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - links stay as they are
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; give the folder of the images.")
    if folders is not None and folders not in FOLDERS:
        raise DataError(f"folders cannot be {folders!r}; give one of {', '.join(FOLDERS)}.")
    if shards := shard_splits(folder):
        if output is not None or table is not None:
            raise DataError(
                f"{folder}: holds shards, which are divided where they are; leave out the output and the table."
            )
        return divide_shards(folder, shards, queries, seed, overwrite, progress)
    target = None if output is None else Path(os.path.abspath(output))  # noqa: PTH100
    check_in_place(folder) if target is None else check_output(target, folder)
    former = FolderRecord() if target is not None else _former(folder, queries, seed, overwrite)
    given: dict[str, Any] = {"queries": queries, "seed": seed, "folders": folders, "hidden": hidden, "table": table}
    settings = replace(former.settings, **{name: value for name, value in given.items() if value is not None})
    report = FolderReport(str(folder), str(target or folder))
    files = _find_images(folder, settings.hidden, report)
    rows = _read_table(settings.table, files, report)
    images = describe_images(files, rows.by_image, report, verify, progress)
    if not images:
        raise DataError(f"{folder}: none of its {len(files):,} images can be read ({'; '.join(report.named[:1])})")
    layout = find_layout(list(images), settings.folders, former.are_splits)
    labels = {name: image.labels or layout.labels.get(name, ()) for name, image in images.items()}
    copies = digests_of_copies({name: image.path for name, image in images.items()})
    report.identical_files = len(copies)
    splits = _divide(images, labels, layout, copies, settings, {**former.gone, **former.splits})
    _count(report, images, labels, layout, splits)
    gone = {name: split for name, split in former.splits.items() if name not in splits}
    report.as_before, report.gone = len(former.splits) - len(gone), len(gone)
    report.new = len(images) - report.as_before
    names = dict(layout.below) if target is not None else {name: name for name in images}
    texts = _metadata(images, labels, splits, names, rows)
    if target is None:
        if settings.folders == "auto" and layout.labels:  # an image elsewhere does not end that
            settings = replace(settings, folders="classes")
        gone |= {name: split for name, split in former.gone.items() if name not in splits}
        record = FolderRecord(settings, bool(layout.splits), splits=splits, gone=gone)
        write_in_place(folder, texts, overwrite or bool(former.splits), record, report)
    else:
        places = {f"{splits[name]}/{names[name]}": image.path for name, image in images.items()}
        write_folder(target, texts, places, overwrite, copy, report)
    return report


def _former(folder: Path, queries: float | None, seed: int | None, overwrite: bool) -> FolderRecord:
    """The record of the metadata that an earlier call wrote, if the images keep its splits; else an empty one.

    Raises a `DataError` if the splits were drawn otherwise than requested now.
    """
    files = list(find_splits(folder).values())
    is_anew = overwrite and not (queries is None and seed is None)
    record = read_record(folder) if files and not is_anew else None
    if record is None or not (overwrite or record.wrote(files, folder)):
        return FolderRecord()
    drawn = record.settings
    if queries not in (None, drawn.queries) or seed not in (None, drawn.seed):
        raise DataError(
            f"{files[0]}: its queries were drawn with --queries {drawn.queries:g} and --seed {drawn.seed}; leave these "
            "out to keep them, or pass --overwrite too, to draw all anew."
        )
    return record


def _find_images(folder: Path, hidden: bool, report: FolderReport) -> dict[str, Path]:
    found = list_image_files(folder, hidden)
    report.skipped = {**found.skipped}
    for place, reason in found.closed.items():
        report.note("no permission", f"{place}: cannot be read ({reason}); change its permissions.")
    own = sum(is_metadata_name(entry.name) for entry in folder.iterdir())
    report.skipped[".jsonl"] = max(0, report.skipped.get(".jsonl", 0) - own)
    if not found.files:
        skipped = {reason: count for reason, count in report.skipped.items() if count}
        others = f" ({describe_skipped(skipped)} there)" if skipped else ""
        raise DataError(f"{folder}: no image below this folder{others}; give the folder that holds them.")
    return {path.relative_to(folder).as_posix(): path for path in found.files}


def _read_table(request: TableRequest | None, files: Mapping[str, Path], report: FolderReport) -> TableRows:
    if request is None:
        return TableRows()
    rows = read_table(request, list(files))
    counts = {
        "table rows without an image": rows.without_image,
        "table rows that fit several images": rows.ambiguous,
        **rows.further.problems,
    }
    report.problems.update({kind: count for kind, count in counts.items() if count})
    report.table_columns = rows.further.names
    for problem in rows.named:
        report.name(problem)
    if not rows.by_image:
        raise DataError(
            f"{request.path}: none of its rows names an image of the folder"
            + (f" ({rows.named[0]})" if rows.named else "")
        )
    return rows


def _divide(
    images: Mapping[str, DescribedImage],
    labels: Mapping[str, tuple[str, ...]],
    layout: Layout,
    copies: Mapping[str, str],
    settings: Settings,
    former: Mapping[str, str],
) -> dict[str, str]:
    """The split of each image: the one it had before, that of its folder, or drawn."""
    splits = {name: former.get(name) or layout.splits.get(name, _TRAIN) for name in images}
    if _QUERY not in layout.splits.values():
        own = [name for name, split in splits.items() if split in (_TRAIN, _QUERY)]
        described = [name for name in own if images[name].text_from or labels[name]]
        held_before = {name: former[name] == _QUERY for name in own if name in former}
        held_out = hold_out(
            own, {name: labels[name] for name in own}, described, copies, settings.queries, settings.seed, held_before
        )
        splits |= dict.fromkeys(held_out, _QUERY)
    return splits


def _count(
    report: FolderReport,
    images: Mapping[str, DescribedImage],
    labels: Mapping[str, tuple[str, ...]],
    layout: Layout,
    splits: Mapping[str, str],
) -> None:
    report.images = len(images)
    counts = {split: sum(own == split for own in splits.values()) for split in set(splits.values())}
    report.splits = {split: counts[split] for split in sorted(counts, key=usual_order)}
    for name, image in images.items():
        if image.text_from is None:
            report.without_text += 1
        else:
            report.text_from[image.text_from] += 1
        kind = image.labels_from or ("folders" if name in layout.labels else None)
        if kind is not None:
            report.labels_from[kind] += 1
        report.with_date += image.date is not None
        report.with_keywords += bool(image.keywords)
    report.classes = len({label for own in labels.values() for label in own})


def _metadata(
    images: Mapping[str, DescribedImage],
    labels: Mapping[str, tuple[str, ...]],
    splits: Mapping[str, str],
    names: Mapping[str, str],
    table: TableRows,
) -> dict[str, str]:
    """The metadata file of each split: a column is in all rows or in none."""
    further = dict.fromkeys(table.further.names.values())
    has_labels, has_keywords, has_dates = (
        any(labels.values()), any(own.keywords for own in images.values()), any(own.date for own in images.values())
    )  # fmt: skip
    has_labels |= any(name.lower() in LABELS_NAMES for name in further)  # otherwise that column is read as the labels
    lines: dict[str, list[str]] = {}
    for name, image in images.items():
        row: dict[str, Any] = {"file_name": names[name], "text": image.text}
        if has_labels:
            row["labels"] = list(labels[name])
        if has_keywords:
            row["keywords"] = list(image.keywords)
        if has_dates:
            row |= {"date": image.date, "year": int(image.date[:4]) if image.date else None}
        row |= table.further.by_image.get(name, further)
        lines.setdefault(splits[name], []).append(json.dumps(row, ensure_ascii=False) + "\n")
    return {split: "".join(lines[split]) for split in sorted(lines, key=usual_order)}
