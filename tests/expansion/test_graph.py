"""The fitted graph against dense matrices of the bipartite graph, and against walks on it."""

import pickle
import random
import tracemalloc
from collections import Counter

import networkx
import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from cmfah_hf.errors import CMFAHError, DataError
from cmfah_hf.expansion import ImageWordGraph
from cmfah_hf.expansion import graph as graph_module
from cmfah_hf.models.tokenization_cmfah import split_words

word_lists = st.lists(st.lists(st.sampled_from(["a", "b", "cat", "d", "é", "漢"]), max_size=6), min_size=1, max_size=12)
some_words = word_lists.filter(any)


@given(texts=some_words)
def test_m_is_the_product_of_the_bipartite_steps(texts, dense_reference):
    graph = ImageWordGraph().fit(texts)
    p_iw, p_wi = dense_reference(texts, graph.vocabulary)
    np.testing.assert_allclose(graph.transitions.toarray(), p_wi @ p_iw, atol=1e-12)
    np.testing.assert_allclose(graph.transitions.sum(axis=1), 1.0)
    np.testing.assert_allclose(graph.start(texts).toarray(), p_iw, atol=1e-12)


@given(texts=some_words)
def test_vocabulary_is_ordered_by_count_then_word(texts):
    graph = ImageWordGraph().fit(texts)
    counts = Counter(word for words in texts for word in set(words))
    assert graph.vocabulary == sorted(counts, key=lambda word: (-counts[word], word))
    assert graph.counts.tolist() == [counts[word] for word in graph.vocabulary]
    assert graph.num_images == len(texts)


@given(texts=some_words, seed=st.integers(0, 100))
def test_the_order_of_the_images_does_not_matter(texts, seed):
    shuffled = random.Random(seed).sample(texts, len(texts))
    graph, other = ImageWordGraph().fit(texts), ImageWordGraph().fit(shuffled)
    assert graph.vocabulary == other.vocabulary
    np.testing.assert_allclose(graph.transitions.toarray(), other.transitions.toarray(), atol=1e-12)


@given(texts=some_words)
def test_the_walk_is_reversible(texts):
    graph = ImageWordGraph().fit(texts)
    flow = graph.counts[:, None] * graph.transitions.toarray()
    np.testing.assert_allclose(flow, flow.T, atol=1e-12)


@given(texts=some_words, chunk=st.integers(1, 40))
def test_chunk_size_does_not_matter(texts, chunk):
    whole = ImageWordGraph().fit(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_module, "_CHUNK_PAIRS", chunk)
        pieces = ImageWordGraph().fit(texts)
    assert pieces.vocabulary == whole.vocabulary
    np.testing.assert_array_equal(pieces.counts, whole.counts)
    np.testing.assert_allclose(pieces.transitions.toarray(), whole.transitions.toarray(), atol=1e-12)


@given(texts=some_words, min_count=st.integers(1, 3))
def test_rare_words_are_removed_from_the_hops(texts, min_count, dense_reference):
    whole = ImageWordGraph().fit(texts)
    kept = [word for word, count in zip(whole.vocabulary, whole.counts, strict=True) if count >= min_count]
    if not kept:
        with pytest.raises(DataError, match=f"min_count={min_count}"):
            ImageWordGraph(min_count=min_count).fit(texts)
        return
    graph = ImageWordGraph(min_count=min_count).fit(texts)
    p_iw, p_wi = dense_reference(texts, whole.vocabulary)
    hops = (p_wi @ p_iw)[: len(kept), : len(kept)]
    assert graph.vocabulary == kept
    np.testing.assert_allclose(graph.transitions.toarray(), hops / hops.sum(axis=1, keepdims=True), atol=1e-12)


def test_stop_words_are_removed_before_counting(captions, dense_reference):
    graph = ImageWordGraph(stop_words=["The", "a", "on"]).fit(captions)
    texts = [[word for word in split_words(text) if word not in ("the", "a", "on")] for text in captions]
    p_iw, p_wi = dense_reference(texts, graph.vocabulary)
    assert not {"the", "a", "on"} & set(graph.vocabulary)
    np.testing.assert_allclose(graph.transitions.toarray(), p_wi @ p_iw, atol=1e-12)
    english = ImageWordGraph(stop_words="english").fit(captions).vocabulary
    assert not {"the", "a", "on", "over", "and", "at"} & set(english)
    assert {"dog", "beach", "sunset"} <= set(english)


def test_expected_visits_are_powers_of_the_full_bipartite_walk(captions, dense_reference):
    graph = ImageWordGraph().fit(captions)
    p_iw, p_wi = dense_reference([split_words(text) for text in captions], graph.vocabulary)
    num_images, num_words = p_iw.shape
    step = np.block([[np.zeros((num_images, num_images)), p_iw], [p_wi, np.zeros((num_words, num_words))]])
    expected = sum(np.linalg.matrix_power(step, length) for length in (1, 3, 5))[:num_images, num_images:]
    np.testing.assert_allclose(graph.expected_visits(captions), expected, atol=1e-12)


def test_sampled_walks_match_the_expected_visits(captions):
    graph = ImageWordGraph().fit(captions)
    bipartite = graph.to_networkx(captions)
    neighbors = {node: list(bipartite[node]) for node in bipartite}
    generator, num_walks, row = random.Random(0), 20_000, 1
    visits = Counter()
    for _ in range(num_walks):
        node = ("image", row)
        for step in range(1, 6):
            node = generator.choice(neighbors[node])
            if step % 2:
                visits[node[1]] += 1
    frequencies = [visits[word] / num_walks for word in graph.vocabulary]
    np.testing.assert_allclose(frequencies, graph.expected_visits([captions[row]])[0], atol=0.03)
    drawn = graph.sample_walks([captions[row]], num_walks, seed=3)
    sampled = np.bincount(drawn.ravel(), minlength=len(graph.vocabulary)) / num_walks
    np.testing.assert_allclose(sampled, frequencies, atol=0.04)


def test_networkx_holds_the_bipartite_graph(captions):
    graph = ImageWordGraph(min_count=2).fit(captions)
    bipartite = graph.to_networkx(Dataset.from_dict({"caption": captions}), "caption")
    assert networkx.is_bipartite(bipartite)
    edges = {(row, word) for row, text in enumerate(captions) for word in split_words(text) if word in graph.vocabulary}
    assert {(a[1], b[1]) if a[0] == "image" else (b[1], a[1]) for a, b in bipartite.edges} == edges
    images, words = networkx.bipartite.sets(bipartite, {node for node in bipartite if node[0] == "image"})
    assert len(images) == len(captions)
    assert len(words) == len(graph.vocabulary)
    assert {word: bipartite.degree[("word", word)] for word in graph.vocabulary} == dict(
        zip(graph.vocabulary, graph.counts.tolist(), strict=True)
    )


def test_word_graph_has_the_weights_of_m(captions):
    graph = ImageWordGraph().fit(captions)
    matrix = networkx.to_numpy_array(graph.to_word_graph(), nodelist=graph.vocabulary)
    np.testing.assert_array_equal(matrix, graph.transitions.toarray())
    strong = networkx.to_numpy_array(graph.to_word_graph(min_probability=0.2), nodelist=graph.vocabulary)
    np.testing.assert_array_equal(strong, np.where(matrix >= 0.2, matrix, 0.0))


def test_a_stream_gives_the_same_bytes_as_the_data_set(captions):
    dataset = Dataset.from_dict({"text": captions})
    fits = [ImageWordGraph().fit(source) for source in (dataset, dataset.to_iterable_dataset(), iter(captions))]
    assert len({pickle.dumps(graph) for graph in fits}) == 1


def test_pickle_round_trip(captions):
    graph = ImageWordGraph(min_count=2, stop_words=["a"]).fit(captions)
    copy = pickle.loads(pickle.dumps(graph))
    assert (copy.vocabulary, copy.stop_words, copy.min_count, copy.num_images) == (
        *(graph.vocabulary, graph.stop_words, graph.min_count),
        len(captions),
    )
    np.testing.assert_array_equal(copy.expected_visits(captions), graph.expected_visits(captions))
    assert not pickle.loads(pickle.dumps(ImageWordGraph())).is_fitted


def test_memory_does_not_grow_with_the_images(monkeypatch):
    monkeypatch.setattr(graph_module, "_CHUNK_PAIRS", 1 << 15)
    words = [f"w{number}" for number in range(300)]

    def peak(num_rows):
        generator = random.Random(0)
        rows = (" ".join(generator.choices(words, k=8)) for _ in range(num_rows))
        tracemalloc.start()
        ImageWordGraph().fit(rows)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)  # Imports and caches of the first fit.
    small, large = peak(5_000), peak(20_000)
    assert large < 1.25 * small
    assert large < 20_000 * len(words)  # Less than one byte per cell of images x words.


@pytest.mark.parametrize("source", [[], ["", None, "..."], [[]]])
def test_a_source_without_words_is_refused(source):
    with pytest.raises(DataError, match="leaves no word"):
        ImageWordGraph().fit(source)


def test_too_many_words_in_a_row_are_refused(monkeypatch):
    monkeypatch.setattr(graph_module, "_MAX_WORDS", 3)
    with pytest.raises(DataError, match=r"Row 1, column 'text', holds 4 different words"):
        ImageWordGraph().fit(["a b c c c", "a b c d"])


@pytest.mark.parametrize("arguments", [{"min_count": 0}, {"stop_words": "german"}])
def test_unknown_settings_are_refused(arguments):
    with pytest.raises(CMFAHError):
        ImageWordGraph(**arguments)


def test_an_unfitted_graph_is_reported(captions):
    for use in (
        lambda graph: graph.vocabulary,
        lambda graph: graph.expected_visits(captions),
        lambda graph: graph.sample_walks(captions, 1),
        lambda graph: graph.to_networkx(captions),
        lambda graph: graph.to_word_graph(),
        lambda graph: graph.tensors(),
    ):
        with pytest.raises(CMFAHError, match=r"call fit\(dataset\) first"):
            use(ImageWordGraph())
