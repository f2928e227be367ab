"""Tokens of texts without transformers against those of the processor."""

import json

import numpy as np
import pytest
from dual_encoders import write_dual_encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from cmfah_hf.errors import CheckpointError
from cmfah_hf.models import CMFAHConfig, CMFAHProcessor
from cmfah_hf.models.word_rules import WordRules
from cmfah_hf.retrieval.onnx.description import text_settings
from cmfah_hf.retrieval.onnx.texts import OnnxTextReader

WORDS = ["beach", "boat", "dog", "sail", "sea", "café", "كتاب", "海", "ラーメン", "東京"]
TEXTS = [
    *(
        "a dog on the beach",
        "",
        "zzz",
        "sailboat",
        "dogs and boats",
        "[PAD] [UNK] dog",
        "New-York's CAFÉ!",
        "海 ラーメン",
    ),
    *("東京ラーメン", "كِتَابٌ dog", " dog  dog\nsea ", "dog " * 40, "\u0e4d\u0e32", "½ ﬁ", "[SEP] [BOS] sea"),
]
OPTIONS = {
    "words": {},
    "rules": {"word_rules": WordRules("icu", True)},
    "similar": {"unknown_words": "similar"},
    "rules and similar": {"word_rules": WordRules("icu", True), "unknown_words": "similar"},
}


def pair(processor, folder, **settings):
    """The processor in a folder, and what reads the same files without transformers."""
    processor.save_pretrained(folder)
    files = folder / "tokenizer.json", folder / "tokenizer_config.json"
    files[1].write_text(json.dumps({**json.loads(files[1].read_text()), **settings}))
    processor = CMFAHProcessor.from_pretrained(folder)
    return processor, OnnxTextReader.load(*files, text_settings(processor), folder / "cmfah.json")


@pytest.fixture(scope="module", params=[*OPTIONS, "left", "encoder", "prompt"])
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    if request.param in ("encoder", "prompt"):
        config = CMFAHConfig(dual_encoder=str(write_dual_encoder("clip", folder / "clip")), image_size=32)
        processor = CMFAHProcessor.from_backbones(config)
        processor.text_prompt = "a photo of " if request.param == "prompt" else ""
    else:
        processor = CMFAHProcessor.from_vocabulary(CMFAHConfig(), WORDS, **OPTIONS.get(request.param, {}))
    side = "left" if request.param == "left" else "right"
    return pair(processor, folder / "model", padding_side=side)


def assert_same(processor, reader, texts):
    wanted = processor(text=texts, return_tensors="np")
    ids_NW, mask_NW = reader.tokens(texts)
    assert ids_NW.dtype == mask_NW.dtype == np.int64
    assert np.array_equal(ids_NW, wanted["input_ids"])
    assert np.array_equal(mask_NW, wanted["attention_mask"])
    for text in texts:
        assert reader.readings(text) == processor.readings(text)
        assert reader.known_words(text) == processor.known_words(text)
        assert reader.has_known_tokens(text) == processor.has_known_tokens(text)


def test_tokens_and_words_are_those_of_the_processor(both):
    assert_same(*both, TEXTS)
    for text in TEXTS:
        assert_same(*both, [text])


@settings(max_examples=40)
@given(texts=st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=4))
def test_any_texts_have_the_same_tokens(both, texts):
    assert_same(*both, texts)


def test_a_tokenizer_of_other_settings_is_refused(tmp_path):
    processor, _ = pair(CMFAHProcessor.from_vocabulary(CMFAHConfig(), WORDS), tmp_path)
    files = tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json"
    own = text_settings(processor)
    files[1].write_text(json.dumps({**json.loads(files[1].read_text()), "padding_side": "left"}))
    with pytest.raises(CheckpointError, match=r"cmfah\.json: the tokenizer of this model is not the one"):
        OnnxTextReader.load(*files, own, tmp_path / "cmfah.json")
    CMFAHProcessor.from_vocabulary(CMFAHConfig(), WORDS[::-1]).save_pretrained(tmp_path)  # in another order
    with pytest.raises(CheckpointError, match=r"cmfah\.json: the tokenizer of this model is not the one"):
        OnnxTextReader.load(*files, own, tmp_path / "cmfah.json")
    files[0].write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: its"):
        OnnxTextReader.load(*files, own, tmp_path / "cmfah.json")
