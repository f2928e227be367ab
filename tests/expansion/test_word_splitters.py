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


def test_runs_of_han_characters_are_cut_and_the_rest_is_split_as_ever():
    split = word_splitter("chinese")
    assert split("一只狗在海滩上 New-York's ＳＵＮＳＥＴ！日落,😀狗") == [
        *rjieba.cut("一只狗在海滩上"), "new", "york's", "sunset", "日落", "😀", "狗",
    ]  # fmt: skip
    assert "海滩" in split("海滩")
    assert split("") == split("，。！") == []


@given(st.text(st.characters(blacklist_categories=("Cs",)), max_size=30))
def test_chinese_words_are_made_of_the_words_that_the_model_reads(text):
    """Joined by blanks and split again, the words are those of the text itself: nothing is lost on the way."""
    words = word_splitter("chinese")(text)
    assert split_words(" ".join(words)) == split_words(text)
    assert all(word and not any(character.isspace() for character in word) for word in words)


def test_a_function_is_taken_at_its_word_if_its_words_hold_no_blanks():
    assert word_splitter(str.split)("Dog Beach") == ["Dog", "Beach"]
    for wrong in (lambda text: [text], lambda text: text, lambda text: [1], lambda text: [""]):
        with pytest.raises(CMFAHError, match="return words without spaces in a list"):
            word_splitter(wrong)("new york")


def test_other_names_and_a_missing_library_are_named(monkeypatch):
    with pytest.raises(CMFAHError, match="'words' or 'chinese' or a function"):
        word_splitter("klingon")
    real = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *a, **k: real("_gone" if name == "rjieba" else name, *a, **k)
    )
    word_splitters._rjieba.cache_clear()
    with pytest.raises(CMFAHError, match=r"cmfah-hf\[chinese\]"):
        word_splitter("chinese")
