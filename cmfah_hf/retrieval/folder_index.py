"""The index of a folder of images, kept in step with the folder: only new and changed images are encoded.

The state of each file (size and times, `data/file_state.py`) is stored as metadata of its item, as a digest.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import cached_assets_path

from cmfah_hf.atomic import locked
from cmfah_hf.data import resolve_data_path
from cmfah_hf.data.file_state import digest_of, file_states
from cmfah_hf.data.images import find_image_files
from cmfah_hf.errors import DataError, HashIndexError
from cmfah_hf.retrieval.index import HashIndex
from cmfah_hf.retrieval.retriever import CrossMediaRetriever

STATE_COLUMN = "file_state"
# Images between two saves, which an interruption cannot lose.
_PORTION = 1_000


@dataclass
class FolderChanges:
    """The result of an update of the index of a folder.

    Attributes:
        added, changed, removed, unchanged: Numbers of images.
        unreadable: For each image that could not be read, the reason.
        skipped: Numbers of files that are no images, by ending or reason.
    """

    added: int = 0
    changed: int = 0
    removed: int = 0
    unchanged: int = 0
    unreadable: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)


def folder_index_path(model: str, folder: str | Path) -> Path:
    """The place of the index of a folder in the cache of the Hub's libraries.

    Args:
        model: The fingerprint of the model.
        folder: The folder of images.
    """
    name = hashlib.blake2b(str(Path(folder).resolve()).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return cached_assets_path("cmfah_hf", namespace="indexes", subfolder=model) / f"{name}.index"


def states_of(files: Iterable[Path]) -> dict[str, list[str]]:
    """Digests of the states of files, as a column of metadata."""
    return {STATE_COLUMN: [digest_of([state]) for state in file_states(files)]}


def update_folder_index(
    retriever: CrossMediaRetriever,
    folder: str | Path,
    path: str | Path | None = None,
    *,
    hidden: bool = False,
    batch_size: int = 32,
    progress: bool = False,
) -> FolderChanges:
    """Brings the index of a folder up to date, saves it, and sets it as `retriever.images`.

    The id of an image is its path below the folder. The index is saved in portions, so an interruption loses little.

    Args:
        retriever: The model.
        folder: The folder of images.
        path: The index file. None: that of `folder_index_path`.
        hidden: Include hidden files and folders, and those of thumbnails.
        batch_size: Images encoded at once.
        progress: Show a progress bar.

    Raises:
        DataError: If there is no such folder, or no readable image in it.
        HashIndexError: If the file is the index of another model, or of something else.
    """
    root = resolve_data_path(folder)
    if not root.is_dir():
        raise DataError(f"{folder}: no such folder of images; check the path.")
    target = Path(path) if path is not None else folder_index_path(retriever.fingerprint, root)
    with locked(target.with_name(f"{target.name}.update"), HashIndexError):  # saving takes the file's own lock
        index = retriever.load_index(target) if target.exists() else HashIndex(retriever.model.config.hash_bits)
        changes = FolderChanges()
        pending = _pending(index, root, hidden, changes, str(target))
        retriever.images = index
        for start in range(0, len(pending), _PORTION):
            _encode(retriever, pending[start : start + _PORTION], root, changes, batch_size, progress)
            retriever.images.save(target)
        if changes.removed and not pending:
            retriever.images.save(target)
    if not len(retriever.images):
        raise DataError(f"{folder}: no readable image in it; see the warnings above, or name another folder.")
    return changes


def _pending(index: HashIndex, folder: Path, hidden: bool, changes: FolderChanges, name: str) -> list[Path]:
    """The new and changed files, whose former items are removed, as are those of files that are gone."""
    found = find_image_files(folder, hidden)
    changes.skipped = dict(found.skipped)
    states = states_of(found.files)[STATE_COLUMN]
    ids = [file.relative_to(folder).as_posix() for file in found.files]
    current = dict(zip(ids, zip(found.files, states, strict=True), strict=True))
    former = _former_states(index, name)
    gone = [item_id for item_id in former if item_id not in current]
    changed = [item_id for item_id, state in former.items() if item_id in current and current[item_id][1] != state]
    if gone or changed:
        index.remove([*gone, *changed])
    fresh = [item_id for item_id in current if item_id not in former]
    changes.removed, changes.changed, changes.added = len(gone), len(changed), len(fresh)
    changes.unchanged = len(current) - len(changed) - len(fresh)
    return [current[item_id][0] for item_id in [*changed, *fresh]]


def _former_states(index: HashIndex, name: str) -> dict[str, str]:
    if not len(index):
        return {}
    if index.metadata is None or STATE_COLUMN not in index.metadata.column_names:
        raise HashIndexError(f"{name}: not the index of a folder of images; name another file.")
    return dict(zip(map(str, index.ids), index.metadata[STATE_COLUMN].to_pylist(), strict=True))


def _encode(
    retriever: CrossMediaRetriever,
    files: list[Path],
    folder: Path,
    changes: FolderChanges,
    batch_size: int,
    progress: bool,
) -> None:
    ids: list[Any] = [file.relative_to(folder).as_posix() for file in files]
    changes.unreadable += retriever.add_images(files, ids, batch_size, progress, metadata=states_of(files))
