"""The words of a run: rules that its texts ask for, and the words of its labels."""

import logging

import datasets
import numpy as np
import pytest

from cmfah_hf.errors import CheckpointError, CMFAHError
from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding
from cmfah_hf.models import word_rules as word_rules_module
from cmfah_hf.models.word_rules import WordRules
from cmfah_hf.training import bundled_configuration, parse_run
from cmfah_hf.training.data.streaming import SpooledTexts, read_notes
from cmfah_hf.training.settings.arguments import DataArguments
from cmfah_hf.training.vocabulary import label_words, make_words, word_rules

TEXTS = {"en": "A dog’s life, café", "zh": "海滩上的狗", "th": "สุนัขวิ่ง", "ja": "犬とボート", "ar": "كِتَاب", "he": "שָׁלוֹם"}
# In no text of its own is a word of the label "sailing boat"; "sun" is in all texts of its own.
ROWS = [{"text": "wind on the wide water", "labels": ["sailing boat", "7"]}] * 40
ROWS += [{"text": "the sun over yellow sand", "labels": ["sun"]}] * 40


@pytest.mark.parametrize(
    ("languages", "rules"),
    [
        (["en", "zh"], WordRules()),
        (["en", "th"], WordRules("icu")),
        (["ja"], WordRules("icu")),
        (["ar"], WordRules(fold_marks=True)),
        (["en", "he", "th"], WordRules("icu", fold_marks=True)),
    ],
)
def test_rules_are_those_that_the_scripts_of_the_texts_need(languages, rules):
    texts = [TEXTS[name] for name in languages]
    assert word_rules(DataArguments(), texts) == rules
    assert word_rules(DataArguments(word_segmenter="none", word_folding=False), texts) == WordRules()
    assert word_rules(DataArguments(word_segmenter="icu"), texts).segmenter == "icu"


def test_without_icu_texts_are_not_segmented_and_the_extra_is_named(monkeypatch, caplog, tmp_path):
    SkipGramEmbedding(4, word_rules=WordRules("icu")).fit(["สุนัขวิ่ง"]).save(tmp_path)

    def missing():
        raise ImportError("install cmfah-hf[languages]")

    monkeypatch.setattr(word_rules_module, "_word_breaker", missing)
    with caplog.at_level(logging.WARNING):
        assert word_rules(DataArguments(), [TEXTS["th"], TEXTS["ar"]]) == WordRules(fold_marks=True)
    assert "cmfah-hf[languages]" in caplog.text
    with pytest.raises(CMFAHError, match=r"word_segmenter is 'icu'.*cmfah-hf\[languages\]"):
        word_rules(DataArguments(word_segmenter="icu"), [TEXTS["en"]])
    with pytest.raises(CheckpointError, match=r"skip_gram.json: install cmfah-hf\[languages\]"):
        SkipGramEmbedding.load(tmp_path)


def test_vectors_and_their_file_know_the_rules(tmp_path):
    embedding = SkipGramEmbedding(4, word_rules=WordRules("icu", True)).fit(["สุนัขวิ่ง", "كِتَاب"])
    assert embedding.vocabulary == ["كتاب", "วิ่ง", "สุนัข"]
    embedding.save(tmp_path)
    loaded = SkipGramEmbedding.load(tmp_path)
    assert loaded.word_rules == embedding.word_rules
    assert "كتابٌ" in loaded


def run_of(tmp_path, **data):
    settings = {"word_dim": 16, "word_epochs": 50, "expand": False, **data}
    options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    return parse_run(bundled_configuration("cmfah-scenes.yaml"), ["--output_dir", str(tmp_path), *options])


def test_words_of_labels_that_no_text_has_get_vectors_near_the_words_of_their_texts(tmp_path):
    (tmp_path / "on").mkdir()
    _, embedding = make_words(run_of(tmp_path), datasets.Dataset.from_list(ROWS), tmp_path / "on", None)
    own, others = ["wind", "on", "wide", "water", "sailing"], ["sun", "over", "yellow", "sand"]
    assert set(embedding.vocabulary) == {"boat", "the", *own, *others}
    cosines = dict(embedding.most_similar("boat", 20))
    assert np.mean([cosines[word] for word in own]) > np.mean([cosines[word] for word in others]) + 0.1


@pytest.mark.parametrize("expand", [False, True])
def test_vectors_are_as_ever_if_the_texts_have_the_words_of_all_labels(tmp_path, expand):
    rows = datasets.Dataset.from_list([row for row in ROWS if row["labels"] == ["sun"]])
    made = []
    for own in (True, False):
        folder = tmp_path / str(own)
        folder.mkdir()
        made.append(make_words(run_of(tmp_path, word_labels=own, expand=expand), rows, folder, None))
    (_, with_labels), (_, without) = made
    assert with_labels.vocabulary == without.vocabulary
    np.testing.assert_array_equal(with_labels.vectors, without.vectors)


def test_words_of_labels_are_kept_however_rare(tmp_path):
    rows = datasets.Dataset.from_list([*ROWS, {"text": "rare kite", "labels": ["kite", "yacht"]}])
    _, embedding = make_words(run_of(tmp_path, word_min_count=5), rows, tmp_path, None)
    assert {"kite", "yacht", "boat"} <= set(embedding.vocabulary)
    assert "rare" not in embedding


def test_labels_that_do_not_guide_the_training_are_not_read(tmp_path):
    rows = datasets.Dataset.from_list(ROWS)
    _, embedding = make_words(run_of(tmp_path, similarity="pairs"), rows, tmp_path, None)
    assert "boat" not in embedding


def test_texts_of_a_stream_have_their_labels(tmp_path):
    rows = datasets.Dataset.from_list([{"id": str(number), **row} for number, row in enumerate(ROWS)])
    read_notes(rows.to_iterable_dataset(num_shards=2), "rows", tmp_path / "texts.parquet")
    spooled = SpooledTexts(tmp_path / "texts.parquet")
    assert list(spooled) == list(spooled) == rows["text"][:]
    assert list(SpooledTexts(spooled.path, labeled=True)) == [
        {"text": row["text"], "labels": row["labels"]} for row in ROWS
    ]
    words = label_words(SpooledTexts(spooled.path, labeled=True), WordRules())
    assert words == ({"sailing", "boat", "sun"}, {"sailing", "boat"})


def test_words_of_a_graph_are_whole_words_of_icu():
    texts = ["犬が海岸で遊ぶ", "一只狗在海滩上", "สุนัขวิ่ง", "كِتَاب New-York's"]
    expander = GraphExpander(tokenizer="icu").fit(texts)
    assert {"海岸", "海滩", "遊ぶ", "สุนัข", "كتاب", "york's"} <= set(expander.graph.vocabulary)
