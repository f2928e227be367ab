"""The ONNX files that are pushed with a model: those of its folder, or new ones."""

import shutil
from pathlib import Path

from cmfah_hf.errors import CheckpointError
from cmfah_hf.hub.finished_run import own_file
from cmfah_hf.retrieval.onnx.files import DESCRIPTION_NAME, FOLDER_NAME, PRECISIONS, TOWERS, OnnxFiles, file_name

# By their paths in a repository.
ONNX_DESCRIPTION = f"{FOLDER_NAME}/{DESCRIPTION_NAME}"
ONNX_FILES = frozenset(
    {ONNX_DESCRIPTION, *(f"{FOLDER_NAME}/{file_name(tower, own)}" for tower in TOWERS for own in PRECISIONS)}
)


def onnx_files(folder: Path, stage: Path) -> dict[str, Path]:
    """The ONNX files of a model by their paths in a repository; made in `stage` if the folder of the model has none.

    Raises:
        CheckpointError: If those of the folder are damaged or of another model, or the model cannot be exported.
        CMFAHError: If the folder has none, and what makes them is not installed.
    """
    if own_file(folder, ONNX_DESCRIPTION) is None:
        return _made(folder, stage)
    place = folder / FOLDER_NAME
    files = OnnxFiles.load(place)
    own = _fingerprint(folder)
    if files.fingerprint != own:
        raise CheckpointError(
            f"{place} is of another model (fingerprint {files.fingerprint[:8]}; this model: {own[:8]}); make the files "
            f"again with `cmfah export onnx {folder} --overwrite`."
        )
    names = [file_name(tower, precision) for precision in files.precisions for tower in TOWERS]
    for name in names:
        own_file(folder, f"{FOLDER_NAME}/{name}")
    for precision in files.precisions:
        for tower in TOWERS:
            files.file(place, tower, precision)
    return {f"{FOLDER_NAME}/{name}": place / name for name in (DESCRIPTION_NAME, *names)}


def _made(folder: Path, stage: Path) -> dict[str, Path]:
    from cmfah_hf.retrieval.onnx.export import export_onnx  # with torch's exporter, which takes long to import

    work = stage / f".{FOLDER_NAME}"  # the export also copies tokenizer and settings, which the push writes itself
    made = export_onnx(folder, work)
    target = stage / FOLDER_NAME
    made.folder.rename(target)
    shutil.rmtree(work)
    return {f"{FOLDER_NAME}/{path.name}": path for path in target.iterdir()}


def _fingerprint(folder: Path) -> str:
    from cmfah_hf.retrieval import CrossMediaRetriever

    return CrossMediaRetriever.from_pretrained(folder, device="cpu").fingerprint
