"""Loading of an encoder from the ONNX files of a model, in its folder or on the Hub."""

from pathlib import Path
from typing import Any

from cmfah_hf.errors import CheckpointError, QueryError
from cmfah_hf.models.model_files import is_folder
from cmfah_hf.retrieval.image_options import ImageOptions
from cmfah_hf.retrieval.model_source import HUB_OPTIONS, find_config, find_file, load_expander
from cmfah_hf.retrieval.onnx.encoder import OnnxEncoder
from cmfah_hf.retrieval.onnx.files import DESCRIPTION_NAME, FOLDER_NAME, OnnxFiles, file_name
from cmfah_hf.retrieval.onnx.texts import OnnxTextReader


def load_onnx_encoder(
    source: str,
    kwargs: dict[str, Any],
    precision: str = "fp32",
    device: Any = None,
    image_options: ImageOptions | None = None,
) -> tuple[OnnxEncoder, dict[str, Any]]:
    """The encoder of a model's ONNX files, and the arguments that lead to further files of the same commit.

    From the Hub, only the files that are used are downloaded, those of a tower when it is first used. The arguments
    are those of `CrossMediaRetriever.from_pretrained`.

    Raises:
        CheckpointError: If there is no such model, it has no such files, or one of them is damaged.
        CMFAHError: If ONNX Runtime is not installed.
        QueryError: If an argument is for PyTorch.
    """
    if str(device or "cpu") != "cpu":
        raise QueryError(f"device={str(device)!r:.40}: ONNX Runtime runs on the CPU here; leave it out.")
    for name in kwargs:
        if name not in {"trust_remote_code", *HUB_OPTIONS}:
            raise QueryError(f"{name} is for backend='torch'; leave it out.")
    _, kwargs = find_config(source, kwargs)
    description = _require(source, f"{FOLDER_NAME}/{DESCRIPTION_NAME}", kwargs)
    folder = description.parent
    files = OnnxFiles.load(folder)
    files.check_precision(folder, precision)
    tokenizer, config = (_require(source, name, kwargs) for name in ("tokenizer.json", "tokenizer_config.json"))
    reader = OnnxTextReader.load(tokenizer, config, files.text, description)
    expander = load_expander(source, kwargs) if files.expander is not None else None
    if expander is None and files.expander is not None:
        raise CheckpointError(
            f"{source}: its word graph (expander.json) is missing, which expands queries; restore it."
        )
    if expander is not None and expander.digest != files.expander:
        raise CheckpointError(
            f"{source}: its word graph (expander.json) is not the one that its ONNX files were made with; make them "
            "again with `cmfah export onnx MODEL`."
        )

    def find(tower: str) -> Path:
        _require(source, f"{FOLDER_NAME}/{file_name(tower, precision)}", kwargs)
        return files.file(folder, tower, precision)

    revision = None if is_folder(source) else kwargs.get("revision")
    return OnnxEncoder(files, find, reader, expander, source, revision, image_options), kwargs


def _require(source: str, name: str, kwargs: dict[str, Any]) -> Path:
    found = find_file(source, name, kwargs)
    if found is None:
        advice = "make the ONNX files with `cmfah export onnx MODEL`" if "/" in name else "save the model again"
        raise CheckpointError(f"{source} has no {name}; {advice}.")
    return found
