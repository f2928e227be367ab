"""Results of several queries as a sequence of the results of single queries."""

import json

import numpy as np
import pytest

from cmfah_hf.retrieval import HashIndex

QUERIES = np.array([[1.0] * 8, [-1.0] * 8, [1.0] * 4 + [-1.0] * 4])


@pytest.fixture
def index():
    index = HashIndex(8)
    index.add(QUERIES, ["sea", "car", "dog"], {"year": [2020, 2021, 2022]})
    return index


@pytest.mark.parametrize("metric", ["hamming", "aqd"])
def test_the_result_of_one_query_matches_a_search_for_it(index, metric):
    results = index.search(QUERIES, 2, metric)
    assert len(results) == 3
    for query, (result, own) in enumerate(zip(results, QUERIES, strict=True)):
        single = index.search(own, 2, metric)
        assert result.ids.tolist() == single.ids[0].tolist()
        assert result.scores.tobytes() == single.scores.tobytes()
        assert result.metadata.equals(single.metadata)
        assert result.hits() == list(result) == results.hits(query) == single.hits()
        assert len(result) == 2


def test_negative_positions(index):
    results = index.search(QUERIES, 1)
    assert [results[query].hits()[0]["id"] for query in (0, -1, np.int64(1))] == ["sea", "dog", "car"]
    for query in (3, -4):
        with pytest.raises(IndexError, match=rf"no query {query} among the results of 3"):
            results[query]
    for query in (1.0, slice(0, 1), "0"):
        with pytest.raises(TypeError):
            results[query]


def test_no_queries_and_no_results(index):
    nothing = index.search(np.empty((0, 8)), 2)
    assert (len(nothing), list(nothing)) == (0, [])
    with pytest.raises(IndexError, match="no query 0 among the results of 0"):
        nothing.hits()
    (no_match,) = index.search(QUERIES[:1], 2, where={"year": 1999})
    assert (len(no_match), no_match.hits()) == (0, [])


def test_without_metadata(index):
    bare = HashIndex(8)
    bare.add(QUERIES)
    result = bare.search(QUERIES, 3)[2]
    assert result.metadata is None
    assert json.dumps(result.hits()[0]) == '{"id": 2, "score": 0, "metadata": {}}'
