"""Table of a released data set: ids, images, tags and labels of all rows, and checks of its counts.

Shapes: N rows, V tags, C classes, D features.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from cmfah_hf.data.releases.files import ReleaseFiles
from cmfah_hf.errors import DataError

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 24
_LONGEST_LINE = 1 << 24
_ONE, _NEW_LINE = b"1\n"
# Separators of values: tab, line feed, carriage return, space.
_BLANKS = np.isin(np.arange(256), list(b"\t\n\r "))
_DIGITS = np.isin(np.arange(256), list(b"01"))


@dataclass(frozen=True)
class Lists:
    """N lists of numbers, concatenated: row i is `numbers[ends[i - 1]:ends[i]]`."""

    numbers: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> "Lists":
        numbers, lengths = [], []
        for row in rows:
            numbers.append(np.asarray(row, np.int32))
            lengths.append(len(row))
        joined = np.concatenate(numbers) if numbers else np.zeros(0, np.int32)
        return cls(joined, np.cumsum(lengths, dtype=np.int64))

    @classmethod
    def of_columns(cls, rows_of_columns: Sequence[np.ndarray], num_rows: int) -> "Lists":
        """The columns of each row, ascending, from the rows of each column."""
        rows = np.concatenate([np.zeros(0, np.int64), *rows_of_columns])
        columns = np.repeat(np.arange(len(rows_of_columns)), [len(column) for column in rows_of_columns])
        order = np.argsort(rows, kind="stable")
        return cls(columns[order].astype(np.int32), np.cumsum(np.bincount(rows.astype(np.int64), minlength=num_rows)))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.numbers[self.ends[row - 1] if row else 0 : self.ends[row]]

    @property
    def lengths(self) -> np.ndarray:
        """`(N,)`."""
        return np.diff(self.ends, prepend=0)

    def take(self, rows: np.ndarray) -> "Lists":
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        # The position of each number: the start of its row in the source, plus its offset in the row.
        places = np.repeat(self.ends[rows] - ends, lengths) + np.arange(lengths.sum())
        return Lists(self.numbers[places], ends)


@dataclass
class Corrections:
    """Corrections and notes about a release, without its path: logged as warnings, and listed on the card."""

    files: ReleaseFiles
    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        line = self.files.without_root(line)
        logger.warning("%s", line)
        self.lines.append(line)


@dataclass
class ReleaseTable:
    """The N rows of a release, without the image files."""

    ids: list[str]  # unique
    images: list[str]  # the end of the path of each image, for `ReleaseFiles.find`; empty: no images are released
    tag_names: list[str]  # V names
    tags: Lists  # N lists of tag numbers
    class_names: list[str]  # C names
    labels: Lists  # N lists of class numbers
    selecting_tags: np.ndarray | None = None  # `(N,)` the tags by which a row counts as tagged; None: `tags`
    features: dict[str, np.ndarray] = field(default_factory=dict)  # float32 `(N, D)` by column

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, with_text: bool) -> np.ndarray:
        """The numbers of the rows that have a label, and with `with_text` also a tag."""
        chosen = self.labels.lengths > 0
        if with_text:
            chosen &= (self.tags.lengths if self.selecting_tags is None else self.selecting_tags) > 0
        return np.flatnonzero(chosen)

    def digest(self) -> str:
        """SHA-256 of the whole table."""
        digest = hashlib.sha256()
        for names in (self.ids, self.images, self.tag_names, self.class_names):
            digest.update("\0".join(names).encode("utf-8", "surrogatepass") + b"\1")
        for lists in (self.tags, self.labels):
            digest.update(np.ascontiguousarray(lists.numbers, "<i4").tobytes())
            digest.update(np.ascontiguousarray(lists.ends, "<i8").tobytes())
        for name, values_ND in self.features.items():
            digest.update(f"{name} {values_ND.shape}".encode())
            digest.update(np.ascontiguousarray(values_ND, "<f4").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class CountChecks:
    """Compares counts with those of a release; `allow_other` makes a difference a correction, not an error."""

    allow_other: bool
    corrections: Corrections

    def check(self, where: str, what: str, found: int, expected: int | None) -> None:
        """Compares a count; a difference is a correction, or a `DataError`."""
        if expected is None or found == expected:
            return
        line = f"{where}: {found:,} {what} instead of {expected:,}"
        if not self.allow_other:
            raise DataError(
                f"{line}; fetch it again, or, if your copy is meant to differ, pass --allow-other-counts "
                "(allow_other_counts=True)."
            )
        self.corrections.add(f"{line}: this copy differs from the release.")

    def checked_rows(self, table: "ReleaseTable", with_text: bool, needs: str, expected: int) -> np.ndarray:
        """The rows of a table with a label, and with `with_text` also a tag; their number is checked."""
        rows = table.rows(with_text)
        self.check(str(self.corrections.files.root), f"pairs with {needs}", len(rows), expected)
        return rows


def read_names(files: ReleaseFiles, key: str) -> list[str]:
    """The lines of a file that are not empty, stripped."""
    return [line.strip() for line, _ in decode_lines(files.lines(key)) if line.strip()]


def read_ones(files: ReleaseFiles, key: str, width: int) -> Iterator[tuple[int, np.ndarray]]:
    """Pieces `(rows, ones)` of a text file with a matrix of 0 and 1, `width` values a line.

    `ones` are the positions `row * width + column` in the piece. Values are separated by spaces or tabs; a line may end
    with a tab, and with CR LF.
    """
    first, rest = 1, b""
    for chunk in files.chunks(key, _CHUNK_BYTES):
        whole, line_end, rest_of_chunk = chunk.rpartition(b"\n")
        if len(rest) > _LONGEST_LINE:
            raise DataError(f"{files.describe(key)}, line {first}: is longer than {width} values; fetch it again.")
        if not line_end:
            rest += chunk
            continue
        rows, ones = _ones_of_lines(rest + whole + b"\n", width, first, files.describe(key))
        rest = rest_of_chunk
        first += rows
        yield rows, ones
    if rest.strip():
        yield _ones_of_lines(rest + b"\n", width, first, files.describe(key))


def _ones_of_lines(text: bytes, width: int, first: int, name: str) -> tuple[int, np.ndarray]:
    bytes_ = np.frombuffer(text, np.uint8)
    values = _evenly_spaced(bytes_, text.index(b"\n") + 1, width)
    if values is not None:
        return len(values), np.flatnonzero(values == _ONE)
    digits = _DIGITS[bytes_]
    line_ends = np.flatnonzero(bytes_ == _NEW_LINE)
    before = np.cumsum(digits, dtype=np.int64)[line_ends]
    sound = (digits | _BLANKS[bytes_]).all() and not (digits[1:] & digits[:-1]).any()
    lengths = np.diff(before, prepend=0)
    # Empty lines at the end do not count.
    rows = len(lengths)
    while rows and lengths[rows - 1] == 0:
        rows -= 1
    if not sound or (lengths[:rows] != width).any():
        raise _wrong_line(text, width, first, name)
    return rows, np.flatnonzero(bytes_[digits] == _ONE)


def _evenly_spaced(bytes_: np.ndarray, line: int, width: int) -> np.ndarray | None:
    """The values `(rows, width)`, if every second byte of equal lines is one: a fast path; released files are so."""
    if len(bytes_) % line or line < 2 * width:
        return None
    lines = bytes_.reshape(-1, line)
    values, between, after = lines[:, : 2 * width : 2], lines[:, 1 : 2 * width : 2], lines[:, 2 * width :]
    sound = (lines[:, -1] == _NEW_LINE).all() and ((values | 1) == _ONE).all()
    sound = sound and _BLANKS[between].all() and _BLANKS[after].all()
    # A line feed anywhere else would be another line.
    sound = sound and np.count_nonzero(bytes_ == _NEW_LINE) == len(lines)
    return values if sound else None


def _wrong_line(text: bytes, width: int, first: int, name: str) -> DataError:
    for number, line in enumerate(text.split(b"\n"), first):
        values = line.split()
        strange = next((value for value in values if value not in (b"0", b"1")), None)
        if strange is not None:
            shown = strange[:20].decode("latin-1")
            return DataError(f"{name}, line {number}: {shown!r} is neither 0 nor 1; fetch the file again.")
        if len(values) != width:
            return DataError(f"{name}, line {number}: {len(values)} values instead of {width}; fetch the file again.")
    raise AssertionError("no line is wrong")


def decode_lines(lines: Iterable[bytes]) -> Iterator[tuple[str, bool]]:
    """Each line as text, and whether it was Latin-1 instead of UTF-8. A byte order mark is removed."""
    for number, line in enumerate(lines):
        if number == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            yield line.decode("utf-8"), False
        except UnicodeDecodeError:
            yield line.decode("latin-1"), True
