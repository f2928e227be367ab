"""Registration of the models and their processor with the Auto classes of `transformers`."""

from typing import NamedTuple

from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .modeling_cmfah import (
    CMFAHDiscriminator,
    CMFAHForPreTraining,
    CMFAHImageModel,
    CMFAHModel,
    CMFAHPreTrainedModel,
    CMFAHTextModel,
)
from .modeling_scahn import (
    SCAHNForPreTraining,
    SCAHNImageModel,
    SCAHNLosses,
    SCAHNModel,
    SCAHNPreTrainedModel,
    SCAHNTextModel,
)
from .outputs_cmfah import CMFAHForPreTrainingOutput, CMFAHLosses, CMFAHOutput, CMFAHTowerOutput
from .pipeline_cmfah import TASK, CrossModalRetrievalPipeline
from .processing_cmfah import CMFAHProcessor
from .registered_configurations import CMFAHConfig, SCAHNConfig


class Method(NamedTuple):
    """The classes of a method: its configuration, both towers, and the towers with what trains them."""

    config: type[CMFAHConfig]
    model: type[CMFAHModel]
    pretraining: type[CMFAHForPreTraining]


# By the `model_type` of their configurations. They share one processor.
METHODS = {
    "cmfah": Method(CMFAHConfig, CMFAHModel, CMFAHForPreTraining),
    "scahn": Method(SCAHNConfig, SCAHNModel, SCAHNForPreTraining),
}

# Where the package is installed, the Auto classes find it; `save_pretrained` saves the code with the weights for where
# it is not.
for _method in METHODS.values():
    AutoModel.register(_method.config, _method.model)
    AutoModelForPreTraining.register(_method.config, _method.pretraining)
    AutoProcessor.register(_method.config, CMFAHProcessor)
    _method.model.register_for_auto_class("AutoModel")
    _method.pretraining.register_for_auto_class("AutoModelForPreTraining")
CMFAHProcessor.register_for_auto_class("AutoProcessor")
PIPELINE_REGISTRY.register_pipeline(TASK, CrossModalRetrievalPipeline, pt_model=AutoModel, type="multimodal")

__all__ = [
    "METHODS",
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
    "Method",
    "SCAHNConfig",
    "SCAHNForPreTraining",
    "SCAHNImageModel",
    "SCAHNLosses",
    "SCAHNModel",
    "SCAHNPreTrainedModel",
    "SCAHNTextModel",
]
