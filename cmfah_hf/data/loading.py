"""One door for pairs of image and text: a folder, Parquet, matrices, the Hub, or the built-in scenes."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
from datasets.packaged_modules.parquet.parquet import Parquet
from huggingface_hub.utils import HFValidationError, validate_repo_id

from cmfah_hf.data.data_root import DataRoot, refuse_links_outside
from cmfah_hf.data.dataset_card import SPLIT_NAME, card_splits
from cmfah_hf.data.imagefolder import (
    MAX_SHARDS,
    METADATA_NAMES,
    SPLIT_FOLDERS,
    check_metadata,
    find_splits,
    load_checked,
    missing_metadata,
    usual_order,
)
from cmfah_hf.data.images import is_picture
from cmfah_hf.data.matrices.opening import MATRIX_SUFFIXES, matrix_files_below, open_matrices
from cmfah_hf.data.parquet import read_footers, stream_parquet
from cmfah_hf.data.source_errors import guarded
from cmfah_hf.data.uniform import Loaded, find, in_order, name_below_split, own_features, uniform
from cmfah_hf.errors import DataError

DATA_VARIABLE = "CMFAH_DATA"
# The built-in data sets, by what `load_scenes` is given.
SCENES = {"scenes": {}, "cluttered-scenes": {"clutter": 24}}

_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}.*")


def resolve_data_path(path: str | os.PathLike) -> Path:
    """`path` if it exists, else the same path below the folder named by the environment variable `CMFAH_DATA`.

    Returns:
        The path that exists; if neither does, `path` as it was given.
    """
    given = Path(path).expanduser()
    root = os.environ.get(DATA_VARIABLE)
    if not _exists(given) and root and not given.is_absolute():
        below = Path(root).expanduser() / given
        if _exists(below):
            return below
    return given


def is_data_set(folder: Path) -> bool:
    """Whether a folder holds metadata, Parquet or matrices, so `load_image_text` takes it; else it is mere pictures."""
    if find_splits(folder) or _parquet_splits(folder):
        return True
    # Beside pictures, matrices may be anything. (Pillow takes `.h5` for a picture's ending.)
    matrices = set(matrix_files_below(folder))
    return bool(matrices) and not any(is_picture(path) for path in folder.rglob("*") if path not in matrices)


def load_image_text(
    path_or_hub_id: str | os.PathLike,
    split: str | None = None,
    streaming: bool = False,
    image_column: str | None = None,
    text_column: str | None = None,
    labels_column: str | None = None,
    id_column: str | bool | None = None,
    pictures: bool = True,
    allow_urls: bool = False,
    image_folders: Sequence[str | os.PathLike] = (),
    **load_dataset_kwargs: Any,
) -> Loaded:
    """Load pairs of picture and text, wherever they are, with the same columns.

    Args:
        path_or_hub_id: One of
            - a folder in the `imagefolder` convention: pictures beside a `metadata.jsonl` (or `.csv`, `.parquet`) with
              `file_name`, a text and perhaps labels, either in the folder itself (split `train`) or in its split
              folders (`train/`, `query/`, `database/`, `validation/` or any other name);
            - a Parquet file, the address of one (`hf://`, `file://`; `https://` where aiohttp is installed), or a
              folder of Parquet files, whose split is told by their folder or name (`query/x.parquet`,
              `query.parquet`, `data/query-00000-of-00001.parquet`), else `train`; where the folder has a card
              (`README.md`) whose `configs` name the files of each split, by that;
            - a `.mat` or `.h5` file of matrices, or a folder of them (`open_matrices` takes the further arguments, and
              `Matrices.to_dataset` those of a research split: `queries="first"`, `num_queries`, `num_train`);
            - a data set on the Hub, `owner/name`;
            - `"scenes"`, the pictures drawn by code, or `"cluttered-scenes"`, where the things are small and lie among
              shards (`load_scenes` takes the further arguments).
            A relative path that does not exist is looked for below `CMFAH_DATA`.
        split: One split (map-style also with slices such as `train[:10%]`), instead of all.
        streaming: Read row by row without preparing anything on disk. Gives the same rows.
        image_column: The source's column of pictures, where its name is not a usual one (`image`, `img`, ...).
        text_column: The column of texts, where it is not `text`, `caption`, `tags`, ...
        labels_column: The column of labels, where it is not `labels`, `label`, `category`, ...
        id_column: The column of ids, where it is not `id`; `False` ignores a column `id` that does not tell rows apart.
        pictures: Whether a stream has its column `image`. Without, the texts of Parquet are read and the pictures are
            not, so there need be none; the rows and their order are the same.
        allow_urls: Fetch images that rows name by `http(s)` addresses, each of at most 64 MB and within 30 seconds;
            else such a row is an error. Only for data whose authors may choose what this machine asks for.
        image_folders: Further local folders that rows may name images in. By default a row may name files of its own
            data set only: below its folder, or on the Hub in its repository, links followed.
        **load_dataset_kwargs: For `datasets.load_dataset`, such as `revision`, `token`, `name` or `cache_dir`.

    Returns:
        A dictionary of splits, or the one split asked for, with the columns
        - `id` (string, unique within the split): the id column, else the picture's file name below the split's
          folder, else the row number; of streams from the Hub that are not Parquet and come in several files, a digest
          of text and picture in the place of the row number, which a stream cannot know;
        - `image` (`datasets.Image`, decoded by `datasets` with errors of its own; see `drop_unreadable`);
        - `text` (string; a list is joined with spaces, nothing becomes the empty string);
        - `labels` (list of strings, empty where a row has none), unless the source has no labels at all;
        - all further columns as they are, renamed to `original_...` where their name is one of these four.

    Raises:
        DataError: In one line: what is missing or wrong, in which file and line, and what to do. Metadata files are
            checked whole before any picture is opened. Ids of Parquet and Hub data are checked for repetition only
            where the data set is not streamed (a training run on a stream checks them in its first pass).
    """
    if not (pictures or streaming):
        raise DataError("Only a stream can be loaded without its pictures; a data set reads none until it is asked.")
    loaded = _load(
        os.fspath(path_or_hub_id),
        split,
        streaming,
        image_column,
        {"text": text_column, "labels": labels_column, "id": id_column},
        pictures,
        _Allowed(allow_urls, tuple(image_folders)),
        load_dataset_kwargs,
    )
    return loaded if pictures else _without_pictures(loaded)


def _without_pictures(loaded: Loaded) -> Loaded:
    if isinstance(loaded, dict):
        return type(loaded)({name: _without_pictures(part) for name, part in loaded.items()})
    return loaded.remove_columns("image") if "image" in loaded.column_names else loaded


@dataclass(frozen=True)
class _Allowed:
    """The places that rows may name in addition to their own data set's files."""

    urls: bool = False
    folders: tuple[str | os.PathLike, ...] = ()

    def __call__(self, root: DataRoot) -> DataRoot:
        return root.allowing(self.urls, self.folders)


def _load(
    given: str,
    split: str | None,
    streaming: bool,
    image_column: str | None,
    names: dict,
    pictures: bool,
    allowed: _Allowed,
    load_dataset_kwargs: dict[str, Any],
) -> Loaded:
    if given in SCENES:
        from cmfah_hf.data.scenes import load_scenes

        scenes = load_scenes(**{**SCENES[given], **load_dataset_kwargs})
        return _take_split(_streamed(scenes, streaming), split, given)

    if re.match(r"\w+://", given):
        if not given.partition("?")[0].endswith(".parquet"):
            raise DataError(f"{given}: of addresses, only those of Parquet files can be loaded; give one or a Hub id.")
        files = {"train": [given]}
        names = {"image": image_column, **names}
        root = allowed(DataRoot.of_address(given))
        return _load_parquet(files, given, split, streaming, names, pictures, root, load_dataset_kwargs)
    path = resolve_data_path(given)
    if not _exists(path):
        _require_hub_id(given)
        if streaming and (files := guarded(partial(_hub_parquet, given, load_dataset_kwargs), given, is_hub=True)):
            kwargs = {name: value for name, value in load_dataset_kwargs.items() if name == "token"}
            names = {"image": image_column, **names}
            root = allowed(DataRoot.of_address(next(iter(files.values()))[0]))
            return _load_parquet(files, given, split, True, names, pictures, root, kwargs, is_hub=True)
        load = partial(datasets.load_dataset, given, split=split, streaming=streaming, **load_dataset_kwargs)
        loaded = guarded(load, given, is_hub=True)
        kwargs = load_dataset_kwargs
        root = allowed(DataRoot.of_hub(given, kwargs.get("revision"), kwargs.get("cache_dir")))
        return uniform(loaded, given, {"image": image_column, **names}, root, is_hub=True)
    if path.is_file() and path.name in METADATA_NAMES:
        path = path.parent
    if path.is_dir():
        metadata = find_splits(path)
        if metadata:
            if image_column not in (None, "file_name", "image"):
                raise DataError(f"{path}: the pictures of a folder stand in 'file_name', not in {image_column!r}.")
            root = allowed(DataRoot.of_folder(path))
            return _load_folder(metadata, path, split, streaming, names, root, load_dataset_kwargs)
        parquet = _parquet_splits(path)
        if not parquet and matrix_files_below(path):
            return _load_matrices(
                path, split, streaming, {"image": image_column, **names}, pictures, load_dataset_kwargs
            )
        if not parquet:
            raise missing_metadata(path)
    elif path.suffix == ".parquet":
        parquet = {"train": [str(path)]}
    elif path.suffix.lower() in MATRIX_SUFFIXES:
        return _load_matrices(path, split, streaming, {"image": image_column, **names}, pictures, load_dataset_kwargs)
    else:
        raise DataError(f"{path}: neither a folder nor a Parquet file; give the folder that holds the metadata file.")
    names = {"image": image_column, **names}
    root = allowed(DataRoot.of_folder(path if path.is_dir() else path.parent))
    return _load_parquet(parquet, str(path), split, streaming, names, pictures, root, load_dataset_kwargs)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no file can have this name
        return False


def _load_folder(
    metadata: dict[str, Path],
    path: Path,
    split: str | None,
    streaming: bool,
    names: dict,
    root: DataRoot,
    kwargs: dict,
) -> Loaded:
    wanted = [split] if split in metadata else list(metadata)
    if streaming and split is not None and split not in metadata:
        raise _no_such_split(split, metadata, path)
    checked = {name: check_metadata(metadata[name], **names, root=root) for name in wanted}
    parts = {
        name: guarded(partial(load_checked, found, name, streaming, **kwargs), str(found.path))
        for name, found in checked.items()
    }
    kind = datasets.IterableDatasetDict if streaming else datasets.DatasetDict
    return _take_split(kind(parts), split, path)


def _load_matrices(
    path: Path, split: str | None, streaming: bool, names: dict, pictures: bool, kwargs: dict[str, Any]
) -> Loaded:
    if any(names.values()):
        raise DataError(
            f"{path}: matrices have no columns to be named; name variables, as variables={{'tags': 'YAll'}}."
        )
    of_split = {name: kwargs[name] for name in ("queries", "num_queries", "num_train") if name in kwargs}
    unknown = set(kwargs) - set(of_split) - {"axes", "variables", "tag_names", "label_names"}
    if unknown:
        raise DataError(f"{path}: {', '.join(sorted(unknown))} cannot be said of matrices; leave it out.")
    matrices = open_matrices(path, **{name: value for name, value in kwargs.items() if name not in of_split})
    loaded = guarded(partial(matrices.to_dataset, streaming, pictures=pictures, **of_split), str(path))
    if not isinstance(loaded, dict):
        loaded = (datasets.IterableDatasetDict if streaming else datasets.DatasetDict)(train=loaded)
    return _take_split(loaded, split, path)


def _parquet_splits(folder: Path) -> dict[str, list[str]]:
    """The Parquet files below `folder` by split: by its card, else by subfolder, shard pattern, or split name."""
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
        if SPLIT_NAME.fullmatch(name) is None:
            raise DataError(f"{file}: {name!r} cannot be a split's name (letters, digits and '_'); rename it.")
        splits.setdefault(name, []).append(str(file))
    return {name: splits[name] for name in sorted(splits, key=usual_order)}


def _load_parquet(
    files: dict[str, list[str]],
    source: str,
    split: str | None,
    streaming: bool,
    names: dict,
    pictures: bool,
    root: DataRoot,
    kwargs: dict,
    is_hub: bool = False,
) -> Loaded:
    # A pattern, and what only `datasets` knows the meaning of, is left to it.
    if streaming and not set(kwargs) - {"token", "cache_dir"} and "*" not in source:
        if split is not None and split not in files:
            raise _no_such_split(split, files, source)
        wanted = files if split is None else {split: files[split]}
        streams = {
            name: guarded(
                partial(
                    _stream_parquet, paths, f"{source}, split {name}", name, names, pictures, root, kwargs.get("token")
                ),
                source,
                is_hub,
            )
            for name, paths in wanted.items()
        }
        return datasets.IterableDatasetDict(streams) if split is None else streams[split]
    load = partial(datasets.load_dataset, "parquet", data_files=files, split=split, streaming=streaming, **kwargs)
    return uniform(guarded(load, source), source, names, root)


def _stream_parquet(
    files: list[str], source: str, split: str, names: dict, pictures: bool, root: DataRoot, token: str | bool | None
) -> datasets.IterableDataset:
    footers = read_footers(files, token)
    if not footers.num_rows:
        raise DataError(f"{source}: holds no rows.")
    features = datasets.Features.from_arrow_schema(footers.schema)
    columns, class_names = find(features, source, names, image_needed=pictures)
    own = own_features(columns)
    own |= {columns.kept_as(name): features[name] for name in features if name not in columns.chosen}
    return stream_parquet(
        files,
        footers,
        columns,
        features,
        datasets.Features({name: own[name] for name in in_order(own)}),
        class_names,
        partial(name_below_split, split=split),
        root,
        pictures,
        split,
        token,
    )


def _hub_parquet(given: str, kwargs: dict) -> dict[str, list[str]] | None:
    """The addresses of a data set's Parquet files on the Hub by split; None if it is kept otherwise."""
    if set(kwargs) - {"name", "revision", "token", "cache_dir", "data_dir", "data_files"}:
        return None
    builder = datasets.load_dataset_builder(given, **kwargs)
    if not isinstance(builder, Parquet):
        return None
    return {str(name): [str(file) for file in files] for name, files in builder.config.data_files.items()}


def _require_hub_id(given: str) -> None:
    """Refuse what is neither here nor of the form that an id on the Hub has, before anything asks the network."""
    looks_like_path = (
        given.startswith((".", "/", "~")) or "\\" in given or Path(given).suffix in (".parquet", ".csv", ".jsonl")
    )
    try:
        validate_repo_id(given)
    except HFValidationError:
        looks_like_path = True
    if looks_like_path:
        raise DataError(
            f"{given}: there is no such folder or file, here or below {DATA_VARIABLE}, and a data set on the Hub is "
            f"named 'owner/name'; check the path, or use {' or '.join(SCENES)}."
        )


def _streamed(splits: datasets.DatasetDict, streaming: bool) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    if not streaming:
        return splits
    return datasets.IterableDatasetDict(
        {name: part.to_iterable_dataset(min(MAX_SHARDS, len(part))) for name, part in splits.items()}
    )


def _take_split(splits: dict, split: str | None, source: Any) -> Loaded:
    """All splits, one of them, or for map-style ones whatever `datasets`' slicing syntax asks for."""
    if split is None:
        return splits
    if split in splits:
        return splits[split]
    if isinstance(splits, datasets.IterableDatasetDict):
        raise _no_such_split(split, splits, source)
    lengths = {name: len(part) for name, part in splits.items()}
    try:
        instructions = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        raise _no_such_split(split, splits, source) from error
    parts = [
        splits[part.splitname].select(range(part.from_ or 0, part.to or lengths[part.splitname]))
        for part in instructions
    ]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _no_such_split(split: str, splits: dict, source: Any) -> DataError:
    return DataError(f"{source}: there is no split {split!r}; present are: {', '.join(splits)}.")
