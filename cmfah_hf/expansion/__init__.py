"""Text expansion: the image-word graph, its walks, knowledge from an encyclopedia, and word vectors trained on them."""

from cmfah_hf.expansion.embedding import SkipGramEmbedding
from cmfah_hf.expansion.expander import GraphExpander
from cmfah_hf.expansion.graph import ImageWordGraph
from cmfah_hf.expansion.knowledge import WikipediaKnowledge

__all__ = ["GraphExpander", "ImageWordGraph", "SkipGramEmbedding", "WikipediaKnowledge"]
