"""The quantization and the searches of sentence-transformers on codes of a trained model, compared with `HashIndex`."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cmfah_hf.models import CMFAHModel, CMFAHProcessor
from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex, reverse_bit_order
from cmfah_hf.retrieval.codes import pack, round_for_aqd, sign

QUERIES = ["boat sun", "red car", "tree", "house moon", "dog", ""]


@pytest.fixture(scope="module")
def load():
    from sentence_transformers import SentenceTransformer  # takes seconds to import

    return lambda folder: SentenceTransformer(str(folder), trust_remote_code=True, device="cpu", local_files_only=True)


@pytest.fixture(scope="module")
def quantize_embeddings():
    from sentence_transformers.util import quantization

    return quantization.quantize_embeddings


@pytest.fixture(params=["faiss", "usearch"])
def search(request):
    from sentence_transformers.util import quantization

    return getattr(quantization, f"semantic_search_{request.param}")


@pytest.fixture(scope="module")
def sentences(trained, load):
    """The folder of a training as a `SentenceTransformer`."""
    return load(trained.folder)


@pytest.fixture(scope="module")
def images(trained):
    return [Image.open(path) for path in sorted(trained.scenes.rglob("*.png"))]


@pytest.fixture(scope="module")
def corpus(sentences, images):
    """Continuous codes of images, `(N, 16)`."""
    return sentences.encode(images)


@pytest.fixture(scope="module")
def queries(sentences):
    return sentences.encode(QUERIES)


@pytest.fixture(scope="module")
def index(corpus):
    """The codes as an index, whose ids are their rows."""
    index = HashIndex(bits=corpus.shape[1])
    index.add(corpus)
    return index


def scores_of(answers, count):
    """The answers of each query as scores `(Q, N)` by row; NaN of rows that are no answers."""
    found = np.full((len(answers), count), np.nan)
    for row, own in zip(found, answers, strict=True):
        row[[hit["corpus_id"] for hit in own]] = [hit["score"] for hit in own]
    return found


def expected_scores(index, queries, metric):
    results = index.search(queries, k=len(index), metric=metric)
    found = np.empty((len(queries), len(index)))
    for row, ids, scores in zip(found, results.ids, results.scores, strict=True):
        row[np.asarray(ids, int)] = scores
    return found


def test_codes_are_those_of_the_retriever(sentences, trained, corpus, images):
    retriever = CrossMediaRetriever.from_pretrained(trained.folder, device="cpu")
    assert retriever.encode_images(images) == pytest.approx(corpus, abs=1e-6)
    plain = CrossMediaRetriever(retriever.model, retriever.processor, device="cpu")  # expands no texts
    assert plain.encode_texts(QUERIES) == pytest.approx(sentences.encode(QUERIES), abs=1e-6)


@pytest.mark.parametrize(
    ("precision", "dtype", "width"),
    [("int8", np.int8, 16), ("uint8", np.uint8, 16), ("binary", np.int8, 2), ("ubinary", np.uint8, 2)],
)
def test_each_precision_has_its_type_and_width(quantize_embeddings, sentences, images, corpus, precision, dtype, width):
    found = sentences.encode(images, precision=precision)
    assert (found.dtype, found.shape) == (dtype, (len(images), width))
    np.testing.assert_array_equal(found, quantize_embeddings(corpus, precision))
    np.testing.assert_array_equal(found, quantize_embeddings([torch.from_numpy(row) for row in corpus], precision))
    if precision == "binary":
        np.testing.assert_array_equal(reverse_bit_order(found.view(np.uint8) ^ 0x80), pack(corpus))


def test_unsigned_binary_codes_are_those_of_an_index_in_reverse_bit_order(sentences, images, corpus, index):
    found = sentences.encode(images, precision="ubinary")
    np.testing.assert_array_equal(reverse_bit_order(found), pack(corpus))
    np.testing.assert_array_equal(found, reverse_bit_order(pack(corpus)))
    other = HashIndex(bits=16)
    other.add(reverse_bit_order(found))
    same = index.search(corpus[:5], k=9), other.search(corpus[:5], k=9)
    np.testing.assert_array_equal(same[0].ids, same[1].ids)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(24)), elements=st.floats(-2, 2, width=32)).filter(
        lambda values: values.all() and not (values == 1).any()
    )
)
@settings(max_examples=40)
def test_quantization_sets_the_bits_of_the_signs(quantize_embeddings, values):
    np.testing.assert_array_equal(reverse_bit_order(quantize_embeddings(values, "ubinary")), pack(values))


def test_values_of_exactly_zero_keep_their_sign(quantize_embeddings, make_model_of_zeros):
    model, sentences = make_model_of_zeros
    inputs = sentences.processor(text=["boat"], return_tensors="pt")
    with torch.inference_mode():
        plain = model.get_text_hash(inputs["input_ids"], inputs["attention_mask"]).numpy()
    assert not plain.any()
    found = sentences.encode(["boat"])
    np.testing.assert_array_equal(sign(found), sign(plain))
    np.testing.assert_array_equal(reverse_bit_order(sentences.encode(["boat"], precision="ubinary")), pack(plain))
    assert not round_for_aqd(found).any()
    normalized = sentences.encode(["boat"], precision="ubinary", normalize_embeddings=True)
    np.testing.assert_array_equal(reverse_bit_order(normalized), pack(plain))
    # Of plain zeros, the bits differ.
    assert not quantize_embeddings(plain, "ubinary").any()


@pytest.fixture
def make_model_of_zeros(trained, load, tmp_path):
    """A model whose values are all exactly 0, as towers and as a `SentenceTransformer`."""
    model = CMFAHModel.from_pretrained(trained.folder)
    with torch.no_grad():
        for tower in (model.image_model, model.text_model):
            for parameter in tower.hash_head.parameters():
                parameter.zero_()
    model.save_pretrained(tmp_path)
    CMFAHProcessor.from_pretrained(trained.folder).save_pretrained(tmp_path)
    return model, load(tmp_path)


def test_binary_search_has_the_distances_of_an_index(search, quantize_embeddings, corpus, queries, index):
    packed, packed_queries = quantize_embeddings(corpus, "ubinary"), quantize_embeddings(queries, "ubinary")
    options = {"corpus_precision": "ubinary", "rescore": False}
    answers, seconds, kept = search(packed_queries, packed, top_k=len(corpus), output_index=True, **options)
    assert seconds >= 0
    np.testing.assert_array_equal(scores_of(answers, len(corpus)), expected_scores(index, queries, "hamming"))
    for own in answers:
        assert [hit["score"] for hit in own] == sorted(hit["score"] for hit in own)
    again, _ = search(queries, corpus_index=kept, top_k=5, **options)  # vectors are quantized by the search
    for own, expected in zip(again, index.search(queries, k=5).scores, strict=True):
        assert [hit["score"] for hit in own] == expected.tolist()
    few, _ = search(packed_queries, packed[:3], top_k=10, **options)
    assert [len(own) for own in few] == [3] * len(queries)
    for wrong in ({}, {"corpus_embeddings": packed, "corpus_index": kept}):
        with pytest.raises(ValueError, match="corpus_embeddings or corpus_index"):
            search(packed_queries, **wrong, **options)


def test_rescored_search_is_asymmetric(search, quantize_embeddings, corpus, queries, index):
    """With all items rescored, the order is that of AQD; the scores are sums over the bits that are 1."""
    packed = quantize_embeddings(corpus, "ubinary")
    answers, _ = search(queries, packed, corpus_precision="ubinary", top_k=len(corpus), rescore_multiplier=1)
    found = 2 * scores_of(answers, len(corpus)) - queries.sum(axis=1, keepdims=True)
    assert found == pytest.approx(expected_scores(index, queries, "aqd"), abs=16 * 2**-14)
    for own in answers:
        assert [hit["score"] for hit in own] == sorted((hit["score"] for hit in own), reverse=True)


def test_codes_are_not_rescored(search, quantize_embeddings, corpus, queries, caplog):
    packed = quantize_embeddings(corpus, "ubinary")
    with caplog.at_level(logging.WARNING):
        answers, _ = search(quantize_embeddings(queries, "ubinary"), packed, corpus_precision="ubinary", top_k=4)
    assert "the query embeddings are quantized" in caplog.text
    assert {float(hit["score"]).is_integer() for own in answers for hit in own} == {True}


@pytest.mark.parametrize("chunks", [{}, {"query_chunk_size": 2, "corpus_chunk_size": 7}])
def test_dense_search_over_signs_ranks_as_an_index(corpus, queries, index, sentences, chunks):
    from sentence_transformers.util import semantic_search

    bits = corpus.shape[1]
    signs, query_signs = (torch.from_numpy(sign(values)).float() for values in (corpus, queries))
    options = {"top_k": len(corpus), "score_function": sentences.similarity, **chunks}
    by_bits = scores_of(semantic_search(query_signs, signs, **options), len(corpus))
    np.testing.assert_array_equal((bits - by_bits) / 2, expected_scores(index, queries, "hamming"))
    by_values = scores_of(semantic_search(torch.from_numpy(queries), signs, **options), len(corpus))
    assert by_values == pytest.approx(expected_scores(index, queries, "aqd"), abs=bits * 2**-14)
    first = semantic_search(torch.from_numpy(queries), signs, **{**options, "top_k": 3})
    for own, row in zip(first, by_values, strict=True):
        assert [hit["score"] for hit in own] == pytest.approx(np.sort(row)[::-1][:3])
