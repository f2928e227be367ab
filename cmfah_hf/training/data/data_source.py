"""The origin of a run's data, in a form that may be published."""

import re
from pathlib import Path

from cmfah_hf.data import resolve_data_path
from cmfah_hf.data.rows.uniform import Loaded
from cmfah_hf.data.sources.scenes import SCENES
from cmfah_hf.errors import HubError
from cmfah_hf.hub_access import hub_errors

# The cache of `datasets` names the folder of data from the Hub by its commit.
_COMMIT = re.compile(r"[/\\]([0-9a-f]{40})[/\\]")
_HUB_ADDRESS = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/")


def source_of(dataset: str, loaded: Loaded) -> dict[str, str | None]:
    """The entry `source` of `metrics.json`, without paths, for the argument and the result of `load_image_text`.

    Returns:
        `kind`: `"scenes"` (drawn by code), `"local"` or `"hub"`; `name`: the scenes' name, the last part of a local
        path or of another address, or `owner/name`; `revision`: the commit on the Hub, `None` if unknown.
    """
    if dataset in SCENES:
        return {"kind": "scenes", "name": dataset, "revision": None}
    if address := _HUB_ADDRESS.match(dataset):
        return {"kind": "hub", "name": address[1], "revision": address[2]}
    path = Path(dataset.partition("?")[0]) if "://" in dataset else resolve_data_path(dataset)
    if "://" in dataset or path.exists():
        name = path.name if path.name not in ("", "..") else path.resolve().name
        name = name.rstrip("\\").rpartition("\\")[2]  # a path of Windows
        return {"kind": "local", "name": name or "data", "revision": None}
    return {"kind": "hub", "name": dataset, "revision": _prepared_from(loaded) or _newest_commit(dataset)}


def _prepared_from(loaded: Loaded) -> str | None:
    """The commit of a map-style data set, from the paths of its cached files."""
    files = [file["filename"] for part in loaded.values() for file in getattr(part, "cache_files", ())]
    found = {match[1] for match in map(_COMMIT.search, files) if match}
    return found.pop() if len(found) == 1 else None


def _newest_commit(dataset: str) -> str | None:
    """The newest commit of a data set; `None` if the Hub does not answer."""
    from huggingface_hub import HfApi

    try:
        with hub_errors(dataset, kind="dataset"):
            return HfApi().dataset_info(dataset).sha
    except HubError:
        return None
