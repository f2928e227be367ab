"""The models and their processor: what travels to the Hub. Nothing here imports from the rest of the package."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor

from .configuration_cmfah import CMFAHConfig
from .modeling_cmfah import (
    CMFAHDiscriminator,
    CMFAHForPreTraining,
    CMFAHForPreTrainingOutput,
    CMFAHImageModel,
    CMFAHLosses,
    CMFAHModel,
    CMFAHOutput,
    CMFAHPreTrainedModel,
    CMFAHTextModel,
    CMFAHTowerOutput,
)
from .processing_cmfah import CMFAHProcessor

# Where the package is installed, the Auto classes know it; `save_pretrained` puts the code beside the weights for
# where it is not.
AutoConfig.register("cmfah", CMFAHConfig)
AutoModel.register(CMFAHConfig, CMFAHModel)
AutoModelForPreTraining.register(CMFAHConfig, CMFAHForPreTraining)
AutoProcessor.register(CMFAHConfig, CMFAHProcessor)
CMFAHConfig.register_for_auto_class()
CMFAHModel.register_for_auto_class("AutoModel")
CMFAHForPreTraining.register_for_auto_class("AutoModelForPreTraining")
CMFAHProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "CMFAHConfig",
    "CMFAHDiscriminator",
    "CMFAHForPreTraining",
    "CMFAHForPreTrainingOutput",
    "CMFAHImageModel",
    "CMFAHLosses",
    "CMFAHModel",
    "CMFAHOutput",
    "CMFAHPreTrainedModel",
    "CMFAHProcessor",
    "CMFAHTextModel",
    "CMFAHTowerOutput",
]
