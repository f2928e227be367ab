"""Splits of a run as streams, with row counts, classes and texts from one pass before the first step."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.utils import broadcast_object_list

from cmfah_hf.atomic import atomic_file, sha256_of, write_text
from cmfah_hf.data import load_image_text
from cmfah_hf.data.images import decoding_off
from cmfah_hf.data.internals import is_arrow, stream_fingerprint
from cmfah_hf.data.label_counts import LabelCounts
from cmfah_hf.documents import read_json
from cmfah_hf.errors import DataError
from cmfah_hf.models import CMFAHImageModel, CMFAHProcessor
from cmfah_hf.training.data.region_cache import keep_regions
from cmfah_hf.training.data.shards import read_shard, split_stream
from cmfah_hf.training.data.streams import PairStream
from cmfah_hf.training.settings.arguments import DataArguments
from cmfah_hf.training.settings.configuration import Run

NOTES_NAME = "stream.json"
TEXTS_NAME = "stream-texts.parquet"
# Number of files over which the ids are distributed, so that each can be sorted in memory.
_ID_FILES = 64
_ID_BYTES = 16
_TEXT_ROWS = 10_000

logger = logging.getLogger(__name__)

Streams = dict[str, datasets.IterableDataset]


@dataclass
class StreamNotes:
    """Results of one pass over a stream: its fingerprint, rows of each shard, classes, and co-occurrences of labels."""

    fingerprint: str
    counts: list[int]
    classes: list[str]
    together: dict[str, dict[str, int]] = field(default_factory=dict)


class SpooledTexts:
    """The texts of a file that `read_notes` wrote, in order; can be iterated repeatedly.

    With `labeled=True`, rows with `text` and `labels`.
    """

    def __init__(self, path: Path, labeled: bool = False):
        self.path, self.labeled = path, labeled

    def __iter__(self) -> Iterator[Any]:
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(_TEXT_ROWS, columns=None if self.labeled else ["text"]):
                yield from batch.to_pylist() if self.labeled else batch.column(0).to_pylist()


def open_streams(data: DataArguments, images: bool = True) -> Streams:
    """The splits as streams, with or without images; rows and shards are the same."""
    return load_image_text(data.dataset, streaming=True, images=images, **data.columns)


def stream_regions(run: Run, loaded: Streams, image_model: CMFAHImageModel, processor: CMFAHProcessor) -> Streams:
    """The splits with regions instead of images, which all processes compute together."""
    mirrored = {run.data.train_split, run.data.validation_split} if run.data.mirror else set()
    processes = {"num_processes": run.training.world_size, "process_index": run.training.process_index}
    return {
        name: keep_regions(part, image_model, processor, name in mirrored, **processes) for name, part in loaded.items()
    }


def count_streams(
    run: Run, splits: Streams, whole: datasets.IterableDataset | None, has_regions: bool, output: Path
) -> tuple[dict[str, PairStream], PairStream, dict[str, list[str]], SpooledTexts, LabelCounts]:
    """The streams of a run, with counts from one pass over ids, texts and labels.

    For Parquet, the pass reads no other column. The main process makes it and sends the result to the others. A resumed
    run does not repeat it.

    Args:
        run: The settings of the run.
        splits: `train`, `validation`, and if the data has them `query` and `database`.
        whole: The split that train and validation are parts of; None if each is a split of its own.
        has_regions: Whether the streams have regions instead of images.
        output: The folder of the run.

    Returns:
        The splits, the pairs of training and validation together, the classes of both, the training texts, and the
        co-occurrences of training labels.

    Raises:
        DataError: If an id occurs twice, or no row has a label.
    """
    data, args = run.data, run.training
    narrow = splits
    if not has_regions:
        loaded = open_streams(data, images=False)
        if data.validation_split is None:
            train, validation = split_stream(loaded[data.train_split], data.validation_fraction, data.validation_seed)
        else:
            train, validation = loaded[data.train_split], loaded[data.validation_split]
        narrow = {"train": train, "validation": validation}
    found: list[dict[str, StreamNotes]] = [{}]
    if args.process_index == 0:
        found = [_notes(narrow, bool(args.resume_from_checkpoint), data.dataset, output)]
    if args.world_size > 1:
        broadcast_object_list(found)
    notes = found[0]
    if data.similarity == "labels" and not notes["train"].classes:
        raise DataError(f"{data.dataset}: no row has a label; add labels to the data.")
    seed = args.seed if args.data_seed is None else args.data_seed
    streams = {name: PairStream(part) for name, part in splits.items()}
    for name, own in notes.items():
        if not sum(own.counts):
            raise DataError(f"{data.dataset}: no row is left for {name}; take more data or another part.")
        streams[name] = PairStream(splits[name], own.counts, args.shuffle_buffer, seed)
    if whole is None:
        all_pairs = streams["train"].followed_by(streams["validation"])
    else:  # so that the refit reads every file once
        counts = np.add(notes["train"].counts, notes["validation"].counts)
        all_pairs = PairStream(whole, counts.tolist(), args.shuffle_buffer, seed)
    classes = {name: own.classes for name, own in notes.items()}
    return streams, all_pairs, classes, SpooledTexts(output / TEXTS_NAME), LabelCounts(notes["train"].together)


def _notes(narrow: Streams, is_resumed: bool, source: str, output: Path) -> dict[str, StreamNotes]:
    """The notes of train and validation, from the resumed run or from a new pass."""
    path, texts = output / NOTES_NAME, output / TEXTS_NAME
    names = {name: stream_fingerprint(narrow[name]) for name in ("train", "validation")}
    if is_resumed and path.is_file():
        try:
            kept = _kept_notes(path, texts)
        except DataError as error:
            logger.warning("%s The rows are counted again.", error)
        else:
            if {name: own.fingerprint for name, own in kept.items()} == names:
                return kept
            logger.warning("%s has changed since the run that is resumed; its rows are counted again.", source)
    notes = {
        name: read_notes(narrow[name], source, texts if name == "train" else None) for name in ("train", "validation")
    }
    content = {name: asdict(own) for name, own in notes.items()}
    document = {"notes": content, "texts_sha256": sha256_of(texts)}
    write_text(path, json.dumps(document, indent=2) + "\n", DataError)
    return notes


def _kept_notes(path: Path, texts: Path) -> dict[str, StreamNotes]:
    """The notes of the resumed run; raises a `DataError` if they or the texts are damaged."""
    content = read_json(path, DataError)
    try:
        notes = {name: StreamNotes(**content["notes"][name]) for name in ("train", "validation")}
        if content["texts_sha256"] != sha256_of(texts):
            raise DataError(f"{texts} is damaged, its checksum is another.")
        sound = all(
            isinstance(own.fingerprint, str)
            and all(type(count) is int and count >= 0 for count in own.counts)
            and all(isinstance(name, str) for name in own.classes)
            and all(type(count) is int for counts in own.together.values() for count in counts.values())
            for own in notes.values()
        )
    except (KeyError, TypeError, AttributeError, OSError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}).") from error
    if not sound:
        raise DataError(f"{path} is damaged.")
    return notes


def read_notes(dataset: datasets.IterableDataset, source: str, texts: Path | None = None) -> StreamNotes:
    """Reads the ids, texts and labels of a stream once, without holding them in memory.

    Args:
        dataset: The stream.
        source: The name of the data for error messages.
        texts: The Parquet file that the texts are written to, if any.

    Raises:
        DataError: If an id occurs twice.
    """
    fingerprint = stream_fingerprint(dataset)
    narrow = decoding_off(dataset)
    if is_arrow(narrow):  # only tables drop columns before they are read
        narrow = narrow.select_columns([name for name in ("id", "text", "labels") if name in narrow.column_names])
    counts = [0] * narrow.num_shards
    labels = LabelCounts()
    with tempfile.TemporaryDirectory(prefix="cmfah-ids-") as folder, _text_writer(texts) as write:
        ids = _Ids(Path(folder))
        for shard in range(narrow.num_shards):
            rows = read_shard(narrow, shard)
            while portion := list(islice(rows, _TEXT_ROWS)):
                counts[shard] += len(portion)
                for row in portion:
                    labels.add(row.get("labels"))
                ids.add([row["id"] for row in portion])
                write([row["text"] for row in portion], [row.get("labels") for row in portion])
        repeated = ids.repeated()
    if repeated is not None:
        names = (row["id"] for shard in range(narrow.num_shards) for row in read_shard(narrow, shard))
        name = next(name for name in names if _digest(name) == repeated)
        raise DataError(f"{source}: the id {name!r} occurs twice; make the ids unique.")
    return StreamNotes(fingerprint, counts, labels.classes, labels.to_dict())


@contextmanager
def _text_writer(path: Path | None) -> Iterator[Callable[[list[str], list[list[str] | None]], None]]:
    """A function that writes texts and their labels to a Parquet file, which appears when it is complete; nothing
    without a path."""
    if path is None:
        yield lambda texts, labels: None
        return
    schema = pa.schema([("text", pa.string()), ("labels", pa.list_(pa.string()))])
    with atomic_file(path, DataError) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        yield lambda texts, labels: writer.write_table(pa.table([texts, labels], schema=schema))


class _Ids:
    """Digests of ids, distributed over files, to find duplicates with one file in memory at a time."""

    def __init__(self, folder: Path):
        self.files = [folder / str(number) for number in range(_ID_FILES)]

    def add(self, ids: list[str]) -> None:
        parts: list[list[bytes]] = [[] for _ in self.files]
        for name in ids:
            digest = _digest(name)
            parts[digest[0] % _ID_FILES].append(digest)
        for file, digests in zip(self.files, parts, strict=True):
            with file.open("ab") as opened:
                opened.write(b"".join(digests))

    def repeated(self) -> bytes | None:
        """The digest of a duplicate id, or `None`."""
        for file in self.files:
            if not file.exists():
                continue
            numbers = np.fromfile(file, dtype=np.dtype([("high", ">u8"), ("low", ">u8")]))
            numbers = numbers[np.lexsort((numbers["low"], numbers["high"]))]
            twice = np.flatnonzero(numbers[1:] == numbers[:-1])
            if len(twice):
                return numbers[twice[0]].tobytes()
        return None


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_ID_BYTES).digest()
