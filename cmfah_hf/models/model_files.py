"""The files of a model, in a folder or on the Hub: found below the model's own root, and read with bounds.

The rest of the package has `documents.py` for this; what travels with the weights needs its own.
"""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

# What `from_pretrained` takes to say where in the Hub, or in the cache, a file is.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")

_MOST_BYTES = 64 * 2**20  # a vocabulary of two million words
_MOST_DEPTH = 32
_SURROGATE = re.compile("[\ud800-\udfff]")


class ModelFileError(ValueError):
    """A file of a model that is damaged, leads out of the model's folder, or is not what this package writes.

    The message is one line. The package's own errors cannot be used here, because this file travels without them.
    """


def hub_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Those of `from_pretrained`'s arguments that say where a file is."""
    return {name: options[name] for name in HUB_ARGUMENTS if options.get(name) is not None}


def is_folder(source: Any) -> bool:
    """Whether there is such a folder; also for names that no folder can have, at which `Path.is_dir` raises."""
    return os.path.isdir(source)  # noqa: PTH112


def is_file(source: Any) -> bool:
    """As `is_folder`, of a file."""
    return os.path.isfile(source)  # noqa: PTH113


def find_file(source: Any, name: str, hub: dict[str, Any]) -> Path | None:
    """The path of a file of a model, downloaded if need be, or None if there is no such file.

    Args:
        source: A folder or a Hub id.
        name: The file, relative to the folder or repository.
        hub: As `hub_arguments` gives them.

    Raises:
        ModelFileError: If the file is no regular one, or leads out of the folder, by its name or by a link.
        OSError: If the Hub or the repository cannot be reached.
    """
    if not is_folder(source):
        found = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False, **hub)
        return None if found is None else Path(found)
    path = Path(source, hub.get("subfolder") or "", name)
    if not os.path.lexists(path):
        return None
    if not is_file(path):  # a pipe or a device would be waited for
        raise ModelFileError(f"{path} is not a regular file; put the model's file there.")
    require_below(path, source)
    return path


def pinned(source: Any, found: Path | None, hub: dict[str, Any]) -> dict[str, Any]:
    """`hub` with the commit that a file was found in, so that further files are of the same one."""
    commit = extract_commit_hash(str(found), None) if found is not None and not is_folder(source) else None
    return hub if commit is None else {**hub, "revision": commit}


def require_below(path: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Refuses a path that leads out of a model's folder. In the Hub's cache the root is that of the repository.

    Raises:
        ModelFileError: If it does.
    """
    root = Path(os.path.realpath(folder))
    for parent in (root, *root.parents):  # the files of a snapshot are links to blobs next to it
        if parent.parent.name == "snapshots" and (parent.parent.parent / "blobs").is_dir():
            root = parent.parent.parent
            break
    if not Path(os.path.realpath(path)).is_relative_to(root):
        raise ModelFileError(f"{path} leads out of {folder}; a model reads the files of its own folder alone.")


def read_object(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a JSON file that holds an object.

    Raises:
        ModelFileError: If it is too large, no JSON, no object, nested deeply, or holds NaN, an infinite number or half
            of a surrogate pair.
    """
    with Path(path).open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ModelFileError(f"{path} has more than {_MOST_BYTES:,} bytes, which no file of a model needs.")
    try:
        text = content.decode("utf-8")
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ModelFileError(f"{path} is nested too deeply; restore it, or save the model again.") from None
    except ValueError as error:  # no UTF-8, no JSON, an integer of thousands of digits
        reason = " ".join(str(error).split())[:200]
        raise ModelFileError(f"{path} is not valid JSON ({reason}); restore it, or save the model again.") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} holds no JSON object; restore it, or save the model again.")
    if text.count("[") + text.count("{") > _MOST_DEPTH or "\\u" in text:
        _check(value, path)
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is no finite number")
    return value


def _check(value: Any, path: str | os.PathLike) -> None:
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if depth > _MOST_DEPTH:
            raise ModelFileError(f"{path} is nested too deeply; restore it, or save the model again.")
        if isinstance(item, dict):
            pending += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list):
            pending += [(part, depth + 1) for part in item]
        elif isinstance(item, str) and _SURROGATE.search(item):
            raise ModelFileError(f"{path} holds half of a surrogate pair in {item[:40]!r}; correct that text.")
