"""The models and their processor, whose code is saved with the weights and imports nothing from other folders.

Names load on first use. A configuration is registered with `AutoConfig` when it loads; the first of all other names
registers the models, the processor and the pipeline. The reading of texts and image modes load without these and torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    **dict.fromkeys(
        ("CMFAHConfig", "FeatureHashConfig", "FeatureMapConfig", "SCAHNConfig"), "registered_configurations"
    ),
    **dict.fromkeys(("MODELS", "Towers"), "registration"),
    **dict.fromkeys(("CMFAHImageModel", "CMFAHModel", "CMFAHPreTrainedModel", "CMFAHTextModel"), "modeling_cmfah"),
    **dict.fromkeys(("SCAHNImageModel", "SCAHNModel", "SCAHNPreTrainedModel", "SCAHNTextModel"), "modeling_scahn"),
    **dict.fromkeys(
        ("FeatureHashImageModel", "FeatureHashModel", "FeatureHashPreTrainedModel", "FeatureHashTextModel"),
        "modeling_feature_hash",
    ),
    **dict.fromkeys(
        ("FeatureMapImageModel", "FeatureMapModel", "FeatureMapPreTrainedModel", "FeatureMapTextModel"),
        "modeling_feature_map",
    ),
    **dict.fromkeys(("CMFAHOutput", "CMFAHTowerOutput"), "outputs_cmfah"),
    "CMFAHProcessor": "processing_cmfah",
    "CrossModalRetrievalPipeline": "pipeline_cmfah",
    "modules_to_save": "adapters",
    "TextReader": "text_reading",
}
# They load without the registration of the models.
_WITHOUT_MODELS = ("registered_configurations", "text_reading")

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOME[name] not in _WITHOUT_MODELS:
        import_module(f"{__name__}.registration")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
