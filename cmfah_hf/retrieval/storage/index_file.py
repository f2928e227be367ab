"""The file format of an index: one safetensors file, written atomically and checked before use.

Tensors: `codes` `(N, K / 8)` U8; `ids` `(N,)` I64, or `id_bytes` U8 and `id_ends` `(N,)` I64; with metadata also
`table` I64, an Arrow IPC stream padded to whole integers; with folders that the index follows also `files` I64, their
files likewise. The header holds the rest, with a checksum over everything and a stamp that is new with every save.

The checksum finds damage, but anybody can compute it. So a file is trusted only after everything in it was checked:
sizes and offsets against the file, the ids, the table down to the offsets of its strings.
"""

import hashlib
import json
import math
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa
import safetensors.numpy

from cmfah_hf.atomic import atomic_file
from cmfah_hf.documents import file_of, parse_json
from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.codes import check_bits, shortened
from cmfah_hf.retrieval.storage.folder_records import FolderRecords
from cmfah_hf.retrieval.storage.id_checks import first_repeated, is_text
from cmfah_hf.retrieval.storage.ids import Ids, IntegerIds, StringIds
from cmfah_hf.retrieval.storage.stored_table import numbers_of_table, table_of_numbers

FORMAT, FORMAT_VERSION = "cmfah-hash-index", "3"
# Version 1 had neither metadata nor stamps. Version 3 has folders; without any, the file is of version 2.
WITHOUT_FOLDERS = "2"
READABLE_VERSIONS = ("1", WITHOUT_FOLDERS, FORMAT_VERSION)

# Headers have a few hundred bytes.
_MOST_HEADER_BYTES = 2**20
_TENSOR_TYPES = {"codes": "U8", "ids": "I64", "id_bytes": "U8", "id_ends": "I64", "table": "I64", "files": "I64"}
_NUMPY_TYPES: dict[str, np.dtype] = {"U8": np.dtype("u1"), "I64": np.dtype("<i8")}


def write_index(
    path: Path,
    codes: np.ndarray,
    ids: Ids,
    table: pa.Table | None,
    next_id: int,
    expected_stamp: str | None,
    model: str | None = None,
    folders: FolderRecords | None = None,
) -> str:
    """Replaces an index file in one step and returns its new stamp.

    If `expected_stamp` is given and the file has another one, or it cannot be written, the old file stays and a
    `HashIndexError` is raised. `next_id` is the integer id of the next item that comes without one, `model` the
    fingerprint, `folders` those that the index follows.
    """
    tensors = {"codes": np.ascontiguousarray(codes)}
    if isinstance(ids, StringIds):
        tensors |= {"id_bytes": ids.text, "id_ends": ids.ends}
    else:
        tensors["ids"] = ids.values
    if table is not None:
        tensors["table"] = numbers_of_table(table)
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION if folders is not None else WITHOUT_FOLDERS,
        "bits": str(codes.shape[1] * 8),
        "count": str(len(codes)),
        "id_type": "str" if isinstance(ids, StringIds) else "int",
        "next_id": str(next_id),
        "stamp": secrets.token_hex(16),
    }
    if model is not None:
        header["model"] = model
    if folders is not None:
        tensors["files"] = numbers_of_table(folders.table)
        header |= {"folders": folders.header(), "files": str(len(folders.table))}
    header["checksum"] = checksum(header, tensors)
    with atomic_file(path, HashIndexError) as temporary:
        is_expected = expected_stamp is None or file_of(path) is None
        if not is_expected and _layout(_content(path, mmap=True), path)[0].get("stamp") != expected_stamp:
            raise HashIndexError(
                f"{path} was saved by another program since this index was loaded from it or saved to it; load it "
                "again and repeat the changes, save to another file, or pass overwrite=True."
            )
        safetensors.numpy.save_file(tensors, temporary, metadata=header)
    return header["stamp"]


def is_index_file(path: Path) -> bool:
    """Whether a file begins as an index does, of whatever version; nothing else of it is read."""
    if file_of(path) is None:
        return False
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return f'"{FORMAT}"'.encode() in file.read(min(size, _MOST_HEADER_BYTES))


def copy_without_folders(path: Path, target: Path) -> bool:
    """Copies an index file without the folders that it follows, whose paths are private.

    Returns whether there were folders to leave out; without any, nothing is written.
    """
    found = read_index(path, mmap=True)
    if found.folders is None:
        return False
    next_id, model = int(found.header["next_id"]), found.header.get("model")
    write_index(target, found.codes, found.ids, found.table, next_id, None, model)
    return True


@dataclass(frozen=True, eq=False)
class IndexContent:
    """The content of an index file: header, codes `(N, K / 8)`, ids, metadata and folders."""

    header: dict[str, str]
    codes: np.ndarray
    ids: Ids
    table: pa.Table | None
    folders: FolderRecords | None


def read_index(path: Path, mmap: bool) -> IndexContent:
    """The checked content of an index file, mapped from it or copied to memory."""
    content = _content(path, mmap)
    header, layout, start = _layout(content, path)
    if header.get("format") != FORMAT:
        raise HashIndexError(
            f"{path} is a safetensors file but not a hash index; give the file that an index was saved to."
        )
    if header.get("version") not in READABLE_VERSIONS:
        raise HashIndexError(
            f"{path} has version {header.get('version', '')[:20]} of the format, this release reads version "
            f"{' and '.join(READABLE_VERSIONS)}; save the index anew."
        )
    tensors = _tensors(layout, content[start:], start, path)
    if header.get("checksum") != checksum(header, tensors):
        raise _damaged(path, "its content does not match its checksum")
    count = _check_shapes(header, tensors, path)
    ids = _checked_ids(header, tensors, path)
    try:
        table = table_of_numbers(tensors["table"], count) if "table" in tensors else None
        folders = _checked_folders(header, tensors)
    except HashIndexError as error:
        raise _damaged(path, str(error)) from error
    return IndexContent(header, tensors["codes"], ids, table, folders)


def checksum(header: dict[str, str], tensors: dict[str, np.ndarray]) -> str:
    """The checksum over everything in the file but the checksum itself."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in header.items() if k != "checksum"}, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].shape}".encode())
        if tensors[name].size:
            digest.update(np.ascontiguousarray(tensors[name]).data.cast("B"))
    return f"sha256:{digest.hexdigest()}"


def _damaged(path: Path, what: str) -> HashIndexError:
    return HashIndexError(f"{path} is damaged: {what}; save the index anew.")


def _content(path: Path, mmap: bool) -> np.ndarray:
    """All bytes, from a single open: the file may be replaced at any time."""
    if file_of(path) is None:
        raise HashIndexError(f"{path} is not a file; give the file that an index was saved to.")
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            if not mmap or not size:  # an empty file cannot be mapped
                return np.fromfile(file, np.uint8, size)
            return np.asarray(np.memmap(file, np.uint8, "r"))
    except OSError as error:
        raise HashIndexError(f"{path} cannot be read ({error.strerror or error}); check the file.") from error


def _layout(content: np.ndarray, path: Path) -> tuple[dict[str, str], dict[str, Any], int]:
    """The header, the layout of the tensors, and the offset of the first one."""
    where = f"{path} is damaged or not a hash index: its header"
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    if not 8 < start <= min(len(content), _MOST_HEADER_BYTES):
        raise HashIndexError(f"{where} has no such length; save the index anew.")
    layout = parse_json(content[8:start].tobytes(), where, HashIndexError)
    if not isinstance(layout, dict):
        raise HashIndexError(f"{where} is not a mapping; save the index anew.")
    header = layout.pop("__metadata__", {})
    if not isinstance(header, dict) or not all(isinstance(value, str) for value in header.values()):
        raise HashIndexError(f"{where} has metadata other than text; save the index anew.")
    return header, layout, start


def _tensors(layout: dict[str, Any], content: np.ndarray, start: int, path: Path) -> dict[str, np.ndarray]:
    """Views of the tensors, which must follow each other without gaps and fill the file."""
    spans, tensors = [], {}
    for name, entry in layout.items():
        entry = entry if isinstance(entry, dict) else {}
        kind, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        if kind is None or kind != _TENSOR_TYPES.get(name):
            raise _damaged(path, f"it holds {shortened(name)} of the type {shortened(kind)}")
        if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
            raise _damaged(path, f"the shape or the place of {name!r} is not a list of numbers")
        (first, end), dtype = offsets, _NUMPY_TYPES[_TENSOR_TYPES[name]]
        size = math.prod(shape) * dtype.itemsize
        if not first <= end <= len(content) or end - first != size or (start + first) % dtype.itemsize:
            raise _damaged(path, f"{name!r} is not where its header says")
        spans.append((first, end))
        tensors[name] = content[first:end].view(dtype).reshape(shape)
    at = 0
    for first, end in sorted(spans):
        if first != at:
            raise _damaged(path, "its parts overlap, or leave gaps")
        at = end
    if at != len(content):
        raise _damaged(path, f"{len(content) - at} bytes follow its end")
    return tensors


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    """Whether a value is a list of up to two sizes."""
    return isinstance(values, list) and len(values) <= 2 and all(type(v) is int and 0 <= v < 2**60 for v in values)


def _check_shapes(header: dict[str, str], tensors: dict[str, np.ndarray], path: Path) -> int:
    """The number of items. Kernels would read past the end of arrays that are shorter than their header says."""
    numbers = {name: header.get(name, "") for name in ("bits", "count", "next_id")}
    for name, text in numbers.items():
        if not (text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= 2**63):
            raise _damaged(path, f"its {name} is {shortened(text)}")
    bits, count = int(numbers["bits"]), int(numbers["count"])
    try:
        check_bits(bits)
    except HashIndexError as error:
        raise _damaged(path, f"its codes have {bits} bits") from error
    tables = ("table", "files")
    shapes: dict[str, tuple[int, ...]] = {name: tensor.shape for name, tensor in tensors.items() if name not in tables}
    expected: dict[str, tuple[int, ...]] = {"codes": (count, bits // 8)}
    if header.get("id_type") == "str":
        expected |= {"id_ends": (count,), "id_bytes": (tensors.get("id_bytes", np.empty(0)).size,)}
    else:
        expected["ids"] = (count,)
    are_flat = all(tensors.get(name, np.empty(0)).ndim == 1 for name in tables)
    if shapes != expected or not are_flat or header.get("id_type") not in ("str", "int"):
        raise _damaged(path, "its shapes are not those of its header")
    return count


def _checked_folders(header: dict[str, str], tensors: dict[str, np.ndarray]) -> FolderRecords | None:
    if "files" not in tensors and "folders" not in header:
        return None
    count = header.get("files", "")
    if not (count.isascii() and count.isdigit() and len(count) < 19) or "files" not in tensors:
        raise HashIndexError(f"its number of files is {shortened(count)}")
    return FolderRecords.of_header(header.get("folders", ""), table_of_numbers(tensors["files"], int(count)))


def _checked_ids(header: dict[str, str], tensors: dict[str, np.ndarray], path: Path) -> Ids:
    ids: Ids
    if header["id_type"] == "str":
        ids = StringIds.of(tensors["id_bytes"], tensors["id_ends"])
        if not is_text(ids):
            raise _damaged(path, "its ids are not text")
    else:
        ids = IntegerIds.of(tensors["ids"])
        if int(header["next_id"]) <= tensors["ids"].max(initial=-1):
            raise _damaged(path, f"the next id {header['next_id']} is not above its ids")
    if (repeated := first_repeated(ids)) is not None:
        raise _damaged(path, f"it holds id {shortened(repeated)} twice")
    return ids
