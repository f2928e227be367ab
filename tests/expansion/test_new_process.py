"""Saved states, equal fits and equal fingerprints in other processes with another hash seed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets.fingerprint import Hasher

from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding

HASH_SEEDS = (1, 2)
EXPANDERS = {
    "closed": {"top_k": 3, "stop_words": "english"},
    "walk": {"walk_length": 7, "mode": "walk", "num_walks": 50, "seed": 5, "word_weights": "idf", "min_count": 2},
}
EMBEDDING = {"vector_size": 12, "epochs": 3, "sample": 0}
CODE = """
import json, pathlib, sys
from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding
folder, request = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
loaded = {name: GraphExpander.load(folder / name) for name in request["expanders"]}
embedding = SkipGramEmbedding.load(folder)
answer = {
    "expanded": {name: expander({"caption": request["captions"]}) for name, expander in loaded.items()},
    "loaded vectors": [embedding.vocabulary, embedding.vectors.tolist(), embedding.counts.tolist(), embedding.settings],
    "gensim": "gensim" in sys.modules,
}
from datasets.fingerprint import Hasher
fits = {
    name: GraphExpander(**settings).fit([{"caption": text} for text in request["captions"]], "caption")
    for name, settings in request["expanders"].items()
}
answer["fingerprints"] = {name: [Hasher.hash(loaded[name]), Hasher.hash(fits[name])] for name in loaded}
answer["visits"] = {name: expander.expected_visits("a dog at sea") for name, expander in fits.items()}
answer["vectors"] = SkipGramEmbedding(**request["embedding"]).fit(request["captions"]).vectors.tolist()
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def here(captions):
    rows = [{"caption": text} for text in captions]
    expanders = {name: GraphExpander(**settings).fit(rows, "caption") for name, settings in EXPANDERS.items()}
    return expanders, SkipGramEmbedding(**EMBEDDING).fit(captions)


@pytest.fixture(scope="module")
def answers(here, captions, tmp_path_factory):
    """The results of each process, all started at once."""
    folder = tmp_path_factory.mktemp("saved")
    for name, expander in here[0].items():
        expander.save(folder / name)
    here[1].save(folder)
    request = json.dumps({"captions": captions, "expanders": EXPANDERS, "embedding": EMBEDDING})
    repository = Path(__file__).parents[2]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(folder), request],
            cwd=repository,
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(repository)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for hash_seed in HASH_SEEDS
    ]
    outputs = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return [json.loads(output) for output in outputs]


def test_loaded_expanders_give_equal_expansions(here, answers, captions):
    for answer in answers:
        assert answer["expanded"] == {name: expander({"caption": captions}) for name, expander in here[0].items()}


def test_fitted_and_loaded_expanders_have_the_same_fingerprint(here, answers):
    for answer in answers:
        assert answer["fingerprints"] == {name: [Hasher.hash(expander)] * 2 for name, expander in here[0].items()}


def test_equal_fits_give_equal_visits(here, answers):
    for answer in answers:
        assert answer["visits"] == {
            name: expander.expected_visits("a dog at sea") for name, expander in here[0].items()
        }


def test_loaded_vectors_match_the_saved_ones(here, answers):
    embedding = here[1]
    for answer in answers:
        vocabulary, vectors, counts, settings = answer["loaded vectors"]
        assert (vocabulary, counts, settings) == (embedding.vocabulary, embedding.counts.tolist(), embedding.settings)
        np.testing.assert_array_equal(np.array(vectors, dtype=np.float32), embedding.vectors)
        assert not answer["gensim"], "loading vectors needs no gensim"


def test_equal_fits_give_equal_vectors(here, answers):
    for answer in answers:
        np.testing.assert_array_equal(np.array(answer["vectors"], dtype=np.float32), here[1].vectors)
