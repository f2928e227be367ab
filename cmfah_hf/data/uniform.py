"""The uniform columns `id`, `image`, `text`, `labels` over any data set that `datasets` loads."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import datasets

from cmfah_hf.data.columns import UNIFORM_COLUMNS, ColumnNames, find_columns, labels_of, text_of
from cmfah_hf.data.data_root import DataRoot
from cmfah_hf.data.images import decoding_off, decoding_on
from cmfah_hf.data.row_files import holds_files, placed_table, placed_value
from cmfah_hf.data.source_errors import guarded, guarded_stream
from cmfah_hf.errors import DataError

Loaded = datasets.DatasetDict | datasets.IterableDatasetDict | datasets.Dataset | datasets.IterableDataset

_CHECKED_ROWS = 1_000
# The root of a data set on the Hub, as a stream and the download cache write it in an image's path.
_HUB_ROOT = re.compile(r"^(hf://datasets/[^@]+@[^/]+/|.*/snapshots/[0-9a-f]{40}/)")


def uniform(loaded: Loaded, source: str, names: dict, root: DataRoot, is_hub: bool = False) -> Loaded:
    """A loaded data set with the uniform columns, and with all files that rows name placed below `root`.

    Args:
        loaded: One data set, or a dictionary of splits.
        source: For errors.
        names: What the source calls `image`, `text`, `labels` and `id`, where that was given.
        root: Where files that rows name may lie.
        is_hub: Whether it came from the Hub.

    Raises:
        DataError: In one line, if a column is missing, a value cannot be used, or a path leads outside.
    """
    if isinstance(loaded, dict):
        return type(loaded)(
            {name: uniform(part, f"{source}, split {name}", names, root, is_hub) for name, part in loaded.items()}
        )
    if isinstance(loaded, datasets.IterableDataset):
        return _uniform_stream(loaded, source, names, root, is_hub)
    return guarded(partial(_uniform_table, loaded, source, names, root), source)


def _uniform_table(dataset: datasets.Dataset, source: str, names: dict, root: DataRoot) -> datasets.Dataset:
    """The uniform columns of a map-style data set; a column of images that holds their bytes is not rewritten."""
    if len(dataset) == 0:
        raise DataError(f"{source}: holds no rows.")
    columns, class_names = find(dataset.features, source, names)
    dataset = dataset.cast_column(columns.image, datasets.Image(decode=False))
    # Pictures in the table itself are not read to find their names: those have none that is sure to be unique.
    by_path = columns.id is None and (dataset[0][columns.image] or {"bytes": b""})["bytes"] is None
    needed = [name for name in columns.chosen if name != columns.image or by_path]
    own = dataset.select_columns(needed).map(
        partial(_uniform_row, columns=columns, class_names=class_names, split=_split_name(dataset)),
        with_indices=True,
        remove_columns=needed,
        features=datasets.Features({k: v for k, v in own_features(columns).items() if k != "image"}),
        desc="Reading texts and labels",
    )
    _check_unique(own["id"], source, columns.id)
    rest = dataset.remove_columns([name for name in columns.chosen if name != columns.image])
    plain = [name for name, feature in rest.features.items() if not holds_files(feature)]
    for table in rest.select_columns(plain).with_format("arrow").iter(_CHECKED_ROWS) if plain else ():
        table.validate(full=True)  # texts that are not UTF-8 would raise where they are read
    try:
        rest = placed_table(rest.cast_column(columns.image, datasets.Image()), root)
    except DataError as error:
        raise DataError(f"{source}, {error}") from error
    rest = rest.rename_columns(_renaming(rest.column_names, columns))
    joined = datasets.concatenate_datasets([own, rest], axis=1)
    return joined.select_columns(in_order(joined.column_names))


def _uniform_stream(
    dataset: datasets.IterableDataset, source: str, names: dict, root: DataRoot, is_hub: bool
) -> datasets.IterableDataset:
    if dataset.features is None:
        # Only the first rows can tell; `datasets` itself does this where it needs the columns of a stream.
        dataset = guarded(dataset._resolve_features, source)
    columns, class_names = find(dataset.features, source, names)
    others = {name: dataset.features[name] for name in dataset.column_names if name not in columns.chosen}
    features = own_features(columns) | {columns.kept_as(name): feature for name, feature in others.items()}
    row_of = partial(
        _uniform_row,
        columns=columns,
        class_names=class_names,
        split=_split_name(dataset),
        others=others,
        root=root,
        # Each shard is read by itself, so rows are numbered from 0 in every one.
        is_numbered=dataset.num_shards == 1,
    )
    stream = guarded_stream(decoding_off(dataset), source).map(
        row_of, with_indices=True, remove_columns=dataset.column_names
    )
    stream = decoding_on(stream, datasets.Features({name: features[name] for name in in_order(features)}))
    # Single images come over the network one request each, so threads fetch ahead, as `load_dataset` has it too.
    return stream.decode() if is_hub and dataset.info.builder_name == "imagefolder" else stream


def _split_name(dataset: Any) -> str:
    """The split that a part belongs to, without the slice taken of it."""
    return str(dataset.split or "").partition("[")[0]


def find(
    features: datasets.Features, source: str, names: dict, image_needed: bool = True
) -> tuple[ColumnNames, list[str] | None]:
    """The columns of a data set, and the class names if its labels are numbers of classes."""
    pictures = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    columns = find_columns(features, source, image_columns=pictures, image_needed=image_needed, **names)
    for name in (columns.id, columns.text, columns.labels):
        # Whatever reads such a column as text would have it decoded, and so open what its rows name.
        if name is not None and holds_files(features[name]):
            raise DataError(f"{source}: the column {name!r} holds files and no texts; name another column.")
    feature = features.get(columns.labels)
    if isinstance(feature, list):
        feature = feature[0]
    feature = getattr(feature, "feature", feature)
    return columns, getattr(feature, "names", None)


def own_features(columns: ColumnNames) -> dict[str, Any]:
    own = {"id": datasets.Value("string"), "image": datasets.Image(), "text": datasets.Value("string")}
    return own if columns.labels is None else own | {"labels": datasets.List(datasets.Value("string"))}


def _uniform_row(
    example: dict[str, Any],
    row: int,
    columns: ColumnNames,
    class_names: Sequence[str] | None,
    split: str,
    others: Mapping[str, Any] = MappingProxyType({}),
    root: DataRoot | None = None,
    is_numbered: bool = True,
) -> dict[str, Any]:
    """A row with the uniform columns; with the image and the other columns where there is a `root` to place files."""
    image = example.get(columns.image)
    if image is not None and not isinstance(image, dict):
        image = datasets.Image().encode_example(image)
    given = example.get(columns.id) if columns.id else None
    if given is not None and given != "":
        uniform = {"id": str(given)}
    elif columns.id is None and image is not None and image["bytes"] is None and image["path"]:
        uniform = {"id": name_below_split(image["path"], split)}
    else:
        uniform = {"id": str(row) if is_numbered else _digest(example[columns.text], image)}
    try:
        uniform["text"] = text_of(example[columns.text])
        if columns.labels is not None:
            uniform["labels"] = labels_of(example[columns.labels], class_names)
        if root is not None:
            uniform["image"] = placed_value(image, datasets.Image(), root)
            uniform |= {columns.kept_as(n): placed_value(example[n], kind, root) for n, kind in others.items()}
    except DataError as error:
        raise DataError(f"row {row}: {error}") from error
    return uniform


def _digest(text: Any, image: dict[str, Any] | None) -> str:
    """A key that tells pairs without id and number apart, in any worker."""
    image = image or {"path": None, "bytes": None}
    content = image["bytes"] if image["bytes"] is not None else str(image["path"]).encode()
    return hashlib.blake2b(f"{text!r} ".encode("utf-8", "surrogatepass") + content, digest_size=16).hexdigest()


def name_below_split(path: str, split: str) -> str:
    name = _HUB_ROOT.sub("", path)
    return name.removeprefix(f"{split}/") if split else name


def _check_unique(ids: Sequence[str], source: str, column: str | None) -> None:
    rows: dict[str, int] = {}
    for row, name in enumerate(ids):
        first = rows.setdefault(name, row)
        if first != row:
            raise DataError(
                f"{source}: rows {first} and {row} (from 0) have the same id {name!r}; make them unique, name another "
                f"column with id_column=, or ignore {column!r} with id_column=False."
            )


def _renaming(present: Sequence[str], columns: ColumnNames) -> dict[str, str]:
    wanted = {name: "image" if name == columns.image else columns.kept_as(name) for name in present}
    return {name: new for name, new in wanted.items() if name != new}


def in_order(names: Any) -> list[str]:
    names = list(names)
    return [name for name in UNIFORM_COLUMNS if name in names] + [n for n in names if n not in UNIFORM_COLUMNS]
