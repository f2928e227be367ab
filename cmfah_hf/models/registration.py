"""Registration of the models and their processor with the Auto classes of `transformers`."""

from typing import NamedTuple

from transformers import AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .modeling_cmfah import CMFAHModel
from .modeling_feature_hash import FeatureHashModel
from .modeling_feature_map import FeatureMapModel
from .modeling_scahn import SCAHNModel
from .pipeline_cmfah import TASK, CrossModalRetrievalPipeline
from .processing_cmfah import CMFAHProcessor
from .registered_configurations import CMFAHConfig, FeatureHashConfig, FeatureMapConfig, SCAHNConfig


class Towers(NamedTuple):
    """The classes of an architecture: its configuration and its model of both towers."""

    config: type[CMFAHConfig]
    model: type[CMFAHModel]


# By the `model_type` of their configurations. They share one processor.
MODELS = {
    "cmfah": Towers(CMFAHConfig, CMFAHModel),
    "scahn": Towers(SCAHNConfig, SCAHNModel),
    "feature_hash": Towers(FeatureHashConfig, FeatureHashModel),
    "feature_map": Towers(FeatureMapConfig, FeatureMapModel),
}

# The Auto classes find the installed package; for other machines, `save_pretrained` saves the code with the weights.
for _towers in MODELS.values():
    AutoModel.register(_towers.config, _towers.model)
    AutoProcessor.register(_towers.config, CMFAHProcessor)
    _towers.model.register_for_auto_class("AutoModel")
CMFAHProcessor.register_for_auto_class("AutoProcessor")
PIPELINE_REGISTRY.register_pipeline(TASK, CrossModalRetrievalPipeline, pt_model=AutoModel, type="multimodal")
