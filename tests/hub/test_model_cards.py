"""Sentences and tables of model cards: they say what the run of the model did."""

import pytest

from cmfah_hf.hub.finished_run import FinishedRun
from cmfah_hf.hub.model_card import make_model_card

FIGURES = {"queries": 4.0, "database": 20.0, "hamming/i2t/map": 0.25, "hamming/t2i/map": 0.5, "random/map": 0.1}


def card(tmp_path, metrics=None, config=None, **settings) -> str:
    given = {"hash_bits": 16, **(config or {})}
    run = FinishedRun(tmp_path, settings, {"train_pairs": 30, "validation_pairs": 5, **(metrics or {})}, given)
    return str(make_model_card(run, "org/model"))


@pytest.mark.parametrize(
    ("metrics", "training", "selected"),
    [
        ({}, {}, True),
        ({}, {"load_best_model_at_end": False}, False),
        ({"epoch_by": "schedule"}, {}, False),
        ({"epoch_by": "validation"}, {}, True),
    ],
)
def test_validation_pairs_selected_the_epoch_only_if_they_did(tmp_path, metrics, training, selected):
    text = card(tmp_path, metrics | {"query": FIGURES}, training=training)
    assert ("5 validation pairs that selected the epoch" in text) is selected
    assert "5 validation pairs" in text
    unmeasured = card(tmp_path, metrics | {"validation": 0.5}, training=training)
    assert ("pairs, which selected the epoch, the mean MAP" in unmeasured) is selected


@pytest.mark.parametrize(
    ("metrics", "settings", "config", "learned"),
    [
        ({"similarity": "labels"}, {}, {}, "from the labels of the data above."),
        ({"similarity": "pairs"}, {}, {}, "from the pairs of the data above."),
        ({"similarity": "tags"}, {}, {}, "from overlaps of the words of the texts above."),
        ({}, {"similarity": "embeddings"}, {}, "from the vectors of the encoder and the pairs of the data above."),
        (
            {"similarity": "labels"},
            {},
            {"objective": {"distillation_weight": 1}},
            "from the labels of the data above, and from the vectors of the encoder.",
        ),
    ],
)
def test_card_says_what_similarity_was_learned_from(tmp_path, metrics, settings, config, learned):
    assert f"Similarity was learned {learned}" in card(tmp_path, metrics, config, data=settings)


def test_card_has_the_figures_of_both_databases(tmp_path):
    seen = FIGURES | {"database": 38.0, "hamming/i2t/map": 0.75}
    text = card(tmp_path, {"query": FIGURES, "query_seen": seen, "protocol": "unseen"})
    before, title, after = text.partition("The same queries against the training pairs:")
    assert title
    assert "| MAP, Hamming | .250 | .500 |" in before
    assert "| MAP, Hamming | .750 | .500 |" in after


def test_names_of_codes_keep_their_commas(tmp_path):
    candidates = [{"name": "pca, itq", "aqd": 0.5, "hamming": 0.4}]
    text = card(tmp_path, {"compression": {"code": "pca, itq", "candidates": candidates}})
    assert "| `pca, itq` | .500 | .400 |" in text


def test_encoder_of_an_earlier_compression_is_named(tmp_path):
    """Whose metrics have its facts among the figures of the compression."""
    metrics = {"compression": {"code": "pca", "encoder": "org/clip", "encoder_license": "mit"}}
    text = card(tmp_path, metrics, {"encoder_source": "org/clip", "encoder_revision": "a" * 40})
    assert "base_model: org/clip" in text
    assert f"| commit of the encoder | {'a' * 40} |\n| license of the encoder | mit |" in text
    assert "fetched from the commit above" in text
