"""Probabilities of answers: the file of a calibration, and searches with a threshold."""

import json

import numpy as np
import pytest
import torch

from cmfah_hf.errors import CheckpointError, QueryError
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex
from cmfah_hf.retrieval.calibration import CALIBRATION_NAME, Calibration, ScoreMap, cosines_of

BINS = [[30.0, 0.04, 0.05], [10.5, 0.9, 1.0]]
CURVE = ScoreMap(
    np.array([-0.5, 0.0, 0.25, 0.75]), np.array([0.0, 0.25, 0.5, 1.0]), 40, "isotonic", {"ece": 0.02}, BINS
)
TEXTS = ["boat sun", "tree house"]


def calibration(model: str, relevance: str = "labels", names=("aqd/t2i", "hamming/t2i")) -> Calibration:
    return Calibration(model, 16, relevance, dict.fromkeys(names, CURVE))


@pytest.fixture(scope="module")
def loaded(trained):
    retriever = CrossMediaRetriever.from_pretrained(trained.folder)
    retriever.add_source(trained.scenes, split="train", metadata=["text"])
    return retriever


@pytest.fixture
def retriever(loaded):
    loaded.calibration = calibration(loaded.fingerprint)
    return loaded


def test_a_file_keeps_everything(tmp_path):
    path = tmp_path / CALIBRATION_NAME
    calibration("0f").save(path)
    again = Calibration.load(path)
    assert (again.model, again.bits, again.relevance, set(again.maps)) == (
        "0f",
        16,
        "labels",
        {"aqd/t2i", "hamming/t2i"},
    )
    for score_map in again.maps.values():
        assert (score_map.items, score_map.method, score_map.figures) == (40, "isotonic", {"ece": 0.02})
        assert score_map.bins == BINS
        np.testing.assert_array_equal(score_map.cosines, CURVE.cosines)
        np.testing.assert_array_equal(score_map.probabilities, CURVE.probabilities)
    assert again.maps["aqd/t2i"]([-1, 0.125, 1]).tolist() == [0, 0.375, 1]


def test_a_file_without_bins_is_read(tmp_path):
    path = tmp_path / CALIBRATION_NAME
    calibration("0f").save(path)
    document = json.loads(path.read_text(encoding="utf-8"))
    for one in document["maps"].values():
        del one["bins"]
    path.write_text(json.dumps(document), encoding="utf-8")
    assert [one.bins for one in Calibration.load(path).maps.values()] == [[], []]


def damaged(change):
    def make(document):
        change(document, document["maps"]["aqd/t2i"])
        return document

    return make


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda document: [], "parts of it are missing"),
        (lambda document: {}, "parts of it are missing"),
        (damaged(lambda whole, one: whole.update(version=2)), "version is 2"),
        (damaged(lambda whole, one: whole.update(relevance="\x1b[2J")), r"relevance is '\\x1b\[2J'"),
        (damaged(lambda whole, one: whole.update(bits=7)), "another type"),
        (damaged(lambda whole, one: whole.update(model=3)), "no text"),
        (damaged(lambda whole, one: whole.update(maps={})), "no map"),
        (damaged(lambda whole, one: whole["maps"].update({"aqd/x2y": one})), "a map 'aqd/x2y'"),
        (damaged(lambda whole, one: one.update(probabilities=[0, 0.5, 0.4, 1])), "fall"),
        (damaged(lambda whole, one: one.update(cosines=[0, 0, 0.5, 1])), "do not rise"),
        (damaged(lambda whole, one: one.update(probabilities=[0, 0.5, 1])), "equal length"),
        (damaged(lambda whole, one: one.update(probabilities=[0, 0.5, 1, float("nan")])), "not all in 0..1"),
        (damaged(lambda whole, one: one.update(cosines=[-7, 0, 0.5, 1])), "not all in -1..1"),
        (damaged(lambda whole, one: one.update(cosines=[[0]], probabilities=[[0]])), "equal length"),
        (damaged(lambda whole, one: one.update(cosines=["x"], probabilities=[1])), "another type"),
        (damaged(lambda whole, one: one.update(items=1)), "number of items is 1"),
        (damaged(lambda whole, one: one.update(items=10**400)), "number of items"),
        (damaged(lambda whole, one: one.update(method="| x")), "no name"),
        (damaged(lambda whole, one: one.update(figures={"ece": float("inf")})), "no finite number"),
        (damaged(lambda whole, one: one.update(figures=[1])), "another type"),
        (damaged(lambda whole, one: one.update(bins=[[1, 2]])), "another type"),
        (damaged(lambda whole, one: one.update(bins=3)), "another type"),
        (damaged(lambda whole, one: one.update(bins=[[1, 2, 0.5]])), "shares in 0..1"),
        (damaged(lambda whole, one: one.update(bins=[[float("nan"), 0.5, 0.5]])), "shares in 0..1"),
        (damaged(lambda whole, one: one.update(bins=[[1, 0.5, 0.5]] * 101)), "101 bins"),
    ],
)
def test_damaged_files_are_refused_in_one_line(make, reason, tmp_path):
    path = tmp_path / CALIBRATION_NAME
    calibration("0f").save(path)
    path.write_text(json.dumps(make(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    with pytest.raises(CheckpointError, match=reason) as caught:
        Calibration.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_cosines_are_those_of_the_codes():
    rng = np.random.default_rng(0)
    queries, items = np.tanh(rng.normal(size=(3, 32))).astype(np.float32), rng.normal(size=(9, 32))
    index = HashIndex(32)
    index.add(items)
    signs = np.sign(items)
    for metric, asked in (("aqd", queries.astype(np.float64)), ("hamming", np.sign(queries))):
        expected = asked @ signs.T / np.linalg.norm(asked, axis=1, keepdims=True) / np.sqrt(32)
        results = index.search(queries, 9, metric)
        found = cosines_of(results.scores, queries, metric)
        np.testing.assert_allclose(found, np.take_along_axis(expected, results.ids, axis=1), atol=1e-4)
    assert cosines_of([[0.0]], np.zeros((1, 8)), "aqd").tolist() == [[0.0]]


@pytest.mark.parametrize("metric", ["aqd", "hamming"])
def test_probabilities_are_those_of_the_map(retriever, metric):
    results = retriever.search(text=TEXTS, k=48, metric=metric)
    codes = retriever.encode_texts(TEXTS)
    expected = np.interp(cosines_of(results.scores, codes, metric), CURVE.cosines, CURVE.probabilities)
    np.testing.assert_array_equal(results.probabilities, expected)
    assert (np.diff(results.probabilities, axis=1) <= 0).all()
    assert [hit["probability"] for hit in results.hits(1)] == expected[1].tolist()
    by_text = retriever.search(text=TEXTS[0], k=3, metric=metric)
    # A mixed query counts as a text, whatever the length of its code.
    mixed = retriever.search(text=TEXTS[0], image=torch_image(), k=3, metric=metric, image_weight=0.0)
    np.testing.assert_allclose(mixed.probabilities, by_text.probabilities)
    by_image = retriever.search(image=torch_image(), k=3, metric=metric)
    assert by_image.probabilities is None  # there is no map of this direction
    assert "probability" not in by_image.hits()[0]


def torch_image():
    from PIL import Image

    return Image.new("RGB", (32, 32), "navy")


def test_pairs_weigh_the_size_of_the_collection(retriever):
    found = retriever.search(text=TEXTS[0], k=48).probabilities
    retriever.calibration = calibration(retriever.fingerprint, "pairs")
    by_pairs = retriever.search(text=TEXTS[0], k=48).probabilities
    odds = found * 39
    np.testing.assert_allclose(by_pairs, odds / (odds + (1 - found) * 47), atol=1e-12)


def test_a_threshold_keeps_the_first_answers(retriever):
    everything = retriever.search(text=TEXTS, k=20)
    threshold = float(np.sort(everything.probabilities.ravel())[-9])
    kept = retriever.search(text=TEXTS, k=20, min_score=threshold)
    expected = [
        [hit for hit in hits if hit["probability"] >= threshold] for hits in (everything.hits(0), everything.hits(1))
    ]
    assert [result.hits() for result in kept] == expected
    assert kept.counts.tolist() == [len(hits) for hits in expected]
    assert kept.ids.shape == (2, max(kept.counts))
    assert sum(map(len, expected)) >= 9
    nothing = retriever.search(text=TEXTS, k=20, where={"text": "no such text"}, min_score=0.5)
    assert [result.hits() for result in nothing] == [[], []]
    retriever.calibration = Calibration(
        retriever.fingerprint, 16, "labels", {"aqd/t2i": ScoreMap(np.array([0.0]), np.array([0.1]), 40, "isotonic")}
    )
    none = retriever.search(text=TEXTS[0], min_score=0.5)
    assert (len(none), none.hits(), none.ids.shape) == (1, [], (1, 0))


def test_a_threshold_needs_a_calibration_of_this_model(retriever):
    for value in (-0.1, 1.5, float("nan"), "0.5", True):
        with pytest.raises(QueryError, match="it is a probability"):
            retriever.search(text=TEXTS[0], min_score=value)
    with pytest.raises(QueryError, match="no map for metric='aqd' from images to images"):
        retriever.search(image=torch_image(), min_score=0.5)
    retriever.calibration = calibration("another")
    assert retriever.search(text=TEXTS[0]).probabilities is None
    with pytest.raises(QueryError, match=r"of another model; make one with `cmfah calibrate"):
        retriever.search(text=TEXTS[0], min_score=0.5)
    retriever.calibration = None
    with pytest.raises(QueryError, match=r"has no calibration; make one with `cmfah calibrate"):
        retriever.search(text=TEXTS[0], min_score=0.5)


def test_a_changed_model_does_not_use_it(trained):
    retriever = CrossMediaRetriever.from_pretrained(trained.folder)
    assert retriever.calibration is None
    retriever.add_texts(TEXTS)
    retriever.calibration = calibration(retriever.fingerprint, names=["aqd/t2t"])
    assert retriever.search(text=TEXTS[0]).probabilities is not None
    with torch.no_grad():
        next(retriever.model.parameters()).mul_(1.01)
    retriever.any_model = True
    assert retriever.search(text=TEXTS[0]).probabilities is not None
    retriever.any_model = False
    retriever.texts = HashIndex(16)
    retriever.add_texts(TEXTS)
    assert retriever.search(text=TEXTS[0]).probabilities is None
