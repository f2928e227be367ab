"""The models and their processor, which are saved with the weights. Nothing here imports from the rest of the package.

Names load on first use. A configuration is registered with `AutoConfig` when it loads; the first of all other names
registers the models, the processor and the pipeline. Words and image modes load without them, and without torch.
"""

from importlib import import_module
from typing import Any

_HOME = {
    **dict.fromkeys(("CMFAHConfig", "SCAHNConfig"), "registered_configurations"),
    **dict.fromkeys(
        (
            "MODELS",
            "CMFAHImageModel",
            "CMFAHModel",
            "CMFAHOutput",
            "CMFAHPreTrainedModel",
            "CMFAHProcessor",
            "CMFAHTextModel",
            "CMFAHTowerOutput",
            "CrossModalRetrievalPipeline",
            "SCAHNImageModel",
            "SCAHNModel",
            "SCAHNPreTrainedModel",
            "SCAHNTextModel",
            "Towers",
        ),
        "registration",
    ),
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
