"""Word lists from data sets, streams, iterables and corpus files, one row at a time."""

import gzip
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from cmfah_hf.data.parquet_files import checked_batches, parquet_file
from cmfah_hf.documents import file_of
from cmfah_hf.errors import DataError
from cmfah_hf.models.tokenization_cmfah import split_words

# The column of the text in corpus files with columns.
CORPUS_COLUMN = "text"

_ARROW_BATCH = 1_000
# Maximum number of characters of one text, more than any novel has.
_LONGEST_LINE = 2**26


def words_of(value: Any, where: str = "The text", split: Callable[[str], list[str]] = split_words) -> list[str]:
    """The words of one text: a string, a list of tags, or `None`, which has no words.

    A tag of several words ("new york") gives several words, as in the joined text. `where` is the subject of errors.
    """
    text = text_of(value, where)
    try:
        return split(text)
    except UnicodeEncodeError:
        # A single surrogate is left out, since the replacement character would count as a pictograph.
        return split(without_surrogates(text).replace("\ufffd", " "))


def text_of(value: Any, where: str = "The text") -> str:
    """A string, tags joined by spaces, or for `None`, an empty string. `where` is the subject of errors.

    Raises:
        DataError: If the value is neither.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple, np.ndarray)) and all(tag is None or isinstance(tag, str) for tag in value):
        return " ".join(tag for tag in value if tag is not None)
    raise DataError(f"{where} holds {_shown(value)}; a text is a string or a list of tags.")


def without_surrogates(text: str) -> str:
    """The text with pairs of surrogates, which JSON may contain, as one character, and single ones replaced."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def iterate_words(
    source: Any, text_column: str = "text", split: Callable[[str], list[str]] = split_words
) -> Iterator[list[str]]:
    """The word lists of all rows of `source`, in order, in one pass.

    A source is a `Dataset` or `IterableDataset`, of which only the text column is read, one batch (a mapping of
    columns), or any iterable of texts: strings, lists of tags, or rows that are mappings with `text_column`.
    """
    for number, (value, _) in enumerate(iterate_values(source, text_column)):
        yield words_of(value, f"Row {number}, column {text_column!r},", split)


def is_one_row(batch: Mapping[str, Any], text_column: str) -> bool:
    """Whether a mapping from `datasets.map` is a single row rather than a batch of rows.

    A string is one text, and a list of lists is a batch of tag lists. A list of strings may be either: mappings of
    `datasets` have a type for each, and a plain mapping is a batch if all its columns are lists of equal length.
    """
    value = batch[text_column]
    if value is None or isinstance(value, str) or not isinstance(value, Iterable):
        return True
    if "datasets" in sys.modules:
        from datasets.formatting.formatting import LazyBatch, LazyRow

        if isinstance(batch, (LazyBatch, LazyRow)):
            return isinstance(batch, LazyRow)
    if any(isinstance(text, (list, tuple, np.ndarray)) for text in value):
        return False
    length = len(list(value))
    return not all(_is_column(column, length) for column in batch.values())


def check_column(present: Iterable[str] | None, text_column: str, subject: str) -> None:
    """Raises a `DataError` if the column is not among those present."""
    if present is not None and text_column not in present:
        names = ", ".join(map(repr, present)) or "no column at all"
        raise DataError(f"{subject} has no column {text_column!r}, only {names}; name the column of the texts.")


def iterate_files(
    paths: str | Path | Sequence[str | Path], split: Callable[[str], list[str]] = split_words
) -> Iterator[list[str]]:
    """The word lists of all texts in corpus files.

    These are `.jsonl` and `.parquet` with a column `text`, and `.txt` with one text per line; `.jsonl` and `.txt` may
    be gzipped (`.gz`).
    """
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        for where, text, _ in iterate_file(path):
            yield words_of(text, where, split)


def iterate_file(path: str | Path, title_column: str | None = None) -> Iterator[tuple[str, Any, Any]]:
    """The texts of a corpus file (see `iterate_files`): position for errors, text, and title or None."""
    path = Path(path)
    if file_of(path) is None:
        raise DataError(f"{path}: there is no such file; give the path of a .jsonl, .txt or .parquet corpus.")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else suffixes[-1] if suffixes else ""
    if kind == ".parquet":
        yield from _iterate_parquet(path, title_column)
    elif kind in (".jsonl", ".ndjson", ".txt"):
        yield from _iterate_lines(path, title_column, is_json=kind != ".txt")
    else:
        raise DataError(f"{path}: a corpus is a .jsonl, .txt or .parquet file; convert it or rename it.")


def iterate_values(source: Any, text_column: str, title_column: str | None = None) -> Iterator[tuple[Any, Any]]:
    """Text and title of every row, unchanged; the title is None without `title_column`."""
    if isinstance(source, (str, bytes)):
        raise DataError(f"One text was given where many are expected: {_shown(source)}; put it into a list.")
    if isinstance(source, Mapping):
        check_column(source, text_column, "The mapping (a DatasetDict has to be indexed by its split first)")
        yield from _pairs(source, text_column, title_column)
        return
    if not isinstance(source, Iterable):
        raise DataError(f"{_shown(source)} is not a data set; give a Dataset, an IterableDataset or a list of texts.")
    if "datasets" in sys.modules:
        from datasets import Dataset, IterableDataset

        # A custom format computes its columns on the fly, so such a data set is read as any other iterable.
        if isinstance(source, Dataset) and source.format["type"] != "custom":
            check_column(source.column_names, text_column, "The data set")
            wanted = _present((text_column, title_column), source.column_names)
            for batch in source.select_columns(wanted).with_format(None).iter(_ARROW_BATCH):
                yield from _pairs(batch, text_column, title_column)
            return
        if isinstance(source, IterableDataset) and source.column_names is not None:
            check_column(source.column_names, text_column, "The data set")
            wanted = _present((text_column, title_column), source.column_names)
            source = source.select_columns(wanted).with_format(None)
    for number, row in enumerate(source):
        if isinstance(row, Mapping):
            check_column(row, text_column, f"Row {number}")
            yield row[text_column], None if title_column is None else row.get(title_column)
        else:
            yield row, None


def _pairs(columns: Mapping[str, Any], text_column: str, title_column: str | None) -> Iterator[tuple[Any, Any]]:
    texts = columns[text_column]
    titles = columns[title_column] if title_column is not None and title_column in columns else repeat(None)
    yield from zip(texts, titles, strict=False)  # `repeat` is endless


def _present(names: Sequence[str | None], columns: Sequence[str]) -> list[str]:
    return [name for name in names if name is not None and name in columns]


def _iterate_lines(path: Path, title_column: str | None, *, is_json: bool) -> Iterator[tuple[str, Any, Any]]:
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix.lower() == ".gz"
            else path.open(encoding="utf-8") as file
        ):
            number = 0
            while line := file.readline(_LONGEST_LINE + 1):
                number += 1
                where = f"{path}, line {number},"
                if len(line) > _LONGEST_LINE:
                    raise DataError(f"{where} has more than {_LONGEST_LINE:,} characters; write one text per line.")
                if not line.strip():
                    continue
                if not is_json:
                    yield where, line, None
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:  # integers of thousands of digits; nested too deep
                    raise DataError(f"{where} is not JSON ({error}); repair or remove the line.") from None
                if not isinstance(row, dict):
                    raise DataError(f"{where} holds {_shown(row)}; it has to be an object with {CORPUS_COLUMN!r}.")
                check_column(row, CORPUS_COLUMN, where[:-1])
                yield where, row[CORPUS_COLUMN], None if title_column is None else row.get(title_column)
    except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text ({error}); repair or convert the file.") from error


def _iterate_parquet(path: Path, title_column: str | None) -> Iterator[tuple[str, Any, Any]]:
    with parquet_file(str(path)) as file:
        names = file.schema_arrow.names
        check_column(names, CORPUS_COLUMN, str(path))
        number = 0
        for batch in checked_batches(file, _ARROW_BATCH, _present((CORPUS_COLUMN, title_column), names)):
            for text, title in _pairs(batch.to_pydict(), CORPUS_COLUMN, title_column):
                yield f"{path}, row {number},", text, title
                number += 1


def _is_column(value: Any, length: int) -> bool:
    # An undecoded image is a mapping with `bytes` and `path`, not a column of length two.
    return not isinstance(value, (str, bytes, Mapping)) and hasattr(value, "__len__") and len(value) == length


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text[:57]}..." if len(text) > 60 else text
