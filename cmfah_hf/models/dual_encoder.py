"""Dual encoders: models of `transformers` that put images and texts into one space, such as CLIP and SigLIP.

Each tower holds one half of the model. Its features are those of `get_image_features` and `get_text_features`, which
all of these models have; nothing here depends on the family but what is written in `_FAMILIES`.

Shape suffixes: B items, R regions, W tokens, C width of a region or token of the encoder, E width of its vectors.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from .configuration_cmfah import CMFAHConfig
from .configuration_files import UNFIT
from .model_files import ModelFileError
from .remote_code import is_remote, remote_class
from .safe_weights import add_to_digest, encoder_weights, read_weights

Side = Literal["image", "text"]

# First letters of the names of the modules of each half.
_MODULES: dict[Side, tuple[str, ...]] = {"image": ("vision", "visual", "image_"), "text": ("text",)}


@dataclass(frozen=True)
class _Family:
    """The differences of a family of models from the others.

    Attributes:
        norms_regions: Whether the last layer norm of the image half is only applied to its vector, not to its regions.
        takes_patches: Whether the image half takes images cut into patches.
        pads_texts: Whether the text half was trained with texts padded to their maximum length and without a mask.
    """

    norms_regions: bool = False
    takes_patches: bool = False
    pads_texts: bool = False


_FAMILIES = {
    **dict.fromkeys(("clip", "altclip", "chinese_clip", "metaclip_2"), _Family(norms_regions=True)),
    "siglip": _Family(pads_texts=True),
    "siglip2": _Family(pads_texts=True, takes_patches=True),
}


def dual_encoder_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of the dual encoder of a configuration.

    Raises:
        ValueError: If its model does not encode both images and texts.
    """
    try:
        found = remote_class(config) if is_remote(config) else AutoModel._model_mapping[type(config)]
    except KeyError:
        found = None
    lacking = [side for side in ("image", "text") if not hasattr(found, f"get_{side}_features")]
    if not isinstance(found, type) or lacking:
        raise ValueError(
            f"a {config.model_type} model encodes no {' and no '.join(f'{side}s' for side in lacking)} into a common "
            "space; give a dual encoder, such as a CLIP or SigLIP."
        )
    return found


def build_dual_encoder(config: PreTrainedConfig) -> PreTrainedModel:
    """The dual encoder of a configuration, with random weights.

    Raises:
        ValueError: If the configuration is of another model, or none can be built of it.
    """
    model_class = dual_encoder_class(config)
    try:
        # Many encoders are saved in half precision; the precision of the towers is that of the whole model.
        return model_class._from_config(config, dtype=torch.get_default_dtype())
    except ModelFileError:
        raise
    except (*UNFIT, ImportError) as error:
        kind, reason = config.model_type, " ".join(str(error).split())[:200]
        raise ValueError(f"No {kind} can be built of its dual_encoder_config ({reason}).") from error


def modules_of(encoder: nn.Module, side: Side) -> dict[str, nn.Module]:
    """The modules of one half of a dual encoder, by their names."""
    return {name: module for name, module in encoder.named_children() if name.startswith(_MODULES[side])}


def side_tensors(tensors: Mapping[str, torch.Tensor], side: Side) -> dict[str, torch.Tensor]:
    """The tensors of one half of a dual encoder, of those of the whole, by the same names."""
    return {name: tensor for name, tensor in tensors.items() if name.startswith(_MODULES[side])}


def read_encoder(config: PreTrainedConfig, source: str, hub: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of both halves of a dual encoder, float32, from a folder or the Hub.

    Raises:
        ModelFileError: If a file is damaged, or tensors are missing or of other shapes.
        OSError: If there are no safetensors, or the Hub cannot be reached.
    """
    loader: Any = dual_encoder_class(config)  # its hint has no `output_loading_info`
    loaded, report = loader.from_pretrained(
        None,
        config=config,
        state_dict=read_weights(encoder_weights(source, dict(hub))),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    wrong = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    tensors = {name: tensor for side in _MODULES for name, tensor in side_tensors(loaded.state_dict(), side).items()}
    lacking = [name for name in wrong if name in tensors]
    if lacking:
        raise ModelFileError(
            f"{source}: {len(lacking)} of the encoder's {len(tensors)} tensors are missing or of other shapes, "
            f"{lacking[0]!r} first; these are not its weights."
        )
    return tensors


def linked_tensors(
    config: CMFAHConfig, names: Iterable[str], side: Side | None, hub: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The tensors of an encoder that a checkpoint only names, by their names in that checkpoint.

    Args:
        config: The configuration of the model, with `encoder_source`.
        names: The names of the checkpoint's own tensors.
        side: The modality of the model, if it is a single tower.
        hub: Where to look, as `hub_arguments` returns it; the commit is that of the configuration.

    Raises:
        ModelFileError: If the weights are not those that the model was made for.
        OSError: If the Hub cannot be reached and the cache has no copy.
    """
    assert config.encoder_source is not None
    assert isinstance(config.dual_encoder_config, PreTrainedConfig)
    location = {name: value for name, value in hub.items() if name != "subfolder"}
    location["revision"] = config.encoder_revision
    if config.encoder_subfolder is not None:
        location["subfolder"] = config.encoder_subfolder
    tensors = read_encoder(config.dual_encoder_config, config.encoder_source, location)
    if digest_of(tensors) != config.encoder_digest:
        raise ModelFileError(
            f"{config.encoder_source} at {str(config.encoder_revision)[:8]}: its weights are not those of the encoder "
            "that this model was made for; make the model again with this encoder."
        )
    names = list(names)
    outer = "cmfah." if any(name.startswith("cmfah.") for name in names) else ""
    is_tower = side is not None and not any(name.startswith(f"{outer}{side}_model.") for name in names)
    found: dict[str, torch.Tensor] = {}
    for half in _MODULES:
        prefix = "" if is_tower else f"{outer}{half}_model."
        if not is_tower or half == side:
            own = side_tensors(tensors, half)
            found |= {f"{prefix}embeddings.backbone.encoder.{name}": tensor for name, tensor in own.items()}
    return found


def without_encoder(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a model without those of its encoder."""
    return {name: tensor for name, tensor in tensors.items() if "embeddings.backbone." not in name}


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """A digest of tensors as 32 hexadecimal digits; numbers count as float32."""
    digest = hashlib.blake2b(digest_size=16)
    add_to_digest(digest, tensors)
    return digest.hexdigest()


class _Half(nn.Module):
    """One half of a dual encoder, under the names that its tensors have in the whole."""

    side: Side

    def __init__(self, config: CMFAHConfig):
        super().__init__()
        assert isinstance(config.dual_encoder_config, PreTrainedConfig)
        encoder: Any = build_dual_encoder(config.dual_encoder_config)
        self.family = _FAMILIES.get(encoder.config.model_type, _Family())
        self.encoder: Any = encoder
        kept = modules_of(encoder, self.side)
        for name in [name for name, _ in encoder.named_children() if name not in kept]:
            delattr(encoder, name)
        for name in [name for name, _ in encoder.named_parameters(recurse=False)]:  # the scale of logits
            delattr(encoder, name)

    @property
    def tower(self) -> PreTrainedModel:
        """The transformer of this half, without its projection."""
        name = next(name for name in modules_of(self.encoder, self.side) if name.endswith("_model"))
        return getattr(self.encoder, name)

    @property
    def own_projection(self) -> nn.Linear | None:
        """The projection to the space of the encoder; None if its vectors need none."""
        modules = modules_of(self.encoder, self.side).values()
        return next((module for module in modules if isinstance(module, nn.Linear)), None)

    def _vectors(self, output: Any) -> torch.Tensor:
        pooled = output.pooler_output
        pooled_BE = pooled[:, 0] if pooled.ndim == 3 else pooled  # of FLAVA, the vector of the class token
        return nn.functional.normalize(pooled_BE.float(), dim=-1).to(pooled_BE.dtype)


class CMFAHDualImageEncoder(_Half):
    """The image half of a dual encoder."""

    side: Side = "image"

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        tower = self.tower.config
        self.patch_size = getattr(tower, "patch_size", None)
        last = [layer for layer in self.tower.modules() if isinstance(layer, nn.BatchNorm2d)][-1:]
        self.channels = [last[0].num_features if last else tower.hidden_size]  # ALIGN's is a convolutional network

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The feature map `(B, C, rows, columns)`, and the vectors `(B, E)`, of images `(B, 3, H, W)`."""
        pixels = pixel_values.to(next(self.encoder.parameters()).dtype)
        height, width = pixels.shape[2:]
        if self.family.takes_patches:
            output = self.encoder.get_image_features(**self._patches(pixels))
        else:
            output = self.encoder.get_image_features(pixel_values=pixels)
        hidden = output.last_hidden_state
        if hidden.ndim == 4:  # of a convolutional network
            return hidden, self._vectors(output)
        if self.family.norms_regions:
            tower: Any = self.tower
            hidden = tower.post_layernorm(hidden)
        rows, columns = self._grid(hidden.shape[1], height, width)
        regions_BRC = hidden[:, hidden.shape[1] - rows * columns :]  # without class tokens, which come first
        return regions_BRC.mT.unflatten(2, (rows, columns)), self._vectors(output)

    def _grid(self, positions: int, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the regions: one a patch, or the largest square if the encoder merges patches."""
        if isinstance(self.patch_size, int):
            rows, columns = height // self.patch_size, width // self.patch_size
            if 0 < rows * columns <= positions:
                return rows, columns
        side = int(positions**0.5)
        return side, side

    def _patches(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images as SigLIP 2 takes them: `(B, R, 3 patch_size^2)`, the channel last within a patch."""
        size = self.patch_size
        assert isinstance(size, int)
        count, _, height, width = pixels.shape
        rows, columns = height // size, width // size
        cut = pixels[:, :, : rows * size, : columns * size].unflatten(3, (columns, size)).unflatten(2, (rows, size))
        patches = cut.permute(0, 2, 4, 3, 5, 1).reshape(count, rows * columns, -1)
        return {
            "pixel_values": patches,
            "pixel_attention_mask": patches.new_ones(patches.shape[:2], dtype=torch.long),
            "spatial_shapes": torch.tensor([[rows, columns]], device=pixels.device).expand(count, -1),
        }


class CMFAHDualTextEncoder(_Half):
    """The text half of a dual encoder."""

    side: Side = "text"

    def __init__(self, config: CMFAHConfig):
        super().__init__(config)
        text = self.encoder.config.get_text_config()
        self.channels = [text.hidden_size]
        self.positions: int = getattr(text, "max_position_embeddings", 0)
        self.pad_token_id = config.pad_token_id

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens `(B, W, C)` and the vectors `(B, E)` of texts `(B, W)`."""
        if not self.family.pads_texts:
            output = self.encoder.get_text_features(input_ids=input_ids, attention_mask=attention_mask.long())
            return output.last_hidden_state, self._vectors(output)
        columns = input_ids.shape[1]
        padding = int(self.pad_token_id or 0)
        input_ids = input_ids.masked_fill(~attention_mask.bool(), padding)
        input_ids = nn.functional.pad(input_ids, (0, max(0, self.positions - columns)), value=padding)
        output = self.encoder.get_text_features(input_ids=input_ids)
        return output.last_hidden_state[:, :columns], self._vectors(output)
