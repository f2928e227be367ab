"""Similarity of training pairs, against scikit-learn, brute force and manually computed values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from cmfah_hf.data.similarity import LabelSimilarity, PairSimilarity, TagSimilarity, otsu_threshold
from cmfah_hf.errors import DataError

TEXTS = ["red boat sea", "boat sea sun", "red car", "car street red", "sun sea sand", "sea sea boat", "tree"]


def rows_of(similarity, texts):
    return similarity([{}] * len(texts), texts)


def test_tags_are_the_weighted_words_shared_by_some_texts():
    tags = TagSimilarity.fit(TEXTS)
    counts = CountVectorizer(binary=True)
    matrix = counts.fit_transform(TEXTS).toarray()
    frequency = matrix.sum(axis=0)
    shared = (frequency > 1) & (frequency < len(TEXTS))
    assert tags.words == counts.get_feature_names_out()[shared].tolist()
    weighted = matrix[:, shared] * np.log(len(TEXTS) / frequency[shared])
    found = rows_of(tags, TEXTS)
    np.testing.assert_allclose(found @ found.T, cosine_similarity(weighted), atol=1e-6)
    assert not found[-1].any()  # no other text has a tree
    assert not rows_of(tags, ["zebra", ""]).any()


def test_a_word_in_every_text_is_ignored():
    tags = TagSimilarity.fit(["photo boat sea", "photo boat", "photo car", "photo car sea"])
    assert tags.words == ["boat", "car", "sea"]
    one, other = rows_of(tags, ["photo boat", "photo car"])
    assert one @ other == 0


@settings(max_examples=80)
@given(st.lists(st.integers(0, 40).map(lambda x: x / 40), min_size=2, max_size=60))
def test_the_threshold_has_minimum_within_class_variance(values):
    values = np.array(values)

    def variance_within(threshold):
        parts = values[values <= threshold], values[values > threshold]
        return sum(((part - part.mean()) ** 2).sum() for part in parts if len(part))

    threshold = otsu_threshold(values)
    best = min(variance_within(candidate) for candidate in np.unique(values))
    assert variance_within(threshold) == pytest.approx(best, abs=2e-3 * len(values))  # bins of width 0.001


def test_the_threshold_is_midway_between_two_clusters():
    assert otsu_threshold(np.array([0.1] * 50 + [0.7] * 5)) == pytest.approx(0.4, abs=2e-3)
    assert otsu_threshold(np.zeros(9)) == 0
    assert otsu_threshold(np.empty(0)) == 0


def test_texts_without_a_shared_tag_are_refused():
    with pytest.raises(DataError, match=r"the 2 training texts have no tag in common .*--similarity pairs"):
        TagSimilarity.fit(["red boat", "green car"])


def test_similarity_by_tags():
    tags = TagSimilarity.fit(TEXTS)
    queries, database = rows_of(tags, ["boat sea", "red"]), rows_of(tags, TEXTS)
    found_q, found_db = tags.relevant(queries, database)
    relevant = (found_q.astype(int) @ found_db.T.astype(int)) > 0
    np.testing.assert_array_equal(relevant, queries @ database.T > tags.threshold)
    assert relevant.any()
    assert not relevant.all()
    assert 0 < tags.threshold < 1


def test_a_pair_is_identified_by_its_id_in_any_batch():
    pairs = PairSimilarity()
    names = [f"id-{number}" for number in range(2_000)]
    numbers = pairs([{"id": name} for name in names], [""] * 2_000)
    assert numbers.dtype == np.int64
    assert (numbers >= 0).all()
    assert len(set(numbers.tolist())) == 2_000
    assert pairs([{"id": "id-7"}], [""]).tolist() == [numbers[7]]
    found_q, found_db = pairs.relevant(numbers[:3], numbers[[2, 0, 5]])
    assert (found_q.astype(int) @ found_db.T.astype(int)).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    with pytest.raises(DataError, match="no column 'id'"):
        pairs([{"text": "boat"}], ["boat"])


def test_labels_are_multi_hot():
    labels = LabelSimilarity(["boat", "car"])
    found = labels([{"labels": ["car"]}, {"labels": None}, {}], ["", "", ""])
    assert found.tolist() == [[0, 1], [0, 0], [0, 0]]
    assert labels.relevant(found, found)[0] is found
