"""`HashIndex.search` against float64 algebra over all items, in cases prone to rounding errors and ties in FAISS."""

import runpy
from itertools import pairwise

import faiss
import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmfah_hf.retrieval import ranking
from cmfah_hf.retrieval.codes import pack, round_for_aqd
from cmfah_hf.retrieval.index import HashIndex
from cmfah_hf.retrieval.searchers import exact_ivf, exact_ivf_kernel
from cmfah_hf.retrieval.searchers.base import Queries, distances_of_one, exact_distances
from cmfah_hf.retrieval.searchers.exact_ivf import ExactIVF
from cmfah_hf.retrieval.searchers.fast_scan import FastScan
from cmfah_hf.retrieval.searchers.posting_lists import PostingLists
from cmfah_hf.retrieval.storage import rows as row_storage
from cmfah_hf.retrieval.storage import segments


def expected(codes, queries, ids, k, metric, allowed=None):
    """Ids and scores by sorting all items: distance first, then the id."""
    signs = np.unpackbits(codes, axis=1, bitorder="little").astype(np.float64) * 2 - 1
    if metric == "hamming":
        distances = (signs.shape[1] - np.where(queries >= 0, 1.0, -1.0) @ signs.T) / 2
    else:
        distances = -(np.round(queries.astype(np.float64) * 2**14) / 2**14 @ signs.T)
    rows = np.arange(len(codes)) if allowed is None else np.flatnonzero(allowed)
    keys = np.asarray(ids)[rows]
    ranks = np.argsort(np.argsort(keys))
    order = np.lexsort((np.broadcast_to(ranks, (len(queries), len(rows))), distances[:, rows]), axis=1)[:, :k]
    scores = np.take_along_axis(distances[:, rows], order, 1)
    return keys[order], scores if metric == "hamming" else -scores


def drawn(rng, items, bits, kind):
    """Packed codes: uniform, around a few centers, or few patterns repeated many times."""
    if kind == "uniform":
        return rng.integers(0, 256, (items, bits // 8), dtype=np.uint8)
    centers = rng.integers(0, 256, (max(1, items // 50), bits // 8), dtype=np.uint8)
    codes = centers[rng.integers(len(centers), size=items)]
    if kind == "clustered":
        codes ^= np.packbits(rng.random((items, bits // 8, 8)) < 0.08, axis=2)[:, :, 0]
    return codes


def drawn_queries(rng, queries, bits, kind):
    """Continuous codes: as from a model, coarse with ties, near zero, saturated, all zero, or one dominant value."""
    values = rng.normal(size=(queries, bits))
    return {
        "model": np.tanh(values),
        "coarse": np.round(np.tanh(values) * 2) / 2,
        "small": values * 1e-3,
        "saturated": np.sign(values),
        "zero": values * 0,
        "one": np.where(np.arange(bits) == 3, 1.0, values * 1e-4),
    }[kind].astype(np.float32)


# More than 10,000 searches: 600 indexes, up to 5 depths, 5 queries.
@given(
    seed=st.integers(0, 2**32 - 1),
    bits=st.sampled_from([8, 16, 24, 32, 64, 128, 256]),
    items=st.sampled_from([1, 70, 1000, 1500, 4000, 5000, 9000]),
    kind=st.sampled_from(["uniform", "clustered", "repeated"]),
    asked=st.sampled_from(["model", "coarse", "small", "saturated", "zero", "one"]),
    metric=st.sampled_from(["hamming", "aqd"]),
    removed=st.sampled_from([0.0, 0.0, 0.05, 0.6]),
    pieces=st.integers(1, 4),
    lists=st.sampled_from([None, None, 1, 40]),
    places=st.sampled_from([1, 4096]),
)
@settings(max_examples=600, derandomize=True)
@pytest.mark.slow
def test_search_is_always_exact(seed, bits, items, kind, asked, metric, removed, pieces, lists, places):
    """With FastScan, posting lists and exact IVF, whether or not they are faster and the ties fit in."""
    with pytest.MonkeyPatch.context() as patch:
        if lists:
            patch.setattr(segments, "IVF_CODES", 1)
            patch.setattr(segments, "SCANNED_FIRST", 0)
            patch.setattr(exact_ivf, "_LISTS", (lists,))
            patch.setattr(exact_ivf, "_LARGEST_SHARE", np.inf)
            patch.setattr(exact_ivf, "_PLACES", places)
            patch.setattr(exact_ivf, "_TIES", 1)
        check_answers(seed, bits, items, kind, asked, metric, removed, pieces)


def check_answers(seed, bits, items, kind, asked, metric, removed, pieces):
    rng = np.random.default_rng(seed)
    codes, queries = drawn(rng, items, bits, kind), drawn_queries(rng, 5, bits, asked)
    ids = rng.permutation(3 * items)[:items]
    index = HashIndex(bits)
    bounds = np.linspace(0, items, pieces + 1).astype(int)
    for start, end in pairwise(bounds):
        index.add(codes[start:end], ids=ids[start:end])
    live = rng.random(items) >= removed
    live[rng.integers(items)] = True
    index.remove(ids[~live])
    for k in {1, 10, 64, 1 + items // 20, items}:
        k = min(k, int(live.sum()))
        names, scores = expected(codes, queries, ids, k, metric, live)
        found = index.search(queries, k=k, metric=metric)
        np.testing.assert_array_equal(found.ids, names)
        np.testing.assert_array_equal(found.scores, scores)


@pytest.mark.parametrize("bits", [64, 512, 1024])
@pytest.mark.parametrize("metric", ["hamming", "aqd"])
def test_the_widest_codes(bits, metric):
    """At 1,024 bits the 256 tables of FastScan fill its 16-bit sums to the maximum."""
    rng = np.random.default_rng(bits)
    codes = drawn(rng, 5000, bits, "uniform")
    codes[:3] = [[0], [255], [85]]
    queries = np.concatenate([drawn_queries(rng, 4, bits, "model"), np.ones((1, bits)), -np.ones((1, bits))])
    index = HashIndex(bits)
    index.add(codes)
    names, scores = expected(codes, queries, range(5000), 20, metric)
    found = index.search(queries, k=20, metric=metric)
    np.testing.assert_array_equal(found.ids, names)
    np.testing.assert_array_equal(found.scores, scores)


@pytest.mark.parametrize("hamming", [True, False])
@pytest.mark.parametrize("bits", [16, 64, 200])
def test_bounds_hold_for_all_codes_left_out(hamming, bits):
    rng = np.random.default_rng(bits)
    for kind in ("model", "small", "one", "coarse"):
        codes = drawn(rng, 3000, bits, "clustered")
        values = round_for_aqd(drawn_queries(rng, 8, bits, kind))
        queries = Queries.for_hamming(pack(values)) if hamming else Queries.for_aqd(values)
        scanned = (PostingLists if bits == 16 else FastScan)(codes)
        found = scanned.candidates(queries, 50, 20)
        true_distances = exact_distances(queries, codes)
        for query in range(8):
            real = np.isfinite(found.distances[query])
            rows = found.rows[query][real]
            assert len(set(rows.tolist())) == len(rows) >= 50
            np.testing.assert_array_equal(found.distances[query][real], true_distances[query, rows])
            assert np.delete(true_distances[query], rows).min() >= found.bounds[query]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("hamming", [True, False])
@pytest.mark.parametrize("bits", [24, 64, 512, 1024])
def test_exact_ivf_finds_all_codes_up_to_the_kth_distance(bits, hamming, threads, monkeypatch):
    monkeypatch.setattr(faiss, "omp_get_max_threads", lambda: threads)
    monkeypatch.setattr(exact_ivf, "_LARGEST_SHARE", np.inf)
    rng = np.random.default_rng(bits)
    codes = drawn(rng, 6000, bits, "clustered")
    codes[-1] = ~codes[0]
    lists = ExactIVF.of(codes)
    for kind in ("model", "small", "one", "coarse", "saturated"):
        values = drawn_queries(rng, 12, bits, kind)
        near = np.unpackbits(codes[:12], axis=1, bitorder="little") * 2.0 - 1
        values = round_for_aqd(np.where(rng.random(values.shape) < 0.9, np.abs(values) * near, values))
        queries = Queries.for_hamming(pack(values)) if hamming else Queries.for_aqd(values)
        true_distances = exact_distances(queries, codes).astype(np.float64)
        found = lists.candidates(queries, 80, 10)
        for query in range(12):
            real = np.isfinite(found.distances[query])
            rows = found.rows[query][real]
            assert len(set(rows.tolist())) == len(rows) >= 10
            np.testing.assert_array_equal(found.distances[query][real], true_distances[query, rows])
            left_out = np.delete(true_distances[query], rows).min(initial=np.inf)
            assert np.sort(true_distances[query])[9] < found.bounds[query] <= left_out


def test_more_ties_than_candidates_leave_the_answer_open(monkeypatch):
    monkeypatch.setattr(exact_ivf, "_LARGEST_SHARE", np.inf)
    rng = np.random.default_rng(4)
    codes = drawn(rng, 12_000, 64, "clustered")
    codes[:6000] = codes[0]
    lists = ExactIVF.of(codes)
    among = np.unpackbits(codes[[0, -1]], axis=1, bitorder="little") * np.float32(2) - 1
    found = lists.candidates(Queries.for_hamming(pack(among)), 80, 10)
    assert found.bounds[0] == -np.inf
    assert not np.isfinite(found.distances[0]).any()
    assert found.bounds[1] > np.sort(found.distances[1])[9]


@pytest.mark.parametrize("metric", ["hamming", "aqd"])
def test_exact_ivf_reads_few_clustered_codes(metric, monkeypatch):
    monkeypatch.setattr(exact_ivf, "_ANSWERS", 10)
    rng = np.random.default_rng(0)
    codes = drawn(rng, 20_000, 64, "clustered")
    monkeypatch.setattr(segments, "IVF_CODES", 1)
    index = HashIndex(64)
    index.add(codes)
    index.optimize()
    read, original = [], exact_ivf.read_lists

    def noted(*arguments):
        original(*arguments)
        read.extend(arguments[-1].tolist())

    monkeypatch.setattr(exact_ivf, "read_lists", noted)
    queries = (np.unpackbits(codes[:20], axis=1, bitorder="little") * 2.0 - 1) * rng.uniform(0.2, 1, (20, 64))
    for query in queries:
        names, scores = expected(codes, query[None], range(len(codes)), 3, metric)
        found = index.search(query, k=3, metric=metric)
        np.testing.assert_array_equal(found.ids, names)
        np.testing.assert_array_equal(found.scores, scores)
    assert len(read) == len(queries)
    assert 3 <= np.mean(read) < len(codes) / 20


@pytest.mark.parametrize("enough", [True, False], ids=["enough codes", "too few codes"])
def test_more_centers_are_trained_if_few_prune_too_little(enough, monkeypatch):
    """With 120 clusters and 16 centers, each center covers several clusters; 256 centers need enough codes each."""
    items = 6000
    monkeypatch.setattr(exact_ivf, "_LISTS", (16, 256))
    monkeypatch.setattr(exact_ivf, "_SAMPLE", 16 * 256)
    monkeypatch.setattr(exact_ivf, "_ANSWERS", 10)
    monkeypatch.setattr(exact_ivf, "_CODES_PER_LIST", items // 256 + (not enough))
    codes = drawn(np.random.default_rng(0), items, 64, "clustered")
    few, many = (exact_ivf._centers(codes, lists, 0) for lists in (16, 256))
    shares = [exact_ivf._share_read(codes, centers, 0) for centers in (few, many)]
    assert shares[0] > exact_ivf._LARGEST_SHARE > shares[1]
    made = ExactIVF.of(codes)
    if enough:
        assert 64 < len(made._starts_L) <= len(many)
    else:
        assert made is None


def test_the_estimated_share_matches_the_codes_read(monkeypatch):
    """With codes as queries for several k, as the estimate assumes."""
    codes = drawn(np.random.default_rng(3), 20_000, 64, "clustered")
    monkeypatch.setattr(exact_ivf, "_ANSWERS", 9)
    centers = exact_ivf._centers(codes, 256, 0)
    monkeypatch.setattr(exact_ivf, "_PROBE_COST", 0)
    expected_share = exact_ivf._share_read(codes, centers, 0)
    bits, center_bits = (np.unpackbits(part, axis=1) for part in (codes, pack(centers)))
    judges = bits[:: 20_000 // 512]
    to_centers = (bits[:, None] != center_bits[None]).sum(axis=2, dtype=np.int16)
    lists, radii = to_centers.argmin(axis=1), to_centers.min(axis=1)
    from_judges = (judges[:, None] != center_bits[None]).sum(axis=2)
    within = [np.sort((bits != judge).sum(axis=1))[9] for judge in judges]  # at 0 the code itself
    read = [
        np.count_nonzero(radii >= np.maximum(from_judge[lists] - own, 0))
        for from_judge, own in zip(from_judges, within, strict=True)
    ]
    assert expected_share == pytest.approx(np.mean(read) / len(codes), rel=1e-6)


def test_exact_ivf_is_built_only_after_many_scanned_codes_that_cluster(monkeypatch):
    monkeypatch.setattr(exact_ivf, "_ANSWERS", 10)
    monkeypatch.setattr(segments, "IVF_CODES", 5000)
    monkeypatch.setattr(segments, "SCANNED_FIRST", 50_000)
    rng = np.random.default_rng(1)
    kinds = {}
    for kind, items in (("clustered", 5000), ("uniform", 5000), ("clustered", 4999)):
        index = HashIndex(64)
        index.add(drawn(rng, items, 64, kind))
        used = []
        for count in (9, 1, 1):
            index.search(drawn_queries(rng, count, 64, "model"), k=3)
            used.append(type(index._rows.now.segments[0]._searcher).__name__)
        kinds[kind, items] = used
    assert kinds["clustered", 5000] == ["FastScan", "FastScan", "ExactIVF"]
    assert kinds["uniform", 5000] == kinds["clustered", 4999] == ["FastScan"] * 3


@pytest.mark.slow
def test_compiled_code_without_a_cache(monkeypatch):
    original = numba.njit

    def njit(*arguments, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return original(*arguments, **options)

    monkeypatch.setattr(numba, "njit", njit)
    again = runpy.run_path(exact_ivf_kernel.__file__)
    assert again["read_lists"].signatures == exact_ivf_kernel.read_lists.signatures


def test_all_ways_of_scoring_agree():
    rng = np.random.default_rng(0)
    codes = drawn(rng, 500, 40, "uniform")
    for values, hamming in (
        (round_for_aqd(rng.normal(size=(3, 40))), False),
        (np.sign(rng.normal(size=(3, 40))), True),
    ):
        queries = Queries.for_hamming(pack(values)) if hamming else Queries.for_aqd(values.astype(np.float32))
        _, scores = expected(codes, values, range(500), 500, "hamming" if hamming else "aqd")
        distances = exact_distances(queries, codes)
        np.testing.assert_array_equal(np.sort(distances, axis=1), scores if hamming else -scores)
        sets = exact_distances(queries, np.stack([codes[:7], codes[7:14], codes[14:21]]))
        for query in range(3):
            np.testing.assert_array_equal(distances_of_one(queries[query : query + 1], codes), distances[query])
            np.testing.assert_array_equal(sets[query], distances[query, 7 * query : 7 * query + 7])


def test_a_tie_deeper_than_the_candidates_is_resolved(monkeypatch):
    """7,000 items with one code and descending ids: FastScan proposes any of them, the answer has the smallest ids."""
    rng = np.random.default_rng(0)
    codes = drawn(rng, 60_000, 64, "uniform")
    codes[20_000:27_000] = codes[5]
    ids = np.arange(60_000)[::-1]
    index = HashIndex(64)
    index.add(codes, ids=ids)
    depths = []
    proposed = ranking._proposed
    monkeypatch.setattr(ranking, "_proposed", lambda *given: depths.append(given[1]) or proposed(*given))
    query = np.unpackbits(codes[5:6], axis=1, bitorder="little").astype(np.float32) * 2 - 1
    found = index.search(query, k=10)
    assert found.ids[0].tolist() == list(range(33_000, 33_010))
    assert found.scores[0].tolist() == [0] * 10
    assert depths == [74, 296, 1184, 4736]  # then every code is scored
    depths.clear()
    assert index.search(query + 0.25 * rng.normal(size=(1, 64)), k=10, metric="aqd").ids.shape == (1, 10)


@pytest.mark.parametrize("strings", [True, False])
def test_ties_are_in_the_order_of_ids_not_of_insertion(strings):
    rng = np.random.default_rng(4)
    codes = drawn(rng, 3000, 32, "repeated")
    numbers = rng.permutation(3000)
    ids = np.array([f"{'é' if number % 3 else 'z'}{number}" for number in numbers], object) if strings else numbers
    index = HashIndex(32)
    index.add(codes, ids=ids)
    queries = drawn_queries(rng, 6, 32, "coarse")
    for metric in ("hamming", "aqd"):
        for k in (1, 30, 200):
            names, scores = expected(codes, queries, ids.tolist(), k, metric)
            found = index.search(queries, k=k, metric=metric)
            np.testing.assert_array_equal(found.ids, names.astype(object) if strings else names)
            np.testing.assert_array_equal(found.scores, scores)


def test_more_queries_than_one_group_match_single_queries(monkeypatch):
    rng = np.random.default_rng(5)
    index = HashIndex(64)
    index.add(drawn(rng, 5000, 64, "clustered"))
    queries = drawn_queries(rng, 40, 64, "model")
    batched = index.search(queries, k=9, metric="aqd")
    monkeypatch.setattr(ranking, "_UNPACKED", 3 * 73 * 64)
    singly = index.search(queries, k=9, metric="aqd")
    np.testing.assert_array_equal(batched.ids, singly.ids)
    np.testing.assert_array_equal(batched.scores, singly.scores)


def test_segments_searched_in_parallel_match_one_index(monkeypatch):
    """One query searches several large segments, one thread each."""
    monkeypatch.setattr(row_storage, "_LARGEST_SEGMENT", 3000)
    monkeypatch.setattr(ranking.faiss, "omp_get_max_threads", lambda: 3)
    rng = np.random.default_rng(6)
    codes, queries = drawn(rng, 10_000, 64, "clustered"), drawn_queries(rng, 3, 64, "model")
    index = HashIndex(64)
    index.add(codes)
    assert [len(segment) for segment in index._rows.now.segments] == [3000, 3000, 3000, 1000]
    for metric in ("hamming", "aqd"):
        names, scores = expected(codes, queries, range(10_000), 25, metric)
        for query in range(3):
            found = index.search(queries[query], k=25, metric=metric)
            np.testing.assert_array_equal(found.ids[0], names[query])
            np.testing.assert_array_equal(found.scores[0], scores[query])


def test_segments_stay_few_and_are_built_lazily():
    rng = np.random.default_rng(7)
    index = HashIndex(32)
    for start in range(0, 20_000, 50):
        index.add(drawn(rng, 50, 32, "uniform"), ids=np.arange(start, start + 50))
    segments = index._rows.now.segments
    assert len(segments) <= 8
    assert [segment.start for segment in segments[1:]] == [segment.end for segment in segments[:-1]]
    assert segments[-1].end == 20_000
    assert all(segment._searcher is None for segment in segments)


def test_recall_of_approximate_search():
    rng = np.random.default_rng(8)
    codes = drawn(rng, 20_000, 64, "clustered")
    values = np.unpackbits(codes[rng.integers(20_000, size=50)], axis=1, bitorder="little") * 2.0 - 1
    queries = pack(np.tanh(values + 0.5 * rng.normal(size=values.shape)))
    index = HashIndex(64)
    index.add(codes)
    exact, found = index.search(queries, k=10), index.search(queries, k=10, exact=False, probes=8)
    assert found.ids.shape == (50, 10)
    assert (found.scores >= exact.scores).all()  # approximate search can only miss items
    hits = [np.count_nonzero(own <= best[-1]) / 10 for own, best in zip(found.scores, exact.scores, strict=True)]
    assert index.measure_recall(queries, k=10, probes=8) == pytest.approx(np.mean(hits))
    assert np.mean(hits) > 0.8
    assert index.measure_recall(queries, k=10, probes=10_000) == 1  # all lists cover all items
    assert index.measure_recall(np.tanh(values), k=10, metric="aqd", probes=10_000) > 0.95

    # Later additions and removals are covered too.
    index.add(queries[:1], ids=[10**6])
    assert index.search(queries[:1], k=1, exact=False).ids.tolist() in ([[10**6]], [[exact.ids[0, 0]]])
    index.remove([exact.ids[1, 0]])
    assert exact.ids[1, 0] not in index.search(queries[1:2], k=10, exact=False).ids
    index.add(drawn(rng, 9000, 64, "uniform"))  # more than a quarter: the lists are rebuilt
    assert index.search(queries, k=3, exact=False).ids.shape == (50, 3)
    assert len(index._rows.now.caches.inverted[0].codes) == 29_001


def test_a_selective_condition_is_answered_in_full_by_approximate_search():
    rng = np.random.default_rng(9)
    index = HashIndex(64)
    index.add(drawn(rng, 9000, 64, "uniform"), metadata={"rare": np.arange(9000) % 3000 == 0})
    found = index.search(np.ones(64), k=3, exact=False, probes=1, where={"rare": True})
    assert sorted(found.ids[0].tolist()) == [0, 3000, 6000]
