"""Label vectors: means of normalized word vectors, and random vectors for unknown words."""

import logging
import subprocess
import sys

import numpy as np
import pytest

from cmfah_hf.expansion import SkipGramEmbedding
from cmfah_hf.expansion.label_vectors import label_vectors


@pytest.fixture(scope="module")
def embedding():
    texts = ["a traffic light at the sea", "a dog runs", "собака бежит", "海 and the light"] * 3
    return SkipGramEmbedding(8, epochs=1).fit(texts)


def unit(vector):
    return vector / np.linalg.norm(vector)


def test_one_word_several_words_other_scripts(embedding, caplog):
    names = ["Dog", "traffic_light", "собака", "海", "sea of unheard words"]
    with caplog.at_level(logging.WARNING):
        vectors = label_vectors(names, embedding)
    assert caplog.text == ""
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), np.sqrt(8), rtol=1e-6)
    for row, words in enumerate((["dog"], ["traffic", "light"], ["собака"], ["海"], ["sea"])):
        mean = np.mean([unit(embedding[word]) for word in words], axis=0)
        np.testing.assert_allclose(vectors[row], unit(mean) * np.sqrt(8), rtol=1e-5)


def test_unknown_names_have_fixed_vectors_in_any_process_and_order(embedding, caplog):
    names = ["zebra", "🦓!", "...", "qua gga"]
    vectors = label_vectors(names, embedding)
    assert "4 of 4 labels have no word with a vector" in caplog.text
    np.testing.assert_array_equal(label_vectors(["dog", *names[::-1]], embedding)[1:], vectors[::-1])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), np.sqrt(8), rtol=1e-6)
    assert len(np.unique(vectors.round(5), axis=0)) == len(names)
    code = (
        "import numpy as np, hashlib\n"
        "seed = int.from_bytes(hashlib.blake2b('zebra'.encode(), digest_size=8).digest(), 'big')\n"
        "v = np.random.default_rng(seed).standard_normal(8)\n"
        "print(*(v / np.linalg.norm(v) * 8**0.5))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    np.testing.assert_allclose([float(number) for number in printed.split()], vectors[0], rtol=1e-6)


def test_no_classes_give_no_vectors(embedding):
    assert label_vectors([], embedding).shape == (0, 8)
