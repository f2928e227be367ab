"""Storage of fitted states: arrays in `<stem>.safetensors`, words and settings in `<stem>.json`.

The JSON has the checksum of the arrays, which detects damage as well as files of different saves.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cmfah_hf.atomic import atomic_file, atomic_folder, locked, sha256_of, write_text
from cmfah_hf.documents import read_json
from cmfah_hf.errors import CheckpointError, CMFAHError
from cmfah_hf.models.model_files import ModelFileError, require_below

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_ENDINGS = (".json", ".safetensors")
_ARRAY_TYPES = (np.float64, np.float32, np.int64, np.int32)

_State = TypeVar("_State")


class Fitted:
    """A state that `fit` or `load` fills. What a fitted object has is an error before."""

    _vocabulary: list[str] | None = None
    _UNFITTED: str  # the error

    @property
    def is_fitted(self) -> bool:
        return self._vocabulary is not None

    @property
    def vocabulary(self) -> list[str]:
        if self._vocabulary is None:
            raise CMFAHError(self._UNFITTED)
        return self._vocabulary

    def _check_fitted(self) -> None:
        self.vocabulary  # noqa: B018 - raises the error


def save_state(
    folder: str | Path, stem: str, kind: str, tensors: Mapping[str, np.ndarray], content: Mapping[str, Any]
) -> None:
    """Writes both files of a state of the class `kind`, each atomically.

    Must be called within `replacing`, which keeps the earlier files until the last one is replaced.
    """
    from safetensors.numpy import save_file

    arrays_path, json_path = _paths(Path(folder), stem)
    header = {"kind": kind, "format_version": FORMAT_VERSION}
    text = json.dumps({**header, "sha256": "", **content}, ensure_ascii=False, indent=1)  # fails before a file changes
    with atomic_file(arrays_path, CheckpointError) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, temporary)
        checksum = sha256_of(temporary)
    text = json.dumps({**header, "sha256": checksum, **content}, ensure_ascii=False, indent=1)
    write_text(json_path, text + "\n", CheckpointError)


def remove_state(folder: str | Path, stem: str) -> None:
    """Removes both files of a state, if they exist."""
    for path in _paths(Path(folder), stem):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(folder: str | Path, stems: Sequence[str]) -> Iterator[None]:
    """Keeps the earlier files of states that belong together until all of them are replaced.

    While the block writes them, the earlier files are in a hidden folder next to them, named by the first stem. If the
    process dies, they stay there, and `load_whole` reads them.
    """
    folder = Path(folder)
    previous, done = _previous(folder, stems[0])
    with locked(folder / stems[0], CheckpointError):
        shutil.rmtree(done, ignore_errors=True)
        files = [path for stem in stems for ending in _ENDINGS if (path := folder / (stem + ending)).is_file()]
        if (
            files and not previous.is_dir()
        ):  # an existing one is from a process that died, and is the last complete state
            with atomic_folder(previous, CheckpointError) as kept:
                for path in files:
                    _link_or_copy(path, kept / path.name)
        yield
        if previous.is_dir():
            previous.rename(done)
            shutil.rmtree(done, ignore_errors=True)


def load_whole(folder: str | Path, stem: str, load: Callable[[Path], _State]) -> _State:
    """The result of `load` for a folder; if a process died while replacing its states, of the earlier ones."""
    folder = Path(folder)
    previous, _ = _previous(folder, stem)
    try:
        return load(folder)
    except CheckpointError:
        if not previous.is_dir():
            raise
        state = load(previous)
        logger.warning("%s: saving %s was interrupted; the earlier state is loaded.", folder, stem)
        return state


def load_state(folder: str | Path, stem: str, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads both files of a state of the class `kind`: the arrays by name and the JSON's content."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    arrays_path, json_path = _paths(Path(folder), stem)
    for path in (json_path, arrays_path):
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; give a folder written by {kind}.save().")
        try:
            require_below(path, folder)
        except ModelFileError as error:
            raise CheckpointError(str(error)) from error
    content = read_json(json_path, CheckpointError)
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise CheckpointError(f"{json_path} does not hold a {kind}; give a folder written by {kind}.save().")
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{json_path} has format version {str(content.get('format_version'))[:40]!r}, this package reads "
            f"{FORMAT_VERSION}; install the version of cmfah_hf that wrote it."
        )
    if content.get("sha256") != sha256_of(arrays_path):
        raise CheckpointError(
            f"{arrays_path} is damaged or belongs to another save (its checksum is not the one in {json_path.name}); "
            f"save the {kind} again."
        )
    try:
        tensors = load_file(arrays_path)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:  # the first is for types that NumPy lacks
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{arrays_path} is damaged ({reason}); save the {kind} again.") from error
    for name, array in tensors.items():
        if array.dtype not in _ARRAY_TYPES:
            raise damaged(folder, stem, f"{name!r} is of the type {array.dtype}")
    return tensors, content


def state_digest(tensors: Mapping[str, np.ndarray], content: Mapping[str, Any]) -> str:
    """The SHA-256 of a state; arrays of different types but equal values give the same."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, array in sorted(tensors.items()):
        digest.update(name.encode() + array.astype("<f8" if array.dtype.kind == "f" else "<i8").tobytes())
    return digest.hexdigest()


def damaged(folder: str | Path, stem: str, reason: object) -> CheckpointError:
    """The error for a state with invalid content."""
    reason = " ".join(str(reason).split())[:200]
    return CheckpointError(f"{_paths(Path(folder), stem)[1]} is damaged ({reason}); save it again.")


def require_words(words: Any) -> list[str]:
    """Checks a saved vocabulary; `ValueError` if it is not a list of distinct words."""
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("the vocabulary is not a list of words")
    if len(set(words)) != len(words):
        raise ValueError("a word occurs twice")
    return words


def sparse_rows(tensors: Mapping[str, np.ndarray], shape: tuple[int, int]) -> Any:
    """A CSR matrix of `data`, `indices` and `indptr`, fully checked, since compiled code trusts them."""
    from scipy import sparse

    data, indices, indptr = (tensors[name] for name in ("data", "indices", "indptr"))
    if data.dtype != np.float64 or indices.dtype.kind != "i" or indptr.dtype != indices.dtype:
        raise ValueError("the arrays of its matrix are of other types")
    if data.ndim != 1 or indices.shape != data.shape or indptr.shape != (shape[0] + 1,):
        raise ValueError("the arrays of its matrix are of other shapes")
    if indptr[0] != 0 or indptr[-1] != len(data) or (np.diff(indptr) < 0).any():
        raise ValueError("the rows of its matrix overlap")
    if len(indices) and not 0 <= indices.min() <= indices.max() < shape[1]:
        raise ValueError("its matrix has entries beyond its columns")
    matrix = sparse.csr_array((data, indices, indptr), shape=shape)
    matrix.sort_indices()
    if not matrix.has_canonical_format:
        raise ValueError("its matrix has an entry twice")
    return matrix


def _paths(folder: Path, stem: str) -> tuple[Path, Path]:
    return folder / f"{stem}.safetensors", folder / f"{stem}.json"


def _previous(folder: Path, stem: str) -> tuple[Path, Path]:
    """The folders of the earlier files while they are replaced, and before they are removed."""
    return folder / f".{stem}.previous", folder / f".{stem}.replaced"


def _link_or_copy(path: Path, target: Path) -> None:
    path = Path(os.path.realpath(path))
    try:
        os.link(path, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, target)
