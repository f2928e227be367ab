"""ACMR: vectors from which classes can be told and modalities cannot.

Shape suffixes: B pairs of a batch, N items of both modalities, K width of a vector (the hash bits), C classes.
Equations are cited by their tags in `docs/method.md`.
"""

import math
from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from cmfah_hf.methods.base import Batch, Losses, ObjectiveConfig, Paper, Player, TrainingState
from cmfah_hf.methods.deep.epochs import EpochObjective
from cmfah_hf.methods.discriminators import CMFAHDiscriminator
from cmfah_hf.methods.losses import added, similarity_between
from cmfah_hf.methods.outputs import CMFAHForPreTrainingOutput
from cmfah_hf.methods.registry import register_method
from cmfah_hf.models.configuration_cmfah import CMFAHConfig
from cmfah_hf.ranges import COUNT


@strict
@dataclass
class ACMRObjectiveConfig(ObjectiveConfig):
    """Settings of ACMR's objective.

    Args:
        label_weight (`float`, defaults to 100):
            Weight of the classification.
        pair_weight (`float`, defaults to 1):
            Weight of the distances of partners.
        ranking_weight (`float`, defaults to 0.02):
            Weight of the hinge on distances of dissimilar items.
        margin (`float`, defaults to 0.1):
            Distance at which this hinge ends.
        adversarial_weight (`float`, defaults to 1):
            Weight of the modality classifier's loss in that of the towers, at the end of the schedule.
        num_epochs (`int`, defaults to 200):
            Epochs of the schedule of this weight, `[acmr]`: those of the training.

    Raises:
        ValueError: If a value is outside its range, or there are no classes.
    """

    label_weight: float | int = 100.0
    pair_weight: float | int = 1.0
    ranking_weight: float | int = 0.02
    margin: float | int = 0.1
    adversarial_weight: float | int = 1.0
    num_epochs: int = 200

    ranges = {"num_epochs": COUNT}

    def apply_to(self, config: CMFAHConfig) -> None:
        """Changes nothing; raises a `ValueError` if there are no classes."""
        if not config.num_labels:
            raise ValueError("ACMR classifies what it encodes, and there are no classes; give pairs with labels.")


def classification_loss(logits_BC: torch.Tensor, labels_BC: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of the classes with the labels divided by their number, a mean over labeled items."""
    labels_BC = labels_BC.to(logits_BC.dtype)
    total_B1 = labels_BC.sum(dim=1, keepdim=True)
    shares_BC = labels_BC / torch.where(total_B1 > 0, total_B1, 1)
    return -(shares_BC * logits_BC.log_softmax(dim=1)).sum() / (total_B1 > 0).sum().clamp(min=1)


def ranking_loss(image_BK: torch.Tensor, text_BK: torch.Tensor, labels_BC: torch.Tensor, margin: float) -> torch.Tensor:
    """The mean of `max(0, margin - d)` over images and texts without a common label; 0 if there are none."""
    similarity_BB, known_B, _ = similarity_between(labels_BC, labels_BC)
    dissimilar_BB = (similarity_BB == 0) & known_B[:, None] & known_B[None, :]
    distance_BB = torch.cdist(image_BK, text_BK, compute_mode="donot_use_mm_for_euclid_dist")
    return ((margin - distance_BB).clamp(min=0) * dissimilar_BB).sum() / dissimilar_BB.sum().clamp(min=1)


@register_method("acmr")
class ACMRObjective(EpochObjective):
    """ACMR's objective, `[acmr]`, with terms `label`, `pair`, `ranking` and `modality`, which the towers maximize.

    Its vectors are not binary: `hash_bits` is their width (40 in the paper), and nothing draws their values to -1 and
    +1. Only figures by cosine and by AQD are those of the method; figures by Hamming distance are not. Batches are
    labeled with classes. The label classifier is trained with the towers; the modality classifier, the player
    `modality`, takes a step before them.
    """

    settings_class = ACMRObjectiveConfig
    settings: ACMRObjectiveConfig
    labels = "needs"
    paper = Paper.from_bibtex("""@inproceedings{wang2017acmr,
  title     = {Adversarial Cross-Modal Retrieval},
  author    = {Wang, Bokun and Yang, Yang and Xu, Xing and Hanjalic, Alan and Shen, Heng Tao},
  booktitle = {Proceedings of the ACM International Conference on Multimedia},
  pages     = {154--162},
  year      = {2017},
  doi       = {10.1145/3123266.3123326}
}""")

    def __init__(self, config: CMFAHConfig, settings: ACMRObjectiveConfig):
        super().__init__(config, settings)
        self.label_classifier = nn.Linear(config.hash_bits, config.num_labels or 0)
        self.modality_classifier = CMFAHDiscriminator._from_config(config, width=config.hash_bits)
        self.post_init()

    @property
    def reversal_weight(self) -> float:
        """`2 / (1 + exp(-10 p)) - 1` after the share p of the epochs: from 0 to almost 1."""
        progress = min(1.0, int(self.epochs) / self.settings.num_epochs)
        return 2 / (1 + math.exp(-10 * progress)) - 1

    def modality_loss(self, outputs: CMFAHForPreTrainingOutput) -> torch.Tensor:
        """The cross-entropy of the modalities, 1 for images and 0 for texts, summed over both: a scalar."""
        image, text = outputs.unimodal
        both_NK = torch.cat([image.hash_values, text.hash_values])
        is_image_N = torch.arange(len(both_NK), device=both_NK.device) < len(image.hash_values)
        return 2 * self.modality_classifier(both_NK, labels=is_image_N).loss  # whose loss is a mean over both

    def players(self) -> list[Player]:
        """The modality classifier, which is inactive if `adversarial_weight` is 0."""
        return [
            Player(
                "modality",
                self.modality_classifier,
                lambda batch, outputs, state: self.modality_loss(outputs),
                bool(self.settings.adversarial_weight),
            )
        ]

    def forward(self, batch: Batch, outputs: CMFAHForPreTrainingOutput, state: TrainingState) -> Losses:
        """The terms of the batch; the weight of `modality` is that of the current epoch, negative."""
        settings, labels_BC = self.settings, batch["labels"]
        image_BK, text_BK = (view.hash_values for view in outputs.unimodal)
        terms = {
            "label": added(classification_loss(self.label_classifier(own), labels_BC) for own in (image_BK, text_BK)),
            "pair": torch.linalg.vector_norm(image_BK - text_BK, dim=1).mean(),
            "ranking": ranking_loss(image_BK, text_BK, labels_BC, settings.margin),
        }
        if settings.adversarial_weight:  # otherwise the modality classifier is not trained
            terms["modality"] = self.modality_loss(outputs)
        weights = {
            "label": settings.label_weight,
            "pair": settings.pair_weight,
            "ranking": settings.ranking_weight,
            "modality": -settings.adversarial_weight * self.reversal_weight,
        }
        return Losses.weighted(terms, weights)
