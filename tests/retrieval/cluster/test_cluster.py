"""`ShardedHashIndex` against `HashIndex`, on a cluster with killed processes and nodes."""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("ray")

from cmfah_hf.errors import HashIndexError, QueryError
from cmfah_hf.retrieval import HashIndex, ShardedHashIndex
from cmfah_hf.retrieval.cluster.shards import shard_of
from cmfah_hf.retrieval.codes import unpack

pytestmark = pytest.mark.cluster

BITS = 16


def tied_values(rng, rows):
    """Continuous codes of few sign patterns, on a coarse grid, so that scores tie everywhere."""
    patterns = rng.normal(size=(max(2, rows // 6), BITS))
    return np.clip(np.round(patterns[rng.integers(len(patterns), size=rows)] * 2) / 4, -1, 1)


def columns(rng, rows):
    return {"place": rng.choice(["sea", "town", "wood"], rows).tolist(), "year": rng.integers(1999, 2003, rows)}


def assert_same(found, expected):
    """Bit-equal: ids, scores, their types, metadata."""
    assert found.ids.dtype == expected.ids.dtype
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.scores.dtype == expected.scores.dtype
    assert found.scores.tobytes() == expected.scores.tobytes()
    assert (found.metadata is None) == (expected.metadata is None)
    if expected.metadata is not None:
        assert found.metadata.equals(expected.metadata)


def assert_same_answers(index, single, rng, ks=(1, 7), wheres=(None,)):
    queries = tied_values(rng, 3)
    assert len(index) == len(single)
    for metric in ("hamming", "aqd"):
        for k in ks:
            for where in wheres:
                assert_same(index.search(queries, k, metric, where), single.search(queries, k, metric, where))


def filled(folder, rng, rows=60, **kwargs):
    """A saved index of two shards, and a single index with the same items."""
    index, single = ShardedHashIndex(BITS, 2, folder=folder, num_cpus=0.5, **kwargs), HashIndex(BITS)
    values = tied_values(rng, rows)
    for each in (index, single):
        each.add(values)
    index.save()
    return index, single


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def shared(ray_cluster, tmp_path_factory):
    """One index of three shards for all tests that do not kill its processes; each test starts by emptying it."""
    with ShardedHashIndex(BITS, 3, folder=tmp_path_factory.mktemp("shared"), num_cpus=0.5) as index:
        yield index


@pytest.fixture
def emptied(shared):
    single = HashIndex(BITS)
    empty(shared)
    # Ids are not assigned twice.
    if shared.next_id:
        single.add(np.ones((1, BITS)), [shared.next_id - 1])
        single.remove([shared.next_id - 1])
    return shared, single


def empty(index):
    index.remove(index.ids)


def assert_same_contents(index, single):
    """Compares the contents with the single index, in ascending order of the ids."""
    order = np.argsort(single.ids, kind="stable")
    assert index.id_type == single.id_type
    assert index.ids.tolist() == single.ids[order].tolist()
    np.testing.assert_array_equal(index.codes, single.codes[order])
    assert (index.metadata is None) == (single.metadata is None)
    assert index.metadata is None or index.metadata.equals(single.metadata.take(order))


@given(st.data())
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequence_of_changes_matches_the_single_index_bit_for_bit(shared, data):
    empty(shared)
    single = HashIndex(BITS)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
    name = data.draw(st.sampled_from([int, lambda number: f"é{number}-\udcff"]), "kind")
    with_metadata = data.draw(st.booleans(), "metadata")
    both = (shared, single)
    held = []

    def table(rows):
        return columns(rng, rows) if with_metadata and rng.random() < 0.8 else None

    for verb in [
        "add",
        *data.draw(st.lists(st.sampled_from(["add", "remove", "update", "upsert"]), max_size=5), "verbs"),
    ]:
        if verb in ("add", "upsert") or not held:
            numbers = rng.choice(10_000, int(rng.integers(1, 40)), replace=False) - 5000
            new = [name(int(number)) for number in numbers]
            if verb == "upsert":
                new = list(dict.fromkeys([*new, *held[::3]]))
            else:
                new = [item for item in new if item not in held]
            values, metadata = tied_values(rng, len(new)), table(len(new))
            for index in both:
                (index.upsert if verb == "upsert" else index.add)(values, new, metadata)
            held += [item for item in new if item not in held]
        else:
            chosen = [held[row] for row in rng.choice(len(held), int(rng.integers(1, len(held) + 1)), replace=False)]
            if verb == "remove":
                for index in both:
                    index.remove(chosen)
                held = [item for item in held if item not in set(chosen)]
            else:
                values = tied_values(rng, len(chosen)) if rng.random() < 0.7 else None
                metadata = table(len(chosen))
                metadata = {"year": metadata["year"]} if metadata and values is not None else metadata
                if values is None and metadata is None:
                    continue
                for index in both:
                    index.update(chosen, values, metadata)
    assert len(shared) == len(single) == len(held)
    probes = [*held[:3], name(77_777), 1.5, None, True]
    assert [item in shared for item in probes] == [item in single for item in probes]
    assert_same_contents(shared, single)
    for k in (1, int(rng.integers(1, 30)), len(held), len(held) + 5) if held else ():
        assert_same_answers(shared, single, rng, (k,), [any_condition(single, rng)])


def any_condition(single, rng):
    """One condition on the metadata, or None."""
    if single.metadata is None:
        return None
    wheres = [None, {"year": [2000, 2002]}, pc.field("year") > 2000]
    wheres += [{"place": "sea", "year": 2001}] * ("place" in single.metadata.column_names)
    return wheres[int(rng.integers(len(wheres)))]


def test_assigned_ids_ascend_over_all_shards(emptied, rng):
    index, single = emptied
    for rows in (5, 1, 8):
        values = tied_values(rng, rows)
        for each in (index, single):
            each.add(values)
    for each in (index, single):
        each.remove([single.next_id - 1])
        each.add(np.ones((2, BITS)), range(500, 502))
        each.add(np.ones((2, BITS)))
    assert index.next_id == single.next_id
    assert_same_answers(index, single, rng, ks=(len(single),))


def test_one_tie_over_all_shards_is_cut_in_the_order_of_ids(emptied):
    index, _ = emptied
    index.add(np.ones((50, BITS)), ids=np.arange(50)[::-1] * 3)
    for metric in ("hamming", "aqd"):
        assert index.search(np.ones(BITS), k=4, metric=metric).ids.tolist() == [[0, 3, 6, 9]]


def test_later_columns_and_shards_without_them(emptied, rng):
    index, single = emptied
    for each in (index, single):
        each.add(np.ones((20, BITS)), ids=range(20))
        each.add(np.ones((1, BITS)), ids=[20], metadata={"kind": pa.array(["boat"]).dictionary_encode()})
        each.add(np.ones((1, BITS)), ids=[21], metadata={"size": [2.5]})
    for where in (None, {"kind": "boat"}, {"size": [2.5, 1.0]}, pc.field("kind").is_null()):
        assert_same(
            index.search(np.ones((2, BITS)), 22, where=where), single.search(np.ones((2, BITS)), 22, where=where)
        )


def test_refused_calls_match_the_single_index_and_change_nothing(emptied, rng, caplog):
    index, single = emptied
    values = tied_values(rng, 30)
    for each in (index, single):
        each.add(values, ids=range(30), metadata={"year": list(range(30))})
    revisions = index._state.revisions
    refused = [
        lambda each: each.add(values[:3], ids=[100, 5, 101]),
        lambda each: each.add(values[:2], ids=[100, 100]),
        lambda each: each.add(values[:2], ids=["a", "b"]),
        lambda each: each.add(values[:2], ids=["a", 1]),
        lambda each: each.add(values[:2], ids=[True, 2]),
        lambda each: each.add(values[:2], ids=[1]),
        lambda each: each.add(values[:1], ids=[2**63]),
        lambda each: each.add(values[:1], ids=5),
        lambda each: each.add(values[:, :8]),
        lambda each: each.add(values * np.nan),
        lambda each: each.add(values[:1], ids=[200], metadata={"year": ["late"]}),
        lambda each: each.add(values[:2], ids=[200, 201], metadata={"year": [1]}),
        lambda each: each.remove([3, 4, 999]),
        lambda each: each.remove(["a"]),
        lambda each: each.update([3, 999], metadata={"year": [1, 2]}),
        lambda each: each.update([3], metadata={"year": ["x"]}),
        lambda each: each.update([3], codes=values[:2]),
        lambda each: each.upsert(values[:2], [3, 3]),
        lambda each: each.upsert(values[:1], [3], metadata={"year": ["x"]}),
        lambda each: each.search(values[:, :8]),
        lambda each: each.search(values * np.nan),
        lambda each: each.search(np.ones((1, 2), np.uint8), metric="aqd"),
        lambda each: each.search(values, k=0),
        lambda each: each.search(values, k=True),
        lambda each: each.search(values, probes=0),
        lambda each: each.holds([1.5]),
        lambda each: each.search(values, metric="cosine"),
        lambda each: each.search(values, where={"month": 3}),
        lambda each: each.search(values, where=len),
        lambda each: each.search(values, where={"year": len}),
        lambda each: each.search(values, where={"year": "x"}),
        lambda each: each.search(values, where={"year\n": "\ud800"}),
        lambda each: each.search(values, where=pc.field("year") + 1),
        lambda each: each.search((values > 0).astype(int)),
        lambda each: each.search((values > 0).astype(float), metric="aqd"),
        lambda each: each.add((values > 0).astype(np.int8)),
        lambda each: each.add((values > 0)[:1], ids=[200]),
        lambda each: each.add([[1.0] * BITS, [1.0]]),
        lambda each: each.add(values[:1], ids=[200], metadata={3: ["x"]}),
        lambda each: each.add(values[:1], ids=[200], metadata={"name": ["\ud800"]}),
        lambda each: each.remove(5),
        lambda each: each.remove(None),
        lambda each: each.remove(np.array("abc")),
    ]
    for act in refused:
        refusals = []
        for each in (single, index):
            with pytest.raises((HashIndexError, QueryError)) as caught:
                act(each)
            refusals.append((caught.type, str(caught.value)))
        assert refusals[0] == refusals[1]
    assert index._state.revisions == revisions
    assert_same_answers(index, single, rng, ks=(30,))
    with caplog.at_level(logging.WARNING):
        index.search(values, k=31)
    assert "k = 31 exceeds the 30 items of the index" in caplog.text
    empty(index)
    for metric, k in (("hamming", 3), ("aqd", 0)):
        with pytest.raises((HashIndexError, QueryError)) as caught:
            HashIndex(BITS).search(values, k, metric)
        with pytest.raises(caught.type, match=str(caught.value)):
            index.search(values, k, metric)


def test_unusual_queries_match_the_single_index(emptied, rng):
    index, single = emptied
    values = tied_values(rng, 30)
    table = pa.table(
        {
            "year": [None if i == 4 else i for i in range(30)],
            "big": pa.array([2**64 - 1, *range(29)], pa.uint64()),
            "name": pa.array([f"n{i % 3}" for i in range(30)], pa.string_view()),
            "share": [0.0, -0.0] * 15,
        }
    )
    for each in (index, single):
        each.add(values, ids=range(100, 130), metadata=table)
    wheres = [
        *({"year": value} for value in (10**40, None, [], [None, 3], 3.0, 3.5)),
        *({"big": value} for value in (2**64 - 1, 2**64, -1)),
        *({"name": value} for value in ("n1", "\ud800", [], ["n1", "n2"])),
        *({"share": value} for value in (0.0, -0.0, 0)),
    ]
    assert_same_answers(index, single, rng, ks=(1, 30), wheres=wheres)
    for where in (None, {"year": 3}, {"year": None}):
        nothing = np.empty((0, BITS))
        assert_same(index.search(nothing, 7, where=where), single.search(nothing, 7, where=where))


def test_columns_of_nulls_get_their_type_later(emptied, rng):
    index, single = emptied
    for each in (index, single):
        each.add(np.ones((12, BITS)), ids=range(12), metadata={"size": [None] * 12})
        each.add(np.ones((1, BITS)), ids=[12], metadata={"size": [2.5]})
    index.save()
    assert_same_answers(index, single, rng, ks=(13,), wheres=(None, {"size": 2.5}))


def test_integer_ids_have_the_bounds_of_the_single_index(ray_cluster, tmp_path):
    with ShardedHashIndex(BITS, 2, folder=tmp_path, num_cpus=0.5) as index:
        index.add(np.ones((1, BITS)), ids=[2**63 - 2])
        index.add(np.ones((1, BITS)))
        with pytest.raises(HashIndexError, match="give `ids`"):
            index.add(np.ones((1, BITS)))
        assert index.next_id == 2**63
        index.model = "sha256:ab"
        index.save()
    with ShardedHashIndex.load(tmp_path, num_cpus=0.5) as again:
        assert (again.next_id, len(again), again.model) == (2**63, 2, "sha256:ab")


def test_searches_during_changes_see_whole_changes(emptied, rng):
    """Every change affects several shards; a search that saw part of it would return neither count."""
    index, _ = emptied
    index.add(np.ones((10, BITS)), ids=range(10))
    seen, stop = set(), threading.Event()

    def search_repeatedly():
        while not stop.is_set():
            seen.add(index.search(np.ones(BITS), k=1000).ids.shape[1])

    threads = [threading.Thread(target=search_repeatedly) for _ in range(2)]
    for thread in threads:
        thread.start()
    for step in range(1, 8):
        index.add(np.ones((10, BITS)), ids=range(10 * step, 10 * step + 10))
    index.remove(range(40))
    stop.set()
    for thread in threads:
        thread.join()
    assert seen <= {*range(10, 81, 10)}
    assert len(seen) > 1


@pytest.mark.slow
def test_optimized_shards_match_the_single_index(ray_cluster, tmp_path, rng):
    """With enough codes for inverted lists in both shards."""
    centers = rng.integers(0, 256, (300, 8), dtype=np.uint8)
    flips = np.packbits(rng.random((1_100_000, 8, 8)) < 0.1, axis=2)[:, :, 0]
    codes = centers[rng.integers(300, size=len(flips))] ^ flips
    queries = np.tanh(unpack(codes[:5]) + rng.normal(size=(5, 64)))
    single = HashIndex(64)
    single.add(codes)
    with ShardedHashIndex(64, 2, folder=tmp_path, num_cpus=0.5) as index:
        index.add(codes)
        index.optimize()
        for metric in ("hamming", "aqd"):
            assert_same(index.search(queries, 30, metric), single.search(queries, 30, metric))


def test_the_shard_of_an_id_depends_on_its_value_only():
    def splitmix(number):
        number %= 2**64
        number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
        return number ^ number >> 31

    numbers = [0, 1, -1, 7, 2**63 - 1, -(2**63), 123456789]
    assert shard_of(np.array(numbers), 7).tolist() == [splitmix(number) % 7 for number in numbers]
    names = ["", "a", "é", "train/cat.jpg", "\udcff"]
    digests = [hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names]
    expected = [int.from_bytes(digest, "little") % 5 for digest in digests]
    assert shard_of(np.array(names, object), 5).tolist() == expected
    # Ids that are all multiples of the number of shards still fill the shards evenly.
    sizes = np.bincount(shard_of(np.arange(0, 80_000, 8), 8), minlength=8)
    assert sizes.min() > 1100
    assert sizes.max() < 1400


def test_a_killed_shard_restarts_between_queries_and_under_load(ray_cluster, kill_shard, tmp_path, rng):
    index, single = filled(tmp_path / "index", rng)
    with index:
        kill_shard(index, 0)
        assert_same_answers(index, single, rng)

        queries = tied_values(rng, 4)
        expected = single.search(queries, 9, "aqd")
        answers, failures, stop = [], [], threading.Event()

        def search_repeatedly():
            while not stop.is_set():
                try:
                    answers.append(index.search(queries, 9, "aqd"))
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=search_repeatedly) for _ in range(2)]
        for thread in threads:
            thread.start()
        for shard in (0, 1):
            kill_shard(index, shard)
            before = len(answers)
            deadline = time.monotonic() + 60
            while len(answers) < before + 6 and time.monotonic() < deadline:
                time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(answers) > 10
        for answer in answers:
            assert_same(answer, expected)
        # The index continues to work: changes go to the right shards and are saved.
        for each in (index, single):
            each.remove([3])
        index.save()
        kill_shard(index, 1)
        assert_same_answers(index, single, rng)


def test_lost_unsaved_changes_are_named(ray_cluster, kill_shard, tmp_path, rng):
    folder = tmp_path / "index"
    index, single = filled(folder, rng)
    with index:
        index.add(tied_values(rng, 40))
        index.add(tied_values(rng, 40))
        kill_shard(index, 1)
        for act in (
            lambda: index.search(np.ones(BITS)),
            lambda: index.add(np.ones((20, BITS))),
            index.save,
        ):
            with pytest.raises(
                HashIndexError, match=rf"Shard 1 of {folder} has died, and 2 changes .* load the folder"
            ):
                act()
    with pytest.raises(HashIndexError, match="is closed; load it"):
        index.search(np.ones(BITS))
    with ShardedHashIndex.load(folder, bits=BITS, num_cpus=0.5, autosave=True) as index:
        assert_same_answers(index, single, rng)
        # Changes that are saved at once are never lost.
        values = tied_values(rng, 20)
        for each in (index, single):
            each.add(values)
        kill_shard(index, 0)
        kill_shard(index, 1)
        assert_same_answers(index, single, rng)


def test_removing_a_node_under_load_loses_no_answer(ray_cluster, node_options, process_of, kill_node, tmp_path, rng):
    ray_cluster.add_node(**node_options)  # the cluster keeps its two nodes for later tests
    index, single = filled(tmp_path / "index", rng)
    with index:
        assert len({process_of(index, shard)[1] for shard in range(2)}) == 2, "the shards are spread over nodes"
        queries = tied_values(rng, 4)
        expected = single.search(queries, 60, "hamming")
        answers, failures, stop = [], [], threading.Event()

        def search_repeatedly():
            while not stop.is_set():
                try:
                    answers.append(index.search(queries, 60))
                except Exception as error:
                    failures.append(error)

        thread = threading.Thread(target=search_repeatedly)
        thread.start()
        removed_node = kill_node(index, 0)
        before = len(answers)
        deadline = time.monotonic() + 60
        while len(answers) < before + 5 and not failures and time.monotonic() < deadline:
            time.sleep(0.05)
        stop.set()
        thread.join()
        assert failures == []
        assert len(answers) >= before + 5
        for answer in answers:
            assert_same(answer, expected)
        assert removed_node not in {process_of(index, shard)[1] for shard in range(2)}
        assert_same_answers(index, single, rng)


def test_a_permanently_lost_shard_is_named_within_the_timeout(ray_cluster, node_options, kill_node, tmp_path, rng):
    ray_cluster.add_node(**{**node_options, "num_cpus": 12})
    folder = tmp_path / "index"
    index = ShardedHashIndex(BITS, 1, folder=folder, num_cpus=9, timeout=60)
    with index:
        index.add(tied_values(rng, 20))
        index.save()
        (file,) = folder.glob("shard-*.index")
        kill_node(index, 0)
        index._actors.timeout = 4
        start = time.monotonic()
        with pytest.raises(HashIndexError, match=rf"Shard 0 \({file}\) .* 4 seconds.*9 free CPUs"):
            index.search(np.ones(BITS))
        assert time.monotonic() - start < 12


def test_a_missing_file_of_a_restarting_shard_is_named(ray_cluster, kill_shard, tmp_path, rng):
    folder = tmp_path / "index"
    index, single = filled(folder, rng)
    with index:
        (file,) = folder.glob("shard-00001-*.index")
        content = file.read_bytes()
        file.unlink()
        kill_shard(index, 1)
        with pytest.raises(HashIndexError, match=rf"{file}, the file of shard 1, is missing"):
            index.search(np.ones(BITS))
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(HashIndexError, match=rf"{file}, the file of shard 1, is damaged"):
            index.search(np.ones(BITS))
        file.write_bytes(content)
        assert_same_answers(index, single, rng)
        # A conflicting save by another program is detected and not overwritten.
        with ShardedHashIndex.load(folder, num_cpus=0.5) as other:
            other.add(np.ones((5, BITS)))
            other.save()
        index.add(np.zeros((5, BITS)))
        with pytest.raises(HashIndexError, match="another program has saved"):
            index.save()
        kill_shard(index, 1)
        with pytest.raises(HashIndexError, match=r"another program has saved|changes? that had not been saved"):
            index.search(np.ones(BITS))


SAVING = """
import json, os, signal, sys
import numpy as np, ray
from cmfah_hf.retrieval import ShardedHashIndex
from cmfah_hf.retrieval.cluster import sharded_index
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
index = ShardedHashIndex.load(sys.argv[2], num_cpus=0.5)
found = index.search(np.load(sys.argv[3]), k=12, metric="aqd")
print(json.dumps([found.ids.tolist(), found.scores.tolist(), index.next_id]), flush=True)
setattr(sharded_index, sys.argv[4], lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
index.add(np.ones((7, 16)))
index.remove([0, 1])
index.save()
"""


def test_a_killed_save_leaves_the_old_or_the_new_state(ray_cluster, tmp_path, rng):
    folder = tmp_path / "index"
    index, single = filled(folder, rng)
    index.close()
    queries = tied_values(rng, 4)
    np.save(tmp_path / "queries.npy", queries)
    for step, saved in (("write_manifest", False), ("remove_old_files", True)):
        command = [sys.executable, "-c", SAVING, ray_cluster.address, folder, tmp_path / "queries.npy", step]
        run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
        assert run.returncode == -signal.SIGKILL, run.stderr
        # The new process reads the saved state.
        ids, scores, next_id = json.loads(run.stdout.splitlines()[-1])
        expected = single.search(queries, 12, "aqd")
        assert (ids, scores, next_id) == (expected.ids.tolist(), expected.scores.tolist(), single.next_id)
        # Files of the previous state and those written by killed saves.
        assert len(list(folder.glob("shard-*.index"))) == (6 if saved else 4)
        if saved:
            single.add(np.ones((7, BITS)))
            single.remove([0, 1])
    with ShardedHashIndex.load(folder, num_cpus=0.5) as index:
        assert_same_answers(index, single, rng, ks=(len(single),))
        index.add(np.ones((30, BITS)))
        index.save()
        files = {path.name for path in folder.iterdir()}
        assert files == {"manifest.json", *(shard.file for shard in index._saved.shards)}
    with pytest.raises(HashIndexError, match=rf"{folder} holds an index already"):
        ShardedHashIndex(BITS, 2, folder=folder)
    with pytest.raises(HashIndexError, match="16 bits, where 64"):
        ShardedHashIndex.load(folder, bits=64)


def test_importing_the_package_does_not_load_ray():
    script = "import sys, cmfah_hf, cmfah_hf.retrieval; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env=os.environ, timeout=60).returncode == 0
