"""Base classes of a training method: objective, settings, paper, players and training state.

Shape suffixes: N training pairs, B pairs of a batch, E width of vectors, K hash bits.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from cmfah_hf.methods.losses import added
from cmfah_hf.methods.outputs import CMFAHForPreTrainingOutput
from cmfah_hf.models.configuration_cmfah import CMFAHConfig
from cmfah_hf.models.model_files import ModelFileError
from cmfah_hf.models.modeling_cmfah import CMFAHPreTrainedModel
from cmfah_hf.ranges import Range

# The key of the method's name in the section `objective` of a model's configuration.
NAME_KEY = "_name"
# Maximum of any setting. Beyond it, building the objective takes minutes.
_LARGEST = 10**6


@dataclass(frozen=True)
class Paper:
    """The publication of a method, for model cards and docs."""

    title: str
    authors: str
    year: int
    venue: str
    url: str
    bibtex: str

    @classmethod
    def from_bibtex(cls, bibtex: str) -> "Paper":
        """A publication from its entry in BibTeX, with authors such as `Jiang, Qing-Yuan and Li, Wu-Jun`.

        The venue is the `booktitle`, or the `journal` with volume, number and pages; the address the `url` or `doi`.
        """
        found = re.findall(r"^ *(\w+) *= *\{(.*?)\},?$", bibtex, re.DOTALL | re.MULTILINE)
        entry = {name: " ".join(re.sub("[{}]", "", value).split()) for name, value in found}
        authors = (" ".join(reversed(name.split(", "))) for name in entry["author"].split(" and "))
        venue = entry.get("booktitle", "").removeprefix("Proceedings of the ")
        if not venue:
            venue = f"{entry['journal']} {entry['volume']}({entry['number']}), {entry['pages'].replace('--', '-')}"
        url = entry.get("url") or f"https://doi.org/{entry['doi']}"
        return cls(entry["title"], ", ".join(authors), int(entry["year"]), venue, url, bibtex)


@dataclass
class ObjectiveConfig:
    """Settings of an objective: the weights of its terms and its other hyperparameters.

    A subclass is a dataclass with defaults for all fields. Fields whose names end with `_weight` cannot be negative;
    `ranges` has a test of others by name, with its words for the error.

    Raises:
        ValueError: If a value is outside its range.
    """

    ranges: ClassVar[dict[str, Range]] = {}

    def __post_init__(self) -> None:
        for name in (setting.name for setting in fields(self)):
            value = getattr(self, name)
            if name.endswith("_weight") and value < 0:
                raise ValueError(f"{name} is {value}; give 0, which leaves it out, or more.")
            is_allowed, allowed = self.ranges.get(name, (lambda value: True, ""))
            if not is_allowed(value):
                raise ValueError(f"{name} is {value}; give {allowed}.")

    @classmethod
    def names(cls) -> set[str]:
        """The names of all settings."""
        return {setting.name for setting in fields(cls)}

    @classmethod
    def from_section(cls, section: Mapping[str, Any]) -> "ObjectiveConfig":
        """The settings from the section `objective` of a model's configuration, which may be untrusted.

        Raises:
            ModelFileError: If a setting is unknown, too large, or of another type.
            ValueError: If a value is outside its range.
        """
        given = {name: value for name, value in section.items() if name != NAME_KEY}
        for name, value in given.items():
            if name not in cls.names():
                raise ModelFileError(f"The objective has no setting {str(name)[:80]!r}; remove it.")
            if isinstance(value, (int, float)) and not abs(value) <= _LARGEST:
                raise ModelFileError(f"The objective's {name} is {str(value)[:40]}, and {_LARGEST:,} is the most.")
        try:
            return cls(**given)
        except (StrictDataclassError, TypeError) as error:
            raise ModelFileError(f"The settings of the objective: {' '.join(str(error).split())[:300]}") from error

    def to_section(self, name: str) -> dict[str, Any]:
        """The section `objective` of a model's configuration, with the name of the method."""
        return {NAME_KEY: name, **asdict(self)}

    def apply_to(self, config: CMFAHConfig) -> None:
        """Adapts the configuration of the towers to this objective, in place. By default, nothing is changed.

        Raises:
            ValueError: If the objective cannot train such towers.
        """


@dataclass
class Losses:
    """The loss of a batch: the total, which is minimized, and its unweighted terms by name; scalars."""

    total: torch.Tensor
    terms: dict[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def weighted(cls, terms: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> "Losses":
        """The terms and their weighted sum, in the order of the weights. Terms may be missing."""
        ordered = {name: terms[name] for name in weights if name in terms}
        return cls(added(weights[name] * value for name, value in ordered.items()), ordered)


# Tensors of a batch that are not inputs of the towers, with one row per pair: `labels`; of numbered pairs also their
# numbers, `row`, and their rows of the tables of `TrainingState`, by name.
Batch = Mapping[str, torch.Tensor]


class EncodedBatch(NamedTuple):
    """A batch of training pairs as the towers encode it in evaluation mode, on the CPU.

    Attributes:
        rows: `(B,)`, numbers of the pairs.
        image_hash, text_hash: `(B, K)`, cross-modal continuous codes.
        labels: As in `pairwise_similarity`.
        image_logits, text_logits: `(B, K)`, the values whose `tanh` the codes are.
        image_vectors, text_vectors: `(B, E)`, as in `CMFAHForPreTrainingOutput`; without rows if there are none.
    """

    rows: torch.Tensor
    image_hash: torch.Tensor
    text_hash: torch.Tensor
    labels: torch.Tensor
    image_logits: torch.Tensor
    text_logits: torch.Tensor
    image_vectors: torch.Tensor
    text_vectors: torch.Tensor


@dataclass
class TrainingState:
    """An objective's tables over all training pairs, such as their binary codes, and a pass over these pairs.

    Args:
        num_pairs: N; 0 if the pairs are not numbered, as those of a stream.
        tables: Tensors by name with one row per training pair, on the CPU. They are saved with every checkpoint, and
            replaced, never changed in place.
        encode: Yields all training pairs once, in batches. None if the pairs are not numbered.
        towers: The model of both towers, for objectives that encode more than the batch.
    """

    num_pairs: int = 0
    tables: dict[str, torch.Tensor] = field(default_factory=dict)
    encode: Callable[[], Iterator[EncodedBatch]] | None = None
    towers: Any = None
    _copies: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, init=False, repr=False)

    def table_on(self, device: torch.device, name: str) -> torch.Tensor:
        """A table on a device, where its copy is kept until the table is replaced."""
        table = self.tables[name]
        source, copy = self._copies.get(name, (None, table))
        if source is not table or copy.device != device:
            copy = table.to(device)
            self._copies[name] = table, copy
        return copy

    def encode_all(self) -> EncodedBatch:
        """All training pairs in one batch, in the order of their numbers.

        Raises:
            ValueError: If the pairs are not numbered.
        """
        if self.encode is None:
            raise ValueError("The training pairs are not numbered, so there is no pass over them.")
        whole = EncodedBatch(*map(torch.cat, zip(*self.encode(), strict=True)))
        order_N = whole.rows.argsort()
        return EncodedBatch(*(values[order_N] for values in whole))


@dataclass(frozen=True)
class Player:
    """An adversary of the towers, with an optimizer and a schedule of its own.

    For each batch, every player takes one step with all others fixed. Then the towers take a step, together with the
    parameters of the objective that belong to no player.

    Args:
        name: Prefix of its files in a checkpoint.
        module: The module with its parameters.
        loss: Its loss, from what `Objective.forward` gets, with the outputs detached.
        is_active: Whether it takes steps.
        learning_rate: None: the training argument `{name}_learning_rate` if it exists, else `learning_rate`.
        steps: Steps that it takes for each batch.
    """

    name: str
    module: nn.Module
    loss: Callable[[Batch, CMFAHForPreTrainingOutput, TrainingState], torch.Tensor]
    is_active: bool = True
    learning_rate: float | None = None
    steps: int = 1


class Objective(CMFAHPreTrainedModel):
    """Base class of objectives. A subclass implements `forward`, and is registered with `register_method`.

    Every process computes the loss of the whole batch. Random draws are therefore of the CPU's generator, which is the
    same in all processes.

    An objective may have layers of its own, such as a label head. Its `__init__` then ends with `self.post_init()`,
    which initializes their weights. They are saved with the model under the names `objective.*`.

    Args:
        config: The configuration of the towers.
        settings: The settings of the objective.
    """

    settings_class: ClassVar[type[ObjectiveConfig]] = ObjectiveConfig
    paper: ClassVar[Paper | None] = None
    # Set by `register_method`.
    name: ClassVar[str] = ""
    # The `model_type` of the towers that the method trains.
    model_type: ClassVar[str] = "cmfah"
    # Whether the loss needs the cross-modal view in addition to the unimodal one; may depend on the settings.
    needs_cross_modal: bool = True
    # Whether the method `"needs"` labels, `"refuses"` them, or does either.
    labels: ClassVar[Literal["needs", "refuses", "either"]] = "either"
    # Whether the method needs numbered pairs, for tables over all of them.
    needs_tables: ClassVar[bool] = False

    def __init__(self, config: CMFAHConfig, settings: ObjectiveConfig):
        super().__init__(config)
        self.settings = settings

    def forward(self, batch: Batch, outputs: CMFAHForPreTrainingOutput, state: TrainingState) -> Losses:
        """The loss of the towers for a whole batch, with all players fixed.

        Args:
            batch: `labels`, as in `pairwise_similarity`, and the batch's rows of the tables in `state`.
            outputs: The outputs of the model's `forward`, with the graph.
            state: The tables over all training pairs.
        """
        raise NotImplementedError

    def players(self) -> list[Player]:
        """The adversaries of the towers. By default, there are none."""
        return []

    def on_train_begin(self, state: TrainingState) -> None:
        """Makes the tables of `state` before the first step, unless a checkpoint has them; by default none."""

    def on_epoch_end(self, state: TrainingState) -> None:
        """Updates the tables of `state` after an epoch. By default, there are none."""


class FeatureObjective(Objective):
    """Base class of objectives for towers over one feature of each item, which compare the unimodal view."""

    model_type = "feature_hash"
    needs_cross_modal = False
