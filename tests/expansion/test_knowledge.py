"""Knowledge against manually computed mutual information; a single pass, saved states, and use in the expander."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher
from hypothesis import given
from hypothesis import strategies as st

from cmfah_hf import CMFAHConfig, CMFAHProcessor
from cmfah_hf.errors import CheckpointError, CMFAHError, DataError, QueryError
from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding, WikipediaKnowledge

ROOT = Path(__file__).parents[2]
LOOSE = {"min_count": 1, "min_pair_count": 1, "stop_words": None}
ARTICLES = [
    {"title": "Dog", "text": "The dog is a tame wolf that herds sheep. A dog barks."},
    {"title": "Beach", "text": "A beach is a strip of sand beside the sea, where a dog may run."},
    {"title": "Cat", "text": "A cat purrs on the sofa; the cat hunts mice."},
    {"title": "Hot dog", "text": "A sausage in a roll."},
    {"title": "Sea", "text": "The sea has waves, and sand at its beach. Boats sail the sea."},
]
TAGS = ["dog beach", "dog sea boats", "cat sofa", "sand sea", "sheep", "wolf"]


@pytest.fixture
def knowledge():
    return WikipediaKnowledge(**{**LOOSE, "stop_words": "english"}).fit(
        ARTICLES, GraphExpander().fit(TAGS).graph.vocabulary
    )


def pmi_by_hand(texts, vocabulary, window, smoothing, min_count, min_pair_count):
    near, occurrences = Counter(), Counter()
    for text in texts:
        words = text.split()
        occurrences.update(words)
        for i, first in enumerate(words):
            for j, second in enumerate(words):
                if i != j and abs(i - j) <= window:
                    near[first, second] += 1
    totals = Counter()
    for (first, _), count in near.items():
        totals[first] += count
    whole = sum(total**smoothing for total in totals.values())
    scores = {}
    for (first, second), count in near.items():
        if first == second or first not in vocabulary or count < min_pair_count or occurrences[second] < min_count:
            continue
        score = math.log((count / totals[first]) / (totals[second] ** smoothing / whole))
        if score > 1e-9:
            scores[first, second] = score
    return scores


@given(
    texts=st.lists(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=9).map(" ".join), min_size=1, max_size=6),
    window=st.integers(1, 4), smoothing=st.sampled_from([0.0, 0.5, 0.75, 1.0]), min_count=st.integers(1, 3),
    min_pair_count=st.integers(1, 3), within=st.booleans(),
)  # fmt: skip
def test_scores_match_nested_loops(texts, window, smoothing, min_count, min_pair_count, within):
    vocabulary = sorted({texts[0].split()[0], "c", "e", "z"})
    knowledge = WikipediaKnowledge(
        window=window, smoothing=smoothing, min_count=min_count, min_pair_count=min_pair_count, stop_words=None,
        within_vocabulary=within,
    ).fit(iter(texts), vocabulary)  # fmt: skip
    expected = pmi_by_hand(texts, vocabulary, window, smoothing, min_count, min_pair_count)
    expected = {pair: score for pair, score in expected.items() if not within or pair[1] in vocabulary}
    found = {(word, other): score for word in vocabulary for other, score in knowledge.related(word, 100)}
    assert found == pytest.approx(expected, abs=1e-9)
    for word in vocabulary:
        scores = [(-score, other) for other, score in knowledge.related(word, 100)]
        assert scores == sorted(scores)
    sums = Counter()
    own = vocabulary[:2]
    for (word, other), score in expected.items():
        if word in own and other not in own:
            sums[other] += score
    assert dict(knowledge.related_to(own)) == pytest.approx(dict(sums), abs=1e-9)


def test_top_k_keeps_the_largest_with_ties_by_word():
    texts = ["a z", "a y", "a x", "a b", "a b", "q b"]
    for k in (1, 2, 3, 4):
        knowledge = WikipediaKnowledge(window=1, smoothing=1, top_k=k, within_vocabulary=False, **LOOSE).fit(
            texts, ["a"]
        )
        assert [word for word, _ in knowledge.related("a")] == ["x", "y", "z", "b"][:k]


def test_a_title_relates_to_its_opening_at_any_distance():
    text = "sheep " + "filler " * 30 + "dog"
    fit = {"source": [{"title": "Wolf", "text": text}], "vocabulary": ["wolf", "sheep", "dog"]}
    settings = {"window": 1, "smoothing": 1.0, **LOOSE}
    assert [word for word, _ in WikipediaKnowledge(**settings).fit(**fit).related("wolf")] == ["dog", "sheep"]
    assert WikipediaKnowledge(opening_words=0, **settings).fit(**fit).related("wolf") == []
    assert [w for w, _ in WikipediaKnowledge(opening_words=31, **settings).fit(**fit).related("wolf")] == ["sheep"]


def test_a_stream_is_read_once_and_row_by_row():
    alive = Counter()

    class Text(str):
        def __new__(cls, text):
            alive["now"] += 1
            alive["most"] = max(alive["most"], alive["now"])
            return super().__new__(cls, text)

        def __del__(self):
            alive["now"] -= 1

    given = (Text("dog beach") for _ in range(1000))
    knowledge = WikipediaKnowledge(**LOOSE).fit(given, ["dog", "beach"])
    assert next(given, None) is None
    assert knowledge.related("dog")[0][0] == "beach"
    assert alive["most"] < 10


def test_memory_does_not_grow_with_the_stream():
    code = """
import re
import numpy as np
from cmfah_hf.expansion import WikipediaKnowledge, cooccurrence
def peak():  # in KiB, of this program; getrusage includes its parent
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
def texts(count):
    generator = np.random.default_rng(0)
    for number in range(count):
        yield " ".join(f"w{n}" for n in generator.zipf(1.2, 100) % 1_000_000)
vocabulary = [f"w{n}" for n in range(500)]
cooccurrence._BUFFER_WORDS = 1 << 14
for count in (800, 4_000):
    knowledge = WikipediaKnowledge(within_vocabulary=False, max_words=8_000, max_pairs=60_000, stop_words=None)
    knowledge.fit(texts(count), vocabulary)
    print(peak())
"""
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    ).stdout.split()
    small, large = map(int, output)
    assert large - small < 10_000, "KiB; without bounds it is twice that"


def test_content_words_are_not_stop_words(knowledge):
    assert "computer" not in knowledge.settings["stop_words"]
    assert "the" in knowledge.settings["stop_words"]
    texts = ["the fire burns", "the fire burns"]
    assert WikipediaKnowledge(min_count=1).fit(texts, ["fire", "burns"]).related("fire")[0][0] == "burns"


def test_expanded_texts_are_own_words_then_graph_then_knowledge(knowledge):
    expander = GraphExpander(top_k=2).fit(TAGS)
    graph_words = expander.expand("A dog!")
    expander.knowledge, expander.knowledge_top_k = knowledge, None
    expanded = expander.expand("A dog!")
    assert expanded[: len(graph_words)] == graph_words == ["a", "dog", "beach", "sea"]
    scores = {b: dict(knowledge.related("dog")).get(b, 0.0) for b in expander.graph.vocabulary}
    wanted = sorted((b for b in scores if scores[b] > 0 and b not in graph_words), key=lambda b: (-scores[b], b))
    assert expanded[len(graph_words) :] == wanted
    assert "wolf" in wanted
    assert "sheep" in wanted
    assert len(set(expanded)) == len(expanded)
    expander.knowledge_top_k = 1
    assert expander.expand("A dog!") == [*graph_words, wanted[0]]
    expander.knowledge_top_k = 0
    assert expander.expand("A dog!") == graph_words
    expander.knowledge_top_k = 10
    rows = ["dog", "", "nothing known", ["cat", "sea"]]
    assert expander({"text": rows})["expanded_text"] == [" ".join(expander.expand(row)) for row in rows]


def test_saved_knowledge_round_trips(knowledge, tmp_path):
    knowledge.save(tmp_path)
    loaded = WikipediaKnowledge.load(tmp_path)
    assert (loaded.vocabulary, loaded.words, loaded.settings) == (
        knowledge.vocabulary,
        knowledge.words,
        knowledge.settings,
    )
    np.testing.assert_array_equal(loaded.scores.toarray(), knowledge.scores.toarray())
    assert loaded.digest == knowledge.digest
    assert Hasher.hash(loaded) == Hasher.hash(knowledge)


def test_an_expander_is_saved_with_its_knowledge(knowledge, tmp_path):
    expander = GraphExpander(top_k=2, knowledge=knowledge, knowledge_top_k=3).fit(TAGS)
    expander.save(tmp_path)
    code = """
import json, sys
from datasets.fingerprint import Hasher
from cmfah_hf.expansion import GraphExpander, WikipediaKnowledge
articles, tags = json.loads(sys.argv[2])
loaded = GraphExpander.load(sys.argv[1])
fitted = GraphExpander(top_k=2, knowledge_top_k=3).fit(tags)
fitted.knowledge = WikipediaKnowledge(min_count=1, min_pair_count=1).fit(articles, fitted.graph.vocabulary)
print(json.dumps([[e({"text": tags})["expanded_text"], Hasher.hash(e)] for e in (loaded, fitted)]))
"""
    answers = json.loads(
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), json.dumps([ARTICLES, TAGS])],
            env={**os.environ, "PYTHONHASHSEED": "7"},
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=120,
        ).stdout
    )  # fmt: skip
    assert answers == [[expander({"text": TAGS})["expanded_text"], Hasher.hash(expander)]] * 2
    without = GraphExpander(top_k=2).fit(TAGS)
    assert Hasher.hash(without) != Hasher.hash(expander)
    assert Hasher.hash(without) == Hasher.hash(GraphExpander(top_k=2, knowledge_top_k=5).fit(TAGS))
    # Saved again to the same folder without knowledge, it loads without knowledge.
    without.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expander.json", "expander.safetensors"]
    assert GraphExpander.load(tmp_path).knowledge is None


def _edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def test_damage_is_detected_and_the_file_named(knowledge, tmp_path):
    expander = GraphExpander(knowledge=knowledge).fit(TAGS)
    for name, change, message in [
        ("safetensors", lambda path: path.write_bytes(path.read_bytes()[:-8]), "checksum"),
        ("json", lambda path: path.unlink(), "is missing"),
        ("json", lambda path: path.write_text("{"), "is not valid JSON"),
        ("json", lambda path: _edit(path, words=["a"]), "is damaged"),
        ("json", lambda path: _edit(path, words=knowledge.words[::-1]), "is damaged"),
        ("json", lambda path: _edit(path, settings={"window": 0}), "is damaged"),
        ("json", lambda path: _edit(path, vocabulary=knowledge.vocabulary[::-1]), "belongs to another save"),
    ]:
        expander.save(tmp_path)
        change(tmp_path / f"knowledge.{name}")
        with pytest.raises(CheckpointError, match=message) as error:
            GraphExpander.load(tmp_path)
        assert str(tmp_path / "knowledge.") in str(error.value)
        assert "\n" not in str(error.value)


def test_chinese_tags_are_expanded_by_words_and_read_by_the_model_as_characters():
    tags = ["海滩 狗", "海滩 日落", "沙发 猫", "日落"]
    articles = ["日落时分的海滩,沙子和海浪", "一只狗在海滩上奔跑", "猫在沙发上睡觉", "狗追着猫"] * 2
    expander = GraphExpander(tokenizer="chinese", top_k=1).fit(tags)
    assert expander.graph.vocabulary == ["日落", "海滩", "沙发", "狗", "猫"]
    expander.knowledge = WikipediaKnowledge(tokenizer="chinese", min_count=1, stop_words=["在", "的", "上"]).fit(
        articles, expander.graph.vocabulary
    )
    assert {word for word, _ in expander.knowledge.related("狗")} == {"海滩", "猫"}
    assert expander.expand("狗") == ["狗", "海滩", "猫"]
    assert expander.expand("我的狗") == ["我", "的", "狗", "海滩", "猫"]
    dataset = Dataset.from_dict({"text": tags}).map(expander, batched=True)
    assert dataset["expanded_text"][0] == "海滩 狗 日落 猫"
    embedding = SkipGramEmbedding(vector_size=4, epochs=1).fit(expander.corpus(tags, num_walks=2))
    assert set("海滩日落沙发狗猫") == set(embedding.vocabulary)
    processor = CMFAHProcessor.from_vocabulary(CMFAHConfig(), embedding.vocabulary)
    ids = processor(text=[dataset["expanded_text"][0]])["input_ids"][0]
    read = [processor.tokenizer.convert_ids_to_tokens(int(number)) for number in ids]
    assert read == list("海滩狗日落猫"), "the model splits Han characters, and has a vector of each"


def test_graph_and_knowledge_have_the_same_tokenizer(knowledge, tmp_path):
    with pytest.raises(CMFAHError, match="give both the same"):
        GraphExpander(tokenizer="chinese", knowledge=knowledge)
    own = str.split
    mine = GraphExpander(
        tokenizer=own, knowledge=WikipediaKnowledge(tokenizer=own, **LOOSE).fit(["Dog Wolf"], ["Dog", "Wolf"])
    )
    mine.fit(["Dog Beach", "Wolf"]).save(tmp_path)
    assert mine.expand("Dog") == ["Dog", "Beach", "Wolf"]
    for kind in (GraphExpander, WikipediaKnowledge):
        with pytest.raises(CheckpointError, match=rf"{kind.__name__}\.load\(folder, tokenizer=\.\.\.\)"):
            kind.load(tmp_path)
    assert GraphExpander.load(tmp_path, tokenizer=own).expand("Dog") == ["Dog", "Beach", "Wolf"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"window": 0}, "window=0 is below 1"),
        ({"smoothing": -1}, "smoothing=-1.0 is below 0"),
        ({"smoothing": float("nan")}, "smoothing=nan is below 0"),
        ({"top_k": 0}, "top_k=0 is below 1"),
        ({"max_pairs": 1}, "max_pairs=1 is below 2"),
        ({"stop_words": "german"}, "stop_words='german' is not known"),
        ({"tokenizer": "german"}, "tokenizer='german' is not known"),
    ],
)
def test_settings_out_of_range_are_named(setting, message):
    with pytest.raises(CMFAHError, match=message):
        WikipediaKnowledge(**setting)


def test_invalid_sources_and_queries_are_named(knowledge):
    with pytest.raises(DataError, match="The 0 texts hold no word and none of the 1 words of the vocabulary"):
        WikipediaKnowledge().fit([], ["dog"])
    with pytest.raises(DataError, match="The 1 texts hold 2 words and none of the 1 words of the vocabulary"):
        WikipediaKnowledge().fit(["ein Hund"], ["dog"])
    with pytest.raises(DataError, match="has no column 'text', only 'body'"):
        WikipediaKnowledge().fit(Dataset.from_dict({"body": ["dog"]}), ["dog"])
    with pytest.raises(CMFAHError, match="call fit"):
        WikipediaKnowledge().related("dog")
    with pytest.raises(QueryError, match="'unicorn' is not among the 9 words"):
        knowledge.related("unicorn")
    assert knowledge.related("DOG", 1) == knowledge.related("dog", 1)
    assert knowledge.related("dog", -1) == []
    assert knowledge.score("dog", "wolf") == dict(knowledge.related("dog", 99))["wolf"]
    assert knowledge.score("dog", "unicorn") == 0.0
