"""Word vectors against gensim, and their determinism across processes and sources."""

import json
import logging

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from gensim.models import Word2Vec

from cmfah_hf.errors import CheckpointError, CMFAHError, DataError, QueryError
from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding
from cmfah_hf.models.tokenization_cmfah import split_words

SMALL = {"vector_size": 12, "epochs": 3, "sample": 0}


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    """Two disjoint groups of words, each word with a unique count."""
    generator = np.random.default_rng(0)
    worlds = [["dog", "beach", "sand", "wave"], ["sofa", "lamp", "rug", "desk"]]
    texts = [" ".join(generator.permutation(worlds[row % 2])) for row in range(300)]
    order = [word for pair in zip(*worlds, strict=True) for word in pair]
    return texts + [" ".join([word] * (rank + 1)) for rank, word in enumerate(order)]


@pytest.fixture(scope="module")
def embedding(sentences) -> SkipGramEmbedding:
    return SkipGramEmbedding(**SMALL).fit(sentences)


def test_vectors_match_gensim(sentences, embedding):
    split = [split_words(text) for text in sentences]
    reference = Word2Vec(
        split, vector_size=12, epochs=3, sample=0, sg=1, hs=1, negative=0, min_count=1, seed=0, workers=1, window=5
    )
    assert embedding.vocabulary == reference.wv.index_to_key
    np.testing.assert_array_equal(embedding.vectors, reference.wv.vectors)
    assert embedding.vectors.dtype == np.float32
    assert embedding.counts.tolist() == [reference.wv.get_vecattr(word, "count") for word in embedding.vocabulary]
    for word, cosine in embedding.most_similar("dog", 7):
        assert cosine == pytest.approx(reference.wv.similarity("dog", word), abs=1e-6)


def test_co_occurring_words_are_near(sentences):
    embedding = SkipGramEmbedding(vector_size=12, epochs=15, sample=0).fit(sentences)
    assert {word for word, _ in embedding.most_similar("dog", 3)} == {"beach", "sand", "wave"}
    assert {word for word, _ in embedding.most_similar("rug", 3)} == {"sofa", "lamp", "desk"}


def test_vocabulary_is_ordered_by_count_then_word():
    embedding = SkipGramEmbedding(**SMALL).fit(["e e d", "b c a", "b d"])
    assert embedding.vocabulary == ["b", "d", "e", "a", "c"]
    assert embedding.counts.tolist() == [2, 2, 2, 1, 1]
    assert SkipGramEmbedding(**SMALL, min_count=2).fit(["e e d", "b c a", "b d"]).vocabulary == ["b", "d", "e"]


def test_vectors_depend_on_the_seed(sentences, embedding):
    assert not np.array_equal(SkipGramEmbedding(**SMALL, seed=1).fit(sentences).vectors, embedding.vectors)


def test_every_source_gives_the_same_vectors_and_is_read_once(sentences, embedding):
    reads = []

    def rows():
        reads.append(1)
        yield from ({"text": text} for text in sentences)

    dataset = Dataset.from_dict({"text": sentences})
    for source in (
        (text for text in sentences),
        [split_words(text) for text in sentences],
        dataset,
        dataset.to_iterable_dataset(),
        IterableDataset.from_generator(rows),
    ):
        reads.clear()
        np.testing.assert_array_equal(SkipGramEmbedding(**SMALL).fit(source).vectors, embedding.vectors)
    assert reads == [1]


def test_extra_corpus_follows_the_sentences(sentences, embedding, tmp_path):
    half = len(sentences) // 2
    (tmp_path / "a.txt").write_text("\n".join(sentences[half : half + 50]), "utf-8")
    lines = "\n".join(json.dumps({"title": "no", "text": text}) for text in sentences[half + 50 :])
    (tmp_path / "b.jsonl").write_text(lines, "utf-8")
    fitted = SkipGramEmbedding(**SMALL).fit(
        [{"caption": text} for text in sentences[:half]],
        text_column="caption",
        extra_corpus=[tmp_path / "a.txt", str(tmp_path / "b.jsonl")],
    )
    np.testing.assert_array_equal(fitted.vectors, embedding.vectors)
    with pytest.raises(DataError, match=r"nothing\.txt"):
        SkipGramEmbedding(**SMALL).fit(sentences, extra_corpus=tmp_path / "nothing.txt")


def test_long_texts_are_not_truncated(caplog):
    text = " ".join(["dog beach"] * 5_000 + ["cat sofa"] * 2_000)
    start = SkipGramEmbedding(4, epochs=1, sample=0, alpha=0).fit([text])
    with caplog.at_level(logging.WARNING, logger="gensim"):
        fitted = SkipGramEmbedding(4, epochs=1, sample=0).fit([text])
    assert fitted.counts.sum() == 14_000
    assert not [record for record in caplog.records if "count" in record.getMessage()]
    moved = np.abs(fitted.vectors - start.vectors).max(axis=1)
    assert moved.min() > 0.01, dict(zip(fitted.vocabulary, moved, strict=True))


def test_walks_and_expanded_texts_as_a_corpus(captions):
    expander = GraphExpander(top_k=3).fit(captions)
    fitted = SkipGramEmbedding(**SMALL).fit(expander.corpus(captions, num_walks=2))
    again = SkipGramEmbedding(**SMALL).fit(expander.corpus(captions, num_walks=2))
    assert set(fitted.vocabulary) == set(expander.graph.vocabulary)
    np.testing.assert_array_equal(fitted.vectors, again.vectors)


def test_a_single_word_has_a_vector():
    fitted = SkipGramEmbedding(**SMALL).fit(["Dog dog", ""])
    assert fitted.vocabulary == ["dog"]
    assert fitted.vectors.shape == (1, 12)
    assert fitted.most_similar("dog") == []


def test_word_lookup(embedding):
    assert "Dog" in embedding
    assert "zebra" not in embedding
    assert len(embedding) == 8
    np.testing.assert_array_equal(embedding["DOG"], embedding.vectors[embedding.vocabulary.index("dog")])
    assert embedding.most_similar("dog", 0) == []
    assert len(embedding.most_similar("dog", 99)) == 7
    with pytest.raises(QueryError, match="'zebra' has no vector"):
        embedding.most_similar("zebra")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("skip_gram.json", lambda path: path.unlink()),
        ("skip_gram.safetensors", lambda path: path.unlink()),
        ("skip_gram.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1])),
        ("skip_gram.json", lambda path: path.write_text(path.read_text("utf-8").replace('"dog"', '"rug"'), "utf-8")),
        ("skip_gram.json", lambda path: path.write_text(path.read_text("utf-8").replace('"sofa",', ""), "utf-8")),
        ("skip_gram.json", lambda path: path.write_text(path.read_text("utf-8").replace(": 12,", ": 13,"), "utf-8")),
        ("skip_gram.json", lambda path: path.write_text(path.read_text("utf-8").replace("epochs", "epoch"), "utf-8")),
    ],
)
def test_a_damaged_folder_is_named(embedding, tmp_path, name, damage):
    embedding.save(tmp_path)
    damage(tmp_path / name)
    with pytest.raises(CheckpointError) as error:
        SkipGramEmbedding.load(tmp_path)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("source", [[], ["", "..."]])
def test_a_corpus_without_words_is_refused(source):
    with pytest.raises(DataError, match="leaves no word"):
        SkipGramEmbedding(**SMALL).fit(source)


@pytest.mark.parametrize(
    "arguments",
    [
        {"vector_size": 0},
        {"epochs": 0},
        {"window": 0},
        {"min_count": 0},
        {"workers": 0},
        {"seed": -1},
        {"sample": -1.0},
    ],
)
def test_invalid_settings_are_named(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(CMFAHError, match=f"{name}={value}"):
        SkipGramEmbedding(**arguments)


def test_an_unfitted_embedding_is_reported(tmp_path):
    empty = SkipGramEmbedding()
    for use in (
        lambda: empty.vocabulary,
        lambda: empty.vectors,
        lambda: empty.most_similar("a"),
        lambda: empty.save(tmp_path),
    ):
        with pytest.raises(CMFAHError, match=r"call fit\(sentences\) or load\(folder\) first"):
            use()
