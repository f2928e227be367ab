"""How `CMFAHTrainer` reads streams: loaders over a process's own part, their evaluation, going on after a break."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, has_length

from cmfah_hf.data.streams import PairStream, StreamPart, count_rows, without_gaps
from cmfah_hf.errors import DataError


def as_training_stream(dataset: Any, args: TrainingArguments) -> Any:
    """A stream ready to be trained on; whatever is no stream as it is.

    Its rows are counted, in a pass of their own, unless `max_steps` says how long to train: without a count there are
    no epochs. A `PairStream` brings its own counts, or none.
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
    """A `datasets` stream as a `PairStream`; whatever is no stream as it is."""
    return PairStream(dataset) if isinstance(dataset, datasets.IterableDataset) else dataset


def stream_loader(trainer: Trainer, stream: PairStream, training: bool) -> DataLoaderShard:
    """The loader of this process's part of a stream.

    Made here and not by `Accelerator.prepare`, under which either the first process reads for all, or each reads
    everything and throws the others' rows away.
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
        collate_fn=without_gaps(trainer.task.collator if training else trainer.task.measuring_collator),
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers and training,
        prefetch_factor=args.dataloader_prefetch_factor,
    )


def predict_stream(
    trainer: Trainer, dataloader: DataLoaderShard, predict: Callable[[dict[str, Any]], tuple[tuple, Any]]
) -> EvalLoopOutput:
    """What `predict` gives for every pair of a stream, of all processes together.

    Each process reads its own part to its end, and only then do they meet: parts need not be equally long, no pair is
    counted twice, and nothing but hash values and labels is held.

    Args:
        trainer: Whose callbacks hear of each batch.
        dataloader: As `stream_loader` gives it.
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
    return EvalLoopOutput(predictions=(image_hash, text_hash), label_ids=labels, metrics={}, num_samples=num_samples)


def _in_step(trainer: Trainer, batches: Iterator[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bool]]:
    """The batches, and that they are a process's own.

    Weights that are spread over processes come together in every step, so there a process that has come to its end
    goes through its last batch again until all have.
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
        if batch is None and last is None:
            raise DataError("A process has no pair of a stream to evaluate; take more data or fewer processes.")
        yield (last, False) if batch is None else (batch, True)
        last = last if batch is None else batch


class StreamPlaceCallback(TrainerCallback):
    """Tells a stream, before a run goes on, where it was: what was trained on need not be read again."""

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        part = getattr(train_dataloader, "dataset", None)
        if not isinstance(part, StreamPart) or args.ignore_data_skip:
            return
        accumulated = args.gradient_accumulation_steps
        length = len(train_dataloader) if has_length(train_dataloader) else state.max_steps * accumulated
        epoch, updates = divmod(state.global_step, max(1, math.ceil(length / accumulated)))
        part.start_at(epoch, updates * accumulated)
