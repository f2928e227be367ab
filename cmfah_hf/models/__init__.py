"""The models and their processor: what travels to the Hub. Nothing here imports from the rest of the package.

The names load on first use, all of them from `registration`, so that whoever has one has the Auto classes too. Words
and picture modes can be had without them, and without torch.
"""

from importlib import import_module
from typing import Any

__all__ = [
    "MODELS",
    "CMFAHConfig",
    "CMFAHImageModel",
    "CMFAHModel",
    "CMFAHOutput",
    "CMFAHPreTrainedModel",
    "CMFAHProcessor",
    "CMFAHTextModel",
    "CMFAHTowerOutput",
    "CrossModalRetrievalPipeline",
    "SCAHNConfig",
    "SCAHNImageModel",
    "SCAHNModel",
    "SCAHNPreTrainedModel",
    "SCAHNTextModel",
    "Towers",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.registration"), name)
