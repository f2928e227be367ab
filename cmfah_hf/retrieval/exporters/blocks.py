"""What all exporters share: an index's items block by block, as a database can hold them, and a folder written whole.

An exporter never holds more than one block beside the index itself. What the database would refuse, cut or alter is an
error here that names the item, because a bulk load that stops after an hour names neither.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cmfah_hf.atomic import atomic_folder
from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.codes import as_array, pack, unpack
from cmfah_hf.retrieval.index import HashIndex

BLOCK_ROWS = 16_384
# The fields that every export has; columns of metadata stand beside them.
ID, CODE = "id", "code"
DEFAULT_NAME = "cmfah"
# Valid in all databases without quotes, and short enough for what they append to it.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,47}")


@dataclass(frozen=True)
class Target:
    """What a database can hold.

    Attributes:
        title: Its name in messages.
        column_names: What a column's name has to match, wholly.
        column_bytes: The most bytes, in UTF-8, of a column's name.
        id_bytes: The most bytes, in UTF-8, of an id that is a string.
        text_bytes: The same of any other string; 0 where there is no limit.
        wrong_characters: A regular expression (RE2) of characters that no string may hold; empty where all may.
        only_finite: Whether NaN and the infinities are refused.
        null_elements: Whether a list may hold a null.
        list_length: The most elements of a list; 0 where there is no limit.
    """

    title: str
    column_names: re.Pattern
    column_bytes: int
    id_bytes: int
    text_bytes: int = 0
    wrong_characters: str = ""
    only_finite: bool = True
    null_elements: bool = False
    list_length: int = 0


@dataclass(frozen=True)
class Column:
    """A column of metadata: string, bool, int64, float32 or float64, or a list of one of these."""

    name: str
    type: pa.DataType
    nullable: bool

    @property
    def is_list(self) -> bool:
        return pa.types.is_list(self.type)

    @property
    def value_type(self) -> pa.DataType:
        """The type of a list's elements, or of the column itself."""
        return self.type.value_type if self.is_list else self.type


@dataclass(frozen=True)
class Block:
    """Some items in a row.

    Attributes:
        ids: `(n,)` int64 or string.
        codes: `(n, K / 8)` uint8, bit 0 first.
        metadata: `(n,)` for each column.
    """

    ids: pa.Array
    codes: np.ndarray
    metadata: dict[str, pa.Array]


def columns_of(index: HashIndex, target: Target) -> list[Column]:
    """The columns of an index's metadata in the types that databases share.

    Raises:
        HashIndexError: If the index is empty, or a column has a name or a type that the database cannot have.
    """
    if not len(index):
        raise HashIndexError("The index is empty; add items before exporting it.")
    metadata, columns = index.metadata, []
    for name in metadata.column_names if metadata is not None else []:
        fits = target.column_names.fullmatch(name) and len(name.encode()) <= target.column_bytes
        if not fits or name.lower() in (ID, CODE):
            raise HashIndexError(
                f"{target.title} cannot have a column {name!r} beside {ID!r} and {CODE!r}; rename that column."
            )
        plain = _plain_type(metadata.schema.field(name).type)
        if plain is None:
            raise HashIndexError(
                f"Column {name!r} holds {metadata.schema.field(name).type}, which cannot be exported; make it strings, "
                "numbers, booleans, or lists of these."
            )
        columns.append(Column(name, plain, bool(metadata[name].null_count)))
    return columns


def blocks_of(index: HashIndex, target: Target, columns: list[Column]) -> Iterator[Block]:
    """The items in the order of `index.ids`.

    Raises:
        HashIndexError: At an item that the database cannot hold.
    """
    ids, codes, metadata = index.ids, index.codes, index.metadata
    for start in range(0, len(ids), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        block = Block(ids=_checked_ids(ids[rows], target), codes=np.ascontiguousarray(codes[rows]), metadata={})
        for column in columns:
            values = metadata[column.name].slice(start, BLOCK_ROWS).combine_chunks()
            block.metadata[column.name] = _checked_values(column, values, block.ids, target)
        yield block


def check_name(name: str) -> str:
    """`name` itself where a collection, a table or a document type can be called that in every database.

    Raises:
        HashIndexError: If it is no word of letters, digits and underscores, or longer than 48.
    """
    if not _NAME.fullmatch(name):
        raise HashIndexError(
            f"The name {name!r} does not fit; take up to 48 letters, digits and underscores, no digit at the start."
        )
    return name


@contextmanager
def whole_folder(path: str | os.PathLike, overwrite: bool, own_files: str) -> Iterator[Path]:
    """A folder to write into that appears under its name when all is written, and never in part.

    Args:
        path: The folder to be. What it held is gone afterwards.
        overwrite: Whether a folder that holds files may be replaced.
        own_files: A regular expression of the names that an export writes. A folder that holds anything else is never
            replaced: its name was a slip.

    Raises:
        HashIndexError: If `path` is a file, a folder that may not be replaced, or the disk refuses.
    """
    _refuse_existing(path, overwrite, own_files)
    with atomic_folder(path, HashIndexError) as folder:
        yield folder
        _refuse_existing(path, overwrite, own_files)


def model_note(index: HashIndex) -> str:
    """The line of an export's description that names the model of its codes: queries need the same one."""
    fingerprint = re.sub(r"[^0-9A-Za-z-]", "", str(index.model))  # an index can come from anywhere
    return f"Hash codes of the cmfah model with the fingerprint {fingerprint}"


def query_rows(hash_values: Any) -> np.ndarray:
    """Queries as a matrix: `(K,)` as one row."""
    values = as_array(hash_values)
    return values[None] if values.ndim == 1 else values


def packed_queries(hash_values: Any) -> np.ndarray:
    """`(Q, K)` or `(K,)` real hash values, or such codes as are packed already: `(Q, K / 8)` uint8.

    Raises:
        HashIndexError: If they are no hash values.
    """
    values = query_rows(hash_values)
    if values.dtype != np.uint8:
        return pack(values)
    unpack(values)  # says what is wrong with it
    return np.ascontiguousarray(values)


def _refuse_existing(path: str | os.PathLike, overwrite: bool, own_files: str) -> None:
    try:
        target = Path(path)
        if target.exists() and not target.is_dir():
            raise HashIndexError(f"{path} is a file; name a folder for the export.")
        held = sorted(target.iterdir()) if target.is_dir() else []
    except OSError as error:
        raise HashIndexError(f"{path} cannot be looked into ({error.strerror or error}); name another.") from error
    for file in held:
        if file.is_symlink() or not file.is_file() or not re.fullmatch(own_files, file.name):
            raise HashIndexError(f"{path} holds {file.name!r}, which is no export's; name another folder.")
    if held and not overwrite:
        raise HashIndexError(f"{path} holds an export already; name another folder, or have it overwritten.")


def _plain_type(kind: pa.DataType) -> pa.DataType | None:
    """The one of the shared types that holds all values of this type."""
    types = pa.types
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        value = None if types.is_dictionary(kind.value_type) else _plain_type(kind.value_type)
        return None if value is None or types.is_list(value) else pa.list_(value)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind):
        return pa.string()
    if types.is_boolean(kind):
        return pa.bool_()
    if types.is_integer(kind):
        return pa.int64()
    if types.is_floating(kind):
        return pa.float64() if types.is_float64(kind) else pa.float32()
    return None


def _checked_ids(ids: np.ndarray, target: Target) -> pa.Array:
    if ids.dtype != object:
        return pa.array(ids)
    advice = "give the item another id"
    try:
        texts = pa.array(ids.tolist(), pa.string())
    except UnicodeEncodeError:
        row = next(row for row, item in enumerate(ids) if any("\ud800" <= letter <= "\udfff" for letter in item))
        raise _refusal(f"Id {ids[row]!r}", "a lone surrogate", target, advice) from None
    for what, test in _text_tests(target, target.id_bytes):
        if (row := _first_row(texts, test)) is not None:
            raise _refusal(f"Id {ids[row]!r}", what, target, advice)
    return texts


def _checked_values(column: Column, values: pa.Array, ids: pa.Array, target: Target) -> pa.Array:
    def refuse(what: str, row: int | None) -> None:
        if row is not None:
            where = f"Item {ids[row].as_py()!r}, column {column.name!r}"
            raise _refusal(where, what, target, "change it, or leave the column out")

    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_uint64(getattr(values.type, "value_type", values.type)):
        limit = pa.scalar(2**63, pa.uint64())
        refuse("an integer of 2^63 or more", _first_row(values, lambda v: pc.greater_equal(v, limit)))
    values = values.cast(column.type)
    if column.is_list and not target.null_elements:
        refuse("a null in a list", _first_row(values, pc.is_null))
    if column.is_list and target.list_length:
        longer = pc.greater(pc.list_value_length(values), target.list_length)
        refuse(f"a list of more than {target.list_length:,}", _first_true(longer))
    if pa.types.is_floating(column.value_type) and target.only_finite:
        refuse("NaN or an infinity", _first_row(values, lambda v: pc.invert(pc.is_finite(v))))
    if pa.types.is_string(column.value_type):
        for what, test in _text_tests(target, target.text_bytes):
            refuse(what, _first_row(values, test))
    return values


def _text_tests(target: Target, most_bytes: int) -> list[tuple[str, Callable[[pa.Array], pa.Array]]]:
    tests = []
    if target.wrong_characters:
        tests.append(("a control character", lambda v: pc.match_substring_regex(v, target.wrong_characters)))
    if most_bytes:
        tests.append((f"more than {most_bytes:,} bytes", lambda v: pc.greater(pc.binary_length(v), most_bytes)))
    return tests


def _first_row(values: pa.Array, test: Callable[[pa.Array], pa.Array]) -> int | None:
    """The first row of whose value, or of one of whose list's elements, a test is true."""
    if not hasattr(values.type, "value_type"):
        return _first_true(test(values))
    at = _first_true(test(pc.list_flatten(values)))
    return None if at is None else pc.list_parent_indices(values)[at].as_py()


def _first_true(flags: pa.Array) -> int | None:
    at = pc.index(flags, True).as_py()
    return None if at < 0 else at


def _refusal(where: str, what: str, target: Target, advice: str) -> HashIndexError:
    return HashIndexError(f"{where}: {what}, which {target.title} cannot hold; {advice}.")
