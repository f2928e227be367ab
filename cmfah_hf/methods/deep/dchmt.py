"""DCHMT's head: each bit a choice between two units, and distances of the choices' probabilities.

Shape suffixes: B pairs of a batch, K hash bits. Equations are cited by their tags in `docs/method.md`.
"""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict

from cmfah_hf.methods.base import Batch, FeatureObjective, Losses, ObjectiveConfig, Paper, TrainingState
from cmfah_hf.methods.losses import added, similarity_between
from cmfah_hf.methods.outputs import CMFAHForPreTrainingOutput
from cmfah_hf.methods.registry import register_method


@strict
@dataclass
class DCHMTObjectiveConfig(ObjectiveConfig):
    """Settings of DCHMT's objective.

    Args:
        margin (`float`, defaults to 0.75):
            vartheta of `[dchmt]`: dissimilar items add nothing once this share of their bits differs, from 0 to 1.
        quantization_weight (`float`, defaults to 0.001):
            Weight of the term that favors certain choices.
    """

    margin: float | int = 0.75
    quantization_weight: float | int = 0.001

    ranges = {"margin": (lambda value: 0 <= value <= 1, "a share of the bits from 0 to 1")}


def choice_codes(logits_BK: torch.Tensor) -> torch.Tensor:
    """`h = 2 p - 1 = tanh(z / 2)` with the probabilities `p = sigmoid(z)` of the bits: `(B, K)`, `[dchmt]`.

    A softmax over two units of a bit depends only on the difference of the units. A logit is this difference, so two
    units would have twice the weights and the same codes.
    """
    wide = torch.promote_types(logits_BK.dtype, torch.float32)
    return (logits_BK.to(wide) / 2).tanh()


def distance_loss(
    codes_BK: torch.Tensor,
    others_BK: torch.Tensor,
    similar_BB: torch.Tensor,
    compared_BB: torch.Tensor,
    margin: float,
) -> torch.Tensor:
    """The mean of `d^2` over similar items and `max(0, m - d)^2` over dissimilar ones: a scalar, `[dchmt]`.

    Args:
        codes_BK, others_BK: Of `choice_codes`; `d` is the distance of their vectors of `2 K` probabilities.
        similar_BB, compared_BB: Boolean; only compared items count.
        margin: The share of the bits that differ at the distance `m`.
    """
    # The probabilities are (1 + h) / 2 and (1 - h) / 2. Differences and not products: sums of products lose small
    # distances, whose root has large gradients.
    distance_BB = torch.cdist(codes_BK, others_BK, compute_mode="donot_use_mm_for_euclid_dist") / 2**0.5
    reach = (2 * margin * codes_BK.shape[1]) ** 0.5
    loss_BB = torch.where(similar_BB, distance_BB, (reach - distance_BB).clamp(min=0)).square()
    return (loss_BB * compared_BB).sum() / compared_BB.sum().clamp(min=1)


@register_method("dchmt")
class DCHMTObjective(FeatureObjective):
    """DCHMT's objective, `[dchmt]`, with terms `inter`, `intra` and `quantization`.

    Only the head and its loss are DCHMT's: the towers read frozen features, where the paper trains a CLIP. The loss
    reads `tanh(z / 2)` of the logits, and the codes of the towers are `tanh(z)`, with the same signs.
    """

    settings_class = DCHMTObjectiveConfig
    settings: DCHMTObjectiveConfig
    labels = "needs"
    paper = Paper.from_bibtex("""@inproceedings{tu2022dchmt,
  title     = {Differentiable Cross-modal Hashing via Multimodal Transformers},
  author    = {Tu, Junfeng and Liu, Xueliang and Lin, Zongxiang and Hong, Richang and Wang, Meng},
  booktitle = {Proceedings of the ACM International Conference on Multimedia},
  year      = {2022},
  doi       = {10.1145/3503161.3548187}
}""")

    def forward(self, batch: Batch, outputs: CMFAHForPreTrainingOutput, state: TrainingState) -> Losses:
        """The terms over all pairs of items of the batch; unlabeled ones are left out of `inter` and `intra`."""
        image_BK, text_BK = map(choice_codes, outputs.logits)
        similarity_BB, known_B, _ = similarity_between(batch["labels"], batch["labels"])
        similar_BB, compared_BB = similarity_BB > 0, known_B[:, None] & known_B[None, :]

        def distances(one_BK: torch.Tensor, other_BK: torch.Tensor) -> torch.Tensor:
            return distance_loss(one_BK, other_BK, similar_BB, compared_BB, self.settings.margin)

        terms = {
            "inter": distances(image_BK, text_BK),
            "intra": distances(image_BK, image_BK) + distances(text_BK, text_BK),
            "quantization": added(1 - codes_BK.square().mean() for codes_BK in (image_BK, text_BK)) / 2,
        }
        weights = {"inter": 1.0, "intra": 1.0, "quantization": self.settings.quantization_weight}
        return Losses.weighted(terms, weights)
