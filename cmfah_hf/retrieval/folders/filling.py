"""Filling of an index by a plan: known codes move, other images are encoded, in portions that are saved."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from PIL.Image import Image

from cmfah_hf.data.images.extras import readers
from cmfah_hf.retrieval.folders.changes import FolderChanges
from cmfah_hf.retrieval.folders.model import ModelOnDemand
from cmfah_hf.retrieval.folders.plan import Plan
from cmfah_hf.retrieval.folders.present import Present
from cmfah_hf.retrieval.folders.reading import Reading, read_image_file
from cmfah_hf.retrieval.folders.roots import FolderRequest, requested_roots
from cmfah_hf.retrieval.index import HashIndex
from cmfah_hf.retrieval.storage.folder_records import FileRecord, Files, FolderRecords, Root, table_of

if TYPE_CHECKING:
    from cmfah_hf.retrieval.preparation import PreparedBatch

logger = logging.getLogger(__name__)

# Images between two saves, which a killed process can lose; in a large index, this share of its items.
_PORTION, _PORTION_SHARE = 1_000, 1 / 50


def records_of_folder(folder: str | Path, files: Mapping[str, FileRecord]) -> FolderRecords:
    """The records of a new index that follows one folder without metadata, by the names of the files in it."""
    roots = requested_roots((), [FolderRequest(folder)]).all
    return FolderRecords(roots, table_of(roots, {roots[0].name: files}), readers=readers(), updated=_now())


class Filling:
    """An index that is brought up to date.

    Args:
        target: The index file.
        index: The index, or None for a new one.
        model: The model.
        roots: The folders that the index follows from now on.
        files: Their records, which are updated.
        changes: The counts, to which encoded and unreadable images are added.
    """

    def __init__(
        self,
        target: Path,
        index: HashIndex | None,
        model: ModelOnDemand,
        roots: Sequence[Root],
        files: Files,
        changes: FolderChanges,
    ):
        self.target, self.model, self.roots, self.files, self.changes = target, model, roots, files, changes
        if index is None or not len(index):  # of any model and any width
            former = None if index is None else index.folders
            index = HashIndex(model.retriever.hash_bits, model.retriever.fingerprint)
            index.folders = former
        self.index = index
        self._unsaved = 0
        self._has_changed = False
        self._in_work: list[str] = []

    def rename(self, new_ids: Mapping[str, str]) -> None:
        """Gives items other ids; codes and metadata stay."""
        if new_ids:
            codes, table = self._taken(new_ids)
            self.index.remove(list(new_ids))
            self.index.upsert(codes, list(new_ids.values()), table)
            self._has_changed = True

    def apply(self, plan: Plan, present: Present) -> None:
        """Moves and drops the codes that the index has."""
        codes, table = self._taken(plan.reuse.values())
        self._drop([*plan.gone, *plan.without_code])
        for root, places in _by_root(plan.reuse, present):
            ids = [item_id for item_id, _ in places]
            rows = np.array([row for _, row in places], np.int64)
            own = None if table is None else table.take(rows)
            self.index.upsert(codes[rows], ids, present.metadata_of(root, ids, own))
        for item_id in plan.gone:
            root, name = present.owner[item_id]
            self.files[root].pop(name, None)
        for item_id, record in plan.records.items():
            self._set_record(present, item_id, record)
        self._has_changed = True

    def encode(self, ids: Sequence[str], present: Present, batch_size: int, progress: bool) -> None:
        """Adds the codes of images. What was encoded is saved even if this is interrupted."""
        from cmfah_hf.retrieval.items import batches_of

        def read(item_id: str, least: tuple[int, int] | None) -> tuple[Reading, Image | None]:
            reading = read_image_file(present.found[item_id], least)
            return reading._replace(image=None), reading.image

        try:
            batches = batches_of(ids, batch_size, "Images", False)
            retriever = self.model.retriever
            retriever.images = self.index  # checks that it is of this model
            with retriever.encoding(batches, read, len(ids), progress) as encoded:
                for batch, codes_NK in encoded:
                    self._add(batch, codes_NK, present)
                    self._unsaved += len(batch.items)
                    if self._unsaved >= max(_PORTION, _PORTION_SHARE * len(self.index)):
                        self.save()
        except BaseException:
            self._drop(self._in_work)  # it is not known whether their codes are those of their records
            if self._has_changed:
                self.save()
            raise

    def save(self) -> None:
        """Saves the index with its records."""
        former = self.index.folders or FolderRecords()
        is_loaded = self.model.is_loaded
        self.index.folders = FolderRecords(
            tuple(self.roots),
            table_of(self.roots, self.files),
            model=self.model.source if is_loaded else former.model,
            revision=self.model.revision if is_loaded else former.revision,
            model_state=self.model.state_for(self.index),
            readers=readers(),
            updated=_now(),
        )
        self.index.save(self.target)
        self._unsaved = 0

    def _add(self, batch: "PreparedBatch[list[str], Reading]", codes_NK: np.ndarray | None, present: Present) -> None:
        """Adds the codes `(N, K)` of the readable images of a batch, and the records of all that could be read."""
        states = {}
        for item_id, reading in zip(batch.items, batch.notes, strict=True):
            if reading.problem is None and reading.sha256 is not None:
                states[item_id] = reading.file.record(reading.sha256)
                continue
            self.changes.unreadable.append(f"{reading.file.path}: {reading.problem}")
            logger.warning("Left out: %s", self.changes.unreadable[-1])
            if reading.sha256 is not None:
                self._drop([item_id])
                self._set_record(present, item_id, reading.file.record(reading.sha256, reading.problem))
        if codes_NK is None:
            return
        self._has_changed, self._in_work = True, list(states)
        for root, places in _by_root(states, present):
            own_ids = [item_id for item_id, _ in places]
            rows = [row for _, row in places]
            self.index.upsert(codes_NK[rows], own_ids, present.metadata_of(root, own_ids, None))
        for item_id, record in states.items():
            if present.has_code(item_id):
                self.changes.changed += 1
            else:
                self.changes.added += 1
            self._set_record(present, item_id, record)
        self._in_work = []

    def _taken(self, ids: Iterable[str]) -> tuple[np.ndarray, pa.Table | None]:
        """Codes `(N, K / 8)` and metadata of items."""
        held = {item_id: row for row, item_id in enumerate(self.index.ids.tolist())}
        rows = np.array([held[item_id] for item_id in ids], np.int64)
        table = self.index.metadata
        return self.index.codes[rows], None if table is None else table.take(rows)

    def _drop(self, ids: Sequence[str]) -> None:
        """Removes those of the items that the index holds."""
        if len(ids) and len(self.index):
            self.index.remove([item_id for item_id, is_held in zip(ids, self.index.holds(ids), strict=True) if is_held])

    def _set_record(self, present: Present, item_id: str, record: FileRecord) -> None:
        root, name = present.owner[item_id]
        self.files[root][name] = record


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _by_root(ids: Iterable[str], present: Present) -> list[tuple[str, list[tuple[str, int]]]]:
    """Ids with their positions, by the folder that they belong to."""
    placed = sorted(((item_id, row) for row, item_id in enumerate(ids)), key=lambda own: present.owner[own[0]][0])
    return [(root, list(own)) for root, own in groupby(placed, key=lambda own: present.owner[own[0]][0])]
