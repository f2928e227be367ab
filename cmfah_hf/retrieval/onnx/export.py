"""`export_onnx`: writes the towers of a model as ONNX files that any program can run."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from cmfah_hf.atomic import atomic_file
from cmfah_hf.data import make_scenes
from cmfah_hf.data.images import decode_image
from cmfah_hf.data.images.pixels import pixel_values_of
from cmfah_hf.documents import file_of
from cmfah_hf.errors import CheckpointError, CMFAHError
from cmfah_hf.models import CMFAHModel, CMFAHProcessor
from cmfah_hf.models.model_files import is_folder
from cmfah_hf.retrieval.calibration import CALIBRATION_NAME
from cmfah_hf.retrieval.exporters.folders import export_folder
from cmfah_hf.retrieval.loading import load_parts
from cmfah_hf.retrieval.model_source import find_file
from cmfah_hf.retrieval.onnx.comparison import Comparison, compare
from cmfah_hf.retrieval.onnx.description import described, image_settings
from cmfah_hf.retrieval.onnx.files import FOLDER_NAME, PRECISIONS, OnnxFiles, file_name
from cmfah_hf.retrieval.onnx.programs import check_opset, onnx_program, require_exporter
from cmfah_hf.retrieval.onnx.quantization import half_program, write_int8
from cmfah_hf.retrieval.onnx.towers import Tower, towers_of
from cmfah_hf.retrieval.torch_encoder import TorchEncoder

# What else of a model the encoding of texts and images needs, without its weights.
_WITHOUT_WEIGHTS = (
    *("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json", CALIBRATION_NAME),
    *(f"{stem}.{end}" for stem in ("expander", "knowledge") for end in ("json", "safetensors")),
)
# Images for the ranges of 8-bit convolutions, and of a batch of them.
_CALIBRATION_IMAGES, _BATCH = 96, 16
_OWN_FILES = r"(vision|text)_model(_fp16|_int8)?\.onnx|cmfah\.json"


@dataclass(frozen=True)
class OnnxExport:
    """The result of `export_onnx`.

    Attributes:
        folder: The folder of the files.
        files: Their description.
        comparisons: Each file's codes compared with PyTorch's, by the name of the file.
    """

    folder: Path
    files: OnnxFiles
    comparisons: dict[str, Comparison]


def export_onnx(
    model: str | os.PathLike,
    output: str | os.PathLike | None = None,
    precisions: Sequence[str] = ("fp32",),
    opset: int | None = None,
    overwrite: bool = False,
    images: Sequence[Any] | None = None,
    **kwargs: Any,
) -> OnnxExport:
    """Writes both towers of a model as ONNX files with open batch and length, and checks their codes.

    The folder `onnx` is written completely or not at all. In another folder than the model's, its tokenizer, settings
    and word graph are copied next to it.

    Args:
        model: The folder of a model, or a Hub id.
        output: The folder in which `onnx` is written. None: that of the model.
        precisions: Some of `"fp32"`, `"fp16"` and `"int8"`.
        opset: The version of ONNX's operators, from 18 to 23. None: 20.
        overwrite: Whether to replace an earlier export.
        images: Images like those that will be encoded (paths, bytes, open files or Pillow images), of which 96 give
            the ranges of 8-bit convolutions. None: drawn scenes.
        **kwargs: For `from_pretrained`, such as `revision`, `token` or `trust_remote_code`.

    Raises:
        CheckpointError: If there is no model, an operator of it is not part of ONNX, or the codes of a file are wrong.
        HashIndexError: If the folder is not to be replaced, or cannot be written.
        CMFAHError: If a precision is not known, or a library is not installed.
    """
    require_exporter()
    wanted, opset, source = _checked(precisions), check_opset(opset), str(model)
    if output is None and not is_folder(source):
        raise CMFAHError(f"{source} is no folder here; name the folder to write with output (--output).")
    parts = load_parts(source, kwargs)
    whole = cast(CMFAHModel, parts.model).float()  # weights may be saved in half precision
    encoder = TorchEncoder(whole, parts.processor, parts.expander, "cpu")
    encoder.know_files(parts.state, parts.fingerprint)
    sides = image_settings(parts.processor).shape  # refused before anything is computed
    beside = _beside(source, Path(output or source), parts.kwargs)
    target = Path(output or source) / FOLDER_NAME
    comparisons: dict[str, Comparison] = {}
    with export_folder(target, overwrite, _OWN_FILES) as folder:
        for tower in towers_of(encoder.model, sides):
            _write(tower, folder, wanted, opset, partial(_pixels, encoder.processor, images))
            for name, precision in ((file_name(tower.name, precision), precision) for precision in wanted):
                comparisons[name] = compare(tower, folder / name, precision)
        files = described(encoder, folder, wanted, opset)
        files.save(folder)
        for path, content in beside.items():
            with atomic_file(path, CheckpointError) as temporary:
                temporary.write_bytes(content)
    return OnnxExport(target, files, comparisons)


def _write(
    tower: Tower, folder: Path, precisions: Sequence[str], opset: int, pixels: Callable[[], Iterable[np.ndarray]]
) -> None:
    """Writes the files of one tower."""
    program = onnx_program(tower, opset) if {"fp32", "int8"} & set(precisions) else None
    for precision in precisions:
        path = folder / file_name(tower.name, precision)
        if precision == "int8" and program is not None:
            write_int8(program, path, tower, pixels())
        else:
            content = half_program(tower, opset) if precision == "fp16" or program is None else program
            path.write_bytes(content.SerializeToString())


def _pixels(processor: CMFAHProcessor, images: Sequence[Any] | None) -> Iterator[np.ndarray]:
    """Batches of `pixel_values` of the given images, or of drawn scenes."""
    if images is None:
        images = make_scenes(_CALIBRATION_IMAGES)["image"]
    chosen = list(images)[:: max(1, len(images) // _CALIBRATION_IMAGES)][:_CALIBRATION_IMAGES]
    for start in range(0, len(chosen), _BATCH):
        yield pixel_values_of(processor, map(decode_image, chosen[start : start + _BATCH])).numpy()


def _checked(precisions: Sequence[str]) -> tuple[str, ...]:
    for name in precisions:
        if name not in PRECISIONS:
            raise CMFAHError(f"The precision {name!r:.40} is not known; give {', '.join(PRECISIONS)}.")
    if not precisions:
        raise CMFAHError(f"No precision is given; give some of {', '.join(PRECISIONS)}.")
    return tuple(name for name in PRECISIONS if name in precisions)


def _beside(source: str, output: Path, kwargs: dict[str, Any]) -> dict[Path, bytes]:
    """The files to copy into the output, with their content.

    Raises:
        CheckpointError: If there is a file of the same name and another content.
    """
    found = {}
    for name in _WITHOUT_WEIGHTS:
        path, target = find_file(source, name, kwargs), output / name
        if path is None:
            continue
        content = path.read_bytes()
        if file_of(target) is None:
            found[target] = content
        elif target.read_bytes() != content:
            raise CheckpointError(f"{target} is of another model; name another folder.")
    return found
