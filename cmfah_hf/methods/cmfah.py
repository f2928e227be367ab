"""CMFAH's objective: triplets, quantization, label guidance and discriminators over features.

Shape suffixes: B pairs of a batch, C classes, K hash bits.
"""

import math
from dataclasses import dataclass
from itertools import product

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from cmfah_hf.methods.base import Batch, Losses, Objective, ObjectiveConfig, Paper, Player, TrainingState
from cmfah_hf.methods.contrast import pair_contrast_loss
from cmfah_hf.methods.discriminators import CMFAHDiscriminator, discriminator_loss
from cmfah_hf.methods.distillation import distillation_loss, vector_similarity
from cmfah_hf.methods.losses import (
    added,
    code_buffer_loss,
    cosine_matrix,
    label_guidance_loss,
    orthogonality_loss,
    pair_losses,
    similarity_between,
    triplet_masks,
    views_losses,
)
from cmfah_hf.methods.outputs import CMFAHForPreTrainingOutput, View
from cmfah_hf.methods.proxies import ClassProxies, proxy_loss
from cmfah_hf.methods.registry import register_method
from cmfah_hf.models.codes import sign
from cmfah_hf.models.configuration_cmfah import CMFAHConfig
from cmfah_hf.ranges import POSITIVE, SHARE_OR_ALL

_HINGES = ("intra_feature", "intra_hash", "inter_feature", "inter_hash")
# In the order of summation.
_TERMS = (*_HINGES[:2], "quantization", *_HINGES[2:], "similarity", "label", "concept")
# Terms of unimodal codes that the paper does not have.
_UNIMODAL_TERMS = ("pair_contrast", "distillation", "orthogonality", "code_buffer", "proxy")
# Terms that never read the cross-modal view.
_ALWAYS_UNIMODAL = (*_UNIMODAL_TERMS, "concept")
# Tables of `TrainingState`: `B` of `[algorithm-1]`, and the labels of all training pairs.
CODES, ALL_LABELS = "codes", "all_labels"


@strict
@dataclass
class CMFAHObjectiveConfig(ObjectiveConfig):
    """Settings of CMFAH's objective.

    Args:
        margin (`float`, defaults to 0.5):
            Margin of every triplet hinge.
        positive_overlap (`float`, defaults to 0):
            Pairs are positives of each other if the cosine of their labels or tags is larger. With 0, one shared label
            is enough.
        intra_feature_weight, intra_hash_weight, quantization_weight (`float`, default to 1):
            alpha, beta and gamma of `[intra]`.
        inter_feature_weight, inter_hash_weight (`float`, default to 1):
            delta and phi of `[inter]`.
        adversarial_weight (`float`, defaults to 1):
            Weight of `[adversarial]` in the towers' loss.
        label_weight (`float`, defaults to 1):
            Weight of `[label-guidance]`.
        label_positive_weight (`float`, defaults to 1):
            Weight of a present class relative to an absent one in `[label-guidance]`.
        similarity_weight (`float`, defaults to 0):
            Weight of `[label-similarity]`. The paper has no such term.
        concept_weight (`float`, defaults to 1):
            Weight of `[concept-guidance]`, if the guidance is "select". The paper has no such term.
        paired_weight (`float`, defaults to 1):
            Weight of the cross-modal view relative to the unimodal one.
        pair_contrast_weight (`float`, defaults to 0):
            Weight of `[pair-contrast]`.
        pair_contrast_temperature (`float`, defaults to 0.07):
            Divides the cosines of continuous codes.
        distillation_weight (`float`, defaults to 0):
            Weight of `[distillation]`, which needs a dual encoder.
        distillation_neighbors (`float`, defaults to 0):
            Share of the similarity of neighborhoods in the targets of `[distillation]`, from 0 to 1.
        orthogonality_weight (`float`, defaults to 0):
            Weight of `[orthogonality]`.
        code_buffer_weight (`float`, defaults to 0):
            Weight of `[code-buffer]`, which needs the codes of all training pairs (`codes_update="epoch"`).
        proxy_weight (`float`, defaults to 0):
            Weight of `[proxies]`, which needs classes.
        proxy_margin (`float`, defaults to 0):
            Cosine at or below which the proxy of an absent class adds nothing.

    Raises:
        ValueError: If a value is outside its range.
    """

    margin: float | int = 0.5
    positive_overlap: float | int = 0.0
    intra_feature_weight: float | int = 1.0
    intra_hash_weight: float | int = 1.0
    quantization_weight: float | int = 1.0
    inter_feature_weight: float | int = 1.0
    inter_hash_weight: float | int = 1.0
    adversarial_weight: float | int = 1.0
    label_weight: float | int = 1.0
    label_positive_weight: float | int = 1.0
    similarity_weight: float | int = 0.0
    concept_weight: float | int = 1.0
    paired_weight: float | int = 1.0
    pair_contrast_weight: float | int = 0.0
    pair_contrast_temperature: float | int = 0.07
    distillation_weight: float | int = 0.0
    distillation_neighbors: float | int = 0.0
    orthogonality_weight: float | int = 0.0
    code_buffer_weight: float | int = 0.0
    proxy_weight: float | int = 0.0
    proxy_margin: float | int = 0.0

    ranges = {
        "positive_overlap": (lambda value: 0 <= value < 1, "a cosine from 0 to below 1"),
        "pair_contrast_temperature": POSITIVE,
        "distillation_neighbors": SHARE_OR_ALL,
        "proxy_margin": (lambda value: -1 <= value <= 1, "a cosine"),
    }

    def apply_to(self, config: CMFAHConfig) -> None:
        """Removes the concepts of classes if `[concept-guidance]` does not train them.

        Raises:
            ValueError: If a term needs a dual encoder or classes that the towers do not have.
        """
        if not self.concept_weight:
            config.class_concepts = False
        if self.distillation_weight and config.dual_encoder_config is None:
            raise ValueError(
                "distillation_weight is above 0, and only a dual encoder has vectors to distill; give --dual_encoder."
            )
        if self.proxy_weight and not config.num_labels:
            raise ValueError("proxy_weight is above 0, and there are no classes; set it to 0.")


class CMFAHConceptHead(nn.Module):
    """`[concept-guidance]`: class logits from the largest cosine of each class's concept with a position."""

    def __init__(self, config: CMFAHConfig):
        super().__init__()
        self.log_scale = nn.Parameter(torch.empty(1))
        self.bias = nn.Parameter(torch.empty(config.num_labels or 0))

    def forward(self, cosines_BC: torch.Tensor) -> torch.Tensor:
        return self.log_scale.exp() * (cosines_BC.to(torch.promote_types(cosines_BC.dtype, torch.float32)) - self.bias)


@register_method("cmfah")
class CMFAHObjective(Objective):
    """CMFAH's objective, with both discriminators, the label head and the concept heads.

    Its terms are summed over modalities or directions and, with `paired_weight`, over views:
    `intra_feature`, `intra_hash`, `quantization`: J1, J2 and J3 of `[intra]`; `inter_feature`, `inter_hash`: J4 and J5
    of `[inter]`; `similarity`: `[label-similarity]`; `label`: `[label-guidance]`; `concept`: `[concept-guidance]`;
    `adversarial`: L_adv of `[adversarial]`, which the towers maximize.
    The following apply to unimodal codes, and are computed if they have a weight: `pair_contrast`: `[pair-contrast]`;
    `distillation`: `[distillation]`; `orthogonality`: `[orthogonality]`; `code_buffer`: `[code-buffer]`; `proxy`:
    `[proxies]`.
    """

    settings_class = CMFAHObjectiveConfig
    settings: CMFAHObjectiveConfig
    paper = Paper.from_bibtex("""@article{liang2022cmfah,
  title   = {Cross-Media Fine-Grained Representation Learning Based on Multi-modal Graph and Adversarial Hash Attention
             Network},
  author  = {Liang, Meiyu and Wang, Xiaoxiao and Du, Junping},
  journal = {Pattern Recognition and Artificial Intelligence},
  volume  = {35},
  number  = {3},
  pages   = {195--206},
  year    = {2022},
  doi     = {10.16451/j.cnki.issn1003-6059.202203001}
}""")

    def __init__(self, config: CMFAHConfig, settings: CMFAHObjectiveConfig):
        super().__init__(config, settings)
        self.image_discriminator = CMFAHDiscriminator._from_config(config)
        self.text_discriminator = CMFAHDiscriminator._from_config(config)
        self.label_head = nn.Linear(config.hash_bits, config.num_labels) if config.num_labels else None
        self.proxies = ClassProxies(config.num_labels or 0, config.hash_bits) if settings.proxy_weight else None
        guided = config.num_class_concepts > 0
        self.image_concept_head = CMFAHConceptHead(config) if guided and config.attends_image else None
        self.text_concept_head = CMFAHConceptHead(config) if guided and config.attends_text else None
        of_view = {name: weight for name, weight in self.weights.items() if name not in _ALWAYS_UNIMODAL}
        # Weights of discriminators, which read the unimodal view, are negative.
        crosses = settings.paired_weight > 0 and any(weight > 0 for weight in of_view.values())
        self.needs_cross_modal = settings.quantization_weight > 0 or crosses
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, CMFAHConceptHead):
            init.constant_(module.log_scale, math.log(10))
            init.constant_(module.bias, 0.3)
        elif isinstance(module, ClassProxies):
            init.normal_(module.weight)

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the terms in the total, in the order of summation: L_gen - L_adv."""
        weights = {name: getattr(self.settings, f"{name}_weight") for name in (*_TERMS, *_UNIMODAL_TERMS)}
        return {**weights, "adversarial": -self.settings.adversarial_weight}

    @property
    def discriminators(self) -> nn.ModuleList:
        """All discriminators."""
        return nn.ModuleList([self.image_discriminator, self.text_discriminator])

    def players(self) -> list[Player]:
        """All discriminators as one player, which is inactive if `adversarial_weight` is 0."""
        return [
            Player(
                "discriminator",
                self.discriminators,
                lambda batch, outputs, state: added(self.adversarial_losses(outputs).values()),
                bool(self.settings.adversarial_weight),
            )
        ]

    def adversarial_losses(self, outputs: CMFAHForPreTrainingOutput) -> dict[str, torch.Tensor]:
        """The terms that the discriminators minimize and the towers maximize, by name.

        For the step of the discriminators, the outputs are detached.
        """
        image, text = outputs.unimodal
        loss = discriminator_loss(self.image_discriminator, self.text_discriminator, image.features, text.features)
        return {"adversarial": loss}

    def view_terms(
        self, image: View, text: View, labels: torch.Tensor, codes_BK: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The terms of one view, for labels as in `pairwise_similarity`: `pair_losses` and `guidance_terms`."""
        settings = self.settings
        hinges = any(self.weights[name] for name in _HINGES)
        terms = pair_losses(image, text, labels, codes_BK, settings.margin, settings.positive_overlap, hinges)
        return {**terms, **self.guidance_terms(image, text, labels)}

    def guidance_terms(self, image: View, text: View, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """`[label-guidance]` and `[concept-guidance]` of one view, if the objective has their heads."""
        terms: dict[str, torch.Tensor] = {}
        if self.label_head is not None:
            terms["label"] = added(
                label_guidance_loss(self.label_head(view.hash_values), labels, self.settings.label_positive_weight)
                for view in (image, text)
            )
        answered = [
            label_guidance_loss(head(view.concept_cosines[:, : self.config.num_labels]), labels)
            for head, view in ((self.image_concept_head, image), (self.text_concept_head, text))
            if head is not None and view.concept_cosines is not None  # only in the unimodal view
        ]
        return {**terms, "concept": added(answered)} if answered else terms

    def unimodal_terms(
        self, labels: torch.Tensor, outputs: CMFAHForPreTrainingOutput, state: TrainingState
    ) -> dict[str, torch.Tensor]:
        """The terms of unimodal codes that have a weight."""
        settings, (image, text) = self.settings, outputs.unimodal
        terms: dict[str, torch.Tensor] = {}
        if settings.pair_contrast_weight:
            terms["pair_contrast"] = pair_contrast_loss(
                image.hash_values, text.hash_values, settings.pair_contrast_temperature
            )
        if settings.distillation_weight:
            similarity_UU = vector_similarity(*outputs.vectors, settings.distillation_neighbors)
            terms["distillation"] = distillation_loss(image.hash_values, text.hash_values, similarity_UU)
        if settings.orthogonality_weight:
            _, unrelated_BB = triplet_masks(labels, within=False, positive_overlap=settings.positive_overlap)
            terms["orthogonality"] = added(
                orthogonality_loss(cosine_matrix(one, other), unrelated_BB, self.config.hash_bits)
                for one, other in product((image.hash_values, text.hash_values), repeat=2)
            )
        if settings.code_buffer_weight and CODES in state.tables:
            terms["code_buffer"] = self._code_buffer_term(labels, (image, text), state)
        if self.proxies is not None:
            terms["proxy"] = added(
                proxy_loss(self.proxies(view.hash_values), labels, settings.proxy_margin) for view in (image, text)
            )
        return terms

    def _code_buffer_term(self, labels: torch.Tensor, views: tuple[View, View], state: TrainingState) -> torch.Tensor:
        codes_NK, all_labels = (state.table_on(labels.device, name) for name in (CODES, ALL_LABELS))
        overlap_BN, known_B, known_N = similarity_between(labels, all_labels)
        return added(
            code_buffer_loss(
                view.hash_values, codes_NK, overlap_BN > self.settings.positive_overlap, known_B[:, None] & known_N
            )
            for view in views
        )

    def forward(self, batch: Batch, outputs: CMFAHForPreTrainingOutput, state: TrainingState) -> Losses:
        """L_gen - L_adv over both views.

        Args:
            batch: `labels`, as in `pairwise_similarity`, and `codes`, `(B, K)` of -1 and +1, `B` of `[algorithm-1]`.
                Without codes, they are `sgn(H_v + H_t)` of this batch.
            outputs: The outputs of the model's `forward`, with the graph.
            state: Its tables, for `[code-buffer]`.
        """
        labels = batch["labels"]
        terms = views_losses(
            outputs.unimodal,
            outputs.cross_modal if self.config.attention != "none" else None,
            batch.get(CODES),
            self.settings.paired_weight,
            lambda image, text, codes_BK: self.view_terms(image, text, labels, codes_BK),
        )
        terms |= self.unimodal_terms(labels, outputs, state)
        if self.settings.adversarial_weight:  # otherwise the discriminators are not trained
            terms |= self.adversarial_losses(outputs)
        return Losses.weighted(terms, self.weights)

    def on_epoch_end(self, state: TrainingState) -> None:
        """`B = sgn(H_v + H_t)` of all training pairs, in the cross-modal view, if a term reads it; `[algorithm-1]`."""
        read = self.settings.quantization_weight or self.settings.code_buffer_weight
        if state.encode is None or not read:
            return
        codes_NK = torch.empty(state.num_pairs, self.config.hash_bits, dtype=torch.int8)
        all_labels: torch.Tensor | None = None
        for encoded in state.encode():
            codes_NK[encoded.rows] = sign(encoded.image_hash + encoded.text_hash).to(torch.int8)
            if self.settings.code_buffer_weight:
                if all_labels is None:
                    all_labels = encoded.labels.new_empty(state.num_pairs, *encoded.labels.shape[1:])
                all_labels[encoded.rows] = encoded.labels
        state.tables[CODES] = codes_NK
        if all_labels is not None:
            state.tables[ALL_LABELS] = all_labels
