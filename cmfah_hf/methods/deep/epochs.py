"""The number of finished epochs of a training, for objectives that change with it."""

import torch
from torch import nn


class EpochCount(nn.Module):
    """Counts finished epochs in a buffer, which is saved with the weights, so a resumed training continues the count.

    `_init_weights` of the objective sets it to 0.
    """

    finished: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("finished", torch.zeros((), dtype=torch.long))

    def __int__(self) -> int:
        return int(self.finished)

    def advance(self) -> None:
        """Adds the epoch that has just ended."""
        self.finished.add_(1)
