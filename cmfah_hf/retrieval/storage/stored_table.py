"""The metadata of an index in a file: an Arrow IPC stream, read as untrusted input.

Arrow follows any offset and length in a stream, so all of them are checked first.
"""

import struct

import numpy as np
import pyarrow as pa

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.storage.metadata import storable

# Lists of values without size, such as nulls, may have this many elements per byte of the stream.
_ELEMENTS_A_BYTE = 64
# Constants of Arrow's format (Message.fbs): types of messages, and fields of their tables.
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3
_HEADER_TYPE, _HEADER, _DATA, _COMPRESSION = 1, 2, 1, 3


def numbers_of_table(table: pa.Table) -> np.ndarray:
    """The table as a stream, padded to whole 64-bit integers: `(words,)` int64."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    raw = np.frombuffer(sink.getvalue(), np.uint8)
    return np.pad(raw, (0, -len(raw) % 8)).view("<i8")


def table_of_numbers(numbers: np.ndarray, count: int) -> pa.Table:
    """The table of such a stream of `count` rows, checked down to each string and each dictionary index."""
    buffer = pa.py_buffer(numbers)
    try:
        messages = pa.ipc.MessageReader.open_stream(pa.BufferReader(buffer))
        if any(_is_compressed(message.metadata.to_pybytes()) for message in messages):
            raise pa.ArrowInvalid("it is compressed, which no index is")
        source = pa.BufferReader(buffer)
        options = pa.ipc.IpcReadOptions(ensure_alignment=pa.ipc.Alignment.DataTypeSpecific)
        table = pa.ipc.open_stream(source, options=options).read_all()
        rest = source.read()
        if table.num_rows == count and not any(rest):
            table.validate(full=True)
            if any(_longest(chunk) > _ELEMENTS_A_BYTE * buffer.size for column in table for chunk in column.chunks):
                raise pa.ArrowInvalid("its lists are longer than anything in it")
            return storable(table)
    # Extension types of other packages parse their own descriptions, and raise any of these.
    except (pa.ArrowException, OSError, ValueError, TypeError, LookupError, RecursionError, struct.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise HashIndexError(f"its metadata cannot be read ({reason})") from error
    raise HashIndexError(f"its metadata has {table.num_rows} rows, and {len(rest)} bytes behind them")


def _is_compressed(message: bytes) -> bool:
    """Whether a message holds compressed buffers: a few such bytes could unpack to gigabytes."""
    root = struct.unpack_from("<I", message)[0]
    kind = _field(message, root, _HEADER_TYPE)
    header = _field(message, root, _HEADER)
    if kind is None or header is None or message[kind] not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        return False
    batch = _followed(message, header)
    if message[kind] == _DICTIONARY_BATCH:
        data = _field(message, batch, _DATA)
        if data is None:
            return False
        batch = _followed(message, data)
    return _field(message, batch, _COMPRESSION) is not None


def _field(message: bytes, table: int, number: int) -> int | None:
    """The offset of a field of a flatbuffer's table; None if the field is left out."""
    fields = table - struct.unpack_from("<i", message, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", message, fields)[0]:
        return None
    offset = struct.unpack_from("<H", message, fields + 4 + 2 * number)[0]
    return table + offset if offset else None


def _followed(message: bytes, at: int) -> int:
    """The offset that the reference at `at` points to."""
    return at + struct.unpack_from("<I", message, at)[0]


def _longest(array: pa.Array) -> int:
    """The length of the longest array among this one and those nested in it."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return _longest(array.storage)
    if pa.types.is_dictionary(kind):
        return max(len(array), _longest(array.dictionary))
    if pa.types.is_struct(kind) or pa.types.is_union(kind):
        inner = [array.field(place) for place in range(kind.num_fields)]
    else:
        inner = [array.values] if kind.num_fields == 1 and hasattr(array, "values") else []
    return max(len(array), *map(_longest, inner), 0)
