"""Data-parallel training with the loss of the whole batch in every process.

Each process encodes its share of a batch, and all compute the loss of the whole batch. The negatives of a pair come
from all processes, and the results equal those of one process with the whole batch (docs/training.md). In a single
process, these functions do nothing.

Shape suffixes: B pairs of the whole batch, b pairs of this process's share, X columns of any kind.
"""

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import fields
from typing import Any, TypeVar, cast

import torch
from torch import distributed as dist
from torch import nn
from torch.utils.data import BatchSampler, DataLoader
from transformers.utils import ModelOutput

Outputs = TypeVar("Outputs", bound=ModelOutput)


def process_count() -> int:
    """The number of processes; 1 if `torch.distributed` is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class BatchShare(BatchSampler):
    """This process's contiguous share of every batch; the shares differ by one pair at most.

    The last batch of an epoch is divided without padding. It is dropped if it has fewer pairs than there are processes.
    `batches` has one process's batch size, and the same order in all; a whole batch holds as many for each process.
    """

    def __init__(self, batches: BatchSampler, num_processes: int, process_index: int):
        self.sampler = batches.sampler
        self.batch_size = batches.batch_size
        self.drop_last = batches.drop_last
        self.num_processes = num_processes
        self.process_index = process_index

    def __iter__(self) -> Iterator[list[int]]:
        whole = BatchSampler(self.sampler, self.batch_size * self.num_processes, self.drop_last)
        for batch in whole:
            if len(batch) < self.num_processes:
                return
            each, more = divmod(len(batch), self.num_processes)
            start = self.process_index * each + min(self.process_index, more)
            yield batch[start : start + each + (self.process_index < more)]

    def __len__(self) -> int:
        full, rest = divmod(len(cast(Sized, self.sampler)), self.batch_size * self.num_processes)
        return full + (not self.drop_last and rest >= self.num_processes)


def share_batches(loader: DataLoader) -> DataLoader:
    """Replaces the batch sampler of a loader that accelerate made for several processes by `BatchShare`.

    Accelerate's own would pad the last batch with the first pairs of the epoch. Streams have loaders of their own.
    """
    shard: Any = getattr(loader, "batch_sampler", None)
    if getattr(shard, "num_processes", 1) > 1 and not shard.split_batches:
        shard.batch_sampler = BatchShare(shard.batch_sampler, shard.num_processes, shard.process_index)
        # Its batches are shares already.
        shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
    return loader


class _GatherRows(torch.autograd.Function):
    """Gathers the rows of all processes, in their order; backward multiplies by the number of processes.

    Every process computes the same loss of all rows, so gradients need no communication: the sum of a row's gradients
    over the processes is its own gradient times their number. The wrapper of the model averages gradients over the
    processes, which divides by that number again.
    """

    @staticmethod
    def forward(ctx, rows_bX: torch.Tensor) -> torch.Tensor:
        rank, world = dist.get_rank(), dist.get_world_size()
        sizes = [torch.zeros(1, dtype=torch.long, device=rows_bX.device) for _ in range(world)]
        dist.all_gather(sizes, torch.tensor([len(rows_bX)], device=rows_bX.device))
        counts: list[int] = torch.cat(sizes).tolist()
        padded = rows_bX.new_zeros(max(counts), *rows_bX.shape[1:])
        padded[: len(rows_bX)] = rows_bX
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        ctx.start, ctx.size, ctx.world = sum(counts[:rank]), len(rows_bX), world
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx, gradient_BX: torch.Tensor) -> torch.Tensor:
        return gradient_BX[ctx.start : ctx.start + ctx.size] * ctx.world


def gather_rows(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Tensors `(b, ...)` as `(B, ...)`, the rows of all processes in their order, with gradients, in one message."""
    if process_count() == 1 or not tensors:
        return list(tensors)
    wide = torch.float32
    for tensor in tensors:
        wide = torch.promote_types(wide, tensor.dtype)
    rows = _GatherRows.apply(torch.cat([tensor.reshape(len(tensor), -1).to(wide) for tensor in tensors], dim=1))
    columns = rows.split([tensor[0].numel() for tensor in tensors], dim=1)
    gathered = []
    for tensor, part in zip(tensors, columns, strict=True):
        part = part.reshape(-1, *tensor.shape[1:]).to(tensor.dtype)
        gathered.append(part if tensor.requires_grad else part.detach())
    return gathered


def gather_outputs(outputs: Outputs, rows: Mapping[str, torch.Tensor]) -> tuple[Outputs, dict[str, torch.Tensor]]:
    """The outputs for the whole batch, from those for this process's share.

    All tensors `(b, X)` are gathered, including those of nested outputs. Others are left out: tensors with a dimension
    for positions, such as `last_hidden_state`, differ in length between processes.

    Args:
        outputs: The outputs of the model's `forward`.
        rows: Further tensors of the share, a row for each pair, by name: labels, codes.
    """
    if process_count() == 1:
        return outputs, dict(rows)
    found = _row_tensors(outputs)
    gathered = iter(gather_rows(*found, *rows.values()))
    whole = _with_row_tensors(outputs, gathered)
    return whole, dict(zip(rows, gathered, strict=True))


def detached(outputs: Outputs) -> Outputs:
    """The outputs with only their tensors `(B, X)`, detached from the graph."""
    return _with_row_tensors(outputs, (tensor.detach() for tensor in _row_tensors(outputs)))


def _row_tensors(outputs: Any) -> list[torch.Tensor]:
    found = []
    for part in fields(outputs):
        value = getattr(outputs, part.name)
        if isinstance(value, ModelOutput):
            found += _row_tensors(value)
        elif isinstance(value, torch.Tensor) and value.dim() == 2:
            found.append(value)
    return found


def _with_row_tensors(outputs: Outputs, tensors: Iterator[torch.Tensor]) -> Outputs:
    kept: dict[str, Any] = {}
    for part in fields(cast(Any, outputs)):
        value = getattr(outputs, part.name)
        if isinstance(value, ModelOutput):
            kept[part.name] = _with_row_tensors(value, tensors)
        elif isinstance(value, torch.Tensor) and value.dim() == 2:
            kept[part.name] = next(tensors)
    return type(outputs)(**kept)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages gradients of parameters outside the model's wrapper over the processes, in one message."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if process_count() == 1 or not gradients:
        return
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    together /= process_count()
    for gradient, mean in zip(gradients, together.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def broadcast_from_main(tensors: Iterable[torch.Tensor], device: torch.device) -> None:
    """Copies the tensors of the first process to all others, through a device that can communicate."""
    if process_count() == 1:
        return
    for tensor in tensors:
        sent = tensor.detach().to(device, copy=True).contiguous()
        dist.broadcast(sent, src=0)
        tensor.copy_(sent)


def share_random_state(device: torch.device) -> None:
    """Gives all processes the state of the first one's CPU generator, from which objectives draw.

    Dropout on shares of different sizes separates the states.

    Args:
        device: A device that can communicate.
    """
    if process_count() > 1:
        state = torch.get_rng_state()
        broadcast_from_main([state], device)
        torch.set_rng_state(state)
