"""The description of ONNX files from a loaded model: its fingerprint, and how its processor makes inputs."""

import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cmfah_hf.atomic import sha256_of
from cmfah_hf.errors import CheckpointError
from cmfah_hf.models import CMFAHProcessor
from cmfah_hf.retrieval.onnx.files import TOWERS, ImageSettings, OnnxFiles, TextSettings, file_name
from cmfah_hf.retrieval.onnx.texts import saved_tokenizer
from cmfah_hf.retrieval.torch_encoder import TorchEncoder

_LIBRARIES = ("cmfah-hf", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")
# Steps of image processors that the description does not have.
_OTHER_STEPS = ("do_pad", "rescale_offset", "include_top")
# More tokens than this are no limit: tokenizers without one have the largest integer.
_NO_LIMIT = 2**20


def described(encoder: TorchEncoder, folder: Path, precisions: Sequence[str], opset: int) -> OnnxFiles:
    """The description of the files of a model in a folder.

    Raises:
        CheckpointError: If its images are prepared by a step that the description does not have.
    """
    names = [file_name(tower, precision) for precision in precisions for tower in TOWERS]
    return OnnxFiles(
        fingerprint=encoder.fingerprint,
        model_type=encoder.model.config.model_type,
        hash_bits=encoder.model.config.hash_bits,
        precisions=tuple(precisions),
        files={name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names},
        opset=opset,
        versions={name: version(name) for name in _LIBRARIES},
        image_processor=image_settings(encoder.processor),
        text=text_settings(encoder.processor),
        expander=None if encoder.expander is None else encoder.expander.digest,
    )


def image_settings(processor: CMFAHProcessor) -> ImageSettings:
    """The settings of a processor for `pixel_values`.

    Raises:
        CheckpointError: If it has a step that these settings do not have.
    """
    own: dict[str, Any] = processor.image_processor.to_dict()
    kind = type(processor.image_processor).__name__
    others = [name for name in _OTHER_STEPS if own.get(name)]
    if others:
        raise CheckpointError(
            f"The model's {kind} prepares images by {others[0]}, which programs without transformers do not do; give "
            "the model another image processor."
        )
    crops, normalizes = bool(own.get("do_center_crop")), bool(own.get("do_normalize"))
    return ImageSettings(
        processor=kind,
        mode="RGB",
        do_resize=bool(own.get("do_resize")),
        size={name: int(side) for name, side in own["size"].items() if side is not None},
        resample=int(own["resample"]),
        do_center_crop=crops,
        crop_size={name: int(own["crop_size"][name]) for name in ("height", "width")} if crops else None,
        do_rescale=bool(own.get("do_rescale")),
        rescale_factor=float(own.get("rescale_factor") or 1.0),
        do_normalize=normalizes,
        image_mean=[float(value) for value in own["image_mean"]] if normalizes else [0.0] * 3,
        image_std=[float(value) for value in own["image_std"]] if normalizes else [1.0] * 3,
    )


def text_settings(processor: CMFAHProcessor) -> TextSettings:
    """The settings of a processor for `input_ids` and `attention_mask`."""
    tokenizer = processor.tokenizer
    limited = not processor.word_level and tokenizer.model_max_length < _NO_LIMIT
    return TextSettings(
        word_level=processor.word_level,
        max_length=tokenizer.model_max_length if limited else None,
        pad_token_id=tokenizer.pad_token_id,
        padding_side=tokenizer.padding_side,
        padding="longest",
        unk_token_id=tokenizer.unk_token_id if processor.word_level else None,
        prompt=processor.text_prompt,
        word_rules=processor.word_rules.to_dict(),
        unknown_words=processor.unknown_words,
        tokenizer=_digest_of(processor),
    )


def _digest_of(processor: CMFAHProcessor) -> str:
    """The digest of a tokenizer as it is read from its files."""
    with tempfile.TemporaryDirectory() as folder:
        processor.tokenizer.save_pretrained(folder)
        tokenizer, config = Path(folder, "tokenizer.json"), Path(folder, "tokenizer_config.json")
        return saved_tokenizer(tokenizer, config, processor.word_level).digest
