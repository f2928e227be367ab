"""`push_dataset`: a data set onto the Hub, whole or not at all."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmfah_hf.data import load_image_text, resolve_data_path
from cmfah_hf.data.sources.scenes import SCENES
from cmfah_hf.errors import DataError, HubError
from cmfah_hf.hub.dataset_folder import check_folder, is_prepared, write_folder
from cmfah_hf.hub.publishing import Published, check_target, publish, staging
from cmfah_hf.hub_access import hub_errors


@dataclass(frozen=True)
class PushedDataset(Published):
    """A data set on the Hub.

    Args:
        splits: Pairs of each split.
    """

    splits: dict[str, int]


def push_dataset(
    source: str | os.PathLike,
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    message: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> PushedDataset:
    """Put a data set on the Hub in one commit, to be read back by `load_image_text(repo_id)` or by `datasets` alone.

    A prepared folder, with a card (`README.md`) and Parquet shards below `data/`, goes as it is. Any other source is
    first written in that layout, in the cache of `datasets`, with the pictures' own bytes in the shards. Shards of the
    repository that this data set does not have are removed in the same commit.

    Broken off, it goes on when it is called again: what has been sent is known to the Hub by its content. Before the
    commit, readers see the former state.

    Args:
        source: A prepared folder, or what `load_image_text` takes.
        repo_id: `owner/name`; created if needed.
        private: Whether it is to be private. One that is there and public is refused then.
        token: Default: that of `HF_TOKEN` or of `hf auth login`. It is neither printed nor logged.
        revision: The branch, created from the main one if needed.
        message: The commit's title.
        overwrite: Replace also what somebody has changed on the Hub since the last push.
        progress: Show a bar for each file that is being sent.

    Raises:
        DataError: If the folder or the source is not what a reader could load.
        HubError: If there is no token, or the Hub refuses it, cannot be reached, or was changed by somebody else
            meanwhile.
    """
    token = check_target(repo_id, token)
    with _as_folder(os.fspath(source), repo_id) as folder:
        checked = check_folder(folder)
        done = publish(
            checked.files,
            repo_id,
            "dataset",
            message or "Upload the data set",
            private=private,
            token=token,
            revision=revision,
            replaces=_is_shard,
            required=("configs",),
            overwrite=overwrite,
            progress=progress,
        )
    return PushedDataset(**vars(done), splits=checked.splits)


def _is_shard(path: str) -> bool:
    """Whether a file of the repository is one that another push of a data set left there."""
    return path.startswith("data/") and path.endswith(".parquet")


@contextmanager
def _as_folder(source: str, repo_id: str) -> Iterator[Path]:
    """The prepared folder that the source is, or one that is written from it for the time of this context."""
    path = resolve_data_path(source)
    if is_prepared(path):
        yield path
        return
    import datasets

    with _reading(source, path):
        streams = load_image_text(source, streaming=True)
    with staging(Path(datasets.config.HF_DATASETS_CACHE) / "cmfah-push", str(path), repo_id) as folder:
        with _reading(source, path):
            _write(streams, folder, source, repo_id)
        yield folder


def _reading(source: str, path: Path) -> AbstractContextManager[None]:
    """A context that limits and reports failures of the Hub, for sources on the Hub."""
    return nullcontext() if path.exists() or source in SCENES else hub_errors(source, DataError)


def _write(streams: Mapping[str, Any], folder: Path, source: str, repo_id: str) -> None:
    try:
        write_folder(streams, folder, title=repo_id.partition("/")[2])
    except OSError as error:
        raise HubError(
            f"{source}: cannot be written as shards to {folder} ({error.strerror or error}); make room there, or name "
            "another place by HF_DATASETS_CACHE."
        ) from error
