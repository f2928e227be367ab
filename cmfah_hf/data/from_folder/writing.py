"""Writing of a described folder: metadata next to the images, or a new folder that shares their bytes."""

import errno
import hashlib
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from cmfah_hf.atomic import ANYTHING, atomic_file, atomic_folder, regular_target, write_text
from cmfah_hf.data.from_folder.record import FolderRecord, digest_of_file
from cmfah_hf.data.from_folder.report import FolderReport
from cmfah_hf.data.images.files import RECORD_NAME
from cmfah_hf.data.sources.folder import find_splits
from cmfah_hf.errors import DataError

_METADATA = "metadata.jsonl"
# Files of one split in the folder itself.
_FIRST = "train"
# A disk that has no hard links, another disk, too many links, and files of others.
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}


def metadata_name(split: str) -> str:
    """The metadata file of a split, if all splits are in one folder."""
    return _METADATA if split == _FIRST else f"metadata.{split}.jsonl"


def check_in_place(folder: Path) -> None:
    """Refuses a folder whose metadata is of another kind than `write_in_place` writes."""
    for file in find_splits(folder).values():
        if file.parent != folder or file.suffix != ".jsonl":
            raise DataError(f"{file}: describes these images already; load the folder as it is, or name an --output.")


def write_in_place(
    folder: Path, splits: Mapping[str, str], overwrite: bool, record: FolderRecord, report: FolderReport
) -> None:
    """Writes a metadata file for each split into the folder of the images, and the record by which it is known again.

    Args:
        folder: The folder.
        splits: The metadata of each split.
        overwrite: Whether other metadata there is replaced.
        record: The record, without its files.
        report: Where the files are named.
    """
    contents = {folder / metadata_name(split): text for split, text in splits.items()}
    former = [file for file in find_splits(folder).values() if file not in contents]
    report.written = [str(path) for path in contents]
    digests = {path.name: [hashlib.sha256(text.encode()).hexdigest()] for path, text in contents.items()}
    if not former and all(_has_content(path, text) for path, text in contents.items()):
        report.unchanged = True
        text = replace(record, files=digests).as_text()
        if not _has_content(folder / RECORD_NAME, text):
            write_text(folder / RECORD_NAME, text, DataError)
        return
    there = next((path for path in [*contents, *former] if path.exists()), None)
    if there is not None and not overwrite:
        raise DataError(
            f"{there}: is there already, with other rows, and not as this command wrote it; pass --overwrite, or name "
            "an --output."
        )
    allowed = {path.name: [*digests.get(path.name, [None]), digest_of_file(path)] for path in [*contents, *former]}
    with ExitStack() as open_files:
        for path, text in contents.items():
            temporary = open_files.enter_context(atomic_file(path, DataError))
            temporary.write_text(text, encoding="utf-8", newline="\n")
        # The last one is there first: until the others are, it knows the former files too.
        temporary = open_files.enter_context(atomic_file(folder / RECORD_NAME, DataError))
        temporary.write_text(replace(record, files=allowed).as_text(), encoding="utf-8", newline="\n")
    for path in former:
        path.unlink()


def _has_content(path: Path, text: str) -> bool:
    content = text.encode()
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def check_output(output: Path, folder: Path) -> None:
    """Refuses an output inside the folder, or around it."""
    if output.exists() and not output.is_dir():
        regular_target(output, DataError)
        raise DataError(f"{output}: is a file; name a folder.")
    if output.is_relative_to(folder) or folder.is_relative_to(output):
        raise DataError(f"{output}: the output must be outside {folder}; name another folder.")


def write_folder(
    output: Path,
    splits: Mapping[str, str],
    images: Mapping[str, Path],
    overwrite: bool,
    copy: bool,
    report: FolderReport,
) -> None:
    """Writes a folder with a subfolder for each split, with hard links to the images where the disk allows them.

    Args:
        output: The folder; it appears completely or not at all.
        splits: The metadata of each split.
        images: The images by their names in `output`, with the split.
        overwrite: Whether a data set there is replaced.
        copy: Copy the images in any case.
    """
    report.written = [str(output / split / _METADATA) for split in splits]
    if output.is_dir() and any(output.iterdir()):
        if _is_same(output, splits, images, copy):
            report.unchanged = True
            return
        if not overwrite:
            raise DataError(f"{output}: holds something else already; pass --overwrite, or name another folder.")
        _refuse_other_content(output)
    with atomic_folder(output, DataError, ANYTHING) as whole:
        for split, text in splits.items():
            (whole / split).mkdir()
            (whole / split / _METADATA).write_text(text, encoding="utf-8", newline="\n")
        for name, source in images.items():
            target = whole / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not copy and _is_linked(source, target):
                report.linked += 1
            else:
                shutil.copy2(source, target)
                report.copied += 1


def _is_linked(source: Path, target: Path) -> bool:
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return False
    return True


def _is_same(output: Path, splits: Mapping[str, str], images: Mapping[str, Path], copy: bool) -> bool:
    """Whether a folder holds just this: its metadata, and images with the same bytes or, as copies, times."""
    present = {path.relative_to(output).as_posix() for path in output.rglob("*") if not path.is_dir()}
    if present != {*images, *(f"{split}/{_METADATA}" for split in splits)}:
        return False
    if not all(_has_content(output / split / _METADATA, text) for split, text in splits.items()):
        return False
    return all(_is_current(output / name, source, copy) for name, source in images.items())


def _is_current(target: Path, source: Path, copy: bool) -> bool:
    own, other = target.stat(), source.stat()
    if os.path.samestat(own, other):
        return not copy
    return (own.st_size, own.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def _refuse_other_content(output: Path) -> None:
    """Refuses to replace a folder that is no data set of this form."""
    splits = find_splits(output)
    own = {file.parent for file in splits.values()}
    other = next((entry for entry in output.iterdir() if entry not in own), None)
    if other is not None:
        raise DataError(f"{other}: is no part of a data set, so the folder is not replaced; name another folder.")
