"""The source of WebDataset shards: tar files of images with captions.

The builder of `datasets` is not used: it needs the same files in every sample, reads the fields of JSON as one column,
and a shard that is cut short is an error that does not name it.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets

from cmfah_hf.data.data_root import refuse_links_outside
from cmfah_hf.data.dataset_card import check_split_name
from cmfah_hf.data.file_state import digest_of, file_states
from cmfah_hf.data.images.decoding import image_endings, is_image_file, missing_extra
from cmfah_hf.data.rows.columns import (
    LABELS_NAMES,
    TEXT_NAMES,
    ColumnNames,
    RequestedColumns,
    find_columns,
    with_captions,
)
from cmfah_hf.data.rows.errors import guarded
from cmfah_hf.data.rows.uniform import Loaded, check_unique, own_features, own_values
from cmfah_hf.data.sources.metadata_rows import shown_name
from cmfah_hf.data.sources.request import SPLIT_FOLDERS, LoadRequest, resolve_data_path, usual_order
from cmfah_hf.data.sources.shard_division import QUERY, TRAIN, ShardDivision, division_of
from cmfah_hf.data.tar_samples import Sample, expanded, read_samples, stem_of
from cmfah_hf.documents import parse_json
from cmfah_hf.errors import DataError

logger = logging.getLogger(__name__)

# Files of a sample that hold its text or its class.
_TEXTS, _CLASS, _JSON = ("txt", "caption", "text"), "cls", "json"
_IMAGE = "image"
# Samples of the first shard that decide on the columns.
_SAMPLED = 20
# Kinds of further columns.
_BOOL, _WHOLE, _NUMBER, _STRING = "bool", "int64", "float64", "string"
_MOST_WHOLE = 2**63
# Fields that a warning names.
_MOST_NAMED = 20


def matches(request: LoadRequest) -> bool:
    return bool(_files(request))


def load(request: LoadRequest) -> Loaded:
    """The samples of the shards, each a shard of a stream; the request has no `kwargs`.

    If the folder says so (`ShardDivision`), those of the split `train` are divided into `train` and `query`.
    """
    if request.kwargs:
        raise DataError(f"{request.name}: shards do not accept {', '.join(sorted(request.kwargs))}; leave it out.")
    files = _files(request)
    division = None if QUERY in files else division_of(files.get(TRAIN, []), _folder(request))
    if division is not None:
        files = {TRAIN: files[TRAIN], QUERY: files[TRAIN], **files}
    parts = {}
    for split in request.wanted(files):
        own = division if split in (TRAIN, QUERY) else None
        read = partial(_rows, files[split], f"{request.name}, split {split}", split, request, own)
        parts[split] = guarded(read, request.name)
    return request.select(request.splits(parts))


def shard_splits(folder: Path) -> dict[str, list[str]]:
    """The shards below a folder by split; none if images are there too, because then a tar file may be anything."""
    found = sorted(folder.rglob("*.tar"))
    files = [file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    if not files or any(is_image_file(file) for file in folder.rglob("*")):
        return {}
    refuse_links_outside(folder, files)
    return _by_split({str(file): file.relative_to(folder).parts[:-1] for file in files})


def _files(request: LoadRequest) -> dict[str, list[str]]:
    if request.is_address:
        return {}
    if request.exists:
        if request.path.is_dir():
            return shard_splits(request.path)
        return _by_split({str(request.path): ()}) if request.path.suffix.lower() == ".tar" else {}
    if "{" not in request.source or not request.source.endswith(".tar"):
        return {}
    names = [str(resolve_data_path(name)) for name in expanded(request.source)]
    return _by_split(dict.fromkeys(names, ()))


def _folder(request: LoadRequest) -> Path | None:
    return request.path if request.exists and request.path.is_dir() else None


def _by_split(folders: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Shards by split: that of their folder, or of their name (`query-000.tar`), else `train`."""
    splits: dict[str, list[str]] = {}
    for file, parts in folders.items():
        prefix = stem_of(file).partition("-")[0]
        split = parts[0] if parts else prefix if prefix in SPLIT_FOLDERS else "train"
        check_split_name(split, file)
        splits.setdefault(split, []).append(file)
    return {name: splits[name] for name in sorted(splits, key=usual_order)}


def _rows(files: list[str], source: str, split: str, request: LoadRequest, division: ShardDivision | None) -> Any:
    """The samples of a split as a `Dataset` or `IterableDataset`."""
    reader = replace(_reader(files, source, request), split=split, division=division)
    shards = {
        "file": files,
        # Keys need not be unique among shards.
        "prefix": [f"{stem_of(file)}/" if len(files) > 1 else "" for file in files],
        "version": [digest_of(file_states([file])) for file in files],
    }
    if len(set(shards["prefix"])) < len(files) > 1:
        raise DataError(f"{source}: two shards have the same name; rename one.")
    further = {reader.columns.kept_as(name): datasets.Value(kind) for name, kind in reader.further}
    features = datasets.Features(own_features(reader.columns) | further)
    how = {"features": features, "split": datasets.NamedSplit(split)}
    kwargs = {**shards, "reader": reader}
    if request.streaming:
        return datasets.IterableDataset.from_generator(generate_rows, gen_kwargs=kwargs, **how)
    dataset = datasets.Dataset.from_generator(generate_rows, gen_kwargs=kwargs, **how)
    if len(dataset) == 0:
        raise DataError(f"{source}: holds no sample with an image; give shards of images.")
    check_unique(dataset["id"], source, reader.columns.id)
    return dataset


def _reader(files: list[str], source: str, request: LoadRequest) -> "_Reader":
    """The reader of a split; its columns are those of the first samples."""
    requested = request.columns
    plain = _Reader(ColumnNames(_IMAGE, "txt", None, None), requested.image, request.images)
    samples = list(islice(read_samples(files[0], lambda ending: not is_image(ending)), _SAMPLED))
    image = next((image for sample in samples if (image := plain.image_of(sample))), None)
    if image is None:
        present = _described(dict.fromkeys(ending for sample in samples for ending in sample.files)) or "none"
        given = f" {requested.image!r}" if requested.image else ""
        raise DataError(
            f"{source}: no image{given} in the first samples (their files: {present}); give shards of images."
        )
    rows = [plain.fields(sample, files[0]) for sample in samples]
    try:
        columns = _find_columns(rows, source, requested)
    except DataError as error:
        raise error if source in str(error) else DataError(f"{files[0]}, first samples: {error}") from None
    if columns.labels is None and any(_CLASS in row for row in rows):
        columns = replace(columns, labels=_CLASS)
    return replace(plain, columns=columns, further=_further(rows, columns))


def _further(rows: list[dict[str, Any]], columns: ColumnNames) -> tuple[tuple[str, str], ...]:
    """The further fields of samples that are single values, and their kinds."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in columns.chosen and value is not None:
                values.setdefault(name, []).append(value)
    return tuple((name, kind) for name, own in values.items() if (kind := _kind_of(own)) is not None)


def _kind_of(values: Iterable[Any]) -> str | None:
    """The kind that holds all of these values; `None` if one is a list or an object."""
    kinds = {type(value) for value in values}
    if kinds & {list, dict}:
        return None
    if kinds == {bool}:
        return _BOOL
    if kinds == {int} and all(-_MOST_WHOLE <= value < _MOST_WHOLE for value in values):
        return _WHOLE
    return _NUMBER if float in kinds and kinds <= {int, float} else _STRING


def _as_kind(value: Any, kind: str) -> Any:
    """A field as a value of a kind. Raises a `ValueError` if it is none."""
    if value is None:
        return None
    found = _kind_of([value])
    if found == kind:
        return value
    if kind == _STRING and found is not None:
        return str(value)
    if kind == _NUMBER and found == _WHOLE:
        return float(value)
    raise ValueError(kind)


def _find_columns(rows: list[dict[str, Any]], source: str, requested: RequestedColumns) -> ColumnNames:
    present = list(dict.fromkeys(name for row in rows for name in row))
    lower = {name.lower() for name in present}
    if requested.text is None and not lower & set(TEXT_NAMES) and (lower & {*LABELS_NAMES, _CLASS} or not present):
        present.append("txt")  # classes or images alone: all texts are empty
    by_key = replace(requested, image=_IMAGE, id=requested.id or False)
    columns = find_columns([_IMAGE, *present], source, by_key)
    return with_captions(columns, present, requested, lambda names: rows)


def _described(endings: Iterable[str]) -> str:
    """Files of samples by their endings, with the extras that are missing to read them."""
    extras = {ending: missing_extra(_suffix(ending)) for ending in endings}
    return ", ".join(f"{ending} ({extra.command})" if extra else ending for ending, extra in extras.items())


def is_image(ending: str) -> bool:
    """Whether a file of a sample is an image, by its ending, such as `jpg` or `seg.png`."""
    return _suffix(ending) in image_endings()


def _suffix(ending: str) -> str:
    return f".{ending.rpartition('.')[2]}"


@dataclass(frozen=True)
class _Reader:
    """Reads samples as rows with the uniform columns."""

    columns: ColumnNames
    image: str | None  # the rest of an image's name, if the caller gave it
    images: bool  # whether images are read
    further: tuple[tuple[str, str], ...] = ()  # names of further fields, and their kinds
    split: str = TRAIN
    division: ShardDivision | None = None  # of the shards into splits; without one, all samples are read

    def image_of(self, sample: Sample) -> str | None:
        """The file of a sample that is its image: the one requested, or else the first, one without further dots."""
        if self.image is not None:
            return self.image if self.image in sample.files else None
        return min(filter(is_image, sample.files), key=lambda ending: "." in ending, default=None)

    def fields(self, sample: Sample, file: str) -> dict[str, Any]:
        """The fields of a sample: its files of text and class, and those of its JSON."""
        where = f"{file}, sample {sample.key!r}"
        found: dict[str, Any] = {}
        for ending, content in sample.files.items():
            if ending in _TEXTS:
                found[ending] = _text(content, where)
            elif ending == _CLASS:
                found[_CLASS] = _text(content, where).strip()
        if _JSON in sample.files:
            document = parse_json(sample.files[_JSON], f"{where}: its JSON", DataError)
            if not isinstance(document, dict):
                raise DataError(f"{where}: its JSON is a {type(document).__name__}; write one object.")
            found |= {name: value for name, value in document.items() if name != _IMAGE and name not in found}
        return found

    def rows(self, file: str, prefix: str) -> Iterator[dict[str, Any]]:
        without, unread = 0, dict[str, None]()
        left_out: Counter[str] = Counter()
        for sample in read_samples(file, lambda ending: self.images or not is_image(ending)):
            if self.division is not None and self.division.split_of(stem_of(file), sample.key) != self.split:
                continue
            image = self.image_of(sample)
            if image is None:
                without += 1
                unread |= {ending: None for ending in sample.files if missing_extra(_suffix(ending))}
                continue
            try:
                fields = self.fields(sample, file)
                row = own_values(fields, self.columns, None, partial(str, prefix + sample.key))
            except DataError as error:
                raise error if file in str(error) else DataError(f"{file}, sample {sample.key!r}: {error}") from None
            row |= self._further_values(fields, left_out)
            yield row | {_IMAGE: {"bytes": sample.files[image], "path": None} if self.images else None}
        if without:
            others = f" that can be read: {_described(unread)}" if unread else ""
            logger.warning("%s: left out %d samples without an image%s.", file, without, others)
        if left_out:
            counts = ", ".join(f"{shown_name(name)} {count:,}" for name, count in left_out.most_common(_MOST_NAMED))
            logger.warning(
                "%s: left out values of fields that the first samples lack or have of another kind: %s.", file, counts
            )

    def _further_values(self, fields: Mapping[str, Any], left_out: Counter[str]) -> dict[str, Any]:
        """The further columns of a sample; those that its columns do not hold are counted in `left_out`."""
        kinds = dict(self.further)
        values = dict.fromkeys(map(self.columns.kept_as, kinds))
        for name, value in fields.items():
            if name in kinds:
                try:
                    values[self.columns.kept_as(name)] = _as_kind(value, kinds[name])
                except ValueError:
                    left_out[name] += 1
            elif name not in self.columns.chosen and value is not None and not isinstance(value, list | dict):
                left_out[name] += 1
        return values


def generate_rows(file: list[str], prefix: list[str], version: list[str], reader: _Reader) -> Iterator[dict[str, Any]]:
    """The rows of some shards; `version` only identifies the state of a file."""
    for name, own in zip(file, prefix, strict=True):
        yield from reader.rows(name, own)


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: its text is not UTF-8 ({error.reason}); save it as UTF-8.") from error
