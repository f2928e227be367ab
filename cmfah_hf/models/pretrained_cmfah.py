"""The base class of all models: loading and saving, initial weights, recorded outputs."""

import os
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import CONFIG_NAME

from .configuration_cmfah import CMFAHConfig
from .dual_encoder import Side, linked_tensors, without_encoder
from .lstm_cmfah import CMFAHLSTM
from .model_files import HUB_ARGUMENTS, find_file, hub_arguments, is_file, pinned
from .modules_cmfah import (
    CMFAHBitQueries,
    CMFAHCoAttention,
    CMFAHEncoder,
    CMFAHHashHead,
    CMFAHLayer,
    CMFAHResidualBlock,
    CMFAHSelection,
)
from .safe_weights import align_weights, building_for, check_fit, find_weights, read_weights

# Arguments of `from_pretrained` for the weights, although configurations also have these attributes.
_OF_WEIGHTS = ("dtype", "torch_dtype", "quantization_config", "attn_implementation")
# Tensors of the objective in a training checkpoint; the second pattern is that of earlier versions.
TRAINING_KEYS = [
    r"^objective\.",
    r"^((image|text)_((hash_)?discriminator|concept_head)|label_(head|graph)|contrast_queue)\.",
]


def _is_setting(config_class: type[CMFAHConfig], name: str) -> bool:
    return name not in _OF_WEIGHTS and hasattr(config_class, name)


class CMFAHPreTrainedModel(PreTrainedModel):
    """Base class of all CMFAH models: configuration, initial weights, loading, recorded outputs."""

    config: CMFAHConfig
    config_class = CMFAHConfig
    base_model_prefix = "cmfah"
    main_input_name = "pixel_values"
    input_modalities: str | list[str] = ["image", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["CMFAHLayer", "CMFAHTorchvisionBackbone", "CMFAHTextCNN"]
    _can_record_outputs = {"hidden_states": CMFAHLayer, "attentions": [CMFAHCoAttention, CMFAHSelection]}
    # What each tower hashes its features with.
    _build_head: Any = CMFAHHashHead
    # Prefixes of tensor names in checkpoints of a larger model.
    _names_begin_with: tuple[str, ...] = ("cmfah.",)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """Loads a model from safetensors, which are checked before the model is built.

        Only `config.json` and the weights are read, both within the folder or repository. Results do not depend on the
        layout of the files. `trust_remote_code=True` allows the code of an encoder that `config.json` names to run.

        Raises:
            ModelFileError: If a file is damaged or outside the folder, or the files do not fit together.
            ValueError: If another weight format is requested, or the checkpoint is of another architecture.
            OSError: If there are no safetensors, or the Hub cannot be reached.
        """
        source, trusts = pretrained_model_name_or_path, kwargs.pop("trust_remote_code", None)
        if kwargs.pop("use_safetensors", None) is False or kwargs.get("gguf_file") is not None:
            raise ValueError("Weights in other formats than safetensors are pickles or foreign, and never loaded.")
        if source is None or kwargs.get("state_dict") is not None:
            given, may_differ = kwargs.get("state_dict") or {}, kwargs.get("ignore_mismatched_sizes", False)
            with building_for(cls, given, cls._names_begin_with, "state_dict", may_differ):
                return super().from_pretrained(source, *model_args, config=config, **kwargs)
        hub = hub_arguments(kwargs)
        options = {name: value for name, value in kwargs.items() if name not in HUB_ARGUMENTS}
        if not isinstance(config, PreTrainedConfig):
            settings = {name: options.pop(name) for name in list(options) if _is_setting(cls.config_class, name)}
            where, settings["trust_remote_code"] = source if config is None else config, trusts
            hub = pinned(source, None if is_file(source) else find_file(source, CONFIG_NAME, hub), hub)
            config = cls.config_class.from_pretrained(where, **hub, **settings)
        ignored = cls._keys_to_ignore_on_load_unexpected or ()  # those of the other tower are not even read
        files = find_weights(source, options.pop("variant", None), hub)
        tensors = cls._current_names(read_weights(files, ignored))
        if config.encoder_source is not None:
            of_towers: dict[str, Side] = {"image": "image", "text": "text"}
            alone = of_towers.get(cls.input_modalities[0]) if len(cls.input_modalities) == 1 else None
            tensors |= linked_tensors(config, tensors, alone, hub)
        may_differ = options.get("ignore_mismatched_sizes", False)
        with building_for(cls, tensors, cls._names_begin_with, source, may_differ):
            loaded = super().from_pretrained(None, *model_args, config=config, state_dict=tensors, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        align_weights(model)
        for module in model.modules():
            if isinstance(module, CMFAHPreTrainedModel):
                module.config.name_or_path = str(source)
        return loaded

    @classmethod
    def _current_names(cls, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A checkpoint's tensors by their current names, for a class that has renamed some."""
        return tensors

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As the parent's, without the weights of a frozen encoder that are fetched from the Hub."""
        if self.config.shared_mlp_size is not None:  # each tower can be loaded alone, so each has a copy
            own = self.state_dict() if state_dict is None else state_dict
            state_dict = {name: tensor.clone() if ".mlp." in name else tensor for name, tensor in own.items()}
        if self.config.encoder_source is not None:
            if self.config.freeze_backbone and self.config.freeze_text_backbone:
                state_dict = without_encoder(self.state_dict() if state_dict is None else state_dict)
            else:  # a trained encoder is no longer that of the Hub
                self.config.encoder_source = self.config.encoder_revision = self.config.encoder_digest = None
        return super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)

    def post_init(self):
        super().post_init()
        check_fit(self)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):  # with a narrow normal, activations of a new VGG would vanish
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, (nn.Linear, nn.Conv1d)):
            init.kaiming_uniform_(module.weight, a=5**0.5)
        elif isinstance(module, CMFAHLSTM):  # as `transformers` does for `nn.LSTM`
            for name, parameter in module.named_parameters():
                init.xavier_uniform_(parameter) if "weight" in name else init.zeros_(parameter)
        elif isinstance(module, CMFAHEncoder) and module.concepts is not None:
            # The length of concepts only matters if they are added.
            init.normal_(module.concepts, std=self.config.initializer_range if module.selection is None else 0.2)
        elif isinstance(module, CMFAHResidualBlock):
            init.zeros_(module.scale)
        elif isinstance(module, CMFAHBitQueries):
            init.normal_(module.queries)  # only their directions matter
            init.zeros_(module.weight)


__all__ = ["CMFAHPreTrainedModel"]
