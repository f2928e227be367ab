"""`push_model`: a trained model onto the Hub, whole or not at all."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmfah_hf.data.dataset_card import CARD_NAME
from cmfah_hf.errors import HubError
from cmfah_hf.hub.finished_run import ATTENTION_PLOT, own_file, read_run
from cmfah_hf.hub.model_folder import is_ours, write_metrics, write_model, write_settings
from cmfah_hf.hub.publishing import Published, check_target, publish, staging
from cmfah_hf.retrieval.loading import IMAGES_INDEX, TEXTS_INDEX


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
    attention_picture: bool = True,
    tags: Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> PushedModel:
    """Put a finished run on the Hub in one commit, to be read back by `from_pretrained(repo_id)`.

    What goes up is named in `cmfah_hf/hub/model_folder.py`: the towers as `model.safetensors`, apart from them what
    only training needs, processor, words, code, settings, figures and a card. Checkpoints and the state of the
    training, which hold pickles, stay where they are. A `README.md` in the folder goes up as it stands; without one
    the card is written. Files of an earlier push that this one does not have are removed in the same commit, an index
    among them: it belongs to the former model.

    Broken off, it goes on when it is called again: what has been sent is known to the Hub by its content. Before the
    commit, readers see the former state.

    Args:
        run_folder: Where a training run, or a trainer, left its model.
        repo_id: `owner/name`; created if needed.
        private: Whether it is to be private. One that is there and public is refused then.
        token: Default: that of `HF_TOKEN` or of `hf auth login`. It is neither printed nor logged.
        revision: The branch, created from the main one if needed.
        message: The commit's title.
        images_index: An index file of pictures, for `CrossMediaRetriever.from_pretrained(repo_id, index=True)`. Its ids
            and columns become as public as the repository.
        texts_index: The same of texts.
        license: The model's licence, by the Hub's names, such as `apache-2.0`.
        data_license: The data's licence, in words. Default: what the data's own card says.
        dataset_id: The data's id on the Hub, if it is there and the run was told of a folder.
        attention_picture: Whether the picture of what the words look at goes up. It shows a picture of the data.
        tags: Further tags of the card.
        metrics: Figures for the card, where the folder has no `metrics.json`.
        overwrite: Replace also what somebody has changed on the Hub since the last push.
        progress: Show a bar for each file that is being sent.

    Raises:
        CheckpointError: If the folder holds no model that could be loaded.
        HashIndexError: If an index cannot be read, or is of another model.
        HubError: If there is no token, or the Hub refuses it, cannot be reached, or was changed by somebody else
            meanwhile.
    """
    from huggingface_hub import cached_assets_path

    token = check_target(repo_id, token)
    folder = Path(run_folder)
    run = read_run(folder, metrics)
    files = dict(run.files)
    if not attention_picture:
        files.pop(ATTENTION_PLOT, None)
    given = {IMAGES_INDEX: images_index, TEXTS_INDEX: texts_index}
    indexes = {name: Path(path) for name, path in given.items() if path is not None}
    _check_indexes(folder, indexes.values())
    files |= indexes
    with staging(cached_assets_path("cmfah-hf", "push", "models"), str(folder), repo_id) as stage:
        _stage(run, folder, stage, files, repo_id, revision, license, data_license, dataset_id, tags)
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
            f"{folder}: cannot be made ready in {stage} ({error.strerror or error}); make room there, or name another "
            "place by HF_ASSETS_CACHE."
        ) from error


def _check_indexes(folder: Path, paths: Iterable[Path]) -> None:
    """Refuse an index that cannot be read, or whose codes another model made."""
    from cmfah_hf.retrieval import CrossMediaRetriever

    retriever = None
    for path in paths:
        retriever = retriever or CrossMediaRetriever.from_pretrained(folder, device="cpu")
        retriever.load_index(path, mmap=True)
