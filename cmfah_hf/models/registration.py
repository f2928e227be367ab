"""Makes the models and their processor known to the Auto classes of transformers."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_cmfah import CMFAHConfig
from .modeling_cmfah import (
    CMFAHDiscriminator,
    CMFAHForPreTraining,
    CMFAHImageModel,
    CMFAHModel,
    CMFAHPreTrainedModel,
    CMFAHTextModel,
)
from .outputs_cmfah import CMFAHForPreTrainingOutput, CMFAHLosses, CMFAHOutput, CMFAHTowerOutput
from .pipeline_cmfah import TASK, CrossModalRetrievalPipeline
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
PIPELINE_REGISTRY.register_pipeline(TASK, CrossModalRetrievalPipeline, pt_model=AutoModel, type="multimodal")

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
    "CrossModalRetrievalPipeline",
]
