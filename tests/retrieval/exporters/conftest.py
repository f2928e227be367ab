"""Indexes with unusual content, and real databases to export them to, each in its own folder.

Tests are skipped if their database is missing.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cmfah_hf.retrieval import HashIndex

# Breaks hand-written formats; no control characters except tab and line ends.
ODD_TEXTS = [
    "plain", "it's", 'say "hi"', "tab\there", "line\nbreak", "\r\n", "back\\slash", "\\N", "\\.", "\n\\.\n", "NULL",
    "{a,b}", "a,b", " lead and trail ", "%s; DROP TABLE", "id:a:b::c", "é", "e\u0301", "🙂", "漢字", "\u2028", "\ufeff",
    "$x$", "--", "'", '"',
]  # fmt: skip


@pytest.fixture(scope="session")
def odd_texts() -> list[str]:
    return ODD_TEXTS


@pytest.fixture(scope="session")
def odd_index() -> Callable[..., HashIndex]:
    """A function that builds an index of random codes, with ids and columns that are hard to write and to read."""

    def make(rows: int = 300, bits: int = 64, strings: bool = True, plain: bool = False) -> HashIndex:
        rng = np.random.default_rng(rows + bits)
        codes = rng.integers(0, 256, (rows, bits // 8), dtype=np.uint8)
        codes[rows // 2 :] = codes[: rows - rows // 2]  # ties
        texts = [ODD_TEXTS[i % len(ODD_TEXTS)] for i in range(rows)]
        numbers = rng.permutation(4 * rows)[:rows].tolist()
        ids = [f"{text}{number}" for text, number in zip(texts, numbers, strict=True)] if strings else numbers
        columns = {
            "caption": pa.array([None if i % 7 == 3 else text for i, text in enumerate(texts)]),
            "kind": pa.array(["sea", "car"] * (rows // 2)).dictionary_encode(),
            "year": pa.array([None if i % 5 == 1 else i - 99 for i in range(rows)], pa.int16()),
            "views": pa.array([2**63 - 1 - i for i in range(rows)], pa.uint64()),
            "score": pa.array(rng.normal(size=rows)),
            "weight": pa.array(rng.normal(size=rows).astype(np.float32)),
            "seen": pa.array([None if i % 3 == 1 else i % 2 == 0 for i in range(rows)]),
            "tags": pa.array([None if i % 11 == 5 else texts[i : i + i % 4] for i in range(rows)]),
            "boxes": pa.array([[i, -i] for i in range(rows)], pa.list_(pa.int32(), 2)),
            "flags": pa.array([[True, False][: i % 3] for i in range(rows)]),
        }
        index = HashIndex(bits)
        return _described(index, codes, ids, None if plain else pa.table(columns))

    return make


@pytest.fixture(scope="session")
def index_with() -> Callable[..., HashIndex]:
    """A function that builds an index of 8 bits with these ids and columns."""

    def make(ids: list, **columns: pa.Array) -> HashIndex:
        return _described(HashIndex(8), np.zeros((len(ids), 1), np.uint8), ids, pa.table(columns) if columns else None)

    return make


def _described(index: HashIndex, codes: np.ndarray, ids: list, metadata: pa.Table | None) -> HashIndex:
    index.add(codes, ids=ids, metadata=metadata)
    return index


@pytest.fixture(scope="session")
def read_export() -> Callable[[str, Path], list[dict]]:
    """A function that reads an export with independent code: ids, codes as bytes, and columns, one dict per item."""
    readers = {"milvus": _read_milvus, "vespa": _read_vespa, "pgvector": _read_pgvector}
    return lambda target, folder: readers[target](folder)


def _read_milvus(folder):
    rows = [row for part in sorted(folder.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]
    return [{**row, "code": bytes(row["code"])} for row in rows]


def _read_vespa(folder):
    rows = []
    for line in (folder / "feed.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        document = json.loads(line)
        assert document["put"] == f"id:cmfah:cmfah::{document['fields']['id']}"
        rows.append({**document["fields"], "code": bytes.fromhex(document["fields"]["code"]["values"])})
    return rows


def _read_pgvector(folder):
    """The lines of the COPY statement, each cell a text or None."""
    text = (folder / "load.sql").read_text(encoding="utf-8")
    head, _, rest = text.partition(" FROM stdin;\n")
    names = re.findall(r'"([^"]+)"', head[head.index("COPY ") :])[1:]
    lines = rest[: rest.index("\n\\.\n")].split("\n")
    meaning = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
    rows = []
    for line in lines:
        cells = [
            None if cell == r"\N" else re.sub(r"\\(.)", lambda match: meaning[match[1]], cell)
            for cell in line.split("\t")
        ]
        rows.append(dict(zip(names, cells, strict=True)))
    for row in rows:
        bits = np.array([int(bit) for bit in row["code"]]).reshape(-1, 8)
        row["code"] = bytes((bits << np.arange(8)).sum(1).tolist())
    return rows


class Postgres:
    """A server on a socket; statements go through its own `psql`."""

    def __init__(self, programs: Path, folder: Path):
        self.programs, self.folder = programs, folder

    def run(self, *arguments: str) -> str:
        """The output of psql, which stops at the first error."""
        command = [self.programs / "psql", "--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--host", self.folder]
        command += ["--username", "owner", "--dbname", "postgres", "--quiet", "--no-align", "--tuples-only", *arguments]
        outcome = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
        assert outcome.returncode == 0, outcome.stderr
        return outcome.stdout

    def rows(self, query: str) -> list[dict]:
        """The rows of a query, serialized by JSON."""
        text = self.run("--command", f"SELECT coalesce(json_agg(row_to_json(asked)), '[]') FROM ({query}) AS asked")
        return json.loads(text)


def _programs_of_postgres() -> Path | None:
    """The program folder of a PostgreSQL that has pgvector."""
    found = shutil.which("postgres")
    folders = [Path(os.environ["CMFAH_POSTGRES_BIN"])] if "CMFAH_POSTGRES_BIN" in os.environ else []
    folders += [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "pg_config").is_file():
            shared = subprocess.run([folder / "pg_config", "--sharedir"], capture_output=True, text=True).stdout.strip()
            if (Path(shared) / "extension" / "vector.control").is_file():
                return folder
    return None


@pytest.fixture(scope="session")
def postgres():
    """A running PostgreSQL with pgvector."""
    programs = _programs_of_postgres()
    if programs is None:
        pytest.skip("no PostgreSQL with pgvector; name the folder of its programs in CMFAH_POSTGRES_BIN")
    # A separate account, because the server refuses root; and a short path, for the socket.
    account = {"user": "nobody"} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="cmfah-pg-"))
    if account:
        shutil.chown(folder, account["user"])
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(folder)}
    settings = {"env": environment, "cwd": folder, **account}
    made = subprocess.run(
        [programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "owner", "-E", "UTF8", "--no-sync"],
        capture_output=True,
        text=True,
        **settings,
    )
    assert made.returncode == 0, made.stderr
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([programs / "postgres", "-D", folder / "data", *options], stderr=log, **settings)
    try:
        for _ in range(300):
            if subprocess.run([programs / "pg_isready", "-h", folder], capture_output=True).returncode == 0:
                break
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield Postgres(programs, folder)
    finally:
        server.terminate()
        server.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def milvus(tmp_path):
    """A client of Milvus Lite with an empty database."""
    pymilvus = pytest.importorskip("pymilvus", reason="no pymilvus")
    pytest.importorskip("milvus_lite", reason="no Milvus Lite")
    client = pymilvus.MilvusClient(str(tmp_path / "milvus.db"))
    schema = client.create_schema()
    schema.add_field("id", pymilvus.DataType.INT64, is_primary=True)
    schema.add_field("code", pymilvus.DataType.BINARY_VECTOR, dim=8)
    try:
        client.create_collection("probe", schema=schema)
    except pymilvus.MilvusException:
        pytest.skip("this Milvus Lite has no binary vectors; 2.5 has")
    yield client
    client.close()
