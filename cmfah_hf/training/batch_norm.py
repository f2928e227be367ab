"""Batch normalization over the pairs of all processes.

PyTorch's `SyncBatchNorm` only runs on accelerators; this runs wherever the processes can communicate. It keeps the
parameters, the buffers and their names, so the model is saved and loaded like any other.

Shape suffixes: C channels.
"""

import logging

import torch
from torch import distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from cmfah_hf.training.processes import process_count

logger = logging.getLogger(__name__)


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return _SumOverProcesses.apply(gradient)


class _GlobalStatistics(_BatchNorm):
    """The `forward` of a batch norm with the mean and variance of the whole batch."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(features)
        if process_count() > 1:
            return self._normalize_over_processes(features)
        if features.numel() == features.shape[1]:  # one value per channel has no variance
            return nn.functional.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(features)

    def _normalize_over_processes(self, features: torch.Tensor) -> torch.Tensor:
        dims = [0, *range(2, features.dim())]
        shape = [1, -1] + [1] * (features.dim() - 2)
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        count = features.numel() // features.shape[1]
        totals = _SumOverProcesses.apply(torch.cat([wide.sum(dims), wide.new_tensor([count])]))
        count = totals[-1].detach()
        mean_C = totals[:-1] / count
        # In a second pass, because the mean of squares minus the square of the mean would lose digits in float32.
        centered = wide - mean_C.view(shape)
        variance_C = _SumOverProcesses.apply(centered.square().sum(dims)) / count
        mean, variance, batches = self.running_mean, self.running_var, self.num_batches_tracked
        if mean is not None and variance is not None and batches is not None:
            with torch.no_grad():
                batches += 1
                momentum = self.momentum if self.momentum is not None else 1 / float(batches)
                mean.lerp_(mean_C.to(mean.dtype), momentum)
                unbiased_C = variance_C * count / (count - 1).clamp(min=1)
                variance.lerp_(unbiased_C.to(variance.dtype), momentum)
        normalized = centered * (variance_C + self.eps).rsqrt().view(shape)
        if self.affine:
            normalized = normalized * self.weight.view(shape) + self.bias.view(shape)
        return normalized.to(features.dtype)


_GLOBAL = {
    kind: type(f"Global{kind.__name__}", (_GlobalStatistics, kind), {})
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
}


def use_global_statistics(model: nn.Module) -> None:
    """Makes every batch norm of a model train on the statistics of the whole batch, in place.

    A batch of one pair, which has no variance, is normalized by the running statistics.
    """
    left = []
    for name, module in model.named_modules():
        if type(module) in _GLOBAL:
            module.__class__ = _GLOBAL[type(module)]
        elif isinstance(module, _BatchNorm) and not isinstance(module, (_GlobalStatistics, nn.SyncBatchNorm)):
            left.append(name)
    if left and process_count() > 1 and any(p.requires_grad for p in model.get_submodule(left[0]).parameters()):
        logger.warning(
            "%s and %d more normalize each process's share of a batch by itself: they are no plain BatchNorm.",
            left[0],
            len(left) - 1,
        )
