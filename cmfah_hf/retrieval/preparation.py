"""Images read, decoded and resized in threads, ahead of the batch that the model encodes.

Threads suffice: Pillow, PyTorch and NumPy release the interpreter's lock while they decode and resize. Batches come in
the order of the images, with the same pixels, whatever the number of threads.

Shape suffixes: N readable images, C colors, H and W sides of the images that the model sees.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from PIL import Image

from cmfah_hf.data.images.decoding import decode_image, few_at_a_time
from cmfah_hf.errors import ImageError, QueryError
from cmfah_hf.retrieval.image_options import ImageOptions

BatchT = TypeVar("BatchT", bound=Sequence[Any])
NoteT = TypeVar("NoteT")
Size = tuple[int, int]

_Part = tuple[list[NoteT], list[Any]]

# Images that one thread prepares at a time. Batches of the default size are one part, which is not copied.
_PART = 32
# More threads than this compete for the interpreter's lock.
_MOST_WORKERS = 8


class PreparedBatch(NamedTuple, Generic[BatchT, NoteT]):
    """A batch of images, ready for the model.

    Attributes:
        items: The batch as it was given.
        notes: What `read` returned for each item in addition to its image.
        pixel_values: `(N, 3, H, W)` of the readable images in their order, as the model takes them: a tensor on its
            device, or an array. None if there are none.
    """

    items: BatchT
    notes: list[NoteT]
    pixel_values: Any


class PixelMaker(Protocol):
    """Makes the inputs of a model from images, as tensors or arrays."""

    @property
    def least_size(self) -> Size | None:
        """Width and height below which an image would be enlarged; None if images are not resized."""

    def pixels(self, images: list[Image.Image]) -> Any:
        """Pixels `(N, 3, H, W)` of images, made in one of the threads."""

    def joined(self, parts: list[Any]) -> Any:
        """The pixels of several such calls as one batch, where the model takes it."""

    def pool(self, workers: int) -> ThreadPoolExecutor:
        """The threads."""


class ImagePreparation:
    """Prepares batches of images in threads, a bounded number of images ahead.

    Args:
        pixels: Makes the inputs of the model.
        options: How images are read.

    Raises:
        QueryError: If `options.workers` is below 1.
    """

    def __init__(self, pixels: PixelMaker, options: ImageOptions):
        if options.workers is not None and options.workers < 1:
            raise QueryError(f"workers is {options.workers}; give 1 or more.")
        self._maker = pixels
        self._least = pixels.least_size if options.fast_decoding else None
        self._workers = options.workers or min(_available_processors(), _MOST_WORKERS)

    @contextmanager
    def prepared(
        self,
        batches: Iterable[BatchT],
        read: Callable[[Any, Size | None], tuple[NoteT, Image.Image | None]],
    ) -> Iterator[Iterator[PreparedBatch[BatchT, NoteT]]]:
        """The batches in their order, each with the pixels of its readable images.

        Args:
            batches: The items in batches; taken in the calling thread, ahead of the batches that are returned.
            read: Reads one item, in one of the threads: from it and `least` of `decode_image`, a note for the caller
                and the image or None.
        """
        with closing(self._batches(batches, read)) as prepared:
            yield prepared

    def _batches(
        self, batches: Iterable[BatchT], read: Callable[[Any, Size | None], tuple[NoteT, Image.Image | None]]
    ) -> Generator[PreparedBatch[BatchT, NoteT], None, None]:

        def prepare(part: Sequence[Any]) -> _Part[NoteT]:
            notes: list[NoteT] = []

            def readable() -> Iterator[Image.Image]:
                for item in part:
                    note, image = read(item, self._least)
                    notes.append(note)
                    if image is not None:
                        yield image

            return notes, list(map(self._maker.pixels, few_at_a_time(readable())))

        source = iter(batches)
        batch = next(source, None)
        if batch is not None and len(batch) == 1:  # a query: threads would take longer to start
            yield self._joined(batch, [prepare(batch[:])])
            batch = next(source, None)
        if batch is None:
            return
        pool = self._maker.pool(self._workers)
        waiting: deque[tuple[BatchT, list[Future]]] = deque()
        try:
            while batch is not None or waiting:
                if batch is not None:
                    starts = range(0, len(batch), _PART)
                    waiting.append((batch, [pool.submit(prepare, batch[start : start + _PART]) for start in starts]))
                    batch = next(source, None)
                if batch is None or sum(len(parts) for _, parts in waiting) - len(waiting[0][1]) >= 2 * self._workers:
                    ready, futures = waiting.popleft()
                    yield self._joined(ready, [future.result() for future in futures])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after an error nothing waits for a slow drive

    def _joined(self, items: BatchT, parts: list[_Part[NoteT]]) -> PreparedBatch[BatchT, NoteT]:
        notes = [note for part, _ in parts for note in part]
        pixels = [made for _, own in parts for made in own]
        return PreparedBatch(items, notes, self._maker.joined(pixels) if pixels else None)


def read_image(image: Any, least: Size | None) -> tuple[None, Image.Image]:
    """An image from any `ImageSource`; `least` as for `decode_image`. Raises an `ImageError` if it cannot be read."""
    return None, decode_image(image, None, least)


def read_if_sound(named: tuple[Any, str | None], least: Size | None) -> tuple[ImageError | None, Image.Image | None]:
    """An image from an `ImageSource` and its name, or the error."""
    try:
        return None, decode_image(*named, least)
    except ImageError as error:
        return error, None


def _available_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
