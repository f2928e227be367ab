"""The towers of the static page: a model's ONNX files, or new ones."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmfah_hf.documents import file_of
from cmfah_hf.errors import CheckpointError
from cmfah_hf.models.model_files import is_folder
from cmfah_hf.retrieval.onnx.files import DESCRIPTION_NAME, FOLDER_NAME, TOWERS, ImageSettings, OnnxFiles

# Filters that the page implements, by Pillow's numbers: bilinear and bicubic.
_FILTERS = (2, 3)


@contextmanager
def onnx_towers(source: str, fingerprint: str, precision: str) -> Iterator[tuple[OnnxFiles, dict[str, Path]]]:
    """The description and the files of a model's towers; they may vanish after the block.

    Those in the model's folder are taken if they have this precision. Otherwise they are made for the block.

    Args:
        source: The folder of the model, or a Hub id.
        fingerprint: That of the model.
        precision: `"fp32"`, `"fp16"` or `"int8"`.

    Raises:
        CheckpointError: If the files in the folder are of another model or damaged, no files can be made, or the page
            cannot prepare images as the model does.
        CMFAHError: If a library is missing.
    """
    folder = Path(source, FOLDER_NAME)
    if is_folder(source) and file_of(folder / DESCRIPTION_NAME) is not None:
        files = OnnxFiles.load(folder)
        if files.fingerprint != fingerprint:
            raise CheckpointError(
                f"{folder} has the ONNX files of another model (fingerprint {files.fingerprint[:8]}; this model: "
                f"{fingerprint[:8]}); make them again with `cmfah export onnx {source} --overwrite`."
            )
        if precision in files.precisions:
            yield files, _towers(files, folder, precision, source)
            return
    from cmfah_hf.retrieval.onnx.export import export_onnx

    with tempfile.TemporaryDirectory(prefix="cmfah-towers-") as place:
        made = export_onnx(source, output=place, precisions=(precision,))
        yield made.files, _towers(made.files, made.folder, precision, source)


def _towers(files: OnnxFiles, folder: Path, precision: str, source: str) -> dict[str, Path]:
    _check_images(files.image_processor, source)
    return {tower: files.file(folder, tower, precision) for tower in TOWERS}


def _check_images(settings: ImageSettings, source: str) -> None:
    if settings.do_resize and settings.resample in _FILTERS:
        return
    how = f"the filter {settings.resample}" if settings.do_resize else "no resizing"
    raise CheckpointError(
        f"{source}: prepares images by {how}, and the static page knows bilinear and bicubic resizing; search it with "
        "`cmfah space`."
    )
