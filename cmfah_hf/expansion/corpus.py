"""Texts out of whatever holds them: datasets, streams, plain iterables and corpus files, one row at a time.

Everything above works on word lists, so this is the only file that knows how a row, a batch or a file looks.
"""

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

# What a corpus file calls its text; a `.txt` file has no columns.
CORPUS_COLUMN = "text"

_ARROW_BATCH = 1_000
# Characters of one text; no novel has as many.
_LONGEST_LINE = 2**26


def words_of(value: Any, where: str = "The text", split: Callable[[str], list[str]] = split_words) -> list[str]:
    """The words of one text: a string, a list of tags, or `None` (no text), which has no words.

    A tag of several words ("new york") gives several words, as it does once the tags are joined into one text.

    Args:
        value: The text as a data set holds it.
        where: The subject of an error message, e.g. `"Row 3, column 'text'"`.
        split: From a string to its words.

    Raises:
        DataError: If the value is neither of these.
    """
    if value is None:
        return []
    if isinstance(value, str):
        text = value
    elif isinstance(value, (list, tuple, np.ndarray)) and all(tag is None or isinstance(tag, str) for tag in value):
        text = " ".join(tag for tag in value if tag is not None)
    else:
        raise DataError(f"{where} holds {_shown(value)}; a text is a string or a list of tags.")
    try:
        return split(text)
    except UnicodeEncodeError:
        # Half a surrogate pair is no character. JSON may still spell one, and two halves spell one character. The
        # replacement character would count as a pictograph, so what is left alone becomes a gap.
        joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return split(joined.replace("\ufffd", " "))


def iterate_words(
    source: Any, text_column: str = "text", split: Callable[[str], list[str]] = split_words
) -> Iterator[list[str]]:
    """The word list of every row of `source`, in its order, in one pass.

    Args:
        source: A `datasets.Dataset` or `IterableDataset`, one batch (a mapping of columns), or any iterable of texts:
            strings, lists of tags, or rows that are mappings with `text_column`. Only the text column of a data set
            is read, so no picture is decoded.
        text_column: The name of the column with the texts.
        split: From a string to its words.

    Raises:
        DataError: If the column is missing or a row is not a text.
    """
    for number, (value, _) in enumerate(iterate_values(source, text_column)):
        yield words_of(value, f"Row {number}, column {text_column!r},", split)


def is_one_row(batch: Mapping[str, Any], text_column: str) -> bool:
    """Whether a mapping that `datasets.map` hands over is a single row rather than a batch of rows.

    A string is one text, and a list of lists is a batch of tag lists. A list of strings may be either; what `datasets`
    hands over says so by its type, and a plain mapping is a batch when all its columns are equally long lists.
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
    return not all(_is_column(column, len(value)) for column in batch.values())


def check_column(present: Iterable[str] | None, text_column: str, subject: str) -> None:
    """Raises a `DataError` that names the column and those present, if it is not among them."""
    if present is not None and text_column not in present:
        names = ", ".join(map(repr, present)) or "no column at all"
        raise DataError(f"{subject} has no column {text_column!r}, only {names}; name the column of the texts.")


def iterate_files(paths: str | Path | Sequence[str | Path]) -> Iterator[list[str]]:
    """The word list of every text in corpus files: `.jsonl` and `.parquet` with a column `text`, `.txt` with a text a
    line; `.jsonl` and `.txt` may be gzipped (`.gz`).

    Raises:
        DataError: If a file is missing, of another kind, or holds a row that is not a text.
    """
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        for where, text, _ in iterate_file(path):
            yield words_of(text, where)


def iterate_file(path: str | Path, title_column: str | None = None) -> Iterator[tuple[str, Any, Any]]:
    """What a corpus file holds: for each text the place to name in an error, the text, and its title if it has one.

    Args:
        path: As `iterate_files` takes them.
        title_column: The column of the titles, where there is one; only then are they read.

    Raises:
        DataError: If the file is missing, of another kind, or damaged.
    """
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
    """Text and title of every row as they stand there; no title where there is no such column or none is asked for.

    Raises:
        DataError: If the column of the texts is missing, or the source is no data set.
    """
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
            wanted = [name for name in (text_column, title_column) if name in source.column_names]
            for batch in source.select_columns(wanted).with_format(None).iter(_ARROW_BATCH):
                yield from _pairs(batch, text_column, title_column)
            return
        if isinstance(source, IterableDataset) and source.column_names is not None:
            check_column(source.column_names, text_column, "The data set")
            wanted = [name for name in (text_column, title_column) if name in source.column_names]
            source = source.select_columns(wanted).with_format(None)
    for number, row in enumerate(source):
        if isinstance(row, Mapping):
            check_column(row, text_column, f"Row {number}")
            yield row[text_column], row.get(title_column)
        else:
            yield row, None


def _pairs(columns: Mapping[str, Any], text_column: str, title_column: str | None) -> Iterator[tuple[Any, Any]]:
    texts = columns[text_column]
    titles = columns[title_column] if title_column in columns else repeat(None)
    yield from zip(texts, titles, strict=False)  # the repeated nothing has no end


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
                    raise DataError(f"{where} has more than {_LONGEST_LINE:,} characters; write a text a line.")
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
                yield where, row[CORPUS_COLUMN], row.get(title_column)
    except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text ({error}); repair or convert the file.") from error


def _iterate_parquet(path: Path, title_column: str | None) -> Iterator[tuple[str, Any, Any]]:
    with parquet_file(str(path)) as file:
        names = file.schema_arrow.names
        check_column(names, CORPUS_COLUMN, str(path))
        number = 0
        wanted = [name for name in (CORPUS_COLUMN, title_column) if name in names]
        for batch in checked_batches(file, _ARROW_BATCH, wanted):
            for text, title in _pairs(batch.to_pydict(), CORPUS_COLUMN, title_column):
                yield f"{path}, row {number},", text, title
                number += 1


def _is_column(value: Any, length: int) -> bool:
    # An undecoded picture is a mapping with `bytes` and `path`, not a column of two.
    return not isinstance(value, (str, bytes, Mapping)) and hasattr(value, "__len__") and len(value) == length


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text[:57]}..." if len(text) > 60 else text
