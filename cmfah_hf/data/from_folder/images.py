"""The images of a folder with everything that their sidecars, their own metadata and a table say about them."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from cmfah_hf.atomic import sha256_of
from cmfah_hf.data.from_folder.description import Description, cleaned
from cmfah_hf.data.from_folder.embedded import read_embedded
from cmfah_hf.data.from_folder.report import FolderReport
from cmfah_hf.data.from_folder.sidecars import Sidecar, Sidecars, read_sidecar
from cmfah_hf.data.sources.metadata import normal_name
from cmfah_hf.errors import DataError, ImageError

_THREADS = 4
_IN_WORK = 64
_EMBEDDED = {"xmp": "embedded xmp"}


@dataclass(frozen=True)
class DescribedImage:
    """An image with its text and what else is known of it.

    Attributes:
        path: The file.
        captions: Its captions.
        text_from: The source of its text, as `FolderReport.text_from` names it; `None` without a text.
        labels, labels_from: Its classes and their source.
        keywords: The keywords of all sources.
        date: When it was taken.
    """

    path: Path
    captions: tuple[str, ...]
    text_from: str | None
    labels: tuple[str, ...]
    labels_from: str | None
    keywords: tuple[str, ...]
    date: str | None

    @property
    def text(self) -> str | list[str]:
        """The caption, several captions as a list, or without any the keywords."""
        if len(self.captions) > 1:
            return list(self.captions)
        return self.captions[0] if self.captions else " ".join(self.keywords)


class _Read(NamedTuple):
    described: DescribedImage | None
    unreadable: str | None
    problems: list[tuple[str, str]]


def describe_images(
    files: Mapping[str, Path],
    table: Mapping[str, Description],
    report: FolderReport,
    verify: bool,
    progress: Callable[[int], None] | None,
) -> dict[str, DescribedImage]:
    """The images that can be read, by their names; the others are counted in `report`, as are problems and sidecars."""
    sidecars = Sidecars()
    tasks = ((name, path, sidecars.of(path)) for name, path in files.items() if _is_usable(name, report))
    found: dict[str, DescribedImage] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, read in _in_order(pool, tasks, partial(_read, table=table, verify=verify)):
            if progress is not None:
                progress(1)
            for kind, problem in read.problems:
                report.note(kind, problem)
            if read.described is None:
                report.unreadable += 1
                report.name(read.unreadable or name)
            else:
                found[name] = read.described
    skipped = Counter(report.skipped)
    skipped.subtract(sidecars.used)
    report.skipped = {reason: count for reason, count in skipped.items() if count > 0}
    return found


def _in_order(
    pool: ThreadPoolExecutor,
    tasks: Iterable[tuple[str, Path, list[Sidecar]]],
    read: Callable[[str, Path, list[Sidecar]], _Read],
) -> Iterator[tuple[str, _Read]]:
    """The results in the order of the tasks, of which a few are in work."""
    tasks = iter(tasks)
    while portion := list(islice(tasks, _IN_WORK)):
        yield from zip((name for name, _, _ in portion), pool.map(lambda own: read(*own), portion), strict=True)


def _is_usable(name: str, report: FolderReport) -> bool:
    """Whether metadata can hold the name of an image."""
    try:
        name.encode()
    except UnicodeEncodeError:
        report.note("names", f"{name}: is no UTF-8 name; rename the image.")
        return False
    if normal_name(name) != name or "://" in name or re.match(r"[A-Za-z]:", name):
        report.note("names", f"{name}: metadata cannot hold this name; rename the image.")
        return False
    return True


def _read(name: str, path: Path, sidecars: list[Sidecar], table: Mapping[str, Description], verify: bool) -> _Read:
    problems: list[tuple[str, str]] = []
    try:
        embedded = read_embedded(path, verify)
    except ImageError as error:
        return _Read(None, str(error), problems)
    problems += [("metadata in images", problem) for problem in embedded.problems]
    own: list[tuple[str, Description]] = [("table", table[name])] if name in table else []
    for sidecar in sidecars:
        try:
            own.append((sidecar.kind, read_sidecar(sidecar, path)))
        except DataError as error:
            problems.append((f"{sidecar.path.suffix.lower()} sidecars", str(error)))
    inner = [(_EMBEDDED.get(kind, kind), found) for kind, found in embedded.descriptions.items()]
    return _Read(_merged(path, own, inner), None, problems)


def _merged(path: Path, own: list[tuple[str, Description]], inner: list[tuple[str, Description]]) -> DescribedImage:
    """One description of several: captions and labels of the first source that has them, the keywords of all.

    The date in the image is that of the camera, in local time; sidecars follow.
    """
    text_from, captions = next(((kind, found.captions) for kind, found in [*own, *inner] if found.captions), (None, ()))
    labels_from, labels = next(((kind, found.labels) for kind, found in own if found.labels), (None, ()))
    keywords = cleaned(word for _, found in [*own, *inner] for word in found.keywords)
    date = next((found.date for _, found in [*reversed(inner), *own] if found.date), None)
    if text_from is None and keywords:
        text_from = "keywords"
    return DescribedImage(path, captions, text_from, labels, labels_from, keywords, date)


def digests_of_copies(files: Mapping[str, Path]) -> dict[str, str]:
    """The SHA-256 of the files that are identical to another one, by name. Files of other sizes are not read."""
    by_size: dict[int, list[str]] = {}
    for name, path in files.items():
        by_size.setdefault(os.stat(path).st_size, []).append(name)  # noqa: PTH116 - a `Path` takes longer
    by_content: dict[str, list[str]] = {}
    for names in by_size.values():
        for name in names if len(names) > 1 else ():
            by_content.setdefault(sha256_of(files[name]), []).append(name)
    return {name: digest for digest, names in by_content.items() if len(names) > 1 for name in names}
