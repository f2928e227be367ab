"""Where a run's data came from, in words that may be published."""

import re
from pathlib import Path

from cmfah_hf.data.loading import SCENES, Loaded, resolve_data_path
from cmfah_hf.errors import HubError
from cmfah_hf.hub_access import hub_errors

# Where `datasets` keeps what it prepared from the Hub: the folder is named by the commit.
_COMMIT = re.compile(r"[/\\]([0-9a-f]{40})[/\\]")
_HUB_ADDRESS = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/")


def source_of(dataset: str, loaded: Loaded) -> dict[str, str | None]:
    """The data's entry of `metrics.json`: never a path, and a Hub id only if the data came from the Hub.

    Args:
        dataset: As `load_image_text` was given it.
        loaded: What it returned.

    Returns:
        `kind`: `"scenes"` (drawn by code), `"local"` or `"hub"`; `name`: the scenes' name, the last part of a local
        path or of another address, or `owner/name`; `revision`: the commit on the Hub, `None` where it is not known.
    """
    if dataset in SCENES:
        return {"kind": "scenes", "name": dataset, "revision": None}
    if address := _HUB_ADDRESS.match(dataset):
        return {"kind": "hub", "name": address[1], "revision": address[2]}
    path = Path(dataset.partition("?")[0]) if "://" in dataset else resolve_data_path(dataset)
    if "://" in dataset or path.exists():
        name = path.name if path.name not in ("", "..") else path.resolve().name
        name = name.rstrip("\\").rpartition("\\")[2]  # it may have been written on Windows
        return {"kind": "local", "name": name or "data", "revision": None}
    return {"kind": "hub", "name": dataset, "revision": _prepared_from(loaded) or _newest_commit(dataset)}


def _prepared_from(loaded: Loaded) -> str | None:
    """The commit that a map-style data set was prepared from, as its files in the cache tell."""
    files = [file["filename"] for part in loaded.values() for file in getattr(part, "cache_files", ())]
    found = {match[1] for match in map(_COMMIT.search, files) if match}
    return found.pop() if len(found) == 1 else None


def _newest_commit(dataset: str) -> str | None:
    """The newest commit of a data set; `None` where the Hub cannot be asked."""
    from huggingface_hub import HfApi

    try:
        with hub_errors(dataset):
            return HfApi().dataset_info(dataset).sha
    except HubError:
        return None
