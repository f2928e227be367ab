"""SSAH: a network of labels teaches both towers, and discriminators compare their features with its own.

Shape suffixes: N training pairs, B pairs of a batch, D feature width, K hash bits, C classes. Equations are cited by
their tags in `docs/method.md`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from cmfah_hf.methods.base import Batch, FeatureObjective, Losses, ObjectiveConfig, Paper, Player, TrainingState
from cmfah_hf.methods.deep.dcmh import pairwise_likelihood
from cmfah_hf.methods.discriminators import three_layers
from cmfah_hf.methods.losses import added, similarity_between
from cmfah_hf.methods.outputs import CMFAHForPreTrainingOutput
from cmfah_hf.methods.registry import register_method
from cmfah_hf.models.codes import sign
from cmfah_hf.models.configuration_cmfah import CMFAHConfig
from cmfah_hf.ranges import COUNT, POSITIVE

# Tables of `TrainingState`: the label network's features and continuous codes of all training pairs, and their labels.
FEATURES, CODES, LABELS = "label_features", "label_codes", "all_labels"
PAIR_LOSSES = ("likelihood", "squared")
# The published code takes similarities times this.
_SIMILAR = 0.999


@strict
@dataclass
class SSAHObjectiveConfig(ObjectiveConfig):
    """Settings of SSAH's objective.

    Args:
        pair_loss (`str`, defaults to `"likelihood"`):
            l of `[ssah]`: `"likelihood"` as in the paper, or `"squared"` as in the published code.
        feature_weight, hash_weight (`float`, default to 1):
            alpha and gamma of `[ssah]`, of the pairs of features and of codes.
        quantization_weight (`float`, defaults to 1):
            beta of `[ssah]`.
        label_weight (`float`, defaults to 1):
            eta of `[ssah]`.
        adversarial_weight (`float`, defaults to 1):
            delta of `[ssah]`. With 0, the discriminators are not trained.
        label_hidden_size (`int`, defaults to 1024):
            Hidden width of the label network. The paper's is 4096.
        label_net_steps (`int`, defaults to 10):
            Steps of the label network for each batch, on which the towers take one.
        label_net_learning_rate (`float`, defaults to 0.01):
            Learning rate of the label network, with the schedule of the towers.
    """

    pair_loss: str = "likelihood"
    feature_weight: float | int = 1.0
    hash_weight: float | int = 1.0
    quantization_weight: float | int = 1.0
    label_weight: float | int = 1.0
    adversarial_weight: float | int = 1.0
    label_hidden_size: int = 1024
    label_net_steps: int = 10
    label_net_learning_rate: float | int = 0.01

    ranges = {"label_hidden_size": COUNT, "label_net_steps": COUNT, "label_net_learning_rate": POSITIVE}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pair_loss not in PAIR_LOSSES:
            raise ValueError(f"pair_loss is {self.pair_loss!r}; choose one of {', '.join(PAIR_LOSSES)}.")

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the terms, in the order of summation."""
        names = ("feature", "hash", "quantization", "label", "adversarial")
        return {name: getattr(self, f"{name}_weight") for name in names}


class Embedding(NamedTuple):
    """Output of a network for a batch: features `(B, D)`, continuous codes `(B, K)`, and class logits `(B, C)`."""

    features: torch.Tensor
    codes: torch.Tensor
    class_logits: torch.Tensor


class LabelNetwork(nn.Module):
    """From the labels `(N, C)` of pairs to their features `(N, D)`, continuous codes `(N, K)` and classes, `[ssah]`."""

    def __init__(self, num_labels: int, hidden_size: int, feature_size: int, hash_bits: int):
        super().__init__()
        self.dense_in = nn.Linear(num_labels, hidden_size)
        self.dense_out = nn.Linear(hidden_size, feature_size)
        self.hash_head = nn.Linear(feature_size, hash_bits)
        self.class_head = nn.Linear(feature_size, num_labels)

    def forward(self, labels_BC: torch.Tensor) -> Embedding:
        """The embedding of multi-hot labels."""
        hidden = self.dense_in(labels_BC.to(self.dense_in.weight.dtype)).relu()
        features_BD = self.dense_out(hidden).relu()
        return Embedding(features_BD, self.hash_head(features_BD).tanh(), self.class_head(features_BD))


def pair_loss(own_BX: torch.Tensor, stored_NX: torch.Tensor, similar_BN: torch.Tensor, kind: str) -> torch.Tensor:
    """l of `[ssah]` by its name in `PAIR_LOSSES`, summed over all pairs, which are similar (1) or not (0): a scalar."""
    if kind == "likelihood":
        return pairwise_likelihood(own_BX, stored_NX, similar_BN)
    theta_BN = own_BX @ stored_NX.mT / 2
    return (_SIMILAR * similar_BN * theta_BN - softplus(theta_BN)).square().sum() / 2


def _cross_entropy(logits_B1: torch.Tensor, is_label: bool) -> torch.Tensor:
    """The summed cross-entropy of a discriminator's output, as of labels or not."""
    return binary_cross_entropy_with_logits(logits_B1, torch.full_like(logits_B1, float(is_label)), reduction="sum")


@register_method("ssah")
class SSAHObjective(FeatureObjective):
    """SSAH's objective, `[ssah]`, with terms `feature`, `hash`, `quantization`, `label` and `adversarial`.

    The label network and the discriminators are players. A batch is compared with the label network's last output for
    all training pairs; without numbered pairs, with that for the batch.
    """

    settings_class = SSAHObjectiveConfig
    settings: SSAHObjectiveConfig
    labels = "needs"
    paper = Paper.from_bibtex("""@inproceedings{li2018ssah,
  title     = {Self-Supervised Adversarial Hashing Networks for Cross-Modal Retrieval},
  author    = {Li, Chao and Deng, Cheng and Li, Ning and Liu, Wei and Gao, Xinbo and Tao, Dacheng},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  pages     = {4242--4251},
  year      = {2018},
  doi       = {10.1109/CVPR.2018.00446}
}""")

    def __init__(self, config: CMFAHConfig, settings: SSAHObjectiveConfig):
        super().__init__(config, settings)
        width, num_labels = config.hidden_size, config.num_labels or 0
        self.label_net = LabelNetwork(num_labels, settings.label_hidden_size, width, config.hash_bits)
        self.discriminators = nn.ModuleList(three_layers(width) for _ in range(2))
        self.class_heads = nn.ModuleList(nn.Linear(width, num_labels) for _ in range(2))
        self.post_init()

    def players(self) -> list[Player]:
        """The label network, and both discriminators as one player."""
        settings = self.settings
        rate, steps = settings.label_net_learning_rate, settings.label_net_steps
        is_active = bool(settings.adversarial_weight)
        return [
            Player("label_net", self.label_net, self.label_net_loss, learning_rate=rate, steps=steps),
            Player("discriminator", self.discriminators, self.discriminator_loss, is_active),
        ]

    def label_net_loss(self, batch: Batch, outputs: CMFAHForPreTrainingOutput, state: TrainingState) -> torch.Tensor:
        """The label network's loss, which also stores its output for the batch."""
        own = self.label_net(batch["labels"])
        if FEATURES in state.tables and "row" in batch:
            for name, rows_BX in ((FEATURES, own.features), (CODES, own.codes)):
                # A new table, because the graph of this loss holds it when the next step changes it.
                table_NX = state.tables[name]
                state.tables[name] = table_NX.index_copy(0, batch["row"].cpu(), rows_BX.detach().to(table_NX))
        terms = self._terms(own, batch, self._stored(batch, state))
        return Losses.weighted(terms, self.settings.weights).total

    def discriminator_loss(
        self, batch: Batch, outputs: CMFAHForPreTrainingOutput, state: TrainingState
    ) -> torch.Tensor:
        """The mean cross-entropy of both discriminators, which label features of labels 1 and those of a modality 0."""
        with torch.no_grad():
            labels_BD = self.label_net(batch["labels"]).features
        features = [view.features for view in outputs.unimodal]
        loss = added(
            _cross_entropy(discriminator(own_BD), False) + _cross_entropy(discriminator(labels_BD), True)
            for discriminator, own_BD in zip(self.discriminators, features, strict=True)
        )
        return loss / (4 * len(labels_BD))

    def forward(self, batch: Batch, outputs: CMFAHForPreTrainingOutput, state: TrainingState) -> Losses:
        """The terms of both towers, over the pairs of the batch and all training pairs, divided by both numbers."""
        stored = self._stored(batch, state)
        count = len(batch["labels"]) * len(stored[LABELS])
        parts = []
        for number, view in enumerate(outputs.unimodal):
            own = Embedding(view.features, view.hash_values, self.class_heads[number](view.features))
            terms = self._terms(own, batch, stored)
            if self.settings.adversarial_weight:
                terms["adversarial"] = _cross_entropy(self.discriminators[number](view.features), True) / count
            parts.append(terms)
        return Losses.weighted({name: added(part[name] for part in parts) for name in parts[0]}, self.settings.weights)

    def _terms(self, own: Embedding, batch: Batch, stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """All terms of a network but `adversarial`."""
        dtype, kind = own.features.dtype, self.settings.pair_loss
        similar_BN = (similarity_between(batch["labels"], stored[LABELS])[0] > 0).to(dtype)
        labels_BC = batch["labels"].to(dtype)
        terms = {
            "feature": pair_loss(own.features, stored[FEATURES].to(dtype), similar_BN, kind),
            "hash": pair_loss(own.codes, stored[CODES].to(dtype), similar_BN, kind),
            "quantization": (sign(own.codes).to(dtype) - own.codes).square().sum(),
            "label": (labels_BC - own.class_logits.sigmoid()).square().sum(),
        }
        return {name: value / similar_BN.numel() for name, value in terms.items()}

    def _stored(self, batch: Batch, state: TrainingState) -> dict[str, torch.Tensor]:
        """The label network's output for all training pairs, and their labels; those of the batch without tables."""
        labels_BC = batch["labels"]
        if FEATURES in state.tables and "row" in batch:
            return {name: state.tables[name].to(labels_BC.device) for name in (FEATURES, CODES, LABELS)}
        with torch.no_grad():
            own = self.label_net(labels_BC)
        return {FEATURES: own.features, CODES: own.codes, LABELS: labels_BC}

    @torch.no_grad()
    def on_train_begin(self, state: TrainingState) -> None:
        """The labels of all training pairs, and the new label network's output for them."""
        if state.encode is None:
            return
        labels_NC = state.encode_all().labels
        own = self.label_net(labels_NC.to(self.label_net.dense_in.weight.device))
        state.tables |= {FEATURES: own.features.float().cpu(), CODES: own.codes.float().cpu(), LABELS: labels_NC}
