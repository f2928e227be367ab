"""Models with an objective: both towers, and the layers that are only used in training."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForPreTraining
from transformers.dynamic_module_utils import custom_object_save
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from cmfah_hf.methods.base import NAME_KEY, ObjectiveConfig, TrainingState
from cmfah_hf.methods.outputs import CMFAHForPreTrainingOutput
from cmfah_hf.methods.registry import objective_class
from cmfah_hf.models.configuration_cmfah import CMFAHConfig
from cmfah_hf.models.configuration_feature_hash import FeatureHashConfig
from cmfah_hf.models.configuration_feature_map import FeatureMapConfig
from cmfah_hf.models.configuration_scahn import SCAHNConfig
from cmfah_hf.models.model_files import ModelFileError
from cmfah_hf.models.modeling_cmfah import CMFAHPreTrainedModel
from cmfah_hf.models.registration import MODELS

# Names of the objective's tensors in checkpoints of earlier versions, without the prefix `objective.`.
_FORMER_NAMES = re.compile(
    r"(image|text)_(hash_)?discriminator\.|(image|text)_concept_head\.|label_(head|graph)\.|contrast_queue\."
)


class CMFAHForPreTraining(CMFAHPreTrainedModel):
    """Both towers with an objective, by default CMFAH's.

    Every batch is encoded in two views, unimodal and cross-modal. The objective is saved with the weights, and its
    settings in the section `objective` of the configuration. `CMFAHModel.from_pretrained` loads only the towers.

    Args:
        config: The configuration of the towers.
        objective: The settings of the objective. None: those in the section `objective` of the configuration, or the
            defaults.
        method: The name of the method. None: that of the section, or the `model_type` of the configuration.

    Raises:
        ValueError: If the method is unknown, a setting is unknown or outside its range, or the objective cannot train
            such towers.

    Example:

    ```python
    >>> from cmfah_hf import CMFAHConfig, CMFAHForPreTraining, CMFAHObjectiveConfig

    >>> model = CMFAHForPreTraining(CMFAHConfig(hash_bits=32), CMFAHObjectiveConfig(label_weight=8))
    >>> model.objective.settings.label_weight
    8
    ```"""

    def __init__(self, config: CMFAHConfig, objective: ObjectiveConfig | None = None, method: str | None = None):
        super().__init__(config)
        section = config.objective or {}
        method = method or section.get(NAME_KEY) or config.model_type
        if not isinstance(method, str):
            raise ModelFileError(f"The objective's {NAME_KEY} is {str(method)[:80]!r}, and not the name of a method.")
        kind = objective_class(method)
        if kind.model_type != config.model_type:
            raise ValueError(
                f"The method {method!r} trains a model of {kind.model_type!r}, not of {config.model_type!r}."
            )
        if objective is None:
            objective = kind.settings_class.from_section(section if section.get(NAME_KEY, method) == method else {})
        objective.apply_to(config)
        config.objective = objective.to_section(method)
        self.cmfah = MODELS[config.model_type].model._from_config(config)
        self.objective = kind(config, objective)
        self.register_load_state_dict_pre_hook(_rename_former)
        self.post_init()

    @classmethod
    def _current_names(cls, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {current_name(name): tensor for name, tensor in tensors.items()}

    def save_pretrained(
        self, save_directory: str | os.PathLike, is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> Any:
        """As the parent's, and saves the code of the towers for `AutoModel`."""
        self.config.auto_map = {}
        if is_main_process and not Path(save_directory).is_file():  # which the parent reports
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            # The configuration is annotated as a dict.
            custom_object_save(self.cmfah, save_directory, config=self.config)  # type: ignore[arg-type]
        return super().save_pretrained(save_directory, is_main_process, *args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        region_features: torch.FloatTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        codes: torch.Tensor | None = None,
        paired: bool = True,
        token_features: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CMFAHForPreTrainingOutput:
        """
        Args:
            pixel_values: `(B, 3, H, W)`, or `region_features` `(B, R, C)`.
            input_ids: `(B, W)`, or `inputs_embeds` `(B, W, word_dim)`.
            attention_mask: `(B, W)`, 1 at the tokens that exist.
            labels: `(B, C)`, multi-hot. If given, the loss is computed.
            codes: `(B, K)` of -1 and +1, `B` of `[algorithm-1]`. None: `sgn(H_v + H_t)` of this batch.
            paired: Whether to compute the cross-modal view. Without attention it equals the unimodal one.
            token_features: `(B, W, C)`, precomputed tokens of the text encoder, instead of `input_ids`.
        """
        images = self.cmfah.image_model.embeddings(pixel_values, region_features)
        texts = self.cmfah.text_model.embeddings(input_ids, attention_mask, inputs_embeds, token_features)
        views = self.cmfah.encode_views(images, texts, cross_modal=paired, **kwargs)
        outputs = CMFAHForPreTrainingOutput(
            image_hash=views.image.hash_values,
            text_hash=views.text.hash_values,
            image_features=views.image.features,
            text_features=views.text.features,
            image_concept_cosines=views.image.concept_cosines,
            text_concept_cosines=views.text.concept_cosines,
            image_vectors=images.pooled,
            text_vectors=texts.pooled,
            image_logits=views.image.hash_logits,
            text_logits=views.text.hash_logits,
            image_model_output=views.cross_modal_image,
            text_model_output=views.cross_modal_text,
        )
        if labels is not None:
            batch = {"labels": labels} if codes is None else {"labels": labels, "codes": codes}
            losses = self.objective(batch, outputs, TrainingState())
            outputs.loss, outputs.losses = losses.total, losses.terms
        return outputs


def current_name(name: str) -> str:
    """The current name of a tensor in a checkpoint, which may be of an earlier version."""
    return f"objective.{name}" if _FORMER_NAMES.match(name) else name


def _rename_former(module: nn.Module, tensors: dict[str, Any], prefix: str, *args: Any) -> None:
    """Renames tensors of earlier versions for `load_state_dict`."""
    for name in [name for name in tensors if name.startswith(prefix)]:
        tensors[prefix + current_name(name.removeprefix(prefix))] = tensors.pop(name)


class SCAHNForPreTraining(CMFAHForPreTraining):
    """SCAHN's towers with an objective, by default SCAHN's."""

    config: SCAHNConfig
    config_class = SCAHNConfig


class FeatureHashForPreTraining(CMFAHForPreTraining):
    """Towers over one feature with the objective of a deep method, which has no default.

    Raises:
        ValueError: If neither `method` nor the configuration names the method.
    """

    config: FeatureHashConfig
    config_class = FeatureHashConfig


class FeatureMapForPreTraining(CMFAHForPreTraining):
    """Maps of one feature with the settings of a shallow method, which has no default.

    Raises:
        ValueError: If neither `method` nor the configuration names the method.
    """

    config: FeatureMapConfig
    config_class = FeatureMapConfig


# By the `model_type` of their configurations.
PRETRAINING_MODELS: dict[str, type[CMFAHForPreTraining]] = {
    "cmfah": CMFAHForPreTraining,
    "scahn": SCAHNForPreTraining,
    "feature_hash": FeatureHashForPreTraining,
    "feature_map": FeatureMapForPreTraining,
}

for _model in PRETRAINING_MODELS.values():
    AutoModelForPreTraining.register(_model.config_class, _model, exist_ok=True)
