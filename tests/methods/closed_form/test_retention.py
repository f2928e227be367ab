"""`benchmarks/retention.py` and the tokenizer of `benchmarks/small_clip.py`, on random vectors and a few texts."""

import importlib
import json
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from dual_encoders import write_dual_encoder

from cmfah_hf import RetrievalEvaluator
from cmfah_hf.methods.closed_form import unit_vectors

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def retention():
    return loaded("retention")


def loaded(name):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def scenes(retention, rows, seed):
    """Vectors around 12 centers, which are the classes."""
    random = np.random.default_rng(seed)
    classes = random.integers(12, size=rows)
    common = np.random.default_rng(8).standard_normal((12, 16))[classes] + 0.4 * random.standard_normal((rows, 16))
    images, texts = (unit_vectors(common + 0.3 * random.standard_normal((rows, 16)) + side) for side in (1, -1))
    return retention.Scenes(images, texts, classes[:, None] == classes, seed), classes


def test_figures_are_the_evaluators(retention):
    held_out, classes = scenes(retention, 40, 1)
    evaluator = RetrievalEvaluator(("map", "recall@k", "ndcg@k", "median_rank"), ks=(1, 5, 10))
    codes = held_out.images - 0.25, held_out.texts + 0.25
    labels = [[str(name)] for name in classes]
    by_labels, by_pairs = evaluator(*codes, *codes, labels, labels), evaluator.pairs(*codes)
    hamming, aqd = retention.code_rows("any", 16, *codes)
    for row in (hamming, aqd):
        for direction in ("i2t", "t2i"):
            found = retention.figures_of(row.scores[direction], held_out.relevant)
            assert found.keys() == set(retention.METRICS)
            name = f"{row.ranking}/{direction}"
            assert found["map"] == pytest.approx(by_labels[f"{name}/map"], abs=1e-9)
            for metric in ("recall@1", "recall@5", "recall@10", "ndcg@10"):
                assert found[metric] == pytest.approx(by_pairs[f"{name}/{metric}"], abs=1e-9)
            assert found["median_rank"] == pytest.approx(by_pairs[f"{name}/median_rank"], abs=1e-9)


def test_all_rows_are_measured_and_written(retention, monkeypatch):
    monkeypatch.setattr(retention, "CENTERS_AT", 16)
    fitted, held_out = scenes(retention, 300, 2)[0], scenes(retention, 60, 3)[0]
    choices = []
    rows = list(retention.rows(fitted, held_out, fitted.texts[:20], fitted.texts[:40], [8, 16], choices))
    expected = {(retention.FLOAT, None, "cosine")}
    expected |= {(retention.SIGNS, None, ranking) for ranking in ("hamming", "aqd")}
    for bits in (8, 16):
        expected |= {(retention.PRODUCT, bits, "aqd")}
        others = (retention.BY_PHRASES, retention.BY_IMAGES) if bits == 16 else ()
        for title in (retention.WITH_TEXTS, retention.UNPAIRED, retention.IMAGES_ONLY, retention.ROTATED, *others):
            expected |= {(title, bits, ranking) for ranking in ("hamming", "aqd")}
    assert {(row.title, row.bits, row.ranking) for row in rows} == expected
    assert [bool(choice.centers) for _, choice in choices] == [False, False, True] * 2
    results = [one for row in rows for one in retention.results_of(row, held_out, "query")]
    for make in (retention.target_table, lambda _: retention.choice_table(choices)):
        make(results)
    assert retention.table(results, "t").row_count == len(rows)
    document = json.loads(retention.dumped({"figures": [], "common": {}}))
    assert document == {"figures": [], "common": {}}
    shares = [one for one in retention.with_shares(results) if one.metric == "map share"]
    assert len(shares) == len(rows) - 1
    assert all(0.2 < one.value < 1.3 for one in shares)


def test_product_quantization_scores_are_those_of_the_decoded_items(retention):
    fitted, held_out = scenes(retention, 300, 2)[0], scenes(retention, 20, 3)[0]
    scores_QN = retention.product_scores(held_out.texts, held_out.images, fitted.images, 16)
    index = faiss.IndexPQ(16, 2, 8, faiss.METRIC_INNER_PRODUCT)
    index.train(fitted.images.astype(np.float32))
    index.add(held_out.images.astype(np.float32))
    np.testing.assert_allclose(scores_QN, held_out.texts @ index.reconstruct_n(0, 20).T, atol=1e-5)


def test_the_tokenizer_never_puts_the_end_into_a_text():
    tokenizer = loaded("small_clip").train_tokenizer(["sun sea sun", "sea boat"] * 5)
    for text in ("sun sea", "日本 éclair #x 7", "", "\x00\ufffd☃"):
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert ids.index(tokenizer.eos_token_id) == len(ids) - 1
        assert tokenizer.unk_token_id not in ids[:-1]
    assert len(tokenizer("sun sea").input_ids) == 4  # whole words are tokens
    assert tokenizer.eos_token_id == len(tokenizer) - 1 == tokenizer.pad_token_id


def test_vectors_of_another_encoder_of_the_same_name_are_not_reused(retention, tmp_path):
    encoders = [write_dual_encoder("clip", tmp_path / str(seed) / "encoder", seed) for seed in (0, 1)]
    first, second, again = (
        retention.Vectors(encoder, tmp_path).phrases() for encoder in (*encoders, tmp_path / "0" / "encoder")
    )
    assert not np.allclose(first, second)
    assert np.array_equal(first, again)
    assert len(list(tmp_path.glob("vectors-*"))) == 2
