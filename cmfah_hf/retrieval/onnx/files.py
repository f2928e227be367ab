"""The ONNX files of a model and their description, `onnx/cmfah.json`. Without torch and transformers.

The files lie in the folder `onnx` of the model, with the names of transformers.js. The description has the fingerprint
of the model and what a program needs to make the inputs of the towers.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cmfah_hf.atomic import sha256_of, write_text
from cmfah_hf.documents import file_of, read_json
from cmfah_hf.errors import CheckpointError, HashIndexError
from cmfah_hf.retrieval.codes import check_bits

FOLDER_NAME = "onnx"
DESCRIPTION_NAME = "cmfah.json"
FORMAT = 1

TOWERS = ("vision", "text")
PRECISIONS = ("fp32", "fp16", "int8")
# Names of the inputs and of the output of each tower.
INPUTS = {"vision": ("pixel_values",), "text": ("input_ids", "attention_mask")}
OUTPUTS = {"vision": "image_embeds", "text": "text_embeds"}

_MOST_BYTES = 2**20
_MOST_SIDE = 2_048
_SIZES = ({"height", "width"}, {"shortest_edge"})
_PADDINGS = ("longest", "max_length")


@dataclass(frozen=True)
class ImageSettings:
    """Image preprocessing for `pixel_values`: RGB, resized, cropped, rescaled, normalized, in this order.

    Attributes:
        processor: The class of `transformers` that prepares images in PyTorch.
        mode: The mode that images are converted to; transparency becomes white.
        do_resize, size, resample: `{"height", "width"}` in pixels, or `{"shortest_edge"}`; Pillow's number of a filter.
        do_center_crop, crop_size: The part around the center, `{"height", "width"}`.
        do_rescale, rescale_factor: The factor of values in 0..255.
        do_normalize, image_mean, image_std: Of red, green and blue, after rescaling.
    """

    processor: str
    mode: str
    do_resize: bool
    size: dict[str, int]
    resample: int
    do_center_crop: bool
    crop_size: dict[str, int] | None
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: list[float]
    image_std: list[float]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of `pixel_values`."""
        size = self.crop_size if self.do_center_crop and self.crop_size is not None else self.size
        return (size["height"], size["width"]) if "height" in size else (size["shortest_edge"],) * 2


@dataclass(frozen=True)
class TextSettings:
    """Text preprocessing for `input_ids` and `attention_mask`.

    Attributes:
        word_level: Whether the tokenizer splits a text into the words of a table. Otherwise it is an encoder's own.
        max_length: Tokens after which texts are cut off; None if they are not.
        pad_token_id, padding_side: The token that fills up shorter texts, and where, `"right"` or `"left"`. A text
            without tokens is one such token that is masked.
        padding: `"longest"`: to the longest text of a batch. `"max_length"`: to `max_length`.
        unk_token_id: The token of unknown words, which a tower over words ignores. None: there is none.
        prompt: Precedes each text.
        word_rules: `segmenter` and `fold_marks`, applied before the tokenizer.
        unknown_words: `"ignore"`, or `"similar"`: replaced by similar known words before the tokenizer.
        tokenizer: A digest of the tokenizer that the files belong to.
    """

    word_level: bool
    max_length: int | None
    pad_token_id: int
    padding_side: str
    padding: str
    unk_token_id: int | None
    prompt: str
    word_rules: dict[str, Any]
    unknown_words: str
    tokenizer: str


@dataclass(frozen=True)
class OnnxFiles:
    """The description of a model's ONNX files.

    Attributes:
        fingerprint: The fingerprint of the model, 32 hexadecimal digits; an index of the model has it too.
        model_type: Such as `"cmfah"`.
        hash_bits: The number of bits of a code.
        precisions: Those that files exist of, in the order of `PRECISIONS`.
        files: Bytes and SHA-256 of each file, by its name.
        opset: The version of ONNX's operators.
        versions: Versions of the libraries that made the files, by name.
        image_processor: How images become inputs.
        text: How texts become inputs.
        expander: A digest of the word graph that expands queries. None: they are not expanded.
    """

    fingerprint: str
    model_type: str
    hash_bits: int
    precisions: tuple[str, ...]
    files: Mapping[str, Mapping[str, Any]]
    opset: int
    versions: Mapping[str, str]
    image_processor: ImageSettings
    text: TextSettings
    expander: str | None

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the description into the folder of the files.

        Raises:
            CheckpointError: If it cannot be written.
        """
        content = {"format": FORMAT, **asdict(self), "precisions": list(self.precisions)}
        write_text(Path(folder) / DESCRIPTION_NAME, json.dumps(content, indent=2) + "\n", CheckpointError)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "OnnxFiles":
        """Reads the description in the folder of the files, and checks it.

        Raises:
            CheckpointError: If it is missing, of another version, or describes no such files.
        """
        path = Path(folder) / DESCRIPTION_NAME
        if file_of(path) is None:
            raise CheckpointError(
                f"{folder}: no ONNX files are described there ({DESCRIPTION_NAME} is missing); make them with "
                "`cmfah export onnx MODEL`."
            )
        found = read_json(path, CheckpointError, _MOST_BYTES)
        try:
            return _parsed(found)
        except (AttributeError, HashIndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, _UnfitError) else "parts of it are missing, or of another type"
            raise CheckpointError(
                f"{path} describes no ONNX files of a model ({reason}); make them again with `cmfah export onnx MODEL`."
            ) from error

    def check_precision(self, folder: str | os.PathLike, precision: str) -> None:
        """Raises a `CheckpointError` if there are no files of a precision."""
        if precision not in self.precisions:
            raise CheckpointError(
                f"{folder} has no files of precision {precision!r:.40}, only {', '.join(self.precisions)}; make them "
                f"with `cmfah export onnx MODEL --precision {precision:.40}`."
            )

    def file(self, folder: str | os.PathLike, tower: str, precision: str = "fp32", whole: bool = True) -> Path:
        """The path of the file of a tower (`"vision"` or `"text"`), after a check of its content.

        Args:
            folder: The folder of the files.
            tower: One of `TOWERS`.
            precision: One of `PRECISIONS`.
            whole: Whether to check the SHA-256, about a gigabyte a second, and not only the size.

        Raises:
            CheckpointError: If there is no such file, or its content is not the described one.
        """
        self.check_precision(folder, precision)
        name = file_name(tower, precision)
        path, described = Path(folder) / name, self.files[name]
        if file_of(path) is None:
            raise CheckpointError(f"{path} is missing; make it again with `cmfah export onnx MODEL`.")
        if path.stat().st_size != described["bytes"] or (whole and sha256_of(path) != described["sha256"]):
            raise CheckpointError(
                f"{path} is not the file that {DESCRIPTION_NAME} describes; make both again with "
                "`cmfah export onnx MODEL`."
            )
        return path


def file_name(tower: str, precision: str = "fp32") -> str:
    """The name of a tower's file, such as `vision_model_int8.onnx`."""
    return f"{tower}_model{'' if precision == 'fp32' else f'_{precision}'}.onnx"


class _UnfitError(ValueError):
    """A fault of a description, in words that complete a message."""


def _parsed(content: Any) -> OnnxFiles:
    if content["format"] != FORMAT:
        raise _UnfitError(f"its format is {content['format']!r:.40}, not {FORMAT}")
    precisions = tuple(name for name in PRECISIONS if name in content["precisions"])
    if not precisions or len(precisions) != len(content["precisions"]):
        raise _UnfitError(f"its precisions are not some of {', '.join(PRECISIONS)}")
    versions = content["versions"]
    if not all(isinstance(name, str) and isinstance(version, str) for name, version in versions.items()):
        raise _UnfitError("its versions are not texts")
    return OnnxFiles(
        fingerprint=_digest("fingerprint", content["fingerprint"], 32),
        model_type=_text("model_type", content["model_type"]),
        hash_bits=check_bits(content["hash_bits"]),
        precisions=precisions,
        files=_parsed_files(content["files"], precisions),
        opset=_whole("opset", content["opset"], 1, 1_000),
        versions=dict(versions),
        image_processor=_parsed_images(content["image_processor"]),
        text=_parsed_texts(content["text"]),
        expander=None if content["expander"] is None else _digest("expander", content["expander"], 64),
    )


def _parsed_files(files: Any, precisions: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    names = {file_name(tower, precision) for tower in TOWERS for precision in precisions}
    if set(files) != names:
        raise _UnfitError(f"its files are not {', '.join(sorted(names))}")
    found = {}
    for name, one in files.items():
        digest = _digest(f"SHA-256 of {name}", one["sha256"], 64)
        found[name] = {"bytes": _whole(f"bytes of {name}", one["bytes"], 1, 2**53), "sha256": digest}
    return found


def _parsed_images(own: Any) -> ImageSettings:
    _check_names("image_processor", own, ImageSettings)
    crops = own["do_center_crop"]
    found = ImageSettings(
        processor=_text("processor", own["processor"]),
        mode=_one_of("mode", own["mode"], ("RGB",)),
        size=_size("size", own["size"]),
        resample=_whole("resample", own["resample"], 0, 5),
        crop_size=None if own["crop_size"] is None else _size("crop_size", own["crop_size"]),
        rescale_factor=_number("rescale_factor", own["rescale_factor"], 1e-6, 1.0),
        image_mean=_colors("image_mean", own["image_mean"], -1e3),
        image_std=_colors("image_std", own["image_std"], 1e-3),
        **{name: _switch(name, own[name]) for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize")},
    )
    if crops and (found.crop_size is None or "height" not in found.crop_size):
        raise _UnfitError("it crops images, and has no height and width of the crop")
    if not crops and "height" not in found.size:
        raise _UnfitError("the size of its images is not known without a crop")
    return found


def _parsed_texts(own: Any) -> TextSettings:
    _check_names("text", own, TextSettings)
    rules, most = own["word_rules"], 2**31
    if set(rules) != {"segmenter", "fold_marks"}:
        raise _UnfitError("its word_rules are not segmenter and fold_marks")
    found = TextSettings(
        word_level=_switch("word_level", own["word_level"]),
        max_length=None if own["max_length"] is None else _whole("max_length", own["max_length"], 1, most),
        pad_token_id=_whole("pad_token_id", own["pad_token_id"], 0, most),
        padding_side=_one_of("padding_side", own["padding_side"], ("right", "left")),
        padding=_one_of("padding", own["padding"], _PADDINGS),
        unk_token_id=None if own["unk_token_id"] is None else _whole("unk_token_id", own["unk_token_id"], 0, most),
        prompt=_text("prompt", own["prompt"]),
        word_rules={
            "segmenter": _one_of("segmenter", rules["segmenter"], ("none", "icu")),
            "fold_marks": _switch("fold_marks", rules["fold_marks"]),
        },
        unknown_words=_one_of("unknown_words", own["unknown_words"], ("ignore", "similar")),
        tokenizer=_digest("tokenizer", own["tokenizer"], 32),
    )
    if found.padding == "max_length" and found.max_length is None:
        raise _UnfitError("it pads texts to a max_length that it does not have")
    return found


def _check_names(what: str, own: Any, of: type) -> None:
    names = {field.name for field in fields(of)}
    if not isinstance(own, dict) or set(own) != names:
        raise _UnfitError(f"its {what} does not have exactly {', '.join(sorted(names))}")


def _digest(name: str, value: Any, digits: int) -> str:
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
        raise _UnfitError(f"its {name} is not one of {digits} hexadecimal digits")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > 1_000:
        raise _UnfitError(f"{name} is {value!r:.40}, which is no text of at most 1,000 characters")
    return value


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise _UnfitError(f"{name} is {value!r:.40}, which is not {' or '.join(known)}")
    return value


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _UnfitError(f"{name} is {value!r:.40}, neither true nor false")
    return value


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise _UnfitError(f"{name} is {value!r:.40}, which is no whole number from {least:,} to {most:,}")
    return value


def _number(name: str, value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise _UnfitError(f"{name} is {value!r:.40}, which is no number from {least:g} to {most:g}")
    return float(value)


def _colors(name: str, values: Any, least: float) -> list[float]:
    if not isinstance(values, list) or len(values) != 3:
        raise _UnfitError(f"{name} is {values!r:.40}, which are not three numbers")
    return [_number(name, value, least, 1e3) for value in values]


def _size(name: str, value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or set(value) not in _SIZES:
        raise _UnfitError(f"{name} is {value!r:.40}, neither a height and width nor a shortest edge")
    return {side: _whole(f"{side} of {name}", number, 1, _MOST_SIDE) for side, number in value.items()}
