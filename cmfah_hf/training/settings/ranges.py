"""Ranges of the numbers in the settings of a run."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from cmfah_hf.errors import CMFAHError

Number = int | float
Range = tuple[Callable[[Number], bool], str]

COUNT: Range = (lambda value: value >= 1, "1 or more")
NOT_NEGATIVE: Range = (lambda value: value >= 0, "0 or more")
POSITIVE: Range = (lambda value: value > 0, "a number above 0")
SHARE: Range = (lambda value: 0 <= value < 1, "a share from 0 to below 1")
PART: Range = (lambda value: 0 < value < 1, "a share between 0 and 1")
# The range of seeds of NumPy's generator.
SEED: Range = (lambda value: 0 <= value < 2**32, f"a number from 0 to {2**32 - 1}")
STEPS_OR_NONE: Range = (lambda value: value == -1 or value >= 1, "1 or more, or -1 to count in epochs")

OF_DATA: dict[str, Range] = {
    "validation_fraction": PART,
    "database_fraction": PART,
    "validation_seed": SEED,
    "walk_length": (lambda value: value >= 1 and value % 2 == 1, "an odd number"),
    "top_k": NOT_NEGATIVE,
    "min_probability": (lambda value: 0 <= value <= 1, "a share from 0 to 1"),
    "knowledge_top_k": NOT_NEGATIVE,
    "knowledge_window": COUNT,
    "knowledge_min_pair_count": COUNT,
    "word_walks": NOT_NEGATIVE,
    "word_epochs": COUNT,
    "word_window": COUNT,
    "word_min_count": COUNT,
    "word_seed": SEED,
    "word_workers": COUNT,
}
OF_TRAINING: dict[str, Range] = {
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "num_train_epochs": POSITIVE,
    "max_steps": STEPS_OR_NONE,
    "learning_rate": NOT_NEGATIVE,
    "encoder_learning_rate": NOT_NEGATIVE,
    "discriminator_learning_rate": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": SHARE,
    "adam_beta2": SHARE,
    "adam_epsilon": POSITIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "label_smoothing_factor": SHARE,
    "neftune_noise_alpha": NOT_NEGATIVE,
    "torch_empty_cache_steps": COUNT,
    "logging_steps": POSITIVE,
    "eval_steps": POSITIVE,
    "eval_delay": NOT_NEGATIVE,
    "eval_accumulation_steps": COUNT,
    "save_steps": POSITIVE,
    "save_total_limit": COUNT,
    "seed": SEED,
    "data_seed": SEED,
    "dataloader_num_workers": NOT_NEGATIVE,
    "dataloader_prefetch_factor": COUNT,
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": COUNT,
    "paired_every": COUNT,
    "shuffle_buffer": NOT_NEGATIVE,
    "early_stopping_patience": COUNT,
}


def check_ranges(arguments: Any, ranges: Mapping[str, Range]) -> None:
    """Checks the numbers of a dataclass of settings by the ranges of its fields. Optional fields may be `None`.

    Raises:
        CMFAHError: If a number is outside its range, not finite, or not whole although it has to be.
    """
    hints = get_type_hints(type(arguments))
    for name in (field.name for field in fields(arguments)):
        value = getattr(arguments, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise CMFAHError(f"{name} is {value}; give a finite number.")
        if name not in ranges:
            continue
        kinds = get_args(hints[name]) or (hints[name],)
        if value is None and type(None) in kinds:
            continue
        is_allowed, allowed = ranges[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CMFAHError(f"{name} is {short(value)}; give {allowed}.")
        if float not in kinds and value != int(value):
            raise CMFAHError(f"{name} is {value}; give a whole number.")
        if not is_allowed(value):
            raise CMFAHError(f"{name} is {short(value)}; give {allowed}.")


def check_finite(name: str, value: Any) -> None:
    """Raises a `CMFAHError` if a setting is not finite or contains a number that is not."""
    if isinstance(value, float) and not math.isfinite(value):
        raise CMFAHError(f"{name} is {value}; give a finite number.")
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_finite(f"{name}, {short(key)}", item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_finite(name, item)


def short(value: Any) -> str:
    """The value or name of a setting for an error message, in one line; of mappings and lists only the type."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"  # Python refuses to print much longer ones
    plain = value is None or isinstance(value, (int, float, str))
    text = repr(value) if plain else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextmanager
def taken(settings: Any, *names: str) -> Iterator[None]:
    """Turns errors of a library about settings into a `CMFAHError` that names these."""
    try:
        yield
    except CMFAHError:
        raise
    except (TypeError, ValueError, KeyError) as error:
        given = " and ".join(f"{name}={short(getattr(settings, name))}" for name in names)
        reason = " ".join(str(error).split())[:200]
        raise CMFAHError(f"{given} cannot be used together ({reason}); correct them.") from error
