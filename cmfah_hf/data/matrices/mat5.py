"""MATLAB 5 files (`.mat`, version 5 to 7.2): list of variables, and lazy access to their values.

`scipy.io.loadmat` reads a variable as a whole (638 MB of memory for 502 MB of values), and its compiled reader crashes
on damaged files (84 of 4,000 mutated ones). So this file parses the headers itself, after MathWorks' "MAT-File Format",
and reads the values in blocks of rows.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from cmfah_hf.data.matrices.storage import BlockReader, InMemory, RawArray, Variable, inflate, spool
from cmfah_hf.errors import DataError

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
# Types of stored values, and classes of arrays, by their numbers in the format.
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = (
    "cell array", "struct", "object", "char", "sparse", "double", "single", "int8", "uint8", "int16", "uint16", "int32",
    "uint32", "int64", "uint64", "function", "object",
)  # fmt: skip
_SPARSE, _NUMERIC, _OPAQUE = 5, range(5, 16), 17
_LOGICAL, _COMPLEX = 0x0200, 0x0800
_MOST_AXES = 32
# Limit for each of the three vectors of a sparse variable; no tags need more.
_MOST_SPARSE_BYTES = 480_000_000
_MOST_HEADER_BYTES = 65_536
# Compressed variables up to this size are inflated in memory, larger ones into a temporary file.
_SMALL = 8 << 20


def is_mat5(head: bytes) -> bool:
    """Whether the first 128 bytes of a file are the header of a MATLAB 5 file."""
    return len(head) >= _HEADER_BYTES and head[124:128] in (b"\x00\x01IM", b"\x01\x00MI")


def is_mat4(head: bytes) -> bool:
    """Whether they are those of a MATLAB 4 file: a number below 5000 of which at least one byte is zero, and sizes."""
    if len(head) < 20 or 0 not in head[:4]:
        return False
    for order in "<>":
        kind, rows, columns, imaginary, name = struct.unpack(f"{order}5i", head[:20])
        if 0 <= kind < 5000 and kind % 10 in (0, 1, 2) and rows >= 0 and columns >= 0 and imaginary in (0, 1):
            return 0 < name < 256
    return False


@dataclass(frozen=True)
class Mat5Variable(Variable):
    """A variable, with offset and length of its element in the file, whether that is compressed, and the byte order."""

    start: int = 0
    length: int = 0
    is_compressed: bool = False
    order: str = "<"

    def open(self) -> BlockReader:
        file = self.file.open("rb")
        source = self._source(file)
        kind, size, inline = source.tag()
        if kind not in _TYPES:
            raise DataError(f"{source.name}: holds values of the unknown type {kind}; save it as double or uint8.")
        dtype = np.dtype(self.order + _TYPES[kind])
        if size != prod(self.shape) * dtype.itemsize:
            raise DataError(f"{source.name}: {size:,} bytes of values do not fill {self.shape}; the file is damaged.")
        if inline is not None or (self.is_compressed and size <= _SMALL):
            content = inline if inline is not None else source.take(size)
            return InMemory(np.frombuffer(content, dtype).reshape(self.shape, order="F"))
        if self.is_compressed:
            return RawArray(spool(source.rest(), size, source.name), 0, self.shape, dtype, "F", source.name)
        return RawArray(file, self.start + source.passed, self.shape, dtype, "F", source.name)

    def load_sparse(self) -> Any:
        """MATLAB's layout: the row of each value, the offset of each column, the values."""
        from scipy.sparse import csc_matrix

        with self.file.open("rb") as file:
            source = self._source(file)
            rows, offsets, values = (self._vector(source) for _ in range(3))
        try:
            count = int(offsets[-1]) if len(offsets) else 0
            height, width = self.shape
            parts = values[:count], rows[:count].astype(np.int64), offsets.astype(np.int64)
            found = csc_matrix(parts, (height, width))
            found.check_format(full_check=True)
        except (ValueError, TypeError, OverflowError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{source.name}: not a valid sparse matrix ({reason}); save it again.") from error
        return found

    def _source(self, file: BinaryIO) -> "_Source":
        """The content after the header."""
        file.seek(self.start)
        source = _source(file, self.length if self.is_compressed else None, self.order, f"{self.file}, {self.name}")
        _array_header(source)
        return source

    def _vector(self, source: "_Source") -> np.ndarray:
        kind, content = source.element(_MOST_SPARSE_BYTES)
        if kind not in _TYPES or len(content) % np.dtype(_TYPES[kind]).itemsize:
            raise DataError(f"{source.name}: not a valid sparse matrix; save it again.")
        values = np.frombuffer(content, self.order + _TYPES[kind])
        return values.astype(values.dtype.newbyteorder("="), copy=False)


def list_mat5(path: Path) -> list[Variable]:
    """The variables of a MATLAB 5 file; only headers are read."""
    variables: list[Variable] = []
    size = path.stat().st_size
    with path.open("rb") as file:
        order = "<" if file.read(_HEADER_BYTES)[126:] == b"IM" else ">"
        place = _HEADER_BYTES
        while place < size:
            file.seek(place)
            tag = file.read(8)
            kind, length = struct.unpack(f"{order}2I", tag) if len(tag) == 8 else (0, 0)
            if kind not in (_MATRIX, _COMPRESSED):
                if not any(tag):  # padding after the last variable
                    break
                raise DataError(f"{path}: is damaged at byte {place:,}; fetch or save the file again.")
            start, place = place + 8, place + 8 + length
            if place > size:
                raise DataError(
                    f"{path}: ends at byte {size:,}, but one of its variables extends to byte {place:,}; the file is "
                    "cut short, fetch it again."
                )
            is_compressed = kind == _COMPRESSED
            header = _array_header(_source(file, length if is_compressed else None, order, str(path)))
            if header.name:  # a variable without a name holds the workspace of functions
                element = (start, length, is_compressed, order)
                variables.append(_described(path, header, element))
    return variables


class _Header(NamedTuple):
    """Flags and class number, shape and name of an array."""

    flags: int
    shape: tuple[int, ...]
    name: str


def _described(path: Path, header: _Header, element: tuple[int, int, bool, str]) -> Mat5Variable:
    flags, shape, name = header
    number = flags & 0xFF
    if flags & _LOGICAL and number != _SPARSE:
        kind = "logical"
    else:
        kind = _CLASSES[number - 1] if 0 < number <= len(_CLASSES) else f"class {number}"
    if flags & _COMPLEX:
        kind = f"complex {kind}"
    is_numeric = number in _NUMERIC and not flags & _COMPLEX
    return Mat5Variable(path, name, shape, kind, "matlab", is_numeric, number == _SPARSE, *element)


class _Source:
    """A stream of data elements in a byte order (`<` or `>`); `name` is that of file and variable, for errors."""

    def __init__(self, pieces: Iterator[bytes], order: str, name: str):
        self.order, self.name, self.passed = order, name, 0
        self._pieces, self._ahead = pieces, b""

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        parts, length = [self._ahead], len(self._ahead)
        while length < count:
            piece = next(self._pieces, b"")
            if not piece:
                raise DataError(f"{self.name}: ends within a variable; the file is cut short, fetch it again.")
            parts.append(piece)
            length += len(piece)
        content = b"".join(parts)
        self._ahead = content[count:]
        self.passed += count
        return content[:count]

    def rest(self) -> Iterator[bytes]:
        ahead, self._ahead = self._ahead, b""
        return chain([ahead], self._pieces)

    def tag(self) -> tuple[int, int, bytes | None]:
        """Type and length of the next element; and its content, if that is stored in the tag."""
        head = self.take(8)
        first, size = struct.unpack(f"{self.order}2I", head)
        if first >> 16:
            return first & 0xFFFF, first >> 16, head[4 : 4 + (first >> 16)]
        return first, size, None

    def element(self, most_bytes: int = _MOST_HEADER_BYTES) -> tuple[int, bytes]:
        """Type and content of the next element."""
        kind, size, content = self.tag()
        if content is None:
            if size > most_bytes:
                raise self.damaged_header()
            content = self.take(-(-size // 8) * 8)[:size]
        return kind, content

    def damaged_header(self) -> DataError:
        return DataError(f"{self.name}: the header of a variable is damaged; fetch or save the file again.")


def _source(file: BinaryIO, compressed_bytes: int | None, order: str, name: str) -> _Source:
    """The content of an array from the file's position on, without its tag."""
    if compressed_bytes is None:
        return _Source(iter(partial(file.read, 4096), b""), order, name)
    source = _Source(inflate(file, compressed_bytes, name), order, name)
    if source.tag()[0] != _MATRIX:
        raise DataError(f"{name}: a compressed variable holds no array; the file is damaged.")
    return source


def _array_header(source: _Source) -> _Header:
    try:
        (flags,) = struct.unpack(f"{source.order}I", source.element()[1][:4])
        if flags & 0xFF == _OPAQUE:  # an object of MATLAB's newer classes, which has no shape
            return _Header(flags, (), source.element()[1].decode("latin-1"))
        dimensions = source.element()[1]
        shape = struct.unpack(f"{source.order}{len(dimensions) // 4}i", dimensions)
    except struct.error as error:
        raise source.damaged_header() from error
    name = source.element()[1].decode("latin-1")
    if len(shape) > _MOST_AXES or any(size < 0 for size in shape):
        raise source.damaged_header()
    return _Header(flags, shape, name)
