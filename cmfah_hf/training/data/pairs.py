"""Pairs of a run: loaded, checked, split into training and validation, expanded."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from cmfah_hf.data import collect_classes, load_image_text, train_validation_split
from cmfah_hf.data.images import drop_unreadable
from cmfah_hf.data.internals import Hasher, fingerprint_of
from cmfah_hf.data.label_counts import LabelCounts
from cmfah_hf.data.rows.columns import FEATURES, IMAGE_FEATURES, TEXT_FEATURES
from cmfah_hf.data.splits import hold_out_databases
from cmfah_hf.errors import DataError
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.models import CMFAHConfig, CMFAHImageModel, CMFAHProcessor
from cmfah_hf.training.backbone import backbone_weights, load_backbone_weights
from cmfah_hf.training.data.data_source import source_of
from cmfah_hf.training.data.kept_tables import kept_folder, kept_table
from cmfah_hf.training.data.region_cache import keep_regions
from cmfah_hf.training.data.shards import split_stream
from cmfah_hf.training.data.streaming import SpooledTexts, count_streams, open_streams, stream_regions
from cmfah_hf.training.data.streams import PairStream
from cmfah_hf.training.settings.arguments import DataArguments
from cmfah_hf.training.settings.configuration import Run

logger = logging.getLogger(__name__)


@dataclass
class Pairs:
    """The pairs of a run, map-style or as streams.

    Attributes:
        splits: `train` and `validation`, and if the data has them `query`, `database` and `validation_database`, the
            held-out database of the validation queries (`--protocol unseen`).
        stream_of_all: The pairs of training and validation together, if they are streams.
        classes: The classes of `train` and of `validation`.
        texts: The texts that the vocabulary is fitted on.
        together: The co-occurrences of labels in `train`, if the pairs are streams.
        backbone: The backbone that computed the regions, if they are kept.
        source: The origin of the data (`source_of`).
        feature_dims: The widths of `image_features`, if the data has these instead of images, and of `text_features`,
            if it has these and the model reads them: settings of the model by name.
        ids: The ids of the training split of the data, before it is divided, in their order, if they are not streams.
    """

    splits: dict[str, Any]
    stream_of_all: PairStream | None
    classes: dict[str, list[str]]
    texts: Iterable[Any]
    together: LabelCounts | None
    backbone: torch.nn.Module | None
    source: dict[str, str | None] = field(default_factory=dict)
    feature_dims: dict[str, int] = field(default_factory=dict)
    ids: Sequence[str] = ()

    @property
    def all(self) -> Any:
        """The pairs of training and validation together, including the database of the validation queries."""
        if self.stream_of_all is not None:
            return self.stream_of_all
        parts = ("train", "validation", "validation_database")
        return datasets.concatenate_datasets([self.splits[name] for name in parts if name in self.splits])

    def settings_of(self, run: Run) -> Run:
        """The run with the settings of its model that the data determines."""
        return replace(run, model={**run.model, **self.feature_dims})

    @property
    def in_order(self) -> Any:
        """As `all`, in the order of the data, by which stable rankings order ties."""
        pairs = self.all
        if not self.ids:
            return pairs
        place = {name: number for number, name in enumerate(self.ids)}
        return pairs.select(np.argsort([place.get(name, len(place)) for name in pairs["id"]], kind="stable"))

    @property
    def is_stream(self) -> bool:
        return self.stream_of_all is not None

    @property
    def label_counts(self) -> LabelCounts:
        """The co-occurrences of labels in the training pairs, `[label-graph]`."""
        return LabelCounts.of(self.splits["train"]) if self.together is None else self.together

    @property
    def labeled_texts(self) -> Iterable[Any]:
        """As `texts`, in rows with `text` and, if the pairs have them, `labels`."""
        return SpooledTexts(self.texts.path, labeled=True) if isinstance(self.texts, SpooledTexts) else self.texts

    def expanded(self, expander: GraphExpander) -> "Pairs":
        """The pairs with a column of expanded texts, `[graph]`."""
        if self.stream_of_all is not None:
            splits = {name: pairs.map(expander, batched=True) for name, pairs in self.splits.items()}
            return replace(self, splits=splits, stream_of_all=self.stream_of_all.map(expander, batched=True))
        return replace(self, splits={name: _expanded(pairs, expander) for name, pairs in self.splits.items()})


def _expanded(pairs: datasets.Dataset, expander: GraphExpander) -> datasets.Dataset:
    features = datasets.Features({expander.output_column: datasets.Value("string")})

    def make(file: Path) -> None:
        pairs.select_columns(["text"]).with_format(None).map(
            expander,
            cache_file_name=str(file),
            load_from_cache_file=False,
            batched=True,
            remove_columns=["text"],
            features=features,
            desc="Expansion",
        )

    folder = kept_folder("expanded", f"{fingerprint_of(pairs)} {Hasher.hash(expander)}")
    column = kept_table(folder, features, len(pairs), make)
    layout = pairs.format
    joined = datasets.concatenate_datasets([pairs.with_format(None), column], axis=1)
    if layout["type"] is None:
        return joined
    return joined.with_format(layout["type"], layout["columns"], output_all_columns=True, **layout["format_kwargs"])


def read_pairs(run: Run, output: Path) -> Pairs:
    """The pairs of a run without unreadable images, with regions instead of images if these are kept.

    Raises:
        DataError: If the data lacks labels, images or a split that the run needs.
    """
    data, config = run.data, run.model_config()
    _check_method(run, config)
    loaded: Any = open_streams(data) if data.streaming else load_image_text(data.dataset, **data.columns)
    source = source_of(data.dataset, loaded) if run.training.should_save else {}
    if data.database_split == "database" and "database" not in loaded:
        data = replace(data, database_split=None)
    _check(data, loaded)
    wanted = {data.train_split, data.validation_split, data.query_split, data.database_split}
    loaded = {name: pairs for name, pairs in loaded.items() if name in wanted}
    feature_dims = _feature_dims(data, config, loaded[data.train_split])
    has_images = "image_feature_dim" not in feature_dims
    # Before the regions are computed, which may take hours.
    if has_images and config.freeze_backbone and not backbone_weights(data, config):
        logger.warning(
            "The image backbone is frozen with weights drawn at random; give --backbone_weights, or "
            "--freeze_backbone false."
        )
    tower = _region_tower(run, config) if has_images and config.freeze_backbone and data.keep_regions else None
    backbone = tower[0].embeddings.backbone if tower is not None else None
    if data.streaming:
        if tower is not None:
            loaded = stream_regions(run, loaded, *tower)
        whole = None if data.validation_split is not None else loaded[data.train_split]
        streams = count_streams(run, _cut(data, loaded, split_stream), whole, tower is not None, output)
        return Pairs(*streams, backbone, source, feature_dims)
    with run.training.main_process_first(local=run.training.save_on_each_node, desc="images"):
        loaded = {name: _readable(data, name, pairs, tower) for name, pairs in loaded.items()}
        splits = _cut(data, loaded, train_validation_split)
    if data.similarity == "labels":
        classes = {"train": collect_classes(splits["train"])}
    else:
        classes = {name: _labels_of(splits[name]) for name in ("train", "validation")}
    train = loaded[data.train_split]
    ids = list(train["id"]) if "id" in train.column_names else []
    return Pairs(splits, None, classes, splits["train"], None, backbone, source, feature_dims, ids)


def _region_tower(run: Run, config: CMFAHConfig) -> tuple[CMFAHImageModel, CMFAHProcessor]:
    """An image tower with the backbone's weights, and its processor."""
    image_model = CMFAHImageModel(config).to(run.training.device)
    if weights := backbone_weights(run.data, config):
        load_backbone_weights(image_model, weights)
    if config.dual_encoder_config is not None:
        return image_model, CMFAHProcessor.from_backbones(config)
    return image_model, CMFAHProcessor.from_vocabulary(config, [], run.data.image_mean, run.data.image_std)


def _readable(
    data: DataArguments, name: str, pairs: datasets.Dataset, tower: tuple[CMFAHImageModel, CMFAHProcessor] | None
) -> datasets.Dataset:
    """A split without unreadable images, with regions instead if a tower is given."""
    if "image" not in pairs.column_names:
        return as_arrays(pairs)
    if tower is None:
        return drop_unreadable(pairs)
    is_mirrored = data.mirror and name in (data.train_split, data.validation_split)
    return keep_regions(pairs, *tower, is_mirrored).remove_columns("image")


def as_arrays(pairs: datasets.Dataset) -> datasets.Dataset:
    """A data set whose `image_features` and `text_features` are read as arrays instead of lists."""
    columns = [name for name in FEATURES if name in pairs.column_names]
    return pairs.with_format("numpy", columns=columns, output_all_columns=True)


def _feature_dims(data: DataArguments, config: CMFAHConfig, train: Any) -> dict[str, int]:
    """The widths of the given features that a model reads, as its settings.

    Raises:
        DataError: If there are neither images nor features of images, or features are empty.
    """
    read = {} if "image" in train.column_names else {"image_feature_dim": IMAGE_FEATURES}
    if read and IMAGE_FEATURES not in train.column_names:
        raise DataError(f"{data.dataset}: there are neither images nor features of images; add either.")
    if hasattr(config, "text_feature_dim") and TEXT_FEATURES in train.column_names:
        read["text_feature_dim"] = TEXT_FEATURES
    if not read:
        return {}
    first: dict[str, Any] = next(iter(train.select_columns(list(read.values())).take(1)), {})
    for column in read.values():
        if not len(first.get(column, ())):
            raise DataError(f"{data.dataset}: {column} is empty; give a number or more for each item.")
    return {setting: len(first[column]) for setting, column in read.items()}


def _labels_of(pairs: datasets.Dataset) -> list[str]:
    if "labels" not in pairs.column_names:
        return []
    return sorted({name for names in pairs["labels"] for name in names or ()})


# Settings that need labels, what they build of them, and their value without.
_OF_LABELS = (
    ("use_label_graph", "label graph", "false"),
    ("queue_size", "queue", "0"),
    ("proxy_weight", "proxies", "0"),
)


def _check_method(run: Run, config: CMFAHConfig) -> None:
    """Rejects terms of labels, of vectors or of the codes of all pairs in a run that does not have these."""
    similarity = run.data.similarity
    if similarity == "embeddings" and config.dual_encoder_config is None:
        raise DataError(
            "--similarity embeddings compares the vectors of a dual encoder; give --dual_encoder, or another "
            "similarity."
        )
    if run.setting("code_buffer_weight") and (run.data.streaming or run.training.codes_update != "epoch"):
        raise DataError(
            "code_buffer_weight compares with the codes of all training pairs, which streams and --codes_update batch "
            "do not keep; give --streaming false --codes_update epoch, or --code_buffer_weight 0."
        )
    uses = run.objective_class.labels
    if uses == "needs" and similarity != "labels":
        raise DataError(f"{run.method} is supervised and needs labels; give --similarity labels.")
    if uses == "refuses" and similarity == "labels":
        raise DataError(f"{run.method} is unsupervised and uses no labels; give --similarity pairs.")
    for name, what, off in _OF_LABELS:
        if similarity != "labels" and run.setting(name):
            raise DataError(
                f"{run.method} builds its {what} from labels, which --similarity {similarity} does not use; give "
                f"--similarity labels, or --{name} {off}."
            )


def _check(data: DataArguments, loaded: Mapping[str, Any]) -> None:
    """Rejects data without the required splits or labels, before the backbone reads images, which may take hours."""
    for name in (data.train_split, data.validation_split, data.database_split):
        if name is not None and name not in loaded:
            raise DataError(f"{data.dataset}: there is no split {name!r}; there are {', '.join(loaded)}.")
    if data.similarity == "labels" and "labels" not in loaded[data.train_split].column_names:
        raise DataError(
            f"{data.dataset}: the split {data.train_split!r} has no labels, which guide the training; add them, or "
            "give --similarity tags or --similarity pairs, which need none."
        )


def _cut(data: DataArguments, loaded: Mapping[str, Any], divide: Callable) -> dict[str, Any]:
    """The splits by role: `train`, `validation`, and if the data has them `query` and `database`.

    With `--protocol unseen`, `database` and `validation_database` hold no training pairs.
    """
    splits = {"train": loaded[data.train_split]}
    if data.protocol == "unseen":
        database = loaded[data.database_split] if data.database_split is not None else None
        splits = hold_out_databases(splits["train"], database, data.database_fraction, data.validation_seed)
    if data.validation_split is not None:
        splits["validation"] = loaded[data.validation_split]
    else:
        splits["train"], splits["validation"] = divide(
            splits["train"], data.validation_fraction, seed=data.validation_seed
        )
    if data.query_split is not None and data.query_split in loaded:
        splits["query"] = loaded[data.query_split]
    elif data.query_split is not None:
        logger.warning(
            "%s: there is no split %r, so no test queries are measured; there are %s.",
            data.dataset,
            data.query_split,
            ", ".join(loaded),
        )
    if data.database_split is not None and data.protocol == "seen":
        splits["database"] = loaded[data.database_split]
    return splits
