"""Files that rows name, placed below the data set's root before anything opens them, or fetched on request.

Every feature of `datasets` that decodes a file (`Image`, `Audio`, `Video` and the like) is stored as `{"bytes",
"path"}` and opens the path where there are no bytes. `datasets` also opens an existing path next to bytes when it
encodes a row again, so rows with bytes keep no path.
"""

import http.client
import logging
import time
import urllib.request
from collections.abc import Mapping
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from cmfah_hf.data.data_root import DataRoot
from cmfah_hf.data.file_state import FileState, digest_of, file_states
from cmfah_hf.data.internals import fingerprint_of
from cmfah_hf.data.rows.errors import in_row
from cmfah_hf.errors import ImageError

logger = logging.getLogger(__name__)

FETCH_SECONDS = 30.0
FETCH_BYTES = 64 * 2**20
_PIECE = 2**16
_HANDLERS = (
    urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
    urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor, urllib.request.HTTPDefaultErrorHandler,
    urllib.request.UnknownHandler,
)  # fmt: skip
# Rows with their files in the table that are copied at once.
_PORTION = 100


def is_file(feature: Any) -> bool:
    """Whether a feature is a file that is decoded on access."""
    return getattr(feature, "pa_type", None) == datasets.Image.pa_type


def holds_files(feature: Any) -> bool:
    """Whether a feature is a file or contains one."""
    if isinstance(feature, Mapping):
        return any(map(holds_files, feature.values()))
    inner = getattr(feature, "feature", None)
    return is_file(feature) or (inner is not None and holds_files(inner))


def placed_value(value: Any, feature: Any, root: DataRoot) -> Any:
    """A value of a row with all its files placed or fetched; `DataError` if a path leads outside the root."""
    if value is None:
        return None
    if is_file(feature):
        return _placed_file(value, root)
    if isinstance(feature, Mapping) and isinstance(value, Mapping):
        return {name: placed_value(part, feature.get(name), root) for name, part in value.items()}
    if holds_files(feature):
        return [placed_value(part, feature.feature, root) for part in value]
    return value


def placed_array(array: pa.Array, feature: Any, root: DataRoot, first_row: int) -> pa.Array:
    """A column of a table with all its files placed or fetched; the bytes of a plain column are not copied."""
    if not is_file(feature):
        values = [
            in_row(first_row + number, placed_value, value, feature, root)
            for number, value in enumerate(array.to_pylist())
        ]
        return pa.array(values, array.type)
    contents = array.field("bytes")
    if pc.all(pc.or_(array.is_null(), contents.is_valid())).as_py() in (True, None):
        return _as_files(contents, pa.nulls(len(array), pa.string()), array)
    paths = array.field("path").to_pylist()
    has_bytes = contents.is_valid().to_pylist()
    fetched: dict[int, bytes] = {}
    for row, path in enumerate(paths):
        if path is None or has_bytes[row] or not array[row].is_valid:
            paths[row] = None
            continue
        found = in_row(first_row + row, _placed_file, {"path": path, "bytes": None}, root)
        paths[row] = found["path"]
        if found["bytes"] is not None:
            fetched[row] = found["bytes"]
    if fetched:
        contents = pa.array(
            [fetched.get(row, content) for row, content in enumerate(contents.to_pylist())], pa.binary()
        )
    return _as_files(contents, pa.array(paths, pa.string()), array)


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as one array; `combine_chunks` of an extension type may give a chunked one again."""
    while isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return column


def _as_files(contents: pa.Array, paths: pa.Array, array: pa.Array) -> pa.Array:
    return pa.StructArray.from_arrays([contents, paths], ["bytes", "path"], mask=array.is_null())


def placed_table(dataset: datasets.Dataset, root: DataRoot) -> datasets.Dataset:
    """A map-style data set with all its files placed or fetched; a column of bytes alone stays on disk."""
    for name, feature in list(dataset.features.items()):
        if not holds_files(feature):
            continue
        column = dataset.select_columns([name])
        if is_file(feature) and _are_all_bytes(column, name):
            raw = datasets.Image(decode=False)
            part = column.cast_column(name, raw).flatten().select_columns([f"{name}.bytes"])
            part = part.rename_column(f"{name}.bytes", name).cast_column(name, feature)
        else:
            part = _mapped(column, name, feature, root)
        order = dataset.column_names
        rest = dataset.remove_columns(name)
        joined = datasets.concatenate_datasets([rest, part], axis=1) if rest.column_names else part
        dataset = joined.select_columns(order)
    return dataset


def _are_all_bytes(column: datasets.Dataset, name: str) -> bool:
    return all(
        pc.all(pc.or_(chunk.is_null(), chunk.field("bytes").is_valid())).as_py() in (True, None)
        for chunk in column.data.column(name).chunks
    )


def _mapped(column: datasets.Dataset, name: str, feature: Any, root: DataRoot) -> datasets.Dataset:
    # Not from the cache: the file at a path may have become a link since.
    mapped = column.with_format("arrow").map(
        _PlacedColumn(name, feature, root),
        with_indices=True,
        batched=True,
        batch_size=_PORTION,
        features=column.features,
        load_from_cache_file=False,
        desc="Finding images",
    )
    paths = []
    if is_file(feature):
        paths = [path for chunk in mapped.data.column(name).chunks for path in chunk.field("path").to_pylist() if path]
    # Results computed from these rows are cached under their fingerprint, so changed content has to change it.
    return datasets.Dataset(
        mapped.data,
        mapped.info,
        mapped.split,
        fingerprint=digest_of([FileState(fingerprint_of(mapped), 0), *file_states(paths)]),
    )


class _PlacedColumn:
    def __init__(self, name: str, feature: Any, root: DataRoot):
        self.name, self.feature, self.root = name, feature, root

    def __call__(self, table: pa.Table, rows: list[int]) -> pa.Table:
        return pa.table({self.name: placed_array(one_array(table[self.name]), self.feature, self.root, rows[0])})


def _placed_file(value: Any, root: DataRoot) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        value = datasets.Image().encode_example(value)
    if value.get("bytes") is not None:
        return {"bytes": value["bytes"], "path": None}
    path = value.get("path")
    if path is None:
        return {"bytes": None, "path": None}
    place = root.place(path)
    if place.lower().startswith(("http://", "https://")):
        try:
            return {"bytes": fetch(place), "path": None}
        except ImageError as error:
            logger.warning("Left without content: %s", error)
            return {"bytes": b"", "path": None}
    return {"bytes": None, "path": place}


def fetch(url: str) -> bytes:
    """The content at an `http` or `https` address, within `FETCH_BYTES` and `FETCH_SECONDS`."""
    opener = urllib.request.OpenerDirector()
    for handler in _HANDLERS:  # no others, so that a redirect cannot lead to a local file
        opener.add_handler(handler())
    content = bytearray()
    deadline = time.monotonic() + FETCH_SECONDS
    try:
        with opener.open(urllib.request.Request(url), timeout=FETCH_SECONDS) as response:
            while piece := response.read1(_PIECE):
                content += piece
                if len(content) > FETCH_BYTES:
                    raise ImageError(f"{url}: has more than {FETCH_BYTES:,} bytes; remove the row.")
                if time.monotonic() > deadline:
                    raise ImageError(f"{url}: took more than {FETCH_SECONDS:g} seconds; try again, or remove the row.")
    except ImageError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: not a valid address
        reason = " ".join((str(error) or type(error).__name__).split())
        raise ImageError(f"{url}: cannot be fetched ({reason}); check the address, or remove the row.") from error
    return bytes(content)
