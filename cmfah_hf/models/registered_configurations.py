"""The configurations, registered with `AutoConfig`."""

from transformers import AutoConfig

from .configuration_cmfah import CMFAHConfig
from .configuration_scahn import SCAHNConfig

for _config in (CMFAHConfig, SCAHNConfig):
    AutoConfig.register(_config.model_type, _config)
    _config.register_for_auto_class()

__all__ = ["CMFAHConfig", "SCAHNConfig"]
