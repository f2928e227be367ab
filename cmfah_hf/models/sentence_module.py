"""A model as the module of a `SentenceTransformer`, which `modules.json` names: codes of texts and images.

sentence-transformers loads this file from the folder or repository of a model, and the file loads the model and its
processor by the Auto classes, of whatever architecture.

Shape suffixes: N items of a batch, K hash bits.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from .codes import AQD_STEP
from .image_inputs import open_image

try:  # `transformers` reads all files of a model before it loads one, and ignores what a `try` imports
    from sentence_transformers.base.modality import infer_modality
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise ImportError(
        "This module needs version 6 of sentence-transformers: pip install -U sentence-transformers."
    ) from error

# Larger than 0, so that `> 0` gives the bit that `>= 0` gives here, and nothing after the rounding of AQD.
_ZERO = AQD_STEP / 64


class CMFAHSentenceModule(InputModule):
    """Continuous codes `(N, K)` in (-1, 1) of texts and images, as `get_text_hash` and `get_image_hash` give them.

    Values that are exactly 0 become 2^-20, so that the bits that sentence-transformers sets where a value is above 0
    are those of this package, which sets them where a value is not below 0.

    An input is a text, an image (Pillow, array, path, URL or data URI), `{"text": ...}`, `{"image": ...}`, or a single
    chat message with one of these. `{"image": ..., "text": ...}` is a pair: the mean of the codes that each side has
    with the other, whose signs are the code of the pair, `[algorithm-1]`.

    Args:
        model: The towers.
        processor: Their processor.
    """

    def __init__(self, model: Any, processor: Any):
        super().__init__()
        self.model, self.processor = model, processor
        self._most_tokens = processor.tokenizer.model_max_length

    @property
    def modalities(self) -> list[Any]:
        """The kinds of inputs; "message" stands for lists of several kinds too."""
        return ["text", "image", "message"]

    @property
    def tokenizer(self) -> Any:  # type: ignore[override]  # an annotated attribute there
        """The tokenizer of the processor."""
        return self.processor.tokenizer

    @property
    def max_seq_length(self) -> int | None:
        """The number of tokens after which a text is cut off; None if it has no limit."""
        length = self.processor.tokenizer.model_max_length
        return None if self.processor.word_level and length == self._most_tokens else length

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        if type(length) is not int or not 0 < length <= self._most_tokens:
            raise ValueError(f"max_seq_length is {length!r}; give a number from 1 to {self._most_tokens}.")
        self.processor.tokenizer.model_max_length = length

    def get_embedding_dimension(self) -> int:
        """`K`, the number of bits."""
        return self.model.config.hash_bits

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """The inputs of the towers, for a batch of texts, of images, or of both in any order.

        Args:
            inputs: The items, as the class lists them.
            prompt: Begins each text, after the prompt of the processor.

        Raises:
            ValueError: If an item is of another kind, or an image cannot be read.
        """
        if kwargs.get("processing_kwargs"):
            raise ValueError("This model has no processing_kwargs; change the settings of its processor.")
        items = [_read(each) for each in inputs]
        places: dict[tuple[str, ...], list[int]] = {}
        for place, item in enumerate(items):
            places.setdefault(tuple(sorted(item)), []).append(place)
        if len(places) == 1:
            return self._prepare(items, prompt)
        return {"groups": [(own, self._prepare([items[place] for place in own], prompt)) for own in places.values()]}

    def _prepare(self, items: list[dict[str, Any]], prompt: str | None) -> dict[str, Any]:
        """The inputs of the towers, for items of one kind."""
        given: dict[str, Any] = {}
        if "image" in items[0]:
            given["images"] = [item["image"] for item in items]
        if "text" in items[0]:
            given["text"] = [(prompt or "") + item["text"] for item in items]
            length = self.max_seq_length
            if length is not None:
                given |= {"truncation": True, "max_length": length}
        return dict(self.processor(**given, return_tensors="pt"))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """The features with `sentence_embedding`, the continuous codes `(N, K)`."""
        if "groups" in features:
            groups = features["groups"]
            codes_NK = torch.empty(sum(len(places) for places, _ in groups), self.get_embedding_dimension())
            codes_NK = codes_NK.to(self.model.device, self.model.dtype)
            for places, inputs in groups:
                codes_NK[places] = self._codes({name: value.to(codes_NK.device) for name, value in inputs.items()})
        else:
            codes_NK = self._codes(features)
        features["sentence_embedding"] = codes_NK.masked_fill(codes_NK == 0, _ZERO)
        return features

    def _codes(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        pixel_values, input_ids = inputs.get("pixel_values"), inputs.get("input_ids")
        if input_ids is None:
            return self.model.get_image_hash(pixel_values)
        if pixel_values is None:
            return self.model.get_text_hash(input_ids, inputs["attention_mask"])
        outputs = self.model(pixel_values, input_ids, inputs["attention_mask"])
        return (outputs.image_hash + outputs.text_hash) / 2

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Saves the model, its processor and their code into a folder."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)

    @classmethod
    def load(  # type: ignore[override]  # the parent's further arguments are those of other modules
        cls,
        model_name_or_path: str | os.PathLike,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> "CMFAHSentenceModule":
        """Loads the model and its processor from a folder or repository.

        Raises:
            ValueError: If the backend is not torch, or a file is damaged.
            OSError: If there is no such model, or the Hub cannot be reached.
        """
        if backend != "torch":
            raise ValueError(f"This module runs with the backend 'torch', and not with {backend!r}.")
        given = {
            "subfolder": subfolder,
            "token": token,
            "cache_dir": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
            "trust_remote_code": trust_remote_code,
        }
        options = {name: value for name, value in given.items() if value}
        model = AutoModel.from_pretrained(
            model_name_or_path, **{**options, **(config_kwargs or {}), **(model_kwargs or {})}
        )
        processor = AutoProcessor.from_pretrained(model_name_or_path, **{**options, **(processor_kwargs or {})})
        return cls(model, processor)


def _read(value: Any) -> dict[str, Any]:
    """The text of an item, its image, or both."""
    kind = infer_modality(value, ["text", "image", "message"])
    if kind == "message":
        return _read_message(value)
    parts = value if isinstance(value, dict) else {kind: value}
    if not set(parts) <= {"text", "image"} or not isinstance(parts.get("text", ""), str):
        raise ValueError(f"An item is a text, an image, or one of both in a mapping, and no {type(value).__name__}.")
    image = parts.get("image")
    if isinstance(image, (str, Path, Image.Image)):
        return {**parts, "image": open_image(image)}
    return dict(parts)


def _read_message(value: Any) -> dict[str, Any]:
    """The same of a chat of one message, whose content is a text, or a list of at most one text and one image."""
    messages = [value] if isinstance(value, dict) else value
    content = messages[0]["content"] if len(messages) == 1 else None
    if isinstance(content, str):
        return {"text": content}
    parts = content if isinstance(content, list) and all(isinstance(part, dict) for part in content) else []
    found = {str(part.get("type")): part.get(str(part.get("type"))) for part in parts}
    if not parts or len(found) < len(parts) or None in found.values():
        raise ValueError("A code is of one message with a text, an image, or one of both; encode others one by one.")
    return _read(found)
