"""The configuration of SCAHN's towers: that of CMFAH, with its own `model_type`."""

from huggingface_hub.dataclasses import strict

from .configuration_cmfah import CMFAHConfig


@strict
class SCAHNConfig(CMFAHConfig):
    r"""
    Settings of the towers of a SCAHN model, which are those of CMFAH. The methods differ in their objectives.

    Example:

    ```python
    >>> from cmfah_hf import SCAHNConfig, SCAHNForPreTraining, SCAHNObjectiveConfig

    >>> config = SCAHNConfig(id2label={0: "dog", 1: "sea"})
    >>> model = SCAHNForPreTraining(config, SCAHNObjectiveConfig(adversarial="hash"))
    >>> model.objective.label_graph.counts.shape
    torch.Size([2, 2])
    ```"""

    model_type = "scahn"


__all__ = ["SCAHNConfig"]
