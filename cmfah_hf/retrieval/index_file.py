"""An index on disk: one safetensors file, written whole or not at all, checked before it is used.

Tensors: `codes` `(N, K / 8)` U8; `ids` `(N,)` I64, or `id_bytes` U8 and `id_ends` `(N,)` I64; where there is metadata,
`table` I64, the bytes of an Arrow IPC stream filled up to whole numbers. The header says the rest, among it a checksum
over everything and a stamp that every save makes anew.
"""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import filelock
import numpy as np
import pyarrow as pa
import safetensors
import safetensors.numpy

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.codes import check_bits
from cmfah_hf.retrieval.ids import Ids, IntegerIds, StringIds

FORMAT, FORMAT_VERSION = "cmfah-hash-index", "2"
# Version 1 had neither metadata nor stamps.
READABLE_VERSIONS = ("1", FORMAT_VERSION)
LOCK_TIMEOUT_S = 60.0

_TENSOR_TYPES = {"codes": "U8", "ids": "I64", "id_bytes": "U8", "id_ends": "I64", "table": "I64"}
_NUMPY_TYPES = {"U8": np.dtype("u1"), "I64": np.dtype("<i8")}


def write_index(
    path: Path,
    codes: np.ndarray,
    ids: Ids,
    table: pa.Table | None,
    next_id: int,
    expected_stamp: str | None,
    model: str | None = None,
) -> str:
    """Writes an index and returns its new stamp.

    Args:
        path: The file; it is replaced in one step.
        codes: `(N, K / 8)`.
        ids: `N` of them.
        table: Of `N` rows, or None.
        next_id: The integer id that the next item gets.
        expected_stamp: Of the file as the index knows it. None: whatever is there is replaced.
        model: Fingerprint of the model that made the codes. None: they were made elsewhere.

    Raises:
        HashIndexError: If the file has another stamp, another process is writing it all the time, or the disk is full
            or cannot be written to. What was there is left as it was.
    """
    if path.is_dir():
        raise HashIndexError(f"{path} is a folder; name a file in it for the index.")
    tensors = {"codes": np.ascontiguousarray(codes)}
    if isinstance(ids, StringIds):
        tensors |= {"id_bytes": ids.text, "id_ends": ids.ends}
    else:
        tensors["ids"] = ids.values
    if table is not None:
        tensors["table"] = _table_to_numbers(table)
    header = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "bits": str(codes.shape[1] * 8),
        "count": str(len(codes)),
        "id_type": "str" if isinstance(ids, StringIds) else "int",
        "next_id": str(next_id),
        "stamp": secrets.token_hex(16),
    }
    if model is not None:
        header["model"] = model
    header["checksum"] = checksum(header, tensors)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if expected_stamp is not None and path.is_file() and _opened(path)[0].get("stamp") != expected_stamp:
                raise HashIndexError(
                    f"{path} was saved by somebody else since this index was loaded from it or saved to it; load it "
                    "anew and repeat the changes, save to another file, or pass overwrite=True."
                )
            safetensors.numpy.save_file(tensors, temporary, metadata=header)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
    except (OSError, safetensors.SafetensorError) as error:
        raise HashIndexError(
            f"{path} could not be written ({error}); what was there before is as it was. Make room, or save elsewhere."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return header["stamp"]


def read_index(path: Path, mmap: bool) -> tuple[dict[str, str], np.ndarray, Ids, pa.Table | None]:
    """The checked header, codes, ids and metadata of an index file, mapped from it or copied to memory.

    Raises:
        HashIndexError: If the file is missing, damaged, of another kind or of another version.
    """
    header, tensors = _opened(path)
    if header.get("format") != FORMAT:
        raise HashIndexError(f"{path} is safetensors but no hash index; give the file that an index was saved to.")
    if header.get("version") not in READABLE_VERSIONS:
        raise HashIndexError(
            f"{path} has version {header.get('version')} of the format, this release reads version "
            f"{' and '.join(READABLE_VERSIONS)}; save the index anew."
        )
    if not mmap:
        tensors = {name: np.array(tensor) for name, tensor in tensors.items()}
    if header.get("checksum") != checksum(header, tensors) or not _fits(header, tensors):
        raise HashIndexError(f"{path} is damaged: its content does not match its checksum; save the index anew.")
    table = None
    if "table" in tensors:
        table = pa.ipc.open_stream(pa.py_buffer(tensors["table"])).read_all()
        if table.num_rows != int(header["count"]):
            raise HashIndexError(f"{path} is damaged: its metadata has {table.num_rows} rows; save the index anew.")
    strings = header["id_type"] == "str"
    ids = StringIds(tensors["id_bytes"], tensors["id_ends"]) if strings else IntegerIds.of(tensors["ids"])
    return header, tensors["codes"], ids, table


def checksum(header: dict[str, str], tensors: dict[str, np.ndarray]) -> str:
    """Over everything in the file but the checksum itself."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in header.items() if k != "checksum"}, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].shape}".encode())
        if tensors[name].size:
            digest.update(memoryview(np.ascontiguousarray(tensors[name])).cast("B"))
    return f"sha256:{digest.hexdigest()}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        with filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_TIMEOUT_S):
            yield
    except filelock.Timeout:
        raise HashIndexError(
            f"{path} has been locked by another process for {LOCK_TIMEOUT_S:g} seconds; wait, or save elsewhere."
        ) from None


def _sync_folder(folder: Path) -> None:
    # A rename is on the disk only when its folder is. Windows cannot open one.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _opened(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Header and tensors, out of one opening of the file: it may be replaced at any time."""
    if not path.is_file():
        raise HashIndexError(f"{path} is no file; give the file that an index was saved to.")
    try:
        with path.open("rb") as file:
            content = np.asarray(np.memmap(file, np.uint8, "r"))
        start = 8 + int.from_bytes(content[:8].tobytes(), "little")
        layout = json.loads(content[8:start].tobytes())
        header, tensors = layout.pop("__metadata__", {}), {}
        for name, entry in layout.items():
            if entry["dtype"] == _TENSOR_TYPES.get(name):
                first, end = (start + offset for offset in entry["data_offsets"])
                tensors[name] = content[first:end].view(_NUMPY_TYPES[entry["dtype"]]).reshape(entry["shape"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HashIndexError(f"{path} is damaged or no hash index ({error}); save the index anew.") from error
    return header, tensors


def _fits(header: dict[str, str], tensors: dict[str, np.ndarray]) -> bool:
    """Whether the shapes are those that the header promises. The kernels read past the end of what is too short."""
    try:
        bits, count, _ = check_bits(int(header["bits"])), int(header["count"]), int(header["next_id"])
    except (KeyError, ValueError):
        return False
    shapes = {name: tensor.shape for name, tensor in tensors.items() if name != "table"}
    if header.get("id_type") == "str":
        if shapes != {"codes": (count, bits // 8), "id_ends": (count,), "id_bytes": shapes.get("id_bytes")}:
            return False
        ends = tensors["id_ends"]
        return bool((np.diff(ends, prepend=0) >= 0).all()) and (ends[-1] if count else 0) == tensors["id_bytes"].size
    return shapes == {"codes": (count, bits // 8), "ids": (count,)}


def _table_to_numbers(table: pa.Table) -> np.ndarray:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    raw = np.frombuffer(sink.getvalue(), np.uint8)
    return np.pad(raw, (0, -len(raw) % 8)).view("<i8")
