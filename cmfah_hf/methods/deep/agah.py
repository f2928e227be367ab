"""AGAH: triplets of codes whose features attend to prototypes of classes, and a binary code for each class.

Shape suffixes: N training pairs, B pairs of a batch, D feature width, K hash bits, C classes. Equations are cited by
their tags in `docs/method.md`.
"""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from cmfah_hf.methods.base import Batch, FeatureObjective, Losses, ObjectiveConfig, Paper, Player, TrainingState
from cmfah_hf.methods.discriminators import three_layers
from cmfah_hf.methods.losses import added, cosine_matrix, triplet_hinge, triplet_masks
from cmfah_hf.methods.outputs import CMFAHForPreTrainingOutput
from cmfah_hf.methods.registry import register_method
from cmfah_hf.models.codes import sign
from cmfah_hf.models.configuration_cmfah import CMFAHConfig
from cmfah_hf.models.feature_encoders import embedded
from cmfah_hf.models.fused_cmfah import EPSILON


@strict
@dataclass
class AGAHObjectiveConfig(ObjectiveConfig):
    """Settings of AGAH's objective.

    Args:
        margin (`float`, defaults to 0.3):
            Margin of the triplets, in cosine.
        cosine_weight (`float`, defaults to 1):
            alpha of `[agah]`.
        code_map_weight (`float`, defaults to 0.001):
            gamma of `[agah]`.
        quantization_weight (`float`, defaults to 1):
            eta of `[agah]`.
        adversarial_weight (`float`, defaults to 1):
            mu of `[agah]`. With 0, the critics are not trained.
        gradient_penalty_weight (`float`, defaults to 10):
            Weight of the gradient penalty in the critics' loss.
    """

    margin: float | int = 0.3
    cosine_weight: float | int = 1.0
    code_map_weight: float | int = 0.001
    quantization_weight: float | int = 1.0
    adversarial_weight: float | int = 1.0
    gradient_penalty_weight: float | int = 10.0

    def apply_to(self, config: CMFAHConfig) -> None:
        """Gives the towers a prototype for each class; `ValueError` if there are no classes."""
        if not config.num_labels:
            raise ValueError("AGAH has a prototype and a code for each class, and there are no classes; give labels.")
        config.num_prototypes = config.num_labels


def class_codes(
    image_NK: torch.Tensor, text_NK: torch.Tensor, labels_NC: torch.Tensor, codes_CK: torch.Tensor
) -> torch.Tensor:
    """One round of discrete coordinate descent for M of `[agah]`, `(C, K)` of -1 and +1.

    Each entry in turn takes the sign that minimizes
    `|U M^T - K Y|^2 + |V M^T - K Y|^2 + |M M^T - K (2 I - 1)|^2`, with the others fixed, so this never increases.

    Args:
        image_NK, text_NK: U and V, codes of -1 and +1 of all training pairs.
        labels_NC: Multi-hot labels; `Y = 2 L - 1`.
        codes_CK: M before; may be zeros, which have no code yet.
    """
    bits = codes_CK.shape[1]
    codes_CK = codes_CK.to(torch.float64, copy=True)
    image_NK, text_NK = image_NK.double(), text_NK.double()
    target_CK = bits * (2 * labels_NC.double() - 1).mT @ (image_NK + text_NK)
    products_KK = image_NK.mT @ image_NK + text_NK.mT @ text_NK
    products_KK.fill_diagonal_(0)
    between_CC = codes_CK @ codes_CK.mT
    for bit in range(bits):
        column_C = codes_CK[:, bit]
        slope_C = target_CK[:, bit] - codes_CK @ products_KK[:, bit]
        for row in range(len(codes_CK)):
            # Products of the codes of this class and others without this bit, minus their target -K.
            excess_C = between_CC[row] - column_C[row] * column_C + bits
            excess_C[row] = 0
            new = 1.0 if slope_C[row] - 2 * (column_C @ excess_C) >= 0 else -1.0
            change_C = (new - column_C[row]) * column_C
            between_CC[row] += change_C
            between_CC[:, row] += change_C
            column_C[row] = new
            between_CC[row, row] = codes_CK[row] @ codes_CK[row]
    return codes_CK


@register_method("agah")
class AGAHObjective(FeatureObjective):
    """AGAH's objective, `[agah]`, with terms `triplet`, `cosine`, `code_map`, `quantization` and `adversarial`.

    The towers' prototypes and the codes of classes are computed from all training pairs before the first and after
    each epoch.
    """

    settings_class = AGAHObjectiveConfig
    settings: AGAHObjectiveConfig
    needs_tables = True
    labels = "needs"
    code_map: torch.Tensor
    paper = Paper.from_bibtex("""@inproceedings{gu2019agah,
  title     = {Adversary Guided Asymmetric Hashing for Cross-Modal Retrieval},
  author    = {Gu, Wen and Gu, Xiaoyan and Gu, Jingzi and Li, Bo and Xiong, Zhi and Wang, Weiping},
  booktitle = {Proceedings of the ACM International Conference on Multimedia Retrieval},
  pages     = {159--167},
  year      = {2019},
  doi       = {10.1145/3323873.3325045}
}""")

    def __init__(self, config: CMFAHConfig, settings: AGAHObjectiveConfig):
        super().__init__(config, settings)
        # Those of images and of texts.
        self.critics = nn.ModuleList(three_layers(config.hidden_size) for _ in range(2))
        self.register_buffer("code_map", torch.zeros(config.num_labels or 0, config.hash_bits))
        self.post_init()

    def players(self) -> list[Player]:
        """Both critics as one player."""
        return [Player("discriminator", self.critics, self.critics_loss, bool(self.settings.adversarial_weight))]

    def critics_loss(self, batch: Batch, outputs: CMFAHForPreTrainingOutput, state: TrainingState) -> torch.Tensor:
        """The Wasserstein losses of both critics, with gradient penalties at random points between both modalities."""
        image_BD, text_BD = _unit_features(outputs)
        return added(
            critic(other_BD).mean() - critic(own_BD).mean() + self._gradient_penalty(critic, own_BD, other_BD)
            for critic, own_BD, other_BD in zip(self.critics, (image_BD, text_BD), (text_BD, image_BD), strict=True)
        )

    def _gradient_penalty(self, critic: nn.Module, own_BD: torch.Tensor, other_BD: torch.Tensor) -> torch.Tensor:
        # On the CPU, whose generator is the same in all processes.
        share_B1 = torch.rand(len(own_BD), 1, dtype=own_BD.dtype).to(own_BD.device)
        between_BD = torch.lerp(other_BD, own_BD, share_B1).requires_grad_()
        (gradient_BD,) = torch.autograd.grad(critic(between_BD).sum(), between_BD, create_graph=True)
        lengths_B = torch.linalg.vector_norm(gradient_BD, dim=1)
        return self.settings.gradient_penalty_weight * (lengths_B - 1).square().mean()

    def forward(self, batch: Batch, outputs: CMFAHForPreTrainingOutput, state: TrainingState) -> Losses:
        """The terms of both modalities, divided by the number of pairs in the batch."""
        image, text = outputs.unimodal
        codes = (image.hash_values, text.hash_values)
        target_BC = self.config.hash_bits * (2 * batch["labels"].to(codes[0].dtype) - 1)
        positive_BB, negative_BB = triplet_masks(batch["labels"], within=False)
        triplets = (positive_BB.sum(dim=1) * negative_BB.sum(dim=1)).sum()
        cosines_BB = cosine_matrix(*codes)
        code_map_CK = self.code_map.to(codes[0].dtype)
        terms = {
            "triplet": triplets
            * added(
                triplet_hinge(matrix_BB, positive_BB, negative_BB, self.settings.margin)
                for matrix_BB in (cosines_BB, cosines_BB.mT)
            ),
            "cosine": added(torch.sigmoid(-_cosine_with_ones(own_BK)).sum() for own_BK in codes),
            "code_map": added((own_BK @ code_map_CK.mT - target_BC).square().sum() for own_BK in codes),
            "quantization": added((own_BK - sign(own_BK).to(own_BK.dtype)).square().sum() for own_BK in codes),
        }
        if self.settings.adversarial_weight:
            # Each critic reads the features of the other modality.
            terms["adversarial"] = added(
                -critic(own_BD).mean()
                for critic, own_BD in zip(self.critics, reversed(_unit_features(outputs)), strict=True)
            )
        terms = {name: value / len(target_BC) for name, value in terms.items()}
        names = ("cosine", "code_map", "quantization", "adversarial")
        weights = {"triplet": 1.0, **{name: getattr(self.settings, f"{name}_weight") for name in names}}
        return Losses.weighted(terms, weights)

    def on_train_begin(self, state: TrainingState) -> None:
        """Prototypes and codes of classes from the new towers, unless a checkpoint or a trained model has them."""
        if not self.code_map.any():
            self.on_epoch_end(state)

    @torch.no_grad()
    def on_epoch_end(self, state: TrainingState) -> None:
        """Prototypes and codes of classes from all training pairs, `[prototypes]` and `[agah]`."""
        if state.encode is None:
            return
        towers = [state.towers.image_model, state.towers.text_model]
        sum_CD = torch.zeros(towers[0].hash_head.prototypes.weight.shape, dtype=torch.float64)
        found = []
        for encoded in state.encode():
            found.append((encoded.labels, sign(encoded.image_hash), sign(encoded.text_hash)))
            for tower, vectors in zip(towers, (encoded.image_vectors, encoded.text_vectors), strict=True):
                encoder = tower.embeddings
                features_BD = embedded(encoder, vectors.to(encoder.projection.weight)).positions[:, 0]
                sum_CD += encoded.labels.double().mT @ _unit(features_BD.float()).cpu().double()
        labels_NC, image_NK, text_NK = (torch.cat(parts) for parts in zip(*found, strict=True))
        # Both modalities have the same number of items of a class, so the direction of the sum is that of the mean.
        prototypes_CD = _unit(sum_CD)
        for tower in towers:
            tower.hash_head.prototypes.weight.copy_(prototypes_CD)
        self.code_map.copy_(class_codes(image_NK, text_NK, labels_NC, self.code_map.cpu()))


def _unit(rows_BD: torch.Tensor) -> torch.Tensor:
    """Rows of unit length."""
    return nn.functional.normalize(rows_BD, dim=1, eps=EPSILON)


def _unit_features(outputs: CMFAHForPreTrainingOutput) -> tuple[torch.Tensor, torch.Tensor]:
    """f of `[agah]` of images and texts, before the attention."""
    image, text = outputs.unimodal
    return _unit(image.features), _unit(text.features)


def _cosine_with_ones(codes_BK: torch.Tensor) -> torch.Tensor:
    """The cosine of absolute values with ones, `(B,)`: 1 if all are equal."""
    return nn.functional.normalize(codes_BK.abs(), dim=1, eps=EPSILON).sum(dim=1) / codes_BK.shape[1] ** 0.5
