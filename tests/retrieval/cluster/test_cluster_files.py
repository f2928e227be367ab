"""Manifest and shard files of a sharded index, without Ray processes."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("ray")

from cmfah_hf.atomic import sha256_of
from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.cluster.calls import as_question
from cmfah_hf.retrieval.cluster.manifest import (
    Manifest,
    Revision,
    ShardFile,
    read_manifest,
    remove_old_files,
    schema_as_text,
    schema_of_text,
    shard_file_name,
    write_manifest,
)
from cmfah_hf.retrieval.cluster.merge import merge
from cmfah_hf.retrieval.cluster.shards import Shard
from cmfah_hf.retrieval.index import HashIndex, SearchResults

SCHEMA = pa.schema([("place", pa.string()), ("year", pa.int64())])


@pytest.fixture
def saved(tmp_path):
    """Two shards of 8 bits, saved in the format of an index."""
    files = []
    for number in range(2):
        index = HashIndex(8)
        index.add(np.ones((3 + number, 8)), ids=range(10 * number, 10 * number + 3 + number))
        revision = Revision(4, f"abcdef{number}")
        path = tmp_path / shard_file_name(number, revision)
        index.save(path)
        files.append(ShardFile(path.name, len(index), revision, sha256_of(path)))
    manifest = Manifest(8, 14, "int", schema_as_text(SCHEMA), tuple(files))
    write_manifest(tmp_path, manifest)
    return tmp_path, manifest


def shard(folder, number=0, shards=2, bits=8):
    return Shard(str(folder), number, shards, bits, "birth", 1)


def test_manifest_round_trip(saved):
    folder, manifest = saved
    assert read_manifest(folder) == manifest
    assert schema_of_text(manifest.schema).equals(SCHEMA)
    document = json.loads((folder / "manifest.json").read_text())
    assert (document["format"], document["version"], document["bits"]) == ("cmfah-sharded-hash-index", "1", 8)
    assert [entry["items"] for entry in document["shards"]] == [3, 4]
    assert read_manifest(folder / "elsewhere") is None


def test_any_changed_character_of_a_manifest_is_detected(saved):
    folder, manifest = saved
    path = folder / "manifest.json"
    content = path.read_text()
    for at in range(len(content)):
        path.write_text(content[:at] + chr(ord(content[at]) ^ 1) + content[at + 1 :])
        try:
            assert read_manifest(folder) == manifest  # whitespace between two entries has no meaning
            assert content[at].isspace()
        except HashIndexError as error:
            assert str(path) in str(error)  # noqa: PT017
    for cut in (0, 1, len(content) // 2):
        path.write_text(content[:cut])
        with pytest.raises(HashIndexError, match=r"manifest\.json is damaged"):
            read_manifest(folder)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"format": "other"}, "no manifest of a sharded index"),
        ([], "no manifest of a sharded index"),
        ({"format": "cmfah-sharded-hash-index", "version": "2"}, "version 2 of the format"),
        ({"format": "cmfah-sharded-hash-index", "version": "1"}, "does not match its checksum"),
    ],
)
def test_invalid_manifest_is_named(tmp_path, document, message):
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(HashIndexError, match=rf"manifest\.json .*{message}"):
        read_manifest(tmp_path)


def test_a_shard_opens_its_own_file_at_the_revision_of_the_manifest(saved):
    folder, manifest = saved
    for number in range(2):
        revision = manifest.shards[number].revision
        assert shard(folder, number).count(revision) == (revision, 3 + number, None)
    assert shard(folder / "new").count(Revision(0, "birth")) == (Revision(0, "birth"), 0, None)


def test_an_outdated_shard_refuses_to_answer(saved):
    folder, manifest = saved
    revision = manifest.shards[0].revision
    later = Revision(6, "1a7e")
    for method, *arguments in (
        ("count",),
        ("held", np.arange(3)),
        ("save",),
        ("change", Revision(7, "0e87"), "remove", {"ids": [0]}),
    ):
        assert getattr(shard(folder), method)(later, *arguments) == (revision, None, None)
    question = as_question(later, "_search", {"k": 2, "metric": "hamming"}, None)
    assert pickle.loads(shard(folder).search(question, np.ones((1, 8)))) == (revision, None, None)


def test_a_repeated_change_is_applied_once(saved):
    folder, manifest = saved
    one, revision = shard(folder), manifest.shards[0].revision
    after = Revision(5, "af7e")
    for _ in range(2):
        reply = one.change(revision, after, "add", {"codes": np.ones((1, 8)), "ids": [99]})
        assert reply == (after, 4, None)
    # A late call for an already saved state does not revert the shard.
    assert one.count(revision) == (after, None, None)
    assert one.count(after).answer == 4


def test_a_shard_catches_up_with_a_missed_save(saved):
    folder, manifest = saved
    behind = shard(folder)
    behind.count(manifest.shards[0].revision)
    ahead, after = shard(folder), Revision(5, "af7e")
    ahead.change(manifest.shards[0].revision, after, "remove", {"ids": [0]})
    entry = ahead.save(after).answer
    write_manifest(folder, Manifest(8, 14, "int", None, (entry, manifest.shards[1])))
    assert behind.count(after) == (after, 2, None)


@pytest.mark.parametrize("damage", ["missing", "changed", "cut", "of another shard"])
def test_a_damaged_file_is_named_with_its_shard(saved, damage):
    folder, manifest = saved
    path, other = (folder / entry.file for entry in manifest.shards)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"changed": content[:-1] + bytes([content[-1] ^ 1]), "cut": content[:-9]}.get(damage, other.read_bytes())
        )
    reply = shard(folder).count(manifest.shards[0].revision)
    assert reply.answer is None
    assert isinstance(reply.error, HashIndexError)
    assert f"{path}, the file of shard 0, is {'missing' if damage == 'missing' else 'damaged'}" in str(reply.error)


def test_another_index_in_the_folder_is_detected(saved):
    folder, manifest = saved
    reply = shard(folder, shards=3).count(manifest.shards[0].revision)
    assert "holds 2 shards of 8 bits by now, where 3 of 8 were expected" in str(reply.error)


def test_only_files_not_in_the_manifest_are_removed(saved):
    folder, manifest = saved
    for name in ("shard-00000-r3-ab.index", ".shard-00000-r3-ab.index.9-ff.tmp", ".shard-00000-r3-ab.index.lock"):
        (folder / name).touch()
    kept = {"notes.txt", "shard-1.index", "images.index"}
    for name in kept:
        (folder / name).touch()
    remove_old_files(folder, manifest)
    names = {path.name for path in folder.iterdir()}
    assert names == kept | {"manifest.json", *(entry.file for entry in manifest.shards)}


@pytest.mark.parametrize("strings", [True, False])
@pytest.mark.parametrize("metric", ["hamming", "aqd"])
def test_merging_equals_sorting(strings, metric):
    rng = np.random.default_rng(0)
    numbers = rng.permutation(60) - 30
    names = [f"é{number}-\udcff" for number in numbers] if strings else numbers.tolist()
    parts, rows = [], []
    for start, width in ((0, 5), (5, 0), (5, 25), (30, 2)):
        ids = np.empty((2, width), object if strings else np.int64)
        scores = rng.integers(0, 4, (2, width)).astype(np.int32 if metric == "hamming" else np.float32)
        for query in range(2):
            own = names[start : start + width]
            ids[query] = [own[at] for at in rng.permutation(width)]
        encoded = [str(item).encode("utf-8", "surrogatepass") for item in ids.ravel()]
        table = pa.table({"name": pa.array(encoded, pa.binary())})
        parts.append(SearchResults(ids, scores, table))
        rows.append(list(zip(scores.tolist(), ids.tolist(), strict=True)))
    for k in (1, 9, 50):
        merged = merge(parts, k, metric, pa.schema([("name", pa.binary())]))
        for query in range(2):
            items = [pair for part in rows for pair in zip(part[query][0], part[query][1], strict=True)]
            items = sorted(items, key=lambda pair: (pair[0] if metric == "hamming" else -pair[0], pair[1]))[:k]
            assert merged.ids[query].tolist() == [item for _, item in items]
            assert merged.scores[query].tolist() == [score for score, _ in items]
        expected = [str(item).encode("utf-8", "surrogatepass") for item in merged.ids.ravel()]
        assert merged.metadata["name"].to_pylist() == expected
        assert merged.scores.dtype == (np.int32 if metric == "hamming" else np.float32)
