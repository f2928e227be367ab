"""The manifest of a saved sharded index, which names one file for each shard.

The files of a save have their revision in their names, and the manifest is replaced last and in one step. So an
interrupted save leaves the previous manifest and the files that it names.
"""

import base64
import hashlib
import json
import os
import re
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow

from cmfah_hf.atomic import write_text
from cmfah_hf.documents import parse_json, read_bytes
from cmfah_hf.errors import HashIndexError
from cmfah_hf.retrieval.codes import check_bits, shortened
from cmfah_hf.retrieval.storage.metadata import storable

FORMAT, FORMAT_VERSION = "cmfah-sharded-hash-index", "1"
MANIFEST_NAME = "manifest.json"

_SHARD_FILE = re.compile(r"shard-\d{5}-r\d+-[0-9a-f]+\.index")


class Revision(NamedTuple):
    """The version of a shard's items: the number of changes, and a stamp that is unique to the last one.

    The number alone is not enough: two programs that both load one save reach the same number with different items.
    """

    changes: int
    stamp: str


@dataclass(frozen=True)
class ShardFile:
    """A saved shard: the name of its file, the number of items, its revision, and the SHA-256 of the file."""

    file: str
    items: int
    revision: Revision
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A saved sharded index: the bits of a code, the next integer id, the type of the ids, the schema, and the shards.

    `model` is the fingerprint of the model that made the codes; None for codes made elsewhere.
    """

    bits: int
    next_id: int
    id_type: Literal["int", "str"] | None
    schema: str | None
    shards: tuple[ShardFile, ...]
    model: str | None = None


def new_stamp() -> str:
    """A unique stamp for a new change."""
    return secrets.token_hex(8)


def shard_file_name(shard: int, revision: Revision) -> str:
    """The name of the file of a shard at a revision."""
    return f"shard-{shard:05d}-r{revision.changes}-{revision.stamp}.index"


def schema_as_text(schema: pyarrow.Schema | None) -> str | None:
    """The schema of the metadata as text: its Arrow IPC message in base64."""
    return None if schema is None else base64.b64encode(schema.serialize().to_pybytes()).decode()


def schema_of_text(text: str | None) -> pyarrow.Schema | None:
    """The reverse of `schema_as_text`."""
    if text is None:
        return None
    schema = pyarrow.ipc.read_schema(pyarrow.py_buffer(base64.b64decode(text, validate=True)))
    return storable(schema.empty_table()).schema


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replaces the folder's manifest in one step."""
    document = {"format": FORMAT, "version": FORMAT_VERSION, **asdict(manifest)}
    document["shards"] = [{**shard, "revision": list(shard["revision"])} for shard in document["shards"]]
    document["checksum"] = _checksum(document)
    write_text(folder / MANIFEST_NAME, json.dumps(document, indent=2), HashIndexError)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None if nothing was saved there yet."""
    path = folder / MANIFEST_NAME
    if not os.path.lexists(path):
        return None
    document = parse_json(read_bytes(path, HashIndexError), f"{path} is damaged: it", HashIndexError)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise HashIndexError(f"{path} is no manifest of a sharded index; give the folder that one was saved to.")
    if document.get("version") != FORMAT_VERSION:
        raise HashIndexError(
            f"{path} has version {str(document.get('version'))[:20]} of the format, this release reads version "
            f"{FORMAT_VERSION}; save the index anew."
        )
    if document.get("checksum") != _checksum(document):
        raise HashIndexError(f"{path} is damaged: its content does not match its checksum; save the index anew.")
    try:
        return _manifest(document)
    # Schemas of extension types raise errors of other packages.
    except (LookupError, TypeError, ValueError, OSError, RecursionError, pyarrow.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise HashIndexError(f"{path} is damaged: its entries do not fit ({reason}); save the index anew.") from error


def remove_old_files(folder: Path, manifest: Manifest) -> None:
    """Removes the shard files that the manifest does not name, and the locks and partial files of killed saves."""
    named = {shard.file for shard in manifest.shards}
    for path in folder.iterdir():
        old = _SHARD_FILE.fullmatch(path.name) and path.name not in named
        if (old or path.name.startswith(".shard-")) and (path.is_file() or path.is_symlink()):
            path.unlink(missing_ok=True)


def _manifest(document: dict[str, Any]) -> Manifest:
    shards = tuple(
        ShardFile(
            _of(str, shard["file"]),
            _count(shard["items"]),
            Revision(_count(shard["revision"][0]), _of(str, shard["revision"][1])),
            _of(str, shard["sha256"]),
        )
        for shard in _of(list, document["shards"])
    )
    names = [shard.file for shard in shards]
    if not names or names != [shard_file_name(number, shard.revision) for number, shard in enumerate(shards)]:
        raise ValueError("the names of the shards' files are not those of a save")
    if not all(map(_SHARD_FILE.fullmatch, names)):
        raise ValueError("a stamp of a shard is not hexadecimal")
    id_type = document["id_type"]
    if id_type not in ("int", "str", None):
        raise ValueError(f"ids of type {shortened(id_type)}")
    schema = document["schema"]
    schema_of_text(schema)
    model = document.get("model")  # earlier manifests have none
    if model is not None:
        _of(str, model)
    return Manifest(check_bits(document["bits"]), _count(document["next_id"]), id_type, schema, shards, model)


def _count(value: Any) -> int:
    if not 0 <= _of(int, value) <= 2**63:
        raise ValueError(f"{shortened(value)} is out of range")
    return value


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{shortened(value)} is not of type {kind.__name__}")
    return value


def _checksum(document: dict[str, Any]) -> str:
    rest = {name: value for name, value in document.items() if name != "checksum"}
    return f"sha256:{hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}"
