"""`push_dataset`: atomic push of a data set."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

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
        splits: Number of pairs per split.
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
    """Pushes a data set in one commit; `load_image_text(repo_id)` and plain `datasets` read it back.

    A prepared folder (a card `README.md` and Parquet shards below `data/`) is pushed unchanged. Any other source is
    first written in that layout, in the cache of `datasets`, with the bytes of the image files in the shards. Other
    shards in the repository are removed in the same commit.

    An interrupted push resumes when it is called again, because the Hub knows uploaded content by its digest. Until the
    commit, readers see the former state.

    Args:
        source: A prepared folder, or what `load_image_text` takes.
        repo_id: `owner/name`; created if needed.
        private: Create a private repository. An existing public one is an error.
        token: Default: the token of `HF_TOKEN` or `hf auth login`. It is never printed or logged.
        revision: The branch; created from main if needed.
        message: Title of the commit.
        overwrite: Also replace files that were edited on the Hub since the last push.
        progress: Show upload progress bars.

    Raises:
        DataError: If the folder or the source cannot be loaded.
        HubError: If there is no valid token, the Hub cannot be reached, or somebody else changed the branch meanwhile.
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
    """True for files that an earlier push of a data set wrote."""
    return path.startswith("data/") and path.endswith(".parquet")


@contextmanager
def _as_folder(source: str, repo_id: str) -> Iterator[Path]:
    """The source itself if it is a prepared folder, else a temporary folder written from it."""
    path = resolve_data_path(source)
    if is_prepared(path):
        yield path
        return
    import datasets

    with _reading(source, path):
        streams = load_image_text(source, streaming=True)
    with staging(Path(datasets.config.HF_DATASETS_CACHE) / "cmfah-push", str(path), repo_id) as folder:
        try:
            with _reading(source, path):
                write_folder(streams, folder, title=repo_id.partition("/")[2])
        except OSError as error:
            raise HubError(
                f"{source}: cannot be written as shards to {folder} ({error.strerror or error}); free space there, or "
                "set HF_DATASETS_CACHE to another folder."
            ) from error
        yield folder


def _reading(source: str, path: Path) -> AbstractContextManager[None]:
    """A context that limits and reports failures of the Hub, for sources on the Hub."""
    return nullcontext() if path.exists() or source in SCENES else hub_errors(source, DataError, kind="dataset")
