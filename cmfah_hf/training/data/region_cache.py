"""Regions of a frozen backbone, computed once and kept on disk.

A frozen backbone computes the same regions in every epoch and takes nearly all of the time. With its regions on disk,
an epoch on a CPU takes seconds. The files are Arrow tables, as in the cache of `datasets`. They are memory-mapped,
which is 14 times as fast as reading the same arrays from Parquet, whose nested lists are decoded value by value.
"""

import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from cmfah_hf.atomic import atomic_file, locked, sha256_of
from cmfah_hf.data.file_state import FileState, digest_of, file_states
from cmfah_hf.data.images import decode_image, decoding_off
from cmfah_hf.data.images.pixels import pixel_values_of
from cmfah_hf.data.internals import ArrowWriter, fingerprint_of, stream_arrow, stream_fingerprint
from cmfah_hf.errors import DataError, ImageError
from cmfah_hf.models import CMFAHImageModel, CMFAHProcessor
from cmfah_hf.models.image_parts import in_parts
from cmfah_hf.training.data.kept_tables import (
    REGION_COLUMNS,
    WAIT_S,
    Note,
    add_weights,
    damage,
    image_files,
    image_states,
    kept_folder,
    kept_table,
)
from cmfah_hf.training.data.shards import read_shard

logger = logging.getLogger(__name__)

# Rows of the source in one file, which an interrupted pass may lose: 100 MB with 49 x 512 regions.
_PIECE = 2048
_TABLE_ROWS = 64
# Seconds without a new file after which the process that computes them is considered dead.
_STALLED_S = 4 * 3600.0


class RegionExtractor:
    """A stage for `datasets.map(batched=True)`: from `image` to `region_features`, float16 `(R, C)` in each row.

    With `mirrored=True` it adds `region_features_mirrored`, the regions of the mirror image. For an unreadable image,
    the regions are zeros and `readable` is False. Only the backbone of the image tower is used.
    """

    def __init__(self, image_model: CMFAHImageModel, processor: CMFAHProcessor, mirrored: bool = False):
        self.embeddings = image_model.embeddings
        self.processor = processor
        self.mirrored = mirrored

    def fingerprint(self) -> str:
        """A digest of the weights of the backbone and the preprocessing of the images."""
        preparation = self.processor.image_processor.to_dict()
        used = ["size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"]
        used += ["do_center_crop", "crop_size"] if preparation.get("do_center_crop") else []
        # As JSON, which is equal for a new processor and a loaded one.
        own = [
            *(preparation.get(name) for name in used),
            self.mirrored,
            *(["one"] if self.embeddings.keeps_one else []),
        ]
        digest = hashlib.sha256(json.dumps(own).encode())
        add_weights(digest, self.embeddings.backbone)
        return digest.hexdigest()

    def regions(self, pixel_values: torch.Tensor) -> np.ndarray:
        """`(B, R, C)`, float16, of `(B, 3, H, W)`; on a CPU, in parts, by threads."""
        self.embeddings.eval()
        return np.concatenate(in_parts(self._regions, pixel_values.to(self.embeddings.projection.weight.device)))

    @torch.inference_mode()
    def _regions(self, pixel_values: torch.Tensor) -> np.ndarray:
        regions_BRC = self.embeddings.extract_regions(pixel_values).float()
        largest = torch.finfo(torch.float16).max
        return regions_BRC.clamp(-largest, largest).half().cpu().numpy()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        readable: list[bool] = []

        def images() -> Iterator[Image.Image]:
            for number, value in enumerate(batch["image"]):
                try:
                    image = decode_image(value, name=str(batch["id"][number]) if "id" in batch else None)
                except ImageError as error:
                    logger.warning("Left out: %s", error)
                    readable.append(False)
                else:
                    readable.append(True)
                    yield image

        found = pixel_values_of(self.processor, images())
        pixel_values = torch.zeros(len(readable), *found.shape[1:])
        pixel_values[torch.tensor(readable)] = found
        columns = {"region_features": self.regions(pixel_values), "readable": readable}
        if self.mirrored:
            columns["region_features_mirrored"] = self.regions(pixel_values.flip(-1))
        return columns


def keep_regions(
    dataset: datasets.Dataset | datasets.IterableDataset,
    image_model: CMFAHImageModel,
    processor: CMFAHProcessor,
    mirrored: bool = False,
    batch_size: int = 16,
    num_processes: int = 1,
    process_index: int = 0,
) -> datasets.Dataset | datasets.IterableDataset:
    """The data set with a column `region_features` (and `region_features_mirrored`), without unreadable rows.

    The columns are kept in the cache of `datasets`, and later calls with the same images, backbone and preprocessing
    read them from there. 49 regions of 512 channels take 50 kB per image. If image files have changed or files of the
    cache are damaged, the regions are computed again, with a warning that names the file.

    A stream is read once, and its regions are kept in files that are streamed in turn, without the images. They may be
    larger than memory, but not than the disk. If that pass is interrupted, the next call resumes it.

    Args:
        dataset: A data set or stream with a column `image`.
        image_model: The image tower with its backbone's weights.
        processor: The model's processor.
        mirrored: Whether to keep the regions of the mirror images too.
        batch_size: Images in a batch of the backbone.
        num_processes, process_index: The number of processes that share the shards of a stream, and the index of this
            one.

    Raises:
        DataError: If no image can be read.
    """
    extractor = RegionExtractor(image_model, processor, mirrored)
    num_regions, channels = extractor.regions(torch.zeros(1, 3, *processor.image_shape)).shape[1:]
    names = REGION_COLUMNS[: 1 + mirrored]
    columns = {name: datasets.Array2D((num_regions, channels), "float16") for name in names}
    if isinstance(dataset, datasets.IterableDataset):
        return _StreamedRegions(dataset, extractor, columns, batch_size).kept(num_processes, process_index)
    raw = decoding_off(dataset)
    states = image_states(raw)
    # The key includes the states: a source that is changed back finds its regions again.
    key = f"{fingerprint_of(dataset)} {digest_of(states)} {extractor.fingerprint()}"
    added = datasets.Features({**columns, "readable": datasets.Value("bool")})

    def make(file: Path) -> None:
        raw.map(
            extractor,
            cache_file_name=str(file),
            load_from_cache_file=False,
            batched=True,
            batch_size=batch_size,
            remove_columns=raw.column_names,
            features=added,
            new_fingerprint=file.parent.name[:32],
            desc="Regions of the images",
        )

    folder = kept_folder("regions", key)
    regions = kept_table(folder, added, len(raw), make, states)
    raw = datasets.concatenate_datasets([raw, regions], axis=1)
    readable = np.asarray(raw["readable"])
    if not readable.any():
        raise DataError(f"None of the {len(raw)} images can be read; see the warnings above.")
    if not readable.all():
        logger.warning("Left out %d of %d images, because they cannot be read.", np.sum(~readable), len(raw))
        raw = raw.select(np.flatnonzero(readable))
    raw = raw.remove_columns("readable").cast_column("image", dataset.features["image"])
    # In this format a batch of regions is read in milliseconds, as lists in seconds. The type prevents NumPy from
    # converting them to float32 row by row.
    return raw.with_format("numpy", columns=list(names), output_all_columns=True, dtype=np.float16)


class _StreamedRegions:
    """A stream with regions instead of images, in files below the cache of `datasets`, several for each shard."""

    def __init__(
        self, dataset: datasets.IterableDataset, extractor: RegionExtractor, columns: dict[str, Any], batch_size: int
    ):
        self.dataset, self.extractor, self.batch_size = dataset, extractor, batch_size
        self.folder = kept_folder("regions", f"{stream_fingerprint(dataset)} {extractor.fingerprint()}")
        self.features = datasets.Features({**{k: v for k, v in dataset.features.items() if k != "image"}, **columns})

    def kept(self, num_processes: int, process_index: int) -> datasets.IterableDataset:
        """The stream of the files, which are computed if need be.

        Several processes share the shards, on a common disk, and wait for each other at the end.
        """
        dataset = self.dataset
        for shard in range(process_index, dataset.num_shards, num_processes):
            with locked(self.folder / f"{shard:06d}.work", DataError, WAIT_S):
                self._keep_shard(shard)
        found = [self._wait_for(shard) for shard in range(dataset.num_shards)]
        rows = sum(note.read for notes in found for note in notes)
        kept = sum(note.kept for notes in found for note in notes)
        if not kept:
            raise DataError(f"None of the {rows} images can be read; see the warnings above.")
        if kept < rows:
            logger.warning("Left out %d of %d images, because they cannot be read.", rows - kept, rows)
        files = [
            str(self._piece(shard, number)[0])
            for shard, notes in enumerate(found)
            for number, note in enumerate(notes)
            if note.kept
        ]
        return stream_arrow(files, self.features, str(dataset.split) if dataset.split is not None else None)

    def _keep_shard(self, shard: int) -> None:
        """Writes the missing and damaged files of a shard. The last note has no rows."""
        number = start = 0
        rows: Iterator[dict[str, Any]] | None = None  # at the end of the last file that was written
        while True:
            path, note_file = self._piece(shard, number)
            problem = damage(path, note_file, self.features) if note_file.exists() else ""
            if problem is None:
                note, rows = Note.read_from(note_file), None
            else:
                if problem:
                    logger.warning("%s; it is computed again.", problem)
                rows = rows if rows is not None else read_shard(self.dataset, shard, start=start)
                note = self._write_piece(islice(rows, _PIECE), path)
                note.write(note_file)
            if not note.read:
                return
            start += note.read
            number += 1

    def _wait_for(self, shard: int) -> list[Note]:
        """Waits until all files of a shard are complete, which another process may be writing; returns their notes."""
        notes: list[Note] = []
        deadline = time.monotonic() + _STALLED_S
        while True:
            path, note_file = self._piece(shard, len(notes))
            is_there = note_file.exists()
            problem = damage(path, note_file, self.features) if is_there else f"{note_file} is missing"
            if problem is None:
                notes.append(Note.read_from(note_file))
                deadline = time.monotonic() + _STALLED_S
                if not notes[-1].read:
                    return notes
            elif time.monotonic() > deadline:
                raise DataError(f"{problem}, and no process has made it for {_STALLED_S:g} seconds; start again.")
            else:
                time.sleep(0.5)

    def _write_piece(self, rows: Iterator[dict[str, Any]], path: Path) -> Note:
        """Writes the rows with a readable image; without any, there is no file."""
        read = kept = 0
        sources: list[FileState] = []
        with atomic_file(path, DataError) as unfinished:
            with ArrowWriter(path=str(unfinished), features=self.features, writer_batch_size=_TABLE_ROWS) as writer:
                while batch := list(islice(rows, self.batch_size)):
                    sources += file_states(image_files(row["image"] for row in batch))
                    columns = self.extractor({name: [row[name] for row in batch] for name in ("id", "image")})
                    readable = columns.pop("readable")
                    numbers = [number for number, is_readable in enumerate(readable) if is_readable]
                    read, kept = read + len(batch), kept + len(numbers)
                    for number in numbers:
                        row = {**batch[number], **{name: values[number] for name, values in columns.items()}}
                        writer.write({name: row[name] for name in self.features})
                if kept:
                    writer.finalize()
            digest = sha256_of(unfinished) if kept else ""
        if not kept:
            path.unlink()
        return Note(read, kept, digest, tuple(sources))

    def _piece(self, shard: int, number: int) -> tuple[Path, Path]:
        """A file and its note."""
        path = self.folder / f"{shard:06d}-{number:06d}.arrow"
        return path, path.with_suffix(".json")
