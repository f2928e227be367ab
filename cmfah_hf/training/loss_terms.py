"""Running means of the loss terms between two logs."""

import torch

_PREFIX = "term/"
_COUNT = "term_count"


class LossTerms:
    """Sums of the loss terms since the last log, by name."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.count = 0

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        """Adds the terms of a batch."""
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach()
        self.count += 1

    def take_means(self) -> dict[str, float]:
        """The means by their names in a log; resets the sums."""
        means = {f"loss_{name}": (total / self.count).item() for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def state(self) -> dict[str, torch.Tensor]:
        """The sums as tensors for a checkpoint."""
        sums = {f"{_PREFIX}{name}": total.detach().clone() for name, total in self.sums.items()}
        return {**sums, _COUNT: torch.tensor(self.count)}

    def load_state(self, tensors: dict[str, torch.Tensor], device: torch.device) -> None:
        """Takes the sums from a checkpoint."""
        self.count = int(tensors[_COUNT])
        self.sums = {
            name.removeprefix(_PREFIX): total.to(device) for name, total in tensors.items() if name.startswith(_PREFIX)
        }
