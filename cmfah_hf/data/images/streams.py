"""Decoding switched off and on in whole data sets, and rows left out whose image cannot be read."""

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets

from cmfah_hf.data.images.decoding import decode_image
from cmfah_hf.errors import ImageError

logger = logging.getLogger(__name__)


def decoding_off(dataset: Any) -> Any:
    """`dataset` with every column of images, audio or video left as `{"path", "bytes"}`, without a tensor format.

    A function that maps or filters rows gets the row's values; with decoding off, no image is decoded for that.
    """
    if isinstance(dataset, datasets.IterableDataset):
        # Also removes the threads that decode ahead in a stream from the Hub.
        return dataset.decode(False) if dataset.features else dataset
    table = dataset.with_format(None)
    for column, feature in table.features.items():
        if getattr(feature, "decode", False):
            table = table.cast_column(column, dataclasses.replace(feature, decode=False))
    return table


def decoding_on(stream: datasets.IterableDataset, features: datasets.Features | None) -> datasets.IterableDataset:
    """A stream that was mapped or filtered with decoding off, with its `features` and their decoding again.

    `datasets` ignores a cast of a stream whose last stage declares features, as a filter does. After a mapping that
    declares none, the cast encodes and decodes.
    """
    return stream if features is None else stream.map(_same_row).cast(features)


def _same_row(example: dict[str, Any]) -> dict[str, Any]:
    return example


def drop_unreadable(dataset: Any, image_column: str = "image", num_threads: int = 1) -> Any:
    """Leaves out the rows whose image `decode_image` cannot read; each is named in a warning with the reason.

    Args:
        dataset: A `Dataset`, an `IterableDataset`, or a dictionary of either.
        image_column: The column of images.
        num_threads: Threads that decode a map-style data set at the same time.

    Returns:
        The same kind of data set. A map-style one is checked now, and a last warning gives the number of rows left
        out. A stream is checked while it is read, and every warning counts those left out so far, because a stream that
        is cut, shuffled or shared among workers has no single end. Make this the first stage of a stream: a mapping or
        filter before it would decode the image already, and fail.
    """
    if isinstance(dataset, dict):
        return type(dataset)({name: drop_unreadable(part, image_column, num_threads) for name, part in dataset.items()})
    raw = decoding_off(dataset)
    check = _ReadableCheck(image_column)
    if isinstance(dataset, datasets.IterableDataset):
        return decoding_on(raw.filter(check), dataset.features)

    narrow = raw.select_columns([column for column in (image_column, "id") if column in raw.column_names])
    if num_threads > 1:
        with ThreadPoolExecutor(num_threads) as pool:
            reasons = list(pool.map(lambda row: check.reason(narrow[row], row), range(len(narrow))))
    else:
        reasons = [check.reason(example, row) for row, example in enumerate(narrow)]
    unreadable = [reason for reason in reasons if reason is not None]
    for reason in unreadable:
        logger.warning("Left out: %s", reason)
    if not unreadable:
        return dataset
    logger.warning("Left out %d of %d images, because they cannot be read.", len(unreadable), len(reasons))
    return dataset.select([row for row, reason in enumerate(reasons) if reason is None])


class _ReadableCheck:
    """Filter of a stream: true where the image can be read. It counts the other rows."""

    def __init__(self, image_column: str):
        self.image_column = image_column
        self.dropped = 0

    def reason(self, example: dict[str, Any], row: int | None = None) -> str | None:
        """The reason why the image of `example` cannot be read, `None` if it can."""
        value = example[self.image_column]
        path = value.get("path") if isinstance(value, dict) else None
        label = f"row {example['id']!r}" if "id" in example else f"row {row}" if row is not None else "a row"
        try:
            decode_image(value, name=f"{label} ({path})" if path else label)
        except ImageError as error:
            return str(error)
        return None

    def __call__(self, example: dict[str, Any]) -> bool:
        reason = self.reason(example)
        if reason is not None:
            self.dropped += 1
            logger.warning("Left out: %s %d unreadable so far.", reason, self.dropped)
        return reason is None
