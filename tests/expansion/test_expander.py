"""Expanded texts against a plain ranking of dense visits; data sets, streams, fingerprints, saved states."""

import json
import pickle
from itertools import pairwise

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value
from datasets.fingerprint import Hasher
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from cmfah_hf.errors import CheckpointError, CMFAHError, DataError
from cmfah_hf.expansion import GraphExpander, walks
from cmfah_hf.expansion import expander as expander_module
from cmfah_hf.models.tokenization_cmfah import split_words

words = st.sampled_from(["a", "b", "cat", "d", "e", "é", "漢", "unknown"])
texts = st.lists(st.lists(words, max_size=6).map(" ".join), max_size=8)
settings = st.fixed_dictionaries(
    {},
    optional={
        "walk_length": st.sampled_from([1, 3, 5, 7]),
        "top_k": st.sampled_from([0, 1, 2, 3, None]),
        "min_probability": st.sampled_from([0.0, 0.05, 0.2]),
        "mode": st.sampled_from(["closed_form", "walk"]),
        "num_walks": st.sampled_from([1, 30]),
        "word_weights": st.sampled_from(["binary", "idf"]),
        "stop_words": st.sampled_from([None, ["a"]]),
    },
)
FIT = ["a b", "b cat", "cat d e", "e é", "漢 a a", "", "d"]


def _ranked(shares: dict[str, float], own: list[str]) -> list[str]:
    return sorted(
        (word for word, share in shares.items() if word not in own and round(share, 12) > 0),
        key=lambda word: (-round(shares[word], 12), word),
    )


@pytest.mark.parametrize("kept_words", [0, 8_192])
@given(text=st.lists(words, min_size=1, max_size=6), fitted=st.lists(st.lists(words, max_size=5), max_size=10))
def test_added_words_have_the_largest_visits(kept_words, text, fitted, dense_reference):
    fitted = [[word for word in row if word != "unknown"] for row in fitted] + [["a", "b"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(walks, "_KEPT_WORDS", kept_words)
        expander = GraphExpander(top_k=None).fit(fitted)
        vocabulary = expander.graph.vocabulary
        p_iw, p_wi = dense_reference(fitted, vocabulary)
        m = p_wi @ p_iw
        start = np.array([word in text for word in vocabulary], dtype=np.float64)
        start /= max(start.sum(), 1)
        visits = start + start @ m + start @ m @ m
        shares = dict(zip(vocabulary, visits / 3, strict=True))
        assert expander.expand(" ".join(text)) == text + _ranked(shares, text)
        for k in (0, 1, 2):
            assert GraphExpander(top_k=k).fit(fitted).expand(" ".join(text)) == text + _ranked(shares, text)[:k]
        floor = GraphExpander(top_k=None, min_probability=0.1).fit(fitted)
        kept = [word for word in _ranked(shares, text) if round(shares[word], 12) >= 0.1]
        assert floor.expand(" ".join(text)) == text + kept
        got = expander.expected_visits(" ".join(text))
    assert list(got) == _ranked(shares, [])
    np.testing.assert_allclose([got[word] for word in got], [3 * shares[word] for word in got], atol=1e-12)


@given(settings=settings, batch=texts)
def test_own_words_come_first_and_batching_changes_nothing(settings, batch):
    expander = GraphExpander(**settings).fit(FIT)
    expanded = expander({"text": batch})["expanded_text"]
    assert expanded == [expander({"text": text})["expanded_text"] for text in batch]
    assert expanded == [" ".join(expander.expand(text)) for text in batch]
    for text, result in zip(batch, expanded, strict=True):
        own, result = split_words(text), split_words(result)
        added = result[len(own) :]
        assert result[: len(own)] == own
        assert not set(added) & {*own, *expander.graph.stop_words}
        assert len(set(added)) == len(added)
        assert expander.top_k is None or len(added) <= expander.top_k
        assert set(added) <= set(expander.graph.vocabulary)
        if not set(own) & set(expander.graph.vocabulary) or expander.walk_length == 1:
            assert not added
        visits = expander.expected_visits(text)
        assert sum(visits.values()) == pytest.approx((expander.walk_length + 1) / 2 if visits else 0)
        assert all(
            round(visits[word] * 2 / (expander.walk_length + 1), 12) >= expander.min_probability for word in added
        )


def test_texts_of_many_blocks(monkeypatch):
    batch = [" ".join(np.random.default_rng(i).choice(FIT, 2)) for i in range(50)]
    expander = GraphExpander().fit(FIT)
    whole = expander({"text": batch})
    monkeypatch.setattr(expander_module, "_BLOCK_TEXTS", 7)
    assert expander({"text": batch}) == whole


def test_ties_are_broken_by_word_not_by_count():
    # A hop from x reaches a and b with probability 1/4 each; b has more images.
    expander = GraphExpander(walk_length=3).fit(["x b", "x a", "b"])
    assert expander.graph.vocabulary == ["b", "x", "a"]
    assert expander.expand("x") == ["x", "a", "b"]
    assert list(expander.expected_visits("x")) == ["x", "a", "b"]
    assert GraphExpander(walk_length=3, top_k=1).fit(["x b", "x a", "b"]).expand("x") == ["x", "a"]


def test_the_floor_is_inclusive():
    fitted = ["x b", "x a", "b"]  # The share of a and b on a walk of two words is 1/8.
    assert GraphExpander(walk_length=3, min_probability=0.125).fit(fitted).expand("x") == ["x", "a", "b"]
    assert GraphExpander(walk_length=3, min_probability=0.126).fit(fitted).expand("x") == ["x"]


def test_rounding_does_not_break_ties(monkeypatch):
    expander = GraphExpander(top_k=1).fit(["a b x"])
    assert 0.1 + 0.2 > 0.3
    visits = {"a": 0.3, "b": 0.1 + 0.2, "x": 2.4}
    monkeypatch.setattr(
        walks.RandomWalk, "expected_visits", lambda *_: np.array([[visits[word] for word in expander.graph.vocabulary]])
    )
    assert expander.expand("x") == ["x", "a"]
    assert list(expander.expected_visits("x")) == ["x", "a", "b"]


def test_empty_texts_unknown_words_and_single_rows():
    expander = GraphExpander().fit(["dog beach", "dog park"])
    batch = ["", None, "!?", "zebra Giraffe", "Zebra dog zebra", ["park", "Zebra dog"]]
    assert expander({"text": batch})["expanded_text"] == [
        *("", "", "", "zebra giraffe"),
        "zebra dog zebra beach park",
        "park zebra dog beach",
    ]
    assert expander({"text": []}) == {"expanded_text": []}
    assert expander({"text": ["dog", "park"], "id": "one row"}) == {"expanded_text": "dog park beach"}


def test_idf_weights_the_first_word_and_every_visit(captions):
    expander = GraphExpander(word_weights="idf", top_k=None).fit(captions)
    graph = expander.graph
    idf = np.log((1 + len(captions)) / (1 + graph.counts)) + 1
    m = graph.transitions.toarray() * idf
    m /= m.sum(axis=1, keepdims=True)
    start = np.array([word in ("cat", "the") for word in graph.vocabulary]) * idf
    start /= start.sum()
    visits = start + start @ m + start @ m @ m
    got = expander.expected_visits("the cat")
    np.testing.assert_allclose([got.get(word, 0.0) for word in graph.vocabulary], visits, atol=1e-12)
    binary = GraphExpander().fit(captions).expected_visits("the cat")
    assert got["the"] < binary["the"]


def test_sampled_walks_converge_to_the_closed_form(captions):
    closed = GraphExpander(top_k=3).fit(captions)
    exact = closed.expected_visits("dog sea zebra")
    errors = []
    for num_walks in (100, 20_000):
        sampled = GraphExpander(mode="walk", num_walks=num_walks, seed=4).fit(captions).expected_visits("dog sea zebra")
        errors.append(max(abs(sampled.get(word, 0.0) - exact[word]) for word in exact))
        assert set(sampled) <= set(exact)
    assert errors[1] < 0.03
    assert errors[1] < errors[0] / 3


def test_walks_depend_only_on_the_seed_and_the_tags(captions):
    fits = [GraphExpander(mode="walk", num_walks=20, seed=seed).fit(captions) for seed in (0, 0, 1)]
    visits = [expander.expected_visits("a dog at sea") for expander in fits]
    assert visits[0] == visits[1] == fits[0].expected_visits("sea, DOG a zebra at dog")
    assert visits[0] != visits[2]


def test_map_on_data_sets_and_streams(captions):
    features = Features({"id": Value("string"), "image": Image(), "text": Value("string")})
    rows = {"id": [*map(str, range(12))], "image": [{"bytes": b"x", "path": None}] * 12, "text": captions}
    dataset = Dataset.from_dict(rows, features=features)  # Undecodable images: decoding one would fail.
    stream = dataset.to_iterable_dataset(num_shards=3)
    expander = GraphExpander(top_k=3).fit(dataset)
    assert Hasher.hash(GraphExpander(top_k=3).fit(stream)) == Hasher.hash(expander)
    expected = [" ".join(expander.expand(text)) for text in captions]
    for mapped in (dataset.map(expander, batched=True, batch_size=5), dataset.map(expander)):
        assert mapped.column_names == ["id", "image", "text", "expanded_text"]
        assert mapped["expanded_text"][:] == expected
        assert mapped["text"][:] == captions
    stream = dataset.remove_columns("image").to_iterable_dataset()
    for mapped in (stream.map(expander, batched=True, batch_size=5), stream.map(expander)):
        assert [row["expanded_text"] for row in mapped] == expected
        assert [row["text"] for row in mapped] == captions


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_map_on_tag_lists(batched, streaming):
    tags = [["dog", "New York"], ["beach"], []]
    dataset = Dataset.from_dict({"id": ["a", "b", "c"], "tags": tags}).cast_column("tags", List(Value("string")))
    expander = GraphExpander(output_column="more").fit(dataset, text_column="tags")
    mapped = (dataset.to_iterable_dataset() if streaming else dataset).map(expander, batched=batched)
    assert [row["more"] for row in mapped] == ["dog new york", "beach", ""]


def test_equal_fits_have_equal_fingerprints(captions, tmp_path):
    dataset = Dataset.from_dict({"text": captions})

    def make(**settings):
        return GraphExpander(stop_words=["the", "a"], **settings).fit(dataset)

    expander = make()
    fingerprint = Hasher.hash(expander)
    expander({"text": captions})
    expander.save(tmp_path)
    assert Hasher.hash(expander) == fingerprint, "changed by use"
    assert Hasher.hash(make()) == fingerprint
    assert Hasher.hash(GraphExpander.load(tmp_path)) == fingerprint
    assert Hasher.hash(pickle.loads(pickle.dumps(expander))) == fingerprint
    assert Hasher.hash(make(top_k=2)) != fingerprint
    assert Hasher.hash(GraphExpander(stop_words=["the", "a"]).fit([*captions, "dog"])) != fingerprint
    first, second = dataset.map(make(), batched=True), dataset.map(make(), batched=True)
    assert first._fingerprint == second._fingerprint


def test_a_setting_changed_after_use_takes_effect(captions):
    expander = GraphExpander().fit(captions)
    expander.expand("sofa")
    for name, value in (("walk_length", 3), ("word_weights", "idf"), ("top_k", 2)):
        setattr(expander, name, value)
    assert expander.expand("sofa") == GraphExpander(3, word_weights="idf", top_k=2).fit(captions).expand("sofa")


def test_fit_reads_once_and_discards_the_last_fit():
    passes = []

    class Source:
        def __iter__(self):
            passes.append(1)
            return iter(["dog beach", "dog park"])

    expander = GraphExpander().fit(["cat sofa"])
    expander.expand("cat")
    expander.fit(Source())
    assert passes == [1]
    assert expander.expand("cat dog") == ["cat", "dog", "beach", "park"]


def test_corpus_is_the_expanded_texts_and_their_walks(captions):
    expander = GraphExpander(top_k=2).fit(captions)
    corpus = expander.corpus(Dataset.from_dict({"text": [*captions, "zebra"]}), num_walks=4)
    sentences = list(corpus)
    assert sentences == list(corpus), "can be iterated again"
    index = 0
    m = expander.graph.transitions
    number = expander.graph.word_numbers
    for text in [*captions, "zebra"]:
        own = split_words(text)
        assert sentences[index] == expander.expand(text)
        index += 1
        if set(own) & set(number):
            for walk in sentences[index : index + 4]:
                assert len(walk) == 3
                assert walk[0] in own
                assert all(m[number[a], number[b]] > 0 for a, b in pairwise(walk))
            index += 4
    assert index == len(sentences)
    assert list(expander.corpus(captions, num_walks=0)) == [expander.expand(text) for text in captions]


def test_a_corpus_of_many_blocks(captions, monkeypatch):
    expander = GraphExpander().fit(captions)
    whole = list(expander.corpus(captions))
    monkeypatch.setattr(expander_module, "_BLOCK_TEXTS", 5)
    assert list(expander.corpus(captions)) == whole


def test_walks_of_the_corpus_have_the_frequencies_of_the_graph(captions):
    expander = GraphExpander().fit(captions)
    sentences = list(expander.corpus(["boat"], num_walks=20_000))[1:]
    exact = expander.expected_visits("boat")
    for word, visits in exact.items():
        assert sum(walk.count(word) for walk in sentences) / 20_000 == pytest.approx(visits, abs=0.03)


@pytest.mark.parametrize(
    "arguments",
    [
        {"walk_length": 4},
        {"top_k": -1},
        {"min_probability": 1.5},
        {"min_probability": float("nan")},
        {"mode": "sampled"},
        {"num_walks": 0},
        {"seed": -1},
        {"min_count": 0},
        {"word_weights": "tfidf"},
        {"stop_words": "klingon"},
    ],
)
def test_invalid_settings_are_named(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(CMFAHError, match=rf"{name}={value!r}"):
        GraphExpander(**arguments)


def test_an_unfitted_expander_is_reported(captions, tmp_path):
    expander = GraphExpander()
    for use in (expander.expand, expander.expected_visits, lambda text: expander({"text": [text]}), expander.corpus):
        with pytest.raises(CMFAHError, match=r"call fit\(dataset\) first"):
            use("dog")
    with pytest.raises(CMFAHError, match=r"call fit\(dataset\) first"):
        expander.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_batch_without_the_column_names_the_existing_ones(captions):
    expander = GraphExpander().fit(captions)
    with pytest.raises(DataError, match=r"no column 'text', only 'id', 'caption'"):
        expander({"id": ["1"], "caption": ["dog"]})
    with pytest.raises(DataError, match=r"Column 'text', row 1 of the batch, holds 5"):
        expander({"text": ["dog", 5]})
    with pytest.raises(DataError, match="not a mapping"):
        Dataset.from_dict({"text": captions}).with_format("arrow").map(expander, batched=True)


def _change_json(folder, **changes):
    path = folder / "expander.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def _change_tensors(folder, **changes):
    import hashlib

    path = folder / "expander.safetensors"
    save_file(load_file(path) | changes, path)
    _change_json(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "expander.json").unlink(),
        lambda folder: (folder / "expander.safetensors").unlink(),
        lambda folder: (folder / "expander.safetensors").write_bytes(b"cut"),
        lambda folder: _change_json(folder, vocabulary=["a", "b"]),
        lambda folder: _change_json(folder, vocabulary=["a", "a", "b"]),
        lambda folder: _change_json(folder, vocabulary=None),
        lambda folder: _change_json(folder, num_images="many"),
        lambda folder: _change_json(folder, settings={"no_such": 1}),
        lambda folder: _change_json(folder, settings={"walk_length": 4}),
        lambda folder: _change_tensors(folder, indices=np.array([0, 1, 9, 1, 2], dtype=np.int32)),
        lambda folder: _change_tensors(folder, data=np.array([0.5, 0.5, 9.0, 0.5, 1.0])),
        lambda folder: _change_tensors(folder, counts=np.array([1])),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, damage):
    GraphExpander().fit(["a b", "c"]).save(tmp_path)
    assert load_file(tmp_path / "expander.safetensors")["data"].shape == (5,)
    damage(tmp_path)
    with pytest.raises(CheckpointError) as error:
        GraphExpander.load(tmp_path)
    assert str(tmp_path / "expander.") in str(error.value)
    assert "\n" not in str(error.value)
