"""Fingerprints of models, kept by the state of the files that the models were loaded from.

A fingerprint is a digest of all weights, which takes about a second for each gigabyte. So it is computed once for each
state of a model's files, and kept in the cache of the Hub's libraries.
"""

import hashlib
import json
import logging
import os
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import cached_assets_path

from cmfah_hf.atomic import write_text
from cmfah_hf.data.file_state import digest_of, file_states
from cmfah_hf.documents import read_json
from cmfah_hf.errors import CMFAHError

logger = logging.getLogger(__name__)

# The endings of the files that a model is loaded from.
_ENDINGS = frozenset((".json", ".safetensors", ".txt", ".model", ".py"))
# Which differ in what they make of the same files.
_LIBRARIES = ("cmfah-hf", "transformers", "tokenizers")


def state_of_folder(folder: str | os.PathLike) -> str:
    """A value that changes with the files of a model in a folder."""
    return digest_of(file_states(sorted(path for path in Path(folder).iterdir() if path.suffix in _ENDINGS)))


def state_of_commit(repository: str, commit: str) -> str:
    """The same of a model on the Hub."""
    return f"{repository}@{commit}"


def kept_fingerprint(state: str) -> str | None:
    """The fingerprint of the model that files in this state hold, if it was kept."""
    path = _path(state)
    try:
        found = read_json(path, CMFAHError) if path.is_file() else None
    except CMFAHError as error:  # then it is computed again
        logger.debug("%s", error)
        return None
    return found["fingerprint"] if isinstance(found, dict) and isinstance(found.get("fingerprint"), str) else None


def keep_fingerprint(state: str, fingerprint: str) -> None:
    """Keeps the fingerprint of the model that files in this state hold, if the disk can be written."""
    try:
        write_text(_path(state), json.dumps({"fingerprint": fingerprint}) + "\n")
    except (CMFAHError, OSError) as error:
        logger.debug("The fingerprint is not kept: %s", error)


def _path(state: str) -> Path:
    made_by = [f"{name} {version(name)}" for name in _LIBRARIES]
    name = hashlib.blake2b("\n".join([state, *made_by]).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return cached_assets_path("cmfah_hf", namespace="fingerprints", subfolder="models") / f"{name}.json"
