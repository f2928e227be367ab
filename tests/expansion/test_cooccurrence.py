"""Co-occurrence counts against nested loops, and the error bounds of dropped counts."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmfah_hf.expansion import cooccurrence
from cmfah_hf.expansion.cooccurrence import WindowCounts

WORDS = list("abcdefg")
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=12), max_size=6)


def brute_force(texts, titles, window, stop_words, opening):
    """`near` of all words, by visiting each position and each position in its window."""
    near, occurrences = Counter(), Counter()
    for text, title in zip(texts, titles, strict=True):
        words = [word for word in text if word not in stop_words]
        occurrences.update(words)
        for i, first in enumerate(words):
            for j, second in enumerate(words):
                if i != j and abs(i - j) <= window:
                    near[first, second] += 1
        if title is not None and title not in stop_words:
            for word in set(words[:opening]) - {title}:
                near[title, word] += 1
                near[word, title] += 1
    return near, occurrences


def counted(texts, titles, vocabulary, window, stop_words, opening, within=False, bounds=(10**6, 10**6)):
    counts = WindowCounts(vocabulary, window, stop_words, within, *bounds)
    for text, title in zip(texts, titles, strict=True):
        counts.add(text, [title] if title is not None else [], opening)
    return counts, counts.totals()


@given(texts=TEXTS, window=st.integers(1, 4), opening=st.integers(0, 4), within=st.booleans(), data=st.data())
def test_counts_match_nested_loops(texts, window, opening, within, data):
    vocabulary = data.draw(st.lists(st.sampled_from(WORDS), unique=True, min_size=1))
    stop_words = set(data.draw(st.lists(st.sampled_from(WORDS), max_size=2)))
    titles = [data.draw(st.sampled_from([None, *vocabulary])) for _ in texts]
    expected, occurrences = brute_force(texts, titles, window, stop_words, opening)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "_BUFFER_WORDS", data.draw(st.sampled_from([1, 9, 1 << 18])))
        counts, (words, found_W, totals_W, near_VW) = counted(
            texts, titles, vocabulary, window, stop_words, opening, within
        )
    assert words[: len(vocabulary)] == vocabulary
    assert dict(zip(words, found_W.tolist(), strict=True)) == {word: occurrences[word] for word in words}
    totals = Counter()
    for (_, second), count in expected.items():
        totals[second] += count
    assert dict(zip(words, totals_W.tolist(), strict=True)) == {word: totals[word] for word in words}
    dense = near_VW.toarray()
    for a, first in enumerate(vocabulary):
        for b, second in enumerate(words):
            wanted = expected[first, second] if not within or second in vocabulary else 0
            assert dense[a, b] == wanted, (first, second)
    assert (counts.lost_occurrences, counts.lost_pairs) == (0, 0)


def test_a_title_that_is_not_one_vocabulary_word_has_no_neighbors():
    _, (words, _, totals_W, _) = counted([["b", "c"]], [None], ["a"], 1, set(), 5)
    counts = WindowCounts(["a"], 1, set(), False, 100, 100)
    counts.add(["b", "c"], ["hot", "a"], 5)
    counts.add(["b", "c"], ["z"], 5)
    counts.add([], ["a"], 5, ["c"])
    same_words, _, same_totals_W, near_VW = counts.totals()
    assert same_words == words
    assert same_totals_W.tolist() == [1, *(totals_W[1:] * 2 + [0, 1]).tolist()]  # only through the link
    assert near_VW.toarray().tolist() == [[0, 0, 1]]


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_error_of_dropped_counts_is_bounded(seed):
    generator = np.random.default_rng(seed)
    names = [f"w{number}" for number in range(60)]
    texts = [[names[n] for n in np.minimum(generator.geometric(0.07, 30) - 1, 59)] for _ in range(40)]
    vocabulary, titles = names[:12], [None] * 40
    expected, occurrences = brute_force(texts, titles, 2, set(), 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooccurrence, "_BUFFER_WORDS", 40)
        counts, (words, found_W, _, near_VW) = counted(texts, titles, vocabulary, 2, set(), 0, False, (30, 60))
    assert counts.lost_occurrences > 0
    assert counts.lost_pairs > 0
    assert len(words) <= 30 + 40
    found = dict(zip(words, found_W.tolist(), strict=True))
    dense = near_VW.toarray()
    for word, count in occurrences.items():
        assert max(0, count - counts.lost_occurrences) <= found.get(word, 0) <= count
    for a, first in enumerate(vocabulary):
        assert found[first] == occurrences[first], "vocabulary words are never dropped"
        for b, second in enumerate(words[:12]):
            assert expected[first, second] - counts.lost_pairs <= dense[a, b] <= expected[first, second]
