"""The uniform columns `id`, `image`, `text`, `captions` and `labels` over any data set that `datasets` loads."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, TypeAlias

import datasets

from cmfah_hf.data.data_root import DataRoot
from cmfah_hf.data.images.streams import decoding_off, decoding_on
from cmfah_hf.data.internals import resolved_features
from cmfah_hf.data.rows.columns import (
    IMAGE_FEATURES,
    UNIFORM_COLUMNS,
    ColumnNames,
    RequestedColumns,
    captions_of,
    find_columns,
    labels_of,
    text_of,
    with_captions,
)
from cmfah_hf.data.rows.errors import guarded, guarded_stream, in_row
from cmfah_hf.data.rows.files import holds_files, placed_table, placed_value
from cmfah_hf.errors import DataError

Loaded: TypeAlias = datasets.DatasetDict | datasets.IterableDatasetDict | datasets.Dataset | datasets.IterableDataset

_CHECKED_ROWS = 1_000
# The root of a data set on the Hub, as streams and the download cache write it in an image's path.
_HUB_ROOT = re.compile(r"^(hf://datasets/[^@]+@[^/]+/|.*/snapshots/[0-9a-f]{40}/)")


def uniform(loaded: Loaded, source: str, requested: RequestedColumns, root: DataRoot, is_hub: bool = False) -> Loaded:
    """A loaded data set or splits with the uniform columns, and with all files that rows name placed below `root`."""
    if isinstance(loaded, dict):
        return type(loaded)(
            {name: uniform(part, f"{source}, split {name}", requested, root, is_hub) for name, part in loaded.items()}
        )
    if isinstance(loaded, datasets.IterableDataset):
        return _uniform_stream(loaded, source, requested, root, is_hub)
    return guarded(partial(_uniform_table, loaded, source, requested, root), source)


def _uniform_table(
    dataset: datasets.Dataset, source: str, requested: RequestedColumns, root: DataRoot
) -> datasets.Dataset:
    """The uniform columns of a map-style data set; a column of images that holds their bytes is not rewritten."""
    if len(dataset) == 0:
        raise DataError(f"{source}: holds no rows.")
    columns, class_names = find(dataset.features, source, requested, sample=dataset.select_columns)
    by_path = False
    if columns.image is not None:
        dataset = dataset.cast_column(columns.image, datasets.Image(decode=False))
        # Embedded images are not read for their names, which need not be unique.
        by_path = columns.id is None and (dataset[0][columns.image] or {"bytes": b""})["bytes"] is None
    needed = [name for name in columns.chosen if name != columns.image or by_path]
    own = dataset.select_columns(needed).map(
        partial(_uniform_row, columns=columns, class_names=class_names, split=_split_name(dataset)),
        with_indices=True,
        remove_columns=needed,
        features=datasets.Features({k: v for k, v in own_features(columns).items() if k != "image"}),
        desc="Reading texts and labels",
    )
    check_unique(own["id"], source, columns.id)
    rest = dataset.remove_columns([name for name in columns.chosen if name != columns.image])
    plain = [name for name, feature in rest.features.items() if not holds_files(feature)]
    for table in rest.select_columns(plain).with_format("arrow").iter(_CHECKED_ROWS) if plain else ():
        table.validate(full=True)  # otherwise a text that is not UTF-8 raises only when it is read
    try:
        rest = placed_table(rest if columns.image is None else rest.cast_column(columns.image, datasets.Image()), root)
    except DataError as error:
        raise DataError(f"{source}, {error}") from error
    names = {name: "image" if name == columns.image else columns.kept_as(name) for name in rest.column_names}
    rest = rest.rename_columns({name: new for name, new in names.items() if name != new})
    joined = datasets.concatenate_datasets([own, rest], axis=1)
    return joined.select_columns(in_order(joined.column_names))


def _uniform_stream(
    dataset: datasets.IterableDataset, source: str, requested: RequestedColumns, root: DataRoot, is_hub: bool
) -> datasets.IterableDataset:
    dataset = guarded(partial(resolved_features, dataset), source)
    found = partial(find, dataset.features, source, requested, sample=dataset.select_columns)
    columns, class_names = guarded(found, source)
    others = {name: dataset.features[name] for name in dataset.column_names if name not in columns.chosen}
    features = own_features(columns) | {columns.kept_as(name): feature for name, feature in others.items()}
    row_of = partial(
        _uniform_row,
        columns=columns,
        class_names=class_names,
        split=_split_name(dataset),
        others=others,
        root=root,
        # Every shard is read by itself and numbers its rows from 0.
        is_numbered=dataset.num_shards == 1,
    )
    stream = guarded_stream(decoding_off(dataset), source).map(
        row_of, with_indices=True, remove_columns=dataset.column_names
    )
    stream = decoding_on(stream, datasets.Features({name: features[name] for name in in_order(features)}))
    # A request per image: threads fetch ahead, as they do in `load_dataset`.
    return stream.decode() if is_hub and dataset.info.builder_name == "imagefolder" else stream


def _split_name(dataset: Any) -> str:
    """The split that a part belongs to, without its slice."""
    return str(dataset.split or "").partition("[")[0]


def find(
    features: datasets.Features,
    source: str,
    requested: RequestedColumns,
    image_needed: bool = True,
    sample: Callable[[list[str]], Iterable[Mapping[str, Any]]] = lambda names: (),
) -> tuple[ColumnNames, list[str] | None]:
    """The columns of a data set, and the class names if its labels are class numbers; `sample` as in `with_captions`.

    A data set with a column of image features (`IMAGE_FEATURES`) needs no images. Nothing is read of a data set without
    lists of texts.
    """
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    columns = find_columns(features, source, requested, images, image_needed and IMAGE_FEATURES not in features)
    for name in (columns.id, columns.text, columns.labels):
        # Reading such a column as text would decode it, and so open the files that its rows name.
        if name is not None and holds_files(features[name]):
            raise DataError(f"{source}: the column {name!r} holds files and no texts; name another column.")
    lists = [
        name
        for name in (columns.text, "captions")
        if isinstance(features.get(name), list | datasets.List | datasets.LargeList) and not holds_files(features[name])
    ]
    if lists or requested.captions == "several":
        columns = with_captions(columns, lists, requested, sample)
    if columns.labels is None:
        return columns, None
    feature = features[columns.labels]
    if isinstance(feature, list):
        feature = feature[0]
    feature = getattr(feature, "feature", feature)
    return columns, getattr(feature, "names", None)


def own_features(columns: ColumnNames) -> dict[str, Any]:
    """The features of the uniform columns."""
    own: dict[str, Any] = {"id": datasets.Value("string")}
    if columns.image is not None:
        own["image"] = datasets.Image()
    own["text"] = datasets.Value("string")
    if columns.captions is not None:
        own["captions"] = datasets.List(datasets.Value("string"))
    return own if columns.labels is None else own | {"labels": datasets.List(datasets.Value("string"))}


def own_values(
    example: Mapping[str, Any], columns: ColumnNames, class_names: Sequence[str] | None, other_id: Callable[[], str]
) -> dict[str, Any]:
    """The `id`, `text`, `captions` and `labels` of a source's row; `other_id` gives the id of a row without one."""
    given = example.get(columns.id) if columns.id else None
    values: dict[str, Any] = {"id": other_id() if given is None or given == "" else str(given)}
    values["text"] = text_of(example.get(columns.text))
    if columns.captions is not None:
        values["captions"] = captions_of(example.get(columns.captions))
    if columns.labels is not None:
        values["labels"] = labels_of(example.get(columns.labels), class_names)
    return values


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
    """A row with the uniform columns; with a `root`, the image and the other columns with their files placed."""
    image = example.get(columns.image) if columns.image else None
    if image is not None and not isinstance(image, dict):
        image = datasets.Image().encode_example(image)

    def other_id() -> str:
        if columns.id is None and image is not None and image["bytes"] is None and image["path"]:
            return name_below_split(image["path"], split)
        return str(row) if is_numbered else _digest(example[columns.text], image)

    values = in_row(row, own_values, example, columns, class_names, other_id)
    if root is not None:
        if columns.image is not None:
            values["image"] = in_row(row, placed_value, image, datasets.Image(), root)
        for name, feature in others.items():
            values[columns.kept_as(name)] = in_row(row, placed_value, example[name], feature, root)
    return values


def _digest(text: Any, image: dict[str, Any] | None) -> str:
    """A key that identifies a pair without id and row number by its content, the same in any worker."""
    image = image or {"path": None, "bytes": None}
    content = image["bytes"] if image["bytes"] is not None else str(image["path"]).encode()
    return hashlib.blake2b(f"{text!r} ".encode("utf-8", "surrogatepass") + content, digest_size=16).hexdigest()


def name_below_split(path: str, split: str) -> str:
    """The name of an image below the folder of its split, which is its id where there is no other."""
    name = _HUB_ROOT.sub("", path)
    return name.removeprefix(f"{split}/") if split else name


def check_unique(ids: Sequence[str], source: str, column: str | None) -> None:
    """Raises a `DataError` that names the rows if two have the same id."""
    rows: dict[str, int] = {}
    for row, name in enumerate(ids):
        first = rows.setdefault(name, row)
        if first != row:
            raise DataError(
                f"{source}: rows {first} and {row} (from 0) have the same id {name!r}; make them unique, name another "
                f"column with id_column=, or ignore {column!r} with id_column=False."
            )


def in_order(names: Iterable[str]) -> list[str]:
    """The names with the uniform columns first."""
    names = list(names)
    return [name for name in UNIFORM_COLUMNS if name in names] + [n for n in names if n not in UNIFORM_COLUMNS]
