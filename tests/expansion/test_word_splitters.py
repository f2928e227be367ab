"""Tokenizers: by script, by a dictionary, and a user's function."""

import builtins

import pytest
import rjieba
from hypothesis import given
from hypothesis import strategies as st

from cmfah_hf.errors import CMFAHError
from cmfah_hf.expansion import word_splitters
from cmfah_hf.expansion.word_splitters import word_splitter
from cmfah_hf.models.tokenization_cmfah import split_words


def test_han_characters_are_segmented_and_other_text_is_split_as_before():
    split = word_splitter("chinese")
    assert split("一只狗在海滩上 New-York's ＳＵＮＳＥＴ！日落,😀狗") == [
        *rjieba.cut("一只狗在海滩上"), "new", "york's", "sunset", "日落", "😀", "狗",
    ]  # fmt: skip
    assert "海滩" in split("海滩")
    assert split("") == split("，。！") == []


@given(st.text(st.characters(blacklist_categories=("Cs",)), max_size=30))
def test_chinese_words_consist_of_the_words_of_the_model(text):
    """Joined by spaces and split again, the words are those of the text: nothing is lost."""
    words = word_splitter("chinese")(text)
    assert split_words(" ".join(words)) == split_words(text)
    assert all(word and not any(character.isspace() for character in word) for word in words)


def test_a_function_is_used_as_is_if_its_words_have_no_spaces():
    assert word_splitter(str.split)("Dog Beach") == ["Dog", "Beach"]
    for wrong in (lambda text: [text], lambda text: text, lambda text: [1], lambda text: [""]):
        with pytest.raises(CMFAHError, match="return words without spaces in a list"):
            word_splitter(wrong)("new york")


def test_other_names_and_a_missing_library_are_named(monkeypatch):
    with pytest.raises(CMFAHError, match="'words' or 'chinese' or 'icu' or a function"):
        word_splitter("klingon")
    real = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *a, **k: real("_gone" if name == "rjieba" else name, *a, **k)
    )
    word_splitters._rjieba.cache_clear()
    with pytest.raises(CMFAHError, match=r"cmfah-hf\[chinese\]"):
        word_splitter("chinese")
