"""Features of a run's images and texts, for references that no network is trained for.

Shapes: `N` items, `D` features, `C` classes, `B` texts of a batch, `W` tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmfah_hf.data import encode_labels
from cmfah_hf.data.rows.columns import IMAGE_FEATURES, TEXT_FEATURES
from cmfah_hf.errors import CMFAHError, DataError
from cmfah_hf.models import CMFAHConfig, CMFAHProcessor, CMFAHTextModel
from cmfah_hf.training.backbone import load_text_backbone_weights
from cmfah_hf.training.data.kept_tables import REGION_COLUMNS
from cmfah_hf.training.preparation import read_pairs
from cmfah_hf.training.settings.configuration import Run

REGIONS, MIRRORED = REGION_COLUMNS
_TEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class Items:
    """Features `(N, D)` by modality, labels `(N, C)` bool, and features `(N, D)` of the mirror images, if any.

    Mirror images are used only for training.
    """

    features: Mapping[str, Any]
    labels: np.ndarray
    mirrored: np.ndarray | None = None

    def samples(self, modality: str) -> tuple[Any, np.ndarray]:
        """Training features and labels of a modality. Those of images are followed by those of their mirror images."""
        if modality != "image" or self.mirrored is None:
            return self.features[modality], self.labels
        return np.concatenate([self.features[modality], self.mirrored]), np.concatenate([self.labels] * 2)


def items_of_run(run: Run, output: Path) -> dict[str, Items]:
    """The items of a run's splits, and of all training pairs as `all`.

    Args:
        run: A run with a frozen image backbone or given features; only its data and backbones are used.
        output: A folder for files that reading the data creates.

    Raises:
        DataError: If the backbone is not frozen, or a split has no labels.
        CMFAHError: If scikit-learn is needed and not installed.
    """
    pairs = read_pairs(run, output)
    columns = pairs.splits["train"].column_names
    if not {REGIONS, IMAGE_FEATURES} & set(columns) or "query" not in pairs.splits:
        raise DataError("A reference needs a frozen backbone with --keep_regions true, and a query split.")
    config = run.model_config()
    features = partial(mean_tokens, config) if config.text_backbone_config is not None else None
    return read_items({**pairs.splits, "all": pairs.all}, pairs.splits["train"], features)


def read_items(
    splits: Mapping[str, Any], train: Any, text_features: Callable[[Sequence[str]], Any] | None = None
) -> dict[str, Items]:
    """Features and labels of data sets with `text` and `labels`.

    Features of images are `image_features`, or the normalized mean of `region_features` (and of the regions of mirror
    images, where `--mirror true` keeps them); features of texts are `text_features` of the data, or what is computed of
    `text`.

    Args:
        splits: The data sets.
        train: The pairs with the classes and the words.
        text_features: Features `(N, D)` of texts. None: words of `train` that occur in at least two texts, binary.

    Raises:
        CMFAHError: If scikit-learn is needed for the words and not installed.
    """
    compute = None if TEXT_FEATURES in train.column_names else text_features or _words(train["text"])
    classes = sorted({label for labels in train["labels"] for label in labels})
    items = {}
    for name, rows in splits.items():
        texts = _column(rows, TEXT_FEATURES) if compute is None else compute(list(rows["text"]))
        features = {"image": _image_features(rows), "text": texts}
        mirrored = _mean_regions(rows, MIRRORED) if MIRRORED in rows.column_names else None
        items[name] = Items(features, encode_labels(rows["labels"], classes) > 0, mirrored)
    return items


def _words(texts: Sequence[str]) -> Callable[[Sequence[str]], Any]:
    try:
        from sklearn.feature_extraction.text import CountVectorizer
    except ImportError as error:
        raise CMFAHError('A reference on words needs scikit-learn: pip install "cmfah-hf[experiments]".') from error
    return CountVectorizer(binary=True, min_df=2, stop_words="english").fit(texts).transform


def _column(rows: Any, name: str) -> np.ndarray:
    return np.asarray(rows.with_format(None)[name][:], dtype=np.float32)


def _image_features(rows: Any) -> np.ndarray:
    if IMAGE_FEATURES in rows.column_names:
        return _column(rows, IMAGE_FEATURES)
    return _mean_regions(rows, REGIONS)


def _mean_regions(rows: Any, column: str) -> np.ndarray:
    means = [
        np.asarray(batch[column], dtype=np.float32).mean(axis=1)
        for batch in rows.select_columns([column]).iter(batch_size=256)
    ]
    return of_length_one(np.concatenate(means))


@torch.no_grad()
def mean_tokens(config: CMFAHConfig, texts: Sequence[str]) -> np.ndarray:
    """The means of the tokens of texts, `(N, D)` of length 1, by the text backbone of a configuration."""
    text_model, processor = CMFAHTextModel(config).eval(), CMFAHProcessor.from_backbones(config)
    load_text_backbone_weights(text_model)
    means = []
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        inputs = processor(text=list(texts[start : start + _TEXTS_AT_ONCE]), return_tensors="pt")
        tokens_BWD, mask_BW = text_model.embeddings.extract_tokens(inputs["input_ids"], inputs["attention_mask"])
        counts_B1 = mask_BW.sum(dim=1, keepdim=True).clamp(min=1)
        means.append(((tokens_BWD * mask_BW[..., None]).sum(dim=1) / counts_B1).float().numpy())
    return of_length_one(np.concatenate(means))


def of_length_one(x_ND: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, except for zero rows."""
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), 1e-12)
