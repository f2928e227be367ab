"""SCAHN: CMFAH's towers, trained by a graph of labels, by contrasts, and by adversaries on features and hash values.

Shape suffixes: B pairs of a batch, D feature width, K hash bits, C classes, E width of word vectors.
Equations are cited by their tags in `docs/method.md`.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init

from .configuration_scahn import SCAHNConfig
from .label_graph import LabelGraph
from .losses import label_guidance_loss, weighted_total
from .losses_scahn import ContrastQueue, EarlierPairs, contrast_losses, graph_logits
from .modeling_cmfah import (
    CMFAHDiscriminator,
    CMFAHForPreTraining,
    CMFAHImageModel,
    CMFAHModel,
    CMFAHPreTrainedModel,
    CMFAHTextModel,
    load_from_wholes,
    opponents_loss,
)
from .outputs_cmfah import CMFAHForPreTrainingOutput, CMFAHLosses, CMFAHTowerOutput

# What the training checkpoint holds beside what CMFAH's does.
_TRAINING_KEYS = [r"^(label_graph|contrast_queue)\.", r"^(image|text)_hash_discriminator\."]


@dataclass
class SCAHNLosses(CMFAHLosses):
    """The terms of CMFAH's loss and those of SCAHN's, before their weights, summed as those are; scalars.

    Args:
        cross_contrast, intra_contrast: `[contrastive]` across the modalities and within each.
        graph: `[graph-guidance]`; `SCAHNForPreTraining` alone.
        adversarial_hash: L_adv of `[dual-adversarial]` on hash values; `SCAHNForPreTraining` alone.
    """

    cross_contrast: torch.FloatTensor | None = None
    intra_contrast: torch.FloatTensor | None = None
    graph: torch.FloatTensor | None = None
    adversarial_hash: torch.FloatTensor | None = None


class SCAHNPreTrainedModel(CMFAHPreTrainedModel):
    """What all SCAHN models have in common: their configuration, and the contrasts, which need no layer of their own.

    In a checkpoint the towers stand under `cmfah`, as in CMFAH's own.
    """

    config: SCAHNConfig
    config_class = SCAHNConfig
    losses_class = SCAHNLosses

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, LabelGraph):
            init.zeros_(module.counts)
            init.copy_(module.vectors, module.first_vectors(*module.vectors.shape))
        elif isinstance(module, ContrastQueue):
            for buffer in module.buffers():
                init.zeros_(buffer)

    def _earlier_pairs(self) -> EarlierPairs | None:
        """The pairs of earlier batches that those of a batch are contrasted with, where such are kept."""
        return None

    def view_terms(
        self, image: CMFAHTowerOutput, text: CMFAHTowerOutput, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """As CMFAH's, with `[contrastive]`."""
        config = self.config
        contrasts = contrast_losses(
            image.hash_values,
            text.hash_values,
            labels,
            config.contrast_temperature,
            config.use_cross_contrast,
            config.use_intra_contrast,
            config.positive_overlap,
            self._earlier_pairs(),
        )
        return {**super().view_terms(image, text, labels), **contrasts}

    def weighted_total(self, losses: SCAHNLosses) -> torch.Tensor:
        """As CMFAH's, with the weights of the further terms."""
        config = self.config
        further = {
            "cross_contrast": config.cross_contrast_weight,
            "intra_contrast": config.intra_contrast_weight,
            "graph": config.label_graph_weight,
            "adversarial_hash": -config.adversarial_weight,
        }
        return weighted_total(losses, config, further)


class SCAHNImageModel(SCAHNPreTrainedModel, CMFAHImageModel):
    """The image tower, as CMFAH's."""

    _keys_to_ignore_on_load_unexpected = [*CMFAHImageModel._keys_to_ignore_on_load_unexpected, *_TRAINING_KEYS]


class SCAHNTextModel(SCAHNPreTrainedModel, CMFAHTextModel):
    """The text tower, as CMFAH's."""

    _keys_to_ignore_on_load_unexpected = [*CMFAHTextModel._keys_to_ignore_on_load_unexpected, *_TRAINING_KEYS]


class SCAHNModel(SCAHNPreTrainedModel, CMFAHModel):
    """Both towers, as CMFAH's. Given labels, the loss has the contrasts, within the batch.

    Example:

    ```python
    >>> from cmfah_hf import CMFAHProcessor, SCAHNModel

    >>> model = SCAHNModel.from_pretrained("path/to/checkpoint")
    >>> processor = CMFAHProcessor.from_pretrained("path/to/checkpoint")
    >>> inputs = processor(text=["a dog on the beach"], return_tensors="pt")
    >>> hash_values = model.get_text_hash(**inputs)  # the text alone, (1, K)
    ```"""

    _keys_to_ignore_on_load_unexpected = [*CMFAHModel._keys_to_ignore_on_load_unexpected, *_TRAINING_KEYS]
    image_model_class = SCAHNImageModel
    text_model_class = SCAHNTextModel


class SCAHNForPreTraining(SCAHNPreTrainedModel, CMFAHForPreTraining):
    """The towers with all that trains them: as CMFAH's, with the label graph, the queue and a second pair of opponents.

    The graph is that of the training labels once `label_graph.fill` was given their counts and vectors. In training
    mode each computed loss puts its batch into the queue.
    """

    towers_class = SCAHNModel

    def __init__(self, config: SCAHNConfig):
        super().__init__(config)
        self.label_graph = self.contrast_queue = None
        if config.use_label_graph:
            self.label_graph = LabelGraph(
                config.num_labels,
                config.word_dim,
                config.hidden_size,
                config.label_graph_threshold,
                config.label_graph_share,
            )
        if config.queue_size and (config.use_cross_contrast or config.use_intra_contrast):
            self.contrast_queue = ContrastQueue(config.queue_size, config.hash_bits, config.num_labels)
        self.image_hash_discriminator = self.text_hash_discriminator = None
        if config.adversarial in ("hash", "both"):
            self.image_hash_discriminator = CMFAHDiscriminator._from_config(config, width=config.hash_bits)
            self.text_hash_discriminator = CMFAHDiscriminator._from_config(config, width=config.hash_bits)
        self.post_init()

    @property
    def discriminators(self) -> nn.ModuleList:
        on_hash = (self.image_hash_discriminator, self.text_hash_discriminator)
        return nn.ModuleList([*super().discriminators, *(each for each in on_hash if each is not None)])

    def adversarial_losses(self, outputs: CMFAHForPreTrainingOutput) -> dict[str, torch.Tensor]:
        """`[dual-adversarial]`: L_adv on features, on hash values, or on both, as `adversarial` says."""
        terms = super().adversarial_losses(outputs) if self.config.adversarial in ("features", "both") else {}
        if self.image_hash_discriminator is not None:
            opponents = self.image_hash_discriminator, self.text_hash_discriminator
            terms["adversarial_hash"] = opponents_loss(*opponents, outputs.image_hash, outputs.text_hash)
        return terms

    def _earlier_pairs(self) -> EarlierPairs | None:
        return self.contrast_queue.pairs if self.contrast_queue is not None else None

    def view_terms(
        self, image: CMFAHTowerOutput, text: CMFAHTowerOutput, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """As CMFAH's, with `[contrastive]` and `[graph-guidance]`."""
        terms = super().view_terms(image, text, labels)
        if self.label_graph is not None:
            label_features_CD = self.label_graph()
            terms["graph"] = sum(
                label_guidance_loss(
                    graph_logits(tower.features, label_features_CD, self.config.label_graph_temperature),
                    labels,
                    self.config.label_positive_weight,
                )
                for tower in (image, text)
            )
        return terms

    def towers_losses(
        self, outputs: CMFAHForPreTrainingOutput, labels: torch.Tensor, codes: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, SCAHNLosses]:
        """As CMFAH's; in training mode the batch then enters the queue, by the hash values of the items alone."""
        found = super().towers_losses(outputs, labels, codes)
        if self.training and self.contrast_queue is not None:
            self.contrast_queue.push(outputs.image_hash, outputs.text_hash, labels)
        return found


load_from_wholes(SCAHNImageModel, SCAHNTextModel)


__all__ = [
    "SCAHNForPreTraining",
    "SCAHNImageModel",
    "SCAHNLosses",
    "SCAHNModel",
    "SCAHNPreTrainedModel",
    "SCAHNTextModel",
]
