import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score
from sklearn.metrics.pairwise import cosine_similarity

from cmfah_hf.errors import QueryError
from cmfah_hf.evaluation.levels import (
    count_relevant,
    hamming_distances,
    hamming_levels,
    iterate_levels,
    relevance,
    score_levels,
    unit_rows,
)
from cmfah_hf.evaluation.metrics import (
    _harmonic_difference,
    average_precision,
    expected_average_precision,
    first_relevant_rank,
    hit_rate_at_k,
    mean_average_precision,
    ndcg_at_k,
    normalized_dcg,
    precision_at_k,
    precision_recall_curve,
    random_ranking_map,
    recall_at_k,
)
from cmfah_hf.retrieval.codes import pack, round_for_aqd


def plain_average_precision(relevant, k=None, variant=None):
    """The definition, on one order, in exact fractions."""
    precisions = [Fraction(sum(relevant[: i + 1]), i + 1) for i in range(len(relevant)) if relevant[i]]
    if k is not None:
        precisions = precisions[: sum(relevant[:k]) if variant is None else k]
    return sum(precisions, Fraction(0)) / len(precisions) if precisions else Fraction(0)


def all_orders(scores, relevant):
    """Every order that is consistent with these scores."""
    ties = [[i for i, s in enumerate(scores) if s == level] for level in sorted(set(scores), reverse=True)]
    for parts in itertools.product(*(itertools.permutations(tie) for tie in ties)):
        yield [relevant[i] for part in parts for i in part]


rankings = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6)


@given(rankings, st.none() | st.integers(1, 7), st.sampled_from([None, "dcmh"]))
@settings(max_examples=150)
def test_expected_average_precision_is_the_mean_over_all_orders(ranking, k, variant):
    scores, relevant = zip(*ranking, strict=True)
    orders = list(all_orders(scores, relevant))
    expected = sum(plain_average_precision(order, k, variant) for order in orders) / len(orders)
    found = average_precision([scores], [relevant], k=k, variant=variant)[0]
    assert found == pytest.approx(float(expected), abs=1e-13)


@given(rankings, st.none() | st.integers(1, 7), st.sampled_from([None, "dcmh"]))
@settings(max_examples=80)
def test_stable_average_precision_is_that_of_a_stable_sort(ranking, k, variant):
    scores, relevant = zip(*ranking, strict=True)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    expected = plain_average_precision([relevant[i] for i in order], k, variant)
    found = average_precision([scores], [relevant], ties="stable", k=k, variant=variant)[0]
    assert found == pytest.approx(float(expected), abs=1e-13)


@given(rankings, st.integers(1, 8))
@settings(max_examples=80)
def test_precision_and_recall_at_k_are_means_over_all_orders(ranking, k):
    scores, relevant = zip(*ranking, strict=True)
    found = [sum(order[:k]) for order in all_orders(scores, relevant)]
    expected = sum(found) / len(found)
    n, r = (counts[None] for counts in score_levels(np.array(scores), np.array(relevant)))
    assert precision_at_k(n, r, [k])[0, 0] == pytest.approx(expected / k)
    assert recall_at_k(n, r, [k])[0, 0] == pytest.approx(expected / max(sum(relevant), 1))


@given(rankings, st.integers(1, 8))
@settings(max_examples=120)
def test_hit_rate_and_first_rank_are_means_over_all_orders(ranking, k):
    scores, relevant = zip(*ranking, strict=True)
    orders = list(all_orders(scores, relevant))
    n, r = (counts[None] for counts in score_levels(np.array(scores), np.array(relevant)))
    hits = Fraction(sum(any(order[:k]) for order in orders), len(orders))
    assert hit_rate_at_k(n, r, [k, 1])[0, 0] == pytest.approx(float(hits), abs=1e-14)
    ranks = Fraction(sum((*order, True).index(True) + 1 for order in orders), len(orders))
    assert first_relevant_rank(n, r)[0] == pytest.approx(float(ranks), abs=1e-13)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=2, max_size=6), st.integers(1, 8))
@settings(max_examples=120)
def test_graded_ndcg_is_the_mean_over_all_orders_and_that_of_scikit_learn(ranking, k):
    scores, gains = zip(*ranking, strict=True)

    def discounted(order):
        return math.fsum(gain / math.log2(place + 2) for place, gain in enumerate(order[:k]))

    orders = list(all_orders(scores, gains))
    ideal = discounted(sorted(gains, reverse=True))
    expected = sum(map(discounted, orders)) / len(orders) / ideal if ideal else 0
    found = normalized_dcg([scores], [gains], k=k)[0]
    assert found == pytest.approx(expected, abs=1e-12)
    assert found == pytest.approx(ndcg_score([gains], [scores], k=k), abs=1e-12)


def test_binary_ndcg_of_large_ties_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores, relevant = rng.integers(0, 6, (20, 300)), rng.random((20, 300)) < 0.02
    counts = [score_levels(*row) for row in zip(scores, relevant, strict=True)]
    n, r = (np.stack(part) for part in zip(*counts, strict=True))
    ks = (1, 10, 299, 10**9)
    for k, found in zip(ks, ndcg_at_k(n, r, ks).T, strict=True):
        each = [ndcg_score([gain], [row], k=k) for gain, row in zip(relevant.astype(int), scores, strict=True)]
        np.testing.assert_allclose(found, each, atol=1e-12)
        np.testing.assert_allclose(normalized_dcg(scores, relevant, k=k), each, atol=1e-12)


@given(
    st.lists(st.tuples(st.integers(1, 10**5), st.integers(0, 10**5)), min_size=1, max_size=5),
    st.lists(st.integers(1, 200), min_size=1, max_size=4),
)
@settings(max_examples=60)
def test_hit_rates_of_large_levels_are_exact(levels, ks):
    n, r = np.array([[size for size, _ in levels]]), np.array([[min(pair) for pair in levels]])
    found = hit_rate_at_k(n, r, ks)[0]
    for k, value in zip(ks, found, strict=True):
        misses, left = Fraction(1), k
        for size, right in zip(n[0].tolist(), r[0].tolist(), strict=True):
            drawn = min(left, size)
            left -= drawn
            if misses and drawn:
                misses *= Fraction(math.comb(size - right, drawn), math.comb(size, drawn))
        assert value == pytest.approx(float(1 - misses), abs=1e-12)
    assert (np.diff(found[np.argsort(ks)]) >= -1e-15).all()


def test_without_ties_it_matches_scikit_learn():
    rng = np.random.default_rng(0)
    scores, relevant = rng.normal(size=(20, 500)), rng.random((20, 500)) < 0.2
    expected = [average_precision_score(r, s) for r, s in zip(relevant, scores, strict=True)]
    for ties in ("expected", "stable"):
        np.testing.assert_allclose(average_precision(scores, relevant, ties=ties), expected, rtol=1e-12)


@pytest.mark.parametrize(("k", "variant"), [(None, None), (150, None), (40, "dcmh")])
def test_large_ties_agree_with_sampled_orders(k, variant):
    rng = np.random.default_rng(1)
    scores, relevant = rng.integers(0, 4, 400), rng.random(400) < 0.3
    samples = []
    for _ in range(1500):
        order = np.lexsort((rng.random(400), -scores))
        ranked = relevant[order]
        places = np.flatnonzero(ranked) + 1
        precisions = np.arange(1, len(places) + 1) / places
        if k is not None:
            precisions = precisions[places <= k] if variant is None else precisions[:k]
        samples.append(precisions.mean())
    error = np.std(samples) / np.sqrt(len(samples))
    assert (
        abs(mean_average_precision(scores[None], relevant[None], k=k, variant=variant) - np.mean(samples)) < 4 * error
    )


def test_no_digits_are_lost_deep_in_a_large_database():
    """Two tied groups of two items each after a million items: the exact value from fractions."""
    depth, before = 10**6, 1000
    n = np.array([[depth, 2, 1, 2]])
    r = np.array([[before, 1, 1, 2]])
    first = expected_average_precision(n[:, :1], r[:, :1])[0] * before

    def precision(place, rank):
        return Fraction(before + place, depth + rank)

    rest = (precision(1, 1) + precision(1, 2)) / 2 + precision(2, 3) + precision(3, 4) + precision(4, 5)
    found = expected_average_precision(n, r)[0] * (before + 4) - first
    assert found == pytest.approx(float(rest), rel=1e-9)


@pytest.mark.parametrize("start", [0, 1, 40, 63, 64, 65, 200, 10**6])
@pytest.mark.parametrize("count", [1, 2, 24, 5000])
def test_harmonic_differences_are_exact_to_the_last_digits(start, count):
    expected = math.fsum(1 / (start + i) for i in range(1, count + 1))
    assert _harmonic_difference(np.array(start), np.array(count)) == pytest.approx(expected, rel=3e-14)


def test_levels_of_an_untied_order_add_up_to_its_average_precision():
    rng = np.random.default_rng(2)
    relevant = rng.random((3, 20000)) < 0.1
    ones = np.ones((3, 20000), int)
    places = [np.flatnonzero(row) + 1 for row in relevant]
    expected = [np.mean(np.arange(1, len(p) + 1) / p) for p in places]
    np.testing.assert_allclose(expected_average_precision(ones, relevant), expected, rtol=1e-12)


def test_empty_levels_and_split_irrelevant_levels_change_nothing():
    n, r = np.array([[0, 3, 0, 4, 6, 0]]), np.array([[0, 2, 0, 0, 1, 0]])
    split_n, split_r = np.array([[3, 1, 3, 6]]), np.array([[2, 0, 0, 1]])
    for k, variant in ((None, None), (2, None), (5, None), (9, None), (1, "dcmh"), (2, "dcmh")):
        assert expected_average_precision(n, r, k, variant) == expected_average_precision(split_n, split_r, k, variant)


def test_the_two_definitions_of_map_at_k_differ():
    scores, relevant = np.array([[4, 3, 2, 1]]), np.array([[True, False, False, True]])
    assert mean_average_precision(scores, relevant, k=2) == 1.0
    assert mean_average_precision(scores, relevant, k=2, variant="dcmh") == 0.75


def test_a_query_without_relevant_items_counts_zero():
    scores, relevant = np.ones((2, 4)), np.array([[True] * 4, [False] * 4])
    np.testing.assert_array_equal(average_precision(scores, relevant), [1, 0])
    assert mean_average_precision(scores, relevant) == 0.5
    np.testing.assert_array_equal(average_precision(scores, relevant, k=2), [1, 0])
    np.testing.assert_array_equal(average_precision(scores, relevant, k=2, variant="dcmh"), [1, 0])


@pytest.mark.parametrize("ties", ["expected", "stable"])
def test_scores_within_the_tolerance_tie(ties):
    scores = np.array([[0.3, 0.1, 0.1 + 4e-7, 0.1 + 8e-7, 0.2]])
    relevant = np.array([[False, True, False, False, True]])
    exact = np.array([[3, 1, 1, 1, 2]])
    found = mean_average_precision(scores, relevant, ties=ties, tie_tolerance=5e-7)
    assert found == pytest.approx(mean_average_precision(exact, relevant, ties=ties))
    assert mean_average_precision(scores, relevant, ties=ties) == pytest.approx((1 / 2 + 2 / 5) / 2)


def test_random_ranking_map_is_the_mean_over_all_orders():
    relevant = [True, True, False, False, False, True]
    orders = list(itertools.permutations(relevant))
    expected = sum(plain_average_precision(order) for order in orders) / len(orders)
    assert random_ranking_map([3, 0], 6) == pytest.approx(float(expected) / 2)


@pytest.mark.parametrize("bits", [8, 16, 24, 32, 64, 128, 136])
def test_hamming_distances_and_levels_match_a_plain_count(bits):
    rng = np.random.default_rng(bits)
    hash_q, hash_db = rng.normal(size=(6, bits)), rng.normal(size=(90, bits))
    hash_q[0], hash_db[0], hash_db[1] = 1, 1, -1
    labels_q, labels_db = rng.random((6, 11)) < 0.2, rng.random((90, 11)) < 0.2
    labels_q[1] = False
    distances = ((hash_q >= 0)[:, None] != (hash_db >= 0)[None]).sum(axis=2)
    shared = (labels_q[:, None] & labels_db[None]).any(axis=2)
    np.testing.assert_array_equal(hamming_distances(pack(hash_q), pack(hash_db)), distances)
    np.testing.assert_array_equal(relevance(labels_q, labels_db), shared)
    np.testing.assert_array_equal(count_relevant(labels_q, labels_db), shared.sum(axis=1))
    n, r = hamming_levels(pack(hash_q), pack(hash_db), labels_q, labels_db)
    for query in range(6):
        np.testing.assert_array_equal(n[query], np.bincount(distances[query], minlength=bits + 1))
        np.testing.assert_array_equal(r[query], np.bincount(distances[query][shared[query]], minlength=bits + 1))
    np.testing.assert_allclose(expected_average_precision(n, r), average_precision(-distances, shared), rtol=1e-12)


def test_many_classes_are_compared_completely():
    rng = np.random.default_rng(0)
    labels_q, labels_db = rng.random((5, 700)) < 0.01, rng.random((60, 700)) < 0.01
    np.testing.assert_array_equal(relevance(labels_q, labels_db), (labels_q.astype(int) @ labels_db.T.astype(int)) > 0)


@pytest.mark.parametrize("ranking", ["hamming", "aqd", "cosine"])
@pytest.mark.parametrize("ties", ["expected", "stable"])
def test_levels_of_keys_match_the_full_score_matrix(ranking, ties, monkeypatch):
    monkeypatch.setattr("cmfah_hf.evaluation.levels._PAIRS_AT_ONCE", 200)
    rng = np.random.default_rng(1)
    z_q, hash_db = np.round(rng.normal(size=(7, 16))) / 4, np.round(rng.normal(size=(80, 16)))
    if ranking == "cosine":  # pairs of equal rows, but no cosines that are equal by chance, which floats tell apart
        weights = np.sqrt(np.arange(2, 18))
        z_q, hash_db = z_q * weights, np.repeat(hash_db[:40] * weights, 2, axis=0)
    keys_q, keys_db = np.array([0, 1, 2, 3, 4, 0, 9]), rng.integers(0, 20, 80)
    prepare = {"hamming": pack, "aqd": round_for_aqd, "cosine": unit_rows}[ranking]
    items = unit_rows(hash_db) if ranking == "cosine" else pack(hash_db)
    signs = np.where(hash_db >= 0, 1.0, -1.0)
    scores = {
        "hamming": np.where(z_q >= 0, 1.0, -1.0) @ signs.T,
        "aqd": z_q @ signs.T,
        "cosine": np.round(cosine_similarity(z_q, hash_db), 5),
    }[ranking]
    relevant = keys_q[:, None] == keys_db
    np.testing.assert_array_equal(relevance(keys_q, keys_db), relevant)
    np.testing.assert_array_equal(count_relevant(keys_q, keys_db), relevant.sum(axis=1))
    chunks = list(iterate_levels(ranking, prepare(z_q), items, keys_q, keys_db, ties))
    for n, r in chunks:
        assert (n.sum(axis=1) == 80).all()
        assert (r <= n).all()
    for options in ({}, {"k": 10}, {"k": 3, "variant": "dcmh"}):
        found = np.concatenate([expected_average_precision(n, r, **options) for n, r in chunks])
        np.testing.assert_allclose(found, average_precision(scores, relevant, ties=ties, **options), rtol=1e-12)


@pytest.mark.parametrize("ranking", ["hamming", "aqd"])
@pytest.mark.parametrize("ties", ["expected", "stable"])
def test_iterated_levels_match_the_full_score_matrix(ranking, ties, monkeypatch):
    monkeypatch.setattr("cmfah_hf.evaluation.levels._PAIRS_AT_ONCE", 200)  # two queries at a time, and one at the end
    rng = np.random.default_rng(0)
    z_q, hash_db = np.round(rng.normal(size=(5, 16))) / 4, np.round(rng.normal(size=(80, 16)))
    labels_q, labels_db = rng.random((5, 4)) < 0.4, rng.random((80, 4)) < 0.4
    signs = np.where(hash_db >= 0, 1.0, -1.0)
    scores = (z_q if ranking == "aqd" else np.where(z_q >= 0, 1.0, -1.0)) @ signs.T
    queries = round_for_aqd(z_q) if ranking == "aqd" else pack(z_q)
    chunks = list(iterate_levels(ranking, queries, pack(hash_db), labels_q, labels_db, ties))
    found = np.concatenate([expected_average_precision(n, r) for n, r in chunks])
    np.testing.assert_allclose(found, average_precision(scores, relevance(labels_q, labels_db), ties=ties), rtol=1e-12)


def test_precision_recall_curve_by_radius():
    n, r = np.array([[0, 2, 2], [1, 1, 2], [1, 3, 0]]), np.array([[0, 1, 1], [1, 0, 1], [0, 0, 0]])
    precision, recall = precision_recall_curve(n, r)
    np.testing.assert_allclose(precision, [(1 + 0) / 2, (1 / 2 + 1 / 2 + 0) / 3, (2 / 4 + 2 / 4 + 0) / 3])
    np.testing.assert_allclose(recall, [(0 + 1 / 2) / 2, (1 / 2 + 1 / 2) / 2, 1])
    assert np.isnan(precision_recall_curve(np.array([[0, 2]]), np.array([[0, 1]]))[0][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scores": np.ones((2, 3)), "relevant": np.ones((2, 4))}, r"\(2, 3\) .* \(2, 4\)"),
        ({"scores": np.ones((2, 0)), "relevant": np.ones((2, 0))}, r"\(2, 0\)"),
        ({"scores": np.array([[1.0], [np.nan]]), "relevant": np.ones((2, 1))}, "query 1 .*NaN"),
        ({"scores": np.ones((1, 1)), "relevant": np.ones((1, 1)), "k": 0}, "not 0"),
        ({"scores": np.ones((1, 1)), "relevant": np.ones((1, 1)), "variant": "trec"}, "'trec'"),
        ({"scores": np.ones((1, 1)), "relevant": np.ones((1, 1)), "ties": "best"}, "'best'"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(QueryError, match=message):
        mean_average_precision(**arguments)


def test_sides_that_do_not_match_are_named():
    with pytest.raises(QueryError, match="16 bits, the database has 8"):
        hamming_distances(np.zeros((1, 2), np.uint8), np.zeros((1, 1), np.uint8))
    with pytest.raises(QueryError, match="3 classes, the database has 4"):
        relevance(np.ones((1, 3)), np.ones((1, 4)))


@pytest.mark.parametrize(
    ("scores", "gains", "k", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), 10, r"gains \(2, 4\)"),
        (np.ones((2, 2)), np.array([[1.0, 2.0], [0.0, -1.0]]), 10, "gains of query 1"),
        (np.ones((1, 2)), np.array([[1.0, np.nan]]), 10, "gains of query 0"),
        (np.ones((1, 2)), np.ones((1, 2)), 0, "not 0"),
    ],
)
def test_ndcg_refuses(scores, gains, k, message):
    with pytest.raises(QueryError, match=message):
        normalized_dcg(scores, gains, k=k)
