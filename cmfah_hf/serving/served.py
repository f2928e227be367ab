"""A retriever that many threads search while others change it, saved to its index files.

Shape suffixes: Q queries, K hash bits.
"""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cmfah_hf.atomic import regular_target
from cmfah_hf.errors import CMFAHError, HashIndexError
from cmfah_hf.retrieval.base import Metric
from cmfah_hf.retrieval.folders.changes import FolderChanges
from cmfah_hf.retrieval.folders.contents import remove_from
from cmfah_hf.retrieval.folders.model import ModelOnDemand
from cmfah_hf.retrieval.folders.roots import FolderRequest
from cmfah_hf.retrieval.folders.update import UpdateOptions, update_folders, updating
from cmfah_hf.retrieval.index import HashIndex
from cmfah_hf.retrieval.known_words import similar_words
from cmfah_hf.retrieval.results import SearchResults
from cmfah_hf.retrieval.retriever import CrossMediaRetriever, Modality
from cmfah_hf.retrieval.storage.folder_records import FolderRecords
from cmfah_hf.retrieval.terms import Term
from cmfah_hf.space.uploads import MAX_PIXELS, decode_upload

logger = logging.getLogger(__name__)

MODALITIES: tuple[Modality, ...] = ("images", "texts")
# Texts encoded at once; searches by texts wait for them.
_TEXTS_AT_ONCE = 32
# Seconds to wait for another program that updates an index file.
_LOCK_S = 5.0
# What other programs are told that want to update one, after "it is being written by process 1 on host".
_INSTEAD = "which serves it; ask that server for the change (POST /sync updates folders), or end it"


class BusyError(CMFAHError):
    """A change that has to wait for another one."""


class StoppedError(CMFAHError):
    """An update of folders that ends because the server does; what it encoded is saved."""


@dataclass(frozen=True)
class Found:
    """The answers to a search.

    Attributes:
        results: The answers to each query.
        target: The index that was searched.
        ignored_words: Words that the model does not know.
        similar_words: Words that it does not know, and those that it reads instead.
    """

    results: SearchResults
    target: Modality
    ignored_words: list[str]
    similar_words: dict[str, list[str]]


class ServedRetriever:
    """A retriever for many threads. Searches never wait for changes; changes are made one at a time.

    As a context manager, it keeps other programs from updating its index files, and saves them at the end.

    Args:
        retriever: The model, with the indexes that are only searched.
        files: The index files that may change. A file that does not exist yet is written at the first change.
        folders: Folders of images that the index of images follows, in addition to those that it follows already.
        batch_size: Images encoded at once by an update of folders.
        max_pixels: Pixels of uploaded images that are decoded at the same time.

    Attributes:
        tokenizing: The lock that the processor of the model is used with.
    """

    def __init__(
        self,
        retriever: CrossMediaRetriever,
        files: Mapping[Modality, Path] | None = None,
        folders: Sequence[FolderRequest] = (),
        batch_size: int = 32,
        max_pixels: int = MAX_PIXELS,
    ):
        self.retriever = retriever
        self.files: dict[Modality, Path] = dict(files or {})
        self._folders, self._batch_size, self._max_pixels = tuple(folders), batch_size, max_pixels
        # The tokenizers of `transformers` change their settings from call to call.
        self.tokenizing = threading.Lock()
        self._changing = threading.Lock()
        self._is_syncing = False
        self._stopping = threading.Event()
        self._unsaved: set[Modality] = set()
        self._held = ExitStack()

    def __enter__(self) -> "ServedRetriever":
        with ExitStack() as held:
            for modality, path in self.files.items():
                regular_target(path, HashIndexError)
                held.enter_context(updating(path, _LOCK_S, _INSTEAD))
                if path.exists():
                    self._set_index(modality, self.retriever.load_index(path, mmap=True))
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stopping.set()
        with self._held:
            self.save()

    def index(self, modality: Modality) -> HashIndex:
        """The index of images or of texts."""
        return self.retriever.texts if modality == "texts" else self.retriever.images

    def is_saved(self, modality: Modality) -> bool:
        """Whether all changes of an index are in its file."""
        return modality not in self._unsaved

    def search(
        self,
        text: str | Sequence[str] | None = None,
        images: Sequence[Image.Image] = (),
        k: int = 10,
        target: Modality | None = None,
        metric: Metric = "aqd",
        where: Sequence[str] = (),
        exact: bool = True,
        image_weight: float = 0.5,
        terms: Sequence[Term] | None = None,
        unique: int | None = None,
        min_score: float | None = None,
    ) -> Found:
        """The nearest items of queries, as `CrossMediaRetriever.search` finds them.

        Args:
            text: A text, or several.
            images: Uploaded images, as `open_upload` returns them.
            where: Conditions as the command line writes them.
            terms: In place of both, terms of one query; their images are uploaded ones too.

        The other arguments are those of `CrossMediaRetriever.search`.

        Raises:
            CMFAHError: As `CrossMediaRetriever.search` does.
        """
        texts = [] if text is None else [text] if isinstance(text, str) else list(text)
        decoded = [decode_upload(image) for image in images] or None
        if terms is not None:
            texts += [term.text for term in terms if term.text is not None]
            terms = [term if term.image is None else replace(term, image=decode_upload(term.image)) for term in terms]
        if target is None:
            target = "images" if len(self.retriever.images) else "texts"
        with self.tokenizing if texts else nullcontext():
            results = self.retriever.search(
                text, decoded, k, target, metric, where or None, exact, image_weight, terms, unique, min_score
            )
            ignored = self.retriever.ignored_words(texts)
            similar = similar_words(texts, self.retriever.reader)
        return Found(results, target, ignored, similar)

    def add_texts(
        self, texts: Sequence[str], ids: Sequence[Any], metadata: Mapping[str, Sequence[Any]] | None, replace_same: bool
    ) -> int:
        """Adds texts to the index of texts, all or on an error none, and returns the number of items.

        Args:
            texts: The texts.
            ids: One id for each.
            metadata: Columns, as for `HashIndex.add`.
            replace_same: Replace items with the same ids.

        Raises:
            HashIndexError: As `HashIndex.add` does, or if the index must not change.
            BusyError: If an update of folders is running.
        """
        self._check_writable("texts")
        parts = [np.empty((0, self.retriever.hash_bits), np.float32)]
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            with self.tokenizing:
                parts.append(self.retriever.encode_texts(texts[start : start + _TEXTS_AT_ONCE]))
        return self._add("texts", np.concatenate(parts), ids, metadata, replace_same)

    def add_images(
        self,
        images: Sequence[Image.Image],
        ids: Sequence[Any],
        metadata: Mapping[str, Sequence[Any]] | None,
        replace_same: bool,
    ) -> int:
        """Adds uploaded images to the index of images; otherwise as `add_texts`.

        Raises:
            ImageError: If an image is damaged; nothing is added then.
        """
        self._check_writable("images")
        parts = [np.empty((0, self.retriever.hash_bits), np.float32)]
        for batch in _by_pixels(images, self._max_pixels):
            parts.append(self.retriever.encode_images([decode_upload(image) for image in batch]))
        return self._add("images", np.concatenate(parts), ids, metadata, replace_same)

    def remove(self, ids: Sequence[Any], target: Modality) -> int:
        """Removes items, all or on an error none. An image of a followed folder stays out at later updates.

        Raises:
            HashIndexError: If an id is unknown, or the index must not change.
            BusyError: If an update of folders is running.
        """
        with self._change(target) as index:
            return remove_from(index, f"The index of {target}", ids)

    def sync(self, dry_run: bool = False) -> FolderChanges:
        """Brings the index of images up to date with its folders, and saves it.

        Meanwhile, searches find the former items.

        Raises:
            HashIndexError: If the server follows no folder, or all are gone.
            DataError: If a folder cannot be read.
            BusyError: If another update is running.
            StoppedError: If the server stops.
        """
        path = self._check_writable("images")
        with self._exclusively(True):
            self._save("images")
            shared = _InterruptibleRetriever(self.retriever, self._stopping)
            # Items from elsewhere were added by clients.
            options = UpdateOptions(self._batch_size, dry_run=dry_run, add=path.exists(), is_locked=True)
            try:
                return update_folders(path, self._folders, ModelOnDemand.of(shared), options)
            finally:
                if not dry_run and path.exists():
                    self._set_index("images", self.retriever.load_index(path, mmap=True))

    def save(self) -> None:
        """Saves the indexes with changes that are not in their files yet.

        Raises:
            HashIndexError: If a file cannot be written, or another program has written it.
        """
        with self._changing:
            for modality in sorted(self._unsaved):
                self._save(modality)

    def stop(self) -> None:
        """Ends an update of folders at its next batch. What was encoded is saved."""
        self._stopping.set()

    def _save(self, modality: Modality) -> None:
        if modality in self._unsaved:
            self.index(modality).save(self.files[modality])
            self._unsaved.discard(modality)

    def _set_index(self, modality: Modality, index: HashIndex) -> None:
        if modality == "texts":
            self.retriever.texts = index
        else:
            self.retriever.images = index

    def _check_writable(self, modality: Modality) -> Path:
        if modality not in self.files:
            option = "--texts FILE" if modality == "texts" else "an index file, and without --read-only"
            raise HashIndexError(f"The index of {modality} must not change on this server; start it with {option}.")
        return self.files[modality]

    def _add(
        self,
        modality: Modality,
        codes: np.ndarray,
        ids: Sequence[Any],
        metadata: Mapping[str, Sequence[Any]] | None,
        replace_same: bool,
    ) -> int:
        with self._change(modality) as index:
            _refuse_followed(index.folders, ids)
            (index.upsert if replace_same else index.add)(codes, ids, metadata)
            return len(index)

    @contextmanager
    def _change(self, modality: Modality) -> Iterator[HashIndex]:
        self._check_writable(modality)
        with self._exclusively(False):
            yield self.index(modality)
            self._unsaved.add(modality)

    @contextmanager
    def _exclusively(self, is_sync: bool) -> Iterator[None]:
        """Waits for other changes, but not for an update of folders, which may take hours."""
        while not self._changing.acquire(timeout=0.05):
            if self._is_syncing:
                raise BusyError("The folders are being updated; try again when that is done.")
        try:
            self._is_syncing = is_sync
            yield
        finally:
            self._is_syncing = False
            self._changing.release()


class _InterruptibleRetriever(CrossMediaRetriever):
    """The model of another retriever, with indexes of its own, that encodes no image once an event is set."""

    def __init__(self, other: CrossMediaRetriever, stopping: threading.Event):
        self._begin(other.encoder, other.any_model)
        self._stopping = stopping

    def encode_pixels(self, pixel_values: Any) -> np.ndarray:
        if self._stopping.is_set():
            raise StoppedError("The server stops; what was encoded is saved.")
        return super().encode_pixels(pixel_values)


def _by_pixels(images: Sequence[Image.Image], most: int) -> Iterator[list[Image.Image]]:
    """Batches of images of at most `most` pixels together."""
    batch: list[Image.Image] = []
    pixels = 0
    for image in images:
        size = image.width * image.height
        if batch and pixels + size > most:
            yield batch
            batch, pixels = [], 0
        batch.append(image)
        pixels += size
    if batch:
        yield batch


def _refuse_followed(folders: FolderRecords | None, ids: Sequence[Any]) -> None:
    """Refuses the ids of images of a folder, whose codes an update of the folder would not make again."""
    if folders is None:
        return
    wanted = set(ids)
    files = folders.files()
    for root in folders.roots:
        for name in files[root.name]:
            if root.id_of(name) in wanted:
                raise HashIndexError(
                    f"{root.id_of(name)!r:.200} is an image of the folder {root.name}; give another id."
                )
