"""The folders of an index, and the state of each of their files when its code was made.

In an index file, the folders are JSON in the header, and the states of the files a table like the metadata.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

import numpy as np
import pyarrow as pa
import pyarrow.compute

from cmfah_hf.documents import parse_json
from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.codes import shortened

_SCHEMA = pa.schema(
    [
        pa.field("root", pa.int32(), nullable=False),
        pa.field("name", pa.binary(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("mtime_ns", pa.int64(), nullable=False),
        pa.field("ctime_ns", pa.int64(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("row", pa.binary(16)),
        pa.field("problem", pa.string()),
        pa.field("left_out", pa.bool_(), nullable=False),
        pa.field("place", pa.binary()),
    ]
)
_FACTS = ("model", "revision", "model_state", "readers", "updated")


@dataclass(frozen=True)
class Root:
    """A folder of images that an index follows.

    Attributes:
        name: Its name in the index.
        path: Its absolute path at the last update.
        in_ids: Whether its ids begin with its name, as they do if the index follows several folders.
        hidden: Whether hidden files belong to it.
        split: The split of its metadata, or None for all.
        keep: The columns of its metadata that the index stores.
    """

    name: str
    path: str
    in_ids: bool = False
    hidden: bool = False
    split: str | None = None
    keep: tuple[str, ...] = ()

    def id_of(self, name: str) -> str:
        """The id of an image, by its name in this folder."""
        return f"{self.name}/{name}" if self.in_ids else name

    def name_of(self, item_id: str) -> str | None:
        """The name in this folder of the image with an id, if there is one; None if the id is of another folder."""
        prefix = f"{self.name}/" if self.in_ids else ""
        return item_id.removeprefix(prefix) if item_id.startswith(prefix) else None


class FileRecord(NamedTuple):
    """The state of a file whose code the index has, or for which it has none on purpose.

    Attributes:
        size: Bytes.
        mtime_ns, ctime_ns: Its times; -1 if the file was so new that a later change could have the same times.
        sha256: The digest of its content.
        row: A digest of its row of metadata, or None without metadata.
        problem: Why it cannot be read as an image, or None.
        left_out: Whether its image was removed from the index by hand.
        place: Its path below the folder if its name is another one, as metadata with ids of its own gives it; else
            None.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: bytes
    row: bytes | None = None
    problem: str | None = None
    left_out: bool = False
    place: str | None = None

    @property
    def has_code(self) -> bool:
        """Whether the index holds a code of the file."""
        return self.problem is None and not self.left_out


Files = dict[str, dict[str, FileRecord]]


@dataclass(frozen=True, eq=False)
class FolderRecords:
    """The folders of an index with the records of their files, as they are stored.

    Attributes:
        roots: The folders.
        table: A row for each file.
        model: The model's folder or Hub id.
        revision: Its commit on the Hub, or None.
        model_state: A digest of the model's files, by which the model is recognized without loading it; or None.
        readers: The libraries that read the images; others may read what these could not.
        updated: The time of the last update, in ISO 8601.
    """

    roots: tuple[Root, ...] = ()
    table: pa.Table = field(default_factory=lambda: _SCHEMA.empty_table())
    model: str | None = None
    revision: str | None = None
    model_state: str | None = None
    readers: str | None = None
    updated: str | None = None

    def header(self) -> str:
        """Everything but the table as JSON. Names and paths are percent-encoded, since they may be no valid text."""
        roots = [
            {**vars(root), "name": _quoted(root.name), "path": _quoted(root.path), "keep": list(root.keep)}
            for root in self.roots
        ]
        return json.dumps({"roots": roots, **{name: getattr(self, name) for name in _FACTS}})

    @classmethod
    def of_header(cls, text: str, table: pa.Table) -> "FolderRecords":
        """The records of a file, checked; a `HashIndexError` says what is wrong with them."""
        content = parse_json(text, "its list of folders", HashIndexError)
        found = content.get("roots") if isinstance(content, dict) else None
        if not isinstance(found, list):
            raise HashIndexError("its list of folders is not a list")
        facts = {name: content.get(name) for name in _FACTS}
        if not all(value is None or isinstance(value, str) for value in facts.values()):
            raise HashIndexError("its list of folders describes the model by other things than text")
        roots = tuple(map(_checked_root, found))
        if len({root.name for root in roots}) != len(roots):
            raise HashIndexError("two of its folders have one name")
        if table.schema == _SCHEMA.remove(len(_SCHEMA) - 1):  # of a version that did not record places
            table = table.append_column(_SCHEMA.field("place"), pa.nulls(len(table), pa.binary()))
        if table.schema != _SCHEMA or any(table[at].null_count for at, own in enumerate(_SCHEMA) if not own.nullable):
            raise HashIndexError("its list of files has other columns")
        ends = pa.compute.min_max(table["root"]).as_py()  # `to_numpy` would import pandas
        if len(table) and not 0 <= ends["min"] <= ends["max"] < len(roots):
            raise HashIndexError("its list of files names a folder that it does not have")
        return cls(roots, table, **facts)

    def files(self) -> Files:
        """The records by the name of the folder and the name of the file in it."""
        files: Files = {root.name: {} for root in self.roots}
        of_root = [files[root.name] for root in self.roots]
        for root, name, *state, place in _rows(self.table):
            record = FileRecord(*state)
            of_root[root][_text(name)] = record if place is None else record._replace(place=_text(place))
        return files

    def paths_of(self, ids: Sequence[Any]) -> list[str | None]:
        """The paths of items by their ids, as of the last update; None for items that are of none of the folders.

        Only the files of these items are looked at, so it takes milliseconds with a million files.
        """
        wanted: dict[tuple[int, bytes], list[int]] = {}
        for row, item_id in enumerate(ids):
            for number, root in enumerate(self.roots):
                name = root.name_of(item_id) if isinstance(item_id, str) else None
                if name is not None:
                    wanted.setdefault((number, _bytes(name)), []).append(row)
        paths: list[str | None] = [None] * len(ids)
        names = _binary_array(sorted({name for _, name in wanted}))
        found = self.table.filter(pa.compute.is_in(self.table["name"], names)).select(["root", "name", "place"])
        for number, name, place in _rows(found):
            for row in wanted.get((number, name), ()):
                paths[row] = _path_in(self.roots[number].path, _text(name if place is None else place))
        return paths

    def how_to_keep(self, column: str) -> str | None:
        """Advice on how to store a column that a condition names; None if no folder has metadata."""
        described = self.table.filter(pa.compute.is_valid(self.table["row"]))
        first = pa.compute.min(described["root"]).as_py()
        if first is None:
            return None
        root = self.roots[first]
        options = " ".join(f"--keep {shortened(name)}" for name in (*root.keep, column))
        return (
            f"If the metadata of the folder {root.name} has it, index that folder again with {options}; nothing is "
            "encoded again."
        )


def table_of(roots: Sequence[Root], files: Mapping[str, Mapping[str, FileRecord]]) -> pa.Table:
    """The records of these folders as a table."""
    rows = [
        (number, _bytes(name), *record[:-1], None if record.place is None else _bytes(record.place))
        for number, root in enumerate(roots)
        for name, record in files.get(root.name, {}).items()
    ]
    columns = list(zip(*rows, strict=True)) or [()] * len(_SCHEMA)
    arrays = [pa.array(values, kind.type) for values, kind in zip(columns, _SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=_SCHEMA)


def _path_in(folder: str, place: str) -> str | None:
    """The path of a file in a folder, if it can be one; a place outside of the folder is absolute."""
    path = os.path.abspath(os.path.join(folder, place))  # noqa: PTH100, PTH118 - names may be no valid text
    try:
        return None if b"\0" in os.fsencode(path) else path
    except UnicodeEncodeError:
        return None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    for batch in table.to_batches():  # so that the values of few rows at once are Python objects twice
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _binary_array(values: Sequence[bytes]) -> pa.Array:
    """As `pa.array`, which also imports pandas; a search must not wait for that."""
    ends = np.cumsum([0, *map(len, values)], dtype=np.int64)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.large_binary(), len(values), buffers).cast(pa.binary())


def _checked_root(found: Any) -> Root:
    kinds: dict[str, type | tuple[type, ...]] = {
        "name": str, "path": str, "in_ids": bool, "hidden": bool, "split": (str, type(None)), "keep": list,
    }  # fmt: skip
    if not isinstance(found, dict) or found.keys() != kinds.keys():
        raise HashIndexError("one of its folders is not described")
    for name, kind in kinds.items():
        if not isinstance(found[name], kind):
            raise HashIndexError(f"the {name} of one of its folders is not of its type")
    if not all(isinstance(column, str) for column in found["keep"]):
        raise HashIndexError("the columns of one of its folders are not text")
    values = {**found, "name": _unquoted(found["name"]), "path": _unquoted(found["path"])}
    return Root(**{**values, "keep": tuple(found["keep"])})


def _quoted(text: str) -> str:
    return quote(os.fsencode(text), safe="/ ")


def _unquoted(text: str) -> str:
    return os.fsdecode(unquote_to_bytes(text))
