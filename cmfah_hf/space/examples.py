"""Example queries of a page."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmfah_hf.models import CMFAHProcessor

# For images without texts.
_PHRASES = ("a dog", "the sea", "a street at night", "people at a table")


def example_queries(processor: "CMFAHProcessor", texts: Sequence[str], count: int) -> list[str]:
    """Two known words of each of some texts, or phrases that suit any images."""
    found: list[str] = []
    for text in texts:
        words = processor.known_words(text)[:2]
        if words and " ".join(words) not in found:
            found.append(" ".join(words))
        if len(found) == count:
            break
    return found or list(_PHRASES[:count])
