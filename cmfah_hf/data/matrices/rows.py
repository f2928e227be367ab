"""Rows of one matrix, read on demand: images and features in blocks, tags and labels as a sparse matrix."""

from collections.abc import Iterator
from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from cmfah_hf.data.matrices.axes import shown
from cmfah_hf.data.matrices.storage import BlockReader, Variable
from cmfah_hf.errors import DataError

# Limit for tags and labels; more positive values than this would take a gigabyte of memory.
_MOST_VALUES = 60_000_000
_MOST_COLUMNS = 1_000_000
# Limit for one row, with values of eight bytes: an image of 8,000 x 8,000.
_MOST_ROW_BYTES, _LARGEST_VALUE = 2**31, 8


class DenseRows:
    """Images `(N, H, W, C)` or features `(N, D)`; the block of the last row is cached.

    `rows[3]`, `rows[10:20]` and `len(rows)` work as for a NumPy array; `axes` are those of the file.
    """

    def __init__(self, variable: Variable, axes: str):
        self.variable, self.axes = variable, axes
        self._axis = axes.index("N")
        wanted = [letter for letter in "NHWCD" if letter in axes]
        self._order = [axes.index(letter) for letter in wanted]
        self.shape = tuple(variable.shape[position] for position in self._order)
        if "H" in axes and "C" not in axes:
            self.shape += (1,)
        row_bytes = prod(self.shape[1:]) * _LARGEST_VALUE
        if row_bytes > _MOST_ROW_BYTES:
            raise DataError(f"{variable.file}: {variable} has rows of {row_bytes:,} bytes; save smaller images.")
        self._block: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<{len(self):,} rows of {self.variable}, {shown(self.axes)}, of {self.variable.file}>"

    @property
    def dtype(self) -> np.dtype:
        return self._reader.dtype.newbyteorder("=")

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                return (
                    np.stack([self[row] for row in range(start, stop, step)])
                    if len(range(start, stop, step))
                    else np.zeros((0, *self.shape[1:]), self.dtype)
                )
            return self._rows(start, max(start, stop))
        row = range(len(self))[rows]
        size = self._reader.block_rows(self._axis)
        first = row // size * size
        if self._block is None or self._block[0] != first:
            self._block = None  # frees it before the next one is read
            self._block = first, self._rows(first, min(first + size, len(self)))
        return self._block[1][row - first]

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """The rows from `start` to `stop` in order, in blocks of about 32 MB."""
        stop = len(self) if stop is None else min(stop, len(self))
        size = self._reader.block_rows(self._axis)
        while start < stop:
            end = min(stop, (start // size + 1) * size)
            yield self._rows(start, end)
            start = end

    @cached_property
    def _reader(self) -> BlockReader:
        return self.variable.open()

    def _rows(self, start: int, stop: int) -> np.ndarray:
        block = self._reader.read(self._axis, start, stop).transpose(self._order)
        return block.reshape(*block.shape, 1) if block.ndim < len(self.shape) else block


class SparseRows:
    """Tags or labels, `(N, D)`, as a `scipy.sparse.csr_matrix` of the positive values, read on first access.

    A matrix with one column holds class numbers: it is `(N, 1)` and keeps its zeros.
    """

    def __init__(self, variable: Variable, axes: str):
        self.variable, self.axes = variable, axes
        size = dict(zip(axes, variable.shape, strict=True))
        self.shape = (size["N"], size.get("D", 1))
        if self.shape[0] > _MOST_VALUES or self.shape[1] > _MOST_COLUMNS:
            raise DataError(f"{variable.file}: {variable} is too large for tags or labels; check what it is.")

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<{len(self):,} rows of {self.variable}, {shown(self.axes)}, of {self.variable.file}>"

    def __getitem__(self, rows: int | slice) -> Any:
        """The rows as a CSR matrix."""
        if isinstance(rows, slice):
            return self.matrix[rows]
        row = range(len(self))[rows]
        return self.matrix[row : row + 1]

    def columns_of(self, row: int) -> np.ndarray:
        """The columns in which this row has a positive value, ascending."""
        first, last = self.matrix.indptr[row : row + 2]
        return self.matrix.indices[first:last]

    @property
    def are_class_numbers(self) -> bool:
        """Whether this is one column of class numbers, rather than one column for each class."""
        return self.shape[1] == 1

    @cached_property
    def class_numbers(self) -> tuple[int, int]:
        """The first and the last class number; MATLAB counts from 1, Python from 0."""
        numbers = self.matrix.data
        if numbers.min() < 0 or (numbers % 1 != 0).any():
            raise DataError(
                f"{self.variable.file}: {self.variable} is one column, but not of class numbers (integers from 0 or 1 "
                "on); give one column for each class."
            )
        if numbers.max() > _MOST_COLUMNS:
            raise DataError(
                f"{self.variable.file}: {self.variable} has a class number {numbers.max():,.0f}; check the file."
            )
        return min(int(numbers.min()), 1), int(numbers.max())

    def classes_of(self, row: int) -> list[int]:
        """The classes of this row, counted from 0."""
        if self.are_class_numbers:
            return [int(self.matrix.data[row]) - self.class_numbers[0]]
        return self.columns_of(row).tolist()

    @cached_property
    def matrix(self) -> Any:
        from scipy.sparse import csr_matrix

        if self.variable.is_sparse:
            found = self.variable.load_sparse()
            found = csr_matrix(found if self.axes == "ND" else found.T)
            self._check(found.data)
            if self.shape[1] == 1:
                places = np.arange(len(self)), np.zeros(len(self), np.int32)
                found = csr_matrix((found.toarray().ravel(), places), shape=self.shape)
        else:
            (row, column), values = self._positive()
            found = csr_matrix((values, (column, row) if self.axes == "DN" else (row, column)), shape=self.shape)
        if self.shape[1] > 1:
            found = found.astype(np.float32) if found.dtype == bool else found
            found.data[found.data < 0] = 0
            found.eliminate_zeros()
        found.sort_indices()
        return found

    def _positive(self) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        """Coordinates (row, column) of the positive values of a dense variable, and these values."""
        reader = self.variable.open()
        # Blocks are contiguous in the file, whichever axis that is of the matrix.
        axis = 0 if getattr(reader, "order", "C") == "C" else len(reader.shape) - 1
        places: list[list[np.ndarray]] = [[], []]
        values, count = [], 0
        size = reader.block_rows(axis)
        for start in range(0, reader.shape[axis], size):
            block = reader.read(axis, start, min(start + size, reader.shape[axis]))
            self._check(block)
            block = block.reshape(len(block), -1) if block.ndim == 1 else block
            kept = np.nonzero(block > 0) if self.shape[1] > 1 else np.nonzero(np.ones(block.shape, bool))
            offsets = (start, 0) if axis == 0 else (0, start)
            for place, found, offset in zip(places, kept, offsets, strict=True):
                place.append((found + offset).astype(np.int32))
            values.append(block[kept].astype(block.dtype.newbyteorder("="), copy=False))
            count += len(values[-1])
            if count > _MOST_VALUES:
                raise DataError(
                    f"{self.variable.file}, {self.variable.name}: has more than {_MOST_VALUES:,} values above 0, so it "
                    "holds features rather than tags or labels; name the matrix of tags with variables=."
                )
        if not values:
            return (np.zeros(0, np.int32), np.zeros(0, np.int32)), np.zeros(0, np.float32)
        return (np.concatenate(places[0]), np.concatenate(places[1])), np.concatenate(values)

    def _check(self, values: np.ndarray) -> None:
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise DataError(
                f"{self.variable.file}, {self.variable.name}: holds NaN or infinite values, which leave open whether "
                "those pairs have the tag or class; replace them by 0 or 1."
            )
