"""Cross-media hashing for the Hugging Face ecosystem: pictures and texts in one space of short hash codes.

The names load on first use, so `import cmfah_hf` takes no time. Importing any of the models registers them with the
Auto classes of transformers.
"""

from typing import TYPE_CHECKING


__version__ = "0.1.0"

from .lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "CMFAHConfig": "models",
        "CMFAHDiscriminator": "models",
        "CMFAHForPreTraining": "models",
        "CMFAHImageModel": "models",
        "CMFAHModel": "models",
        "CMFAHProcessor": "models",
        "CMFAHTextModel": "models",
        "CMFAHTrainer": "training",
        "CMFAHTrainingArguments": "training",
        "CrossMediaRetriever": "retrieval",
        "GraphExpander": "expansion",
        "HashIndex": "retrieval",
        "RetrievalEvaluator": "evaluation",
        "SkipGramEmbedding": "expansion",
        "load_image_text": "data",
    },
)

if TYPE_CHECKING:
    from .data import load_image_text
    from .evaluation import RetrievalEvaluator
    from .expansion import GraphExpander, SkipGramEmbedding
    from .models import (
        CMFAHConfig,
        CMFAHDiscriminator,
        CMFAHForPreTraining,
        CMFAHImageModel,
        CMFAHModel,
        CMFAHProcessor,
        CMFAHTextModel,
    )
    from .retrieval import CrossMediaRetriever, HashIndex
    from .training import CMFAHTrainer, CMFAHTrainingArguments
