"""Fingerprints of models, which tie an index to the model that made its codes.

A fingerprint is a digest of the weights, the settings of the towers, the processor, and the expander of queries. File
names and settings that only training uses are left out, so a run's folder, its checkpoint and its copy on the Hub have
the same fingerprint.
"""

import hashlib
import json
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from cmfah_hf.models import CMFAHModel, CMFAHProcessor
from cmfah_hf.models.dual_encoder import CMFAHDualTextEncoder
from cmfah_hf.models.safe_weights import add_to_digest
from cmfah_hf.models.word_rules import WordRules
from cmfah_hf.retrieval.kept_fingerprints import keep_fingerprint

if TYPE_CHECKING:
    from cmfah_hf.expansion import GraphExpander

# Settings that change the codes of equal weights. All others change the tensors' names and shapes, or only training.
_MODEL_SETTINGS = (
    "normalize_regions", "attention", "guidance", "image_temperature", "text_temperature", "use_lstm", "image_pooling",
    "text_pooling", "normalize_features",
)  # fmt: skip
_IMAGE_SETTINGS = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std",
)  # fmt: skip
_BACKBONE_SETTINGS = ("model_type", "hidden_act", "out_features")


def fingerprint_of(model: CMFAHModel, processor: CMFAHProcessor, expander: "GraphExpander | None" = None) -> str:
    """The fingerprint as 32 hexadecimal digits. It reads all weights once, about a gigabyte a second.

    Floating-point weights count as float32, so a wider `dtype` at loading changes nothing; a narrower one rounds the
    weights, which makes another model.
    """
    digest = hashlib.blake2b(digest_size=16)
    config, tokenizer = model.config, processor.tokenizer
    image_settings = processor.image_processor.to_dict()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    described = {
        "model": {name: getattr(config, name) for name in _MODEL_SETTINGS},
        "backbone": config.backbone
        or {name: getattr(config.backbone_config, name, None) for name in _BACKBONE_SETTINGS},
        "images": {name: image_settings.get(name) for name in _IMAGE_SETTINGS},
        "words": [vocabulary, backend["normalizer"], backend["pre_tokenizer"], tokenizer.unk_token],
        "expander": None if expander is None else expander.digest,
    }
    if processor.word_level and processor.word_rules != WordRules():
        described["word_rules"] = processor.word_rules.to_dict()
    encoders = {"text backbone": config.text_backbone_config, "dual encoder": config.dual_encoder_config}
    for encoder, settings in encoders.items():
        if settings is None:
            continue
        described[encoder] = _without_places(settings.to_dict())
        parts = [backend[name] for name in ("normalizer", "pre_tokenizer", "model", "post_processor", "added_tokens")]
        described["words"] = [*parts, tokenizer.model_max_length, tokenizer.padding_side]
        half = model.text_model.embeddings.backbone
        if isinstance(half, CMFAHDualTextEncoder) and half.family.pads_texts:
            described["padding"] = config.pad_token_id
        if processor.text_prompt:
            described["prompt"] = processor.text_prompt
    digest.update(json.dumps(described, sort_keys=True).encode())
    add_to_digest(digest, model.state_dict())
    return digest.hexdigest()


def _without_places(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of an encoder, without its name and what its files say of themselves."""
    return {
        name: _without_places(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if not str(name).startswith("_") and name not in ("dtype", "transformers_version", "architectures")
    }


def state_of(model: CMFAHModel, *parts: Any) -> tuple:
    """A value that changes whenever a weight is replaced or changed in place, or a part is replaced."""
    tensors: Iterable[torch.Tensor] = chain(model.parameters(), model.buffers())
    versions = ((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)
    return (id(model), *map(id, parts), *versions)


class LazyFingerprint:
    """The fingerprint of a model, computed when it is first needed, and again when a weight or a part has changed."""

    def __init__(self) -> None:
        self._computed: tuple[tuple, str] | None = None
        self._files: tuple[tuple, str] | None = None

    def know(self, files: str | None, kept: str | None, *parts: Any) -> None:
        """Takes over what is known of parts that were just loaded.

        Args:
            files: The state of the files that they were loaded from, or None if other things decided them too.
            kept: The fingerprint that was kept for these files, or None.
            *parts: Model, processor and expander.
        """
        state = state_of(*parts)
        self._files = None if files is None else (state, files)
        self._computed = None if kept is None else (state, kept)

    def of(self, model: CMFAHModel, processor: CMFAHProcessor, expander: "GraphExpander | None") -> str:
        """The fingerprint of these parts. It is kept for their files, if they are as they were loaded."""
        state = state_of(model, processor, expander)
        if self._computed is None or self._computed[0] != state:
            self._computed = state, fingerprint_of(model, processor, expander)
            if self._files is not None and self._files[0] == state:
                keep_fingerprint(self._files[1], self._computed[1])
        return self._computed[1]
