"""Rules of a model for words: segmentation of scripts without spaces, and folding of marks.

The rules are saved with the processor, so that a model reads texts as in its training. Without rules, words are those
of `split_words`, as in models from before there were rules.
"""

import re
import unicodedata
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, pre_tokenizers

from .model_files import ModelFileError
from .tokenization_cmfah import normalize_text, split_words

SEGMENTERS = ("none", "icu")

# Of texts in NFKC, which turns circled and half-width kana, presentation forms and the like into these letters:
# Thai, Lao, Burmese (with its extensions), Khmer, and the kana of Japanese; Arabic and Hebrew.
_UNSPACED = re.compile(
    "[\u0e01-\u0e4e\u0e81-\u0edf\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17d3"
    "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff]"
)
_ABJAD = re.compile("[\u0591-\u05f2\u0610-\u06ff]")
# Kanji and kana are segmented together, because the boundaries of kana depend on the kanji around them.
_RUN = (
    r"[\p{Thai}\p{Lao}\p{Myanmar}\p{Khmer}][\p{Thai}\p{Lao}\p{Myanmar}\p{Khmer}\p{M}]*"
    r"|[\p{Han}\p{Hiragana}\p{Katakana}\x{30FC}][\p{Han}\p{Hiragana}\p{Katakana}\x{30FC}\p{M}]*"
)
# NFKC writes the vowel AM of Thai and Lao as two characters, ICU's dictionaries as one.
_VOWELS = (("\u0e4d\u0e32", "\u0e33"), ("\u0ecd\u0eb2", "\u0eb3"))


def _folding() -> dict[int, str | None]:
    """As in Lucene's analyzers of Arabic and Persian: alef with hamza or madda is alef, alef maksura and Farsi yeh are
    yeh, teh marbuta is heh, keheh is kaf, digits are 0 to 9. Vowel points, other marks and tatweel are dropped."""
    table: dict[int, str | None] = dict.fromkeys([*range(0x0591, 0x05BE), 0x05BF, 0x05C1, 0x05C2, 0x05C4, 0x05C5])
    table[0x05C7] = None
    table |= dict.fromkeys([*range(0x0610, 0x061B), 0x0640, *range(0x064B, 0x0660), 0x0670, *range(0x06D6, 0x06DD)])
    table |= dict.fromkeys([*range(0x06DF, 0x06E5), 0x06E7, 0x06E8, *range(0x06EA, 0x06EE)])
    table |= dict.fromkeys(map(ord, "\u0622\u0623\u0625\u0671"), "\u0627")  # alef
    table |= dict.fromkeys(map(ord, "\u0649\u06cc\u06d2"), "\u064a")  # yeh
    table |= dict.fromkeys(map(ord, "\u0629\u06c0\u06c1"), "\u0647")  # heh
    table[0x06A9] = "\u0643"  # kaf
    return table | {first + digit: str(digit) for first in (0x0660, 0x06F0) for digit in range(10)}


_FOLDED = _folding()


@dataclass(frozen=True)
class WordRules:
    """Rules for the words of a text, in addition to those of `split_words`.

    Args:
        segmenter: "icu" inserts the word boundaries of Thai, Lao, Khmer, Burmese and Japanese that ICU's dictionaries
            find. Han characters remain words of their own. "none": letters without spaces between them are one word.
        fold_marks: Whether Arabic and Hebrew are read without their marks, with one form of each letter.

    Example:
        >>> WordRules(fold_marks=True).words("كِتَابٌ أحمر")
        ['كتاب', 'احمر']
    """

    segmenter: str = "none"
    fold_marks: bool = False

    def words(self, text: str) -> list[str]:
        """The words of `text` in their order.

        Raises:
            ImportError: If the segmenter is not installed.
        """
        if self.fold_marks:
            text = fold(text)
        if self.segmenter == "icu":
            text = segment(text)
        return split_words(text)

    def require(self) -> None:
        """Raises an `ImportError` that names the library to install if the segmenter is not installed."""
        if self.segmenter == "icu":
            _word_breaker()

    def to_dict(self) -> dict[str, Any]:
        """The rules as `processor_config.json` holds them."""
        return asdict(self)


def rules_of(settings: Any, path: str | Path) -> WordRules:
    """The rules in the settings of a file; those of `split_words` if the file has none.

    Raises:
        ModelFileError: If they are invalid, or the segmenter is not installed. The message names the file.
    """
    if settings is None:
        return WordRules()
    given: dict[str, Any] = {"segmenter": "none", "fold_marks": False} | settings if isinstance(settings, dict) else {}
    folds = isinstance(given.get("fold_marks"), bool)
    if len(given) != 2 or given["segmenter"] not in SEGMENTERS or not folds:
        raise ModelFileError(
            f"{path}: word_rules is {str(settings)[:80]!r}; give a segmenter ({' or '.join(SEGMENTERS)}) and "
            "fold_marks (true or false)."
        )
    rules = WordRules(**given)
    try:
        rules.require()
    except ImportError as error:
        raise ModelFileError(f"{path}: {error}") from None
    return rules


def needs_segmenter(text: str) -> bool:
    """Whether a text has letters of a script that `segmenter="icu"` segments."""
    return _UNSPACED.search(normalize_text(text)) is not None


def needs_folding(text: str) -> bool:
    """Whether a text has Arabic or Hebrew letters."""
    return _ABJAD.search(normalize_text(text)) is not None


def fold(text: str) -> str:
    """The text, NFKC-normalized and in lower case, with Arabic and Hebrew letters folded and without their marks."""
    return normalize_text(text).translate(_FOLDED)


def segment(text: str, han: bool = False) -> str:
    """The text, NFKC-normalized and in lower case, with a space at each boundary that ICU finds in scripts without
    spaces; also in Chinese if `han` is true.

    Raises:
        ImportError: If ICU is not installed.
    """
    text = normalize_text(text)
    if not (han or _UNSPACED.search(text)):
        return text
    parts, end = [], 0
    for run, (first, last) in _runs().pre_tokenize_str(text):
        parts.append(text[end:first])
        end = last
        if han or _UNSPACED.search(run):
            for written, composed in _VOWELS:
                run = run.replace(written, composed)
            # A mark belongs to the letter before it, also where ICU has no letter of its own for it.
            run = "".join(f" {word}" if _starts_word(word) else word for word in _word_breaker()(run, "en")) + " "
        parts.append(run)
    return "".join(parts) + text[end:]


def _starts_word(part: str) -> bool:
    return not unicodedata.category(part[0]).startswith("M")


@cache
def _runs() -> Any:
    return pre_tokenizers.Split(Regex(_RUN), behavior="removed", invert=True)


@cache
def _word_breaker() -> Any:
    try:
        from icu4py.breakers import WordBreaker
    except ImportError:
        raise ImportError(
            "Words of Thai, Lao, Khmer, Burmese and Japanese are found with ICU, which is not installed; "
            "pip install icu4py, or 'cmfah-hf[languages]'."
        ) from None
    return WordBreaker
