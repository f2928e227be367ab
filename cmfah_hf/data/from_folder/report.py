"""Counts of the images, texts, labels and problems in a folder, and of the files that were written."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from cmfah_hf.errors import printable

# Problems that are named; all are counted.
_MOST_NAMED = 20


@dataclass
class FolderReport:
    """The result of `prepare_folder`.

    Attributes:
        folder, output: The folder, and where the data set is.
        images: Rows that were written; of shards, samples with an image.
        shards: The number of shards, of which nothing but samples and splits is counted.
        new, as_before, gone: Rows of images that had none before, rows of images that had one, and rows that were
            dropped, because their image is gone or cannot be read any more.
        splits: The numbers of rows by split.
        text_from: The numbers of images by the source of their text: `table`, `txt`, `json`, `xmp` (sidecars),
            `embedded xmp`, `iptc`, `exif`, `png`, and `keywords` if they stand in for a text.
        without_text: Images without any.
        labels_from: The numbers of images by the source of their labels: `table`, `json`, `folders`.
        classes: Different labels.
        with_date, with_keywords: Images with a date, with keywords.
        table_columns: The further columns of the table, with the names under which they are kept.
        identical_files: Images whose file is the same as that of another image.
        unreadable: Images that cannot be read, which have no row.
        skipped: The numbers of other files by ending or reason.
        problems: The numbers of problems by kind.
        named: The first unreadable images and problems, one line each.
        linked, copied: Images in `output` that share their bytes with the folder, and that are copies.
        written: The files of metadata.
        unchanged: Whether everything was there already.
    """

    folder: str
    output: str
    images: int = 0
    shards: int = 0
    new: int = 0
    as_before: int = 0
    gone: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    text_from: Counter[str] = field(default_factory=Counter)
    without_text: int = 0
    labels_from: Counter[str] = field(default_factory=Counter)
    classes: int = 0
    with_date: int = 0
    with_keywords: int = 0
    table_columns: dict[str, str] = field(default_factory=dict)
    identical_files: int = 0
    unreadable: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    problems: Counter[str] = field(default_factory=Counter)
    named: list[str] = field(default_factory=list)
    linked: int = 0
    copied: int = 0
    written: list[str] = field(default_factory=list)
    unchanged: bool = False

    def note(self, kind: str, message: str) -> None:
        """Counts a problem, and names it if it is among the first."""
        self.problems[kind] += 1
        self.name(message)

    def name(self, message: str) -> None:
        if len(self.named) < _MOST_NAMED:
            self.named.append(printable(message))

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}
