"""Discriminators between the modalities, and their loss.

Shape suffixes: B pairs of a batch, N items of both modalities, D feature width, X width of features or codes.
"""

import torch
from torch import nn
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from cmfah_hf.methods.outputs import CMFAHDiscriminatorOutput
from cmfah_hf.models.configuration_cmfah import CMFAHConfig
from cmfah_hf.models.modeling_cmfah import CMFAHPreTrainedModel


class CMFAHDiscriminator(CMFAHPreTrainedModel):
    """`[adversarial]`: a three-layer MLP that distinguishes features of one modality from those of the other.

    Args:
        config: The configuration of the towers.
        width: The width of its input. None: the `hidden_size` of features.

    Example:

    ```python
    >>> CMFAHDiscriminator(config)(features).logits  # (B,)
    ```"""

    main_input_name = "features"
    supports_gradient_checkpointing = False
    _can_record_outputs = {}

    def __init__(self, config: CMFAHConfig, width: int | None = None):
        super().__init__(config)
        width = config.hidden_size if width is None else width
        widths = [max(1, width // divisor) for divisor in (2, 4)]
        self.dense_in = nn.Linear(width, widths[0])
        self.dense_hidden = nn.Linear(widths[0], widths[1])
        self.dense_out = nn.Linear(widths[1], 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self, features: torch.FloatTensor, labels: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> CMFAHDiscriminatorOutput:
        """
        Args:
            features: `(B, D)`, of either modality.
            labels: `(B,)`, 1 for real features and 0 for fake ones.
        """
        hidden = nn.functional.leaky_relu(self.dense_in(features), 0.2)
        hidden = nn.functional.leaky_relu(self.dense_hidden(hidden), 0.2)
        logits = self.dense_out(hidden).squeeze(-1)
        loss = None
        if labels is not None:
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return CMFAHDiscriminatorOutput(loss=loss, logits=logits)


def discriminator_loss(
    image_discriminator: CMFAHDiscriminator,
    text_discriminator: CMFAHDiscriminator,
    image_BX: torch.Tensor,
    text_BX: torch.Tensor,
) -> torch.Tensor:
    """L_adv of `[adversarial]`: each discriminator labels its own modality 1 and the other 0."""
    # Both modalities in one batch, for half as many passes. The loss is a mean over both, hence the factor 2.
    both_NX = torch.cat([image_BX, text_BX])
    is_image_N = torch.arange(len(both_NX), device=both_NX.device) < len(image_BX)
    image = image_discriminator(both_NX, labels=is_image_N).loss
    return 2 * (image + text_discriminator(both_NX, labels=~is_image_N).loss)


def three_layers(width: int) -> nn.Sequential:
    """The discriminators of `[agah]` and `[ssah]`: large for features of its own modality, or of labels."""
    half = max(1, width // 2)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, half), nn.ReLU(), nn.Linear(half, 1))
