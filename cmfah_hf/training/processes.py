"""What the processes of a training run do together: share out a batch, and see its loss over the whole batch.

Each process encodes its share of a batch, and all hold the loss of the whole: a pair's negatives come from everyone's
pairs, and the figures are those of one process with the whole batch (docs/training.md). Without several processes,
nothing here does anything.

Shape suffixes: B pairs of the whole batch, b pairs of this process's share, X columns of any kind.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.utils.data import BatchSampler, DataLoader

from cmfah_hf.models.outputs_cmfah import CMFAHForPreTrainingOutput, CMFAHTowerOutput


def process_count() -> int:
    """How many processes train together; 1 where `torch.distributed` is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class BatchShare(BatchSampler):
    """This process's share of every batch, a run of neighbours; the shares differ by one pair at most.

    The last batch of an epoch is shared out as it is, neither filled up with pairs that were seen before nor given to
    one process alone. If it has fewer pairs than there are processes, nobody gets a share of it.

    Args:
        batches: Of one process's batch size; gives the order of the pairs, the same in all processes.
        num_processes: How many share a batch, which holds so many times `batches.batch_size` pairs.
        process_index: Whose share this is.
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
        full, rest = divmod(len(self.sampler), self.batch_size * self.num_processes)
        return full + (not self.drop_last and rest >= self.num_processes)


def share_batches(loader: DataLoader) -> DataLoader:
    """Puts `BatchShare` into a loader that accelerate made for several processes.

    Left alone, it would fill the last batch with pairs of the epoch's first. Streams have loaders of their own.
    """
    shard = getattr(loader, "batch_sampler", None)
    if getattr(shard, "num_processes", 1) > 1 and not shard.split_batches:
        shard.batch_sampler = BatchShare(shard.batch_sampler, shard.num_processes, shard.process_index)
        # What it gives out is a share already.
        shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
    return loader


class _GatherRows(torch.autograd.Function):
    """The rows of all processes, in their order; the gradient of the own rows, times the number of processes.

    Every process computes the same loss of all rows, so nothing need be sent back: the sum over the processes of what
    their losses say of a row is so many times what its own says. The wrapper of the model averages gradients over the
    processes, which divides by that number again.
    """

    @staticmethod
    def forward(ctx, rows_bX: torch.Tensor) -> torch.Tensor:
        rank, world = dist.get_rank(), dist.get_world_size()
        sizes = [torch.zeros(1, dtype=torch.long, device=rows_bX.device) for _ in range(world)]
        dist.all_gather(sizes, torch.tensor([len(rows_bX)], device=rows_bX.device))
        sizes = torch.cat(sizes).tolist()
        padded = rows_bX.new_zeros(max(sizes), *rows_bX.shape[1:])
        padded[: len(rows_bX)] = rows_bX
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        ctx.start, ctx.size, ctx.world = sum(sizes[:rank]), len(rows_bX), world
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient_BX: torch.Tensor) -> torch.Tensor:
        return gradient_BX[ctx.start : ctx.start + ctx.size] * ctx.world


def gather_rows(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """Tensors `(b, X)` as `(B, X)`, the rows of all processes one below the other, with gradients.

    All go in one message. `None` stays None, as a tensor of which none is asked of the others; it must be None in all
    processes. Each keeps its type; what takes no gradient here takes none there.
    """
    held = [tensor for tensor in tensors if tensor is not None]
    if process_count() == 1 or not held:
        return list(tensors)
    wide = torch.float32
    for tensor in held:
        wide = torch.promote_types(wide, tensor.dtype)
    rows = _GatherRows.apply(torch.cat([tensor.flatten(1).to(wide) for tensor in held], dim=1))
    columns = iter(rows.split([tensor[0].numel() for tensor in held], dim=1))
    gathered = []
    for tensor in tensors:
        if tensor is not None:
            part = next(columns).unflatten(1, tensor.shape[1:]).to(tensor.dtype)
            gathered.append(part if tensor.requires_grad else part.detach())
        else:
            gathered.append(None)
    return gathered


def gather_batch(outputs: CMFAHForPreTrainingOutput, *others: torch.Tensor | None) -> tuple[Any, ...]:
    """The outputs for the whole batch, from those for this process's share: all that the losses pair up.

    Args:
        outputs: Of `CMFAHForPreTraining.forward`. What stands a position, such as `last_hidden_state`, is left out.
        others: Further tensors of the share, a row a pair: labels, codes.
    """
    if process_count() == 1:
        return outputs, *others
    image, text = (
        CMFAHTowerOutput() if tower is None else tower
        for tower in (outputs.image_model_output, outputs.text_model_output)
    )
    own = (outputs.image_hash, outputs.text_hash, outputs.image_features, outputs.text_features)
    concepts = (outputs.image_concept_cosines, outputs.text_concept_cosines)
    paired = (image.hash_values, text.hash_values, image.features, text.features)
    rows = gather_rows(*own, *paired, *concepts, *others)
    is_paired = outputs.image_model_output is not None
    whole = replace(
        outputs,
        image_hash=rows[0],
        text_hash=rows[1],
        image_features=rows[2],
        text_features=rows[3],
        image_concept_cosines=rows[8],
        text_concept_cosines=rows[9],
        image_model_output=CMFAHTowerOutput(hash_values=rows[4], features=rows[6]) if is_paired else None,
        text_model_output=CMFAHTowerOutput(hash_values=rows[5], features=rows[7]) if is_paired else None,
    )
    return whole, *rows[10:]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """The mean over the processes of the gradients of parameters that no wrapper looks after, in one message."""
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
    """Gives all processes the values of the first one's tensors, by way of `device`, which can send."""
    if process_count() == 1:
        return
    for tensor in tensors:
        sent = tensor.detach().to(device, copy=True).contiguous()
        dist.broadcast(sent, src=0)
        tensor.copy_(sent)


def broadcast_figures(figures: Sequence[float] | None, count: int, device: torch.device) -> list[float]:
    """The main process's figures, in all processes; the others give None and how many there are."""
    if process_count() == 1:
        return list(figures)
    dtype = torch.float32 if device.type == "mps" else torch.float64
    sent = torch.zeros(count, dtype=dtype) if figures is None else torch.tensor(figures, dtype=dtype)
    sent = sent.to(device)
    dist.broadcast(sent, src=0)
    return sent.tolist()
