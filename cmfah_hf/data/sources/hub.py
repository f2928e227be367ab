"""The source of data sets on the Hub, by their id."""

from functools import partial
from pathlib import Path

import datasets
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub.utils import HFValidationError, validate_repo_id

from cmfah_hf.data.data_root import DataRoot
from cmfah_hf.data.rows.errors import guarded
from cmfah_hf.data.rows.uniform import Loaded, uniform
from cmfah_hf.data.sources.parquet import load_streams
from cmfah_hf.data.sources.request import DATA_VARIABLE, LoadRequest
from cmfah_hf.data.sources.scenes import SCENES
from cmfah_hf.errors import DataError


def matches(request: LoadRequest) -> bool:
    return not request.is_address and not request.exists


def load(request: LoadRequest) -> Loaded:
    """The data set of this id; `kwargs` of the request are those of `datasets.load_dataset`."""
    name, kwargs = request.source, request.kwargs
    _check_id(name)
    if request.streaming and (files := guarded(partial(_parquet_files, request), name, is_hub=True)):
        root = DataRoot.of_address(next(iter(files.values()))[0])
        return load_streams(files, request, request.allowed(root), is_hub=True)
    read = partial(datasets.load_dataset, name, split=request.split, streaming=request.streaming, **kwargs)
    loaded = guarded(read, name, is_hub=True)
    root = DataRoot.of_hub(name, kwargs.get("revision"), kwargs.get("cache_dir"))
    return uniform(loaded, name, request.columns, request.allowed(root), is_hub=True)


def _parquet_files(request: LoadRequest) -> dict[str, list[str]]:
    """The addresses of the Parquet files by split; empty if the data set has other files, or unusual arguments."""
    if set(request.kwargs) - {"name", "revision", "token", "cache_dir", "data_dir", "data_files"}:
        return {}
    builder = datasets.load_dataset_builder(request.source, **request.kwargs)
    if not isinstance(builder, Parquet):
        return {}
    return {str(name): [str(file) for file in files] for name, files in builder.config.data_files.items()}


def _check_id(given: str) -> None:
    """Refuses a name that cannot be an id on the Hub, before any request."""
    try:
        validate_repo_id(given)
        looks_like_path = Path(given).suffix in (".parquet", ".csv", ".jsonl")
    except HFValidationError:
        looks_like_path = True
    if looks_like_path:
        raise DataError(
            f"{given}: there is no such folder or file, here or below {DATA_VARIABLE}, and a data set on the Hub is "
            f"named 'owner/name'; check the path, or use {' or '.join(SCENES)}."
        )
