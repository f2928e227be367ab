"""The source of the Wikipedia articles with features, as released: `raw_features.mat` and its lists."""

import os
from collections.abc import Iterator
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import datasets

from cmfah_hf.data.releases.files import ReleaseFiles
from cmfah_hf.data.releases.protocols import Split
from cmfah_hf.data.releases.table import Corrections, CountChecks, ReleaseTable
from cmfah_hf.data.releases.wikipedia import CATEGORIES_FILE, LIST_FILES, WIKIPEDIA, WikipediaRelease, read_wikipedia
from cmfah_hf.data.rows.errors import guarded
from cmfah_hf.data.rows.uniform import Loaded, in_order
from cmfah_hf.data.sources.request import MAX_SHARDS, LoadRequest
from cmfah_hf.errors import DataError


def matches(request: LoadRequest) -> bool:
    if not request.exists or not request.path.is_dir():
        return False
    return any((request.path / name).is_file() for name in (*LIST_FILES.values(), CATEGORIES_FILE))


def load(request: LoadRequest) -> Loaded:
    """The rows and splits that `prepare_wikipedia` writes; the request has no `kwargs`."""
    columns = request.columns
    if columns.image or columns.text or columns.labels or columns.id:
        raise DataError(f"{request.name}: this release has no columns to name; leave their names out.")
    if request.kwargs:
        raise DataError(
            f"{request.name}: this release does not accept {', '.join(sorted(request.kwargs))}; leave it out."
        )
    root = os.path.abspath(request.path)  # noqa: PTH100 - links stay as they are
    # A part of the release can be loaded too; its counts are logged as differences.
    table, parts = _read(root, WIKIPEDIA)
    splits = {
        name: guarded(partial(_rows, table, root, rows[0], rows[-1] + 1, name, request.streaming), request.name)
        for name, rows in (("train", parts.train), ("query", parts.query))
    }
    return request.select(request.splits(splits))


def _read(root: str, release: WikipediaRelease) -> tuple[ReleaseTable, Split]:
    with ReleaseFiles(root) as files:
        return read_wikipedia(files, release, CountChecks(True, Corrections(files)))


def _rows(table: ReleaseTable, root: str, start: int, stop: int, split: str, streaming: bool) -> Any:
    """The articles from `start` to `stop` as a `Dataset` or `IterableDataset`."""
    pieces = min(MAX_SHARDS, stop - start) if streaming else 1
    bounds = [start + (stop - start) * piece // pieces for piece in range(pieces + 1)]
    kind = datasets.IterableDataset if streaming else datasets.Dataset
    return kind.from_generator(
        generate_rows,
        features=_features(table),
        # The digest of the content is part of the key of the cache.
        gen_kwargs={"root": root, "version": table.digest(), "ranges": list(pairwise(bounds))},
        split=datasets.NamedSplit(split),
    )


def _features(table: ReleaseTable) -> datasets.Features:
    names = datasets.List(datasets.Value("string"))
    kinds = {"id": datasets.Value("string"), "text": datasets.Value("string"), "labels": names, "tags": names}
    kinds |= {name: datasets.List(datasets.Value("float32")) for name in table.features}
    return datasets.Features({name: kinds[name] for name in in_order(kinds)})


def generate_rows(root: str, version: str, ranges: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """The rows in `ranges` (start, stop); `version` identifies the content of the release."""
    table = _opened(root, version)
    for start, stop in ranges:
        for row in range(start, stop):
            names = [table.tag_names[number] for number in table.tags[row]]
            yield {
                "id": table.ids[row],
                "text": " ".join(names),
                "labels": [table.class_names[number] for number in table.labels[row]],
                "tags": names,
                **{name: values_ND[row] for name, values_ND in table.features.items()},
            }


@lru_cache(maxsize=2)
def _opened(root: str, version: str) -> ReleaseTable:
    table, _ = _read(root, WikipediaRelease((None, None), None, None, None))
    if table.digest() != version:
        raise DataError(f"{root}: was changed since it was loaded; load it again.")
    return table
