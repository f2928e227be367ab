"""Data loaders of streams for `CMFAHTrainer`: training, evaluation, resuming."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, has_length

from cmfah_hf.errors import DataError
from cmfah_hf.training.data.shards import count_rows
from cmfah_hf.training.data.streams import PairStream, StreamPart, without_gaps
from cmfah_hf.training.settings.arguments import CMFAHTrainingArguments


def as_training_stream(dataset: Any, args: CMFAHTrainingArguments) -> Any:
    """A stream of `datasets` as a `PairStream` for training; anything else unchanged.

    Its rows are counted in a separate pass, because epochs need counts, unless `max_steps` is given.
    """
    if not isinstance(dataset, datasets.IterableDataset):
        return dataset
    counts = None
    if args.max_steps <= 0:
        counts = count_rows(dataset, args.world_size, args.process_index)
        if args.world_size > 1:
            counts = np.reshape(gather_object(counts), (args.world_size, -1)).sum(axis=0).tolist()
    seed = args.seed if args.data_seed is None else args.data_seed
    return PairStream(dataset, counts, args.shuffle_buffer, seed)


def as_stream(dataset: Any) -> Any:
    """A stream of `datasets` as a `PairStream`; anything else unchanged."""
    return PairStream(dataset) if isinstance(dataset, datasets.IterableDataset) else dataset


def stream_loader(trainer: Any, stream: PairStream, training: bool) -> DataLoaderShard:
    """The loader of this process's part of a stream, for a `CMFAHTrainer`.

    `Accelerator.prepare` is not used: either its first process reads for all, or each process reads everything and
    discards the rows of the others.
    """
    args, accelerator = trainer.args, trainer.accelerator
    batch_size = trainer._train_batch_size if training else args.eval_batch_size
    part = stream.part(
        batch_size, accelerator.num_processes, accelerator.process_index, args.dataloader_drop_last, training
    )
    return DataLoaderShard(
        part,
        device=accelerator.device,
        batch_size=batch_size,
        collate_fn=without_gaps(trainer.data_collator if training else trainer.task.measuring_collator),
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers and training,
        prefetch_factor=args.dataloader_prefetch_factor,
    )


def predict_stream(
    trainer: Trainer, dataloader: DataLoaderShard, predict: Callable[[dict[str, Any]], tuple[tuple, Any]]
) -> EvalLoopOutput:
    """The predictions for all pairs of a stream, from all processes.

    The processes gather at the end of their parts, which may have different lengths. No pair is counted twice.

    Args:
        trainer: The trainer, whose callbacks are called for each batch.
        dataloader: A loader of `stream_loader`.
        predict: From a batch to `((image_hash, text_hash), labels)`.
    """
    columns: list[list[np.ndarray]] = [[], [], []]
    for inputs, is_own in _in_step(trainer, (inputs for inputs in dataloader if inputs)):
        (image_hash, text_hash), labels = predict(inputs)
        if not is_own:
            continue
        for column, values in zip(columns, (image_hash, text_hash, labels), strict=True):
            if values is not None:
                column.append(values.cpu().numpy())
        trainer.control = trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)
    own = [np.concatenate(column) if column else None for column in columns]
    everyones = gather_object([own]) if trainer.accelerator.num_processes > 1 else [own]
    image_hash, text_hash, labels = (
        np.concatenate(present) if (present := [values for values in column if values is not None]) else None
        for column in zip(*everyones, strict=True)
    )
    num_samples = 0 if image_hash is None else len(image_hash)
    codes: Any = (image_hash, text_hash)  # the hint of `predictions` is a tuple of one
    return EvalLoopOutput(predictions=codes, label_ids=labels, metrics={}, num_samples=num_samples)


def _in_step(trainer: Trainer, batches: Iterator[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bool]]:
    """The batches, each with True, or with False if it is repeated.

    Processes with sharded weights gather them in every step. A process without further batches therefore repeats its
    last one until all processes are done.
    """
    if not trainer.is_fsdp_enabled:
        yield from ((batch, True) for batch in batches)
        return
    last = None
    while True:
        batch = next(batches, None)
        running = trainer.accelerator.reduce(torch.tensor(int(batch is not None), device=trainer.args.device))
        if not running:
            return
        if batch is not None:
            last = batch
            yield batch, True
        elif last is not None:
            yield last, False
        else:
            raise DataError("A process has no pair of a stream to evaluate; take more data or fewer processes.")


class StreamPlaceCallback(TrainerCallback):
    """Moves a stream to the position at which a run resumes, so that earlier pairs are not read again."""

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        part = getattr(train_dataloader, "dataset", None)
        if not isinstance(part, StreamPart) or args.ignore_data_skip:
            return
        accumulated = args.gradient_accumulation_steps
        length = len(train_dataloader) if has_length(train_dataloader) else state.max_steps * accumulated
        epoch, updates = divmod(state.global_step, max(1, math.ceil(length / accumulated)))
        part.start_at(epoch, updates * accumulated)
