"""What a sharded index has saved: one manifest that names one file a shard.

The files of a save carry their revision in their names, and the manifest is replaced last and in one step. So a save
that is broken off leaves the manifest of the save before, and the files that this one names.
"""

import base64
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.codes import check_bits

if TYPE_CHECKING:
    import pyarrow

FORMAT, FORMAT_VERSION = "cmfah-sharded-hash-index", "1"
MANIFEST_NAME = "manifest.json"

_SHARD_FILE = re.compile(r"shard-\d{5}-r\d+-[0-9a-f]+\.index")


class Revision(NamedTuple):
    """What a shard holds: the number of its changes, and a stamp that no other change ever gets.

    The number alone would not do: two programs that both go on from one save reach the same number with other items.
    """

    changes: int
    stamp: str


@dataclass(frozen=True)
class ShardFile:
    """One shard as it was saved: its file's name, the items in it, its revision, and the file's SHA-256."""

    file: str
    items: int
    revision: Revision
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A saved sharded index: `bits` of a code, the next integer id, the ids' kind, the schema, and its shards.

    `model` is the fingerprint of the model that made the codes; None for codes made elsewhere.
    """

    bits: int
    next_id: int
    id_type: str | None
    schema: str | None
    shards: tuple[ShardFile, ...]
    model: str | None = None


def new_stamp() -> str:
    """A stamp for a new change."""
    return secrets.token_hex(8)


def shard_file_name(shard: int, revision: Revision) -> str:
    """The name of the file that holds this shard at this revision."""
    return f"shard-{shard:05d}-r{revision.changes}-{revision.stamp}.index"


def schema_as_text(schema: "pyarrow.Schema | None") -> str | None:
    """The schema of the metadata as text: its Arrow IPC message in base64."""
    return None if schema is None else base64.b64encode(schema.serialize().to_pybytes()).decode()


def schema_of_text(text: str | None) -> "pyarrow.Schema | None":
    """The reverse of `schema_as_text`."""
    if text is None:
        return None
    import pyarrow

    return pyarrow.ipc.read_schema(pyarrow.py_buffer(base64.b64decode(text, validate=True)))


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replaces the folder's manifest, whole or not at all."""
    document = {"format": FORMAT, "version": FORMAT_VERSION, **asdict(manifest)}
    document["shards"] = [{**shard, "revision": list(shard["revision"])} for shard in document["shards"]]
    document["checksum"] = _checksum(document)
    temporary = folder / f".{MANIFEST_NAME}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / MANIFEST_NAME)
    finally:
        temporary.unlink(missing_ok=True)


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, or `None` where nothing was saved there yet.

    Raises:
        HashIndexError: If the manifest is damaged, of another kind, or of another version.
    """
    path = folder / MANIFEST_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise HashIndexError(f"{path} is damaged ({error}); save the index anew.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise HashIndexError(f"{path} is no manifest of a sharded index; give the folder that one was saved to.")
    if document.get("version") != FORMAT_VERSION:
        raise HashIndexError(
            f"{path} has version {document.get('version')} of the format, this release reads version "
            f"{FORMAT_VERSION}; save the index anew."
        )
    if document.get("checksum") != _checksum(document):
        raise HashIndexError(f"{path} is damaged: its content does not match its checksum; save the index anew.")
    try:
        return _manifest(document)
    except (KeyError, TypeError, ValueError) as error:
        raise HashIndexError(f"{path} is damaged: its entries do not fit ({error}); save the index anew.") from error


def remove_old_files(folder: Path, manifest: Manifest) -> None:
    """Removes the shard files that the manifest does not name, and what saves leave beside them: locks, halves."""
    named = {shard.file for shard in manifest.shards}
    for path in folder.iterdir():
        if path.name.startswith(".shard-") or (_SHARD_FILE.fullmatch(path.name) and path.name not in named):
            path.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Has the names in a folder reach the disk, where the system can be asked to."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _manifest(document: dict[str, Any]) -> Manifest:
    shards = tuple(
        ShardFile(
            _of(str, shard["file"]),
            _of(int, shard["items"]),
            Revision(_of(int, shard["revision"][0]), _of(str, shard["revision"][1])),
            _of(str, shard["sha256"]),
        )
        for shard in document["shards"]
    )
    names = [shard.file for shard in shards]
    if not names or len(set(names)) < len(names) or not all(map(_SHARD_FILE.fullmatch, names)):
        raise ValueError("the names of the shards' files are not those of a save")
    id_type = document["id_type"]
    if id_type not in ("int", "str", None):
        raise ValueError(f"ids of kind {id_type!r}")
    schema = document["schema"]
    schema_of_text(schema)
    model = document.get("model")  # earlier manifests have none
    if model is not None:
        _of(str, model)
    return Manifest(check_bits(document["bits"]), _of(int, document["next_id"]), id_type, schema, shards, model)


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _checksum(document: dict[str, Any]) -> str:
    rest: Iterable = {name: value for name, value in document.items() if name != "checksum"}
    return f"sha256:{hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}"
