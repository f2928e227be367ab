"""MATLAB 5 files (`.mat`, version 5 to 7.2): what they hold, and where its values stand.

scipy reads a variable whole, and its reader takes the process down on damaged files. Here the headers alone are read,
after the layout of MathWorks' "MAT-File Format", so that values can be read a block of rows at a time.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from cmfah_hf.data.matrices.storage import BlockReader, InMemory, RawArray, Variable, inflate, spool
from cmfah_hf.errors import DataError

_HEADER_BYTES = 128
_MATRIX, _COMPRESSED = 14, 15
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {
    1: "cell array",
    2: "struct",
    3: "object",
    4: "char",
    5: "sparse",
    6: "double",
    7: "single",
    8: "int8",
    9: "uint8",
    10: "int16",
    11: "uint16",
    12: "int32",
    13: "uint32",
    14: "int64",
    15: "uint64",
    16: "function",
    17: "object",
}
_SPARSE, _NUMERIC = 5, range(5, 16)
_LOGICAL, _COMPLEX = 0x0200, 0x0800
_MOST_AXES = 32
# Of one of a sparse variable's three vectors; larger ones hold no tags of anything.
_MOST_SPARSE_BYTES = 480_000_000
# Compressed variables up to this size are unpacked into memory, larger ones into a temporary file.
_SMALL = 8 << 20


def is_mat5(head: bytes) -> bool:
    """Whether a file that begins with these 128 bytes is a MATLAB 5 file."""
    return len(head) >= _HEADER_BYTES and head[124:128] in (b"\x00\x01IM", b"\x01\x00MI")


def is_mat4(head: bytes) -> bool:
    """Whether it is a MATLAB 4 file: its first number is a type below 5000, in which at least one byte is zero."""
    if len(head) < 20 or 0 not in head[:4]:
        return False
    for order in "<>":
        kind, rows, columns, imaginary, name = struct.unpack(f"{order}5i", head[:20])
        if 0 <= kind < 5000 and kind % 10 in (0, 1, 2) and rows >= 0 and columns >= 0 and imaginary in (0, 1):
            return 0 < name < 256
    return False


@dataclass(frozen=True)
class Mat5Variable(Variable):
    """A variable, where its element begins, and whether that is compressed."""

    start: int = 0
    length: int = 0
    is_compressed: bool = False
    order: str = "<"

    def open(self) -> BlockReader:
        file = self.file.open("rb")
        name = f"{self.file}, {self.name}"
        source = self._source(file)
        kind, size, inline = _tag(source, self.order, name)
        if kind not in _TYPES:
            raise DataError(f"{name}: holds values of the unknown type {kind}; save it as double or uint8.")
        dtype = np.dtype(self.order + _TYPES[kind])
        if size != prod(self.shape) * dtype.itemsize:
            raise DataError(f"{name}: {size:,} bytes of values do not fill {self.shape}; the file is damaged.")
        if inline is not None or (self.is_compressed and size <= _SMALL):
            content = inline if inline is not None else source.take(size, name)
            return InMemory(np.frombuffer(content, dtype).reshape(self.shape, order="F"))
        if self.is_compressed:
            return RawArray(spool(source.rest(), size, name), 0, self.shape, dtype, "F", name)
        return RawArray(file, self.start + source.passed, self.shape, dtype, "F", name)

    def load_sparse(self) -> Any:
        """MATLAB's layout: the row of each value, where each column begins, the values."""
        from scipy.sparse import csc_matrix

        name = f"{self.file}, {self.name}"
        with self.file.open("rb") as file:
            source = self._source(file)
            rows, begins, values = (self._vector(source, name) for _ in range(3))
        try:
            count = int(begins[-1]) if len(begins) else 0
            found = csc_matrix((values[:count], rows[:count].astype(np.int64), begins.astype(np.int64)), self.shape)
            found.check_format(full_check=True)
        except (ValueError, TypeError, OverflowError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{name}: not a sound sparse matrix ({reason}); save it again.") from error
        return found

    def _source(self, file: BinaryIO) -> "_Source":
        """The content after the header."""
        name = f"{self.file}, {self.name}"
        file.seek(self.start)
        source = _Source(inflate(file, self.length, name)) if self.is_compressed else _Source(_pieces(file))
        _array_header(source, self.order, name, is_element=self.is_compressed)
        return source

    def _vector(self, source: "_Source", name: str) -> np.ndarray:
        kind, content = _element(source, self.order, name, _MOST_SPARSE_BYTES)
        if kind not in _TYPES or len(content) % np.dtype(_TYPES[kind]).itemsize:
            raise DataError(f"{name}: not a sound sparse matrix; save it again.")
        values = np.frombuffer(content, self.order + _TYPES[kind])
        return values.astype(values.dtype.newbyteorder("="), copy=False)


def list_mat5(path: Path) -> list[Variable]:
    """The variables of a MATLAB 5 file; only headers are read.

    Raises:
        DataError: If the file is cut short or damaged.
    """
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
                if not any(tag):  # padding behind the last variable
                    break
                raise DataError(f"{path}: is damaged at byte {place:,}; fetch or save the file again.")
            if place + 8 + length > size:
                raise DataError(
                    f"{path}: ends at byte {size:,}, and a variable of it should reach to {place + 8 + length:,}; the "
                    "file is cut short, fetch it again."
                )
            is_compressed = kind == _COMPRESSED
            source = _Source(inflate(file, length, str(path)) if is_compressed else _pieces(file))
            flags, shape, name = _array_header(source, order, str(path), is_element=is_compressed)
            # A variable without a name holds what functions refer to.
            if name:
                variables.append(_described(path, name, flags, shape, place + 8, length, is_compressed, order))
            place += 8 + length
    return variables


def _described(
    path: Path, name: str, flags: int, shape: tuple[int, ...], start: int, length: int, is_compressed: bool, order: str
) -> Mat5Variable:
    number = flags & 0xFF
    kind = "logical" if flags & _LOGICAL and number != _SPARSE else _CLASSES.get(number, f"class {number}")
    if flags & _COMPLEX:
        kind = f"complex {kind}"
    is_numeric = number in _NUMERIC and not flags & _COMPLEX
    return Mat5Variable(
        path, name, shape, kind, "matlab", is_numeric, number == _SPARSE, start, length, is_compressed, order
    )


class _Source:
    """Bytes that come in pieces, taken as they are needed."""

    def __init__(self, pieces: Iterator[bytes]):
        self._pieces, self._ahead, self.passed = pieces, b"", 0

    def take(self, count: int, name: str) -> bytes:
        parts, length = [self._ahead], len(self._ahead)
        while length < count:
            piece = next(self._pieces, b"")
            if not piece:
                raise DataError(f"{name}: ends within a variable; the file is cut short, fetch it again.")
            parts.append(piece)
            length += len(piece)
        content = b"".join(parts)
        self._ahead = content[count:]
        self.passed += count
        return content[:count]

    def rest(self) -> Iterator[bytes]:
        ahead, self._ahead = self._ahead, b""
        return chain([ahead], self._pieces)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    read: Callable[[], bytes] = lambda: file.read(4096)  # noqa: E731
    return iter(read, b"")


def _tag(source: _Source, order: str, name: str) -> tuple[int, int, bytes | None]:
    """The type and the length of the next element; and its content, if that stands in the tag itself."""
    head = source.take(8, name)
    first, size = struct.unpack(f"{order}2I", head)
    if first >> 16:
        return first & 0xFFFF, first >> 16, head[4 : 4 + (first >> 16)]
    return first, size, None


def _element(source: _Source, order: str, name: str, most_bytes: int = 65536) -> tuple[int, bytes]:
    kind, size, content = _tag(source, order, name)
    if content is None:
        if size > most_bytes:
            raise DataError(f"{name}: the head of a variable is damaged; fetch or save the file again.")
        content = source.take(-(-size // 8) * 8, name)[:size]
    return kind, content


def _array_header(source: _Source, order: str, name: str, is_element: bool) -> tuple[int, tuple[int, ...], str]:
    """Flags and class, shape and name of an array; `is_element`: its own tag comes first."""
    if is_element:
        kind, _, _ = _tag(source, order, name)
        if kind != _MATRIX:
            raise DataError(f"{name}: a compressed variable holds no array; the file is damaged.")
    try:
        (flags,) = struct.unpack(f"{order}I", _element(source, order, name)[1][:4])
        if flags & 0xFF == 17:  # an object of MATLAB's newer classes, which has no shape
            return flags, (), _element(source, order, name)[1].decode("latin-1")
        dimensions = _element(source, order, name)[1]
        shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
        variable = _element(source, order, name)[1].decode("latin-1")
    except struct.error as error:
        raise DataError(f"{name}: the head of a variable is damaged; fetch or save the file again.") from error
    if len(shape) > _MOST_AXES or any(size < 0 for size in shape):
        raise DataError(f"{name}: the head of a variable is damaged; fetch or save the file again.")
    return flags, shape, variable
