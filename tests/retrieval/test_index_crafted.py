"""Malicious index files with correct checksums, all rejected before use."""

import json
import time

import numpy as np
import pyarrow as pa
import pytest
import safetensors
import safetensors.numpy

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.index import HashIndex
from cmfah_hf.retrieval.storage import index_file
from cmfah_hf.retrieval.storage.id_checks import first_repeated, is_text
from cmfah_hf.retrieval.storage.ids import StringIds


def stream_of(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def numbers_of(stream):
    return np.frombuffer(stream.ljust(-(-len(stream) // 8) * 8, b"\0"), np.int64)


def crafted(path, tensors=None, **header):
    """An index of three items with some tensors replaced and a correct checksum."""
    index = HashIndex(16)
    index.add(np.zeros((3, 2), np.uint8), ids=None if header.get("id_type") != "str" else ["a", "b", "c"])
    index.save(path)
    with safetensors.safe_open(path, framework="numpy") as file:
        header = {**file.metadata(), **header}
    tensors = {**safetensors.numpy.load_file(path), **(tensors or {})}
    tensors = {name: part for name, part in tensors.items() if part is not None}
    header["checksum"] = index_file.checksum(header, tensors)
    safetensors.numpy.save_file(tensors, path, header)
    return path


def refused(path, message="damaged"):
    for mmap in (False, True):
        with pytest.raises(HashIndexError, match=message) as error:
            HashIndex.load(path, mmap=mmap)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("column", [["x" * 10**6] * 3, pa.array(["x" * 10**6] * 3).dictionary_encode()])
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_decompression_bombs(tmp_path, column, codec):
    table = pa.table({"s": column})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table)
    refused(crafted(tmp_path / "x", {"table": numbers_of(sink.getvalue().to_pybytes())}), "is compressed")


def test_lists_with_more_nulls_than_memory(tmp_path):
    nulls = pa.Array.from_buffers(pa.null(), 2**31 - 1, [None])
    lists = pa.LargeListArray.from_arrays(pa.array([0, 0, 0, 2**31 - 1]), nulls)
    for table in (pa.table({"s": lists}), pa.table({"s": pa.StructArray.from_arrays([lists], ["inner"])})):
        refused(crafted(tmp_path / "x", {"table": numbers_of(stream_of(table))}), "longer than anything")
    index = HashIndex(16)
    index.add(np.zeros((3, 2), np.uint8), metadata={"tags": [[None] * 5, [], None]})
    index.save(tmp_path / "y")
    assert HashIndex.load(tmp_path / "y").metadata["tags"].to_pylist() == [[None] * 5, [], None]


def test_string_offsets_beyond_the_text(tmp_path):
    """Search used to read there, and the process ended with a segmentation fault."""
    stream = bytearray(stream_of(pa.table({"s": ["abc", "def", "ghi"]})))
    offsets = np.array([0, 3, 6, 9], "<i4").tobytes()
    at = bytes(stream).index(offsets)
    for wrong in ([0, 3, 6, 2**30], [0, 2**30, 6, 9], [-5, 3, 6, 9], [0, 2**31 - 1, 2**31 - 1, 2**31 - 1]):
        stream[at : at + 16] = np.array(wrong, "<i4").tobytes()
        refused(crafted(tmp_path / "x", {"table": numbers_of(bytes(stream))}), "metadata cannot be read")


def test_indices_beyond_the_dictionary(tmp_path):
    stream = bytearray(stream_of(pa.table({"s": pa.array(["a", "b", "a"]).dictionary_encode()})))
    at = bytes(stream).rindex(np.array([0, 1, 0], "<i4").tobytes())
    stream[at : at + 12] = np.array([0, 10**6, 0], "<i4").tobytes()
    refused(crafted(tmp_path / "x", {"table": numbers_of(bytes(stream))}), "metadata cannot be read")


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"", "metadata cannot be read"),
        (b"\xff" * 64, "metadata cannot be read"),
        (stream_of(pa.table({"s": [1, 2]})), "2 rows"),
        (stream_of(pa.table({"s": [1, 2, 3]})) + b"more", "bytes behind"),
        (stream_of(pa.table([[1, 2, 3], [4, 5, 6]], ["a", "a"])), "one name"),
        (stream_of(pa.table({"s": pa.Array.from_buffers(pa.null(), 2**31 - 1, [None])})), "rows"),
    ],
)
def test_invalid_tables(tmp_path, stream, message):
    refused(crafted(tmp_path / "x", {"table": numbers_of(stream)}), message)


@pytest.mark.parametrize(
    ("text", "ends", "message"),
    [
        (b"\xff\xfe\xfd", [1, 2, 3], "not text"),
        ("éab".encode(), [1, 3, 4], "not text"),
        (b"abc", [1, 2, 2], "not text"),
        (b"abc", [2, 1, 3], "not text"),
        (b"abc", [-1, 1, 3], "not text"),
        (b"abc", [1, 2, 2**62], "not text"),
        (b"aba", [1, 2, 3], "id 'a' twice"),
        (b"a", [0, 0, 1], "id '' twice"),
    ],
)
def test_ids_that_are_not_strings(tmp_path, text, ends, message):
    tensors = {"id_bytes": np.frombuffer(text, np.uint8), "id_ends": np.array(ends)}
    refused(crafted(tmp_path / "x", tensors, id_type="str"), message)


@pytest.mark.parametrize(
    ("ids", "next_id", "message"),
    [
        ([0, 1, 1], "3", "id 1 twice"),
        ([5, 1, 0], "5", "next id 5 is not above"),
        ([0, 1, 2], "-1", "next_id is '-1'"),
        ([0, 1, 2], str(2**70), "next_id is"),
        ([0, 1, 2], "9" * 5000, "next_id is"),
        ([0, 1, 2], "３", "next_id is"),
        ([0, 1, 2**63 - 1], str(2**63 - 1), "not above"),
    ],
)
def test_integer_ids_and_the_next_one(tmp_path, ids, next_id, message):
    refused(crafted(tmp_path / "x", {"ids": np.array(ids)}, next_id=next_id), message)


def rewritten(path, change):
    """The file with its layout changed; the checksum does not cover that."""
    content = crafted(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    layout = json.loads(content[8:start])
    text, data = change(layout, content[start:])
    text = json.dumps(text).encode() if not isinstance(text, bytes) else text
    text = text.ljust(-(-len(text) // 8) * 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def placed(layout, name, **entry):
    return {**layout, name: {**layout[name], **entry}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda layout, data: (layout, data + b"x"), "1 bytes follow its end"),
        (lambda layout, data: (b"[" * 400_000, data), "header is nested too deep"),
        (lambda layout, data: (b"[" * 3000, data), "header is nested too deep"),
        (lambda layout, data: ([], data), "header is not a mapping"),
        (lambda layout, data: ({**layout, "__metadata__": []}, data), "metadata other than text"),
        (lambda layout, data: ({**layout, "__metadata__": {"format": 3}}, data), "metadata other than text"),
        (lambda layout, data: (placed(layout, "codes", data_offsets=[0, 2**59]), data), "'codes' is not where"),
        (lambda layout, data: (placed(layout, "codes", data_offsets=[0, 6]), data), "overlap, or leave gaps"),
        (lambda layout, data: (placed(layout, "codes", data_offsets=[1, 7]), data), "overlap, or leave gaps"),
        (lambda layout, data: (placed(layout, "codes", data_offsets=[-6, 0]), data), "not a list of numbers"),
        (lambda layout, data: (placed(layout, "codes", shape=[3, 2.0]), data), "not a list of numbers"),
        (lambda layout, data: (placed(layout, "codes", shape=[10**40, 0]), data), "not a list of numbers"),
        (lambda layout, data: (placed(layout, "codes", shape=[[[[3]]]]), data), "not a list of numbers"),
        (lambda layout, data: (placed(layout, "codes", dtype="F64"), data), "'codes' of the type 'F64'"),
        (lambda layout, data: ({**layout, "codes": 3}, data), "'codes' of the type None"),
        (lambda layout, data: ({**layout, "extra": layout["codes"]}, data), "'extra' of the type 'U8'"),
        (lambda layout, data: (layout, data[:-1]), "is not where"),
    ],
)
def test_layouts_that_point_elsewhere(tmp_path, change, message):
    started = time.monotonic()
    refused(rewritten(tmp_path / "x", change), f"x is damaged.*{message}")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("length", [0, 2**20, 2**62, 2**64 - 1])
def test_invalid_header_lengths(tmp_path, length):
    path = crafted(tmp_path / "x")
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refused(path, "has no such length")


def test_many_ids_are_compared_quickly_and_correctly():
    names = [f"n{i}" for i in range(70_000)] + ["é\udcff", "", "x" * 100_000, "x" * 100_001]

    def strings(items):
        encoded = [name.encode("utf-8", "surrogatepass") for name in items]
        ends = np.cumsum([len(name) for name in encoded])
        return StringIds.of(np.frombuffer(b"".join(encoded), np.uint8), ends)

    assert is_text(strings(names))
    assert first_repeated(strings(names)) is None
    for again in ("n7", "é\udcff", "", "x" * 100_001):
        assert first_repeated(strings([*names, again])) == again
    same = "x" * 2000  # one hash, as only the first bytes are hashed
    assert first_repeated(strings([f"{same}{i:04}" for i in range(3000)])) is None
