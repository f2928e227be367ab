"""Cross-media hashing for the Hugging Face ecosystem: images and texts as short binary codes in one space.

The names load on first use, so `import cmfah_hf` takes no time. Importing any of the models registers them with the
Auto classes of transformers.
"""

from typing import TYPE_CHECKING

from cmfah_hf.lazy import lazy_names

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_names(
    __name__,
    {
        "CMFAHConfig": "models",
        "CMFAHDiscriminator": "methods",
        "CMFAHForPreTraining": "methods",
        "CMFAHImageModel": "models",
        "CMFAHModel": "models",
        "CMFAHObjectiveConfig": "methods",
        "CMFAHProcessor": "models",
        "CMFAHTextModel": "models",
        "CMFAHTrainer": "training",
        "CMFAHTrainingArguments": "training",
        "CrossMediaRetriever": "retrieval",
        "FeatureHashConfig": "models",
        "FeatureHashForPreTraining": "methods",
        "FeatureHashModel": "models",
        "FeatureMapConfig": "models",
        "FeatureMapForPreTraining": "methods",
        "FeatureMapModel": "models",
        "GraphExpander": "expansion",
        "HashIndex": "retrieval",
        "RetrievalEvaluator": "evaluation",
        "SCAHNConfig": "models",
        "SCAHNForPreTraining": "methods",
        "SCAHNModel": "models",
        "SCAHNObjectiveConfig": "methods",
        "SkipGramEmbedding": "expansion",
        "WikipediaKnowledge": "expansion",
        "load_image_text": "data",
    },
)

if TYPE_CHECKING:
    from cmfah_hf.data import load_image_text
    from cmfah_hf.evaluation import RetrievalEvaluator
    from cmfah_hf.expansion import GraphExpander, SkipGramEmbedding, WikipediaKnowledge
    from cmfah_hf.methods import (
        CMFAHDiscriminator,
        CMFAHForPreTraining,
        CMFAHObjectiveConfig,
        FeatureHashForPreTraining,
        FeatureMapForPreTraining,
        SCAHNForPreTraining,
        SCAHNObjectiveConfig,
    )
    from cmfah_hf.models import (
        CMFAHConfig,
        CMFAHImageModel,
        CMFAHModel,
        CMFAHProcessor,
        CMFAHTextModel,
        FeatureHashConfig,
        FeatureHashModel,
        FeatureMapConfig,
        FeatureMapModel,
        SCAHNConfig,
        SCAHNModel,
    )
    from cmfah_hf.retrieval import CrossMediaRetriever, HashIndex
    from cmfah_hf.training import CMFAHTrainer, CMFAHTrainingArguments
