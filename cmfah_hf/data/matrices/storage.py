"""Arrays on disk, read in blocks of rows along any axis; compressed ones are inflated into temporary files.

Files are not memory-mapped: mapped pages count as memory of this process until the system reclaims them, so a pass over
four gigabytes would run into memory limits.
"""

import os
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np

from cmfah_hf.errors import DataError

# Size of one block of rows, where the file's layout leaves the choice.
BLOCK_BYTES = 32 << 20
_PIECE_BYTES = 1 << 20

Writer = Literal["matlab", "hdf5-matlab", "hdf5"]


class BlockReader(Protocol):
    """A dense array that is read in blocks of rows."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def block_rows(self, axis: int) -> int:
        """The number of rows along `axis` to read at once."""

    def read(self, axis: int, start: int, stop: int) -> np.ndarray:
        """The rows from `start` to `stop` along `axis`, with the axes in the array's own order."""


@dataclass(frozen=True)
class Variable:
    """One variable of a file, described by its header."""

    file: Path
    name: str
    shape: tuple[int, ...]  # as NumPy shows it; for HDF5 files written by MATLAB, MATLAB's axes in reverse
    kind: str  # in the file's own words
    writer: Writer  # decides the order of axes
    is_numeric: bool = True
    is_sparse: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(filter(None, (self.kind, ' x '.join(map(str, self.shape)))))})"

    def open(self) -> BlockReader:
        """The values of a dense variable."""
        raise NotImplementedError

    def load_sparse(self) -> Any:
        """The values of a sparse variable, as a `scipy.sparse.csc_matrix`."""
        raise NotImplementedError


class RawArray:
    """A contiguous array in a file open for reading, as `BlockReader`; in order `"F"` the first axis varies fastest."""

    def __init__(
        self, file: BinaryIO, offset: int, shape: tuple[int, ...], dtype: np.dtype, order: Literal["C", "F"], name: str
    ):
        self.file, self.offset, self.shape, self.dtype, self.order, self.name = file, offset, shape, dtype, order, name

    def block_rows(self, axis: int) -> int:
        return max(1, BLOCK_BYTES // max(1, prod(self.shape) // max(1, self.shape[axis]) * self.dtype.itemsize))

    def read(self, axis: int, start: int, stop: int) -> np.ndarray:
        # Read as C order: an array in Fortran order is its transpose in C order.
        shape = self.shape if self.order == "C" else self.shape[::-1]
        position = axis if self.order == "C" else len(shape) - 1 - axis
        outer, inner = prod(shape[:position]), prod(shape[position + 1 :]) * self.dtype.itemsize
        run = (stop - start) * inner
        values = b"".join(
            self._bytes(self.offset + (number * shape[position] + start) * inner, run) for number in range(outer)
        )
        block = np.frombuffer(values, self.dtype).reshape(*shape[:position], stop - start, *shape[position + 1 :])
        return block if self.order == "C" else block.transpose()

    def _bytes(self, offset: int, length: int) -> bytes:
        # `pread` does not move the file's position, which forked processes share.
        if hasattr(os, "pread"):
            content = os.pread(self.file.fileno(), length, offset)
        else:
            self.file.seek(offset)
            content = self.file.read(length)
        if len(content) != length:
            raise DataError(f"{self.name}: the file ends within the values; it is cut short, fetch it again.")
        return content


class InMemory:
    """A small array in memory, as `BlockReader`."""

    def __init__(self, values: np.ndarray):
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def block_rows(self, axis: int) -> int:
        return max(1, self.shape[axis])

    def read(self, axis: int, start: int, stop: int) -> np.ndarray:
        return self.values[(slice(None),) * axis + (slice(start, stop),)]


def inflate(file: BinaryIO, length: int, name: str) -> Iterator[bytes]:
    """The content of `length` bytes of zlib data at the file's position, in pieces of a megabyte."""
    unpacker = zlib.decompressobj()
    pending = b""
    try:
        while not unpacker.eof:
            if not pending:
                pending = file.read(min(_PIECE_BYTES, length))
                length -= len(pending)
                if not pending:
                    raise DataError(f"{name}: the compressed values end early; the file is cut short, fetch it again.")
            piece = unpacker.decompress(pending, _PIECE_BYTES)
            pending = unpacker.unconsumed_tail
            if piece:
                yield piece
    except zlib.error as error:
        raise DataError(f"{name}: the compressed values are damaged ({error}); fetch the file again.") from error


def spool(pieces: Iterator[bytes], length: int, name: str) -> BinaryIO:
    """The first `length` bytes of these pieces in a temporary file, which is deleted when it is closed."""
    file = tempfile.TemporaryFile(prefix="cmfah-")  # noqa: SIM115 - the array that reads it keeps it open
    left = length
    try:
        for piece in pieces:
            file.write(piece[:left])
            left -= min(left, len(piece))
        file.flush()
    except OSError as error:
        file.close()
        raise DataError(
            f"{name}: its {length:,} bytes do not fit into {tempfile.gettempdir()} ({error}); name a larger folder in "
            "the environment variable TMPDIR."
        ) from error
    if left:
        file.close()
        raise DataError(f"{name}: {left:,} bytes of its values are missing; the file is cut short, fetch it again.")
    return file
