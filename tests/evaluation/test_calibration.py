"""Calibration: reliability against scikit-learn and plain loops, maps against scikit-learn, and fits on drawn codes."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.calibration import calibration_curve
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from cmfah_hf.errors import QueryError
from cmfah_hf.evaluation.calibration import fit_calibration, isotonic_points, logistic_points, measure_calibration
from cmfah_hf.evaluation.cosine_counts import CodedPairs, iterate_counts, relevance_kind, share_of_relevant
from cmfah_hf.evaluation.reliability import expected_calibration_error, precision_and_recall, reliability_curve

CLASSES = 6


def drawn_pairs(
    count: int, seed: int, labeled: bool = True, noise: float = 1.2, prototypes_seed: int = 0
) -> CodedPairs:
    """Pairs whose codes are noisy prototypes of their class (or of themselves), 16 bits."""
    rng = np.random.default_rng(seed)
    if labeled:
        classes = rng.integers(0, CLASSES, count)
        means = np.random.default_rng(prototypes_seed).normal(size=(CLASSES, 16))[classes]
    else:
        classes, means = np.zeros(count, int), rng.normal(size=(count, 16))
    images, texts = (np.tanh(means + noise * rng.normal(size=means.shape)).astype(np.float32) for _ in range(2))
    return CodedPairs(images, texts, [[f"class {name}"] for name in classes] if labeled else None)


@pytest.mark.parametrize("bins", [1, 7, 10])
def test_reliability_matches_scikit_learn_and_loops(bins):
    rng = np.random.default_rng(0)
    probabilities = np.concatenate([rng.random(300), np.arange(bins + 1) / bins])
    relevant = rng.random(len(probabilities)) < probabilities**2
    curve = reliability_curve(probabilities, relevant, bins=bins)
    observed, predicted = calibration_curve(relevant, probabilities, n_bins=bins)
    filled = curve.counts > 0
    np.testing.assert_allclose(curve.observed[filled], observed, atol=1e-12)
    np.testing.assert_allclose(curve.predicted[filled], predicted, atol=1e-12)
    error = 0.0
    for number in range(bins):
        own = [i for i, p in enumerate(probabilities) if number / bins < p <= (number + 1) / bins or (p == 0 == number)]
        if own:
            error += abs(sum(probabilities[own]) - sum(relevant[own])) / len(probabilities)
    assert curve.error == pytest.approx(error, abs=1e-12)
    kept = probabilities >= 0.5
    expected = relevant[kept].sum() / kept.sum(), relevant[kept].sum() / relevant.sum()
    assert precision_and_recall(probabilities, relevant) == pytest.approx(expected)


def test_groups_count_as_their_answers():
    groups, counts, relevant = [0.2, 0.7, 0.75], [5, 2, 3], [1, 2, 1]
    listed = np.repeat(groups, counts)
    hits = np.concatenate([np.arange(n) < r for n, r in zip(counts, relevant, strict=True)])
    assert expected_calibration_error(groups, relevant, counts) == pytest.approx(
        expected_calibration_error(listed, hits)
    )
    assert precision_and_recall(groups, relevant, counts) == pytest.approx(precision_and_recall(listed, hits))
    assert precision_and_recall([0.1], [0]) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (([0.5, 0.1], [True]), "one row of equal length"),
        (([1.1], [True]), "not in 0..1"),
        (([float("nan")], [True]), "not in 0..1"),
        (([0.5], [2.0]), "More answers"),
        (([], []), "no answer"),
        (([0.5], [True], None, 0), "bins is 0"),
    ],
)
def test_unusable_probabilities_are_refused(arguments, reason):
    with pytest.raises(QueryError, match=reason):
        reliability_curve(*arguments)


@given(
    arrays(np.int64, st.integers(2, 40), elements=st.integers(0, 50)).flatmap(
        lambda counts: st.tuples(
            st.just(counts), *[st.lists(st.integers(0, 50), min_size=len(counts), max_size=len(counts))]
        )
    )
)
def test_maps_are_monotone_and_never_certain(given_counts):
    counts, wanted = given_counts[0].astype(float), np.array(given_counts[1], float)
    if not counts.any():
        return
    cosines, relevant = np.linspace(-1, 1, len(counts)), np.minimum(wanted, counts)
    for fit in (isotonic_points, logistic_points):
        points, probabilities = fit(cosines, counts, relevant)
        assert points.shape == probabilities.shape
        assert (np.diff(points) > 0).all()
        assert (np.diff(probabilities) >= 0).all()
        assert ((probabilities > 0) & (probabilities < 1)).all()
        assert ((points >= -1) & (points <= 1)).all()


def test_maps_of_a_single_cosine_are_monotone():
    cosines = np.linspace(-1, 1, 40)
    for place, count in itertools.product(range(40), (3, 7, 49)):
        counts = np.zeros(40)
        counts[place] = count  # the mean differs from the cosine by an error of rounding, or not
        points, _ = logistic_points(cosines, counts, counts / 2)
        assert (np.diff(points) > 0).all(), (place, count)


def test_maps_match_scikit_learn():
    rng = np.random.default_rng(1)
    cosines = np.linspace(-1, 1, 81)
    counts = rng.integers(200, 400, 81).astype(float)
    relevant = rng.binomial(counts.astype(int), 1 / (1 + np.exp(-4 * cosines + 1))).astype(float)
    blocks = IsotonicRegression().fit(cosines, relevant / counts, sample_weight=counts).predict(cosines)
    points, probabilities = isotonic_points(cosines, counts, relevant)
    values = np.unique(blocks)
    assert len(points) == len(values)
    for value, point, probability in zip(values, points, probabilities, strict=True):
        own = blocks == value
        assert point == pytest.approx(counts[own] @ cosines[own] / counts[own].sum())
        assert probability == pytest.approx((relevant[own].sum() + 0.5) / (counts[own].sum() + 1))
    inputs = np.concatenate([cosines, cosines])[:, None]
    model = LogisticRegression(C=1e9, tol=1e-8).fit(
        inputs, np.repeat([0, 1], 81), sample_weight=np.concatenate([counts - relevant, relevant])
    )
    ours = np.interp(cosines, *logistic_points(cosines, counts, relevant))
    np.testing.assert_allclose(ours, model.predict_proba(cosines[:, None])[:, 1], atol=2e-3)


def brute_force(kind, queries, database, metric, way):
    """`(cosine, relevant)` of every counted query and item, a list for each query."""
    items = queries if database is None else database
    found = []
    for i, query in enumerate(queries.texts if way[0] == "t" else queries.images):
        rows = []
        for j, item in enumerate(items.texts if way[2] == "t" else items.images):
            if kind == "labels" and database is None and i == j:
                continue
            signs = np.where(item >= 0, 1.0, -1.0)
            asked = np.where(query >= 0, 1.0, -1.0) if metric == "hamming" else query.astype(np.float64)
            relevant = set(queries.labels[i]) & set(items.labels[j]) if kind == "labels" else i == j
            rows.append((asked @ signs / np.linalg.norm(asked) / 4, bool(relevant)))
        found.append(sorted(rows, key=lambda row: -row[0]))
    return found


@pytest.mark.parametrize("kind", ["labels", "labels and a database", "pairs"])
def test_counts_match_a_brute_force_search(kind):
    queries = drawn_pairs(9, 1, kind != "pairs")
    database = drawn_pairs(13, 2) if "database" in kind else None
    kind = kind.split()[0]
    assert relevance_kind(queries, database) == kind
    names = []
    for name, counts in iterate_counts(kind, queries, database):
        names.append(name)
        metric, way = name.split("/")
        for query, rows in enumerate(brute_force(kind, queries, database, metric, way)):
            width = 0 if metric == "hamming" else 1 / 500
            for values, wanted in ((counts.counts, [1] * len(rows)), (counts.relevant, [row[1] for row in rows])):
                assert values[query].sum() == sum(wanted)
                total = values[query] @ counts.cosines
                assert total == pytest.approx(
                    sum(w * row[0] for w, row in zip(wanted, rows, strict=True)), abs=width * len(rows)
                )
            # Without ties, the first three are those of the sorted list.
            if metric == "aqd":
                assert counts.top(3).relevant[query].sum() == pytest.approx(sum(row[1] for row in rows[:3]), abs=1)
            assert counts.top(3).counts[query].sum() == 3
    ways = ("t2i", "i2t", "i2i", "t2t") if kind == "labels" else ("t2i", "i2t")
    assert names == [f"{metric}/{way}" for metric in ("hamming", "aqd") for way in ways]


def test_ties_at_the_cut_count_in_expectation():
    codes = np.ones((4, 8), np.float32)
    queries = CodedPairs(codes[:1], codes[:1], [["a"]])
    database = CodedPairs(codes, codes, [["a"], ["b"], ["a"], ["b"]])
    top = dict(iterate_counts("labels", queries, database))["hamming/t2i"].top(3)
    assert (top.counts.sum(), top.relevant.sum()) == (3, 1.5)


def test_a_fit_is_right_on_other_pairs_and_a_wrong_map_is_not():
    calibration = fit_calibration("model", 16, drawn_pairs(400, 1))
    assert calibration.relevance == "labels"
    assert len(calibration.maps) == 8
    for score_map in calibration.maps.values():  # five-fold, on the same answers as its error
        answers, predicted, observed = np.array(score_map.bins).T
        assert answers.sum() == pytest.approx(4000)
        error = answers @ np.abs(predicted - observed) / answers.sum()
        assert error == pytest.approx(score_map.figures["ece@10"], abs=1e-4)
    others = drawn_pairs(300, 5)
    measured = measure_calibration(calibration, others)
    for name, figures in measured.items():
        assert figures["ece"] <= 0.05, name
        assert figures["ece@10"] <= 0.08, name
        assert figures["share"] < figures["precision"] <= 1, name
        rows = np.array(figures["bins"])
        assert rows[:, 0].sum() == pytest.approx(3000)
    assert measure_calibration(calibration, CodedPairs(others.images, others.texts)) == {}  # without labels
    shuffled = CodedPairs(others.images, others.texts[::-1], others.labels)  # texts of other pairs
    assert measure_calibration(calibration, shuffled)["aqd/t2i"]["ece@10"] > 0.3


def test_the_share_of_relevant_items_may_come_from_more_labels():
    labels = [["a"], ["a", "b"], ["b"], [], ["c"]]
    assert share_of_relevant(labels) == pytest.approx(4 / 12)  # a-ab and ab-b, in both directions
    assert share_of_relevant([["a"], []]) is None
    pairs = drawn_pairs(60, 1)
    own, rarer = (fit_calibration("model", 16, pairs, share=share).maps["aqd/t2i"] for share in (None, 0.05))
    assert rarer.figures["share"] == pytest.approx(0.05)
    counts = dict(iterate_counts("labels", pairs))["aqd/t2i"]
    before = counts.relevant.sum(axis=0) / np.maximum(counts.counts.sum(axis=0), 1)
    weighed = counts.with_share(0.05)
    after = weighed.relevant.sum(axis=0) / np.maximum(weighed.counts.sum(axis=0), 1e-9)
    some = (before > 0) & (counts.relevant.sum(axis=0) < counts.counts.sum(axis=0))
    # Bayes' rule: the odds change by one factor everywhere.
    ratios = (after[some] / (1 - after[some])) / (before[some] / (1 - before[some]))
    own_share = counts.relevant.sum() / counts.counts.sum()
    np.testing.assert_allclose(ratios, (0.05 / 0.95) / (own_share / (1 - own_share)))
    assert rarer([0.5])[0] < own([0.5])[0]


def test_partners_in_a_larger_collection_are_less_probable():
    calibration = fit_calibration("model", 16, drawn_pairs(120, 1, labeled=False, noise=0.5))
    assert calibration.relevance == "pairs"
    assert set(calibration.maps) == {f"{metric}/{way}" for metric in ("hamming", "aqd") for way in ("t2i", "i2t")}
    for figures in measure_calibration(calibration, drawn_pairs(480, 2, labeled=False, noise=0.5)).values():
        assert figures["ece@10"] <= 0.05
    fitted = calibration.maps["aqd/t2i"]
    own, larger = (calibration.at(fitted, [0.9], items)[0] for items in (120, 239))
    assert own == fitted([0.9])[0]
    assert larger / (1 - larger) == pytest.approx(own / (1 - own) / 2)
    assert calibration.at(fitted, [0.9], 1)[0] == 1


def test_too_few_pairs_give_no_calibration():
    assert fit_calibration("model", 16, drawn_pairs(19, 1)) is None
    few = drawn_pairs(30, 1)
    alike = CodedPairs(few.images, few.texts, [["same"]] * 30)
    assert fit_calibration("model", 16, alike) is None  # nothing is irrelevant
    partly = CodedPairs(few.images, few.texts, [*few.labels[:19], *[[]] * 11])
    assert fit_calibration("model", 16, partly) is None
