import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score
from sklearn.metrics.pairwise import cosine_similarity

from cmfah_hf.errors import QueryError
from cmfah_hf.evaluation import METRICS, PAIR_METRICS, RetrievalEvaluator
from cmfah_hf.evaluation.metrics import average_precision, mean_average_precision

CLASSES = ["bird", "car", "dog", "sea", "tree"]


def problem(queries=7, database=60, bits=16, seed=0):
    """Codes correlated with the labels, coarse enough to tie, and two rows without a label."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(len(CLASSES), bits))
    sides = []
    for rows in (queries, database):
        labels = rng.random((rows, len(CLASSES))) < 0.3
        labels[2] = False
        image, text = (np.round(labels @ directions + rng.normal(size=(rows, bits))).clip(-8, 8) / 8 for _ in range(2))
        sides.append((image, text, labels))
    (image_q, text_q, labels_q), (image_db, text_db, labels_db) = sides
    return image_q, text_q, image_db, text_db, labels_q, labels_db


def names(labels):
    return [[CLASSES[c] for c in np.flatnonzero(row)] for row in labels]


def generic(values, ranking):
    """For cosines, values of which no two have equal cosines by chance, which floats would tell apart."""
    return values * np.sqrt(np.arange(2, values.shape[1] + 2)) if ranking == "cosine" else values


def scores(hash_q, hash_db, ranking):
    if ranking == "cosine":
        return np.round(cosine_similarity(hash_q, hash_db), 5)
    signs = np.where(hash_db >= 0, 1.0, -1.0)
    return (hash_q if ranking == "aqd" else np.where(hash_q >= 0, 1.0, -1.0)) @ signs.T


def instance_metrics(matrix, relevant, ks):
    """Recall and nDCG at `ks` and the median rank, in expectation over ties, by binomial coefficients."""
    ranks, hits = [], {k: [] for k in ks}
    for row, is_relevant in zip(matrix, relevant, strict=True):
        size, first = len(row), row[is_relevant].max(initial=-np.inf)
        before, tied, right = (int(np.sum(x)) for x in (row > first, row == first, (row == first) & is_relevant))
        ranks.append(before + (tied + 1) / (right + 1) if right else size + 1)
        for k in ks:
            drawn = min(max(k - before, 0), tied)
            hits[k].append(1 - math.comb(tied - right, drawn) / math.comb(tied, drawn) if right else 0)
    # Scores are ranked by scikit-learn as they are: the largest first, ties averaged. A query without gains counts 0.
    ndcg = {f"ndcg@{k}": ndcg_score(relevant.astype(int), matrix, k=k) for k in ks}
    return {f"recall@{k}": np.mean(hits[k]) for k in ks} | {"median_rank": np.median(ranks)} | ndcg


@pytest.mark.parametrize("ranking", ["hamming", "aqd", "cosine"])
def test_every_metric_matches_the_full_score_matrix(ranking):
    *hashes, labels_q, labels_db = problem()
    image_q, text_q, image_db, text_db = (generic(values, ranking) for values in hashes)
    arguments = (image_q, text_q, image_db, text_db, labels_q, labels_db)
    results = RetrievalEvaluator(metrics=METRICS, ks=(1, 5, 80), ranking=ranking)(*arguments)
    shared = (labels_q[:, None] & labels_db[None]).any(axis=2)
    for direction, hash_q, hash_db in (("i2t", image_q, text_db), ("t2i", text_q, image_db)):
        matrix = scores(hash_q, hash_db, ranking)
        expected = {"map": {}, "map_stable": {"ties": "stable"}}
        for k in (1, 5, 80):
            expected[f"map@{k}"] = {"k": k}
            expected[f"map_dcmh@{k}"] = {"k": k, "variant": "dcmh"}
            expected[f"map_stable@{k}"] = {"k": k, "ties": "stable"}
            expected[f"map_stable_dcmh@{k}"] = {"k": k, "ties": "stable", "variant": "dcmh"}
        for name, options in expected.items():
            assert results.pop(f"{ranking}/{direction}/{name}") == pytest.approx(
                mean_average_precision(matrix, shared, **options), abs=1e-12
            )
        rng = np.random.default_rng(0)
        for k in (1, 5):
            sampled = [
                np.take_along_axis(shared, np.lexsort((rng.random(matrix.shape), -matrix)), 1)[:, :k].mean()
                for _ in range(400)
            ]
            assert results.pop(f"{ranking}/{direction}/precision@{k}") == pytest.approx(np.mean(sampled), abs=0.02)
        assert results.pop(f"{ranking}/{direction}/precision@80") == pytest.approx(shared.sum(axis=1).mean() / 80)
        for name, value in instance_metrics(matrix, shared, (1, 5, 80)).items():
            assert results.pop(f"{ranking}/{direction}/{name}") == pytest.approx(value, abs=1e-12), name
    assert results.pop("random/map") == pytest.approx(average_precision(np.zeros(shared.shape), shared).mean())
    for name, value in instance_metrics(np.zeros(shared.shape), shared, (1, 5, 80)).items():
        assert results.pop(f"random/{name}") == pytest.approx(value, abs=1e-12), name
    for direction, hash_q, hash_db in (("i2t", image_q, text_db), ("t2i", text_q, image_db)):
        same = np.broadcast_to(hash_q.mean(axis=0), hash_q.shape)
        expected = average_precision(scores(same, hash_db, "hamming"), shared).mean()
        assert results.pop(f"constant/{direction}/map") == pytest.approx(expected, abs=1e-12)
    without = int((~shared.any(axis=1)).sum())
    assert without >= 1
    assert results == {
        "queries": 7,
        "database": 60,
        "queries_without_relevant": without,
        "queries_without_labels": (~labels_q.any(axis=1)).sum(),
        "database_without_labels": (~labels_db.any(axis=1)).sum(),
    }


def test_directions_use_the_right_sides():
    """Text queries that match the images' codes, and image queries opposite to the texts' codes."""
    eye = np.kron(np.eye(4), np.ones(4)) * 2 - 1
    labels = np.eye(4, dtype=int)
    results = RetrievalEvaluator(metrics=("map",))(-eye, eye, eye, eye, labels, labels)
    for ranking in ("hamming", "aqd"):
        assert results[f"{ranking}/t2i/map"] == 1.0
        assert results[f"{ranking}/i2t/map"] == 0.25


def test_names_and_tensors_match_multi_hot_arrays():
    *hashes, labels_q, labels_db = problem()
    evaluator = RetrievalEvaluator(metrics=METRICS)
    expected = evaluator(*hashes, labels_q, labels_db)
    assert evaluator(*hashes, names(labels_q), names(labels_db)) == expected
    assert evaluator(*hashes, labels_q.tolist(), labels_db.astype(np.float32)) == expected
    tensors = [torch.tensor(values, requires_grad=True) for values in hashes]
    assert evaluator(*tensors, torch.tensor(labels_q), torch.tensor(labels_db)) == expected


def test_results_are_plain_json(caplog):
    results = RetrievalEvaluator()(*problem())
    assert all(type(value) is float for value in results.values())
    assert json.loads(json.dumps(results)) == results
    assert "share no label with any item of the database" in caplog.text


def test_database_order_affects_only_stable_metrics():
    image_q, text_q, image_db, text_db, labels_q, labels_db = problem()
    by_label = np.lexsort(labels_db.T)
    evaluator = RetrievalEvaluator(metrics=("map", "map@k", "map_stable", "precision@k"), ranking="hamming")
    here = evaluator(image_q, text_q, image_db, text_db, labels_q, labels_db)
    there = evaluator(image_q, text_q, image_db[by_label], text_db[by_label], labels_q, labels_db[by_label])
    for name, value in here.items():
        assert (there[name] == pytest.approx(value, abs=1e-12)) == ("stable" not in name)


def test_only_requested_metrics_are_returned():
    results = RetrievalEvaluator(metrics="map", ranking="aqd")(*problem())
    assert {name for name in results if "/" in name} == {"aqd/i2t/map", "aqd/t2i/map"}


def test_rows_without_any_label():
    hashes = problem()[:4]
    results = RetrievalEvaluator(metrics=("map", "random"))(*hashes, [[]] * 7, [[]] * 60)
    assert results["hamming/i2t/map"] == results["random/map"] == 0
    assert results["queries_without_relevant"] == results["queries_without_labels"] == 7


def test_curves_agree_with_the_metrics():
    arguments = problem()
    evaluator = RetrievalEvaluator(metrics=("precision@k",), ks=(1, 10, 60))
    results, curves = evaluator(*arguments), evaluator.curves(*arguments)
    assert set(curves) == {"hamming/i2t", "hamming/t2i", "aqd/i2t", "aqd/t2i", "random"}
    for name, curve in curves.items():
        at = dict(zip(curve["k"].tolist(), curve["precision_at_k"], strict=True))
        if name != "random":
            assert [at[k] for k in (1, 10, 60)] == pytest.approx(
                [results[f"{name}/precision@{k}"] for k in (1, 10, 60)]
            )
        assert (np.diff(curve["recall"]) >= 0).all()
        assert curve["recall"][-1] == pytest.approx(1)
        # All items are retrieved at the end, so every curve ends at the share of relevant items.
        assert curve["precision"][-1] == pytest.approx(curves["random"]["precision"][0])


def test_a_curve_by_radius():
    image_q, _, _, text_db, labels_q, labels_db = arguments = problem()
    curve = RetrievalEvaluator(ranking="hamming").curves(*arguments)["hamming/i2t"]
    distances = (16 - scores(image_q, text_db, "hamming")) / 2
    shared = (labels_q[:, None] & labels_db[None]).any(axis=2)
    points = []
    for radius in range(17):
        within = distances <= radius
        finding = within.any(axis=1)
        if finding.any():
            precision = np.mean([shared[q][within[q]].mean() for q in np.flatnonzero(finding)])
            recall = np.mean([within[q][shared[q]].mean() for q in np.flatnonzero(shared.any(axis=1))])
            points.append((precision, recall))
    np.testing.assert_allclose(np.stack([curve["precision"], curve["recall"]], axis=1), points)


def changed(position, value):
    arguments = list(problem())
    arguments[position] = value(arguments[position])
    return arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (changed(1, lambda x: x[:5]), r"text_hash_q has the shape \(5, 16\), but labels_q has 7 rows"),
        (changed(3, lambda x: x[:5]), r"text_hash_db has the shape \(5, 16\), but labels_db has 60 rows"),
        (changed(2, lambda x: x[:, :8]), r"image_hash_db has the shape \(60, 8\), but image_hash_q has 16 bits"),
        (changed(0, lambda x: x[0]), r"image_hash_q has the shape \(16,\)"),
        (changed(1, lambda x: np.where(x == x[3, 2], np.nan, x)), r"text_hash_q: Row \d .*NaN"),
        (changed(0, lambda x: np.full_like(x, np.inf)), "image_hash_q: "),
        (changed(4, lambda x: x[:, :4]), r"labels_q has the shape \(7, 4\), labels_db \(60, 5\)"),
        (changed(4, lambda x: x[:0]), "labels_q has no rows"),
        (changed(5, lambda x: []), "labels_db has no rows"),
        (changed(4, names), "labels_q holds names and labels_db a matrix"),
        (changed(5, lambda x: x * 2), "Row 0 of labels_db holds 2"),
        (changed(5, lambda x: x[:, 0]), r"labels_db has the shape \(60,\)"),
        ([*problem()[:4], ["dog"] * 7, [["dog"]] * 60], "Row 0 of labels_q is 'dog'"),
        ([*problem()[:4], [["dog"]] * 7, [["dog"]] * 59 + [["dog", 3]]], r"Row 59 of labels_db is \['dog', 3\]"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(QueryError, match=message):
        RetrievalEvaluator()(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("map", "ndcg")}, "'ndcg'"),
        ({"metrics": ()}, "metrics is empty"),
        ({"ranking": "euclidean"}, "'euclidean'"),
        ({"ks": (1, 0)}, "not 0"),
    ],
)
def test_unknown_settings_are_refused(options, message):
    with pytest.raises(QueryError, match=message):
        RetrievalEvaluator(**options)


def test_importing_the_evaluator_is_light():
    script = (
        "import sys, cmfah_hf.evaluation\n"
        "print([m for m in ('torch', 'faiss', 'matplotlib', 'scipy', 'transformers') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout
    assert loaded.strip() == "[]"


@pytest.mark.parametrize("dtype", ["int64", "int8", "float32", "bool", "uint8"])
@pytest.mark.parametrize("place", range(4))
def test_zero_one_codes_are_refused_by_name(dtype, place):
    arguments = list(problem())
    name = ("image_hash_q", "text_hash_q", "image_hash_db", "text_hash_db")[place]
    arguments[place] = (arguments[place] > 0).astype(dtype)
    for measure in (RetrievalEvaluator(), RetrievalEvaluator().curves):
        with pytest.raises(QueryError, match=rf"^{name}: .*only 0 and 1.*`2 \* codes - 1`"):
            measure(*arguments)
    arguments[place] = 2 * arguments[place].astype("int64") - 1
    RetrievalEvaluator()(*arguments)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.zeros(7, 16, device="meta"), "^image_hash_q: .*meta"),
        (3, torch.zeros(60, 16).to_sparse(), "^text_hash_db: .*sparse"),
        (2, [[1.0] * 16, [1.0]], "^image_hash_db: .*inhomogeneous"),
        (4, torch.zeros(7, 5, device="meta"), "^labels_q: .*meta"),
        (5, torch.zeros(60, 5).to_sparse(), "^labels_db: .*sparse"),
        (4, [[1, 0], [1]], "^labels_q: .*names, or a matrix"),
        (4, 3, "labels_q"),
        (4, torch.tensor(3), r"labels_q has the shape \(1,\)"),
        (4, np.array([["a"] * 5] * 7), "labels_q"),
    ],
)
def test_invalid_matrices_are_refused_by_name(place, value, message):
    arguments = list(problem())
    arguments[place] = value
    with pytest.raises(QueryError, match=message) as refused:
        RetrievalEvaluator()(*arguments)
    assert "\n" not in str(refused.value)


def captions(images=20, bits=16, seed=3):
    """Codes of images and of one to five texts each, with string keys, in shuffled order."""
    rng = np.random.default_rng(seed)
    of_text = rng.permutation(np.repeat(np.arange(images), rng.integers(1, 6, images)))
    image = np.round(rng.normal(size=(images, bits)) * 2) / 4
    text = np.round((image[of_text] + rng.normal(size=(len(of_text), bits))) * 2) / 4
    return image, text, [f"{key}.jpg" for key in range(images)], [f"{key}.jpg" for key in of_text]


@pytest.mark.parametrize("ranking", ["hamming", "aqd", "cosine"])
def test_pairs_with_several_texts_an_image_match_the_full_score_matrix(ranking):
    image, text, image_keys, text_keys = captions()
    image, text = generic(image, ranking), generic(text, ranking)
    ks = (1, 5, 10)
    results = RetrievalEvaluator(metrics=PAIR_METRICS, ks=ks, ranking=ranking).pairs(
        image, torch.tensor(text), image_keys, np.array(text_keys)
    )
    own = np.array(image_keys)[:, None] == np.array(text_keys)
    for direction, hash_q, hash_db, relevant in (("i2t", image, text, own), ("t2i", text, image, own.T)):
        for prefix, matrix in ((ranking, scores(hash_q, hash_db, ranking)), ("random", np.zeros(relevant.shape))):
            expected = instance_metrics(matrix, relevant, ks) | {"map": mean_average_precision(matrix, relevant)}
            for name, value in expected.items():
                assert results.pop(f"{prefix}/{direction}/{name}") == pytest.approx(value, abs=1e-12), name
    assert results == {"images": 20, "texts": len(text), "images_without_text": 0, "texts_without_image": 0}
    assert RetrievalEvaluator(metrics="map", ranking=ranking).pairs(image, text[:20]) == RetrievalEvaluator(
        metrics="map", ranking=ranking
    ).pairs(image, text[:20], range(20), torch.arange(20))


def test_items_without_a_partner_are_searched_but_are_no_queries():
    image, text, image_keys, text_keys = captions()
    evaluator = RetrievalEvaluator(metrics=(*PAIR_METRICS, "constant"), ks=(1,))
    partnered = [place for place, key in enumerate(text_keys) if key != "0.jpg"]
    found = evaluator.pairs(image, text[partnered], image_keys, [text_keys[place] for place in partnered])
    assert (found["images"], found["images_without_text"], found["texts_without_image"]) == (20, 1, 0)
    own = np.array(text_keys)[partnered, None] == np.array(image_keys)
    ranked = scores(text[partnered], image, "hamming")
    assert found["hamming/t2i/recall@1"] == pytest.approx(instance_metrics(ranked, own, (1,))["recall@1"])
    ranked = scores(image, text[partnered], "hamming")
    assert found["hamming/i2t/median_rank"] == instance_metrics(ranked[1:], own.T[1:], (1,))["median_rank"]
    code = np.broadcast_to(image[1:].mean(axis=0), (19, 16))
    expected = average_precision(scores(code, text[partnered], "hamming"), own.T[1:]).mean()
    assert found["constant/i2t/map"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (2, ["a"] * 3, r"image_hash has the shape \(20, 16\), but image_pairs has 3 rows"),
        (1, np.zeros((0, 16)), r"text_hash has the shape \(0, 16\)"),
        (1, np.ones((2, 8)), r"text_hash has the shape \(2, 8\), but"),
        (0, np.eye(20, 16), "image_hash: .*only 0 and 1"),
        (3, list(range(60)), "One of image_pairs and text_pairs has integers, the other strings"),
        (2, [0.5] * 20, "image_pairs is float64"),
        (2, None, "image_pairs is object"),
        (3, ["other"] * 60, "no key in common"),
        (3, [["a"], ["b", "c"]], "text_pairs: "),
    ],
)
def test_errors_of_pairs_name_the_argument(place, value, message):
    arguments = list(captions())
    arguments[1], arguments[3] = np.resize(arguments[1], (60, 16)), (arguments[3] * 2)[:60]
    arguments[place] = value
    with pytest.raises(QueryError, match=message):
        RetrievalEvaluator(metrics=PAIR_METRICS).pairs(*arguments)


def test_equal_cosines_are_ties():
    """Directions that differ in length alone, in any order of the database."""
    rng = np.random.default_rng(0)
    query, items = rng.normal(size=(1, 24)), np.repeat(rng.normal(size=(3, 24)), 30, axis=0)
    items *= rng.choice([0.3, 1.0, 7.0], (90, 1))
    found = RetrievalEvaluator(metrics=("map", "map_stable"), ranking="cosine")(
        query, query, items, items, [["a"]], [["a"] if place % 30 == 0 else [] for place in range(90)]
    )
    each = [average_precision([np.repeat([2, 1, 0], 30)], [np.arange(90) % 30 == 0])[0]]
    assert found["cosine/i2t/map"] == pytest.approx(each[0], abs=1e-12)
    stable = np.mean([1 / 1, 2 / 31, 3 / 61])
    assert found["cosine/i2t/map_stable"] == pytest.approx(stable, abs=1e-12)


def test_cosine_takes_features_of_any_width_and_scale():
    rng = np.random.default_rng(0)
    image, text = 1e3 * rng.normal(size=(30, 13)), 1e-3 * rng.normal(size=(30, 13))
    image[0] = 0
    found = RetrievalEvaluator(metrics=("map",), ranking="cosine").pairs(image, text)
    expected = mean_average_precision(np.round(cosine_similarity(image, text), 5), np.eye(30))
    assert found["cosine/i2t/map"] == pytest.approx(expected, abs=1e-12)
    with pytest.raises(QueryError, match=r"image_hash: .*13 bits"):
        RetrievalEvaluator(metrics=("map",), ranking="hamming").pairs(image, text)
