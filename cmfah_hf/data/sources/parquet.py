"""The source of Parquet: a file, an address, or a folder of files."""

import re
from functools import partial
from pathlib import Path

import datasets

from cmfah_hf.data.data_root import DataRoot, refuse_links_outside
from cmfah_hf.data.dataset_card import card_splits, check_split_name
from cmfah_hf.data.rows.errors import guarded
from cmfah_hf.data.rows.uniform import Loaded, uniform
from cmfah_hf.data.sources.parquet_stream import stream_parquet
from cmfah_hf.data.sources.request import SPLIT_FOLDERS, LoadRequest, usual_order

_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}.*")


def matches(request: LoadRequest) -> bool:
    return bool(_files(request))


def _files(request: LoadRequest) -> dict[str, list[str]]:
    """The paths, or the address, of the Parquet files by split; empty if the source is something else."""
    if request.is_address:
        return {"train": [request.source]} if request.source.partition("?")[0].endswith(".parquet") else {}
    if not request.exists:
        return {}
    if request.path.is_dir():
        return parquet_splits(request.path)
    return {"train": [str(request.path)]} if request.path.suffix == ".parquet" else {}


def load(request: LoadRequest) -> Loaded:
    """The rows of the files; `kwargs` of the request are those of `datasets.load_dataset`."""
    files = _files(request)
    if request.is_address:
        root = DataRoot.of_address(request.source)
    else:
        root = DataRoot.of_folder(request.path if request.path.is_dir() else request.path.parent)
    root = request.allowed(root)
    # Patterns, and arguments that only `datasets` understands, are left to it.
    if request.streaming and set(request.kwargs) <= {"token", "cache_dir"} and "*" not in request.name:
        return load_streams(files, request, root)
    how = {"split": request.split, "streaming": request.streaming, **request.kwargs}
    read = partial(datasets.load_dataset, "parquet", data_files=files, **how)
    return uniform(guarded(read, request.name), request.name, request.columns, root)


def load_streams(files: dict[str, list[str]], request: LoadRequest, root: DataRoot, is_hub: bool = False) -> Loaded:
    """Streams of the files of each split, or of the split requested."""
    token = request.kwargs.get("token")
    streams = {}
    for split in request.wanted(files):
        source = f"{request.name}, split {split}"
        read = partial(stream_parquet, files[split], source, split, request.columns, root, request.images, token)
        streams[split] = guarded(read, request.name, is_hub)
    return request.select(request.splits(streams))


def parquet_splits(folder: Path) -> dict[str, list[str]]:
    """The Parquet files below a folder by split: by its card, or else by subfolder, shard pattern or file name."""
    if (named := card_splits(folder)) is not None:
        return {name: named[name] for name in sorted(named, key=usual_order)}
    splits: dict[str, list[str]] = {}
    files = sorted(folder.rglob("*.parquet"))
    refuse_links_outside(folder, files)
    for file in files:
        parts = file.relative_to(folder).parts
        if any(part.startswith(".") for part in parts):
            continue
        shard = _SHARD.fullmatch(file.stem)
        if len(parts) > 1 and parts[0] != "data":
            name = parts[0]
        elif shard:
            name = shard["split"]
        else:
            name = file.stem if file.stem in SPLIT_FOLDERS else "train"
        check_split_name(name, str(file))
        splits.setdefault(name, []).append(str(file))
    return {name: splits[name] for name in sorted(splits, key=usual_order)}
