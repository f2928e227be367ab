"""Makes the models and their processor known to the Auto classes of transformers."""

from typing import NamedTuple

from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_cmfah import CMFAHConfig
from .configuration_scahn import SCAHNConfig
from .modeling_cmfah import CMFAHImageModel, CMFAHModel, CMFAHPreTrainedModel, CMFAHTextModel
from .modeling_scahn import SCAHNImageModel, SCAHNModel, SCAHNPreTrainedModel, SCAHNTextModel
from .outputs_cmfah import CMFAHOutput, CMFAHTowerOutput
from .pipeline_cmfah import TASK, CrossModalRetrievalPipeline
from .processing_cmfah import CMFAHProcessor


class Towers(NamedTuple):
    """The classes of an architecture: its configuration, and both towers."""

    config: type[CMFAHConfig]
    model: type[CMFAHModel]


# By the `model_type` of their configurations. They share one processor.
MODELS = {"cmfah": Towers(CMFAHConfig, CMFAHModel), "scahn": Towers(SCAHNConfig, SCAHNModel)}

# Where the package is installed, the Auto classes know it; `save_pretrained` puts the code next to the weights for
# where it is not.
for _name, _towers in MODELS.items():
    AutoConfig.register(_name, _towers.config)
    AutoModel.register(_towers.config, _towers.model)
    AutoProcessor.register(_towers.config, CMFAHProcessor)
    _towers.config.register_for_auto_class()
    _towers.model.register_for_auto_class("AutoModel")
CMFAHProcessor.register_for_auto_class("AutoProcessor")
PIPELINE_REGISTRY.register_pipeline(TASK, CrossModalRetrievalPipeline, pt_model=AutoModel, type="multimodal")

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
