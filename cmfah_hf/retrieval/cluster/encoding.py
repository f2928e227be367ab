"""Encoding of images or texts in several processes with Ray Data, into an index."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from cmfah_hf.data import resolve_data_path
from cmfah_hf.data.images import decoding_off
from cmfah_hf.errors import CheckpointError, DataError, QueryError
from cmfah_hf.retrieval.base import BaseHashIndex
from cmfah_hf.retrieval.codes import pack
from cmfah_hf.retrieval.preparation import read_if_sound
from cmfah_hf.retrieval.same_model import check_same_model

try:
    import ray.data
except ImportError as error:
    raise ImportError("Encoding with Ray needs it; install it by `pip install cmfah-hf[cluster]`.") from error

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

_CODE, _REASON, _FAILURE, _ID, _MODEL = "__code__", "__reason__", "__failure__", "__id__", "__model__"
# A worker's name for an image whose id or number is unknown to it; the reader of its results fills it in.
_UNNAMED = "?"


def encode_with_ray(
    source: "datasets.Dataset | ray.data.Dataset | str | os.PathLike | Sequence[str | os.PathLike]",
    model: str | os.PathLike,
    index: BaseHashIndex,
    what: Literal["images", "texts"] = "images",
    *,
    column: str | None = None,
    id_column: str | None = None,
    metadata: Sequence[str] = (),
    batch_size: int = 32,
    add_size: int = 4096,
    concurrency: int = 1,
    num_cpus: float = 1,
    num_gpus: float = 0,
    progress: bool = False,
    any_model: bool = False,
) -> list[str]:
    """Encodes images or texts in several processes and adds their codes to an index, batch by batch.

    The result is that of `CrossMediaRetriever.add_images` and `add_texts`: the same codes, ids and order, and the same
    images left out. After an error, the batches before it stay in the index.

    Args:
        source: A `datasets.Dataset`, which is copied to Ray's object store; or Parquet files, folders of them, or a
            `ray.data.Dataset`, which are read piece by piece.
        model: A folder or Hub id that every node can load.
        index: The index that the codes are added to.
        what: `"images"` or `"texts"`.
        column: The column of images or texts. None: `"image"` or `"text"`.
        id_column: The column of ids. None: `"id"` if there is such a column, else the items are numbered.
        metadata: Columns that are added as metadata.
        batch_size: Items encoded at once.
        add_size: Items added at once.
        concurrency: The number of processes; each loads the model once.
        num_cpus: CPUs that each process reserves.
        num_gpus: GPUs that each process reserves; 0 to encode on CPUs.
        progress: Show Ray's progress bars.
        any_model: Add the codes even if another model made those in the index.

    Returns:
        For each image that was left out, the reason.

    Raises:
        DataError: If the source is of another type, or lacks a column.
        CheckpointError: If the model cannot be loaded.
        HashIndexError: If an id exists already, the codes do not fit the index, or another model made those in it.
    """
    if what not in ("images", "texts"):
        raise QueryError(f"what is {what!r}; choose 'images' or 'texts'.")
    for name, value in (("batch_size", batch_size), ("add_size", add_size), ("concurrency", concurrency)):
        if value < 1:
            raise QueryError(f"{name} is {value}; give 1 or more.")
    column = column or {"images": "image", "texts": "text"}[what]
    rows, id_column = _rows(source, column, id_column, metadata, batch_size)
    # The items arrive in their order, whichever process is done first; so items without ids can be numbered here.
    rows.context.execution_options.preserve_order = True
    rows.context.enable_progress_bars = progress
    encoded = rows.map_batches(
        _Encoder,
        fn_constructor_args=(str(model), what, column, id_column, tuple(metadata), num_gpus > 0),
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=concurrency),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )
    left_out: list[str] = []
    start = index.next_id
    batches = encoded.iter_batches(batch_format="pyarrow", batch_size=add_size)
    for batch in cast("Iterable[pa.Table]", batches):
        if batch[_FAILURE].null_count < batch.num_rows:
            raise CheckpointError(batch[_FAILURE].drop_null()[0].as_py())
        for made_by in batch[_MODEL].unique().to_pylist():  # several, if nodes found different models
            if not len(index):
                index.model = made_by
            if not any_model:
                check_same_model(index.model, made_by, "The index")
        ids = batch[_ID].to_pylist() if id_column else list(range(start, start + batch.num_rows))
        start += batch.num_rows
        for item_id, reason in zip(ids, batch[_REASON].to_pylist(), strict=True):
            if reason is not None:
                left_out.append(reason.replace(_UNNAMED, str(item_id), 1) if reason[0] == _UNNAMED else reason)
                logger.warning("Left out: %s", left_out[-1])
        _add(index, batch, ids, metadata)
    return left_out


def _add(index: BaseHashIndex, batch: pa.Table, ids: list, metadata: Sequence[str]) -> None:
    readable = np.flatnonzero(batch[_REASON].is_null().to_numpy())
    if not readable.size:
        return
    codes = np.frombuffer(b"".join(batch[_CODE].take(readable).to_pylist()), np.uint8).reshape(len(readable), -1)
    columns = batch.select(metadata).take(readable) if metadata else None
    index.add(codes, [ids[row] for row in readable], columns)


class _Encoder:
    """The model of one process, from tables of images or texts to tables of codes, ids and metadata."""

    def __init__(self, model: str, what: str, column: str, id_column: str | None, metadata: tuple[str, ...], gpu: bool):
        from cmfah_hf.retrieval.retriever import CrossMediaRetriever

        self.what, self.column, self.id_column, self.metadata = what, column, id_column, metadata
        self.failure: str | None = None
        self.fingerprint: str | None = None
        try:
            self.retriever = CrossMediaRetriever.from_pretrained(model, device=None if gpu else "cpu")
            self.fingerprint = self.retriever.fingerprint
        except CheckpointError as error:  # sent as a column: of errors raised here, Ray passes on only the text
            self.failure = str(error)

    def _image_codes(self, images: list[Any]) -> tuple[np.ndarray, list[str | None]]:
        """The codes of the readable images, and for each image why it is not readable, or None."""
        named = [(image, None if isinstance(image, str) else _UNNAMED) for image in images]
        with self.retriever.encoding([named], read_if_sound) as encoded:
            ((batch, codes),) = encoded
        reasons = [None if error is None else str(error) for error in batch.notes]
        return np.empty((0, self.retriever.hash_bits)) if codes is None else codes, reasons

    def __call__(self, batch: pa.Table) -> pa.Table:
        items = batch[self.column].to_pylist()
        reasons: list[str | None] = [None] * batch.num_rows
        packed: list[bytes | None] = [None] * batch.num_rows
        if items and self.failure is None:
            if self.what == "images":
                codes, reasons = self._image_codes(items)
            else:
                codes = self.retriever.encode_texts(items, len(items))
            readable = [row for row, reason in enumerate(reasons) if reason is None]
            for row, code in zip(readable, pack(codes), strict=True):
                packed[row] = code.tobytes()
        columns: dict[str, Any] = {
            _CODE: pa.array(packed, pa.binary()),
            _REASON: pa.array(reasons, pa.string()),
            _FAILURE: pa.array([self.failure] * batch.num_rows, pa.string()),
            _MODEL: pa.array([self.fingerprint] * batch.num_rows, pa.string()),
        }
        if self.id_column is not None:
            columns[_ID] = batch[self.id_column]
        return pa.table(columns | {name: batch[name] for name in self.metadata})


def _rows(
    source: Any, column: str, id_column: str | None, metadata: Sequence[str], batch_size: int
) -> tuple["ray.data.Dataset", str | None]:
    """The required columns as a Ray data set, and the column of ids, if there is one."""
    import datasets

    if isinstance(source, datasets.Dataset):
        source = decoding_off(source)
        held = source.column_names
    elif isinstance(source, (str, os.PathLike)) or (
        isinstance(source, Sequence) and source and all(isinstance(path, (str, os.PathLike)) for path in source)
    ):
        given = [source] if isinstance(source, (str, os.PathLike)) else source
        paths = [str(path) if "://" in str(path) else str(resolve_data_path(path)) for path in given]
        for path in paths:
            if "://" not in path and not Path(path).exists():
                raise DataError(f"{path}: there is no such file or folder; give Parquet files, or folders of them.")
        source = ray.data.read_parquet(paths)
        # For a schema Ray would start processes; the footer of the first file is enough.
        held = (source.schema() if "://" in paths[0] else pyarrow.dataset.dataset(paths[0]).schema).names
    elif isinstance(source, ray.data.Dataset):
        held = source.schema().names
    else:
        kind = "one split of it" if isinstance(source, Mapping) else "a datasets.Dataset or Parquet files"
        raise DataError(f"A {type(source).__name__} cannot be encoded with Ray; give {kind}.")
    if id_column is None and "id" in held:
        id_column = "id"
    needed = list(dict.fromkeys([column, *([id_column] if id_column else []), *metadata]))
    missing = [name for name in needed if name not in held]
    if missing:
        raise DataError(f"The source has no column {missing[0]!r}; it has {', '.join(held)}.")
    selected = source.select_columns(needed)
    if isinstance(source, datasets.Dataset):
        # `ray.data.from_huggingface` makes one block, and asks the Hub for a data set of that name first.
        table = selected.with_format("arrow")
        blocks = [table[start : start + 4 * batch_size] for start in range(0, len(table), 4 * batch_size)]
        selected = ray.data.from_arrow(blocks or [table[:]])
    return selected, id_column
