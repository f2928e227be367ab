"""Makes the models and their processor known to the Auto classes of transformers."""

from typing import NamedTuple

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_cmfah import CMFAHConfig
from .configuration_scahn import SCAHNConfig
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

# Where the package is installed, the Auto classes know it; `save_pretrained` puts the code beside the weights for
# where it is not.
for _name, _method in METHODS.items():
    AutoConfig.register(_name, _method.config)
    AutoModel.register(_method.config, _method.model)
    AutoModelForPreTraining.register(_method.config, _method.pretraining)
    AutoProcessor.register(_method.config, CMFAHProcessor)
    _method.config.register_for_auto_class()
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
