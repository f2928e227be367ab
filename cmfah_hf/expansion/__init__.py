"""Text expansion by the image-word graph and an encyclopedia, and word vectors."""

from cmfah_hf.expansion.embedding import SkipGramEmbedding
from cmfah_hf.expansion.expander import GraphExpander
from cmfah_hf.expansion.graph import ImageWordGraph
from cmfah_hf.expansion.knowledge import WikipediaKnowledge

__all__ = ["GraphExpander", "ImageWordGraph", "SkipGramEmbedding", "WikipediaKnowledge"]
