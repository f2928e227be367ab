"""Pairs of picture and text: loading, checking, splitting, preparing released data sets, and scenes drawn by code.

The names load on first use, so that importing this package does not import `datasets`.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "load_image_text": "cmfah_hf.data.loading",
    "resolve_data_path": "cmfah_hf.data.loading",
    "Matrices": "cmfah_hf.data.matrices.dataset",
    "open_matrices": "cmfah_hf.data.matrices.opening",
    "convert_matrices": "cmfah_hf.data.matrices.conversion",
    "inspect_pairs": "cmfah_hf.data.inspection.counting",
    "write_imagefolder": "cmfah_hf.data.imagefolder",
    "decode_image": "cmfah_hf.data.images",
    "drop_unreadable": "cmfah_hf.data.images",
    "to_rgb": "cmfah_hf.models.image_modes",
    "load_scenes": "cmfah_hf.data.scenes",
    "make_scenes": "cmfah_hf.data.scenes",
    "prepare_mirflickr25k": "cmfah_hf.data.releases.mirflickr",
    "prepare_nus_wide": "cmfah_hf.data.releases.nus_wide",
    "hash_split": "cmfah_hf.data.splits",
    "train_validation_split": "cmfah_hf.data.splits",
    "LabelCounts": "cmfah_hf.data.label_counts",
    "collect_classes": "cmfah_hf.data.labels",
    "encode_labels": "cmfah_hf.data.labels",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
