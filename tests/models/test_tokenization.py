"""Word splitting in any script, and the tokenizer that agrees with it."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cmfah_hf.models.tokenization_cmfah import split_words
from cmfah_hf.models.word_tokenizer import build_word_tokenizer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog, on the BEACH!", ["a", "dog", "on", "the", "beach"]),
        ("New-York's café; rock'n'roll 'quoted'", ["new", "york's", "café", "rock'n'roll", "quoted"]),
        ("#sunset @home e.g. 3.5 50% snake_case", ["sunset", "home", "e", "g", "3", "5", "50", "snake", "case"]),
        ("cafe\u0301 ﬁre ＡＢＣ ①", ["café", "fire", "abc", "1"]),  # NFKC
        ("Straße ИВАН ΑΘΗΝΑ", ["straße", "иван", "αθηνα"]),
        ("海边的狗 dog海", ["海", "边", "的", "狗", "dog", "海"]),
        ("犬がいる トラック", ["犬", "がいる", "トラック"]),
        ("สวัสดี ชาวโลก", ["สวัสดี".replace("ำ", "ํา"), "ชาวโลก"]),
        ("مَرْحَبًا، بالعالم؟", ["مَرْحَبًا", "بالعالم"]),
        ("हिन्दी में। नमस्ते", ["हिन्दी", "में", "नमस्ते"]),
        ("שלום עולם", ["שלום", "עולם"]),
        ("한국어 텍스트", ["한국어", "텍스트"]),
        ("😀dog🐶🐶 ♥", ["😀", "dog", "🐶", "🐶", "♥"]),
        ("caf\ufffd \ufffd\ufffd latte", ["caf", "latte"]),  # the replacement character of a decoder
        ("[PAD] [UNK]", ["pad", "unk"]),
        ("", []),
        (" \t\n ...!? -- \u200b \x00", []),
    ],
)
def test_word_splitting(text, words):
    assert split_words(text) == words


# Characters with the same category in all Unicode versions in use.
old_characters = st.characters(max_codepoint=0xFFFF, exclude_categories=("Cs", "Cn", "Co")).filter(
    lambda character: unicodedata.ucd_3_2_0.category(character) != "Cn"
)


@settings(max_examples=200)
@given(st.text(old_characters, max_size=30))
def test_every_letter_and_digit_is_in_a_word_and_no_separator_is(text):
    words = split_words(text)
    assert all(words)
    kinds = {unicodedata.category(character)[0] for word in words for character in word if character not in "'’"}
    assert kinds <= {"L", "M", "N", "S"}
    assert "\ufffd" not in "".join(words)
    normal = unicodedata.normalize("NFKC", text)
    letters = sum(unicodedata.category(character)[0] in "LN" for character in normal)
    assert sum(unicodedata.category(character)[0] in "LN" for word in words for character in word) >= letters


@settings(max_examples=200)
@given(st.text(max_size=30))
def test_splitting_is_idempotent(text):
    words = split_words(text)
    assert split_words(" ".join(words)) == words
    assert all(split_words(word) == [word] for word in words)


@settings(max_examples=60)
@given(st.lists(st.text(max_size=12), max_size=5), st.text(max_size=20))
def test_tokenizer_ids_match_the_word_ids(fitted, text):
    vocabulary = list(dict.fromkeys(word for seen in fitted for word in split_words(seen)))
    row = {word: 2 + i for i, word in enumerate(vocabulary)}
    tokenizer = build_word_tokenizer(vocabulary)
    assert tokenizer(text)["input_ids"] == [row.get(word, 1) for word in split_words(text)]
    seen = " . ".join(fitted)
    assert tokenizer(seen)["input_ids"] == [row[word] for word in split_words(seen)]


def test_special_tokens_in_a_text_are_words(tmp_path):
    tokenizer = build_word_tokenizer(["dog", "pad"])
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert (each.pad_token_id, each.unk_token_id) == (0, 1)
        assert each("[PAD] dog [UNK] pad")["input_ids"] == [3, 2, 1, 3]


@pytest.mark.parametrize("vocabulary", [["dog", "cat", "dog"], ["[PAD]"], ["dog", "[UNK]"]])
def test_duplicate_words_are_refused(vocabulary):
    with pytest.raises(ValueError, match="twice"):
        build_word_tokenizer(vocabulary)
