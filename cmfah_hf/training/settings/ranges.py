"""Ranges of the numbers in the settings of a run."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from cmfah_hf.errors import CMFAHError
from cmfah_hf.ranges import COUNT, NOT_NEGATIVE, PART, POSITIVE, SHARE, SHARE_OR_ALL, Range

# The range of seeds of NumPy's generator.
SEED: Range = (lambda value: 0 <= value < 2**32, f"a number from 0 to {2**32 - 1}")
STEPS_OR_NONE: Range = (lambda value: value == -1 or value >= 1, "1 or more, or -1 to count in epochs")

OF_DATA: dict[str, Range] = {
    **dict.fromkeys(("validation_fraction", "database_fraction"), PART),
    **dict.fromkeys(("validation_seed", "word_seed"), SEED),
    **dict.fromkeys(("top_k", "knowledge_top_k", "word_walks"), NOT_NEGATIVE),
    **dict.fromkeys(("knowledge_window", "knowledge_min_pair_count"), COUNT),
    **dict.fromkeys(("word_epochs", "word_window", "word_min_count", "word_workers"), COUNT),
    "walk_length": (lambda value: value >= 1 and value % 2 == 1, "an odd number"),
    "min_probability": SHARE_OR_ALL,
}
OF_TRAINING: dict[str, Range] = {
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), COUNT),
    **dict.fromkeys(("gradient_accumulation_steps", "eval_accumulation_steps", "paired_every"), COUNT),
    **dict.fromkeys(("save_total_limit", "early_stopping_patience", "torch_empty_cache_steps"), COUNT),
    **dict.fromkeys(("dataloader_prefetch_factor", "ddp_bucket_cap_mb", "ddp_timeout"), COUNT),
    **dict.fromkeys(("learning_rate", "encoder_learning_rate", "discriminator_learning_rate"), NOT_NEGATIVE),
    **dict.fromkeys(("warmup_steps", "weight_decay", "max_grad_norm", "neftune_noise_alpha"), NOT_NEGATIVE),
    **dict.fromkeys(("eval_delay", "dataloader_num_workers", "shuffle_buffer"), NOT_NEGATIVE),
    **dict.fromkeys(("num_train_epochs", "adam_epsilon", "logging_steps", "eval_steps", "save_steps"), POSITIVE),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), SHARE),
    **dict.fromkeys(("seed", "data_seed"), SEED),
    "max_steps": STEPS_OR_NONE,
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
