"""Arguments of the data and the training of a run."""

import os
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from cmfah_hf.data.rows.columns import CAPTIONS
from cmfah_hf.data.similarity import SIMILARITIES
from cmfah_hf.documents import parse_json, read_json
from cmfah_hf.errors import CMFAHError
from cmfah_hf.evaluation import DEFAULT_METRICS, METRICS
from cmfah_hf.expansion.word_splitters import TOKENIZERS
from cmfah_hf.models.similar_words import UNKNOWN_WORDS
from cmfah_hf.models.word_rules import SEGMENTERS
from cmfah_hf.training.settings.ranges import OF_DATA, OF_TRAINING, check_finite, check_ranges

# Figures of an evaluation of the validation pairs, `CMFAHTrainer.evaluation_loop`.
VALIDATION_METRICS = ("map", "map_i2t", "map_t2i", "map_random")
# An optimizer of PyTorch that `transformers` does not offer.
ADAMAX = "adamax"
# The database of the queries: it includes the training pairs, or only pairs that are not trained on.
PROTOCOLS = ("seen", "unseen")

T = TypeVar("T")


def _argument(default: T, help: str) -> T:
    """A field with a help text, as `HfArgumentParser` reads it."""
    return field(default=default, metadata={"help": help})


@dataclass
class DataArguments:
    """Arguments of the pairs to train on, and of their preparation before the first step."""

    dataset: str = _argument(
        "scenes",
        "A folder of images with metadata, Parquet, matrices, a Hub id, or 'scenes', drawn by code. A relative path "
        "that does not exist is looked up below the environment variable CMFAH_DATA.",
    )
    train_split: str = _argument("train", "The split to train on.")
    query_split: str | None = _argument("query", "The split of the test queries, which are measured once, at the end.")
    database_split: str | None = _argument(
        "database",
        "The split that is searched. None, or if the data has no split 'database': the training pairs, validation "
        "included.",
    )
    protocol: str = _argument(
        "seen",
        "'seen': the database includes the training pairs, as in the literature. 'unseen': the databases of the test "
        "queries and of the validation queries are not trained on.",
    )
    metrics: list[str] = field(
        default_factory=lambda: list(DEFAULT_METRICS),
        metadata={"help": "The metrics of the test queries, as RetrievalEvaluator takes them, such as map_stable."},
    )
    database_fraction: float = _argument(
        0.2,
        "Share of the training pairs that --protocol unseen holds out as the database of the validation queries, and "
        "once more as that of the test queries if the data has no split for it.",
    )
    validation_split: str | None = _argument(
        None, "The split that chooses the best epoch. None: a part of the training pairs."
    )
    validation_fraction: float = _argument(
        0.1, "Share of the training pairs that is held out to choose the best epoch."
    )
    validation_seed: int = _argument(
        0, "Seed of the held-out pairs, independent of `seed`: all seeds hold out the same pairs."
    )
    refit: bool = _argument(
        False,
        "After the validation pairs have chosen the epoch, train a second model on all pairs, validation included, up"
        " to that epoch.",
    )
    image_column: str | None = _argument(None, "The column of images. None: found by name.")
    text_column: str | None = _argument(None, "The column of texts. None: found by name.")
    labels_column: str | None = _argument(None, "The column of labels. None: found by name.")
    captions: str = _argument(
        "auto",
        "What lists of texts are: 'several' captions of an image, one text that is 'joined', or by their first rows, "
        "'auto'.",
    )
    similarity: str = _argument(
        "labels",
        "Similar pairs: those that share 'labels'; those whose 'tags', the words of their expanded texts, overlap; "
        "with 'pairs', only the image and the text of the same pair; with 'embeddings', in addition, as much as the "
        "vectors of a dual encoder, [distillation].",
    )
    backbone_weights: str | None = _argument(
        None,
        "Weights of the image backbone: a safetensors file, a folder or Hub id with one, or 'torchvision' for its "
        "published ones. None: random, or those of a backbone given by Hub id.",
    )
    image_mean: list[float] | None = field(
        default=None, metadata={"help": "Mean of red, green, blue in 0..1. None: that of the backbone."}
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "Standard deviation of red, green, blue in 0..1. None: that of the backbone."}
    )
    trust_remote_code: bool = _argument(
        False, "Let code of the encoder's own on the Hub run. Read it first: it can do whatever the user can."
    )
    keep_regions: bool = _argument(
        True, "Compute the regions of a frozen backbone once and keep them, float16, on disk."
    )
    keep_tokens: bool = _argument(
        True,
        "Compute the tokens of a frozen text encoder once and keep them, float16, on disk, up to 4 GiB. Not with "
        "--streaming.",
    )
    fit_head: bool = _argument(
        True, "With a dual encoder: begin at the code that `cmfah compress` would choose for these pairs."
    )
    link: bool = _argument(
        True,
        "Name a frozen dual encoder of the Hub by its commit in the model, as `cmfah compress --link`; false: save its "
        "weights.",
    )
    mirror: bool = _argument(False, "Keep the regions of mirrored training images too, and train on both.")
    expand: bool = _argument(
        False,
        "Expand texts over the image-word graph, [graph]. It does not improve the measured figures "
        "(docs/expansion.md).",
    )
    streaming: bool = _argument(
        False,
        "Read the pairs as a stream, for data larger than memory or disk. Images are read once or in every epoch "
        "(keep_regions), texts and labels in one pass before.",
    )
    walk_length: int = _argument(5, "Length of a walk on the image-word graph, an odd number.")
    top_k: int = _argument(10, "Maximum words that the graph adds to a text.")
    min_probability: float = _argument(0.01, "Minimum share of a walk for an added word.")
    word_tokenizer: str = _argument(
        "words",
        "Words of the graph and the knowledge: 'words'; or split by a dictionary: 'chinese', or 'icu', which also "
        "splits Thai, Lao, Khmer, Burmese and Japanese.",
    )
    knowledge: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Articles whose related words the expansion adds, [knowledge]: MediaWiki dumps, .jsonl or .parquet "
            "with a column 'text', .txt, or a data set on the Hub, owner/name:configuration, which is streamed."
        },
    )
    knowledge_top_k: int = _argument(10, "Maximum words that the knowledge adds to a text, after those of the graph.")
    knowledge_window: int = _argument(5, "Maximum distance of two related words in an article, in words.")
    knowledge_min_pair_count: int = _argument(2, "Minimum co-occurrences for two words to count as related.")
    knowledge_within_vocabulary: bool = _argument(True, "Whether the knowledge adds only words of the training texts.")
    word_corpus: list[str] = field(
        default_factory=list,
        metadata={"help": "Further texts for the word vectors: .jsonl or .parquet with a column 'text', or .txt."},
    )
    words_from: str | None = _argument(None, "Folder of an earlier run whose word graph and vectors are used.")
    word_walks: int = _argument(10, "Walks from each image, as sentences for the word vectors.")
    word_epochs: int = _argument(5, "Passes of skip-gram over its corpus, [skip-gram].")
    word_window: int = _argument(5, "Words on each side that skip-gram predicts.")
    word_min_count: int = _argument(1, "Minimum occurrences of a word for a vector.")
    word_seed: int = _argument(0, "Seed of skip-gram: vectors, windows, sampling.")
    word_segmenter: str = _argument(
        "auto",
        "Word boundaries in Thai, Lao, Khmer, Burmese and Japanese: those of 'icu' (extra 'languages'), 'none', or "
        "'auto': of ICU if it is installed and the training texts have these scripts.",
    )
    word_folding: bool = _argument(
        True,
        "Read Arabic and Hebrew without their marks, with one form of each letter, if the training texts have them.",
    )
    word_unknown: str = _argument(
        "ignore",
        "Words outside the vocabulary: 'ignore' them, or read them as 'similar' known words: the parts of a compound, "
        "or a word that is spelled alike.",
    )
    word_labels: bool = _argument(True, "Give the words of all class names a vector, also those that no text has.")
    word_workers: int = _argument(1, "Threads of skip-gram. With more than one, vectors differ from run to run.")

    @property
    def columns(self) -> dict[str, Any]:
        """The columns and the kind of texts, as `load_image_text` takes them."""
        return {name: getattr(self, name) for name in ("image_column", "text_column", "labels_column", "captions")}

    def __post_init__(self):
        check_ranges(self, OF_DATA)
        if not self.dataset.strip():
            raise CMFAHError("dataset is empty; give a folder, a Hub id or 'scenes'.")
        choices_of = {
            "similarity": SIMILARITIES,
            "word_tokenizer": TOKENIZERS,
            "word_segmenter": ("auto", *SEGMENTERS),
            "word_unknown": UNKNOWN_WORDS,
            "protocol": PROTOCOLS,
            "captions": CAPTIONS,
        }
        for name, choices in choices_of.items():
            if getattr(self, name) not in choices:
                raise CMFAHError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")
        if not self.metrics or not set(self.metrics) <= set(METRICS):
            raise CMFAHError(f"metrics is {self.metrics}; choose some of {', '.join(METRICS)}.")
        for name in ("image_mean", "image_std"):
            check_finite(name, values := getattr(self, name))
            if values is not None and (len(values) != 3 or (name == "image_std" and min(values) <= 0)):
                what = "three numbers" if name == "image_mean" else "three numbers above 0"
                raise CMFAHError(f"{name} is {values}; give {what}, for red, green and blue.")
        if self.streaming and self.protocol == "unseen":
            raise CMFAHError(
                "protocol 'unseen' divides the training pairs by their number, which a stream does not have; give "
                "--streaming false, or --protocol seen."
            )
        if self.knowledge and not self.expand:
            raise CMFAHError(
                "knowledge adds words in the expansion, which is off; give --expand true, or no knowledge."
            )


@dataclass(repr=False)  # the parent's does not show the token of the Hub
class CMFAHTrainingArguments(TrainingArguments):
    """The arguments of `CMFAHTrainer`.

    Defaults that differ from the parent's: optimizers, batch and epochs of the paper; evaluation, checkpoints and logs
    for a run whose best epoch is chosen on validation pairs.
    """

    output_dir: str = _argument("cmfah-model", "Folder for the model, its processor and its vocabulary.")
    optim: str = _argument(
        "sgd", "Optimizer of the towers and of the discriminators: one of transformers', or 'adamax'."
    )
    learning_rate: float = _argument(7e-4, "Learning rate of the towers.")
    encoder_learning_rate: float | None = _argument(
        None,
        "Learning rate of encoders that are trained (--freeze_backbone false), with the schedule of the rest; about "
        "2e-6 for a CLIP. None: learning_rate.",
    )
    discriminator_learning_rate: float = _argument(
        8e-4, "Learning rate of the discriminators, with the schedule of the towers."
    )
    per_device_train_batch_size: int = _argument(128, "Pairs in a batch.")
    per_device_eval_batch_size: int = _argument(128, "Pairs in a batch of an evaluation.")
    num_train_epochs: float = _argument(150.0, "Passes over the training pairs.")
    codes_update: str = _argument(
        "epoch", "When B of [algorithm-1] is computed: after each 'epoch', or for each 'batch'."
    )
    paired_every: int = _argument(
        1, "Train on the cross-modal view in every n-th update; the other updates take less time."
    )
    shuffle_buffer: int = _argument(
        1000, "Pairs of a stream that are shuffled together, in addition to the order of its shards. 0: neither."
    )
    early_stopping_patience: int | None = _argument(
        None, "Stop after this number of evaluations without a better model. None: never."
    )
    eval_strategy: str = _argument("epoch", "When to evaluate on the validation split.")
    save_strategy: str = _argument("epoch", "When to save a checkpoint.")
    save_total_limit: int | None = _argument(2, "Checkpoints to keep: the best and the last.")
    load_best_model_at_end: bool = _argument(True, "Whether to end with the best model.")
    metric_for_best_model: str | None = _argument(
        "map", "Figure that chooses the best model: 'map' is the mean of both directions, in the unimodal view."
    )
    greater_is_better: bool | None = _argument(True, "Whether a larger figure is better.")
    logging_strategy: str = _argument("epoch", "When to log the terms of the loss.")
    remove_unused_columns: bool = _argument(False, "Kept off: the collator chooses its columns.")
    ddp_find_unused_parameters: bool | None = _argument(
        False, "Kept off: the losses read the label layer after `forward`, so it would count as unused."
    )
    hub_strategy: str = _argument(
        "end", "Kept at 'end': only the finished model goes to the Hub, since checkpoints hold pickles."
    )
    report_to: None | str | list[str] = field(  # noqa: RUF036 - the order that the argument parser reads
        default="none", metadata={"help": "Where to send logs."}
    )

    def __post_init__(self):
        # Without an accelerator, accelerate joins several processes only if the CPU is asked for.
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available():
            self.use_cpu = True
        check_ranges(self, OF_TRAINING)
        for name in self._VALID_DICT_FIELDS:
            setattr(self, name, _mapping(name, getattr(self, name)))
        optim = self.optim
        if optim == ADAMAX:  # which the parent does not know
            self.optim = OptimizerNames.ADAMW_TORCH
        super().__post_init__()
        if optim == ADAMAX:
            self.optim = optim
        self._check_choosing()
        # Pinned memory speeds up copies to an accelerator; without one, torch warns about it for every loader.
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type != "cpu"
        if self.ddp_find_unused_parameters:
            raise CMFAHError("ddp_find_unused_parameters would take the label layer for unused; leave it off.")
        if self.hub_strategy != "end":
            raise CMFAHError(
                f"hub_strategy is {getattr(self.hub_strategy, 'value', self.hub_strategy)!r}; only the finished model "
                "goes to the Hub, give 'end'. Checkpoints hold the state of PyTorch's optimizers, which are pickles."
            )
        if self.codes_update not in ("epoch", "batch"):
            raise CMFAHError(f"codes_update is {self.codes_update!r}; choose 'epoch' or 'batch'.")

    @property
    def adamax(self) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
        """Adamax and its arguments, which are those of Adam; None if another optimizer is chosen."""
        if self.optim != ADAMAX:
            return None
        betas = self.adam_beta1, self.adam_beta2
        return torch.optim.Adamax, {"lr": self.learning_rate, "betas": betas, "eps": self.adam_epsilon}

    @property
    def schedules_by_metric(self) -> bool:
        """Whether the schedules advance with the evaluations instead of the updates."""
        return self.lr_scheduler_type in (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)

    def _check_choosing(self) -> None:
        """Rejects a choice by figures that no evaluation computes; the run would fail after its first epoch."""
        if self.early_stopping_patience is not None and self.eval_strategy == "no":
            raise CMFAHError("early_stopping_patience counts evaluations; give an eval_strategy other than 'no'.")
        if not (self.load_best_model_at_end or self.schedules_by_metric or self.early_stopping_patience is not None):
            return
        if (self.metric_for_best_model or "").removeprefix("eval_") not in VALIDATION_METRICS:
            choices = ", ".join(VALIDATION_METRICS)
            raise CMFAHError(f"metric_for_best_model is {self.metric_for_best_model!r}; choose one of {choices}.")


def _mapping(name: str, value: Any) -> Any:
    """A setting that is a mapping, JSON or the path of a JSON file; `transformers` would not check it."""
    if isinstance(value, str):
        value = parse_json(value, name) if value.lstrip().startswith("{") else read_json(value)
        if not isinstance(value, dict):
            raise CMFAHError(f"{name} holds no JSON object; give one, or the path of a file with one.")
    return value
