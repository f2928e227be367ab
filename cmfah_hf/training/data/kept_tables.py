"""Computed columns, kept as Arrow files with checksums."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from cmfah_hf.atomic import ANYTHING, atomic_folder, locked, sha256_of, write_text
from cmfah_hf.data.file_state import FileState, changed_files, file_states
from cmfah_hf.data.internals import open_arrow
from cmfah_hf.documents import read_json
from cmfah_hf.errors import DataError

logger = logging.getLogger(__name__)

# Another process may be computing the same table.
WAIT_S = 24 * 3600.0
NOTE_NAME = "note.json"
REGION_COLUMNS = ("region_features", "region_features_mirrored")
_TABLE_NAME = "table.arrow"
_ROWS = 1000


@dataclass(frozen=True)
class Note:
    """The origin and the checksum of a file of kept columns.

    Args:
        read: Rows of the source.
        kept: Rows of the file.
        sha256: The checksum of the file; empty if no row was kept, and then there is no file.
        sources: The image files that were read.
    """

    read: int
    kept: int
    sha256: str
    sources: tuple[FileState, ...] = ()

    def write(self, path: Path) -> None:
        """Writes the note atomically."""
        write_text(path, json.dumps(asdict(self)) + "\n", DataError)

    @classmethod
    def read_from(cls, path: Path) -> "Note":
        """Reads a note; raises a `DataError` if the file is not one."""
        content = read_json(path, DataError)
        fields = {"read": int, "kept": int, "sha256": str, "sources": list}
        sound = isinstance(content, dict) and content.keys() == fields.keys()
        sound = sound and all(type(content[name]) is kind for name, kind in fields.items())
        if not sound or not 0 <= content["kept"] <= content["read"]:
            raise DataError(f"{path} is not the note of a kept file.")
        states = tuple(_state(path, state) for state in content["sources"])
        return cls(content["read"], content["kept"], content["sha256"], states)


def _state(path: Path, content: Any) -> FileState:
    kinds = {"path": str, "size": int, "mtime_ns": int, "ctime_ns": int}
    sound = isinstance(content, dict) and content.keys() == {*kinds, "sha256"}
    sound = sound and all(type(content[name]) is kind for name, kind in kinds.items())
    if not sound or not isinstance(content["sha256"], (str, type(None))):
        raise DataError(f"{path} does not hold the state of its sources.")
    return FileState(**content)


def add_weights(digest: "hashlib._Hash", module: torch.nn.Module) -> None:
    """Adds the names and values of a module's weights to a digest."""
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().float().numpy()).data)


def kept_folder(kind: str, key: str) -> Path:
    """The folder for content with this key, below the cache of `datasets`."""
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return Path(datasets.config.HF_DATASETS_CACHE) / f"cmfah-{kind}" / name


def kept_table(
    folder: Path,
    features: datasets.Features,
    rows: int,
    make: Callable[[Path], None],
    sources: Sequence[FileState] = (),
) -> datasets.Dataset:
    """Columns from a file in `folder`, which is computed if it is missing, damaged or out of date.

    Args:
        folder: The folder of this file, named by the inputs of the computation.
        features: The columns.
        rows: The number of rows.
        make: Writes the Arrow file to a path.
        sources: The files that the columns are computed from.

    Raises:
        DataError: If the file cannot be written.
    """
    file, note = folder / _TABLE_NAME, folder / NOTE_NAME
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f"{folder.name}.work"), DataError, WAIT_S):
        if folder.exists():
            problem = damage(file, note, features)
            if problem is None:
                return open_arrow(file, features, folder.name)
            logger.warning("%s; it is computed again.", problem)
        with atomic_folder(folder, DataError, ANYTHING) as temporary:
            make(temporary / _TABLE_NAME)
            Note(rows, rows, sha256_of(temporary / _TABLE_NAME), tuple(sources)).write(temporary / NOTE_NAME)
        return open_arrow(file, features, folder.name)


def damage(file: Path, note_file: Path, features: datasets.Features) -> str | None:
    """The fault of a kept file, with its path; None if it is intact and up to date."""
    try:
        note = Note.read_from(note_file)
    except DataError as error:
        return str(error).rstrip(".")
    if changed := changed_files(note.sources):
        return f"{file} is of images that have changed since, {changed[0]} the first of {len(changed)}"
    if not note.kept:
        return None
    if not file.is_file() or sha256_of(file) != note.sha256:
        return f"{file} is damaged, its checksum is another"
    try:
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
            if reader.schema.remove_metadata() != features.arrow_schema.remove_metadata():
                return f"{file} is damaged, its columns are others"
            rows = 0
            for batch in reader:
                batch.validate(full=True)
                rows += len(batch)
                if not _has_regions(batch, features):
                    return f"{file} is damaged, its arrays have other shapes"
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:  # also of array types
        return f"{file} is damaged ({' '.join(str(error).split())[:200]})"
    return None if rows == note.kept else f"{file} is damaged, it has {rows} rows instead of {note.kept}"


def image_files(values: Iterable[dict[str, Any] | None]) -> list[str]:
    """The local files of undecoded images whose content is not in the table."""
    paths = (value["path"] for value in values if value and value.get("bytes") is None)
    return [path for path in paths if path and "://" not in path]


def image_states(raw: datasets.Dataset) -> list[FileState]:
    """The states of the image files of a data set, without images whose content is in its table."""
    image = raw.select_columns(["image"]).flatten().with_format("arrow")
    paths = []
    for table in image.iter(_ROWS):
        without = pc.invert(pc.is_valid(table["image.bytes"]))
        paths += [path for path in table["image.path"].filter(without).to_pylist() if path and "://" not in path]
    return file_states(paths)


def _has_regions(batch: pa.RecordBatch, features: datasets.Features) -> bool:
    for name in features.keys() & REGION_COLUMNS:
        outer, inner = features[name].shape
        values = batch.column(name).storage
        if values.null_count or values.flatten().null_count:
            return False
        for array, expected in ((values, outer), (values.flatten(), inner)):
            if not pc.all(pc.equal(pc.list_value_length(array), expected)).as_py() and len(array):
                return False
    return True
