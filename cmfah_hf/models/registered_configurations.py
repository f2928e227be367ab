"""The configurations, registered with `AutoConfig`."""

from transformers import AutoConfig

from .configuration_cmfah import CMFAHConfig
from .configuration_feature_hash import FeatureHashConfig
from .configuration_feature_map import FeatureMapConfig
from .configuration_scahn import SCAHNConfig

for _config in (CMFAHConfig, SCAHNConfig, FeatureHashConfig, FeatureMapConfig):
    AutoConfig.register(_config.model_type, _config)
    _config.register_for_auto_class()

__all__ = ["CMFAHConfig", "FeatureHashConfig", "FeatureMapConfig", "SCAHNConfig"]
