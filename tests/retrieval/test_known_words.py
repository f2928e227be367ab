"""Known and unknown words of texts, and their reports."""

import logging

import pytest

from cmfah_hf.data import load_image_text
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.models import CMFAHConfig, CMFAHProcessor
from cmfah_hf.retrieval import CrossMediaRetriever
from cmfah_hf.retrieval.known_words import WordCoverage, similar_words, unknown_words
from cmfah_hf.training.evaluate import evaluate_pairs


@pytest.fixture(scope="module")
def processor():
    return CMFAHProcessor.from_vocabulary(CMFAHConfig(), ["boat", "sea", "red", "海", "滩"])


def test_words_outside_vocabulary_and_graph_are_unknown(processor):
    assert unknown_words("A red BOAT, zebra! zebra", processor) == ["a", "zebra", "zebra"]
    assert unknown_words("", processor) == []
    assert unknown_words("?! ...", processor) == []
    expander = GraphExpander().fit(["yacht boat", "sail sea"])  # words from which the random walk reaches known ones
    assert unknown_words("yacht zebra", processor, expander) == ["zebra"]
    assert unknown_words("海滩 林", processor) == ["林"]


def test_words_read_as_similar_ones_are_not_unknown():
    processor = CMFAHProcessor.from_vocabulary(CMFAHConfig(), ["boat", "sail", "red"], unknown_words="similar")
    text = "Sailboat, boats; red zebra"
    assert unknown_words(text, processor) == ["zebra"]
    assert similar_words([text], processor) == {"sailboat": ["sail", "boat"], "boats": ["boat"]}
    processor.unknown_words = "ignore"
    assert unknown_words(text, processor) == ["sailboat", "boats", "zebra"]
    assert similar_words([text], processor) == {}


def test_words_split_by_the_graph_count_by_their_parts(processor):
    expander = GraphExpander(tokenizer=lambda text: text.split()).fit(["日落 boat", "日落 sea"])
    assert unknown_words("日落 斑", processor, expander) == ["斑"]


def test_a_retriever_reports_unknown_words_once_in_order(trained):
    retriever = CrossMediaRetriever.from_pretrained(trained.folder)
    assert retriever.ignored_words("Zebra boat quixotic zebra plugh") == ["zebra", "quixotic", "plugh"]
    assert retriever.ignored_words("boat") == []


def test_metrics_report_unknown_words(trained, caplog):
    retriever = CrossMediaRetriever.from_pretrained(trained.folder)
    pairs = load_image_text(trained.scenes, split="query")
    parts = retriever.model, retriever.processor
    with caplog.at_level(logging.WARNING):
        sound = evaluate_pairs(*parts, pairs, pairs)
    assert "does not know" not in caplog.text
    own = [len(text.split()) for text in pairs["text"]]
    assert sound["queries_words"] == sound["database_words"] == sum(own)
    assert sound["queries_unknown_words_share"] == sound["queries_unknown_words"] / sum(own)
    assert sound["queries_without_known_words"] == 0

    german = ["Segelboot ruhig" if row % 2 else text for row, text in enumerate(pairs["text"])]
    foreign = pairs.remove_columns("text").add_column("text", german)
    figures = evaluate_pairs(*parts, foreign, pairs)
    assert figures["queries_without_known_words"] == 8
    assert figures["queries_without_known_words_share"] == 0.5
    assert figures["queries_unknown_words"] >= 16
    assert figures["database_without_known_words"] == 0
    assert "8 of 16 texts hold no word that it knows" in caplog.text
    for name in ("constant/i2t/map", "constant/t2i/map", "random/map"):
        assert 0 < figures[name] < 1
    # A model with one code for all texts scores like the constant query.
    silent = pairs.remove_columns("text").add_column("text", ["xyzzy"] * len(pairs))
    figures = evaluate_pairs(*parts, silent, pairs)
    assert figures["hamming/t2i/map"] == pytest.approx(figures["constant/t2i/map"])


def test_counts_add_up(processor):
    words = WordCoverage()
    words.count("red boat", "red boat", processor)
    words.count("zebra", "zebra", processor)
    assert (words.texts, words.words, words.unknown, words.without) == (2, 3, 1, 1)
    assert words.figures("queries")["queries_unknown_words_share"] == pytest.approx(1 / 3)
