"""HDF5 files, including MATLAB 7.3 (`.mat`): list of variables, and lazy access to their values."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cmfah_hf.data.matrices.storage import BLOCK_BYTES, BlockReader, RawArray, Variable, Writer, inflate, spool
from cmfah_hf.errors import DataError

# Limit for a block that is aligned with chunks; reading a chunk in parts would inflate it several times.
_LARGEST_BLOCK = 6 * BLOCK_BYTES
# h5py holds whole chunks in memory, so larger ones are inflated into a temporary file instead.
_LARGEST_CHUNK = 2 * BLOCK_BYTES
_GZIP, _SHUFFLE = 1, 2
_SHUFFLE_BLOCK = 1 << 20
# Limit for chunks that only h5py can read.
_LARGEST_IN_MEMORY = 1 << 30
# Deflate compresses zeros to a thousandth, and chunks that were never written take no space: up to a moderate size,
# these may be matrices of few tags.
_MOST_RATIO, _LARGEST_UNPROVEN = 1100, 64 << 30
_MOST_AXES = 32
# Errors of h5py on damaged files: missing members and attributes, invalid types and sizes.
_DAMAGED = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError, AttributeError)


@dataclass(frozen=True)
class Hdf5Variable(Variable):
    """A data set of the file, or a group with a sparse matrix."""

    def open(self) -> BlockReader:
        with _opened(self.file) as file:
            return open_dataset(_own(file, self.name, self.file), f"{self.file}, {self.name}")

    def load_sparse(self) -> Any:
        """MATLAB's layout, by columns: `ir` the row of each value, `jc` the offset of each column."""
        from scipy.sparse import csc_matrix

        with _opened(self.file) as file:
            group = _own(file, self.name, self.file)
            offsets, rows, values = (
                _own(group, part, self.file)[:] if part in group else np.zeros(0) for part in ("jc", "ir", "data")
            )
            for part in (offsets, rows, values):
                if part.dtype.kind not in "biuf" or part.ndim != 1:
                    raise DataError(f"{self.file}, {self.name}: not a valid sparse matrix; save it again.")
            height, width = self.shape
            found = csc_matrix((values, rows.astype(np.int64), offsets.astype(np.int64)), shape=(height, width))
            found.check_format(full_check=True)
            return found


def list_hdf5(path: Path) -> list[Variable]:
    """The variables of an HDF5 file, which are its top-level data sets and groups; no value is read."""
    with _opened(path) as file:
        with path.open("rb") as start:
            is_matlab = file.userblock_size > 0 and start.read(6) == b"MATLAB"
        names = [name for name in file if not name.startswith("#")]  # "#refs#" holds the content of MATLAB's cells
        found = [_described(file, name, path, is_matlab) for name in names]
    return [variable for variable in found if variable is not None]


def _described(file: Any, name: str, path: Path, is_matlab: bool) -> Variable | None:
    """One variable by its attributes; None for a named type, which has no values."""
    import h5py

    item = _own(file, name, path)
    kind = item.attrs.get("MATLAB_class", b"")
    kind = kind.decode("latin-1") if isinstance(kind, bytes) else str(kind)
    writer: Writer = "hdf5-matlab" if is_matlab or kind else "hdf5"
    if isinstance(item, h5py.Group):
        rows = item.attrs.get("MATLAB_sparse")
        if rows is None or "jc" not in item:
            return Hdf5Variable(path, name, (), kind or "group", writer, is_numeric=False)
        sparse_shape = (int(rows), max(0, _own(item, "jc", path).shape[0] - 1))
        return Hdf5Variable(path, name, sparse_shape, f"sparse {kind}".strip(), writer, is_sparse=True)
    if not isinstance(item, h5py.Dataset):
        return None
    is_numeric = item.dtype.kind in "biuf" and kind not in ("cell", "char")
    shape: tuple[int, ...] = item.shape or ()
    if item.attrs.get("MATLAB_empty") and len(shape) == 1 and shape[0] <= _MOST_AXES and is_numeric:
        shape = tuple(int(size) for size in item[()])[::-1]  # the content of an empty array is its shape
    return Hdf5Variable(path, name, shape, kind or str(item.dtype), writer, is_numeric)


def _own(group: Any, name: str, path: Path) -> Any:
    """A member of a group whose values are in this file; a link could name any file of this machine."""
    import h5py

    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        raise DataError(f"{path}, {name}: is a link, which may lead to another file; save the values themselves.")
    item = group[name]
    if isinstance(item, h5py.Dataset) and (item.is_virtual or item.external):
        raise DataError(f"{path}, {name}: has its values in other files; save them in this one.")
    return item


def open_dataset(dataset: Any, name: str) -> BlockReader:
    """A data set as blocks of rows; a single huge chunk is inflated into a temporary file."""
    size, stored = prod(dataset.shape) * dataset.dtype.itemsize, dataset.id.get_storage_size()
    if size > _LARGEST_UNPROVEN and size > _MOST_RATIO * stored:
        raise DataError(
            f"{name}: its {stored:,} bytes would expand to {size:,}, more than any data do; check where it is from."
        )
    if dataset.chunks is None or prod(dataset.chunks) * dataset.dtype.itemsize <= _LARGEST_CHUNK:
        return _Chunked(dataset, name)
    filters = dataset.id.get_create_plist()
    used = [filters.get_filter(number)[0] for number in range(filters.get_nfilters())]
    if dataset.chunks != dataset.shape or used not in ([], [_GZIP], [_SHUFFLE, _GZIP]) or not _is_whole(dataset):
        if prod(dataset.chunks) * dataset.dtype.itemsize > _LARGEST_IN_MEMORY:
            raise DataError(f"{name}: has chunks of more than {_LARGEST_IN_MEMORY:,} bytes; save it in smaller ones.")
        return _Chunked(dataset, name)
    chunk = dataset.id.get_chunk_info(0)
    dtype, shape = dataset.dtype, dataset.shape
    size = prod(shape) * dtype.itemsize
    file = Path(dataset.file.filename).open("rb")  # noqa: SIM115 - the array that reads it keeps it open
    if not used and chunk.byte_offset is not None:
        return RawArray(file, chunk.byte_offset, shape, dtype, "C", name)
    file.seek(chunk.byte_offset)
    with file:
        unpacked = spool(inflate(file, chunk.size, name), size, name)
    if _SHUFFLE in used and dtype.itemsize > 1:
        with unpacked:
            unpacked, planes = spool(_unshuffled(unpacked, size, dtype.itemsize), size, name), unpacked
            planes.close()
    return RawArray(unpacked, 0, shape, dtype, "C", name)


def _is_whole(dataset: Any) -> bool:
    """Whether the data set is one chunk that was written with all filters."""
    return dataset.id.get_num_chunks() == 1 and dataset.id.get_chunk_info(0).filter_mask == 0


def _unshuffled(file: BinaryIO, size: int, width: int) -> Iterator[bytes]:
    """The values before HDF5's shuffle filter, which stores all first bytes, then all second bytes, and so on."""
    count = size // width
    for start in range(0, count, _SHUFFLE_BLOCK):
        stop = min(start + _SHUFFLE_BLOCK, count)
        planes = []
        for plane in range(width):
            file.seek(plane * count + start)
            planes.append(np.frombuffer(file.read(stop - start), np.uint8))
        yield np.stack(planes, axis=1).tobytes()


class _Chunked:
    """A data set that h5py reads, as `BlockReader`.

    The file is opened for each block, which takes little time compared to reading one: an open HDF5 file is locked
    against writing, and must not be shared with a forked process.
    """

    def __init__(self, dataset: Any, name: str):
        self.shape, self.dtype, self.chunks, self.name = dataset.shape, dataset.dtype, dataset.chunks, name
        self._file, self._dataset = Path(dataset.file.filename), dataset.name.lstrip("/")

    def block_rows(self, axis: int) -> int:
        row_bytes = max(1, prod(self.shape) // max(1, self.shape[axis]) * self.dtype.itemsize)
        rows = max(1, BLOCK_BYTES // row_bytes)
        chunk = self.chunks[axis] if self.chunks else 1
        if chunk * row_bytes <= _LARGEST_BLOCK:
            return max(chunk, rows // chunk * chunk)
        return rows

    def read(self, axis: int, start: int, stop: int) -> np.ndarray:
        with _opened(self._file) as file:
            return _own(file, self._dataset, self._file)[(slice(None),) * axis + (slice(start, stop),)]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open file; errors of h5py while it is read become a `DataError` of one line."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError:
        raise
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{path}: not a readable HDF5 file ({reason}); where it is cut short, fetch it again."
        ) from error
