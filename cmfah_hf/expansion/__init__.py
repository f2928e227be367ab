"""Text expansion: the image-word graph, its walks, and word vectors trained on them."""

from .embedding import SkipGramEmbedding
from .expander import GraphExpander
from .graph import ImageWordGraph

__all__ = ["GraphExpander", "ImageWordGraph", "SkipGramEmbedding"]
