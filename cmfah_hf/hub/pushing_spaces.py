"""`push_space`: push of the search page as a Space, with its model and code."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cmfah_hf.data.dataset_card import CARD_NAME
from cmfah_hf.errors import HubError
from cmfah_hf.hub.finished_run import WORDS, is_repo_id, read_run
from cmfah_hf.hub.model_folder import write_metrics, write_model
from cmfah_hf.hub.publishing import Published, check_target, publish, staging
from cmfah_hf.space.files import is_space_file, model_requirements, space_files
from cmfah_hf.space.settings import SCENES, SETTINGS_NAME, SpaceSettings, bundled_space

# Files of a Space that may be edited independently of the rest.
_REQUIREMENTS_NAME = "requirements.txt"
_MAY_STAY = ("app.py", _REQUIREMENTS_NAME)
# The tag by which the Hub finds Spaces for agents, in the card.
_TAGS, _AGENTS_TAG = "\ntags:\n", "  - mcp-server\n"


@dataclass(frozen=True)
class PushedSpace(Published):
    """A Space on the Hub.

    Args:
        model: The model that it loads: `"model"`, the folder in the Space, or a Hub id.
        data: The data set that it shows.
    """

    model: str
    data: str


def push_space(
    repo_id: str,
    model: str | os.PathLike | None = None,
    data: str | None = None,
    split: str | None = None,
    limit: int | None = None,
    title: str | None = None,
    examples: tuple[str, ...] = (),
    mcp: bool = False,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    message: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> PushedSpace:
    """Pushes the search page in one commit, as a Gradio Space that is ready to run.

    It contains the app, the installed package, `space.json`, and the model's folder if one is given. Other files of an
    earlier push are removed in the same commit.

    Args:
        repo_id: `owner/name`; created if needed.
        model: A run's folder, which is pushed too, or a Hub id that the Space loads. None: the embedded model.
        data: The images: a data set on the Hub, or `"scenes"`. None: `"scenes"`, only with the embedded model.
        split: Of the data; see `SpaceSettings`.
        limit: Maximum number of images.
        title: Title of the page.
        examples: Example queries.
        mcp: Whether agents can search in the Space, by the Model Context Protocol.
        private: Create a private repository. An existing public one is an error.
        token: Default: the token of `HF_TOKEN` or `hf auth login`. It is never printed or logged.
        revision: The branch; created from main if needed.
        message: Title of the commit.
        overwrite: Also replace files that were edited on the Hub since the last push.
        progress: Show upload progress bars.

    Raises:
        CheckpointError: If the model's folder lacks a file.
        HubError: If the data is local, a model has no data, there is no valid token, the Hub cannot be reached, or
            somebody else changed the branch meanwhile.
    """
    from huggingface_hub import cached_assets_path

    token = check_target(repo_id, token)
    embedded = bundled_space()
    settings = SpaceSettings.load(embedded)
    folder: Path | None = embedded / settings.model
    if model is not None:
        if data is None:
            raise HubError(f"{model}: this model needs images to search; name a data set on the Hub.")
        folder = Path(model) if Path(model).is_dir() else None
        if folder is None and not is_repo_id(os.fspath(model)):
            raise HubError(f"{model}: neither a folder nor a model on the Hub; give one of these.")
        settings = replace(settings, model="model" if folder is not None else os.fspath(model))
    if data is not None and data != SCENES and (Path(data).exists() or not is_repo_id(data)):
        raise HubError(f"{data}: a Space cannot read local data; push it with `cmfah data push`, and give its Hub id.")
    if model is not None or data is not None or examples:
        settings = replace(settings, examples=tuple(examples))
    given: dict[str, Any] = {"data": data, "split": split, "limit": limit, "title": title, "mcp": mcp or None}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    with staging(cached_assets_path("cmfah-hf", "push", "spaces"), str(folder), repo_id) as stage:
        path = stage / SETTINGS_NAME
        path.write_text(settings.to_json(), encoding="utf-8")
        if folder is not None and model is not None:
            folder = _write_model(folder, stage / "model")
        files = {**space_files(folder), SETTINGS_NAME: path}
        if folder is not None and (further := model_requirements(folder)):
            lines = files[_REQUIREMENTS_NAME].read_text(encoding="utf-8")
            files[_REQUIREMENTS_NAME] = stage / _REQUIREMENTS_NAME
            files[_REQUIREMENTS_NAME].write_text(lines + "".join(f"{line}\n" for line in further), encoding="utf-8")
        if settings.mcp:
            card = files[CARD_NAME].read_text(encoding="utf-8")
            files[CARD_NAME] = stage / CARD_NAME
            files[CARD_NAME].write_text(card.replace(_TAGS, _TAGS + _AGENTS_TAG, 1), encoding="utf-8")
        done = publish(
            files,
            repo_id,
            "space",
            message or "Upload the Space",
            private=private,
            token=token,
            revision=revision,
            replaces=is_space_file,
            may_stay=_MAY_STAY,
            required=("sdk", "app_file"),
            overwrite=overwrite,
            progress=progress,
        )
    return PushedSpace(**vars(done), model=settings.model, data=", ".join(settings.sources))


def _write_model(folder: Path, target: Path) -> Path:
    """The model of a run's folder as it is published, never that folder's own files of code and settings."""
    import shutil

    run = read_run(folder)
    target.mkdir()
    write_model(folder, target)
    write_metrics(run, target)
    for name, path in run.files.items():
        if name in WORDS:
            shutil.copyfile(path, target / name)
    return target
