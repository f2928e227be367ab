"""A pass over all training pairs with the towers in evaluation mode, for the tables of an objective."""

from collections.abc import Iterator
from typing import Any

import torch

from cmfah_hf.methods.base import EncodedBatch


def encode_training_pairs(trainer: Any) -> Iterator[EncodedBatch]:
    """All training pairs once, in batches, in the order of their numbered rows; `TrainingState.encode`."""
    model, was_training = trainer.pretraining, trainer.pretraining.training
    model.eval()
    try:
        for inputs in trainer.training_pairs_loader():
            inputs = trainer._prepare_inputs(inputs)
            rows, labels = inputs.pop("row"), inputs.pop("labels")
            with torch.no_grad(), trainer.compute_loss_context_manager():
                # Sharded weights are gathered only in the `forward` of the whole model.
                outputs = (trainer.model if trainer.is_fsdp_enabled else model.cmfah)(**inputs)
            image, text = outputs.image_model_output, outputs.text_model_output
            found = [image.hash_values, text.hash_values, image.hash_logits, text.hash_logits]
            found += [
                image.hash_values.new_zeros(len(rows), 0) if each is None else each
                for each in (outputs.image_vectors, outputs.text_vectors)
            ]
            gathered = trainer.accelerator.gather_for_metrics((rows, labels, *(each.float() for each in found)))
            rows, labels, image_BK, text_BK, *others = (tensor.cpu() for tensor in gathered)
            yield EncodedBatch(rows, image_BK, text_BK, labels, *others)
    finally:
        model.train(was_training)
