"""`push_space`: the search page onto the Hub, with the model and the code that it runs."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from cmfah_hf.errors import HubError
from cmfah_hf.hub.finished_run import WORDS, is_repo_id, read_run
from cmfah_hf.hub.model_folder import write_metrics, write_model
from cmfah_hf.hub.publishing import Published, check_target, publish, staging
from cmfah_hf.space.files import is_space_file, space_files
from cmfah_hf.space.settings import SCENES, SETTINGS_NAME, SpaceSettings, bundled_space

# What a person may have changed of a Space, and what goes with any state of the rest.
_MAY_STAY = ("app.py", "requirements.txt")


@dataclass(frozen=True)
class PushedSpace(Published):
    """A Space on the Hub.

    Args:
        model: What it loads: `"model"`, the folder that went along, or a Hub id.
        data: The images that it shows.
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
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    message: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> PushedSpace:
    """Put the search page on the Hub in one commit, as a Gradio Space that starts by itself.

    It holds the app, this package as it is installed here, `space.json`, and a model's folder where one is given. What
    an earlier push left there and this one does not have is removed in the same commit.

    Args:
        repo_id: `owner/name`; created if needed.
        model: A run's folder, which goes along, or a Hub id, which the Space loads from there. None: the embedded one.
        data: The images: a data set on the Hub, or `"scenes"`. None: `"scenes"`, with the embedded model alone.
        split: Of the data; see `SpaceSettings`.
        limit: The most images that are shown.
        title: Above the page.
        examples: Queries to begin with.
        private: Whether it is to be private. One that is there and public is refused then.
        token: Default: that of `HF_TOKEN` or of `hf auth login`. It is neither printed nor logged.
        revision: The branch, created from the main one if needed.
        message: The commit's title.
        overwrite: Replace also what somebody has changed on the Hub since the last push.
        progress: Show a bar for each file that is being sent.

    Raises:
        CheckpointError: If the model's folder lacks a file.
        HubError: If the data lies on this machine alone, a model comes without data, there is no token, or the Hub
            refuses it, cannot be reached, or was changed by somebody else meanwhile.
    """
    from huggingface_hub import cached_assets_path

    token = check_target(repo_id, token)
    embedded = bundled_space()
    settings = SpaceSettings.load(embedded)
    folder: Path | None = embedded / settings.model
    if model is not None:
        if data is None:
            raise HubError(f"{model}: name the images that this model is to search: a data set on the Hub.")
        folder = Path(model) if Path(model).is_dir() else None
        if folder is None and not is_repo_id(os.fspath(model)):
            raise HubError(f"{model}: neither a folder nor a model's id on the Hub; give one of both.")
        settings = replace(settings, model="model" if folder is not None else os.fspath(model))
    if data is not None and data != SCENES and (Path(data).exists() or not is_repo_id(data)):
        raise HubError(
            f"{data}: a Space cannot read it from there; put it on the Hub with `cmfah data push`, and give its id."
        )
    if model is not None or data is not None or examples:
        settings = replace(settings, examples=tuple(examples))
    given = {"data": data, "split": split, "limit": limit, "title": title}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    with staging(cached_assets_path("cmfah-hf", "push", "spaces"), str(folder), repo_id) as stage:
        path = stage / SETTINGS_NAME
        path.write_text(settings.to_json(), encoding="utf-8")
        if folder is not None and model is not None:
            folder = _write_model(folder, stage / "model")
        files = {**space_files(folder), SETTINGS_NAME: path}
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
    return PushedSpace(**vars(done), model=settings.model, data=settings.data)


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
