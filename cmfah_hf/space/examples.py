"""Example queries of a page."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmfah_hf.models.text_reading import TextReader

# For images without texts.
_PHRASES = ("a dog", "the sea", "a street at night", "people at a table")


def example_queries(reader: "TextReader", texts: Sequence[str], count: int) -> list[str]:
    """Two known words of each of some texts, or phrases that suit any images."""
    found: list[str] = []
    for text in texts:
        words = reader.known_words(text)[:2]
        if words and " ".join(words) not in found:
            found.append(" ".join(words))
        if len(found) == count:
            break
    return found or list(_PHRASES[:count])
