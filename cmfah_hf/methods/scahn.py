"""SCAHN's objective: that of CMFAH with label graph guidance, contrasts, and discriminators over codes.

Shape suffixes: B pairs of a batch, D feature width, K hash bits, C classes.
"""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import initialization as init

from cmfah_hf.methods.base import Batch, Losses, Paper, TrainingState
from cmfah_hf.methods.cmfah import CMFAHObjective, CMFAHObjectiveConfig
from cmfah_hf.methods.contrast import ContrastQueue, contrast_losses, graph_logits
from cmfah_hf.methods.discriminators import CMFAHDiscriminator, discriminator_loss
from cmfah_hf.methods.label_graph import LabelGraph
from cmfah_hf.methods.losses import added, label_guidance_loss
from cmfah_hf.methods.outputs import CMFAHForPreTrainingOutput, View
from cmfah_hf.methods.registry import register_method
from cmfah_hf.models.configuration_cmfah import CMFAHConfig
from cmfah_hf.ranges import POSITIVE, SHARE

ADVERSARIAL = ("none", "features", "hash", "both")


@strict
@dataclass
class SCAHNObjectiveConfig(CMFAHObjectiveConfig):
    """Settings of SCAHN's objective, in addition to those of CMFAH's.

    The weights of the four triplet hinges are 0 by default, because the contrasts replace them.

    Args:
        use_label_graph (`bool`, defaults to `True`):
            Whether features are guided by the label graph, `[graph-guidance]`, which needs classes.
        label_graph_weight (`float`, defaults to 1):
            Weight of `[graph-guidance]`.
        label_graph_threshold (`float`, defaults to 0.4):
            tau of `[label-graph]`: minimum conditional probability of one label given another for an edge.
        label_graph_share (`float`, defaults to 0.2):
            p of `[label-graph]`: the total weight of a label's neighbors relative to the label itself.
        label_graph_temperature (`float`, defaults to 0.1):
            Divides the cosines of features and label features.
        use_cross_contrast, use_intra_contrast (`bool`, default to `True`):
            Whether pairs are contrasted across modalities, and within each modality, `[contrastive]`.
        cross_contrast_weight, intra_contrast_weight (`float`, default to 1):
            Weights of the two.
        contrast_temperature (`float`, defaults to 0.2):
            Divides the cosines of continuous codes.
        queue_size (`int`, defaults to 0):
            Pairs of earlier batches that are also contrasted. 0: only those of the batch.
        adversarial (`str`, defaults to `"both"`):
            Input of the discriminators, `[dual-adversarial]`: `"features"`, as in CMFAH, `"hash"` for continuous codes,
            `"both"`, or `"none"`, which takes `adversarial_weight` as 0.

    Raises:
        ValueError: If a value is outside its range.
    """

    intra_feature_weight: float | int = 0.0
    intra_hash_weight: float | int = 0.0
    inter_feature_weight: float | int = 0.0
    inter_hash_weight: float | int = 0.0
    use_label_graph: bool = True
    label_graph_weight: float | int = 1.0
    label_graph_threshold: float | int = 0.4
    label_graph_share: float | int = 0.2
    label_graph_temperature: float | int = 0.1
    use_cross_contrast: bool = True
    use_intra_contrast: bool = True
    cross_contrast_weight: float | int = 1.0
    intra_contrast_weight: float | int = 1.0
    contrast_temperature: float | int = 0.2
    queue_size: int = 0
    adversarial: str = "both"

    ranges = {
        **CMFAHObjectiveConfig.ranges,
        **dict.fromkeys(("label_graph_temperature", "contrast_temperature"), POSITIVE),
        "label_graph_threshold": (lambda value: 0 < value <= 1, "a probability above 0, up to 1"),
        "label_graph_share": SHARE,
        "queue_size": (lambda value: value >= 0, "a number of pairs, or 0 for none"),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adversarial not in ADVERSARIAL:
            raise ValueError(f"adversarial is {self.adversarial!r}; choose one of {', '.join(ADVERSARIAL)}.")
        if self.adversarial == "none":
            self.adversarial_weight = 0.0

    def apply_to(self, config: CMFAHConfig) -> None:
        """As CMFAH's; raises a `ValueError` if the label graph or the queue is used without classes."""
        super().apply_to(config)
        if not config.num_labels and self.use_label_graph:
            raise ValueError("The label graph is made of labels, and there are no classes; set use_label_graph false.")
        if not config.num_labels and self.queue_size:
            raise ValueError("The queue keeps labels, and there are no classes; set queue_size 0.")


@register_method("scahn")
class SCAHNObjective(CMFAHObjective):
    """SCAHN's objective, with the label graph, the queue, and discriminators over features and over codes.

    `label_graph.fill` sets the graph of the training labels. In training mode, each computed loss appends its batch to
    the queue.

    Further terms: `cross_contrast`, `intra_contrast`: `[contrastive]` across modalities and within each; `graph`:
    `[graph-guidance]`; `adversarial_hash`: L_adv of `[dual-adversarial]` over continuous codes.
    """

    settings_class = SCAHNObjectiveConfig
    settings: SCAHNObjectiveConfig
    model_type = "scahn"
    paper = Paper.from_bibtex("""@inproceedings{liang2022scahn,
  title     = {Semantic Structure Enhanced Contrastive Adversarial Hash Network for Cross-media Representation
               Learning},
  author    = {Liang, Meiyu and Du, Junping and Cao, Xiaowen and Yu, Yang and Lu, Kangkang and Xue, Zhe and Zhang, Min},
  booktitle = {Proceedings of the ACM International Conference on Multimedia},
  year      = {2022},
  doi       = {10.1145/3503161.3548391}
}""")

    def __init__(self, config: CMFAHConfig, settings: SCAHNObjectiveConfig):
        super().__init__(config, settings)
        self.label_graph = self.contrast_queue = None
        if settings.use_label_graph:
            self.label_graph = LabelGraph(
                config.num_labels or 0,
                config.word_dim,
                config.hidden_size,
                settings.label_graph_threshold,
                settings.label_graph_share,
            )
        if settings.queue_size and (settings.use_cross_contrast or settings.use_intra_contrast):
            self.contrast_queue = ContrastQueue(settings.queue_size, config.hash_bits, config.num_labels or 0)
        self.image_hash_discriminator = self.text_hash_discriminator = None
        if settings.adversarial in ("hash", "both"):
            self.image_hash_discriminator = CMFAHDiscriminator._from_config(config, width=config.hash_bits)
            self.text_hash_discriminator = CMFAHDiscriminator._from_config(config, width=config.hash_bits)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LabelGraph):
            init.zeros_(module.counts)
            init.copy_(module.vectors, module.first_vectors(*module.vectors.shape))
        elif isinstance(module, ContrastQueue):
            for buffer in module.buffers():
                init.zeros_(buffer)

    @property
    def weights(self) -> dict[str, float]:
        weights, settings = super().weights, self.settings
        adversarial = weights.pop("adversarial")
        return {
            **weights,
            "cross_contrast": settings.cross_contrast_weight,
            "intra_contrast": settings.intra_contrast_weight,
            "graph": settings.label_graph_weight,
            "adversarial": adversarial,
            "adversarial_hash": adversarial,
        }

    @property
    def discriminators(self) -> nn.ModuleList:
        over_codes = (self.image_hash_discriminator, self.text_hash_discriminator)
        return nn.ModuleList([*super().discriminators, *(each for each in over_codes if each is not None)])

    def adversarial_losses(self, outputs: CMFAHForPreTrainingOutput) -> dict[str, torch.Tensor]:
        """`[dual-adversarial]`: L_adv over features, over continuous codes, or both, by `adversarial`."""
        terms = super().adversarial_losses(outputs) if self.settings.adversarial in ("features", "both") else {}
        if self.image_hash_discriminator is not None and self.text_hash_discriminator is not None:
            image, text = outputs.unimodal
            terms["adversarial_hash"] = discriminator_loss(
                self.image_hash_discriminator, self.text_hash_discriminator, image.hash_values, text.hash_values
            )
        return terms

    def guidance_terms(self, image: View, text: View, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """As CMFAH's, with `[contrastive]` and `[graph-guidance]`."""
        settings = self.settings
        contrasts = contrast_losses(
            image.hash_values,
            text.hash_values,
            labels,
            settings.contrast_temperature,
            settings.use_cross_contrast,
            settings.use_intra_contrast,
            settings.positive_overlap,
            self.contrast_queue.pairs if self.contrast_queue is not None else None,
        )
        terms = {**super().guidance_terms(image, text, labels), **contrasts}
        if self.label_graph is not None:
            label_features_CD = self.label_graph()
            terms["graph"] = added(
                label_guidance_loss(
                    graph_logits(view.features, label_features_CD, settings.label_graph_temperature),
                    labels,
                    settings.label_positive_weight,
                )
                for view in (image, text)
            )
        return terms

    def forward(self, batch: Batch, outputs: CMFAHForPreTrainingOutput, state: TrainingState) -> Losses:
        """As CMFAH's; in training mode, the batch's unimodal codes are then appended to the queue."""
        found = super().forward(batch, outputs, state)
        if self.training and self.contrast_queue is not None:
            image, text = outputs.unimodal
            self.contrast_queue.push(image.hash_values, text.hash_values, batch["labels"])
        return found
