"""A model, its processor, its word graph and two indexes: search in a few calls.

Shape suffixes: N items, Q queries, K hash bits.
"""

import logging
from collections.abc import Iterable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmfah_hf.data.images import decode_image
from cmfah_hf.errors import DataError, HashIndexError, ImageError, QueryError
from cmfah_hf.expansion import GraphExpander
from cmfah_hf.models import CMFAHModel, CMFAHProcessor
from cmfah_hf.retrieval.fingerprint import check_same_model, fingerprint_of, state_of
from cmfah_hf.retrieval.index import HashIndex, Metric, SearchResults
from cmfah_hf.retrieval.items import Items, batches_of, taken, values_of_source
from cmfah_hf.retrieval.known_words import is_known
from cmfah_hf.retrieval.loading import find_file, load_parts
from cmfah_hf.retrieval.queries import checked_texts, query_values

logger = logging.getLogger(__name__)

# The indexes that lie beside a model, in a folder or on the Hub.
PICTURES_INDEX, TEXTS_INDEX = "pictures.index", "texts.index"


class CrossMediaRetriever:
    """Encodes pictures and texts, each alone, and finds the nearest of what was added.

    Args:
        model: The towers.
        processor: Their processor.
        expander: The graph that the model's training texts were expanded over; queries are expanded over it too.
        device: Where to encode. None: a GPU where there is one.
        any_model: Whether indexes are taken whose codes another model made, by their fingerprint. Only for codes that
            are known to fit, such as those of the same weights in another precision.

    Example:

    ```python
    >>> retriever = CrossMediaRetriever.from_pretrained("path/to/checkpoint")
    >>> retriever.add_images(["beach.jpg", "street.jpg"])  # those that could not be read
    []
    >>> results = retriever.search(text="a dog on the beach", k=1)
    >>> results.ids.tolist(), results.scores.tolist()
    ([['beach.jpg']], [[31.5]])
    ```"""

    def __init__(
        self,
        model: CMFAHModel,
        processor: CMFAHProcessor,
        expander: GraphExpander | None = None,
        device: str | torch.device | None = None,
        any_model: bool = False,
    ):
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(device).eval()
        self.processor = processor
        self.expander = expander
        self.any_model = any_model
        self._indexes: dict[str, HashIndex] = {}
        self._fingerprint: tuple[tuple, str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        repo_or_folder: str | Path,
        device: str | torch.device | None = None,
        index: bool = False,
        any_model: bool = False,
        **kwargs: Any,
    ) -> "CrossMediaRetriever":
        """Loads what a training run left in a folder, or what was pushed to the Hub from there.

        Args:
            repo_or_folder: A folder or a Hub id.
            device: Where to encode. None: a GPU where there is one.
            index: Whether the indexes that were pushed with it (`pictures.index`, `texts.index`) are loaded too.
            any_model: As of the class.
            **kwargs: For `from_pretrained`, such as `revision`, `token` or `dtype`.

        Raises:
            CheckpointError: If the folder holds no model of this package, or lacks a part of it, or the Hub has no such
                model or cannot be reached.
            HashIndexError: If an index is wanted and there is none, or it is damaged, of another width, or of another
                model.
        """
        source = str(repo_or_folder)
        model, processor, expander, kwargs = load_parts(source, kwargs)
        retriever = cls(model, processor, expander, device, any_model)
        if index:
            retriever._load_indexes(source, kwargs)
        return retriever

    def _load_indexes(self, source: str, kwargs: dict[str, Any]) -> None:
        paths = [find_file(source, name, kwargs) for name in (PICTURES_INDEX, TEXTS_INDEX)]
        if not any(paths):
            raise HashIndexError(
                f"{source}: no index came with it ({PICTURES_INDEX}, {TEXTS_INDEX}); make one with `cmfah index`."
            )
        for what, path in zip(("images", "texts"), paths, strict=True):
            if path is not None:
                setattr(self, what, self.load_index(path, mmap=True))

    @property
    def fingerprint(self) -> str:
        """The fingerprint of what makes the codes, in every index that is filled here; computed when first needed."""
        state = state_of(self.model, self.processor, self.expander)
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = state, fingerprint_of(self.model, self.processor, self.expander)
        return self._fingerprint[1]

    @property
    def images(self) -> HashIndex:
        """The index of pictures. An index that another model made cannot be set here, unless with `any_model`."""
        return self._index("images")

    @images.setter
    def images(self, index: HashIndex) -> None:
        self._indexes["images"] = self._checked(index, "The index of images")

    @property
    def texts(self) -> HashIndex:
        """The index of texts. An index that another model made cannot be set here, unless with `any_model`."""
        return self._index("texts")

    @texts.setter
    def texts(self, index: HashIndex) -> None:
        self._indexes["texts"] = self._checked(index, "The index of texts")

    def load_index(self, path: str | Path, mmap: bool = False) -> HashIndex:
        """Reads an index file for this model.

        Args:
            path: The file.
            mmap: As for `HashIndex.load`.

        Raises:
            HashIndexError: If the file is missing or damaged, or holds codes of another width or of another model.
        """
        return self._checked(HashIndex.load(path, mmap=mmap, bits=self.model.config.hash_bits), str(path))

    def _index(self, what: str) -> HashIndex:
        if what not in self._indexes:
            self._indexes[what] = HashIndex(self.model.config.hash_bits)
        return self._checked(self._indexes[what], f"The index of {what}")  # the weights may have been trained since

    def _checked(self, index: HashIndex, name: str) -> HashIndex:
        if not len(index):
            index.model = self.fingerprint
        if not self.any_model:
            check_same_model(index.model, self.fingerprint, name)
        return index

    def expand(self, texts: Sequence[str]) -> list[str]:
        """The texts as the model was trained to read them: with the words that the graph adds."""
        texts = checked_texts(texts)
        return [" ".join(self.expander.expand(text)) for text in texts] if self.expander else texts

    def ignored_words(self, text: str) -> list[str]:
        """The words of a text that neither the vocabulary nor the expander knows, each once, in their order.

        A search goes on without them.
        """
        words = is_known(*checked_texts([text]), self.processor, self.expander)
        return list(dict.fromkeys(word for word, known in words if not known))

    @torch.inference_mode()
    def encode_images(self, images: Iterable[Any], batch_size: int = 32, progress: bool = False) -> np.ndarray:
        """Hash values `(N, K)` in (-1, 1), float32, of pictures alone.

        Args:
            images: Paths, bytes, open files or Pillow pictures.
            batch_size: Pictures encoded at once.
            progress: Whether to show a progress bar.

        Raises:
            ImageError: If one cannot be read; it names the picture.
        """
        batches = []
        for batch in batches_of(images, batch_size, "Pictures", progress):
            pixel_values = self.processor(images=[decode_image(image) for image in batch], return_tensors="pt")[
                "pixel_values"
            ]
            batches.append(self.model.get_image_hash(pixel_values.to(self.model.device)).float().cpu().numpy())
        return np.concatenate(batches) if batches else np.empty((0, self.model.config.hash_bits), np.float32)

    @torch.inference_mode()
    def encode_texts(self, texts: Iterable[str], batch_size: int = 256, progress: bool = False) -> np.ndarray:
        """Hash values `(N, K)` in (-1, 1), float32, of texts alone. One without a known word has those of no text.

        Args:
            texts: Strings; the words that the graph adds are added here.
            batch_size: Texts encoded at once.
            progress: Whether to show a progress bar.
        """
        batches = []
        for batch in batches_of(texts, batch_size, "Texts", progress):
            inputs = self.processor(text=self.expand(batch), return_tensors="pt").to(self.model.device)
            hash_values = self.model.get_text_hash(inputs["input_ids"], inputs["attention_mask"])
            batches.append(hash_values.float().cpu().numpy())
        return np.concatenate(batches) if batches else np.empty((0, self.model.config.hash_bits), np.float32)

    @torch.inference_mode()
    def encode_pairs(
        self, images: Iterable[Any], texts: Iterable[str], batch_size: int = 32, progress: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Hash values of pictures and texts that see each other, each `(N, K)`.

        For `protocol="paired"` alone: a query that is encoded with its partner knows the answer.
        """
        batches = []
        for batch in batches_of(zip(images, texts, strict=True), batch_size, "Pairs", progress):
            pictures, own_texts = zip(*batch, strict=True)
            inputs = self.processor(
                images=[decode_image(picture) for picture in pictures], text=self.expand(own_texts), return_tensors="pt"
            ).to(self.model.device)
            outputs = self.model(**inputs)
            batches.append((outputs.image_hash.float().cpu().numpy(), outputs.text_hash.float().cpu().numpy()))
        if not batches:
            return (np.empty((0, self.model.config.hash_bits), np.float32),) * 2
        image_batches, text_batches = zip(*batches, strict=True)
        return np.concatenate(image_batches), np.concatenate(text_batches)

    def add_images(
        self,
        images: Any,
        ids: Sequence[int] | Sequence[str] | None = None,
        batch_size: int = 32,
        progress: bool = False,
        column: str = "image",
        metadata: Any = None,
    ) -> list[str]:
        """Encodes pictures and adds them to the index `images`. One that cannot be read is left out, and named.

        Args:
            images: A data set or a stream, or an iterable of paths, bytes or Pillow pictures.
            ids: Of the pictures. None: the data set's column `id`, the paths as given, or their numbers.
            batch_size: Pictures encoded at once.
            progress: Whether to show a progress bar.
            column: The data set's column of pictures.
            metadata: The names of the data set's columns to keep; beside other pictures, columns as `HashIndex.add`
                takes them.

        Returns:
            For each picture that was left out, why.

        Raises:
            DataError: If the data set lacks a column.
            HashIndexError: If there are not as many ids as pictures, or an id is not new.
        """
        if not hasattr(images, "column_names"):
            images = list(images)
            if ids is None and all(isinstance(image, (str, Path)) for image in images):
                ids = [str(image) for image in images]
        items = Items(images, column, ids, metadata, "pictures")
        unreadable: list[str] = []
        # Numbers count the pictures as given, so that one that is left out does not shift those behind it.
        first = self.images.next_id
        for batch in items.batches(batch_size, progress, "Pictures"):
            pictures, kept = [], []
            for position, image in enumerate(batch.values):
                try:
                    own_id = first + position if batch.ids is None else batch.ids[position]
                    pictures.append(decode_image(image, None if isinstance(image, (str, Path)) else str(own_id)))
                    kept.append(position)
                except ImageError as error:
                    logger.warning("Left out: %s", error)
                    unreadable.append(str(error))
            if pictures:
                _, batch_ids, table = taken(batch, kept, first)
                self.images.add(self.encode_images(pictures, batch_size), batch_ids, table)
            first += len(batch.values)
        return unreadable

    def add_texts(
        self,
        texts: Any,
        ids: Sequence[int] | Sequence[str] | None = None,
        batch_size: int = 256,
        progress: bool = False,
        column: str = "text",
        metadata: Any = None,
    ) -> None:
        """Encodes texts and adds them to the index `texts`.

        Args:
            texts: A data set or a stream, or an iterable of texts.
            ids: Of the texts. None: the data set's column `id`, or their numbers.
            batch_size: Texts encoded at once.
            progress: Whether to show a progress bar.
            column: The data set's column of texts; lists of words will do.
            metadata: The names of the data set's columns to keep; beside other texts, columns as `HashIndex.add` takes
                them.

        Raises:
            DataError: If the data set lacks a column.
            HashIndexError: If there are not as many ids as texts, or an id is not new.
        """
        first = self.texts.next_id
        for batch in Items(texts, column, ids, metadata, "texts").batches(batch_size, progress, "Texts"):
            values, batch_ids, table = taken(batch, list(range(len(batch.values))), first)
            words = [value if isinstance(value, str) else " ".join(value or ()) for value in values]
            self.texts.add(self.encode_texts(words, batch_size), batch_ids, table)
            first += len(values)

    def add_source(
        self,
        source: str | Path,
        split: str | None = None,
        what: str = "images",
        batch_size: int = 32,
        progress: bool = False,
        metadata: Sequence[str] = (),
        prefix: str = "",
        hidden: bool = False,
        skipped: MutableMapping[str, int] | None = None,
    ) -> list[str]:
        """Adds all pictures, or all texts, of a data set, of a folder of pictures without any metadata, or of one file.

        Args:
            source: A picture, a folder of pictures, or whatever `load_image_text` takes.
            split: One split. None: all, and where there are several the ids are such as `train/cat.jpg`.
            what: `"images"` or `"texts"`.
            batch_size: Items encoded at once.
            progress: Whether to show a progress bar.
            metadata: The columns to keep beside the codes; a data set's `text`, `labels` or any other.
            prefix: What all ids begin with.
            hidden: Whether hidden files below a folder of pictures are taken too, and those of thumbnails.
            skipped: A mapping to which is added how many files of such a folder were passed over, by their ending or by
                the reason.

        Returns:
            For each picture that was left out, why.

        Raises:
            DataError: If the source cannot be used, or lacks a column.
        """
        total, unreadable = 0, []
        for values, ids in values_of_source(source, split, what, metadata, prefix, hidden, skipped):
            total += len(ids)
            if what == "images":
                kept = metadata or None
                unreadable += self.add_images(values, ids, batch_size, progress, metadata=kept)
            else:
                self.add_texts(values, ids, batch_size, progress, metadata=metadata)
        if len(unreadable) == total:
            raise DataError(f"{source}: not one of its {total} pictures can be read; see the warnings above.")
        return unreadable

    def search(
        self,
        text: str | Sequence[str] | None = None,
        image: Any = None,
        k: int = 10,
        target: str | None = None,
        metric: Metric = "aqd",
        where: Any = None,
        exact: bool = True,
        image_weight: float = 0.5,
    ) -> SearchResults:
        """The nearest items of a text, of a picture, or of both together; or of several at once.

        Args:
            text: A text, or a list of texts.
            image: A picture (a path, bytes, an open file, a Pillow picture), or a list of them. Beside `text` it makes
                a mixed query: one text for every picture, or one for all.
            k: How many items to give.
            target: `"images"` or `"texts"`: what is searched. None: pictures if there are any, else texts.
            metric: `"aqd"`, by `<z_q, B_x>` of `[aqd]`, or `"hamming"`.
            where: A condition on the metadata, as for `HashIndex.search`.
            exact: False: look only near the query, as `HashIndex.search` does.
            image_weight: `w` of a mixed query, whose hash values are `w z_image + (1 - w) z_text`.

        Raises:
            QueryError: If neither `text` nor `image` is given, they do not pair up, the weight is not in 0..1, or no
                word of a text is known to the model.
            ImageError: If a picture cannot be read.
            HashIndexError: If what is searched is empty.
        """
        if target not in (None, "images", "texts"):
            raise QueryError(f"target is {target!r}; choose 'images' or 'texts'.")
        hash_values_QK = query_values(self, text, image, image_weight)
        index = self.texts if target == "texts" or (target is None and not len(self.images)) else self.images
        return index.search(hash_values_QK, k=k, metric=metric, where=where, exact=exact)
