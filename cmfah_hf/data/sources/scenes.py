"""The source of built-in scenes: images drawn by code, by the name of their data set."""

import datasets

from cmfah_hf.data.rows.uniform import Loaded
from cmfah_hf.data.sources.request import MAX_SHARDS, LoadRequest

# Arguments of `load_scenes` by the name of the data set.
SCENES: dict[str, dict[str, int]] = {"scenes": {}, "cluttered-scenes": {"clutter": 24}}


def matches(request: LoadRequest) -> bool:
    return request.source in SCENES


def load(request: LoadRequest) -> Loaded:
    """The scenes; `kwargs` of the request are those of `load_scenes`."""
    from cmfah_hf.data.scenes import load_scenes

    splits = load_scenes(**{**SCENES[request.source], **request.kwargs})
    if request.streaming:
        splits = datasets.IterableDatasetDict(
            {name: part.to_iterable_dataset(min(MAX_SHARDS, len(part))) for name, part in splits.items()}
        )
    return request.select(splits)
