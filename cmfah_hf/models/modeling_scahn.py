"""SCAHN's towers: those of CMFAH, with their own `model_type` and the same tensor names in checkpoints."""

from .configuration_scahn import SCAHNConfig
from .modeling_cmfah import CMFAHImageModel, CMFAHModel, CMFAHPreTrainedModel, CMFAHTextModel
from .safe_weights import load_from_wholes


class SCAHNPreTrainedModel(CMFAHPreTrainedModel):
    """Base class of SCAHN's models."""

    config: SCAHNConfig
    config_class = SCAHNConfig


class SCAHNImageModel(SCAHNPreTrainedModel, CMFAHImageModel):
    """The image tower, as CMFAH's."""


class SCAHNTextModel(SCAHNPreTrainedModel, CMFAHTextModel):
    """The text tower, as CMFAH's."""


class SCAHNModel(SCAHNPreTrainedModel, CMFAHModel):
    """Both towers, as CMFAH's.

    Example:

    ```python
    >>> from cmfah_hf import CMFAHProcessor, SCAHNModel

    >>> model = SCAHNModel.from_pretrained("path/to/checkpoint")
    >>> processor = CMFAHProcessor.from_pretrained("path/to/checkpoint")
    >>> inputs = processor(text=["a dog on the beach"], return_tensors="pt")
    >>> hash_values = model.get_text_hash(**inputs)  # the unimodal codes of the text, (1, K)
    ```"""

    image_model_class = SCAHNImageModel
    text_model_class = SCAHNTextModel


load_from_wholes(SCAHNImageModel, SCAHNTextModel)


__all__ = ["SCAHNImageModel", "SCAHNModel", "SCAHNPreTrainedModel", "SCAHNTextModel"]
