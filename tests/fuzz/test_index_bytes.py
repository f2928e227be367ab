"""Index files and manifests of sharded indexes, damaged at random or crafted with a valid checksum."""

import datetime
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors
import safetensors.numpy

from cmfah_hf.atomic import sha256_of
from cmfah_hf.retrieval.index import HashIndex
from cmfah_hf.retrieval.storage import index_file
from fuzz.harness import ODD_VALUES, mutated, mutated_json

COUNT = 12
CODES = np.random.default_rng(0).integers(0, 256, (COUNT, 8), dtype=np.uint8)
COLUMNS = {
    "year": [None if i % 5 == 0 else 2000 + i for i in range(COUNT)],
    "name": [f"é{i}" for i in range(COUNT)],
    "tags": [["sea", "🌊"][: i % 3] for i in range(COUNT)],
    "box": [{"x": i, "on": i % 2 == 0} for i in range(COUNT)],
}
DAYS = [datetime.datetime(2020, 1, 1 + i) for i in range(COUNT)]
TABLE = (
    pa.table(COLUMNS)
    .append_column("kind", pa.array(["a", "b", "a"] * 4).dictionary_encode())
    .append_column("day", pa.array(DAYS, pa.date32()))
    .append_column("time", pa.array(DAYS, pa.timestamp("us", "Europe/Berlin")))
)


def made(folder: Path, strings: bool, table: bool) -> Path:
    path = folder / f"{strings}-{table}.index"
    index = HashIndex(64)
    ids = [f"n{i}-é\udcff" for i in range(COUNT)] if strings else range(100, 100 + COUNT)
    index.add(CODES, ids=ids, metadata=TABLE if table else None)
    index.save(path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("indexes")
    return [made(folder, strings, table) for strings in (True, False) for table in (True, False)]


def parts(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def write(path: Path, header: dict[str, str], tensors: dict[str, np.ndarray]) -> None:
    """Like `safetensors`, with a valid checksum."""
    header = {**header, "checksum": index_file.checksum(header, tensors)}
    safetensors.numpy.save_file({name: np.ascontiguousarray(part) for name, part in tensors.items()}, path, header)


def use(path: Path, rng: random.Random) -> None:
    """Uses every operation of an accepted index."""
    index = HashIndex.load(path, mmap=rng.random() < 0.5)
    if len(index):
        queries = np.random.default_rng(1).normal(size=(2, index.bits))
        for metric in ("hamming", "aqd"):
            index.search(queries, k=3, metric=metric).hits()
        for column in index.metadata.column_names if index.metadata is not None else []:
            value = index.metadata[column][0].as_py()
            if isinstance(value, (int, str)):
                index.search(queries, k=2, where={column: value})
        assert bool(index.holds(index.ids).all())
    more = np.zeros((1, index.bits // 8), np.uint8)
    index.add(more, ids=["new"] if index.id_type == "str" else None)
    index.remove(index.ids[:1])
    index.save(path)
    assert len(HashIndex.load(path)) == len(index)


def test_changed_bytes(fuzzer, files, tmp_path):
    contents, path = [file.read_bytes() for file in files], tmp_path / "x.index"

    def attempt(rng):
        path.write_bytes(mutated(rng, rng.choice(contents)))
        use(path, rng)

    fuzzer(share=0.04, limit_s=5).run(attempt)


def test_changed_data_with_a_valid_checksum(fuzzer, files, tmp_path):
    known, path = [parts(file) for file in files], tmp_path / "x.index"

    def attempt(rng):
        header, tensors = rng.choice(known)
        name = rng.choice(list(tensors))
        part = tensors[name]
        content = bytearray(mutated(rng, part.tobytes()))
        if rng.random() < 0.8:  # of the same length as the header
            content = content[: part.nbytes].ljust(part.nbytes, b"\0")
            changed = np.frombuffer(content, part.dtype).reshape(part.shape)
        else:
            changed = np.frombuffer(content[: len(content) // part.itemsize * part.itemsize], part.dtype)
        if rng.random() < 0.2:
            header = {
                **header,
                rng.choice(list(header)): str(rng.choice((-1, 0, 1, 8, 2**31, 2**63, 2**70, "", "str"))),
            }
        write(path, header, {**tensors, name: changed})
        use(path, rng)

    fuzzer(share=0.07, limit_s=5).run(attempt)


def test_changed_table_with_a_valid_checksum(fuzzer, files, tmp_path):
    known, path = [parts(file) for file in files if "table" in parts(file)[1]], tmp_path / "x.index"

    def attempt(rng):
        header, tensors = rng.choice(known)
        content = mutated(rng, tensors["table"].tobytes())
        numbers = np.frombuffer(content.ljust(-(-len(content) // 8) * 8, b"\0"), np.int64)
        write(path, header, {**tensors, "table": numbers})
        use(path, rng)

    fuzzer(share=0.08, limit_s=5).run(attempt)


def test_changed_header(fuzzer, files, tmp_path):
    contents, path = [file.read_bytes() for file in files], tmp_path / "x.index"
    odd = (*ODD_VALUES, "U8", "I64", "F32", "str", "int", "2", [0, 8], [12, 8], {"dtype": "U8", "shape": [0]})

    def attempt(rng):
        content = rng.choice(contents)
        start = 8 + int.from_bytes(content[:8], "little")
        layout = mutated_json(rng, json.loads(content[8:start]), odd)
        text = json.dumps(_with_checksum(layout, content[start:])).encode()
        if rng.random() < 0.2:
            text = mutated(rng, text)
        text = text.ljust(-(-len(text) // 8) * 8)
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[start:])
        use(path, rng)

    fuzzer(share=0.03, limit_s=5).run(attempt)


def _with_checksum(layout: Any, data: bytes) -> Any:
    """The layout with the checksum that its reader will compute, if there is one."""
    try:
        header = layout["__metadata__"]
        tensors = {
            name: np.frombuffer(
                data[slice(*entry["data_offsets"])], {"U8": "u1", "I64": "<i8"}[entry["dtype"]]
            ).reshape(entry["shape"])
            for name, entry in layout.items()
            if name != "__metadata__"
        }
        header["checksum"] = index_file.checksum(header, tensors)
    except (TypeError, ValueError, KeyError, AttributeError):
        pass
    return layout


def test_manifests_of_sharded_indexes(fuzzer, tmp_path):
    pytest.importorskip("ray")
    from cmfah_hf.retrieval.cluster import manifest as manifests
    from cmfah_hf.retrieval.cluster.shards import Shard

    revision = manifests.Revision(1, "ab")
    file = tmp_path / manifests.shard_file_name(0, revision)
    made(tmp_path, strings=True, table=True).rename(file)
    saved = manifests.ShardFile(file.name, COUNT, revision, sha256_of(file))
    manifests.write_manifest(
        tmp_path, manifests.Manifest(64, 0, "str", manifests.schema_as_text(TABLE.schema), (saved,), "model")
    )
    path = tmp_path / manifests.MANIFEST_NAME
    document = json.loads(path.read_text())

    def attempt(rng):
        changed = mutated_json(rng, document)
        if isinstance(changed, dict) and rng.random() < 0.8:
            changed["checksum"] = manifests._checksum(changed)
        text = json.dumps(changed).encode()
        path.write_bytes(mutated(rng, text) if rng.random() < 0.3 else text)
        found = manifests.read_manifest(tmp_path)
        shard = Shard(str(tmp_path), 0, 1, 64, "birth", 1)
        reply = shard.count(found.shards[0].revision)
        if reply.error is not None:
            raise reply.error

    fuzzer(share=0.03, limit_s=5).run(attempt)
