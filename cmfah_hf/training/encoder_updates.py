"""Encoders in fine-tuning: adapters, and groups of the optimizer with a learning rate of their own."""

from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from cmfah_hf.errors import CMFAHError
from cmfah_hf.models.adapters import adapt_encoders


def train_adapters(model: nn.Module, rank: int | None, args: TrainingArguments) -> None:
    """Adds adapters to the encoders of a new model; None adds none.

    Raises:
        CMFAHError: With FSDP, without peft, or if an encoder has no linear layers.
    """
    if rank is None:
        return
    if args.fsdp:
        raise CMFAHError("lora_rank is not supported with fsdp; leave out one of them.")
    try:
        adapt_encoders(model, rank)
    except ValueError as error:
        raise CMFAHError(str(error)) from error


def separate_encoders(optimizer: torch.optim.Optimizer, model: Any, learning_rate: float | None) -> None:
    """Moves the parameters of the encoders from each group of a new optimizer to a group with a rate of their own.

    The other settings of a group, such as its weight decay, stay. A schedule scales all rates by the same factor.

    Args:
        optimizer: Without any step.
        model: The model, whose encoders are its modules `embeddings.backbone`.
        learning_rate: Of the encoders. None: that of their groups.

    Raises:
        CMFAHError: If no parameter of an encoder is trained.
    """
    if learning_rate is None:
        return
    of_encoders = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if ".embeddings.backbone." in name and parameter.requires_grad
    }
    if not of_encoders:
        raise CMFAHError(
            "encoder_learning_rate is given, and no encoder is trained; give --freeze_backbone false or "
            "--freeze_text_backbone false, or no encoder_learning_rate."
        )
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in of_encoders]
        if moved:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in of_encoders]
            settings = {name: value for name, value in group.items() if name not in ("params", "param_names")}
            optimizer.add_param_group({**settings, "params": moved, "lr": learning_rate})
