"""`push_model`: atomic push of a trained model."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmfah_hf.data.dataset_card import CARD_NAME
from cmfah_hf.errors import HubError
from cmfah_hf.hub.finished_run import ATTENTION_PLOT, own_file, read_run
from cmfah_hf.hub.model_folder import is_ours, write_metrics, write_model, write_settings
from cmfah_hf.hub.onnx_files import onnx_files
from cmfah_hf.hub.publishing import Published, check_target, publish, staging
from cmfah_hf.retrieval.model_source import IMAGES_INDEX, TEXTS_INDEX
from cmfah_hf.retrieval.storage.index_file import copy_without_folders


@dataclass(frozen=True)
class PushedModel(Published):
    """A model on the Hub."""


def push_model(
    run_folder: str | os.PathLike,
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    message: str | None = None,
    images_index: str | os.PathLike | None = None,
    texts_index: str | os.PathLike | None = None,
    license: str | None = None,
    data_license: str | None = None,
    dataset_id: str | None = None,
    attention_image: bool = True,
    onnx: bool = False,
    tags: Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> PushedModel:
    """Pushes a finished run in one commit; `from_pretrained(repo_id)` reads it back.

    `cmfah_hf/hub/model_folder.py` lists the files: the towers as `model.safetensors`, the weights that only training
    needs, processor, vocabulary, code, settings, metrics and a card. Checkpoints and training state, which contain
    pickles, are not pushed. A `README.md` in the folder is pushed unchanged; otherwise the card is generated. Other
    files of an earlier push are removed in the same commit, including an index, which belongs to the former model.

    An interrupted push resumes when it is called again, because the Hub knows uploaded content by its digest. Until the
    commit, readers see the former state.

    Args:
        run_folder: The output folder of a run or a trainer.
        repo_id: `owner/name`; created if needed.
        private: Create a private repository. An existing public one is an error.
        token: Default: the token of `HF_TOKEN` or `hf auth login`. It is never printed or logged.
        revision: The branch; created from main if needed.
        message: Title of the commit.
        images_index: An index file of images, for `CrossMediaRetriever.from_pretrained(repo_id, index=True)`. Its ids
            and columns are as public as the repository; the paths of the folders that it follows are left out.
        texts_index: An index file of texts.
        license: The model's license as a Hub identifier, such as `apache-2.0`.
        data_license: The data's license as text. Default: the license in the data's card.
        dataset_id: The data's Hub id, if the run used a local copy.
        attention_image: Push the attention plot, which shows an image of the data.
        onnx: Push the towers as ONNX files too, which `CrossMediaRetriever.from_pretrained(..., backend="onnx")`
            reads: those of the folder `onnx` of the run, or new ones in float32.
        tags: Additional tags of the card.
        metrics: Metrics for the card if the folder has no `metrics.json`.
        overwrite: Also replace files that were edited on the Hub since the last push.
        progress: Show upload progress bars.

    Raises:
        CheckpointError: If the folder holds no model that could be loaded, or its ONNX files are of another one.
        HashIndexError: If an index cannot be read or belongs to another model.
        HubError: If there is no valid token, the Hub cannot be reached, or somebody else changed the branch meanwhile.
    """
    from huggingface_hub import cached_assets_path

    token = check_target(repo_id, token)
    folder = Path(run_folder)
    run = read_run(folder, metrics)
    files = dict(run.files)
    if not attention_image:
        files.pop(ATTENTION_PLOT, None)
    given = {IMAGES_INDEX: images_index, TEXTS_INDEX: texts_index}
    indexes = {name: Path(path) for name, path in given.items() if path is not None}
    _check_indexes(folder, indexes.values())
    files |= indexes
    with staging(cached_assets_path("cmfah-hf", "push", "models"), str(folder), repo_id) as stage:
        if onnx:
            files |= onnx_files(folder, stage)
        _stage(run, folder, stage, files, repo_id, revision, license, data_license, dataset_id, tags)
        for name, path in indexes.items():
            copy_without_folders(path, stage / name)
        files |= {path.relative_to(stage).as_posix(): path for path in stage.rglob("*") if path.is_file()}
        done = publish(
            files,
            repo_id,
            "model",
            message or "Upload the model",
            private=private,
            token=token,
            revision=revision,
            replaces=is_ours,
            overwrite=overwrite,
            progress=progress,
        )
    return PushedModel(**vars(done))


def _stage(run, folder, stage, files, repo_id, revision, license, data_license, dataset_id, tags) -> None:
    from cmfah_hf.hub.model_card import make_model_card

    try:
        write_model(folder, stage)
        write_metrics(run, stage)
        if run.settings:
            write_settings(run, stage, dataset_id)
        if (own := own_file(folder, CARD_NAME)) is not None:
            files[CARD_NAME] = own
            return
        card = make_model_card(
            run,
            repo_id,
            license=license,
            data_license=data_license,
            dataset_id=dataset_id,
            tags=tags,
            files=files,
            revision=revision,
        )
        (stage / CARD_NAME).write_text(str(card), encoding="utf-8")
    except OSError as error:
        raise HubError(
            f"{folder}: cannot be prepared in {stage} ({error.strerror or error}); free space there, or set "
            "HF_ASSETS_CACHE to another folder."
        ) from error


def _check_indexes(folder: Path, paths: Iterable[Path]) -> None:
    """Rejects indexes that cannot be read or belong to another model."""
    from cmfah_hf.retrieval import CrossMediaRetriever

    retriever = None
    for path in paths:
        retriever = retriever or CrossMediaRetriever.from_pretrained(folder, device="cpu")
        retriever.load_index(path, mmap=True)
