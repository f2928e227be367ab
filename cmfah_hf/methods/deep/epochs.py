"""The number of finished epochs of a training, for objectives that change with it."""

import torch
from torch import nn
from transformers import initialization as init

from cmfah_hf.methods.base import FeatureObjective, ObjectiveConfig, TrainingState
from cmfah_hf.models.configuration_cmfah import CMFAHConfig


class EpochCount(nn.Module):
    """The number of finished epochs in a buffer, saved with the weights, so a resumed training continues the count."""

    finished: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("finished", torch.zeros((), dtype=torch.long))

    def __int__(self) -> int:
        return int(self.finished)

    def advance(self) -> None:
        """Adds the epoch that has just ended."""
        self.finished.add_(1)


class EpochObjective(FeatureObjective):
    """Base class of objectives that change with the number of finished epochs, `int(self.epochs)`."""

    def __init__(self, config: CMFAHConfig, settings: ObjectiveConfig):
        super().__init__(config, settings)
        self.epochs = EpochCount()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EpochCount):
            init.zeros_(module.finished)

    def on_epoch_end(self, state: TrainingState) -> None:
        """Counts the epoch."""
        self.epochs.advance()
