"""A fitted state on disk: arrays in `<stem>.safetensors`, words and settings in `<stem>.json`.

The JSON carries the checksum of the arrays, so a flipped bit, a cut file and two halves of different saves all show.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cmfah_hf.errors import CheckpointError

FORMAT_VERSION = 1


def save_state(
    folder: str | Path, stem: str, kind: str, tensors: Mapping[str, np.ndarray], content: Mapping[str, Any]
) -> None:
    """Writes both files of a state, each in one step, so that no reader ever meets half a file.

    Args:
        folder: Made if it does not exist.
        stem: The name of both files without their ending.
        kind: The class that was saved; `load_state` refuses any other.
        tensors: The arrays.
        content: What JSON can say: settings and the vocabulary.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays_path, json_path = _paths(folder, stem)
    # Beside the target, because a rename is one step only within a file system.
    partial = arrays_path.with_name(f".{arrays_path.name}.{os.getpid()}")
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, partial)
        checksum = _sha256(partial)
        partial.replace(arrays_path)
        header = {"kind": kind, "format_version": FORMAT_VERSION, "sha256": checksum}
        partial.write_text(json.dumps({**header, **content}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        partial.replace(json_path)
    finally:
        partial.unlink(missing_ok=True)


def load_state(folder: str | Path, stem: str, kind: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads both files of a state: the arrays by name and the JSON's content.

    Raises:
        CheckpointError: If a file is missing or damaged, or holds something else than `kind`.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    arrays_path, json_path = _paths(Path(folder), stem)
    for path in (json_path, arrays_path):
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; give a folder that {kind}.save() has written.")
    try:
        content = json.loads(json_path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{json_path} is damaged ({error}); save the {kind} again.") from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise CheckpointError(f"{json_path} does not hold a {kind}; give a folder that {kind}.save() has written.")
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{json_path} has format version {content.get('format_version')!r}, this package reads {FORMAT_VERSION}; "
            "install the version of cmfah_hf that wrote it."
        )
    if content.get("sha256") != _sha256(arrays_path):
        raise CheckpointError(
            f"{arrays_path} is damaged or belongs to another save (its checksum is not the one in {json_path.name}); "
            f"save the {kind} again."
        )
    try:
        return load_file(arrays_path), content
    except SafetensorError as error:
        raise CheckpointError(f"{arrays_path} is damaged ({error}); save the {kind} again.") from error


def state_digest(tensors: Mapping[str, np.ndarray], content: Mapping[str, Any]) -> str:
    """The SHA-256 of a state, saved or not: arrays count by their values, whatever the width of their type."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, array in sorted(tensors.items()):
        digest.update(name.encode() + array.astype("<f8" if array.dtype.kind == "f" else "<i8").tobytes())
    return digest.hexdigest()


def damaged(folder: str | Path, stem: str, reason: object) -> CheckpointError:
    """The error for a state whose files can be read but make no sense."""
    return CheckpointError(f"{_paths(Path(folder), stem)[1]} is damaged ({reason}); save it again.")


def _paths(folder: Path, stem: str) -> tuple[Path, Path]:
    return folder / f"{stem}.safetensors", folder / f"{stem}.json"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
